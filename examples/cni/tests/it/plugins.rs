//! Our plugins alone: what they answer, what they leave, and what they stand.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use estiba_network::Error;
use estiba_network::cni::serde_json::{self, Value, json};
use estiba_network::cni::{Attachment, Failure, Network, Valid, Version};

use crate::stage::{Container, Named, Outcome, Stage, interfaces, network, run};

pub(crate) const TRIALS: &[Named] = &[
    ("privileged_plugins_every_version", every_version),
    ("privileged_plugins_wrong_requests_have_the_right_codes", wrong_requests),
    ("privileged_plugins_containers_reach_each_other", containers_reach_each_other),
    ("privileged_plugins_ptp_reaches_the_host", ptp_reaches_the_host),
    ("privileged_plugins_del_is_patient", del_is_patient),
    ("privileged_plugins_a_failed_add_leaves_nothing", failed_add_leaves_nothing),
    ("privileged_plugins_a_killed_add_is_undone_by_del", killed_add),
    ("privileged_plugins_a_device_outlasts_a_killed_add", killed_device),
    ("privileged_plugins_collection", collection),
    ("privileged_plugins_status_knows_when_addresses_are_out", status),
    ("privileged_plugins_check_sees_what_is_amiss", check_sees),
    ("privileged_plugins_tuning_is_undone", tuning_is_undone),
    ("privileged_plugins_many_at_once", many_at_once),
    ("privileged_plugins_the_host_s_device_comes_back", device_comes_back),
];

fn bridge(stage: &Stage) -> Value {
    json!({
        "type": "bridge", "bridge": "br0", "isDefaultGateway": true,
        "ipam": stage.ipam(&json!([[{ "subnet": "10.32.0.0/24" }], [{ "subnet": "fd32::/64" }]]))
    })
}

fn ptp(stage: &Stage) -> Value {
    json!({ "type": "ptp", "ipam": stage.ipam(&json!([[{ "subnet": "10.33.0.0/24" }], [{ "subnet": "fd33::/64" }]])) })
}

/// What a plugin reported.
fn reported(error: &Error) -> &Failure {
    match error {
        Error::Plugin { failure, .. } => failure,
        Error::Several { errors } => reported(&errors[0]),
        other => panic!("it is no plugin's: {other}"),
    }
}

/// Nothing is left of any attachment: but the bridge, which stays for the next one.
fn assert_nothing_left(stage: &Stage, containers: &[&Container]) -> Outcome {
    assert!(stage.leases("net").is_empty(), "{:?}", stage.leases("net"));
    // The kernel removes a cable's other end with the first.
    let host = interfaces(&stage.host)?;
    assert!(host.iter().all(|name| name == "br0"), "{host:?}");
    for container in containers {
        assert!(interfaces(&container.sandbox)?.is_empty());
    }
    Ok(())
}

fn every_version() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    for name in ["bridge", "host-local", "loopback", "macvlan", "ptp", "static", "tuning", "host-device"] {
        assert_eq!(runner.versions(name)?, Version::ALL, "{name}");
    }
    assert_eq!(runner.versions("bandwidth")?, Version::ALL[2..]);
    for version in Version::ALL {
        let container = stage.container(&format!("c{}", version.as_str()))?;
        let network = network(version.as_str(), &[bridge(&stage)])?;
        let success = stage.add(&runner, &network, &container)??;
        assert_eq!(success.ips.len(), 2, "{version}");
        let record = runner.cached("net", &container.attachment())?.ok_or("it is on record")?;
        assert_eq!(record.result["cniVersion"], version.as_str());
        let expected = match version {
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => json!("4"),
            _ => json!(null),
        };
        assert_eq!(record.result.pointer("/ips/0/version").cloned().unwrap_or_default(), expected, "{version}");
        assert_eq!(record.result.get("ip4").is_some(), version <= Version::V0_2_0, "{version}");
        if version >= Version::V0_4_0 {
            stage.on_host(|| runner.check(&network, &container.attachment()))??;
        }
        stage.on_host(|| runner.del(&network, &container.attachment()))??;
        assert_nothing_left(&stage, &[&container])?;
    }
    Ok(())
}

/// Starts a plugin with an environment and an input, and returns what it printed.
fn call(stage: &Stage, plugin: &str, environment: &[(&str, &str)], input: &str) -> Outcome<(bool, Value)> {
    let mut command = Command::new(stage.path("bin").join(plugin));
    command.env_clear().envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = stage.on_host(|| command.spawn())??;
    // It may have ended without reading.
    let _ = child.stdin.take().ok_or("no pipe")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Ok((output.status.success(), printed))
}

fn wrong_requests() -> Outcome {
    let stage = Stage::new()?;
    let container = stage.container("c1")?;
    let (netns, path) = (container.netns.display().to_string(), stage.path("bin").display().to_string());
    let full = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", path.as_str()),
    ];
    let good = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0" });
    let changed = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed.to_string()
    };
    let with = |name: &'static str, value: &'static str| {
        full.map(|(key, old)| if key == name { (key, value) } else { (key, old) })
    };
    for (environment, input, code, expected) in [
        (&full[..1], good.to_string(), 4, "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        (&full[..], "{".to_owned(), 6, "unmarshall"),
        (&full[..], "[]".to_owned(), 6, "unmarshall"),
        (&full[..], changed("name", json!(null)), 7, "name"),
        (&full[..], changed("name", json!("../net")), 7, "name"),
        (&full[..], changed("cniVersion", json!("9.0.0")), 1, "incompatible"),
        (&full[..], changed("mtu", json!("big")), 6, "\"big\""),
        (&full[..], changed("vlan", json!(5)), 2, "\"vlan\" with the value 5"),
        (&full[..], changed("bridge", json!("a/b")), 7, "bridge"),
        (&full[..], changed("ipam", json!({ "type": "no-such" })), 7, "no-such"),
        (&full[..], changed("ipam", json!({ "type": "../bridge" })), 7, "../bridge"),
        (&full[..], changed("ipam", json!({ "type": "host-local" })), 7, "no IP ranges"),
        (&full[..], changed("ipam", json!({ "type": "host-local", "subnet": "10.0.0.1/24" })), 7, "host bits"),
        (&full[..], changed("ipam", json!({ "type": "host-local", "subnet": "10.0.0.0/31" })), 7, "10.0.0.0/31"),
        (&full[..], changed("prevResult", json!({ "ips": 5 })), 6, "prevResult"),
    ] {
        let (ok, printed) = call(&stage, "bridge", environment, &input)?;
        assert!(!ok, "{input}");
        assert_eq!(printed["code"], code, "{input}: {printed}");
        assert!(printed["msg"].as_str().is_some_and(|msg| msg.contains(expected)), "{input}: {printed}");
    }
    for (environment, code) in [
        (with("CNI_COMMAND", "JUMP"), 4),
        (with("CNI_CONTAINERID", "../x"), 4),
        (with("CNI_IFNAME", "much-too-long-a-name"), 4),
        (with("CNI_NETNS", "/nowhere/net"), 3),
        (with("CNI_NETNS", "/etc/passwd"), 8),
        (with("CNI_NETNS", "/proc/self/ns/net"), 8),
        (with("CNI_COMMAND", "GC"), 1),
        (with("CNI_COMMAND", "STATUS"), 1),
    ] {
        let (ok, printed) = call(&stage, "bridge", &environment, &good.to_string())?;
        assert!(!ok);
        assert_eq!(printed["code"], code, "{environment:?}: {printed}");
    }
    for chained in ["tuning", "bandwidth"] {
        let (ok, printed) =
            call(&stage, chained, &full, &json!({ "cniVersion": "1.0.0", "name": "net", "mtu": 1400 }).to_string())?;
        assert!(!ok && printed["msg"].as_str().is_some_and(|msg| msg.contains("prevResult")), "{printed}");
        assert_eq!(printed["cniVersion"], "1.0.0");
    }
    // No collection without a list: an empty one would take everything away.
    let newest = json!({ "cniVersion": "1.1.0", "name": "net", "type": "bridge" }).to_string();
    let (ok, printed) = call(&stage, "bridge", &with("CNI_COMMAND", "GC"), &newest)?;
    assert!(!ok && printed["code"] == 7, "{printed}");
    assert_nothing_left(&stage, &[&container])?;
    // A person who starts it is told what it is.
    let output = Command::new(stage.path("bin/bridge")).env_remove("CNI_COMMAND").output()?;
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("1.1.0"));
    Ok(())
}

/// One word over TCP from one namespace to another.
fn reaches(from: &estiba_network::Sandbox, to: &estiba_network::Sandbox, address: &str) -> Outcome {
    let listener = to.run(|| TcpListener::bind((address, 0)))??;
    let port = listener.local_addr()?.port();
    let answer = thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.write_all(b"word")));
    let said = from.run(|| -> std::io::Result<String> {
        let target = std::net::SocketAddr::new(address.parse().map_err(std::io::Error::other)?, port);
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })??;
    assert_eq!(said, "word");
    answer.join().map_err(|_| "it panicked")??;
    Ok(())
}

fn containers_reach_each_other() -> Outcome {
    let stage = Stage::new()?;
    let network = network("1.1.0", &[bridge(&stage)])?;
    let (one, two) = (stage.container("c1")?, stage.container("c2")?);
    let first = stage.add(&stage.ours(), &network, &one)??;
    let second = stage.add(&stage.ours(), &network, &two)??;
    for ip in &second.ips {
        reaches(&one.sandbox, &two.sandbox, &ip.address.addr().to_string())?;
    }
    // The first address is the gateway's, and it is the host's.
    for gateway in ["10.32.0.1", "fd32::1"] {
        reaches(&one.sandbox, &stage.host, gateway)?;
    }
    reaches(&stage.host, &one.sandbox, &first.ips[0].address.addr().to_string())?;
    Ok(())
}

fn ptp_reaches_the_host() -> Outcome {
    let stage = Stage::new()?;
    let network = network("1.1.0", &[ptp(&stage)])?;
    let (one, two) = (stage.container("c1")?, stage.container("c2")?);
    stage.add(&stage.ours(), &network, &one)??;
    let second = stage.add(&stage.ours(), &network, &two)??;
    for ip in &second.ips {
        reaches(&stage.host, &two.sandbox, &ip.address.addr().to_string())?;
        // Through the host, from one cable to another.
        reaches(&one.sandbox, &two.sandbox, &ip.address.addr().to_string())?;
    }
    for container in [&one, &two] {
        stage.on_host(|| stage.ours().check(&network, &container.attachment()))??;
        stage.on_host(|| stage.ours().del(&network, &container.attachment()))??;
    }
    assert_nothing_left(&stage, &[&one, &two])
}

fn del_is_patient() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    let all = [
        vec![
            bridge(&stage),
            json!({ "type": "tuning", "mtu": 1400, "dataDir": stage.path("tuning") }),
            json!({ "type": "bandwidth", "egressRate": 8000, "egressBurst": 8000 }),
        ],
        vec![ptp(&stage)],
        vec![json!({ "type": "loopback" })],
        vec![
            json!({ "type": "macvlan", "master": "br0", "ipam": stage.ipam(&json!([[{ "subnet": "10.34.0.0/24" }]])) }),
        ],
        vec![json!({ "type": "host-device", "device": "gone0" })],
    ];
    for plugins in all {
        let network = network("1.1.0", &plugins)?;
        let never = stage.container("never")?;
        // What never was, in a namespace that is there, is none any more, or is not told.
        stage.on_host(|| runner.del(&network, &never.attachment()))??;
        for netns in [Some(Path::new("/nowhere/net").to_owned()), None] {
            let attachment = Attachment { netns, ..never.attachment() };
            stage.on_host(|| runner.del(&network, &attachment))??;
        }
    }
    // The namespace goes first, with everything in it.
    let network = network("1.1.0", &[bridge(&stage)])?;
    let container = stage.container("c1")?;
    stage.add(&runner, &network, &container)??;
    assert_eq!(stage.leases("net").len(), 2);
    let attachment = Attachment { netns: Some("/nowhere/net".into()), ..container.attachment() };
    drop(container);
    stage.on_host(|| runner.del(&network, &attachment))??;
    assert!(stage.leases("net").is_empty());
    Ok(())
}

fn failed_add_leaves_nothing() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    let container = stage.container("c1")?;
    let full = |plugin: &str| {
        let mut ipam =
            stage.ipam(&json!([[{ "subnet": "10.35.0.0/30", "rangeStart": "10.35.0.1", "rangeEnd": "10.35.0.1" }]]));
        ipam["routes"] = json!([]);
        json!({ "type": plugin, "bridge": "br0", "master": "up0", "ipam": ipam })
    };
    let unreachable = |plugin: &str| {
        let mut ipam = stage.ipam(&json!([[{ "subnet": "10.36.0.0/24" }]]));
        ipam["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "203.0.113.1" }]);
        json!({ "type": plugin, "bridge": "br0", "master": "up0", "ipam": ipam })
    };
    run(&stage.host, "ip link add up0 type veth peer name up1")?;
    for plugin in ["bridge", "ptp", "macvlan"] {
        for (config, code) in [(full(plugin), 11), (unreachable(plugin), 999)] {
            let network = network("1.0.0", &[config])?;
            let error = stage.add(&runner, &network, &container)?.expect_err("it cannot be made");
            assert_eq!(reported(&error).code, code, "{plugin}: {error}");
            assert!(interfaces(&container.sandbox)?.is_empty());
            assert!(stage.leases("net").is_empty());
            let host = interfaces(&stage.host)?;
            assert!(host.iter().all(|name| ["br0", "up0", "up1"].contains(&name.as_str())), "{host:?}");
        }
    }
    // An interface of that name is there: it is not touched, and DEL after it does not take it away from its maker.
    run(&container.sandbox, "ip link add eth0 type veth peer name other")?;
    let network = network("1.0.0", &[bridge(&stage)])?;
    let input = json!({ "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br0", "ipam": bridge(&stage)["ipam"] });
    let (netns, path) = (container.netns.display().to_string(), stage.path("bin").display().to_string());
    let environment = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", path.as_str()),
    ];
    let (ok, printed) = call(&stage, "bridge", &environment, &input.to_string())?;
    assert!(!ok && printed["msg"].as_str().is_some_and(|msg| msg.contains("eth0")), "{printed}");
    assert_eq!(interfaces(&container.sandbox)?.len(), 2);
    assert!(stage.leases("net").is_empty());
    // The bridge has another address.
    run(&stage.host, "ip address add 10.99.0.1/24 dev br0")?;
    let other = stage.container("c2")?;
    let error = stage.add(&runner, &network, &other)?.expect_err("the bridge is another's");
    assert!(error.to_string().contains("already has an IP address"), "{error}");
    assert!(interfaces(&other.sandbox)?.is_empty() && stage.leases("net").is_empty());
    Ok(())
}

fn killed_add() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    let plugin = bridge(&stage);
    let network = network("1.0.0", std::slice::from_ref(&plugin))?;
    let mut input = plugin.clone();
    input["name"] = json!("net");
    input["cniVersion"] = json!("1.0.0");
    let rounds = if std::env::var_os("ESTIBA_CAMPAIGN").is_some() { 1000_u32 } else { 40 };
    for round in 0..rounds {
        let container = stage.container(&format!("c{round}"))?;
        let path = stage.path("bin");
        let mut command = Command::new(path.join("bridge"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env("CNI_COMMAND", "ADD");
        command.env("CNI_CONTAINERID", &container.id).env("CNI_NETNS", &container.netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &path);
        let mut child = stage.on_host(|| command.spawn())??;
        child.stdin.take().ok_or("no pipe")?.write_all(input.to_string().as_bytes())?;
        thread::sleep(Duration::from_micros(u64::from(round) % 40 * 250));
        child.kill()?;
        child.wait()?;
        // Its delegate may still be at work: nobody undoes an ADD that goes on.
        thread::sleep(Duration::from_millis(30));
        stage.on_host(|| runner.del(&network, &container.attachment()))??;
        assert_nothing_left(&stage, &[&container])?;
    }
    // And the next one is as good as new.
    let container = stage.container("last")?;
    stage.add(&runner, &network, &container)??;
    stage.on_host(|| runner.check(&network, &container.attachment()))??;
    Ok(())
}

fn killed_device() -> Outcome {
    let stage = Stage::new()?;
    run(&stage.host, "ip link add up0 type veth peer name up1")?;
    let plugin = json!({ "type": "host-device", "device": "up0" });
    let network = network("1.0.0", std::slice::from_ref(&plugin))?;
    let mut input = plugin;
    input["name"] = json!("net");
    input["cniVersion"] = json!("1.0.0");
    for round in 0..if std::env::var_os("ESTIBA_CAMPAIGN").is_some() { 1000_u32 } else { 30 } {
        let container = stage.container(&format!("c{round}"))?;
        let path = stage.path("bin");
        let mut command = Command::new(path.join("host-device"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env("CNI_COMMAND", "ADD");
        command.env("CNI_CONTAINERID", &container.id).env("CNI_NETNS", &container.netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &path);
        let mut child = stage.on_host(|| command.spawn())??;
        child.stdin.take().ok_or("no pipe")?.write_all(input.to_string().as_bytes())?;
        thread::sleep(Duration::from_micros(u64::from(round) % 30 * 200));
        child.kill()?;
        child.wait()?;
        stage.on_host(|| stage.ours().del(&network, &container.attachment()))??;
        let mut host = interfaces(&stage.host)?;
        host.sort();
        assert_eq!(host, ["up0", "up1"], "round {round}");
        assert!(interfaces(&container.sandbox)?.is_empty());
    }
    Ok(())
}

fn collection() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    let plugins = [bridge(&stage), json!({ "type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 8_000_000 })];
    let network = network("1.1.0", &plugins)?;
    let containers = ["c1", "c2", "c3"].map(|id| stage.container(id));
    for container in &containers {
        let container = container.as_ref().map_err(|_| "no container")?;
        stage.add(&runner, &network, container)??;
    }
    assert_eq!(stage.leases("net").len(), 6);
    // One is known to the runner and unwanted, one is known to nobody but the plugins.
    fs::remove_file(stage.path("cache/results/net-c2-eth0"))?;
    let valid = [Valid { container_id: "c3".to_owned(), interface: "eth0".to_owned() }];
    stage.on_host(|| runner.gc(&network, &valid))??;
    assert_eq!(stage.leases("net").len(), 2);
    let ifbs = |host: Vec<String>| host.into_iter().filter(|name| name.starts_with("bwp")).count();
    assert_eq!(ifbs(interfaces(&stage.host)?), 1);
    let third = containers[2].as_ref().map_err(|_| "no container")?;
    stage.on_host(|| runner.check(&network, &third.attachment()))??;
    Ok(())
}

fn status() -> Outcome {
    let stage = Stage::new()?;
    let runner = stage.ours();
    // A gateway and two containers.
    let ipam = json!({ "type": "host-local", "dataDir": stage.path("leases"), "subnet": "10.37.0.0/29", "rangeEnd": "10.37.0.3" });
    let network = network("1.1.0", &[json!({ "type": "bridge", "bridge": "br0", "ipam": ipam })])?;
    let containers = [stage.container("c1")?, stage.container("c2")?, stage.container("c3")?];
    for container in &containers[..2] {
        stage.on_host(|| runner.status(&network))??;
        stage.add(&runner, &network, container)??;
    }
    let error = stage.on_host(|| runner.status(&network))?.expect_err("there is none left");
    assert_eq!(reported(&error).code, 50, "{error}");
    let error = stage.add(&runner, &network, &containers[2])?.expect_err("there is none left");
    assert_eq!(reported(&error).code, 11, "{error}");
    assert!(error.to_string().contains("10.37.0.1-10.37.0.3"), "{error}");
    stage.on_host(|| runner.del(&network, &containers[0].attachment()))??;
    stage.on_host(|| runner.status(&network))??;
    Ok(())
}

fn check_sees() -> Outcome {
    let spoil: [(&str, &str, bool); 7] = [
        ("the address", "ip address del 10.32.0.2/24 dev eth0", true),
        ("the other address", "ip address del fd32::2/64 dev eth0", true),
        ("the route", "ip route del default", true),
        ("the interface", "ip link del eth0", true),
        ("the hardware address", "ip link set eth0 address 02:00:00:00:00:99", true),
        ("the bridge", "ip link del br0", false),
        ("the limit", "tc qdisc del dev VETH root", false),
    ];
    for (what, command, inside) in spoil {
        let stage = Stage::new()?;
        let runner = stage.ours();
        let bandwidth = json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000 });
        let network = network("1.0.0", &[bridge(&stage), bandwidth])?;
        let container = stage.container("c1")?;
        let success = stage.add(&runner, &network, &container)??;
        stage.on_host(|| runner.check(&network, &container.attachment()))??;
        let command = command.replace("VETH", &success.interfaces[1].name);
        run(if inside { &container.sandbox } else { &stage.host }, &command)?;
        let checked = stage.on_host(|| runner.check(&network, &container.attachment()))?;
        assert!(checked.is_err(), "{what} is missed by nobody");
        stage.on_host(|| runner.del(&network, &container.attachment()))??;
        assert_nothing_left(&stage, &[&container])?;
    }
    // A lease that is gone.
    let stage = Stage::new()?;
    let network = network("1.0.0", &[bridge(&stage)])?;
    let container = stage.container("c1")?;
    stage.add(&stage.ours(), &network, &container)??;
    for lease in stage.leases("net") {
        fs::remove_file(stage.path("leases/net").join(lease))?;
    }
    let checked = stage.on_host(|| stage.ours().check(&network, &container.attachment()))?;
    assert!(checked.expect_err("it is missed").to_string().contains("host-local"));
    Ok(())
}

fn tuning_is_undone() -> Outcome {
    let stage = Stage::new()?;
    run(&stage.host, "ip link add up0 address 02:00:00:00:00:01 mtu 1500 type veth peer name up1")?;
    let device = json!({ "type": "host-device", "device": "up0" });
    let tuning = json!({
        "type": "tuning", "capabilities": { "mac": true }, "mtu": 1300, "promisc": true, "allmulti": true, "txQLen": 77,
        "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" }, "dataDir": stage.path("tuning")
    });
    let network = network("1.1.0", &[device, tuning])?;
    let container = stage.container("c1")?;
    let mut attachment = container.attachment();
    attachment.capabilities.insert("mac".to_owned(), json!("02:00:00:00:00:77"));
    let runner = stage.ours();
    let success = stage.on_host(|| runner.add(&network, &attachment))??;
    assert_eq!(success.interfaces[0].mac, "02:00:00:00:00:77");
    let shown = run(&container.sandbox, "ip -d link show eth0")?;
    for part in ["02:00:00:00:00:77", "mtu 1300", "promiscuity 1", "allmulti 1", "qlen 77"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(run(&container.sandbox, "cat /proc/sys/net/ipv4/conf/eth0/arp_filter")?.trim(), "1");
    stage.on_host(|| runner.check(&network, &attachment))??;
    stage.on_host(|| runner.del(&network, &attachment))??;
    let shown = run(&stage.host, "ip -d link show up0")?;
    for part in ["02:00:00:00:00:01", "mtu 1500", "promiscuity 0", "allmulti 0"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(fs::read_dir(stage.path("tuning"))?.next().is_none());
    // Settings of others than the network are nobody's to change.
    let evil = json!({ "type": "tuning", "sysctl": { "kernel.panic": "1" } });
    let network = crate::stage::network("1.1.0", &[json!({ "type": "loopback" }), evil])?;
    let error = stage.add(&runner, &network, &container)?.expect_err("it is refused");
    assert_eq!(reported(&error).code, 7, "{error}");
    Ok(())
}

fn many_at_once() -> Outcome {
    let stage = Stage::new()?;
    let network = network("1.1.0", &[bridge(&stage)])?;
    let containers: Vec<_> = (0..24).map(|n| stage.container(&format!("c{n}"))).collect::<Outcome<_>>()?;
    let attach = |container: &Container, network: &Network| -> Result<Vec<String>, String> {
        let added = stage.add(&stage.ours(), network, container).map_err(|_| "no thread".to_owned())?;
        let success = added.map_err(|error| error.to_string())?;
        Ok(success.ips.iter().map(|ip| ip.address.to_string()).collect())
    };
    let (attach, network) = (&attach, &network);
    let added: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            containers.iter().map(|container| scope.spawn(move || attach(container, network))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut all = BTreeSet::new();
    for addresses in added {
        for address in addresses? {
            assert!(all.insert(address.clone()), "{address} was given twice");
        }
    }
    assert_eq!(all.len(), 48);
    for container in &containers {
        stage.on_host(|| stage.ours().del(network, &container.attachment()))??;
    }
    assert_nothing_left(&stage, &containers.iter().collect::<Vec<_>>())
}

fn device_comes_back() -> Outcome {
    let stage = Stage::new()?;
    run(&stage.host, "ip link add up0 address 02:00:00:00:00:01 type veth peer name up1")?;
    run(&stage.host, "ip link set up0 up")?;
    let runner = stage.ours();
    let container = stage.container("c1")?;
    let by = |config: Value| network("1.1.0", &[config]);
    for config in [
        json!({ "type": "host-device", "device": "up0" }),
        json!({ "type": "host-device", "hwaddr": "02:00:00:00:00:01" }),
    ] {
        let network = by(config)?;
        stage.add(&runner, &network, &container)??;
        assert_eq!(interfaces(&container.sandbox)?, ["eth0"]);
        assert_eq!(interfaces(&stage.host)?, ["up1"]);
        stage.on_host(|| runner.del(&network, &container.attachment()))??;
        assert!(interfaces(&container.sandbox)?.is_empty());
        let mut host = interfaces(&stage.host)?;
        host.sort();
        assert_eq!(host, ["up0", "up1"]);
    }
    // While the host has another one of its name, it stays where it is, up.
    let network = by(json!({ "type": "host-device", "device": "up0" }))?;
    run(&stage.host, "ip link set up0 up")?;
    stage.add(&runner, &network, &container)??;
    run(&stage.host, "ip link add up0 type veth peer name other")?;
    let error = stage.on_host(|| runner.del(&network, &container.attachment()))?.expect_err("its name is taken");
    assert!(error.to_string().contains("up0"), "{error}");
    assert!(run(&container.sandbox, "ip link show eth0")?.contains(",UP"));
    run(&stage.host, "ip link del up0")?;
    stage.on_host(|| runner.del(&network, &container.attachment()))??;
    // Where it cannot stay, it goes back as it was: here its addresses cannot be had.
    run(&stage.host, "ip link set up0 up")?;
    let ipam = json!({ "type": "static", "addresses": [{ "address": "10.1.0.5/24" }], "routes": [{ "dst": "192.0.2.0/24", "gw": "203.0.113.1" }] });
    let error =
        stage.add(&runner, &by(json!({ "type": "host-device", "device": "up0", "ipam": ipam }))?, &container)?;
    assert!(error.is_err());
    assert!(interfaces(&container.sandbox)?.is_empty());
    assert!(run(&stage.host, "ip link show up0")?.contains("UP"));
    for wrong in [
        json!({}),
        json!({ "device": "none0" }),
        json!({ "hwaddr": "xx" }),
        json!({ "kernelpath": "/sys/devices/../../etc" }),
        json!({ "pciBusID": "../x" }),
    ] {
        let mut config = wrong.clone();
        config["type"] = json!("host-device");
        let error = stage.add(&runner, &by(config)?, &container)?.expect_err("there is none");
        assert_eq!(reported(&error).code, 7, "{wrong}: {error}");
    }
    Ok(())
}
