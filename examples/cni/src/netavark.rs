//! `netavark`: what Podman executes to connect a container, with its command line and JSON. What it is asked is done by the drivers of
//! `estiba-network`, with their records below Podman's own folder.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use estiba_network::ipnet::IpNet;
use estiba_network::{
    Attachment, Bridge, Driver, Endpoint, Firewall as _, Kind, Macvlan, Network, PortMapping, Protocol, Sandbox,
    Subnet, Sweep, ports,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{address, firewall, sysctl};

/// Of the netavark whose protocol this is.
const VERSION: &str = "1.17.0";
/// More than any request has.
const INPUT_MAX: u64 = 16 << 20;
/// Where Podman has its networks' state as root.
const STATE: &str = "/run/containers/networks";

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

#[derive(Debug, Deserialize)]
struct Options {
    container_id: String,
    #[serde(default)]
    container_name: String,
    networks: Named,
    network_info: BTreeMap<String, Info>,
    #[serde(default)]
    port_mappings: Option<Vec<Mapping>>,
}

/// Newer ones send a list, in the order in which the networks are to be set up.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Named {
    List(Vec<Listed>),
    Map(BTreeMap<String, Wanted>),
}

#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    #[serde(flatten)]
    wanted: Wanted,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    interface_name: String,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<String>,
    #[serde(default)]
    aliases: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Info {
    name: String,
    id: String,
    driver: String,
    #[serde(default)]
    network_interface: Option<String>,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    subnets: Option<Vec<Range>>,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    routes: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct Range {
    subnet: IpNet,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default, rename = "lease_range")]
    given: Option<Lease>,
}

#[derive(Debug, Deserialize)]
struct Lease {
    #[serde(default)]
    start_ip: Option<String>,
    #[serde(default)]
    end_ip: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Mapping {
    container_port: u16,
    #[serde(default)]
    host_ip: String,
    #[serde(default)]
    host_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    range: u16,
}

#[derive(Debug, Serialize)]
struct Status {
    dns_search_domains: Vec<String>,
    dns_server_ips: Vec<IpAddr>,
    interfaces: BTreeMap<String, Value>,
}

/// The command line.
struct Line {
    state: PathBuf,
    file: Option<PathBuf>,
    words: Vec<String>,
}

/// The main function of the program under this name.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    match run(arguments) {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(printed) => match writeln!(io::stdout(), "{printed}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let mut line = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                line = format!("{line}: {error}");
                source = error.source();
            }
            println!("{}", json!({ "error": line }));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<Value> {
    let line = parse(arguments)?;
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup", netns] => setup(&line, Path::new(netns)),
        ["teardown", netns] => teardown(&line, Path::new(netns)),
        // The servers of a network's names: this program starts none.
        ["update", _, ..] => Ok(Value::Null),
        ["version"] => Ok(json!({
            "version": VERSION, "commit": "", "build_time": "", "target": std::env::consts::ARCH,
            "default_fw_driver": "nftables", "implementation": format!("estiba-cni {}", env!("CARGO_PKG_VERSION"))
        })),
        ["--version" | "-V"] => {
            println!("netavark {VERSION}");
            Ok(Value::Null)
        }
        _ => Err(format!(
            "usage: netavark [--config FOLDER] [--file FILE] setup|teardown|update|version …, not {words:?}"
        )
        .into()),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Line> {
    let mut line = Line { state: PathBuf::from(STATE), file: None, words: Vec::new() };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().ok_or("an argument is no text in UTF-8")?.to_owned();
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) if name.starts_with('-') => (name.to_owned(), Some(value.to_owned())),
            _ => (text, None),
        };
        let mut value = || {
            let next = inline.clone().or_else(|| arguments.next().and_then(|next| next.into_string().ok()));
            next.ok_or_else(|| format!("{name} needs a value"))
        };
        match name.as_str() {
            "-c" | "--config" => line.state = PathBuf::from(value()?),
            "-f" | "--file" => line.file = Some(PathBuf::from(value()?)),
            "-r" | "--rootless" => {
                if value()? == "true" {
                    return Err("rootless networks are not supported".into());
                }
            }
            "-a" | "--aardvark-binary" | "-p" | "--plugin-directories" | "--network-dns-servers" => {
                value()?;
            }
            _ => line.words.push(name),
        }
    }
    Ok(line)
}

fn read(line: &Line) -> Result<Options> {
    let mut text = Vec::new();
    match &line.file {
        Some(path) => {
            let file = File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
            file.take(INPUT_MAX).read_to_end(&mut text)?;
        }
        None => {
            io::stdin().take(INPUT_MAX).read_to_end(&mut text)?;
        }
    }
    Ok(serde_json::from_slice(&text).map_err(|error| format!("failed to load network options: {error}"))?)
}

/// A network with its driver, and what a container wants of it.
struct Place {
    name: String,
    driver: Box<dyn Driver>,
    network: Network,
    attachment: Attachment,
    /// The driver would look whether they are free: they are not, Podman holds them with sockets of its own.
    ports: Vec<PortMapping>,
}

impl Place {
    fn attach(&self, sandbox: &Sandbox) -> Result<Endpoint> {
        let mut attachment = self.attachment.clone();
        // A running container that is connected to one more network keeps its way out, and its ports lead where they did.
        let routes = address::routes(&mut sandbox.netlink()?)?;
        let is_connected = routes.iter().any(|route| route.to.prefix_len() == 0);
        attachment.default_route &= !is_connected;
        let endpoint = self.driver.attach(&self.network, sandbox, &attachment)?;
        let published = if is_connected { Ok(()) } else { self.publish(&endpoint) };
        if published.is_err() {
            let _ = self.driver.detach(&self.network, Some(sandbox), &self.attachment);
        }
        published?;
        Ok(endpoint)
    }

    fn publish(&self, endpoint: &Endpoint) -> Result<()> {
        let endpoint = Endpoint { ports: self.ports.clone(), ..endpoint.clone() };
        let published = ports::published(&endpoint);
        if published.is_empty() {
            return Ok(());
        }
        firewall::kernel().publish(None, &published)?;
        // The host's own programs reach 127.0.0.1 through the bridge; the packet filter keeps everybody else from it.
        let local = |host: IpAddr| host.is_ipv4() && (host.is_unspecified() || host.is_loopback());
        if let Some(bridge) = self.network.interface.as_ref().filter(|_| published.iter().any(|port| local(port.host)))
        {
            sysctl::set(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?;
        }
        Ok(())
    }

    /// Podman tells the addresses again that it has chosen.
    fn detach(&self, sandbox: Option<&Sandbox>) -> Result<()> {
        let addresses = self.attachment.addresses.iter().map(|address| (*address).into()).collect();
        let endpoint = Endpoint { ports: self.ports.clone(), addresses, ..Endpoint::default() };
        let closed = firewall::kernel().unpublish(None, &ports::published(&endpoint));
        self.driver.detach(&self.network, sandbox, &self.attachment)?;
        Ok(closed?)
    }
}

fn places(line: &Line, options: &Options) -> Result<Vec<Place>> {
    let asked: Vec<(&String, &Wanted)> = match &options.networks {
        Named::List(list) => list.iter().map(|entry| (&entry.name, &entry.wanted)).collect(),
        Named::Map(map) => {
            let mut all: Vec<_> = map.iter().collect();
            all.sort_by_key(|(_, wanted)| &wanted.interface_name);
            all
        }
    };
    let mut places: Vec<Place> = Vec::new();
    for (name, wanted) in asked {
        let info =
            options.network_info.get(name).ok_or_else(|| format!("network info for network {name} not found"))?;
        let network = network(info)?;
        // Every network has the container's ports: they lead to the first one that can.
        let has_ports =
            info.driver == "bridge" && !network.internal && !places.iter().any(|place| !place.ports.is_empty());
        let ports = if has_ports { mapped(options)? } else { Vec::new() };
        let without = info.options.as_ref().and_then(|options| options.get("no_default_route"));
        let can_route = !network.internal && without.is_none_or(|value| value != "true" && value != "1");
        let default_route = can_route && !places.iter().any(|place| place.attachment.default_route);
        let mut names = vec![options.container_name.clone()];
        names.extend(wanted.aliases.iter().flatten().cloned());
        let mac = wanted.static_mac.as_deref().filter(|mac| !mac.is_empty()).map(str::parse).transpose()?;
        let attachment = Attachment {
            container: options.container_id.clone(),
            interface: wanted.interface_name.clone(),
            addresses: wanted.static_ips.clone().unwrap_or_default(),
            mac,
            ports: Vec::new(),
            names,
            default_route,
        };
        attachment.check()?;
        places.push(Place { name: name.clone(), driver: driver(line, info)?, network, attachment, ports });
    }
    Ok(places)
}

fn driver(line: &Line, info: &Info) -> Result<Box<dyn Driver>> {
    let state = line.state.join("estiba");
    let (records, leases) = (state.join("attachments"), state.join("leases"));
    let lying = |kind| Box::new(Macvlan { kind, host: None, state: records.clone(), leases: leases.clone() });
    match info.driver.as_str() {
        "bridge" => {
            let firewall = Arc::new(firewall::kernel());
            Ok(Box::new(Bridge { host: None, state: records, leases, firewall, sweep: Sweep::AtOnce }))
        }
        "macvlan" => Ok(lying(Kind::Macvlan)),
        "ipvlan" => Ok(lying(Kind::Ipvlan)),
        other => Err(format!("unknown network driver {other:?}: there are bridge, macvlan and ipvlan").into()),
    }
}

fn network(info: &Info) -> Result<Network> {
    let option = |key: &str| info.options.as_ref().and_then(|options| options.get(key)).map(String::as_str);
    for unsupported in ["vlan", "vrf", "outbound_addr4", "outbound_addr6", "host_interface_name"] {
        if let Some(value) = option(unsupported) {
            return Err(format!(
                "the network {} has the option {unsupported}={value}, which is not supported",
                info.name
            )
            .into());
        }
    }
    if info.routes.as_ref().is_some_and(|routes| !routes.is_empty()) {
        return Err(format!("the network {} has static routes, which are not supported", info.name).into());
    }
    let modes: &[&str] = match info.driver.as_str() {
        "macvlan" => &["bridge", "private", "vepa", "passthru"],
        "ipvlan" => &["l2"],
        _ => &["managed"],
    };
    if let Some(mode) = option("mode").filter(|mode| !modes.contains(mode)) {
        return Err(format!("the network {} has the mode {mode}, which is not supported", info.name).into());
    }
    let subnet = |range: &Range| -> Result<Subnet> {
        let address =
            |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose();
        let lease = range.given.as_ref();
        Ok(Subnet {
            gateway: range.gateway,
            first: lease.map(|lease| address(&lease.start_ip)).transpose()?.flatten(),
            last: lease.map(|lease| address(&lease.end_ip)).transpose()?.flatten(),
            ..Subnet::new(range.subnet)
        })
    };
    let mtu = option("mtu").filter(|mtu| *mtu != "0").map(str::parse).transpose();
    let network = Network {
        name: info.name.clone(),
        id: info.id.clone(),
        interface: info.network_interface.clone().filter(|name| !name.is_empty()),
        subnets: info.subnets.iter().flatten().map(subnet).collect::<Result<_>>()?,
        mtu: mtu.map_err(|_| format!("the network {} has a wrong mtu: {:?}", info.name, option("mtu")))?,
        internal: info.internal,
        driver: info.driver.clone(),
        options: option("mode")
            .filter(|_| info.driver == "macvlan")
            .map(|mode| ("mode".into(), mode.into()))
            .into_iter()
            .collect(),
        isolate: option("isolate").is_some_and(|value| ["true", "1", "strict"].contains(&value)),
        ..Network::default()
    };
    network.check()?;
    Ok(network)
}

fn mapped(options: &Options) -> Result<Vec<PortMapping>> {
    let mut ports = Vec::new();
    for mapping in options.port_mappings.iter().flatten() {
        let host_address = Some(mapping.host_ip.as_str()).filter(|text| !text.is_empty()).map(str::parse).transpose();
        let host_address = host_address.map_err(|_| format!("invalid host ip {:?} provided", mapping.host_ip))?;
        let protocols = if mapping.protocol.is_empty() { "tcp" } else { &mapping.protocol };
        for protocol in protocols.split(',') {
            let protocol: Protocol = protocol.parse().map_err(|_| format!("unknown port protocol {protocol}"))?;
            let mapping = PortMapping {
                host_address,
                host_port: mapping.host_port,
                container_port: mapping.container_port,
                count: mapping.range.max(1),
                protocol,
            };
            mapping.check()?;
            ports.push(mapping);
        }
    }
    Ok(ports)
}

fn setup(line: &Line, netns: &Path) -> Result<Value> {
    let options = read(line)?;
    let places = places(line, &options)?;
    let sandbox = Sandbox::open(netns)?;
    sandbox.netlink()?.set_loopback_up()?;
    let mut all = BTreeMap::new();
    for (at, place) in places.iter().enumerate() {
        match place.attach(&sandbox) {
            Ok(endpoint) => {
                all.insert(place.name.clone(), status(place, &endpoint));
            }
            Err(error) => {
                for made in places[..at].iter().rev() {
                    if let Err(second) = made.detach(Some(&sandbox)) {
                        eprintln!("netavark: failed to cleanup network {}: {second}", made.name);
                    }
                }
                return Err(error);
            }
        }
    }
    Ok(json!(all))
}

fn status(place: &Place, endpoint: &Endpoint) -> Status {
    let gateway = |address: &IpNet| {
        let subnets = place.network.subnets.iter().filter(|_| !place.network.internal);
        subnets.clone().find(|subnet| subnet.subnet.contains(&address.addr())).map(Subnet::gateway)
    };
    let subnets: Vec<_> =
        endpoint.addresses.iter().map(|address| json!({ "ipnet": address, "gateway": gateway(address) })).collect();
    let mac = endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let interface = json!({ "mac_address": mac, "subnets": subnets });
    Status {
        dns_search_domains: Vec::new(),
        dns_server_ips: Vec::new(),
        interfaces: BTreeMap::from([(place.attachment.interface.clone(), interface)]),
    }
}

/// Everything is tried, and all that failed is told.
fn teardown(line: &Line, netns: &Path) -> Result<Value> {
    let options = read(line)?;
    // A namespace that is gone has taken its interfaces along.
    let sandbox = Sandbox::open(netns).ok();
    let mut failed = Vec::new();
    for place in places(line, &options)? {
        if let Err(error) = place.detach(sandbox.as_ref()) {
            failed.push(format!("{}: {error}", place.name));
        }
    }
    if failed.is_empty() { Ok(Value::Null) } else { Err(failed.join("; ").into()) }
}
