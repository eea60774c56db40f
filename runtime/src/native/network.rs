//! Devices of the host's network that are given to a container (`linux.netDevices`), over
//! [`rtnetlink(7)`](https://man7.org/linux/man-pages/man7/rtnetlink.7.html).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use oci_spec::runtime::LinuxNetDevice;

use super::launch::system;
use crate::sys::{own, socket};
use crate::{Error, Result};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const UP: u32 = 1;

// Attributes of a link.
const NAME: u16 = 3;
const NAMESPACE_OF: u16 = 19;

// Attributes of an address.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const FLAGS: u16 = 8;
const PERMANENT: u32 = 0x80;
/// Of an address's flags, those that whoever made it chose: no duplicate detection, no route of its own, managed, and so on.
const CHOSEN: u32 = 0xf12;

/// Moves the devices to the network namespace of the process `pid`, in which `inside` was opened. They keep their addresses of global
/// scope, and are up there.
pub(super) fn give(devices: &HashMap<String, LinuxNetDevice>, pid: i32, inside: OwnedFd) -> Result<()> {
    let mut host = Netlink::new(own(socket::netlink().map_err(system("open a netlink socket"))?));
    let mut inside = Netlink::new(inside);
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_by_key(|(name, _)| *name);
    for (name, device) in devices {
        let new = device.name().as_deref().filter(|new| !new.is_empty()).unwrap_or(name);
        let error = |call| {
            move |source| Error::Setup { step: format!("linux.netDevices.{name}: give to the container"), call, source }
        };
        let index = host.link(name).map_err(error("find it"))?;
        let addresses = host.addresses(index).map_err(error("read its addresses"))?;
        let mut request = link(index, 0, UP);
        attribute(&mut request, NAMESPACE_OF, &pid.cast_unsigned().to_ne_bytes());
        attribute(&mut request, NAME, &text(new));
        host.change(NEW_LINK, 0, &request).map_err(error("move it"))?;
        // Its number may be another one there.
        let index = inside.link(new).map_err(error("find it again"))?;
        for address in addresses {
            inside.change(NEW_ADDRESS, CREATE, &address.at(index)).map_err(error("set an address"))?;
        }
        inside.change(NEW_LINK, 0, &link(index, UP, UP)).map_err(error("set it up"))?;
    }
    Ok(())
}

/// An address of a device.
#[derive(Debug)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<u8>,
}

impl Address {
    /// From `struct ifaddrmsg` and its attributes, if it is one that goes with the device.
    fn of(index: u32, message: &[u8]) -> Option<Self> {
        let (&[family, prefix, flags, scope], rest) = message.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        if u32::from_ne_bytes(*number) != index || scope != 0 {
            return None;
        }
        let mut all = u32::from(flags);
        let mut kept = Vec::new();
        for (kind, value) in attributes(rest) {
            match kind {
                ADDRESS | LOCAL | BROADCAST => attribute(&mut kept, kind, value),
                FLAGS => all = value.first_chunk().map_or(all, |flags| u32::from_ne_bytes(*flags)),
                _ => {}
            }
        }
        attribute(&mut kept, FLAGS, &(all & CHOSEN).to_ne_bytes());
        (all & PERMANENT != 0).then_some(Self { family, prefix, attributes: kept })
    }

    /// The same at the device `index`.
    fn at(&self, index: u32) -> Vec<u8> {
        let mut message = vec![self.family, self.prefix, 0, 0];
        message.extend(index.to_ne_bytes());
        message.extend(&self.attributes);
        message
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [0, index, flags, change].into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn text(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

/// Adds an attribute, whose length is a multiple of four.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes that follow a message's own part.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[l0, l1, k0, k1] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The upper bits say how it is to be read.
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

/// A socket to the kernel's network.
#[derive(Debug)]
struct Netlink {
    socket: File,
    sequence: u32,
}

impl Netlink {
    fn new(socket: OwnedFd) -> Self {
        Self { socket: socket.into(), sequence: 0 }
    }

    /// The number of a device.
    fn link(&mut self, name: &str) -> io::Result<u32> {
        let mut request = link(0, 0, 0);
        attribute(&mut request, NAME, &text(name));
        let answer = self.ask(GET_LINK, ACKNOWLEDGE, &request)?;
        let index =
            answer.first().and_then(|link| link.get(4..8)?.first_chunk()).map(|index| u32::from_ne_bytes(*index));
        index.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn addresses(&mut self, index: u32) -> io::Result<Vec<Address>> {
        let answer = self.ask(GET_ADDRESS, DUMP, &[0; 8])?;
        Ok(answer.iter().filter_map(|message| Address::of(index, message)).collect())
    }

    fn change(&mut self, kind: u16, flags: u16, message: &[u8]) -> io::Result<()> {
        self.ask(kind, flags | ACKNOWLEDGE, message).map(drop)
    }

    /// Sends a request, and returns the answers up to the end or the acknowledgement.
    fn ask(&mut self, kind: u16, flags: u16, message: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        const ERROR: u16 = 2;
        const DONE: u16 = 3;
        self.sequence += 1;
        let length = u32::try_from(16 + message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend((flags | REQUEST).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(message);
        self.socket.write_all(&request)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.socket.read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(&[l0, l1, l2, l3, k0, k1, ..]) = rest.first_chunk::<16>() {
                let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
                let Some(body) = rest.get(16..length) else { return Err(io::ErrorKind::InvalidData.into()) };
                match u16::from_ne_bytes([k0, k1]) {
                    DONE => return Ok(answers),
                    ERROR => {
                        let errno = body.first_chunk().map_or(libc::EIO, |errno| -i32::from_ne_bytes(*errno));
                        return if errno == 0 { Ok(answers) } else { Err(io::Error::from_raw_os_error(errno)) };
                    }
                    _ => answers.push(body.to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_written() {
        let mut message = Vec::new();
        attribute(&mut message, NAME, &text("eth0"));
        attribute(&mut message, NAMESPACE_OF, &7u32.to_ne_bytes());
        assert_eq!(message.len(), 20);
        let seven = 7u32.to_ne_bytes();
        assert_eq!(attributes(&message).collect::<Vec<_>>(), [(NAME, &b"eth0\0"[..]), (NAMESPACE_OF, &seven[..])]);
        for cut in [1, 3, 5, 8] {
            assert!(attributes(&message[..cut]).next().is_none(), "{cut}");
        }
    }

    #[test]
    fn addresses_of_others_and_of_the_link_stay() {
        let address = |index: u32, scope: u8, flags: u8| {
            let mut message = vec![2, 24, flags, scope];
            message.extend(index.to_ne_bytes());
            attribute(&mut message, LOCAL, &[10, 0, 0, 1]);
            message
        };
        let permanent = 0x80;
        assert!(Address::of(3, &address(3, 0, permanent)).is_some());
        for message in [address(4, 0, permanent), address(3, 253, permanent), address(3, 0, 0), vec![2, 24]] {
            assert!(Address::of(3, &message).is_none());
        }
    }
}
