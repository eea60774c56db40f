//! The driver `bridge`, without a packet filter.

use std::net::IpAddr;

use estiba_network::{Attachment, Driver, Error, Network, Sandbox, testsuite};
use libtest_mimic::Failed;

use crate::world::{World, address, attachment, ip, tcp, udp};

type Body = fn() -> Result<(), Failed>;

pub(crate) const TRIALS: &[(&str, Body)] = &[
    ("privileged_bridge_conforms", conforms),
    ("privileged_bridge_connects_containers_and_host", connects),
    ("privileged_bridge_without_switch_keeps_containers_apart", without_switch),
    ("privileged_bridge_comes_with_the_first_and_goes_with_the_last", comes_and_goes),
    ("privileged_bridge_gives_what_is_asked_for", what_is_asked_for),
    ("privileged_bridge_connects_a_running_sandbox_to_several_networks", several_networks),
    ("privileged_bridge_chooses_a_free_subnet", free_subnet),
    ("privileged_bridge_that_is_somebody_elses_is_let_alone", somebody_elses),
    ("privileged_bridge_detaches_what_never_was", never_was),
];

fn conforms() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24", "fd77::/64"], |_| ());
    testsuite::run(&world.driver, &network, &Sandbox::new()?);
    world.assert_clean();
    Ok(())
}

fn connects() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24", "fd77::/64"], |_| ());
    let (a, end_a) = world.attach(&network, "a", &[]);
    let (b, end_b) = world.attach(&network, "b", &[]);
    // IPv6 at once: nothing waits for duplicate address detection.
    assert_eq!(tcp(&a, "[fd77::3]:80", &b, "[::]:80")?, address(&end_a, "::"));
    assert_eq!(tcp(&a, "10.77.0.3:80", &b, "0.0.0.0:80")?, address(&end_a, "0.0.0.0"));
    assert_eq!(udp(&b, "10.77.0.2:80", &a, "0.0.0.0:80")?, address(&end_b, "0.0.0.0"));
    assert_eq!(tcp(&a, "10.77.0.1:80", &world.host, "0.0.0.0:80")?, address(&end_a, "0.0.0.0"));
    assert_eq!(tcp(&world.host, "10.77.0.2:80", &a, "0.0.0.0:80")?, "10.77.0.1".parse::<IpAddr>()?);
    assert_eq!(tcp(&world.host, "[fd77::2]:80", &a, "[::]:80")?, "fd77::1".parse::<IpAddr>()?);
    // And itself.
    assert_eq!(tcp(&a, "127.0.0.1:80", &a, "127.0.0.1:80")?, "127.0.0.1".parse::<IpAddr>()?);
    Ok(())
}

fn without_switch() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24"], |network| network.switch = false);
    let (a, _) = world.attach(&network, "a", &[]);
    let (b, _) = world.attach(&network, "b", &[]);
    assert!(tcp(&a, "10.77.0.3:80", &b, "0.0.0.0:80").is_err());
    tcp(&a, "10.77.0.1:80", &world.host, "0.0.0.0:80")?;
    Ok(())
}

fn comes_and_goes() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24"], |_| ());
    let bridge = network.interface.clone().expect("a name");
    assert!(!world.interfaces().contains(&bridge), "a network alone has no bridge");
    let (a, _) = world.attach(&network, "a", &[]);
    let (b, _) = world.attach(&network, "b", &[]);
    assert!(matches!(world.driver.delete(&network), Err(Error::InUse { containers: 2, .. })));
    assert_eq!(world.leases("n"), ["10.77.0.2", "10.77.0.3"]);
    drop(a);
    world.detach(&network, "a");
    assert!(world.interfaces().contains(&bridge));
    assert_eq!(world.leases("n"), ["10.77.0.3"]);
    // With the namespace alive, the interface is taken out of it.
    world.driver.detach(&network, Some(&b), &attachment("b", &[]))?;
    assert!(b.netlink()?.link("eth0")?.is_none());
    assert!(world.leases("n").is_empty());
    world.assert_clean();
    world.driver.delete(&network)?;
    world.driver.delete(&network)?;
    assert!(!world.root.path().join("leases/n").exists());
    Ok(())
}

fn what_is_asked_for() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24", "fd77::/64"], |network| network.mtu = Some(1400));
    let sandbox = Sandbox::new()?;
    let asked = Attachment {
        interface: "net7".to_owned(),
        addresses: vec!["10.77.0.77".parse()?, "fd77::77".parse()?],
        mac: Some("02:00:00:00:00:07".parse()?),
        ..attachment("a", &[])
    };
    let endpoint = world.driver.attach(&network, &sandbox, &asked)?;
    let link = sandbox.netlink()?.link("net7")?.expect("the interface");
    assert_eq!((link.mtu, link.address.as_slice()), (1400, &[2, 0, 0, 0, 0, 7][..]));
    assert_eq!(
        endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.77.0.77/24", "fd77::77/64"]
    );
    let text = ip(&sandbox, "-o addr show dev net7");
    assert!(text.contains("10.77.0.77/24 brd 10.77.0.255") && text.contains("fd77::77/64"), "{text}");
    assert!(
        !text.contains("tentative") || !text.lines().any(|l| l.contains("fd77") && l.contains("tentative")),
        "{text}"
    );
    assert!(ip(&sandbox, "route show default").contains("via 10.77.0.1 dev net7"));
    assert!(ip(&sandbox, "-6 route show default").contains("via fd77::1 dev net7"));
    let other = Sandbox::new()?;
    let taken = world.driver.attach(&network, &other, &Attachment { container: "b".to_owned(), ..asked });
    assert!(matches!(taken, Err(Error::AddressTaken { ref container, .. }) if container == "a"), "{taken:?}");
    assert_eq!(world.leases("n").len(), 2);
    assert_eq!(other.netlink()?.interfaces()?.len(), sandbox_is_empty());
    Ok(())
}

/// How many interfaces a new namespace has.
fn sandbox_is_empty() -> usize {
    Sandbox::new().expect("a sandbox").netlink().expect("a socket").interfaces().expect("a list").len()
}

fn several_networks() -> Result<(), Failed> {
    let world = World::without_firewall();
    let one = world.network("one", &["10.77.0.0/24"], |_| ());
    let two = world.network("two", &["10.78.0.0/24"], |network| network.internal = true);
    let (a, _) = world.attach(&one, "a", &[]);
    let (b, _) = world.attach(&two, "b", &[]);
    assert!(ip(&b, "route show default").is_empty(), "an internal network is no way out");
    let second = Attachment { interface: "eth1".to_owned(), default_route: false, ..attachment("a", &[]) };
    world.driver.attach(&two, &a, &second)?;
    assert!(ip(&a, "route show default").contains("10.77.0.1"));
    assert_eq!(tcp(&a, "10.78.0.2:80", &b, "0.0.0.0:80")?, "10.78.0.3".parse::<IpAddr>()?);
    world.driver.detach(&two, Some(&a), &second)?;
    assert!(a.netlink()?.link("eth1")?.is_none());
    tcp(&a, "10.77.0.1:80", &world.host, "0.0.0.0:80")?;
    Ok(())
}

fn free_subnet() -> Result<(), Failed> {
    let world = World::without_firewall();
    ip(&world.host, "addr add 10.89.0.1/24 dev uplink");
    let first = world.driver.create(Network { driver: "bridge".to_owned(), ..Network::named("a") }, &[])?;
    let second = world.driver.create(Network::named("b"), std::slice::from_ref(&first))?;
    assert_eq!(first.subnets[0].subnet.to_string(), "10.90.0.0/24");
    assert_eq!(second.subnets[0].subnet.to_string(), "10.91.0.0/24");
    let overlap = Network { subnets: first.subnets.clone(), ..Network::named("c") };
    assert!(matches!(world.driver.create(overlap, &[first]), Err(Error::Overlap { .. })));
    Ok(())
}

fn somebody_elses() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24"], |network| network.interface = Some("mine".to_owned()));
    for kind in ["bridge", "veth"] {
        ip(&world.host, &format!("link add mine type {kind}"));
        let sandbox = Sandbox::new()?;
        let refused = world.driver.attach(&network, &sandbox, &attachment("a", &[]));
        assert!(matches!(refused, Err(Error::NotOurs { .. })), "{refused:?}");
        assert!(world.interfaces().contains(&"mine".to_owned()));
        assert!(world.leases("n").is_empty());
        ip(&world.host, "link del mine");
    }
    world.assert_clean();
    Ok(())
}

fn never_was() -> Result<(), Failed> {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24"], |_| ());
    world.driver.detach(&network, None, &attachment("nobody", &[]))?;
    let hostile = Attachment { container: "../../etc".to_owned(), ..Attachment::default() };
    assert!(matches!(world.driver.detach(&network, None, &hostile), Err(Error::Attachment { .. })));
    world.assert_clean();
    Ok(())
}
