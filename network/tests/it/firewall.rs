//! Published ports, walls and addresses, by nf_tables.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use estiba_network::firewall::{NoFirewall, Published};
use estiba_network::{Driver, Error, Firewall, Network, Nftables, Protocol, Sandbox};
use libtest_mimic::Failed;

use crate::world::{SHORT, World, attachment, ip, tcp, udp};

type Body = fn() -> Result<(), Failed>;

pub(crate) const TRIALS: &[(&str, Body)] = &[
    ("privileged_port_from_outside_host_and_loopback", from_everywhere),
    ("privileged_port_from_the_containers_own_network", hairpin),
    ("privileged_port_of_udp", of_udp),
    ("privileged_port_of_sctp", of_sctp),
    ("privileged_port_of_one_address", of_one_address),
    ("privileged_port_range_and_free_port", range_and_free_port),
    ("privileged_port_that_is_taken_changes_nothing", taken),
    ("privileged_port_is_held_by_a_socket", held),
    ("privileged_udp_goes_where_its_port_leads_now", udp_is_forgotten),
    ("privileged_way_out_has_the_hosts_address", way_out),
    ("privileged_walls_between_networks", walls),
    ("privileged_walls_around_an_internal_network", internal),
    ("privileged_walls_keep_the_outside_out", outside_is_kept_out),
    ("privileged_loopback_is_the_hosts_alone", loopback_is_the_hosts),
    ("privileged_filter_goes_with_the_last_network", goes_with_the_last),
    ("privileged_filter_is_reconciled_after_a_flush", reconciled),
    ("privileged_filter_heals_with_the_next_container", heals),
    ("privileged_filter_takes_back_only_what_is_its_own", only_its_own),
    ("privileged_thousand_ports", thousand_ports),
];

const SUBNETS: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];

fn world() -> World {
    World::new(Arc::new(Nftables::default()))
}

fn plain(world: &World) -> Network {
    world.network("n", &SUBNETS, |_| ())
}

fn parse(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The table as `nft` shows it; none if there is none, or no such program.
fn table(host: &Sandbox) -> Option<String> {
    let mut command = Command::new("nft");
    command.args(["list", "table", "inet", "estiba"]);
    let output = host.run(move || command.output()).expect("entered").ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the table is there, by a question that needs no program.
fn filter_stands(world: &World, network: &Network) -> bool {
    let bridge = network.interface.clone().expect("a name");
    let realm = estiba_network::firewall::Realm::of(network, &bridge);
    Nftables::default().stands(Some(&world.host), &realm).expect("an answer")
}

fn flush(world: &World) {
    // What `nft flush ruleset` sends: delete all tables.
    let deleted = world.host.run(|| Command::new("nft").args(["flush", "ruleset"]).status()).expect("entered");
    match deleted {
        Ok(status) => assert!(status.success()),
        Err(_) => crate::world::flush_ruleset(&world.host),
    }
}

fn from_everywhere() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["8080:80"]);
    // The container sees who it is from outside, and the bridge for the host's own loopback.
    assert_eq!(tcp(&world.outside, "192.0.2.1:8080", &a, "0.0.0.0:80")?, parse("192.0.2.2"));
    assert_eq!(tcp(&world.outside, "[2001:db8::1]:8080", &a, "[::]:80")?, parse("2001:db8::2"));
    assert_eq!(tcp(&world.host, "127.0.0.1:8080", &a, "0.0.0.0:80")?, parse("10.77.0.1"));
    tcp(&world.host, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
    tcp(&world.host, "[2001:db8::1]:8080", &a, "[::]:80")?;
    tcp(&world.host, "10.77.0.1:8080", &a, "0.0.0.0:80")?;
    if let Some(table) = table(&world.host) {
        assert!(table.contains("tcp . 8080 : 10.77.0.2 . 80"), "{table}");
        assert!(table.contains("ip saddr . oifname @own ct status dnat masquerade"), "{table}");
    }
    drop(a);
    world.detach(&network, "a");
    assert!(tcp(&world.outside, "192.0.2.1:8080", &world.host, "127.0.0.1:1").is_err());
    world.assert_clean();
    Ok(())
}

fn hairpin() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["8080:80"]);
    let (b, _) = world.attach(&network, "b", &[]);
    for client in [&a, &b] {
        tcp(client, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
        tcp(client, "10.77.0.1:8080", &a, "0.0.0.0:80")?;
        tcp(client, "[2001:db8::1]:8080", &a, "[::]:80")?;
        udp_is_not_published(client, &a);
    }
    Ok(())
}

fn udp_is_not_published(client: &Sandbox, server: &Sandbox) {
    assert!(udp(client, "192.0.2.1:8080", server, "0.0.0.0:80").is_err());
}

fn of_udp() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["5353:53/udp"]);
    assert_eq!(udp(&world.outside, "192.0.2.1:5353", &a, "0.0.0.0:53")?, parse("192.0.2.2"));
    udp(&world.outside, "[2001:db8::1]:5353", &a, "[::]:53")?;
    udp(&world.host, "127.0.0.1:5353", &a, "0.0.0.0:53")?;
    Ok(())
}

/// This kernel may have no SCTP sockets: a first packet (INIT) is made by hand, and looked for where it should come to.
fn of_sctp() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["9999:99/sctp"]);
    let seen = crate::world::sctp_init(&world.outside, "192.0.2.1", 9999, &a)?;
    assert_eq!(seen, 99);
    Ok(())
}

fn of_one_address() -> Result<(), Failed> {
    let world = world();
    ip(&world.host, "addr add 192.0.2.9/24 dev uplink");
    let network = plain(&world);
    let ports = ["127.0.0.1:8081:81", "192.0.2.9:8082:82", "[2001:db8::1]:8083:83", "192.0.2.9:8080:80"];
    let (a, _) = world.attach(&network, "a", &ports);
    let (b, _) = world.attach(&network, "b", &["192.0.2.1:8080:80"]);
    tcp(&world.host, "127.0.0.1:8081", &a, "0.0.0.0:81")?;
    assert!(tcp(&world.outside, "192.0.2.1:8081", &a, "0.0.0.0:81").is_err());
    tcp(&world.outside, "192.0.2.9:8082", &a, "0.0.0.0:82")?;
    assert!(tcp(&world.outside, "192.0.2.1:8082", &a, "0.0.0.0:82").is_err());
    tcp(&world.outside, "[2001:db8::1]:8083", &a, "[::]:83")?;
    tcp(&world.outside, "192.0.2.9:8080", &a, "0.0.0.0:80")?;
    tcp(&world.outside, "192.0.2.1:8080", &b, "0.0.0.0:80")?;
    let elsewhere = world.driver.attach(&network, &Sandbox::new()?, &attachment("c", &["198.51.100.1:80:80"]));
    assert!(matches!(elsewhere, Err(Error::NotLocal { .. })), "{elsewhere:?}");
    Ok(())
}

fn range_and_free_port() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, endpoint) = world.attach(&network, "a", &["8000-8009:80-89", "77"]);
    tcp(&world.outside, "192.0.2.1:8000", &a, "0.0.0.0:80")?;
    tcp(&world.outside, "192.0.2.1:8009", &a, "0.0.0.0:89")?;
    let free = endpoint.ports[1].host_port;
    assert!(free > 1024, "{free}");
    tcp(&world.outside, &format!("192.0.2.1:{free}"), &a, "0.0.0.0:77")?;
    Ok(())
}

fn taken() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let listener = world.host.run(|| TcpListener::bind("192.0.2.1:8080"))??;
    let sandbox = Sandbox::new()?;
    let refused = world.driver.attach(&network, &sandbox, &attachment("a", &["8079:79", "8080:80"]));
    assert!(matches!(refused, Err(Error::PortTaken { port: 8080, protocol: Protocol::Tcp, .. })), "{refused:?}");
    assert!(sandbox.netlink()?.link("eth0")?.is_none());
    world.assert_clean();
    assert!(world.leases("n").is_empty());
    drop(listener);
    // By another container.
    let (_a, _) = world.attach(&network, "a", &["8080:80"]);
    let refused = world.driver.attach(&network, &sandbox, &attachment("b", &["8079:79", "8080:81"]));
    assert!(matches!(refused, Err(Error::PortTaken { port: 8080, .. })), "{refused:?}");
    assert_eq!(world.leases("n").len(), 2);
    world.driver.attach(&network, &sandbox, &attachment("b", &["8079:79", "8080:81/udp"]))?;
    // Twice in one request.
    let refused = world.driver.attach(&network, &Sandbox::new()?, &attachment("c", &["1-9:1-9", "5:80"]));
    assert!(matches!(refused, Err(Error::PortTaken { port: 5, .. })), "{refused:?}");
    Ok(())
}

fn held() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, endpoint) = world.attach(&network, "a", &["8080:80", "8080:80/udp"]);
    let held = estiba_network::ports::hold(Some(&world.host), &endpoint)?;
    assert!(world.host.run(|| TcpListener::bind("0.0.0.0:8080"))?.is_err());
    assert!(world.host.run(|| UdpSocket::bind("0.0.0.0:8080"))?.is_err());
    tcp(&world.outside, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
    tcp(&world.host, "127.0.0.1:8080", &a, "0.0.0.0:80")?;
    drop(held);
    world.host.run(|| TcpListener::bind("0.0.0.0:8080"))??;
    Ok(())
}

/// A sender that never stops is led to the new container, and not to the one before.
fn udp_is_forgotten() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let sender = world.outside.run(|| UdpSocket::bind("192.0.2.2:7777"))??;
    sender.connect("192.0.2.1:5353")?;
    // First there is nobody: the kernel remembers a connection to the host itself.
    let _ = sender.send(b"nobody");
    for container in ["a", "b"] {
        let (sandbox, _) = world.attach(&network, container, &["5353:53/udp"]);
        let socket = sandbox.run(|| UdpSocket::bind("0.0.0.0:53"))??;
        socket.set_read_timeout(Some(SHORT))?;
        let _ = sender.send(b"dropped, if an error is still on its way");
        sender.send(b"hello")?;
        let mut buffer = [0; 64];
        socket.recv(&mut buffer)?;
        world.driver.detach(&network, Some(&sandbox), &attachment(container, &[]))?;
        // The next container gets another address, so the old one would not answer.
    }
    Ok(())
}

fn way_out() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &[]);
    assert_eq!(tcp(&a, "192.0.2.2:80", &world.outside, "0.0.0.0:80")?, parse("192.0.2.1"));
    assert_eq!(tcp(&a, "[2001:db8::2]:80", &world.outside, "[::]:80")?, parse("2001:db8::1"));
    udp(&a, "192.0.2.2:80", &world.outside, "0.0.0.0:80")?;
    let routed = world.network("r", &["10.88.0.0/24"], |network| network.masquerade = false);
    let (b, _) = world.attach(&routed, "b", &[]);
    ip(&world.outside, "route add 10.88.0.0/24 via 192.0.2.1");
    assert_eq!(tcp(&b, "192.0.2.2:80", &world.outside, "0.0.0.0:80")?, parse("10.88.0.2"));
    Ok(())
}

fn walls() -> Result<(), Failed> {
    let world = world();
    let one = plain(&world);
    let two = world.network("two", &["10.78.0.0/24", "fd78::/64"], |_| ());
    let open = |network: &mut Network| network.isolate = false;
    let three = world.network("three", &["10.79.0.0/24"], open);
    let four = world.network("four", &["10.80.0.0/24"], open);
    let (a, _) = world.attach(&one, "a", &["8080:80"]);
    let (b, _) = world.attach(&two, "b", &[]);
    let (c, _) = world.attach(&three, "c", &[]);
    let (d, _) = world.attach(&four, "d", &[]);
    assert!(tcp(&a, "10.78.0.2:80", &b, "0.0.0.0:80").is_err());
    assert!(tcp(&b, "10.77.0.2:80", &a, "0.0.0.0:80").is_err());
    assert!(tcp(&b, "[fd77::2]:80", &a, "[::]:80").is_err());
    assert!(tcp(&c, "10.77.0.2:80", &a, "0.0.0.0:80").is_err());
    assert!(tcp(&a, "10.79.0.2:80", &c, "0.0.0.0:80").is_err());
    assert_eq!(tcp(&c, "10.80.0.2:80", &d, "0.0.0.0:80")?, parse("10.79.0.2"));
    // A published port is for everybody.
    tcp(&b, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
    Ok(())
}

fn internal() -> Result<(), Failed> {
    let world = world();
    let network = world.network("i", &["10.77.0.0/24"], |network| network.internal = true);
    let other = world.network("o", &["10.78.0.0/24"], |_| ());
    let (a, _) = world.attach(&network, "a", &[]);
    let (b, _) = world.attach(&network, "b", &[]);
    let (c, _) = world.attach(&other, "c", &["8080:80"]);
    tcp(&a, "10.77.0.3:80", &b, "0.0.0.0:80")?;
    tcp(&a, "10.77.0.1:80", &world.host, "0.0.0.0:80")?;
    // Even with a route of its own making.
    ip(&a, "route add default via 10.77.0.1");
    assert!(tcp(&a, "192.0.2.2:80", &world.outside, "0.0.0.0:80").is_err());
    assert!(tcp(&a, "10.77.0.1:8080", &c, "0.0.0.0:80").is_err());
    assert!(tcp(&c, "10.77.0.2:80", &a, "0.0.0.0:80").is_err());
    let refused = world.driver.attach(&network, &Sandbox::new()?, &attachment("d", &["80:80"]));
    assert!(matches!(refused, Err(Error::Publish { .. })), "{refused:?}");
    Ok(())
}

fn outside_is_kept_out() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["127.0.0.1:8080:80", "8081:81"]);
    ip(&world.outside, "route add 10.77.0.0/24 via 192.0.2.1");
    ip(&world.outside, "-6 route add fd77::/64 via 2001:db8::1");
    // Neither unpublished ports nor published ones past their address.
    assert!(tcp(&world.outside, "10.77.0.2:80", &a, "0.0.0.0:80").is_err());
    assert!(tcp(&world.outside, "10.77.0.2:81", &a, "0.0.0.0:81").is_err());
    assert!(tcp(&world.outside, "[fd77::2]:81", &a, "[::]:81").is_err());
    tcp(&world.outside, "192.0.2.1:8081", &a, "0.0.0.0:81")?;
    Ok(())
}

/// CVE-2020-8558: what the host's programs listen to at 127.0.0.1 is for nobody else.
fn loopback_is_the_hosts() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["8080:80"]);
    let setting = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", network.interface.as_deref().expect("a name"));
    assert_eq!(world.host.run(|| std::fs::read_to_string(&setting))??.trim(), "1");
    ip(&a, "addr del 127.0.0.1/8 dev lo");
    ip(&a, "route add 127.0.0.0/8 via 10.77.0.1");
    assert!(tcp(&a, "127.0.0.1:81", &world.host, "127.0.0.1:81").is_err());
    Ok(())
}

fn goes_with_the_last() -> Result<(), Failed> {
    let world = world();
    let one = plain(&world);
    let two = world.network("two", &["10.78.0.0/24"], |_| ());
    let (a, _) = world.attach(&one, "a", &["8080:80"]);
    let (b, _) = world.attach(&two, "b", &["8081:80"]);
    drop(a);
    world.detach(&one, "a");
    assert!(!filter_stands(&world, &one) && filter_stands(&world, &two));
    tcp(&world.outside, "192.0.2.1:8081", &b, "0.0.0.0:80")?;
    if let Some(table) = table(&world.host) {
        assert!(!table.contains("10.77."), "{table}");
    }
    drop(b);
    world.detach(&two, "b");
    assert!(!filter_stands(&world, &two));
    assert_eq!(table(&world.host), None);
    world.assert_clean();
    Ok(())
}

fn reconciled() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["8080:80"]);
    flush(&world);
    assert!(!filter_stands(&world, &network));
    assert!(tcp(&world.outside, "192.0.2.1:8080", &a, "0.0.0.0:80").is_err());
    world.driver.reconcile(std::slice::from_ref(&network))?;
    tcp(&world.outside, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
    // A second time changes nothing.
    let before = table(&world.host);
    world.driver.reconcile(std::slice::from_ref(&network))?;
    assert_eq!(table(&world.host), before);
    flush(&world);
    drop(a);
    world.detach(&network, "a");
    world.assert_clean();
    Ok(())
}

fn heals() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["8080:80"]);
    flush(&world);
    let (b, _) = world.attach(&network, "b", &["8081:80"]);
    tcp(&world.outside, "192.0.2.1:8080", &a, "0.0.0.0:80")?;
    tcp(&world.outside, "192.0.2.1:8081", &b, "0.0.0.0:80")?;
    Ok(())
}

fn only_its_own() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (_a, _) = world.attach(&network, "a", &["8080:80"]);
    let port = |container: &str| Published {
        protocol: Protocol::Tcp,
        host: parse("0.0.0.0"),
        host_port: 8080,
        container: parse(container),
        container_port: 80,
    };
    let host = Some(&world.host);
    assert!(matches!(
        Nftables::default().publish(host, &[port("10.77.0.9")]),
        Err(Error::PortTaken { port: 8080, .. })
    ));
    Nftables::default().unpublish(host, &[port("10.77.0.9")])?;
    assert!(matches!(Nftables::default().publish(host, &[port("10.77.0.9")]), Err(Error::PortTaken { .. })));
    Nftables::default().unpublish(host, &[port("10.77.0.2")])?;
    Nftables::default().publish(host, &[port("10.77.0.9")])?;
    assert!(matches!(NoFirewall.publish(host, &[port("10.77.0.9")]), Err(Error::NoFirewall)));
    Ok(())
}

fn thousand_ports() -> Result<(), Failed> {
    let world = world();
    let network = plain(&world);
    let (a, _) = world.attach(&network, "a", &["20000-20999:20000-20999"]);
    let (b, _) = world.attach(&network, "b", &["8080:80"]);
    tcp(&world.outside, "192.0.2.1:20999", &a, "0.0.0.0:20999")?;
    tcp(&world.outside, "192.0.2.1:8080", &b, "0.0.0.0:80")?;
    drop(a);
    world.detach(&network, "a");
    assert!(tcp(&world.outside, "192.0.2.1:20999", &world.host, "127.0.0.1:1").is_err());
    tcp(&world.outside, "192.0.2.1:8080", &b, "0.0.0.0:80")?;
    Ok(())
}
