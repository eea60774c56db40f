//! A container's network by calls of estiba-network, beside the bare netlink requests and beside programs that do the same.
//!
//! Each contender has a host of its own: a network namespace, in which its bridges and rules are made.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use estiba_network::{
    Attachment, Batch, Bridge, Driver, Netlink, Network, Nftables, PortMapping, Sandbox, Subnet, Sweep,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::library::told;
use crate::place::Place;
use crate::report::{Outcome, Row, Table};
use crate::rows::Yard;
use crate::statistics::Summary;
use crate::sys;

/// How many cycles of attach and detach are made without a pause.
const SUSTAINED: usize = 500;

/// How many containers come at once.
const AT_ONCE: usize = 32;

/// What was measured of one contender, in microseconds.
#[derive(Debug, Default)]
struct Samples {
    attach: Vec<f64>,
    detach: Vec<f64>,
}

impl Yard {
    pub(crate) fn network(&mut self) -> io::Result<Table> {
        // A namespace is a descriptor, and a thousand are more than the usual limit.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let rounds = self.rounds.0;
        let mut floor = Floor::new()?;
        let work = self.work.join("network");
        let ours = |name: &str, others, ports| Ours::new(&work.join(name), others, ports);
        let crowds = [ours("1", 0, 0)?, ours("100", 99, 0)?, ours("1000", 999, 0)?, ours("ports", 1, 1000)?];
        let names = ["1 container", "100 containers", "1,000 containers", "1,000 ports beside it"];
        let folder = self.stations.iter().map(crate::station::Station::place).find(|place| place.name() == "folder");
        let place = folder.cloned().unwrap_or(Place::Plain);
        let netavark = Program::start(&place, &work, Kind::Netavark)?;
        let cni = Program::start(&place, &work, Kind::Cni)?;
        let mut samples: Vec<Samples> = (0..7).map(|_| Samples::default()).collect();
        let mut failures: [Option<String>; 2] = [None, None];
        for round in 0..rounds + 2 {
            let mut all = vec![Some(floor.once()?)];
            for crowd in &crowds {
                all.push(Some(crowd.once(round)?));
            }
            for (program, failure) in [&netavark, &cni].into_iter().zip(&mut failures) {
                all.push(match failure {
                    Some(_) => None,
                    None => program.once().map_err(|reason| *failure = Some(reason)).ok(),
                });
            }
            for (samples, times) in samples.iter_mut().zip(all).filter(|_| round >= 2) {
                if let Some((attach, detach)) = times {
                    samples.attach.push(micros(attach));
                    samples.detach.push(micros(detach));
                }
            }
        }
        let (sustained, clean) = ours("sustained", 1, 0)?.sustained()?;
        let at_once = ours("at-once", 1, 0)?.at_once(rounds.min(5))?;
        let mut rows = Vec::new();
        let mut add = |name: &str, place: &'static str, samples: &Samples, reason: Option<&String>| {
            for (what, sample) in [("attach", &samples.attach), ("detach", &samples.detach)] {
                rows.push(row(&format!("{name}: {what}"), place, sample, reason, rows.first()));
            }
        };
        add("(netlink alone)", "plain", &samples[0], None);
        for (name, samples) in names.iter().zip(&samples[1..5]) {
            add(name, "plain", samples, None);
        }
        add(&format!("{SUSTAINED} in a row, {clean}"), "plain", &sustained, None);
        add(&format!("{AT_ONCE} at once, each"), "plain", &at_once, None);
        add("netavark", place.name(), &samples[5], failures[0].as_ref());
        add("CNI bridge + portmap", place.name(), &samples[6], failures[1].as_ref());
        let about = "attach a namespace with one published port, and detach it; ratios to netlink alone";
        Ok(Table { name: "network", about: about.to_owned(), rows })
    }
}

fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

fn row(name: &str, place: &'static str, sample: &[f64], reason: Option<&String>, first: Option<&Row>) -> Row {
    let outcome = match Summary::of(sample) {
        Some(wall_us) => {
            let base = first.and_then(|row| row.outcome.median()).unwrap_or(wall_us.median);
            let ratio = Some((wall_us.median / base * 1000.0).round() / 1000.0);
            let samples_us = sample.to_vec();
            Outcome::Measured { wall_us, ratio, user_us: None, system_us: None, peak_kib: None, samples_us }
        }
        None => Outcome::Absent { reason: reason.cloned().unwrap_or_else(|| "not measured".to_owned()) },
    };
    Row { name: name.to_owned(), version: String::new(), place, command: String::new(), outcome }
}

/// A namespace, and what a step in it took.
fn host() -> io::Result<Sandbox> {
    let host = Sandbox::new().map_err(told)?;
    host.netlink().and_then(|mut netlink| netlink.set_loopback_up()).map_err(told)?;
    Ok(host)
}

/// The least that the kernel has to be asked for: a veth with one end in the namespace, its other end up on a bridge, an
/// address, a default route. No rules, no records.
struct Floor {
    host: Sandbox,
    bridge: u32,
    runs: u32,
}

impl Floor {
    fn new() -> io::Result<Self> {
        let host = host()?;
        let mut netlink = host.netlink().map_err(told)?;
        let mut message = named("br0");
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        set_up(&mut message);
        let mut batch = Batch::new();
        batch.create("make a bridge", RouteNetlinkMessage::NewLink(message));
        netlink.commit(&batch).map_err(told)?;
        let bridge = netlink.link("br0").map_err(told)?.ok_or(io::ErrorKind::NotFound)?.index;
        let mut batch = Batch::new();
        batch.create("give it an address", address(bridge, [10, 66, 0, 1]));
        netlink.commit(&batch).map_err(told)?;
        Ok(Self { host, bridge, runs: 0 })
    }

    fn once(&mut self) -> io::Result<(Duration, Duration)> {
        self.runs += 1;
        let name = format!("v{}", self.runs);
        let sandbox = Sandbox::new().map_err(told)?;
        let bridge = self.bridge;
        let attach = self.host.run(|| -> Result<Duration, estiba_network::Error> {
            let begin = sys::monotonic();
            let mut near = named(&name);
            let mut far = named("eth0");
            far.attributes.push(LinkAttribute::NetNsFd(sandbox.as_fd().as_raw_fd()));
            let data = InfoData::Veth(InfoVeth::Peer(far));
            near.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
            near.attributes.push(LinkAttribute::Controller(bridge));
            set_up(&mut near);
            let mut batch = Batch::new();
            batch.create("make a veth", RouteNetlinkMessage::NewLink(near));
            Netlink::open()?.commit(&batch)?;
            let mut inside = sandbox.netlink()?;
            let index = inside.link("eth0")?.map_or(2, |link| link.index);
            let mut batch = Batch::new();
            for index in [1, index] {
                let mut message = LinkMessage::default();
                message.header.index = index;
                set_up(&mut message);
                batch.change("set it up", RouteNetlinkMessage::SetLink(message));
            }
            batch.create("give it an address", address(index, [10, 66, 0, 2]));
            let mut route = RouteMessage::default();
            route.header.address_family = AddressFamily::Inet;
            route.header.table = RouteHeader::RT_TABLE_MAIN;
            route.header.protocol = RouteProtocol::Static;
            route.header.kind = RouteType::Unicast;
            route.attributes = vec![
                RouteAttribute::Gateway(std::net::IpAddr::from([10, 66, 0, 1]).into()),
                RouteAttribute::Oif(index),
            ];
            batch.create("give it a route", RouteNetlinkMessage::NewRoute(route));
            inside.commit(&batch)?;
            Ok(sys::monotonic().saturating_sub(begin))
        });
        let attach = attach.and_then(|took| took).map_err(told)?;
        let begin = sys::monotonic();
        drop(sandbox);
        Ok((attach, sys::monotonic().saturating_sub(begin)))
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

fn address(index: u32, octets: [u8; 4]) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 16;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(octets.into()), AddressAttribute::Address(octets.into())];
    RouteNetlinkMessage::NewAddress(message)
}

/// A bridge network of ours with some containers on it.
struct Ours {
    host: Sandbox,
    driver: Bridge,
    network: Network,
    _others: Vec<Sandbox>,
}

impl Ours {
    fn new(folder: &Path, others: usize, ports: u16) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let host = host()?;
        let driver = Bridge {
            host: None,
            state: folder.join("state"),
            leases: folder.join("leases"),
            firewall: Arc::new(Nftables::default()),
            sweep: Sweep::AtOnce,
        };
        let subnet = Subnet::new("10.77.0.0/16".parse().map_err(io::Error::other)?);
        let definition = Network { subnets: vec![subnet], ..Network::named("bench") };
        let network = driver.create(definition, &[]).map_err(told)?;
        let mut kept = Vec::new();
        // One more, so that the bridge stays.
        for number in 0..others.max(1) {
            let sandbox = Sandbox::new().map_err(told)?;
            let mut attachment = Attachment { container: format!("other-{number}"), ..Attachment::default() };
            if ports > 0 && number == 0 {
                let range =
                    PortMapping { host_port: 10_000, container_port: 10_000, count: ports, ..PortMapping::default() };
                attachment.ports.push(range);
            }
            host.run(|| driver.attach(&network, &sandbox, &attachment)).and_then(|result| result).map_err(told)?;
            kept.push(sandbox);
        }
        Ok(Self { host, driver, network, _others: kept })
    }

    fn attachment(number: usize) -> Attachment {
        let port = PortMapping { host_port: 20_000 + number as u16, container_port: 80, ..PortMapping::default() };
        Attachment { container: format!("bench-{number}"), ports: vec![port], ..Attachment::default() }
    }

    fn once(&self, number: usize) -> io::Result<(Duration, Duration)> {
        let sandbox = Sandbox::new().map_err(told)?;
        let attachment = Self::attachment(number);
        let took = self.host.run(move || -> Result<_, estiba_network::Error> {
            let begin = sys::monotonic();
            self.driver.attach(&self.network, &sandbox, &attachment)?;
            let attached = sys::monotonic();
            // The container's end takes its namespace along, as it does in an engine.
            drop(sandbox);
            let ended = sys::monotonic();
            self.driver.detach(&self.network, None, &attachment)?;
            Ok((attached.saturating_sub(begin), sys::monotonic().saturating_sub(ended)))
        });
        took.and_then(|took| took).map_err(told)
    }

    /// Many cycles, and whether nothing is left of them in the end.
    fn sustained(&self) -> io::Result<(Samples, String)> {
        let mut samples = Samples::default();
        for number in 0..SUSTAINED {
            let (attach, detach) = self.once(number)?;
            samples.attach.push(micros(attach));
            samples.detach.push(micros(detach));
        }
        // The kernel clears up in the background: loopback, the bridge and the other container's cable stay.
        let begin = sys::monotonic();
        let mut netlink = self.host.netlink().map_err(told)?;
        while netlink.links().map_err(told)?.len() > 3 + extra_links()? {
            if sys::monotonic().saturating_sub(begin) > Duration::from_secs(30) {
                return Ok((samples, "interfaces left".to_owned()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        let later = sys::monotonic().saturating_sub(begin).as_millis();
        Ok((samples, format!("all gone {later} ms later")))
    }

    fn at_once(&self, rounds: usize) -> io::Result<Samples> {
        let mut samples = Samples::default();
        for _ in 0..rounds {
            let sandboxes = (0..AT_ONCE).map(|_| Sandbox::new()).collect::<Result<Vec<_>, _>>().map_err(told)?;
            let share = |took: Duration| micros(took / u32::try_from(AT_ONCE).unwrap_or(1));
            let begin = sys::monotonic();
            self.together(&|number| {
                let attachment = Self::attachment(number);
                self.driver.attach(&self.network, &sandboxes[number], &attachment).map(drop)
            })?;
            samples.attach.push(share(sys::monotonic().saturating_sub(begin)));
            drop(sandboxes);
            let begin = sys::monotonic();
            self.together(&|number| self.driver.detach(&self.network, None, &Self::attachment(number)))?;
            samples.detach.push(share(sys::monotonic().saturating_sub(begin)));
        }
        Ok(samples)
    }

    fn together(&self, work: &(dyn Fn(usize) -> Result<(), estiba_network::Error> + Sync)) -> io::Result<()> {
        thread::scope(|scope| {
            let start = |number| scope.spawn(move || self.host.run(|| work(number)).and_then(|result| result));
            let all: Vec<_> = (0..AT_ONCE).map(start).collect();
            for one in all {
                one.join().map_err(|_| io::Error::other("a thread has panicked"))?.map_err(told)?;
            }
            Ok(())
        })
    }
}

/// Interfaces that a new namespace has beside the loopback one: tunnels of some kernels.
fn extra_links() -> io::Result<usize> {
    let links = Sandbox::new().and_then(|new| new.netlink()?.links()).map_err(told)?;
    Ok(links.len() - 1)
}

/// What is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Netavark,
    Cni,
}

/// A program that attaches, on a thread that is in its place and in its host's namespace.
struct Program {
    requests: mpsc::Sender<PathBuf>,
    answers: mpsc::Receiver<Result<(Duration, Duration), String>>,
}

impl Program {
    fn start(place: &Place, work: &Path, kind: Kind) -> io::Result<Self> {
        let (requests, asked) = mpsc::channel::<PathBuf>();
        let (answer, answers) = mpsc::channel();
        let (place, work, host) = (place.clone(), work.join(format!("{kind:?}")), host()?);
        fs::create_dir_all(&work)?;
        thread::spawn(move || {
            let served = host.run(|| {
                if let Err(error) = place.enter(&work) {
                    let _ = answer.send(Err(format!("cannot enter the place: {error}")));
                    return;
                }
                for namespace in asked {
                    let took = match kind {
                        Kind::Netavark => netavark(&work, &namespace),
                        Kind::Cni => cni(&work, &namespace),
                    };
                    let _ = answer.send(took);
                }
            });
            if let Err(error) = served {
                let _ = answer.send(Err(told(error).to_string()));
            }
        });
        Ok(Self { requests, answers })
    }

    fn once(&self) -> Result<(Duration, Duration), String> {
        let sandbox = Sandbox::new().map_err(|error| told(error).to_string())?;
        let number = sandbox.as_fd().as_raw_fd();
        let path = PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id()));
        self.requests.send(path).map_err(|_| "its thread has ended".to_owned())?;
        self.answers.recv().map_err(|_| "its thread has ended".to_owned())?
    }
}

/// Runs a program with a text as its input; its output and what it took.
fn execute(command: &mut Command, input: &Value) -> Result<(String, Duration), String> {
    let begin = sys::monotonic();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("cannot start it: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.to_string().as_bytes()).map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let took = sys::monotonic().saturating_sub(begin);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok((text, took))
    } else {
        let said = format!("{text} {}", String::from_utf8_lossy(&output.stderr));
        Err(said.lines().next_back().unwrap_or("nothing said").trim().to_owned())
    }
}

fn first_of(paths: &[&str]) -> Result<PathBuf, String> {
    paths.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| format!("not found: {}", paths.join(", ")))
}

fn netavark(work: &Path, namespace: &Path) -> Result<(Duration, Duration), String> {
    let program = first_of(&["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"])?;
    let options = json!({
        "container_id": "bench", "container_name": "bench",
        "port_mappings":
            [{ "container_port": 80, "host_ip": "", "host_port": 20_000, "protocol": "tcp", "range": 1 }],
        "networks": { "podman": { "static_ips": ["10.88.0.2"], "interface_name": "eth0" } },
        "network_info": { "podman": {
            "name": "podman", "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
            "driver": "bridge", "network_interface": "podman0",
            "subnets": [{ "subnet": "10.88.0.0/16", "gateway": "10.88.0.1" }],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false, "ipam_options": { "driver": "host-local" }
        } }
    });
    let run = |verb| execute(Command::new(&program).arg("--config").arg(work).arg(verb).arg(namespace), &options);
    let (_, attach) = run("setup")?;
    let (_, detach) = run("teardown")?;
    Ok((attach, detach))
}

fn cni(work: &Path, namespace: &Path) -> Result<(Duration, Duration), String> {
    let program = first_of(&["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"])?;
    let folder = program.parent().unwrap_or(Path::new("/")).to_owned();
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local", "dataDir": work, "ranges": [[{ "subnet": "10.99.0.0/16" }]] }
    });
    let run = |plugin: &str, verb: &str, config: &Value| {
        let mut command = Command::new(folder.join(plugin));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "bench").env("CNI_IFNAME", "eth0");
        execute(command.env("CNI_NETNS", namespace).env("CNI_PATH", &folder), config)
    };
    let (result, bridge_took) = run("bridge", "ADD", &bridge)?;
    let previous: Value = serde_json::from_str(&result).map_err(|error| error.to_string())?;
    let portmap = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "prevResult": previous,
        "runtimeConfig": { "portMappings": [{ "hostPort": 20_000, "containerPort": 80, "protocol": "tcp" }] }
    });
    let (_, portmap_took) = run("portmap", "ADD", &portmap)?;
    let (_, portmap_gone) = run("portmap", "DEL", &portmap)?;
    let (_, bridge_gone) = run("bridge", "DEL", &bridge)?;
    Ok((bridge_took + portmap_took, portmap_gone + bridge_gone))
}
