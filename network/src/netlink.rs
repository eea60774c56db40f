//! A blocking route socket: [rtnetlink(7)](https://man7.org/linux/man-pages/man7/rtnetlink.7.html).

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::driver::Interface;
use crate::error::{Error, Result};

/// The loopback interface is the first one of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// A route socket. It works on the namespace that it was opened in, whichever thread uses it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let failed = |operation| move |source| Error::Socket { operation, source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sets the loopback interface up; the kernel gives it 127.0.0.1/8 and `::1/128` by itself. Needs `CAP_NET_ADMIN`.
    pub fn set_loopback_up(&mut self) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = LOOPBACK_INDEX;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change("set the interface lo up", RouteNetlinkMessage::SetLink(message))
    }

    /// The namespace's interfaces, in the order of their indices.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>> {
        self.send(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut interfaces = Vec::new();
        self.receive("list the interfaces", |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                let name = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
                interfaces.push(Interface {
                    index: link.header.index,
                    name: name.unwrap_or_default(),
                    up: link.header.flags.contains(LinkFlags::Up),
                });
            }
        })?;
        interfaces.sort_by_key(|interface| interface.index);
        Ok(interfaces)
    }

    fn change(&mut self, operation: &str, message: RouteNetlinkMessage) -> Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        self.receive(operation, |_| ())
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| Error::Socket { operation: "write to", source })?;
        Ok(())
    }

    /// Reads answers to the last request until the kernel says that it has ended.
    fn receive(&mut self, operation: &str, mut each: impl FnMut(RouteNetlinkMessage)) -> Result<()> {
        loop {
            let (datagram, _) =
                self.socket.recv_from_full().map_err(|source| Error::Socket { operation: "read from", source })?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|_| Error::Answer { reason: "it is no netlink message" })?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
                if length == 0 {
                    return Err(Error::Answer { reason: "a message has no length" });
                }
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(()),
                        Some(code) => {
                            let source = io::Error::from_raw_os_error(code.get().saturating_abs());
                            return Err(Error::Refused { operation: operation.to_owned(), source });
                        }
                    },
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            }
        }
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
