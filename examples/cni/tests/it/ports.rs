//! Ports, masquerading and walls: between containers, their host, and an outside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use estiba_network::Sandbox;
use estiba_network::cni::serde_json::{Value, json};
use estiba_network::cni::{Attachment, Network, Success, Valid};

use crate::stage::{Container, Named, Outcome, Stage, interfaces, network, run};

pub(crate) const TRIALS: &[Named] = &[
    ("privileged_ports_lead_in_from_everywhere", ports_lead_in),
    ("privileged_ports_are_one_container_s", ports_are_one_container_s),
    ("privileged_ports_masquerade_hides_the_container", masquerade_hides),
    ("privileged_ports_walls_keep_others_out", walls_keep_out),
    ("privileged_ports_collection", collection),
    ("privileged_ports_a_killed_plugin_leaves_nothing_after_del", killed),
];

/// A stage with an outside: a namespace on a cable to the host.
pub(crate) fn stage_with_outside() -> Outcome<(Stage, Sandbox)> {
    let stage = Stage::new()?;
    let outside = Sandbox::new()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&outside));
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    run(&stage.host, &format!("ip link add up0 type veth peer name out0 netns {path}"))?;
    for (sandbox, device, four, six) in
        [(&stage.host, "up0", "198.51.100.1/24", "fd51::1/64"), (&outside, "out0", "198.51.100.9/24", "fd51::9/64")]
    {
        run(sandbox, &format!("ip address add {four} dev {device}"))?;
        run(sandbox, &format!("ip address add {six} dev {device} nodad"))?;
        run(sandbox, &format!("ip link set {device} up"))?;
    }
    outside.netlink()?.set_loopback_up()?;
    Ok((stage, outside))
}

fn bridge(stage: &Stage, name: &str, number: u8, masquerade: bool) -> Value {
    let ranges = json!([[{ "subnet": format!("10.{number}.0.0/24") }], [{ "subnet": format!("fd{number}::/64") }]]);
    // A port of one's own leads back through the same port of the bridge.
    json!({ "type": "bridge", "bridge": name, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": masquerade, "ipam": stage.ipam(&ranges) })
}

fn named(name: &str, plugins: &[Value]) -> Outcome<Network> {
    Ok(Network { name: name.to_owned(), ..network("1.1.0", plugins)? })
}

/// A container that answers on port 80 with the address that it is asked from, as long as it lives.
fn answering(stage: &Stage, network: &Network, id: &str, mappings: &Value) -> Outcome<(Container, Success)> {
    let container = stage.container(id)?;
    let attachment = with_ports(&container, mappings);
    let success = stage.on_host(|| stage.ours().add(network, &attachment))??;
    serve(&container)?;
    Ok((container, success))
}

/// Answers on port 80 of a container with the address that it is asked from.
pub(crate) fn serve(container: &Container) -> Outcome {
    let listener = container.sandbox.run(|| TcpListener::bind("[::]:80"))??;
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_canonical().to_string().as_bytes());
        }
    });
    Ok(())
}

fn with_ports(container: &Container, mappings: &Value) -> Attachment {
    let mut attachment = container.attachment();
    attachment.capabilities.insert("portMappings".to_owned(), mappings.clone());
    attachment
}

/// What a server says, asked from a namespace; nothing if it is not reached.
pub(crate) fn ask(from: &Sandbox, target: &str) -> Outcome<Option<String>> {
    let target: SocketAddr = target.parse()?;
    Ok(from.run(|| {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(1500)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut said = String::new();
        stream.read_to_string(&mut said).ok()?;
        Some(said)
    })?)
}

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}

fn ports_lead_in() -> Outcome {
    for masquerade in [true, false] {
        let (stage, outside) = stage_with_outside()?;
        let network = network("1.1.0", &[bridge(&stage, "br0", 41, masquerade), portmap()])?;
        let mappings = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 8081, "containerPort": 80, "hostIP": "198.51.100.1" },
            { "hostPort": 8082, "containerPort": 80, "hostIP": "127.0.0.1" }
        ]);
        let (container, success) = answering(&stage, &network, "c1", &mappings)?;
        let own = success.ips[0].address.addr().to_string();
        let (out, host, inside) =
            (("outside", &outside), ("the host", &stage.host), ("the container", &container.sandbox));
        for ((name, from), target, reached) in [
            (out, "198.51.100.1:8080", true),
            (out, "[fd51::1]:8080", true),
            (out, "198.51.100.1:8081", true),
            (out, "198.51.100.1:8082", false),
            (out, "[fd51::1]:8081", false),
            (host, "198.51.100.1:8080", true),
            (host, "127.0.0.1:8080", true),
            (host, "127.0.0.1:8082", true),
            (host, "[fd51::1]:8080", true),
            (inside, "198.51.100.1:8080", true),
            (inside, "10.41.0.1:8080", true),
        ] {
            let said = ask(from, target)?;
            assert_eq!(said.is_some(), reached, "masquerade {masquerade}: from {name} to {target}: {said:?}");
        }
        // From outside the container sees who asks.
        assert_eq!(ask(&outside, "198.51.100.1:8080")?.as_deref(), Some("198.51.100.9"));
        let attachment = with_ports(&container, &mappings);
        stage.on_host(|| stage.ours().check(&network, &attachment))??;
        // What routes to it is let in: the plugin is no firewall.
        run(&outside, "ip route add 10.41.0.0/24 via 198.51.100.1")?;
        assert!(ask(&outside, &format!("{own}:80"))?.is_some());
        stage.on_host(|| stage.ours().del(&network, &attachment))??;
        assert_eq!(ask(&outside, "198.51.100.1:8080")?, None);
        assert_eq!(ask(&stage.host, "127.0.0.1:8080")?, None);
        stage.on_host(|| stage.ours().del(&network, &attachment))??;
        assert!(stage.records().is_empty(), "{:?}", stage.records());
    }
    Ok(())
}

fn ports_are_one_container_s() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let network = network("1.1.0", &[bridge(&stage, "br0", 42, true), portmap()])?;
    let mappings = json!([{ "hostPort": 8080, "containerPort": 80 }]);
    let (first, _) = answering(&stage, &network, "c1", &mappings)?;
    let second = stage.container("c2")?;
    let error =
        stage.on_host(|| stage.ours().add(&network, &with_ports(&second, &mappings)))?.expect_err("it is taken");
    assert!(error.to_string().contains("8080"), "{error}");
    assert!(interfaces(&second.sandbox)?.is_empty());
    assert_eq!(stage.leases("net").len(), 2);
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some(), "the first one keeps it");
    // What is amiss is seen.
    let attachment = with_ports(&first, &mappings);
    let other = with_ports(&first, &json!([{ "hostPort": 8099, "containerPort": 80 }]));
    assert!(stage.on_host(|| stage.ours().check(&network, &other))?.is_err());
    for wrong in [
        json!([{ "hostPort": 0, "containerPort": 80 }]),
        json!([{ "hostPort": 80, "containerPort": 70000 }]),
        json!([{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }]),
        json!([{ "hostPort": 80, "containerPort": 80, "hostIP": "here" }]),
    ] {
        let added = stage.on_host(|| stage.ours().add(&network, &with_ports(&second, &wrong)))?;
        assert!(added.is_err(), "{wrong}");
    }
    // Without the result of ADD, as before version 0.4.0, and without the namespace.
    std::fs::remove_file(stage.path("cache/results/net-c1-eth0"))?;
    let gone = Attachment { netns: None, ..attachment };
    stage.on_host(|| stage.ours().del(&network, &gone))??;
    assert_eq!(ask(&outside, "198.51.100.1:8080")?, None);
    let (_third, _) = answering(&stage, &network, "c3", &mappings)?;
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some());
    Ok(())
}

fn masquerade_hides() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let listener = outside.run(|| TcpListener::bind("[::]:7"))??;
    thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_canonical().to_string().as_bytes());
        }
    });
    let masked = named("masked", &[bridge(&stage, "br0", 43, true)])?;
    let plain = named("plain", &[bridge(&stage, "br1", 44, false)])?;
    let (one, two, other) = (stage.container("c1")?, stage.container("c2")?, stage.container("c3")?);
    for (network, container) in [(&masked, &one), (&masked, &two), (&plain, &other)] {
        stage.add(&stage.ours(), network, container)??;
    }
    assert_eq!(ask(&one.sandbox, "198.51.100.9:7")?.as_deref(), Some("198.51.100.1"));
    assert_eq!(ask(&one.sandbox, "[fd51::9]:7")?.as_deref(), Some("fd51::1"));
    // Without, nobody knows the way back, until it is told.
    assert_eq!(ask(&other.sandbox, "198.51.100.9:7")?, None);
    run(&outside, "ip route add 10.44.0.0/24 via 198.51.100.1")?;
    assert_eq!(ask(&other.sandbox, "198.51.100.9:7")?.as_deref(), Some("10.44.0.2"));
    // It stays for as long as one of the bridge's containers is there.
    stage.on_host(|| stage.ours().del(&masked, &one.attachment()))??;
    assert_eq!(ask(&two.sandbox, "198.51.100.9:7")?.as_deref(), Some("198.51.100.1"));
    stage.on_host(|| stage.ours().del(&masked, &two.attachment()))??;
    assert!(stage.records().is_empty(), "{:?}", stage.records());
    // A cable of its own is masked as well.
    let ranges = json!([[{ "subnet": "10.45.0.0/24" }]]);
    let mut ipam = stage.ipam(&ranges);
    ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
    let cable = named("cable", &[json!({ "type": "ptp", "ipMasq": true, "ipam": ipam })])?;
    let last = stage.container("c4")?;
    stage.add(&stage.ours(), &cable, &last)??;
    assert_eq!(ask(&last.sandbox, "198.51.100.9:7")?.as_deref(), Some("198.51.100.1"));
    stage.on_host(|| stage.ours().del(&cable, &last.attachment()))??;
    assert!(stage.records().is_empty(), "{:?}", stage.records());
    Ok(())
}

fn walls_keep_out() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let policy = |policy: &str| json!({ "type": "firewall", "ingressPolicy": policy });
    let open = named("open", &[bridge(&stage, "br0", 46, true), policy("open"), portmap()])?;
    let same = named("same", &[bridge(&stage, "br1", 47, true), policy("same-bridge"), portmap()])?;
    let alone = named("alone", &[bridge(&stage, "br2", 48, true), policy("isolated"), portmap()])?;
    let ports = |port: u16| json!([{ "hostPort": port, "containerPort": 80 }]);
    let (a, a_got) = answering(&stage, &open, "a", &ports(8001))?;
    let (b, b_got) = answering(&stage, &same, "b", &ports(8002))?;
    let (b2, _) = answering(&stage, &same, "b2", &json!([]))?;
    let (c, c_got) = answering(&stage, &alone, "c", &ports(8003))?;
    let (c2, _) = answering(&stage, &alone, "c2", &json!([]))?;
    let at = |success: &Success| format!("{}:80", success.ips[0].address.addr());
    for (what, from, target, reached) in [
        ("open, from another bridge", &b.sandbox, at(&a_got), true),
        ("same-bridge, from the same", &b2.sandbox, at(&b_got), true),
        ("same-bridge, from another", &a.sandbox, at(&b_got), false),
        ("same-bridge, from the host", &stage.host, at(&b_got), true),
        ("same-bridge, by its port", &outside, "198.51.100.1:8002".to_owned(), true),
        ("isolated, from the same", &c2.sandbox, at(&c_got), false),
        ("isolated, from another", &a.sandbox, at(&c_got), false),
        ("isolated, by its port", &outside, "198.51.100.1:8003".to_owned(), true),
    ] {
        assert_eq!(ask(from, &target)?.is_some(), reached, "{what}");
    }
    for (network, container, port) in [(&open, &a, 8001), (&same, &b, 8002), (&alone, &c, 8003)] {
        let attachment = with_ports(container, &ports(port));
        stage.on_host(|| stage.ours().check(network, &attachment))??;
        stage.on_host(|| stage.ours().del(network, &attachment))??;
    }
    for (network, container) in [(&same, &b2), (&alone, &c2)] {
        stage.on_host(|| stage.ours().del(network, &container.attachment()))??;
    }
    assert!(stage.records().is_empty(), "{:?}", stage.records());
    for wrong in [json!({ "ingressPolicy": "never" }), json!({ "backend": "firewalld" })] {
        let mut wrong = wrong;
        wrong["type"] = json!("firewall");
        let network = named("wrong", &[bridge(&stage, "br0", 46, false), wrong])?;
        assert!(stage.add(&stage.ours(), &network, &stage.container("d")?)?.is_err());
    }
    Ok(())
}

fn collection() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let network = network(
        "1.1.0",
        &[bridge(&stage, "br0", 49, true), portmap(), json!({ "type": "firewall", "ingressPolicy": "same-bridge" })],
    )?;
    let (_one, _) = answering(&stage, &network, "c1", &json!([{ "hostPort": 8001, "containerPort": 80 }]))?;
    let (_two, _) = answering(&stage, &network, "c2", &json!([{ "hostPort": 8002, "containerPort": 80 }]))?;
    // Nobody remembers them but the plugins.
    std::fs::remove_dir_all(stage.path("cache"))?;
    let valid = [Valid { container_id: "c2".to_owned(), interface: "eth0".to_owned() }];
    stage.on_host(|| stage.ours().gc(&network, &valid))??;
    assert_eq!(ask(&outside, "198.51.100.1:8001")?, None);
    assert!(ask(&outside, "198.51.100.1:8002")?.is_some());
    assert_eq!(stage.leases("net").len(), 2);
    stage.on_host(|| stage.ours().gc(&network, &[]))??;
    assert_eq!(ask(&outside, "198.51.100.1:8002")?, None);
    assert!(stage.records().is_empty(), "{:?}", stage.records());
    Ok(())
}

fn killed() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let plain = named("net", &[bridge(&stage, "br0", 50, true)])?;
    let (container, success) = answering(&stage, &plain, "c1", &json!([]))?;
    let input = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap",
        "prevResult": success.to_json(estiba_network::cni::Version::V1_1_0)?,
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] }
    });
    // Ends it after that time, if it has not ended before.
    let portmap = |verb: &str, limit: Option<Duration>| -> Outcome {
        let path = stage.path("bin");
        let mut command = std::process::Command::new(path.join("portmap"));
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).env("CNI_COMMAND", verb);
        command.env("CNI_CONTAINERID", "c1").env("CNI_NETNS", &container.netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", &path);
        let mut child = stage.on_host(|| command.spawn())??;
        child.stdin.take().ok_or("no pipe")?.write_all(input.to_string().as_bytes())?;
        if let Some(limit) = limit {
            thread::sleep(limit);
            child.kill()?;
        }
        let status = child.wait()?;
        assert!(limit.is_some() || status.success(), "{verb}");
        Ok(())
    };
    // The bridge's own records stay.
    let own = stage.records().len();
    let rounds = if std::env::var_os("ESTIBA_CAMPAIGN").is_some() { 1000_u32 } else { 30 };
    for round in 0..rounds {
        let limit = Some(Duration::from_micros(u64::from(round) % 30 * 150));
        portmap("ADD", limit)?;
        portmap("DEL", None)?;
        portmap("ADD", None)?;
        portmap("DEL", limit)?;
        portmap("DEL", None)?;
        assert_eq!(stage.records().len(), own, "round {round}: {:?}", stage.records());
    }
    assert_eq!(ask(&outside, "198.51.100.1:8080")?, None);
    portmap("ADD", None)?;
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some());
    Ok(())
}
