//! Addresses and routes of an interface in a container: given, and looked at again.

use std::net::IpAddr;

use estiba_network::cni::{Failure, IpConfig, Route, Success};
use estiba_network::ipnet::{IpNet, Ipv4Net, Ipv6Net};
use estiba_network::{Batch, Netlink, Sandbox};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::device::{self, Device};
use crate::sysctl;

/// What is asked of an interface besides its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detection {
    /// IPv6 addresses are usable at once: their keeper knows that nobody else has them.
    Off,
    /// Duplicate address detection (RFC 4862) takes its second.
    On,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The whole of a family.
pub(crate) fn any(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
    }
}

/// An address of an interface.
pub(crate) fn address(index: u32, address: IpNet, detection: Detection) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(four) if four.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(four.broadcast()));
        }
        IpNet::V6(_) if detection == Detection::Off => {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        _ => {}
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// A route through an interface.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) scope: u8,
}

impl Way {
    pub(crate) fn message(self, index: u32) -> RouteMessage {
        let mut message = RouteMessage::default();
        let to = self.to.trunc();
        message.header.address_family = family(to.addr());
        message.header.destination_prefix_length = to.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::from(self.scope);
        message.header.kind = RouteType::Unicast;
        if to.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(to.addr().into()));
        }
        message.attributes.extend(self.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
        message.attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        message.attributes.push(RouteAttribute::Oif(index));
        message
    }
}

fn route(index: u32, route: &Route, gateway: Option<IpAddr>) -> RouteNetlinkMessage {
    let way = Way { to: route.dst, gateway, source: None, scope: route.scope.unwrap_or(0) };
    let mut message = way.message(index);
    if let Some(table) = route.table {
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes.push(RouteAttribute::Table(table));
    }
    if route.priority != 0 {
        message.attributes.push(RouteAttribute::Priority(route.priority));
    }
    let mut metrics = Vec::new();
    if route.mtu != 0 {
        metrics.push(RouteMetric::Mtu(route.mtu));
    }
    if route.advmss != 0 {
        metrics.push(RouteMetric::Advmss(route.advmss));
    }
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    RouteNetlinkMessage::NewRoute(message)
}

/// Gives an interface in a container its addresses and routes, and sets it up. Whoever has made the interface removes it if this
/// fails.
pub(crate) fn configure(sandbox: &Sandbox, name: &str, success: &Success, detection: Detection) -> Result<(), Failure> {
    for ip in &success.ips {
        let on = ip.interface.and_then(|index| success.interfaces.get(index));
        if on.is_some_and(|interface| interface.name != name) {
            let message = format!("failed to add IP addr {} to {name:?}: invalid interface index", ip.address);
            return Err(Failure::internal(message));
        }
    }
    let six = success.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    sandbox.run(|| -> Result<(), Failure> {
        prepare(name, six, detection)?;
        let mut netlink = Netlink::open()?;
        let device = Device::get(&mut netlink, name)?;
        let mut batch = Batch::new();
        for ip in &success.ips {
            let operation = format!("give the interface {name} the address {}", ip.address);
            batch.create(operation, address(device.index, ip.address, detection));
        }
        batch.change(format!("set the interface {name} up"), device::up(device.index));
        netlink.commit(&batch)?;
        let mut batch = Batch::new();
        for entry in &success.routes {
            let same = |ip: &&IpConfig| ip.address.addr().is_ipv4() == entry.dst.addr().is_ipv4();
            let gateway = entry.gw.or_else(|| success.ips.iter().filter(same).find_map(|ip| ip.gateway));
            let via = gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
            batch.create(format!("add the route {}{via} dev {name}", entry.dst), route(device.index, entry, gateway));
        }
        Ok(netlink.commit(&batch)?)
    })?
}

/// What the kernel is to do with the addresses.
fn prepare(name: &str, six: bool, detection: Detection) -> Result<(), Failure> {
    sysctl::set_if_there(&format!("net/ipv4/conf/{name}/arp_notify"), "1");
    if !six {
        return Ok(());
    }
    for interface in ["lo", name] {
        let setting = format!("net/ipv6/conf/{interface}/disable_ipv6");
        sysctl::set(&setting, "0")
            .map_err(|error| Failure::io(format!("failed to enable IPv6 for {interface}"), &error))?;
    }
    // The addresses outlast the interface's being set down.
    sysctl::set_if_there(&format!("net/ipv6/conf/{name}/keep_addr_on_down"), "1");
    let value = if detection == Detection::On { "1" } else { "0" };
    sysctl::set_if_there(&format!("net/ipv6/conf/{name}/accept_dad"), value);
    Ok(())
}

/// The addresses of an interface.
pub(crate) fn addresses(netlink: &mut Netlink, index: u32) -> Result<Vec<IpNet>, Failure> {
    let mut found = Vec::new();
    let mut message = AddressMessage::default();
    message.header.index = index;
    netlink.dump("list the addresses", RouteNetlinkMessage::GetAddress(message), |answer| {
        let RouteNetlinkMessage::NewAddress(message) = answer else { return };
        if message.header.index != index {
            return;
        }
        let mut own = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => own = Some(*address),
                AddressAttribute::Address(address) => own = own.or(Some(*address)),
                _ => {}
            }
        }
        found.extend(own.and_then(|address| IpNet::new(address, message.header.prefix_len).ok()));
    })?;
    Ok(found)
}

/// A route that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) to: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) interface: Option<u32>,
}

/// All unicast routes of the namespace.
pub(crate) fn routes(netlink: &mut Netlink) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    netlink.dump("list the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()), |answer| {
        let RouteNetlinkMessage::NewRoute(message) = answer else { return };
        if message.header.kind != RouteType::Unicast {
            return;
        }
        let mut to = match message.header.address_family {
            AddressFamily::Inet => any(IpAddr::from([0; 4])),
            AddressFamily::Inet6 => any(IpAddr::from([0; 16])),
            _ => return,
        };
        let (mut gateway, mut interface) = (None, None);
        let plain = |address: &RouteAddress| match address {
            RouteAddress::Inet(four) => Some(IpAddr::from(*four)),
            RouteAddress::Inet6(six) => Some(IpAddr::from(*six)),
            _ => None,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    let prefix = message.header.destination_prefix_length;
                    to = plain(address).and_then(|address| IpNet::new(address, prefix).ok()).unwrap_or(to);
                }
                RouteAttribute::Gateway(address) => gateway = plain(address),
                RouteAttribute::Oif(index) => interface = Some(*index),
                _ => {}
            }
        }
        found.push(Found { to, gateway, interface });
    })?;
    Ok(found)
}

/// That an interface in a container has the addresses of a result, and the container its routes. More is fine: plugins that came
/// later may have added some.
pub(crate) fn verify(sandbox: &Sandbox, name: &str, success: &Success) -> Result<Device, Failure> {
    sandbox.run(|| -> Result<Device, Failure> {
        let mut netlink = Netlink::open()?;
        let device = Device::get(&mut netlink, name)?;
        let there = addresses(&mut netlink, device.index)?;
        for ip in &success.ips {
            let on = ip.interface.and_then(|index| success.interfaces.get(index));
            if on.is_none_or(|interface| interface.name == name && !interface.sandbox.is_empty())
                && !there.contains(&ip.address)
            {
                return Err(Failure::internal(format!("failed to find address {} on interface {name}", ip.address)));
            }
        }
        let there = routes(&mut netlink)?;
        for route in &success.routes {
            let same =
                |found: &&Found| found.to == route.dst.trunc() && (route.gw.is_none() || found.gateway == route.gw);
            if !there.iter().any(|found| same(&found)) {
                return Err(Failure::internal(format!("failed to find route to {}", route.dst)));
            }
        }
        Ok(device)
    })?
}

/// The interface of a result that is this request's in the container, by name and namespace; compared with what is there.
pub(crate) fn verify_own(
    sandbox: &Sandbox,
    request: &estiba_network::cni::plugin::Request,
    kinds: &[&str],
) -> Result<Device, Failure> {
    let success = request.previous()?;
    let netns = request.netns.to_string_lossy();
    let listed = success
        .interfaces
        .iter()
        .find(|interface| interface.name == request.interface && interface.sandbox == netns)
        .ok_or_else(|| Failure::config(format!("prevResult has no interface {} in {netns}", request.interface)))?;
    let device = verify(sandbox, &request.interface, success)?;
    if !kinds.is_empty() && !kinds.contains(&device.kind.as_str()) {
        let message = format!("container interface {} is of type {:?}, not {}", device.name, device.kind, kinds[0]);
        return Err(Failure::internal(message));
    }
    if !listed.mac.is_empty() && !listed.mac.eq_ignore_ascii_case(&crate::config::mac_text(&device.mac)) {
        let message = format!(
            "interface {} has the hardware address {}, not {}",
            device.name,
            crate::config::mac_text(&device.mac),
            listed.mac
        );
        return Err(Failure::internal(message));
    }
    Ok(device)
}

/// Lets the host route between interfaces, for the families of the addresses.
pub(crate) fn enable_forwarding(ips: &[IpConfig]) -> Result<(), Failure> {
    for (is_four, setting) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        if ips.iter().any(|ip| ip.address.addr().is_ipv4() == is_four) {
            sysctl::set(setting, "1")
                .map_err(|error| Failure::io(format!("failed to enable forwarding ({setting})"), &error))?;
        }
    }
    Ok(())
}

/// The first address of a network, after its own.
pub(crate) fn first(network: IpNet) -> IpAddr {
    match network.network() {
        IpAddr::V4(four) => IpAddr::V4(four.to_bits().wrapping_add(1).into()),
        IpAddr::V6(six) => IpAddr::V6(six.to_bits().wrapping_add(1).into()),
    }
}
