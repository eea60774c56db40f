//! Connections that the kernel remembers: a UDP sender that goes on would be sent where its first packet went, whatever
//! has been published or taken back since. A TCP connection ends by itself, since nobody knows it at its new place.

use std::collections::HashSet;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::error::Result;
use crate::firewall::Published;
use crate::netfilter::{Body, DUMP, Messages, Netfilter, find, refused};
use crate::port::Protocol;

/// `IPCTNL_MSG_CT_*`, in the subsystem of connection tracking.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;

const ORIGINAL: u16 = 1;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// Forgets connections to published UDP ports of the host.
pub(crate) fn forget(netfilter: &mut Netfilter, ports: &[Published]) -> Result<()> {
    for v6 in [false, true] {
        let wanted: HashSet<(Option<IpAddr>, u16)> = ports
            .iter()
            .filter(|port| port.protocol == Protocol::Udp && port.container.is_ipv6() == v6)
            .map(|port| (Some(port.host).filter(|host| !host.is_unspecified()), port.host_port))
            .collect();
        if !wanted.is_empty() {
            let family = if v6 { 10 } else { 2 };
            let found = match connections(netfilter, family, true, &wanted)? {
                // Linux 5.8 is the first to look through them itself.
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => connections(netfilter, family, false, &wanted)?,
                other => other,
            };
            let found = found.map_err(|errno| refused("list the connections to published ports", errno))?;
            delete(netfilter, family, &found)?;
        }
    }
    Ok(())
}

/// What a connection is found by: its original direction, and its zone.
type Key = (Vec<u8>, Option<Vec<u8>>);

fn connections(
    netfilter: &mut Netfilter,
    family: u8,
    filter: bool,
    wanted: &HashSet<(Option<IpAddr>, u16)>,
) -> Result<Result<Vec<Key>, Errno>> {
    let mut messages = Messages::default();
    messages.begin(GET, DUMP, family, 0);
    if filter {
        messages.nest(ORIGINAL, |tuple| {
            tuple.nest(2, |protocol| {
                protocol.bytes(1, &[Protocol::Udp.number()]);
            });
        });
        messages.nest(FILTER, |flags| {
            // The fourth bit: the protocol's number.
            flags.bytes(1, &8_u32.to_ne_bytes()).bytes(2, &0_u32.to_ne_bytes());
        });
    }
    let mut found = Vec::new();
    let mut ended = None;
    netfilter.ask(messages, |answer| match answer.body {
        Body::Attributes(bytes) => {
            found.extend(key(bytes, wanted));
            false
        }
        Body::Ended(code) => {
            ended = code;
            true
        }
    })?;
    Ok(ended.map_or(Ok(found), Err))
}

/// The key of a connection that is wanted.
fn key(bytes: &[u8], wanted: &HashSet<(Option<IpAddr>, u16)>) -> Option<Key> {
    let tuple = find(bytes, &[ORIGINAL])?;
    if find(tuple, &[2, 1])? != [Protocol::Udp.number()] {
        return None;
    }
    let port = u16::from_be_bytes(find(tuple, &[2, 3])?.try_into().ok()?);
    let address = match (find(tuple, &[1, 2]), find(tuple, &[1, 4])) {
        (Some(four), _) => IpAddr::from(<[u8; 4]>::try_from(four).ok()?),
        (_, Some(six)) => IpAddr::from(<[u8; 16]>::try_from(six).ok()?),
        _ => return None,
    };
    let is_wanted = wanted.contains(&(None, port)) || wanted.contains(&(Some(address), port));
    is_wanted.then(|| (tuple.to_vec(), find(bytes, &[ZONE]).map(<[u8]>::to_vec)))
}

fn delete(netfilter: &mut Netfilter, family: u8, found: &[Key]) -> Result<()> {
    for some in found.chunks(128) {
        let mut messages = Messages::default();
        for (tuple, zone) in some {
            messages.begin(DELETE, crate::netfilter::ACK, family, 0).nest(ORIGINAL, |nest| {
                nest.raw(tuple);
            });
            if let Some(zone) = zone {
                messages.bytes(ZONE, zone);
            }
        }
        let mut left = some.len();
        let mut failure = None;
        netfilter.ask(messages, |answer| {
            if let Body::Ended(code) = answer.body {
                left -= 1;
                // It may have ended by itself.
                failure = failure.or(code.filter(|code| *code != Errno::ENOENT));
            }
            left == 0
        })?;
        if let Some(errno) = failure {
            return Err(refused("forget the connections to published ports", errno));
        }
    }
    Ok(())
}
