//! Our plugins beside the reference plugins: the same configuration, and what comes of it compared field by field.

use estiba_network::cni::serde_json::{Value, json};
use estiba_network::cni::{Runner, Success};

use crate::stage::{Container, Named, Outcome, Stage, network, plain, run, seen};

pub(crate) const TRIALS: &[Named] = &[
    ("privileged_reference_loopback", || same(&["0.3.1", "0.4.0", "1.0.0"], |_| vec![json!({ "type": "loopback" })])),
    ("privileged_reference_bridge", || same(&["0.3.0", "0.3.1", "0.4.0", "1.0.0"], |stage| vec![bridge(stage)])),
    ("privileged_reference_bridge_without_addresses", || {
        same(&["1.0.0"], |_| vec![json!({ "type": "bridge", "bridge": "br0" })])
    }),
    ("privileged_reference_ptp", || {
        same(&["0.3.1", "0.4.0", "1.0.0"], |stage| vec![json!({ "type": "ptp", "mtu": 1400, "ipam": pools(stage) })])
    }),
    ("privileged_reference_macvlan", || {
        same(&["0.4.0", "1.0.0"], |stage| {
            vec![json!({ "type": "macvlan", "master": "up0", "mtu": 1400, "ipam": pools(stage) })]
        })
    }),
    ("privileged_reference_host_device", || {
        same(&["1.0.0"], |stage| vec![json!({ "type": "host-device", "device": "up0", "ipam": pools(stage) })])
    }),
    ("privileged_reference_tuning", || same(&["0.4.0", "1.0.0"], |stage| vec![bridge(stage), tuning(stage)])),
    ("privileged_reference_bandwidth", || same(&["0.4.0", "1.0.0"], |stage| vec![bridge(stage), bandwidth()])),
];

fn pools(stage: &Stage) -> Value {
    stage.ipam(&json!([[{ "subnet": "10.31.0.0/24" }], [{ "subnet": "fd31::/64", "rangeStart": "fd31::10" }]]))
}

fn bridge(stage: &Stage) -> Value {
    let mut ipam = pools(stage);
    ipam["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.31.0.7" }]);
    json!({
        "type": "bridge", "bridge": "br0", "isDefaultGateway": true, "mtu": 1400, "hairpinMode": true,
        "dns": { "nameservers": ["10.31.0.1"], "search": ["example"] }, "ipam": ipam, "unknown": { "field": [1] }
    })
}

fn tuning(stage: &Stage) -> Value {
    json!({
        "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.log_martians": "1", "net.core.somaxconn": "500" },
        "mac": "02:11:22:33:44:55", "mtu": 1300, "promisc": true, "dataDir": stage.path("tuning")
    })
}

fn bandwidth() -> Value {
    json!({
        "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 16_000_000,
        "egressBurst": 8_000_000
    })
}

/// What is to be compared of an attachment: its result, and what the namespaces look like.
fn observed(stage: &Stage, success: &Success, container: &Container) -> Outcome<Value> {
    Ok(json!({
        "result": plain(success, container),
        "container": seen(&container.sandbox, "address show")?,
        "routes": seen(&container.sandbox, "route show table all")?,
        "routes6": seen(&container.sandbox, "-6 route show")?,
        "host": seen(&stage.host, "address show")?,
        "host routes": seen(&stage.host, "route show")?,
        "queues": queues(stage)?,
        "forwarding": run(&stage.host, "cat /proc/sys/net/ipv4/ip_forward")?,
    }))
}

fn queues(stage: &Stage) -> Outcome<Value> {
    let mut value: Value = estiba_network::cni::serde_json::from_str(&run(&stage.host, "tc -j qdisc show")?)?;
    for queue in value.as_array_mut().into_iter().flatten() {
        if let Some(queue) = queue.as_object_mut() {
            queue.remove("dev");
        }
    }
    if let Some(list) = value.as_array_mut() {
        list.sort_by_key(Value::to_string);
    }
    Ok(value)
}

fn stage() -> Outcome<Stage> {
    let stage = Stage::new()?;
    // An interface of the host to be moved, or lain on.
    run(&stage.host, "ip link add up0 address 02:00:00:00:00:01 type veth peer name up1 address 02:00:00:00:00:02")?;
    run(&stage.host, "ip link set up0 up")?;
    run(&stage.host, "ip link set up1 up")?;
    Ok(stage)
}

/// Attaches a container by our plugins and by the reference's, and has each look at and remove what the other has made.
fn same(versions: &[&str], plugins: fn(&Stage) -> Vec<Value>) -> Outcome {
    for version in versions {
        let (ours, theirs) = (stage()?, stage()?);
        let attach = |stage: &Stage, runner: &Runner| -> Outcome<(Success, Container)> {
            let container = stage.container("c1")?;
            let success = stage.add(runner, &network(version, &plugins(stage))?, &container)??;
            Ok((success, container))
        };
        let (my_success, mine) = attach(&ours, &ours.ours())?;
        let (success, reference) = attach(&theirs, &theirs.theirs())?;
        alike(version, || Ok((observed(&ours, &my_success, &mine)?, observed(&theirs, &success, &reference)?)))?;
        let swapped = [(&ours, ours.theirs(), &mine), (&theirs, theirs.ours(), &reference)];
        for (stage, other, container) in swapped {
            let plugins = plugins(stage);
            // The reference's bridge cannot look at one without addresses.
            let can_check =
                !version.starts_with("0.3") && (plugins[0]["type"] != "bridge" || plugins[0].get("ipam").is_some());
            let network = network(version, &plugins)?;
            let attachment = container.attachment();
            if can_check {
                stage.on_host(|| other.check(&network, &attachment))??;
            }
            stage.on_host(|| other.del(&network, &attachment))??;
            assert!(stage.leases("net").is_empty(), "{version}: {:?}", stage.leases("net"));
            // The reference's host-device does not find its interface a second time.
            if plugins[0]["type"] != "host-device" {
                stage.on_host(|| other.del(&network, &attachment))??;
            }
        }
        let left = |stage: &Stage, container: &Container| -> Outcome<Value> {
            let (host, inside) = (seen(&stage.host, "address show")?, seen(&container.sandbox, "address show")?);
            Ok(json!([host, inside]))
        };
        alike(version, || Ok((left(&ours, &mine)?, left(&theirs, &reference)?)))?;
    }
    Ok(())
}

/// Compares until both are alike: the kernel sets some of it up after it has said yes. In the end it tells all differences by where they are.
fn alike(version: &str, look: impl Fn() -> Outcome<(Value, Value)>) -> Outcome {
    fn differences(at: &str, mine: &Value, reference: &Value, found: &mut Vec<String>) {
        match (mine, reference) {
            (Value::Object(a), Value::Object(b)) => {
                for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                    let null = Value::Null;
                    let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                    differences(&format!("{at}.{key}"), a, b, found);
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (n, (a, b)) in a.iter().zip(b).enumerate() {
                    differences(&format!("{at}[{n}]"), a, b, found);
                }
            }
            (a, b) if a == b => {}
            (a, b) => found.push(format!("{at}: {a}, the reference's {b}")),
        }
    }
    let mut found = Vec::new();
    for _ in 0..30 {
        let (mine, reference) = look()?;
        found.clear();
        differences(version, &mine, &reference, &mut found);
        if found.is_empty() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(found.join("\n").into())
}
