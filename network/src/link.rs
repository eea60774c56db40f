//! The messages that make and change interfaces, addresses and routes.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoIpVlan, InfoKind, InfoMacVlan,
    InfoPortData, InfoPortKind, InfoVeth, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::mac::MacAddress;

/// An interface that is to be.
#[derive(Debug, Clone)]
pub(crate) struct New<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<MacAddress>,
    pub(crate) mtu: Option<u32>,
    /// The namespace that it is born in; without, the socket's.
    pub(crate) namespace: Option<BorrowedFd<'a>>,
    pub(crate) up: bool,
}

impl New<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            set_up(&mut message);
        }
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
        message.attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(self.namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        message
    }
}

fn set_up(message: &mut LinkMessage) {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
}

fn of_kind(mut message: LinkMessage, kind: InfoKind, data: InfoData) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]));
    RouteNetlinkMessage::NewLink(message)
}

/// A bridge that forwards at once: without the spanning tree protocol and its delay.
pub(crate) fn bridge(new: &New<'_>, vlan_filtering: bool) -> RouteNetlinkMessage {
    let mut data = vec![InfoBridge::ForwardDelay(0)];
    if vlan_filtering {
        data.push(InfoBridge::VlanFiltering(true));
    }
    of_kind(new.message(), InfoKind::Bridge, InfoData::Bridge(data))
}

/// The two ends of a veth, the second of which may be in another namespace.
pub(crate) fn veth(near: &New<'_>, far: &New<'_>) -> RouteNetlinkMessage {
    of_kind(near.message(), InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(far.message())))
}

/// A macvlan on the interface with the number `parent` of the socket's namespace.
pub(crate) fn macvlan(new: &New<'_>, parent: u32, mode: MacVlanMode) -> RouteNetlinkMessage {
    let mut message = new.message();
    message.attributes.push(LinkAttribute::Link(parent));
    of_kind(message, InfoKind::MacVlan, InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]))
}

/// An ipvlan in mode L2 on the interface with the number `parent` of the socket's namespace.
pub(crate) fn ipvlan(new: &New<'_>, parent: u32) -> RouteNetlinkMessage {
    let mut message = new.message();
    message.attributes.push(LinkAttribute::Link(parent));
    of_kind(message, InfoKind::IpVlan, InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L2)]))
}

/// Makes the interface of that name a port of a bridge, without IPv6 addresses of its own, and sets it up.
pub(crate) fn join(name: &str, bridge: u32, mtu: Option<u32>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    set_up(&mut message);
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]),
        LinkAttribute::Controller(bridge),
    ];
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    RouteNetlinkMessage::SetLink(message)
}

/// Sets a bridge's port up. It sends back where something came from (where `br_netfilter` is at work, a container that
/// reaches its own published port is answered by the bridge itself), and may be kept apart from other such ports (Linux 4.18).
pub(crate) fn port(name: &str, isolated: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    let options = vec![InfoBridgePort::HairpinMode(true), InfoBridgePort::Isolated(isolated)];
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]),
    ];
    RouteNetlinkMessage::NewLink(message)
}

/// Gives an interface no IPv6 address by itself.
pub(crate) fn without_link_local(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])];
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    set_up(&mut message);
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn delete(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// An address of an interface. An IPv6 one is usable at once: whoever gives addresses out knows that nobody has it, so
/// duplicate address detection (RFC 4862, one second) is left out.
pub(crate) fn address(index: u32, address: IpNet) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(four) if four.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(four.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    RouteNetlinkMessage::NewAddress(message)
}

/// The default route of the gateway's address family.
pub(crate) fn default_route(index: u32, gateway: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
