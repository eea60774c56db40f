//! Whether a host's port is free, and how it is kept: by a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt,
    socket,
};

use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::firewall::Published;
use crate::network::Family;
use crate::port::{PortMapping, Protocol};
use crate::sandbox::{self, Sandbox};

/// How many free ports are tried for one that has to be free in all families.
const ATTEMPTS: usize = 64;

/// Sockets on published ports: as long as they live, no other program gets these ports. Nothing ever comes to them, since
/// the packet filter sends it all on.
#[derive(Debug)]
pub struct Held {
    _sockets: Vec<OwnedFd>,
}

/// Takes the ports of an endpoint for this program. SCTP's and IPv6's are left out where the kernel has no such sockets. Two descriptors a port may be needed.
///
/// # Errors
///
/// [`Error::PortTaken`]; nothing is held then.
pub fn hold(host: Option<&Sandbox>, endpoint: &Endpoint) -> Result<Held> {
    let published = published(endpoint);
    sandbox::within(host, move || {
        let mut sockets = Vec::new();
        for port in published {
            sockets.extend(take(port.protocol, SocketAddr::new(port.host, port.host_port))?);
        }
        Ok(Held { _sockets: sockets })
    })?
}

/// Looks whether the ports are free on the host, and chooses free ones for those that leave it open.
pub(crate) fn choose(
    host: Option<&Sandbox>,
    mappings: &[PortMapping],
    addresses: &[IpNet],
) -> Result<Vec<PortMapping>> {
    if mappings.is_empty() {
        return Ok(Vec::new());
    }
    for (at, mapping) in mappings.iter().enumerate() {
        let other = mappings[..at].iter().find(|other| same_host_port(mapping, other));
        if let Some(port) = other.map(|_| mapping.host_port) {
            return Err(Error::PortTaken { address: mapping.host_address, port, protocol: mapping.protocol });
        }
    }
    sandbox::within(host, || mappings.iter().map(|mapping| choose_one(mapping, addresses)).collect())?
}

/// Whether two mappings that are asked for together want the same port.
fn same_host_port(a: &PortMapping, b: &PortMapping) -> bool {
    let overlap = |a: &PortMapping, b: &PortMapping| (a.host_port..=a.host_port + (a.count - 1)).contains(&b.host_port);
    let any = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
    let same_family = match (a.host_address, b.host_address) {
        (Some(a), Some(b)) => a.is_ipv4() == b.is_ipv4(),
        _ => true,
    };
    a.host_port != 0
        && b.host_port != 0
        && a.protocol == b.protocol
        && same_family
        && (any(a.host_address) || any(b.host_address) || a.host_address == b.host_address)
        && (overlap(a, b) || overlap(b, a))
}

fn choose_one(mapping: &PortMapping, addresses: &[IpNet]) -> Result<PortMapping> {
    let hosts: Vec<IpAddr> = hosts(mapping, addresses).map(|(host, _)| host).collect();
    let Some(first) = hosts.first() else {
        let mapping = Box::new(mapping.clone());
        return Err(Error::Publish { mapping, reason: "the container has no address of that family" });
    };
    let free = |start: u16| -> Result<()> {
        for offset in 0..mapping.count {
            for host in &hosts {
                take(mapping.protocol, SocketAddr::new(*host, start + offset))?;
            }
        }
        Ok(())
    };
    if mapping.host_port != 0 {
        free(mapping.host_port)?;
        return Ok(mapping.clone());
    }
    for _ in 0..ATTEMPTS {
        let start = match take(mapping.protocol, SocketAddr::new(*first, 0))? {
            Some(socket) => {
                let name =
                    getsockname::<SockaddrStorage>(socket.as_raw_fd()).map_err(|errno| port_failed(errno.into()))?;
                let v4 = name.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
                v4.or(name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port)).unwrap_or_default()
            }
            // Without such sockets, nobody but a packet filter has any.
            None => 49152,
        };
        if start.checked_add(mapping.count - 1).is_none() {
            continue;
        }
        match free(start) {
            Ok(()) => return Ok(PortMapping { host_port: start, ..mapping.clone() }),
            Err(Error::PortTaken { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::PortTaken { address: mapping.host_address, port: 0, protocol: mapping.protocol })
}

/// The host's addresses that a mapping is for, with the container's that they lead to.
fn hosts(mapping: &PortMapping, addresses: &[IpNet]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let wanted = match mapping.host_address {
        Some(address) => vec![address],
        None => all.to_vec(),
    };
    wanted.into_iter().filter_map(|host| {
        let same = |address: &&IpNet| Family::of(address.addr()) == Family::of(host);
        addresses.iter().find(same).map(|address| (host, address.addr()))
    })
}

/// What the packet filter is to do for an endpoint.
#[must_use]
pub fn published(endpoint: &Endpoint) -> Vec<Published> {
    let mut all = Vec::new();
    for mapping in &endpoint.ports {
        for (host, container) in hosts(mapping, &endpoint.addresses) {
            all.extend((0..mapping.count).map(|offset| Published {
                protocol: mapping.protocol,
                host,
                host_port: mapping.host_port.saturating_add(offset),
                container,
                container_port: mapping.container_port.saturating_add(offset),
            }));
        }
    }
    all
}

/// A socket on a port; none where there are no sockets of that protocol or family.
fn take(protocol: Protocol, address: SocketAddr) -> Result<Option<OwnedFd>> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let socket = match socket(family, kind, SockFlag::SOCK_CLOEXEC, number) {
        Ok(socket) => socket,
        Err(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) => return Ok(None),
        Err(errno) => return Err(port_failed(errno.into())),
    };
    let set = || -> Result<(), Errno> {
        if address.is_ipv6() {
            setsockopt(&socket, Ipv6V6Only, &true)?;
        }
        // Connections that have ended may still be remembered at the port; who listens there is found by `listen`.
        if protocol != Protocol::Udp {
            setsockopt(&socket, ReuseAddr, &true)?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        if protocol != Protocol::Udp {
            listen(&socket, Backlog::new(1)?)?;
        }
        Ok(())
    };
    match set() {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::EADDRINUSE) => {
            let host = Some(address.ip()).filter(|host| !host.is_unspecified());
            Err(Error::PortTaken { address: host, port: address.port(), protocol })
        }
        Err(Errno::EADDRNOTAVAIL) => Err(Error::NotLocal { address: address.ip() }),
        Err(errno) => Err(port_failed(errno.into())),
    }
}

fn port_failed(source: io::Error) -> Error {
    Error::Socket { operation: "look for a free port with", source }
}
