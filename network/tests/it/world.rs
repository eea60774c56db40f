//! A host that is a namespace of its own, an outside beyond it, and networks on it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use estiba_network::firewall::NoFirewall;
use estiba_network::{Attachment, Bridge, Driver, Endpoint, Firewall, Network, Sandbox, Subnet, Sweep};
use tempfile::TempDir;

/// Long enough for a packet that is on its way.
pub(crate) const SHORT: Duration = Duration::from_millis(600);

pub(crate) struct World {
    pub(crate) host: Sandbox,
    /// A machine beside the host: 192.0.2.2 and 2001:db8::2. The host has .1 and ::1.
    pub(crate) outside: Sandbox,
    pub(crate) driver: Bridge,
    pub(crate) root: TempDir,
}

impl World {
    pub(crate) fn new(firewall: Arc<dyn Firewall>) -> Self {
        let (host, outside) = (Sandbox::new().expect("a host"), Sandbox::new().expect("an outside"));
        for sandbox in [&host, &outside] {
            sandbox.netlink().expect("a socket").set_loopback_up().expect("loopback");
        }
        // The other end moves by the descriptor of a thread that is in the other namespace.
        let end = Other::start(&outside);
        ip(&host, &format!("link add uplink type veth peer name eth0 netns {}", end.id()));
        end.stop();
        ip(&host, "addr add 192.0.2.1/24 dev uplink");
        ip(&host, "addr add 2001:db8::1/64 dev uplink nodad");
        // Otherwise the kernel gives them a second late.
        ip(&host, "addr add fe80::1/64 dev uplink nodad");
        ip(&outside, "addr add fe80::2/64 dev eth0 nodad");
        ip(&host, "link set uplink up");
        ip(&outside, "addr add 192.0.2.2/24 dev eth0");
        ip(&outside, "addr add 2001:db8::2/64 dev eth0 nodad");
        ip(&outside, "link set eth0 up");
        for (sandbox, name) in [(&host, "uplink"), (&outside, "eth0")] {
            let mut netlink = sandbox.netlink().expect("a socket");
            while !netlink.link(name).expect("an answer").expect("the interface").running {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let root = tempfile::tempdir().expect("a folder");
        let driver = Bridge {
            host: Some(host.try_clone().expect("held")),
            state: root.path().join("state"),
            leases: root.path().join("leases"),
            firewall,
            sweep: Sweep::AtOnce,
        };
        Self { host, outside, driver, root }
    }

    pub(crate) fn without_firewall() -> Self {
        Self::new(Arc::new(NoFirewall))
    }

    /// A network with these subnets, changed by `change`.
    pub(crate) fn network(&self, name: &str, subnets: &[&str], change: impl FnOnce(&mut Network)) -> Network {
        let subnets = subnets.iter().map(|text| Subnet::new(text.parse().expect("a subnet"))).collect();
        let mut network = Network { subnets, ..Network::named(name) };
        change(&mut network);
        self.driver.create(network, &[]).expect("created")
    }

    pub(crate) fn attach(&self, network: &Network, container: &str, ports: &[&str]) -> (Sandbox, Endpoint) {
        let sandbox = Sandbox::new().expect("a sandbox");
        let endpoint = self.driver.attach(network, &sandbox, &attachment(container, ports)).expect("attached");
        (sandbox, endpoint)
    }

    pub(crate) fn detach(&self, network: &Network, container: &str) {
        self.driver.detach(network, None, &attachment(container, &[])).expect("detached");
    }

    /// The names of the host's interfaces.
    pub(crate) fn interfaces(&self) -> Vec<String> {
        let list = self.host.netlink().expect("a socket").interfaces().expect("a list");
        list.into_iter().map(|interface| interface.name).collect()
    }

    /// Waits until nothing is left on the host: the kernel clears up in the background.
    pub(crate) fn assert_clean(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while self.interfaces() != ["lo", "uplink"] {
            assert!(Instant::now() < end, "left: {:?}", self.interfaces());
            thread::sleep(Duration::from_millis(20));
        }
        let state = self.root.path().join("state");
        let left: Vec<_> = state.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "left: {left:?}");
    }

    /// The addresses that are given out of a network.
    pub(crate) fn leases(&self, network: &str) -> Vec<String> {
        let folder = self.root.path().join("leases").join(network);
        let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| name.parse::<IpAddr>().is_ok());
        names.sort();
        names
    }
}

pub(crate) fn attachment(container: &str, ports: &[&str]) -> Attachment {
    let ports = ports.iter().map(|port| port.parse().expect("a port")).collect();
    Attachment { container: container.to_owned(), ports, ..Attachment::default() }
}

/// The endpoint's address of the family that `like` is of.
pub(crate) fn address(endpoint: &Endpoint, like: &str) -> IpAddr {
    let like: IpAddr = like.parse().expect("an address");
    let mut addresses = endpoint.addresses.iter().map(ipnet::addr);
    addresses.find(|address| address.is_ipv4() == like.is_ipv4()).expect("an address of that family")
}

mod ipnet {
    pub(crate) fn addr(net: &estiba_network::ipnet::IpNet) -> std::net::IpAddr {
        net.addr()
    }
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(sandbox: &Sandbox, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    let output = sandbox.run(move || command.output()).expect("entered").expect("ip runs");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process in a namespace, by which `ip` finds it.
struct Other(std::process::Child);

impl Other {
    fn start(sandbox: &Sandbox) -> Self {
        let child = sandbox.run(|| Command::new("sleep").arg("60").spawn());
        Self(child.expect("entered").expect("sleep runs"))
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn stop(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited");
    }
}

/// A socket that was bound. The one before may live for a moment more: in a process that another trial has just forked, and
/// that has not come to its program yet.
fn bound<T>(bind: impl Fn() -> io::Result<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                thread::sleep(Duration::from_millis(5));
            }
            other => return other.expect("bound"),
        }
    }
}

/// Who a listener in `server` at `listen` sees when `client` connects to `to`; an error if nothing comes through.
pub(crate) fn tcp(client: &Sandbox, to: &str, server: &Sandbox, listen: &str) -> io::Result<IpAddr> {
    let listener = bound(|| server.run(|| TcpListener::bind(listen)).expect("entered"));
    let to: SocketAddr = to.parse().expect("an address");
    let connected = client.run(|| TcpStream::connect_timeout(&to, SHORT)).expect("entered");
    let _stream = connected.map_err(|error| io::Error::new(error.kind(), format!("{to}: {error}")))?;
    listener.set_nonblocking(true)?;
    let end = Instant::now() + SHORT;
    loop {
        match listener.accept() {
            Ok((_, peer)) => return Ok(peer.ip()),
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The same with a datagram there and another one back.
pub(crate) fn udp(client: &Sandbox, to: &str, server: &Sandbox, listen: &str) -> io::Result<IpAddr> {
    let socket = bound(|| server.run(|| UdpSocket::bind(listen)).expect("entered"));
    let to: SocketAddr = to.parse().expect("an address");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let near = client.run(|| UdpSocket::bind(any)).expect("entered").expect("bound");
    near.connect(to)?;
    near.send(b"there")?;
    let mut buffer = [0; 16];
    socket.set_read_timeout(Some(SHORT))?;
    let (length, peer) = socket.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"there");
    socket.send_to(b"back", peer)?;
    near.set_read_timeout(Some(SHORT))?;
    let length = near.recv(&mut buffer)?;
    assert_eq!(&buffer[..length], b"back");
    Ok(peer.ip())
}

/// Deletes all tables, as `nft flush ruleset` does, where there is no such program.
pub(crate) fn flush_ruleset(host: &Sandbox) {
    let sent = host.run(|| -> io::Result<()> {
        let socket = netfilter_socket()?;
        // A transaction of NFT_MSG_DELTABLE without a name, for all families.
        let message = |kind: u16, flags: u16, resource: u16| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend((1 | flags).to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(resource.to_be_bytes());
            bytes
        };
        let all = [message(16, 0, 10), message(0xa02, 4, 0), message(17, 0, 10)].concat();
        nix::sys::socket::send(std::os::fd::AsRawFd::as_raw_fd(&socket), &all, nix::sys::socket::MsgFlags::empty())?;
        let mut answer = [0; 256];
        nix::sys::socket::recv(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            &mut answer,
            nix::sys::socket::MsgFlags::empty(),
        )?;
        Ok(())
    });
    sent.expect("entered").expect("flushed");
}

fn netfilter_socket() -> io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?)
}

/// Sends an SCTP INIT from `client` to a port of `to`, and returns the port at which `server` gets it.
pub(crate) fn sctp_init(client: &Sandbox, to: &str, port: u16, server: &Sandbox) -> io::Result<u16> {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
    };
    use std::os::fd::AsRawFd;
    let raw = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp);
    let near = client.run(raw).expect("entered")?;
    let far = server.run(raw).expect("entered")?;
    // RFC 9260: the common header, then an INIT chunk of 20 bytes.
    let mut packet = Vec::new();
    packet.extend(4444_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(to.parse().expect("an address"), 0));
    sendto(near.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    let timeout = nix::sys::time::TimeVal::new(1, 0);
    nix::sys::socket::setsockopt(&far, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    let mut buffer = [0; 256];
    let length = recv(far.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let header = usize::from(buffer[0] & 0xf) * 4;
    assert!(length >= header + 12);
    Ok(u16::from_be_bytes([buffer[header + 2], buffer[header + 3]]))
}

/// SCTP's checksum (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}
