//! A blocking netfilter socket, and the messages of nf_tables and of connection tracking: nfnetlink as it stands in the
//! kernel's `include/uapi/linux/netfilter/nfnetlink.h`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{MsgFlags, SockProtocol, recv, send, setsockopt};

use crate::error::{Error, Result};
use crate::netlink;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;

/// Requests in the making, one after another.
#[derive(Debug, Default, Clone)]
pub(crate) struct Messages {
    bytes: Vec<u8>,
    /// Where the last one begins.
    start: usize,
    pub(crate) count: u32,
}

impl Messages {
    /// Begins the next request: netlink's header, then nfnetlink's.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> &mut Self {
        self.start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((REQUEST | flags).to_ne_bytes());
        self.bytes.extend(self.count.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.count += 1;
        self.close()
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.finish(start);
        self
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        inside(self);
        self.finish(start);
        self
    }

    /// Attributes that are written already.
    pub(crate) fn raw(&mut self, attributes: &[u8]) -> &mut Self {
        self.bytes.extend(attributes);
        self
    }

    /// How long the request is by now.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn finish(&mut self, start: usize) {
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.close();
    }

    /// Writes down how long the last request is.
    fn close(&mut self) -> &mut Self {
        let start = self.start;
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Adds flags to the last request.
    fn flag(&mut self, flags: u16) {
        let at = self.start + 6;
        let now = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(now | flags).to_ne_bytes());
    }
}

/// An answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    /// Which request it answers, from zero.
    pub(crate) request: u32,
    pub(crate) body: Body<'a>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Body<'a> {
    /// The attributes of a message.
    Attributes(&'a [u8]),
    /// An acknowledgement, or an error.
    Ended(Option<Errno>),
}

#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netfilter {
    /// Opens a socket in the calling thread's network namespace, which it keeps working on.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self { socket: netlink::open(SockProtocol::NetlinkNetFilter)?, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// Sends requests and hands over the answers until `each` says that there are enough.
    pub(crate) fn ask(&mut self, mut messages: Messages, mut each: impl FnMut(Answer<'_>) -> bool) -> Result<()> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(messages.count);
        let mut at = 0;
        while let Some(header) = messages.bytes.get_mut(at..).filter(|rest| rest.len() >= 16) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let number = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
            header[8..12].copy_from_slice(&first.wrapping_add(number).to_ne_bytes());
            at += length.next_multiple_of(4).max(16);
        }
        // The kernel takes a transaction in one piece only; its usual limit is some two thousand ports.
        if messages.bytes.len() > 64 * 1024 {
            let _ = setsockopt(&self.socket, SndBufForce, &(messages.bytes.len() * 2 + 4096));
        }
        send(self.socket.as_raw_fd(), &messages.bytes, MsgFlags::empty())
            .map_err(|errno| Error::Socket { operation: "write to", source: errno.into() })?;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::Socket { operation: "read from", source: errno.into() }),
            };
            let mut rest = self.buffer.get(..length).ok_or(Error::Answer { reason: "it is longer than any is" })?;
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let request = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]).wrapping_sub(first);
                let message = rest.get(16..length).ok_or(Error::Answer { reason: "a message is cut off" })?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if request >= messages.count {
                    continue;
                }
                let body = match kind {
                    ERROR | DONE => {
                        let code =
                            message.get(..4).map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
                        Body::Ended((code != 0).then(|| Errno::from_raw(code.saturating_abs())))
                    }
                    _ => Body::Attributes(message.get(4..).unwrap_or_default()),
                };
                if each(Answer { request, body }) {
                    return Ok(());
                }
            }
        }
    }

    /// Makes a transaction: all or nothing. It fails with `ERESTART` if somebody has changed anything since generation
    /// `generation`.
    pub(crate) fn transact(&mut self, transaction: &Transaction) -> Result<Result<(), Errno>> {
        if transaction.messages.count < 2 {
            return Ok(Ok(()));
        }
        let mut messages = transaction.messages.clone();
        messages.flag(ACK);
        let last = messages.count - 1;
        messages.begin(17, 0, 0, NFTABLES);
        let mut failure = None;
        self.ask(messages, |answer| {
            if let Body::Ended(code) = answer.body {
                failure = failure.or(code);
                return answer.request == last || answer.request == 0;
            }
            false
        })?;
        Ok(failure.map_or(Ok(()), Err))
    }
}

const NFTABLES: u16 = 10;

/// Changes to nf_tables that are made as a whole.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) messages: Messages,
}

impl Transaction {
    pub(crate) fn new(generation: Option<u32>) -> Self {
        let mut messages = Messages::default();
        messages.begin(16, 0, 0, NFTABLES);
        if let Some(generation) = generation {
            messages.number(1, generation);
        }
        Self { messages }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.count < 2
    }
}

/// The attributes in these bytes: kind and value. What is cut off is left out.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute that a path of kinds leads to.
pub(crate) fn find<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter()
        .try_fold(bytes, |inside, kind| attributes(inside).find(|(found, _)| found == kind).map(|(_, value)| value))
}

/// The error of a request that the kernel refused.
pub(crate) fn refused(operation: impl Into<String>, errno: Errno) -> Error {
    Error::Refused { operation: operation.into(), source: io::Error::from(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written() {
        let mut messages = Messages::default();
        messages.begin(0xa09, 0, 1, 0).text(1, "table").nest(3, |nest| {
            nest.nest(1, |nest| {
                nest.number(2, 7);
            });
        });
        assert_eq!(messages.bytes.len(), messages.length());
        let body = &messages.bytes[20..];
        assert_eq!(find(body, &[1]), Some(&b"table\0"[..]));
        assert_eq!(find(body, &[3, 1, 2]), Some(&[0, 0, 0, 7][..]));
        assert_eq!(find(body, &[3, 2]), None);
        for cut in 0..body.len() {
            let _ = attributes(&body[..cut]).count();
        }
        assert_eq!(attributes(&[3, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
    }
}
