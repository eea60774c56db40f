//! The drivers `macvlan` and `ipvlan`.

use estiba_network::{Driver, Error, Kind, Macvlan, Network, Sandbox, Subnet, testsuite};
use libtest_mimic::Failed;

use crate::world::{World, attachment, ip, tcp};

type Body = fn() -> Result<(), Failed>;

pub(crate) const TRIALS: &[(&str, Body)] = &[
    ("privileged_macvlan_is_in_the_hosts_network", || lies_on_the_uplink(Kind::Macvlan)),
    ("privileged_macvlan_needs_its_interface", needs_its_interface),
];

/// Where the kernel has ipvlan.
pub(crate) const IPVLAN: (&str, Body) =
    ("privileged_ipvlan_is_in_the_hosts_network", || lies_on_the_uplink(Kind::Ipvlan));

/// Why ipvlan cannot be tried here.
pub(crate) fn without_ipvlan() -> Option<String> {
    let host = Sandbox::new().ok()?;
    let made = host.run(|| {
        let add = |words: &str| std::process::Command::new("ip").args(words.split(' ')).output();
        add("link add parent type veth peer name other").and_then(|_| add("link add probe link parent type ipvlan"))
    });
    match made {
        Ok(Ok(output)) if output.status.success() => None,
        Ok(Ok(output)) => Some(format!("no ipvlan: {}", String::from_utf8_lossy(&output.stderr).trim())),
        _ => Some("ip is missing: install iproute2".to_owned()),
    }
}

fn driver(world: &World, kind: Kind) -> Macvlan {
    let host = Some(world.host.try_clone().expect("held"));
    Macvlan { kind, host, state: world.root.path().join("state"), leases: world.root.path().join("leases") }
}

fn network() -> Network {
    let mut subnet = Subnet::new("192.0.2.0/24".parse().expect("a subnet"));
    subnet.first = Some("192.0.2.100".parse().expect("an address"));
    let six = Subnet::new("2001:db8::/64".parse().expect("a subnet"));
    Network { interface: Some("uplink".to_owned()), subnets: vec![subnet, six], ..Network::named("lan") }
}

fn lies_on_the_uplink(kind: Kind) -> Result<(), Failed> {
    let world = World::without_firewall();
    let driver = driver(&world, kind);
    let network = driver.create(network(), &[])?;
    testsuite::run(&driver, &network, &Sandbox::new()?);
    let (a, b) = (Sandbox::new()?, Sandbox::new()?);
    let (with_port, plain) = (attachment("a", &["8080:80"]), attachment("a", &[]));
    assert!(matches!(driver.attach(&network, &a, &with_port), Err(Error::Publish { .. })));
    let endpoint = driver.attach(&network, &a, &plain)?;
    driver.attach(&network, &b, &attachment("b", &[]))?;
    let own = endpoint.addresses[0].addr();
    assert_eq!(tcp(&a, "192.0.2.2:80", &world.outside, "0.0.0.0:80")?, own);
    tcp(&b, &format!("{own}:80"), &a, "0.0.0.0:80")?;
    tcp(&world.outside, &format!("{own}:80"), &a, "0.0.0.0:80")?;
    assert!(matches!(driver.delete(&network), Err(Error::InUse { containers: 2, .. })));
    driver.detach(&network, Some(&a), &plain)?;
    assert!(a.netlink()?.link("eth0")?.is_none());
    drop(b);
    driver.detach(&network, None, &attachment("b", &[]))?;
    assert!(world.leases("lan").is_empty());
    // A program that was killed: the record of a container that is no more.
    driver.attach(&network, &Sandbox::new()?, &attachment("c", &[]))?;
    driver.repair(&network, &|_| false)?;
    assert!(world.leases("lan").is_empty());
    driver.delete(&network)?;
    world.assert_clean();
    Ok(())
}

fn needs_its_interface() -> Result<(), Failed> {
    let world = World::without_firewall();
    let driver = driver(&world, Kind::Macvlan);
    let without = Network { interface: None, ..network() };
    assert!(matches!(driver.create(without, &[]), Err(Error::Definition { .. })));
    let mode = Network { options: [("mode".to_owned(), "odd".to_owned())].into(), ..network() };
    assert!(matches!(driver.create(mode, &[]), Err(Error::Definition { .. })));
    let nowhere = driver.create(Network { interface: Some("nowhere".to_owned()), ..network() }, &[])?;
    let refused = driver.attach(&nowhere, &Sandbox::new()?, &attachment("a", &[]));
    assert!(matches!(refused, Err(Error::NoInterface { ref name }) if name == "nowhere"), "{refused:?}");
    assert!(world.leases("lan").is_empty());
    // An interface of that name which came from elsewhere is let alone.
    let network = driver.create(network(), &[])?;
    let sandbox = Sandbox::new()?;
    ip(&sandbox, "link add eth0 type bridge");
    assert!(driver.attach(&network, &sandbox, &attachment("a", &[])).is_err());
    assert!(sandbox.netlink()?.link("eth0")?.is_some());
    Ok(())
}
