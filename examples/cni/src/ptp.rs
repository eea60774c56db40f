//! `ptp`: a cable between the host and the container, with the host as the gateway.

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Command, Failure, IpConfig, Success};
use estiba_network::ipnet::IpNet;
use estiba_network::{Batch, Netlink, Sandbox};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteScope;
use serde::Deserialize;

use crate::address::{self, Detection, Way};
use crate::config::Common;
use crate::device::{self, Device, New};
use crate::firewall::{self, Asker, Held};
use crate::record::Key;
use crate::{about, namespace, sysctl};

#[derive(Debug)]
pub(crate) struct Ptp;

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    common: Common,
    #[serde(default, rename = "ipMasq")]
    masquerade: bool,
    #[serde(default)]
    mtu: u32,
}

/// `RT_SCOPE_LINK` and `RT_SCOPE_HOST` of rtnetlink(7).
const LINK: u8 = 253;
const HOST: u8 = 254;

impl Plugin for Ptp {
    fn about(&self) -> String {
        about("ptp")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let config: Config = request.config()?;
        let sandbox = namespace::open(&request.netns)?;
        let Some(mut success) = config.common.reserve(request)? else {
            return Err(Failure::config("ptp needs an IPAM plugin: ipam.type is missing"));
        };
        let made = connect(request, &config, &sandbox, &mut success);
        if made.is_err() {
            let _ = sandbox.netlink().map(|mut netlink| device::remove(&mut netlink, &request.interface));
            let _ = config.common.delegate(request, Command::Del);
        }
        made?;
        config.common.resolve(&mut success);
        Ok(success)
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        // The addresses go last: while they are somebody's, nobody else gets them.
        if let Some(sandbox) = namespace::find(&request.netns)? {
            device::remove(&mut sandbox.netlink()?, &request.interface)?;
        }
        firewall::release(Asker::Maker, &Key::of(request))?;
        config.common.delegate(request, Command::Del)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        let sandbox = namespace::open(&request.netns)?;
        config.common.delegate(request, Command::Check)?;
        address::verify_own(&sandbox, request, &["veth"]).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        firewall::collect(Asker::Maker, request)?;
        config.common.delegate(request, Command::Gc)
    }

    fn status(&self, request: &Request) -> Result<(), Failure> {
        request.config::<Config>()?.common.delegate(request, Command::Status)
    }
}

fn connect(request: &Request, config: &Config, sandbox: &Sandbox, success: &mut Success) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    for ip in &success.ips {
        if ip.gateway.is_none() {
            return Err(Failure::config(format!("the address {} has no gateway: ptp needs one", ip.address)));
        }
    }
    address::enable_forwarding(&success.ips)?;
    let mut host = Netlink::open()?;
    let far = New { mtu: config.mtu, namespace: Some(sandbox.as_fd()), ..New::named(&request.interface) };
    let near = device::cable(&mut host, &far, config.mtu, None)?;
    // Nobody else is on the cable: its addresses are good at once.
    for setting in ["accept_ra", "accept_dad"] {
        sysctl::set_if_there(&format!("net/ipv6/conf/{}/{setting}", near.name), "0");
    }
    let mut batch = Batch::new();
    batch.change(format!("set the interface {} up", near.name), device::up(near.index));
    host.commit(&batch)?;
    let inside = Device::get(&mut sandbox.netlink()?, &request.interface)?;
    success.interfaces = vec![near.interface(""), inside.interface(&request.netns.to_string_lossy())];
    for ip in &mut success.ips {
        ip.interface = Some(1);
    }
    address::configure(sandbox, &request.interface, success, Detection::Off)?;
    point(sandbox, inside.index, &success.ips)?;
    let mut batch = Batch::new();
    for ip in &success.ips {
        let gateway = ip.gateway.unwrap_or(ip.address.addr());
        let operation = format!("give the interface {} the address {gateway}", near.name);
        batch.ensure(operation, address::address(near.index, IpNet::from(gateway), Detection::Off));
        let to = IpNet::from(ip.address.addr());
        let way = Way { to, gateway: None, source: None, scope: HOST };
        let message = RouteNetlinkMessage::NewRoute(way.message(near.index));
        batch.ensure(format!("add the route to {to} through {}", near.name), message);
    }
    host.commit(&batch)?;
    if config.masquerade {
        let subnets = success.ips.iter().map(|ip| IpNet::from(ip.address.addr())).collect();
        let held = Held { interface: near.name.clone(), subnets, masquerade: true, ..Held::default() };
        firewall::hold(Asker::Maker, &Key::of(request), &held)?;
    }
    Ok(())
}

/// A cable has no IFF_POINTOPOINT: the addresses' networks are reached through the gateway, and only that directly.
fn point(sandbox: &Sandbox, index: u32, ips: &[IpConfig]) -> Result<(), Failure> {
    let mut batch = Batch::new();
    for ip in ips {
        let Some(gateway) = ip.gateway else { continue };
        let (network, source) = (ip.address.trunc(), Some(ip.address.addr()));
        let mut direct = Way { to: network, gateway: None, source: None, scope: 0 }.message(index);
        direct.header.scope = RouteScope::NoWhere;
        direct.header.protocol = netlink_packet_route::route::RouteProtocol::Unspec;
        batch.remove(format!("remove the route to {network}"), RouteNetlinkMessage::DelRoute(direct));
        for way in [
            Way { to: IpNet::from(gateway), gateway: None, source, scope: LINK },
            Way { to: network, gateway: Some(gateway), source, scope: 0 },
        ] {
            let message = RouteNetlinkMessage::NewRoute(way.message(index));
            batch.create(format!("add the route to {}", way.to), message);
        }
    }
    Ok(sandbox.netlink()?.commit(&batch)?)
}
