//! netavark's protocol, asked as Podman asks.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use estiba_network::cni::serde_json::{self, Value, json};

use crate::ports::{ask, serve, stage_with_outside};
use crate::stage::{Container, Named, Outcome, Stage, interfaces, run};

pub(crate) const TRIALS: &[Named] = &[
    ("privileged_netavark_a_container_comes_and_goes", comes_and_goes),
    ("privileged_netavark_a_second_network_later", second_network),
    ("privileged_netavark_what_cannot_be_is_told", cannot_be),
];

/// What it prints, and whether it was successful.
fn call(stage: &Stage, arguments: &[&str], input: &Value) -> Outcome<(bool, Value)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estiba-cni"));
    command.args(["netavark", "--config"]).arg(folder(stage)).args(["--rootless=false", "--aardvark-binary=/none"]);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = stage.on_host(|| command.spawn())??;
    let _ = child.stdin.take().ok_or("no pipe")?.write_all(input.to_string().as_bytes());
    let output = child.wait_with_output()?;
    Ok((output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)))
}

fn folder(stage: &Stage) -> PathBuf {
    stage.path("networks")
}

fn info(name: &str, number: u8) -> Value {
    json!({
        "name": name, "id": format!("{number:064}"), "driver": "bridge", "network_interface": format!("podman{number}"),
        "subnets": [
            { "subnet": format!("10.{number}.0.0/24"), "gateway": format!("10.{number}.0.1") },
            { "subnet": format!("fd{number}::/64"), "gateway": format!("fd{number}::1") }
        ],
        "ipv6_enabled": true, "internal": false, "dns_enabled": false, "ipam_options": { "driver": "host-local" },
        "created": "2026-01-01T00:00:00Z"
    })
}

fn options(container: &Container, name: &str, number: u8, interface: &str) -> Value {
    json!({
        "container_id": container.id, "container_name": "someone", "container_hostname": "someone",
        "networks": [{
            "name": name, "interface_name": interface, "aliases": ["friend"],
            "static_ips": [format!("10.{number}.0.5"), format!("fd{number}::5")], "static_mac": "02:aa:bb:cc:dd:05"
        }],
        "network_info": { name: info(name, number) },
        "port_mappings": [
            { "container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp,udp", "range": 2 },
            { "container_port": 80, "host_ip": "127.0.0.1", "host_port": 8090, "protocol": "tcp", "range": 1 }
        ]
    })
}

fn comes_and_goes() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let container = stage.container("c0ffee")?;
    let netns = container.netns.display().to_string();
    let options = options(&container, "net", 61, "eth0");
    // Podman holds the ports of a container that it is about to start.
    let _held = stage.on_host(|| std::net::TcpListener::bind("0.0.0.0:8080"))??;
    let (ok, status) = call(&stage, &["setup", &netns], &options)?;
    assert!(ok, "{status}");
    assert_eq!(
        status,
        json!({ "net": {
            "dns_search_domains": [], "dns_server_ips": [],
            "interfaces": { "eth0": {
                "mac_address": "02:aa:bb:cc:dd:05",
                "subnets": [
                    { "ipnet": "10.61.0.5/24", "gateway": "10.61.0.1" }, { "ipnet": "fd61::5/64", "gateway": "fd61::1" }
                ]
            } }
        } })
    );
    serve(&container)?;
    for target in ["198.51.100.1:8080", "[fd51::1]:8080"] {
        assert!(ask(&outside, target)?.is_some(), "{target}");
    }
    assert!(ask(&stage.host, "127.0.0.1:8090")?.is_some());
    assert_eq!(ask(&outside, "198.51.100.1:8090")?, None);
    for _ in 0..2 {
        let (ok, printed) = call(&stage, &["teardown", &netns], &options)?;
        assert!(ok && printed == Value::Null, "{printed}");
    }
    assert!(interfaces(&container.sandbox)?.is_empty());
    assert_eq!(interfaces(&stage.host)?, ["up0"], "the bridge went with its last container");
    assert_eq!(ask(&outside, "198.51.100.1:8080")?, None);
    // A namespace that is gone is no obstacle, and neither is an older Podman's map of networks.
    // The first one's server keeps its namespace.
    let container = stage.container("c0ffee")?;
    let netns = container.netns.display().to_string();
    let mut older = options;
    let entry = older["networks"][0].clone();
    older["networks"] = json!({ "net": entry });
    assert!(call(&stage, &["setup", &netns], &older)?.0);
    drop(container);
    let (ok, printed) = call(&stage, &["teardown", "/nowhere/net"], &older)?;
    assert!(ok, "{printed}");
    // The kernel clears a namespace up in its own time.
    for _ in 0..50 {
        if interfaces(&stage.host)? == ["up0"] {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(format!("{:?} are left", interfaces(&stage.host)?).into())
}

fn second_network() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let container = stage.container("c0ffee")?;
    let netns = container.netns.display().to_string();
    let (one, two) = (options(&container, "one", 62, "eth0"), options(&container, "two", 63, "eth1"));
    assert!(call(&stage, &["setup", &netns], &one)?.0);
    let (ok, printed) = call(&stage, &["setup", &netns], &two)?;
    assert!(ok, "{printed}");
    serve(&container)?;
    assert!(run(&container.sandbox, "ip route show default")?.contains("10.62.0.1"));
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some());
    assert!(call(&stage, &["teardown", &netns], &two)?.0);
    assert_eq!(interfaces(&container.sandbox)?, ["eth0"]);
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some(), "the first network's ports are as they were");
    assert!(call(&stage, &["teardown", &netns], &one)?.0);
    assert_eq!(interfaces(&stage.host)?, ["up0"]);
    Ok(())
}

fn cannot_be() -> Outcome {
    let stage = Stage::new()?;
    let container = stage.container("c0ffee")?;
    let netns = container.netns.display().to_string();
    let good = options(&container, "net", 64, "eth0");
    let with = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        if let Some(place) = changed.pointer_mut(pointer) {
            *place = value;
        }
        changed
    };
    for (input, expected) in [
        (json!(5), "network options"),
        (with("/network_info", json!({})), "network info for network net not found"),
        (with("/network_info/net/driver", json!("carrier-pigeon")), "carrier-pigeon"),
        (with("/network_info/net/ipam_options", json!({})), ""),
        (with("/networks/0/static_ips", json!(["192.0.2.1"])), "192.0.2.1"),
        (with("/networks/0/static_mac", json!("xx")), "xx"),
        (with("/networks/0/interface_name", json!("a/b")), "interface"),
        (with("/port_mappings/0/protocol", json!("icmp")), "icmp"),
        (with("/port_mappings/0/host_ip", json!("here")), "here"),
    ] {
        let (ok, printed) = call(&stage, &["setup", &netns], &input)?;
        if expected.is_empty() {
            assert!(ok, "{printed}");
            assert!(call(&stage, &["teardown", &netns], &input)?.0);
            continue;
        }
        assert!(!ok);
        assert!(printed["error"].as_str().is_some_and(|error| error.contains(expected)), "{expected}: {printed}");
        assert!(interfaces(&container.sandbox)?.is_empty() && interfaces(&stage.host)?.is_empty());
    }
    let (ok, printed) = call(&stage, &["setup", "/nowhere/net"], &good)?;
    assert!(!ok && printed["error"].as_str().is_some_and(|error| error.contains("/nowhere/net")), "{printed}");
    let (ok, version) = call(&stage, &["version"], &json!(null))?;
    assert!(ok && version["version"].is_string());
    assert!(call(&stage, &["update", "net", "--network-dns-servers", "192.0.2.1"], &json!(null))?.0);
    let (ok, printed) = call(&stage, &["dance"], &json!(null))?;
    assert!(!ok && printed["error"].as_str().is_some_and(|error| error.contains("usage")), "{printed}");
    Ok(())
}
