//! Names, asked for inside containers.
#![expect(clippy::unnecessary_wraps, reason = "all trials have one type")]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use estiba_network::dns::{ADDRESS, Forward, Names, Server};
use estiba_network::{Attachment, Driver, Network, Sandbox};
use libtest_mimic::Failed;

use crate::world::{World, attachment};

type Body = fn() -> Result<(), Failed>;

pub(crate) const TRIALS: &[(&str, Body)] = &[
    ("privileged_dns_answers_names_aliases_and_addresses", answers),
    ("privileged_dns_forwards_the_rest", forwards),
    ("privileged_dns_of_an_internal_network_asks_nobody", asks_nobody),
    ("privileged_dns_stands_hostile_packets", hostile),
];

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;

struct Scene {
    world: World,
    network: Network,
    web: Sandbox,
    client: Sandbox,
}

fn scene() -> Scene {
    let world = World::without_firewall();
    let network = world.network("n", &["10.77.0.0/24", "fd77::/64"], |_| ());
    let web = Sandbox::new().expect("a sandbox");
    let asked = Attachment {
        names: vec!["web".to_owned(), "www.example".to_owned()],
        ..attachment("0123456789abcdef0123", &[])
    };
    world.driver.attach(&network, &web, &asked).expect("attached");
    let (client, _) = world.attach(&network, "client", &[]);
    Scene { world, network, web, client }
}

/// Serves the client while `ask` asks.
fn served(scene: &Scene, upstream: Vec<SocketAddr>, forward: Forward, ask: impl FnOnce(&Server)) {
    let names = Arc::new(Names::of(&scene.world.driver.endpoints(&scene.network).expect("listed")));
    let server = Server::new(upstream).expect("a server");
    let (stop, stopped) = UnixStream::pair().expect("a pair");
    let server = &server;
    thread::scope(|scope| {
        let serving = scope.spawn(move || scene.world.host.run(|| server.serve(stopped.as_fd())));
        server.add("client", &scene.client, ADDRESS.into(), names, forward).expect("added");
        ask(server);
        drop(stop);
        serving.join().expect("no panic").expect("entered").expect("served");
    });
}

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn send(client: &Sandbox, query: &[u8]) -> Option<Vec<u8>> {
    let socket = client.run(|| UdpSocket::bind("127.0.0.1:0")).expect("entered").expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(7))).expect("set");
    socket.send_to(query, (ADDRESS, 53)).expect("sent");
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, SocketAddr::from((ADDRESS, 53)));
    Some(buffer[..length].to_vec())
}

/// The code of the answer, and the data of its records.
fn ask(client: &Sandbox, name: &str, kind: u16) -> (u8, Vec<Vec<u8>>) {
    let query = query(name, kind);
    parse(&send(client, &query).expect("an answer"), query.len())
}

fn parse(reply: &[u8], mut at: usize) -> (u8, Vec<Vec<u8>>) {
    let count = u16::from_be_bytes([reply[6], reply[7]]);
    let mut records = Vec::new();
    for _ in 0..count {
        // A pointer to the name, kind, class, and the time.
        let length = usize::from(u16::from_be_bytes([reply[at + 10], reply[at + 11]]));
        records.push(reply[at + 12..at + 12 + length].to_vec());
        at += 12 + length;
    }
    assert_eq!(at, reply.len());
    (reply[3] & 15, records)
}

fn octets(text: &str) -> Vec<u8> {
    match text.parse().expect("an address") {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn answers() -> Result<(), Failed> {
    let scene = scene();
    served(&scene, Vec::new(), Forward::Upstream, |server| {
        for name in ["web", "WEB", "www.example", "0123456789ab", "0123456789abcdef0123"] {
            assert_eq!(ask(&scene.client, name, A), (0, vec![octets("10.77.0.2")]), "{name}");
            assert_eq!(ask(&scene.client, name, AAAA), (0, vec![octets("fd77::2")]), "{name}");
        }
        // A kind that it has not is no reason to ask elsewhere.
        assert_eq!(ask(&scene.client, "web", 15), (0, vec![]));
        assert_eq!(ask(&scene.client, "2.0.77.10.in-addr.arpa", PTR), (0, vec![b"\x03web\0".to_vec()]));
        // Nobody to ask.
        assert_eq!(ask(&scene.client, "elsewhere.example", A), (2, vec![]));
        // By TCP too, two questions in one connection.
        let mut stream = scene.client.run(|| TcpStream::connect((ADDRESS, 53))).expect("entered").expect("connected");
        for _ in 0..2 {
            let query = query("web", A);
            stream.write_all(&[&[0, u8::try_from(query.len()).expect("short")], &query[..]].concat()).expect("sent");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut reply = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut reply).expect("a reply");
            assert_eq!(parse(&reply, query.len()), (0, vec![octets("10.77.0.2")]));
        }
        // Nobody else reaches it: it is inside the container alone.
        assert!(scene.web.run(|| TcpStream::connect((ADDRESS, 53))).expect("entered").is_err());
        assert!(scene.world.host.run(|| TcpStream::connect((ADDRESS, 53))).expect("entered").is_err());
        let mut other = Names::default();
        other.add("late", "10.77.0.9".parse().expect("an address"));
        server.rename("client", Arc::new(other));
        assert_eq!(ask(&scene.client, "late", A), (0, vec![octets("10.77.0.9")]));
        server.remove("client");
        let mut gone = false;
        for _ in 0..100 {
            gone = gone || scene.client.run(|| UdpSocket::bind((ADDRESS, 53))).expect("entered").is_ok();
            thread::sleep(Duration::from_millis(10));
        }
        assert!(gone, "the socket is closed");
    });
    Ok(())
}

/// A server in the host's namespace that answers everything with one record, after `silent` questions it does not answer.
fn upstream(world: &World, silent: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = world.host.run(|| UdpSocket::bind("127.0.0.1:0")).expect("entered").expect("bound");
    let address = socket.local_addr().expect("an address");
    let tcp = world.host.run(|| TcpListener::bind(address)).expect("entered").expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = |query: &[u8]| {
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        reply[7] = 1;
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 198, 51, 100, 7]);
        reply
    };
    let count = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if count.fetch_add(1, Ordering::SeqCst) >= silent {
                // First somebody else's answer, which must be taken for none.
                let mut wrong = answer(&buffer[..length]);
                wrong[0] ^= 1;
                let _ = socket.send_to(&wrong, from);
                let _ = socket.send_to(&answer(&buffer[..length]), from);
            }
        }
    });
    thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let mut length = [0; 2];
            let _ = stream.read_exact(&mut length);
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            let _ = stream.read_exact(&mut query);
            let reply = answer(&query);
            let _ = stream.write_all(&[&u16::try_from(reply.len()).expect("short").to_be_bytes(), &reply[..]].concat());
        }
    });
    (address, asked)
}

fn forwards() -> Result<(), Failed> {
    let scene = scene();
    let (dead, dead_asked) = upstream(&scene.world, usize::MAX);
    let (alive, alive_asked) = upstream(&scene.world, 0);
    served(&scene, vec![dead, alive], Forward::Upstream, |_| {
        assert_eq!(ask(&scene.client, "elsewhere.example", A), (0, vec![vec![198, 51, 100, 7]]));
        assert_eq!((dead_asked.load(Ordering::SeqCst), alive_asked.load(Ordering::SeqCst)), (1, 1));
        // What is known here is not told to anybody.
        ask(&scene.client, "web", AAAA);
        ask(&scene.client, "2.0.77.10.in-addr.arpa", PTR);
        assert_eq!(alive_asked.load(Ordering::SeqCst), 1);
    });
    served(&scene, vec![alive], Forward::Upstream, |_| {
        let query = query("elsewhere.example", A);
        let mut stream = scene.client.run(|| TcpStream::connect((ADDRESS, 53))).expect("entered").expect("connected");
        stream.write_all(&[&[0, u8::try_from(query.len()).expect("short")], &query[..]].concat()).expect("sent");
        let mut reply = vec![0; 2 + query.len() + 16];
        stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(parse(&reply[2..], query.len()).1, vec![vec![198, 51, 100, 7]]);
    });
    Ok(())
}

/// CVE-2024-29018.
fn asks_nobody() -> Result<(), Failed> {
    let scene = scene();
    let (server, asked) = upstream(&scene.world, 0);
    served(&scene, vec![server], Forward::Nowhere, |_| {
        assert_eq!(ask(&scene.client, "secret.example", A), (3, vec![]));
        assert_eq!(ask(&scene.client, "web", A).1.len(), 1);
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    });
    Ok(())
}

fn hostile() -> Result<(), Failed> {
    let scene = scene();
    served(&scene, Vec::new(), Forward::Upstream, |_| {
        let socket = scene.client.run(|| UdpSocket::bind("127.0.0.1:0")).expect("entered").expect("bound");
        let good = query("web.example", A);
        let mut state: u32 = 1;
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % bytes.len();
                bytes[at] = (state >> 24) as u8;
            }
            bytes.truncate((state >> 4) as usize % (good.len() + 1));
            socket.send_to(&bytes, (ADDRESS, 53)).expect("sent");
        }
        // Connections that say nothing, more than are served.
        let idle: Vec<_> = (0..40)
            .filter_map(|_| scene.client.run(|| TcpStream::connect((ADDRESS, 53))).expect("entered").ok())
            .collect();
        // What is an answer itself is never answered: two servers would go on for ever.
        let mut loop_back = good.clone();
        loop_back[2] |= 0x80;
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
        while socket.recv(&mut [0; 512]).is_ok() {}
        socket.send_to(&loop_back, (ADDRESS, 53)).expect("sent");
        assert!(socket.recv(&mut [0; 512]).is_err());
        assert_eq!(ask(&scene.client, "web", A).1.len(), 1);
        drop(idle);
    });
    Ok(())
}
