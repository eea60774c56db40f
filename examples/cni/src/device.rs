//! Interfaces: what they are like, and the messages that make and change them.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use estiba_network::cni::{Failure, Interface, code};
use estiba_network::{Batch, Error, Netlink};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, MacVlanMode, State,
};
use nix::errno::Errno;

use crate::config::mac_text;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags of the kernel's")]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    /// Whether it works: a cable is in, and a bridge lets it forward.
    pub(crate) works: bool,
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) kind: String,
    pub(crate) master: Option<u32>,
    /// A veth's other end, or what a macvlan lies on; both by their number in their own namespace.
    pub(crate) below: Option<u32>,
    pub(crate) promiscuous: bool,
    pub(crate) all_multicast: bool,
    pub(crate) queue: u32,
    pub(crate) alias: String,
}

impl Device {
    fn of(message: &LinkMessage) -> Self {
        let mut device = Self {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            works: false,
            mac: Vec::new(),
            mtu: 0,
            kind: String::new(),
            master: None,
            below: None,
            promiscuous: false,
            all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
            queue: 0,
            alias: String::new(),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => device.name.clone_from(name),
                LinkAttribute::Address(bytes) => device.mac.clone_from(bytes),
                LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
                LinkAttribute::Controller(index) => device.master = Some(*index),
                LinkAttribute::Link(index) => device.below = Some(*index),
                LinkAttribute::Promiscuity(count) => device.promiscuous = *count > 0,
                LinkAttribute::TxQueueLen(length) => device.queue = *length,
                LinkAttribute::IfAlias(alias) => device.alias.clone_from(alias),
                LinkAttribute::OperState(state) => device.works = *state == State::Up,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            device.kind = kind.to_string();
                        }
                    }
                }
                _ => {}
            }
        }
        device
    }

    /// The interface of that name.
    pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Self>, Failure> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Self::ask(netlink, &format!("look for the interface {name}"), message)
    }

    /// The interface of that number.
    pub(crate) fn numbered(netlink: &mut Netlink, index: u32) -> Result<Option<Self>, Failure> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        Self::ask(netlink, &format!("look for the interface {index}"), message)
    }

    /// The interface of that name, which must be there.
    pub(crate) fn get(netlink: &mut Netlink, name: &str) -> Result<Self, Failure> {
        Self::find(netlink, name)?.ok_or_else(|| Failure::internal(format!("failed to find interface {name:?}")))
    }

    /// All interfaces.
    pub(crate) fn all(netlink: &mut Netlink) -> Result<Vec<Self>, Failure> {
        let mut all = Vec::new();
        netlink.dump("list the interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()), |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                all.push(Self::of(&message));
            }
        })?;
        Ok(all)
    }

    fn ask(netlink: &mut Netlink, operation: &str, message: LinkMessage) -> Result<Option<Self>, Failure> {
        let mut found = None;
        let asked = netlink.ask(operation, RouteNetlinkMessage::GetLink(message), |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                found = Some(Self::of(&message));
            }
        });
        match asked {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(found),
        }
    }

    /// As it stands in a result.
    pub(crate) fn interface(&self, sandbox: &str) -> Interface {
        Interface {
            name: self.name.clone(),
            mac: mac_text(&self.mac),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        }
    }
}

/// The kernel's refusal.
pub(crate) fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::Refused { source, .. } => source.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

/// What a new interface is to be like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct New<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Option<[u8; 6]>,
    /// Zero for the usual.
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// The namespace that it is born in; without, the socket's.
    pub(crate) namespace: Option<BorrowedFd<'a>>,
}

impl<'a> New<'a> {
    pub(crate) fn named(name: &'a str) -> Self {
        Self { name, mac: None, mtu: 0, up: false, namespace: None }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            flags(&mut message, LinkFlags::Up, true);
        }
        message.attributes.push(LinkAttribute::IfName(self.name.to_owned()));
        message.attributes.extend(self.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        if self.mtu != 0 {
            message.attributes.push(LinkAttribute::Mtu(self.mtu));
        }
        message.attributes.extend(self.namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        message
    }
}

fn flags(message: &mut LinkMessage, flag: LinkFlags, on: bool) {
    message.header.change_mask |= flag;
    if on {
        message.header.flags |= flag;
    }
}

fn of_kind(mut message: LinkMessage, kind: InfoKind, data: Option<InfoData>) -> RouteNetlinkMessage {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    RouteNetlinkMessage::NewLink(message)
}

/// A bridge that forwards at once: without the spanning tree protocol and its delay.
pub(crate) fn bridge(new: &New<'_>) -> RouteNetlinkMessage {
    of_kind(new.message(), InfoKind::Bridge, Some(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])))
}

/// An interface that takes what others redirect to it.
pub(crate) fn ifb(new: &New<'_>) -> RouteNetlinkMessage {
    of_kind(new.message(), InfoKind::Ifb, None)
}

/// A macvlan on an interface of the socket's namespace.
pub(crate) fn macvlan(new: &New<'_>, parent: u32, mode: MacVlanMode, broadcast_queue: u32) -> RouteNetlinkMessage {
    let mut message = new.message();
    message.attributes.push(LinkAttribute::Link(parent));
    let mut data = vec![InfoMacVlan::Mode(mode)];
    if broadcast_queue != 0 {
        data.push(InfoMacVlan::BcQueueLen(broadcast_queue));
    }
    of_kind(message, InfoKind::MacVlan, Some(InfoData::MacVlan(data)))
}

/// Makes a cable: `far` in its namespace, and an end on the host with a name of its own; in a bridge it is up at once.
pub(crate) fn cable(netlink: &mut Netlink, far: &New<'_>, mtu: u32, master: Option<u32>) -> Result<Device, Failure> {
    for _ in 0..16 {
        let name = unique_name()?;
        let mut near = New { mtu, up: master.is_some(), ..New::named(&name) }.message();
        near.attributes.extend(master.map(LinkAttribute::Controller));
        let message = of_kind(near, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(far.message()))));
        let mut batch = Batch::new();
        batch.create(format!("make the interface {} with its other end {name}", far.name), message);
        match netlink.commit(&batch) {
            Ok(()) => return Device::get(netlink, &name),
            // The name on the host is somebody's, or the one in the container: only the first can be helped.
            Err(error) if errno(&error) == Some(Errno::EEXIST) && Device::find(netlink, &name)?.is_some() => {}
            Err(error) if errno(&error) == Some(Errno::EEXIST) => {
                return Err(Failure::internal(format!("the interface {:?} is in the container already", far.name)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::new(code::TRY_AGAIN, "failed to find a unique veth name"))
}

/// The reference plugins' form, which other tools know.
pub(crate) fn unique_name() -> Result<String, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| Failure::io("failed to generate a random interface name", &error))?;
    Ok(format!("veth{:08x}", u32::from_ne_bytes(bytes)))
}

/// A change of an interface.
pub(crate) fn change(index: u32, attributes: Vec<LinkAttribute>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    RouteNetlinkMessage::SetLink(message)
}

/// A change of an interface's flag.
pub(crate) fn set_flag(index: u32, flag: LinkFlags, on: bool) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    flags(&mut message, flag, on);
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn up(index: u32) -> RouteNetlinkMessage {
    set_flag(index, LinkFlags::Up, true)
}

/// What a bridge does at one of its ports.
pub(crate) fn port(index: u32, settings: Vec<InfoBridgePort>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let data = LinkInfo::PortData(InfoPortData::BridgePort(settings));
    message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), data])];
    RouteNetlinkMessage::NewLink(message)
}

pub(crate) fn delete(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// Removes the interface of that name, if there is one.
pub(crate) fn remove(netlink: &mut Netlink, name: &str) -> Result<(), Failure> {
    let Some(device) = Device::find(netlink, name)? else { return Ok(()) };
    let mut batch = Batch::new();
    batch.remove(format!("remove the interface {name}"), delete(device.index));
    Ok(netlink.commit(&batch)?)
}

/// Waits until an interface works.
pub(crate) fn wait_until_it_works(netlink: &mut Netlink, name: &str) -> Result<Device, Failure> {
    for pause in [0, 1, 5, 20, 50, 100, 500, 1000, 1000] {
        thread::sleep(Duration::from_millis(pause));
        let device = Device::get(netlink, name)?;
        if device.works {
            return Ok(device);
        }
    }
    Err(Failure::internal(format!("the interface {name} does not come up")))
}
