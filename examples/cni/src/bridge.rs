//! `bridge`: a switch on the host, and a cable from it to the container.

use std::net::IpAddr;
use std::os::fd::AsFd;

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Command, Failure, Route, Success};
use estiba_network::ipnet::IpNet;
use estiba_network::{Batch, Netlink, Sandbox};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoBridgePort, LinkAttribute, LinkFlags};
use serde::Deserialize;

use crate::address::{self, Detection};
use crate::config::{self, Common};
use crate::device::{self, Device, New};
use crate::firewall::{self, Asker, Held};
use crate::record::Key;
use crate::{about, namespace, sysctl};

#[derive(Debug)]
pub(crate) struct Bridge;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "they are the reference plugin's configuration")]
struct Config {
    #[serde(flatten)]
    common: Common,
    #[serde(default = "usual", rename = "bridge")]
    name: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    force_address: bool,
    #[serde(default, rename = "ipMasq")]
    masquerade: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    hairpin_mode: bool,
    #[serde(default)]
    promisc_mode: bool,
    #[serde(default)]
    port_isolation: bool,
    #[serde(default)]
    disable_container_interface: bool,
    #[serde(default, rename = "enabledad")]
    detect: bool,
    #[serde(skip)]
    mac: Option<[u8; 6]>,
}

fn usual() -> String {
    "cni0".to_owned()
}

fn load(request: &Request) -> Result<Config, Failure> {
    for field in ["vlan", "vlanTrunk", "macspoofchk"] {
        config::unsupported(request, field)?;
    }
    let mut config: Config = request.config()?;
    if config.name.is_empty() {
        config.name = usual();
    }
    estiba_network::cni::check_interface_name(&config.name)
        .map_err(|failure| Failure::config(format!("bridge: {}", failure.msg)).details(failure.details))?;
    if config.common.ipam().is_some() && config.disable_container_interface {
        return Err(Failure::config("cannot use IPAM when DisableContainerInterface flag is set"));
    }
    if config.hairpin_mode && config.promisc_mode {
        return Err(Failure::config("cannot set hairpin mode and promiscuous mode at the same time"));
    }
    config.is_gateway |= config.is_default_gateway;
    config.mac = config::wanted_mac(request, "")?;
    Ok(config)
}

impl Plugin for Bridge {
    fn about(&self) -> String {
        about("bridge")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let config = load(request)?;
        let sandbox = namespace::open(&request.netns)?;
        let mut host = Netlink::open()?;
        let bridge = ensure(&mut host, &config)?;
        let far = New {
            mac: config.mac,
            mtu: config.mtu,
            namespace: Some(sandbox.as_fd()),
            ..New::named(&request.interface)
        };
        let near = device::cable(&mut host, &far, config.mtu, Some(bridge.index))?;
        let connected = connect(request, &config, &sandbox, &mut host, &bridge, &near);
        if connected.is_err() {
            let _ = device::remove(&mut host, &near.name);
        }
        connected
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        if let Some(sandbox) = namespace::find(&request.netns)? {
            device::remove(&mut sandbox.netlink()?, &request.interface)?;
        }
        firewall::release(Asker::Maker, &Key::of(request))?;
        // The addresses go last: while they are somebody's, nobody else gets them.
        config.common.delegate(request, Command::Del)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let config = load(request)?;
        let sandbox = namespace::open(&request.netns)?;
        config.common.delegate(request, Command::Check)?;
        let success = request.previous()?;
        let own = address::verify_own(&sandbox, request, &["veth"])?;
        let mut host = Netlink::open()?;
        let bridge = Device::get(&mut host, &config.name)?;
        let wrong = |what: String| Err(Failure::internal(what));
        if bridge.kind != "bridge" {
            return wrong(format!("interface {} does not have link type of bridge", config.name));
        }
        let listed =
            success.interfaces.iter().find(|interface| interface.name == config.name && interface.sandbox.is_empty());
        let Some(listed) = listed else { return wrong(format!("prevResult has no bridge {}", config.name)) };
        if !listed.mac.is_empty() && listed.mac != config::mac_text(&bridge.mac) {
            return wrong(format!("bridge interface {} MAC doesn't match: {}", config.name, listed.mac));
        }
        if bridge.promiscuous != config.promisc_mode {
            return wrong(format!("bridge interface {} promisc mode is {}", config.name, bridge.promiscuous));
        }
        let near = match own.below {
            Some(index) => Device::numbered(&mut host, index)?,
            None => None,
        };
        match near {
            Some(near) if near.master == Some(bridge.index) => Ok(()),
            _ => wrong(format!("the host's end of {} is no port of the bridge {}", request.interface, config.name)),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        firewall::collect(Asker::Maker, request)?;
        config.common.delegate(request, Command::Gc)
    }

    fn status(&self, request: &Request) -> Result<(), Failure> {
        load(request)?.common.delegate(request, Command::Status)
    }
}

/// The bridge, made if it is not there.
fn ensure(host: &mut Netlink, config: &Config) -> Result<Device, Failure> {
    if Device::find(host, &config.name)?.is_none() {
        // A fixed address: otherwise it is that of one of the ports, and changes when that one goes.
        let mut mac = [0; 6];
        getrandom::fill(&mut mac).map_err(|error| Failure::io("failed to generate a hardware address", &error))?;
        mac[0] = mac[0] & 0xfe | 0x02;
        let mut batch = Batch::new();
        let new = New { mac: Some(mac), mtu: config.mtu, ..New::named(&config.name) };
        batch.ensure(format!("make the bridge {}", config.name), device::bridge(&new));
        host.commit(&batch)?;
        sysctl::set_if_there(&format!("net/ipv6/conf/{}/accept_ra", config.name), "0");
        // Neighbours are asked for from its link-local address: without, for two seconds nobody is found.
        let value = if config.detect { "1" } else { "0" };
        sysctl::set_if_there(&format!("net/ipv6/conf/{}/accept_dad", config.name), value);
    }
    let bridge = Device::get(host, &config.name)?;
    if bridge.kind != "bridge" {
        return Err(Failure::config(format!("{:?} already exists but is not a bridge", config.name)));
    }
    let mut batch = Batch::new();
    if config.promisc_mode && !bridge.promiscuous {
        let operation = format!("set the bridge {} promiscuous", config.name);
        batch.change(operation, device::set_flag(bridge.index, LinkFlags::Promisc, true));
    }
    if !bridge.up {
        batch.change(format!("set the bridge {} up", config.name), device::up(bridge.index));
    }
    host.commit(&batch)?;
    Ok(bridge)
}

fn connect(
    request: &Request,
    config: &Config,
    sandbox: &Sandbox,
    host: &mut Netlink,
    bridge: &Device,
    near: &Device,
) -> Result<Success, Failure> {
    sysctl::set_if_there(&format!("net/ipv6/conf/{}/accept_ra", near.name), "0");
    if config.hairpin_mode || config.port_isolation {
        let settings =
            vec![InfoBridgePort::HairpinMode(config.hairpin_mode), InfoBridgePort::Isolated(config.port_isolation)];
        let mut batch = Batch::new();
        batch.change(format!("set up the port {}", near.name), device::port(near.index, settings));
        host.commit(&batch)?;
    }
    let mut inside = sandbox.netlink()?;
    let own = Device::get(&mut inside, &request.interface)?;
    let sandboxed = own.interface(&request.netns.to_string_lossy());
    let mut success = Success::default();
    if let Some(reserved) = config.common.reserve(request)? {
        success = Success { interfaces: Vec::new(), ..reserved };
    }
    success.interfaces = vec![bridge.interface(""), near.interface(""), sandboxed];
    let addressed = give(request, config, sandbox, host, bridge, &mut success);
    if addressed.is_err() {
        let _ = firewall::release(Asker::Maker, &Key::of(request));
        let _ = config.common.delegate(request, Command::Del);
    }
    addressed?;
    config.common.resolve(&mut success);
    Ok(success)
}

/// Gives the interface inside its addresses, if there are any, and the bridge the gateways'.
fn give(
    request: &Request,
    config: &Config,
    sandbox: &Sandbox,
    host: &mut Netlink,
    bridge: &Device,
    success: &mut Success,
) -> Result<(), Failure> {
    if config.disable_container_interface {
        return Ok(());
    }
    for at in 0..success.ips.len() {
        let ip = &mut success.ips[at];
        ip.interface = Some(2);
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = Some(address::first(ip.address));
        }
        let (any, gateway) = (address::any(ip.address.addr()), ip.gateway);
        // One without a gateway gets this one.
        let has_default = success.routes.iter().any(|route| route.dst == any);
        if config.is_default_gateway && !has_default {
            success.routes.push(Route::new(any, gateway));
        }
    }
    let detection = if config.detect { Detection::On } else { Detection::Off };
    address::configure(sandbox, &request.interface, success, detection)?;
    if config.is_gateway {
        for ip in &success.ips {
            let gateway = ip.gateway.unwrap_or(ip.address.addr());
            be_gateway(host, config, bridge, gateway, ip.address.prefix_len())?;
        }
        address::enable_forwarding(&success.ips)?;
    }
    if config.masquerade && !success.ips.is_empty() {
        let subnets = firewall::subnets(&success.ips);
        let held = Held { interface: config.name.clone(), subnets, masquerade: true, ..Held::default() };
        firewall::hold(Asker::Maker, &Key::of(request), &held)?;
    }
    device::wait_until_it_works(host, &success.interfaces[1].name).map(drop)
}

/// Gives the bridge a gateway's address. It has one of IPv4, and those of IPv6 that do not overlap.
fn be_gateway(
    host: &mut Netlink,
    config: &Config,
    bridge: &Device,
    gateway: IpAddr,
    prefix: u8,
) -> Result<(), Failure> {
    let wanted = IpNet::new(gateway, prefix).map_err(|error| Failure::io("wrong gateway", &error))?;
    let there = address::addresses(host, bridge.index)?;
    if there.contains(&wanted) {
        return Ok(());
    }
    let mut batch = Batch::new();
    for other in there.iter().filter(|other| other.addr().is_ipv4() == gateway.is_ipv4()) {
        if gateway.is_ipv4() || other.contains(&wanted.addr()) || wanted.contains(&other.addr()) {
            if !config.force_address {
                let message = format!("{:?} already has an IP address different from {wanted}", config.name);
                return Err(Failure::config(message));
            }
            let RouteNetlinkMessage::NewAddress(message) = address::address(bridge.index, *other, Detection::Off)
            else {
                continue;
            };
            let message: AddressMessage = message;
            batch.remove(format!("take {other} from {}", config.name), RouteNetlinkMessage::DelAddress(message));
        }
    }
    let operation = format!("give the bridge {} the address {wanted}", config.name);
    batch.ensure(operation, address::address(bridge.index, wanted, Detection::Off));
    // Its own address, once it is set, is no port's any more.
    let fixed = vec![LinkAttribute::Address(bridge.mac.clone())];
    batch.change(format!("keep the hardware address of {}", config.name), device::change(bridge.index, fixed));
    Ok(host.commit(&batch)?)
}
