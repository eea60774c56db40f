//! A blocking route socket: [rtnetlink(7)](https://man7.org/linux/man-pages/man7/rtnetlink.7.html).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use std::{iter, thread};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, State};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::endpoint::Interface;
use crate::error::{Error, Result};
use crate::link;

/// The loopback interface is the first one of every namespace.
pub(crate) const LOOPBACK_INDEX: u32 = 1;

/// The kernel's answers to a dump come in pieces of this size when the reader has room for it.
const BUFFER: usize = 32 * 1024;

/// A route socket. It works on the namespace that it was opened in, whichever thread uses it.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What an interface is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
    /// Whether packets go through: it is up, and what it leads to is.
    pub running: bool,
    /// The interface that it is a port of.
    pub master: Option<u32>,
    /// Its kind (`bridge`, `veth` …); hardware has none.
    pub kind: Option<String>,
    /// Its hardware address.
    pub address: Vec<u8>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// The number of the other end of a veth, in the other namespace.
    pub peer: Option<u32>,
}

/// Changes that go to the kernel in one write. It makes them in their order, and each that it refuses alone is left out:
/// the others are made all the same.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    operation: String,
    excused: &'static [Errno],
}

impl Batch {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds something that must not be there yet. `operation` is for the error: "make the bridge br0".
    pub fn create(&mut self, operation: impl Into<String>, message: RouteNetlinkMessage) -> &mut Self {
        self.push(operation.into(), message, NLM_F_CREATE | NLM_F_EXCL, &[])
    }

    /// Adds something that may be there already.
    pub fn ensure(&mut self, operation: impl Into<String>, message: RouteNetlinkMessage) -> &mut Self {
        self.push(operation.into(), message, NLM_F_CREATE | NLM_F_EXCL, &[Errno::EEXIST])
    }

    /// Adds something, or puts it in the place of what is there.
    pub fn replace(&mut self, operation: impl Into<String>, message: RouteNetlinkMessage) -> &mut Self {
        self.push(operation.into(), message, NLM_F_CREATE | NLM_F_REPLACE, &[])
    }

    /// Changes something.
    pub fn change(&mut self, operation: impl Into<String>, message: RouteNetlinkMessage) -> &mut Self {
        self.push(operation.into(), message, 0, &[])
    }

    /// Removes something that may be gone already.
    pub fn remove(&mut self, operation: impl Into<String>, message: RouteNetlinkMessage) -> &mut Self {
        self.push(operation.into(), message, 0, &[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL])
    }

    fn push(
        &mut self,
        operation: String,
        message: RouteNetlinkMessage,
        flags: u16,
        excused: &'static [Errno],
    ) -> &mut Self {
        self.steps.push(Step { operation, excused });
        // The sequence numbers are set when the socket is known: here they count from zero.
        write(&mut self.bytes, message, NLM_F_REQUEST | NLM_F_ACK | flags, self.steps.len() as u32 - 1);
        self
    }
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = open(SockProtocol::NetlinkRoute)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Sets the loopback interface up; the kernel gives it 127.0.0.1/8 and `::1/128` by itself. Needs `CAP_NET_ADMIN`.
    pub fn set_loopback_up(&mut self) -> Result<()> {
        let mut batch = Batch::new();
        batch.change("set the interface lo up", link::up(LOOPBACK_INDEX));
        self.commit(&batch)
    }

    /// The namespace's interfaces, in the order of their indices.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>> {
        let interface = |link: Link| Interface { index: link.index, name: link.name, up: link.up };
        Ok(self.links()?.into_iter().map(interface).collect())
    }

    /// The namespace's interfaces in more detail, in the order of their indices.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump("list the interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()), |answer| {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                links.push(describe(&message));
            }
        })?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The interface of that name, if there is one.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        let asked =
            self.ask(&format!("look for the interface {name}"), RouteNetlinkMessage::GetLink(message), |answer| {
                if let RouteNetlinkMessage::NewLink(message) = answer {
                    found = Some(describe(&message));
                }
            });
        match asked {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    /// The destinations that the namespace has routes to, except default routes.
    pub fn routes(&mut self) -> Result<Vec<IpNet>> {
        use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
        let mut routes = Vec::new();
        self.dump("list the routes", RouteNetlinkMessage::GetRoute(RouteMessage::default()), |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return };
            routes.extend(route.attributes.iter().find_map(|attribute| {
                let address = match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => IpAddr::from(*address),
                    RouteAttribute::Destination(RouteAddress::Inet6(address)) => IpAddr::from(*address),
                    _ => return None,
                };
                IpNet::new(address, route.header.destination_prefix_length).ok()
            }));
        })?;
        Ok(routes)
    }

    /// Waits until an interface carries packets. The kernel's `linkwatch` gets to it a moment after the other end is up, and
    /// what is sent before is lost: the second that TCP takes to try again. Since Linux 6.8 the question alone makes it so.
    pub(crate) fn settle(&mut self, name: &str) -> Result<()> {
        for wait in iter::once(0).chain(iter::repeat_n(1, 50)) {
            thread::sleep(Duration::from_millis(wait));
            if self.link(name)?.is_none_or(|link| link.running) {
                break;
            }
        }
        Ok(())
    }

    /// Sends a batch and waits until all of it was worked at. Needs `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// The first refusal, [`Error::Refused`], that the batch does not excuse.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        if batch.steps.is_empty() {
            return Ok(());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = batch.bytes.clone();
        let mut at = 0;
        while let Some(message) = bytes.get_mut(at..).filter(|rest| rest.len() >= 16) {
            let length = u32::from_ne_bytes([message[0], message[1], message[2], message[3]]) as usize;
            let count = u32::from_ne_bytes([message[8], message[9], message[10], message[11]]);
            message[8..12].copy_from_slice(&first.wrapping_add(count).to_ne_bytes());
            at += length.next_multiple_of(4);
        }
        self.sequence = self.sequence.wrapping_add(batch.steps.len() as u32);
        self.write(&bytes)?;
        let mut waiting = batch.steps.len();
        let mut refusal: Option<Error> = None;
        while waiting > 0 {
            self.read(|header, payload| {
                let step = header.sequence_number.wrapping_sub(first) as usize;
                let (Some(step), NetlinkPayload::Error(error)) = (batch.steps.get(step), payload) else {
                    return Ok(());
                };
                waiting -= 1;
                if let Some(code) = error.code {
                    let errno = code.get().saturating_abs();
                    if refusal.is_none() && !step.excused.iter().any(|excused| *excused as i32 == errno) {
                        let source = io::Error::from_raw_os_error(errno);
                        refusal = Some(Error::Refused { operation: step.operation.clone(), source });
                    }
                }
                Ok(())
            })?;
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Asks for all of a kind, and hands over each.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the kernel does not tell.
    pub fn dump(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<()> {
        self.request(operation, message, NLM_F_REQUEST | NLM_F_DUMP, each)
    }

    /// Asks for one, and hands it over.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if there is none, or the kernel does not tell.
    pub fn ask(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<()> {
        self.request(operation, message, NLM_F_REQUEST | NLM_F_ACK, each)
    }

    /// Sends one request, and reads answers until the kernel says that it has ended.
    fn request(
        &mut self,
        operation: &str,
        message: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        write(&mut bytes, message, flags, sequence);
        self.write(&bytes)?;
        let mut ended = false;
        while !ended {
            self.read(|header, payload| {
                if header.sequence_number != sequence {
                    return Ok(());
                }
                match payload {
                    NetlinkPayload::Done(_) => ended = true,
                    NetlinkPayload::Error(error) => match error.code {
                        None => ended = true,
                        Some(code) => {
                            let source = io::Error::from_raw_os_error(code.get().saturating_abs());
                            return Err(Error::Refused { operation: operation.to_owned(), source });
                        }
                    },
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::empty())
            .map_err(|errno| Error::Socket { operation: "write to", source: errno.into() })?;
        Ok(())
    }

    /// Reads one datagram of answers.
    fn read(
        &mut self,
        mut each: impl FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>) -> Result<()>,
    ) -> Result<()> {
        let length = loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => break length,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Socket { operation: "read from", source: errno.into() }),
            }
        };
        let mut rest = self.buffer.get(..length).ok_or(Error::Answer { reason: "it is longer than any is" })?;
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|_| Error::Answer { reason: "it is no netlink message" })?;
            let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            if length == 0 {
                return Err(Error::Answer { reason: "a message has no length" });
            }
            rest = rest.get(length..).unwrap_or_default();
            each(answer.header, answer.payload)?;
        }
        Ok(())
    }
}

/// A netlink socket of the calling thread's network namespace: [netlink(7)](https://man7.org/linux/man-pages/man7/netlink.7.html).
pub(crate) fn open(protocol: SockProtocol) -> Result<OwnedFd> {
    let failed = |operation| move |errno: Errno| Error::Socket { operation, source: errno.into() };
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map_err(failed("open"))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
    Ok(socket)
}

fn write(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let start = bytes.len();
    bytes.resize(start + packet.buffer_len().next_multiple_of(4), 0);
    packet.serialize(&mut bytes[start..]);
}

fn describe(message: &LinkMessage) -> Link {
    use netlink_packet_route::link::LinkInfo;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        running: false,
        master: None,
        kind: None,
        address: Vec::new(),
        mtu: 0,
        peer: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Address(bytes) => link.address.clone_from(bytes),
            LinkAttribute::OperState(state) => link.running = *state == State::Up,
            LinkAttribute::Mtu(bytes) => link.mtu = *bytes,
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
