//! The packet filter nf_tables, by transactions over netlink: no program is executed.
//!
//! There is one table, `inet estiba`, for all networks of the host. Its rules never change; what changes are elements of
//! its sets and maps, so that the thousandth port costs what the first one did.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use nix::errno::Errno;

use crate::conntrack;
use crate::error::{Error, Result};
use crate::firewall::{Firewall, Published, Realm};
use crate::netfilter::{Body, CREATE, DUMP, Messages, Netfilter, Transaction, attributes, find, refused};
use crate::port::Protocol;
use crate::sandbox::{self, Identity, Sandbox};

mod ruleset;

use ruleset::{INET, Set, TABLE, message};

/// How often something is tried again because somebody else changed the tables at the same moment.
const ATTEMPTS: usize = 64;

/// What a message of elements may have: an attribute's length has 16 bits.
const ROOM: usize = 48 * 1024;

/// The packet filter nf_tables (Linux 5.10 with `nf_tables_inet`, `nft_nat`, `nft_masq`, `nft_fib_inet` and `nft_ct`). Needs
/// `CAP_NET_ADMIN` in the host's namespace.
///
/// A drop in somebody else's table (a firewall whose policy is to drop what is forwarded) stays a drop: nf_tables has no way
/// to overrule it.
///
/// Sockets are kept for the next change, since to close one waits for what was removed to be forgotten by all processors (10
/// to 20 ms). They keep the host's namespace alive as long as this value lives.
#[derive(Debug, Default)]
pub struct Nftables {
    /// Sockets that nobody uses now, each with the namespace that it works on.
    idle: Mutex<Vec<(Identity, Netfilter)>>,
}

/// A socket in use; it goes back when it is dropped.
struct Lent<'a> {
    home: &'a Nftables,
    identity: Identity,
    netfilter: Option<Netfilter>,
}

impl Nftables {
    fn open(&self, host: Option<&Sandbox>) -> Result<Lent<'_>> {
        let identity = sandbox::identity(host)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let known = idle.iter().position(|(of, _)| *of == identity).map(|at| idle.swap_remove(at).1);
        drop(idle);
        let netfilter = match known {
            Some(netfilter) => netfilter,
            None => sandbox::within(host, Netfilter::open)??,
        };
        Ok(Lent { home: self, identity, netfilter: Some(netfilter) })
    }
}

impl Deref for Lent<'_> {
    type Target = Netfilter;

    fn deref(&self) -> &Netfilter {
        self.netfilter.as_ref().expect("it is there until the end")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Netfilter {
        self.netfilter.as_mut().expect("it is there until the end")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(netfilter) = self.netfilter.take() {
            self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push((self.identity, netfilter));
        }
    }
}

impl Firewall for Nftables {
    fn admit(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<()> {
        ensure(&mut *self.open(host)?, std::slice::from_ref(realm), &[])
    }

    fn stands(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<bool> {
        let found = look_up(&mut *self.open(host)?, &[(Set::Bridges, interface(&realm.bridge))])?;
        Ok(found.iter().all(Option::is_some))
    }

    fn withdraw(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<()> {
        let mut netfilter = self.open(host)?;
        for _ in 0..ATTEMPTS {
            let generation = generation(&mut netfilter)?;
            let Some(bridges) = dump(&mut netfilter, Set::Bridges)? else { return Ok(()) };
            let mut transaction = Transaction::new(Some(generation));
            // Ports may be published for who sees to the rest by himself.
            if bridges.iter().all(|name| *name == interface(&realm.bridge)) && !has_ports(&mut netfilter)? {
                transaction.messages.begin(message::DELETE_TABLE, 0, INET, 0).text(1, TABLE);
            } else {
                let keys = every_element(realm);
                let found = look_up(&mut netfilter, &keys)?;
                for ((set, key), found) in keys.iter().zip(found) {
                    if found.is_some() {
                        elements(&mut transaction.messages, message::DELETE_ELEMENT, 0, *set, &[(key.clone(), None)]);
                    }
                }
                for (set, first, last) in ranges_of(realm) {
                    if !look_up(&mut netfilter, &[(set, first.clone())])?.iter().all(Option::is_none) {
                        range(&mut transaction.messages, message::DELETE_ELEMENT, 0, set, &first, &last);
                    }
                }
            }
            match netfilter.transact(&transaction)? {
                Err(Errno::ERESTART | Errno::ENOENT) => {}
                other => return other.map_err(|errno| refused("take the network out of the packet filter", errno)),
            }
        }
        Err(refused("take the network out of the packet filter", Errno::EAGAIN))
    }

    fn publish(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut netfilter = self.open(host)?;
        ensure(&mut netfilter, &[], ports)?;
        conntrack::forget(&mut netfilter, ports)
    }

    fn leads(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<bool> {
        let keys: Vec<_> = ports.iter().map(|port| (set_of(port), key_of(port))).collect();
        let found = look_up(&mut *self.open(host)?, &keys)?;
        Ok(ports.iter().zip(found).all(|(port, found)| found == Some(value_of(port))))
    }

    fn unpublish(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        let mut netfilter = self.open(host)?;
        let keys: Vec<(Set, Vec<u8>)> = ports.iter().map(|port| (set_of(port), key_of(port))).collect();
        for _ in 0..ATTEMPTS {
            let found = look_up(&mut netfilter, &keys)?;
            let mut transaction = Transaction::new(None);
            for set in [Set::Bound4, Set::Bound6, Set::Any4, Set::Any6] {
                let ours = ports.iter().zip(&keys).zip(&found).filter(|((port, key), found)| {
                    key.0 == set && found.as_ref().is_some_and(|value| *value == value_of(port))
                });
                let ours: Vec<_> = ours.map(|((_, key), _)| (key.1.clone(), None)).collect();
                elements(&mut transaction.messages, message::DELETE_ELEMENT, 0, set, &ours);
            }
            if transaction.is_empty() {
                break;
            }
            match netfilter.transact(&transaction)? {
                Err(Errno::ENOENT | Errno::ERESTART) => {}
                Err(errno) => return Err(refused("take back the published ports", errno)),
                Ok(()) => break,
            }
        }
        conntrack::forget(&mut netfilter, ports)
    }

    fn reconcile(&self, host: Option<&Sandbox>, realms: &[Realm], ports: &[Published]) -> Result<()> {
        if realms.is_empty() && ports.is_empty() {
            return Ok(());
        }
        ensure(&mut *self.open(host)?, realms, ports)
    }
}

/// Adds these elements, and the table before if it is not there.
fn ensure(netfilter: &mut Netfilter, realms: &[Realm], ports: &[Published]) -> Result<()> {
    let mut failure = Errno::EAGAIN;
    let mut complete = false;
    for _ in 0..ATTEMPTS {
        let mut transaction = Transaction::new(None);
        if complete {
            ruleset::write(&mut transaction);
        }
        for realm in realms {
            for (set, key) in element_of(realm) {
                elements(&mut transaction.messages, message::NEW_ELEMENT, CREATE, set, &[(key, None)]);
            }
        }
        for (set, first, last) in realms.iter().flat_map(ranges_of) {
            range(&mut transaction.messages, message::NEW_ELEMENT, CREATE, set, &first, &last);
        }
        for set in [Set::Bound4, Set::Bound6, Set::Any4, Set::Any6] {
            let of_set = ports.iter().filter(|port| set_of(port) == set);
            let of_set: Vec<_> = of_set.map(|port| (key_of(port), Some(value_of(port)))).collect();
            elements(&mut transaction.messages, message::NEW_ELEMENT, CREATE, set, &of_set);
        }
        match netfilter.transact(&transaction)? {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => complete = true,
            // Of the table, which somebody else has made meanwhile; of a port, it means that it leads elsewhere.
            Err(Errno::EEXIST) if complete => complete = false,
            Err(Errno::EBUSY | Errno::EEXIST) => return Err(taken(netfilter, ports)?),
            Err(errno @ Errno::ERESTART) => failure = errno,
            Err(errno) => return Err(refused("set up the packet filter", errno)),
        }
    }
    Err(refused("set up the packet filter", failure))
}

/// Which of the ports leads to somebody else.
fn taken(netfilter: &mut Netfilter, ports: &[Published]) -> Result<Error> {
    let keys: Vec<_> = ports.iter().map(|port| (set_of(port), key_of(port))).collect();
    let found = look_up(netfilter, &keys)?;
    let other =
        ports.iter().zip(found).find(|(port, found)| found.as_ref().is_some_and(|value| *value != value_of(port)));
    Ok(match other {
        Some((Published { protocol, host, host_port, .. }, _)) => {
            let address = Some(*host).filter(|host| !host.is_unspecified());
            Error::PortTaken { address, port: *host_port, protocol: *protocol }
        }
        None => refused("set up the packet filter", Errno::EBUSY),
    })
}

fn element_of(realm: &Realm) -> Vec<(Set, Vec<u8>)> {
    let name = interface(&realm.bridge);
    let mut all = vec![(Set::Bridges, name.clone()), (Set::Same, [name.clone(), name.clone()].concat())];
    if realm.internal {
        all.push((Set::Internal, name.clone()));
    } else if !realm.isolate {
        all.push((Set::Open, name.clone()));
    }
    if !realm.walls && !realm.internal {
        all.push((Set::Unwalled, name.clone()));
    }
    if realm.masquerade && !realm.internal {
        all.push((Set::Masked, name));
    }
    all
}

/// The ranges of a network's addresses, each with its bridge: the first, and the last.
fn ranges_of(realm: &Realm) -> Vec<(Set, Vec<u8>, Vec<u8>)> {
    let name = interface(&realm.bridge);
    let key = |address| [octets(address), name.clone()].concat();
    let range = |subnet: &IpNet| {
        let set = if subnet.addr().is_ipv4() { Set::Own4 } else { Set::Own6 };
        (set, key(subnet.network()), key(subnet.broadcast()))
    };
    realm.subnets.iter().map(range).collect()
}

/// All that a bridge may be in.
fn every_element(realm: &Realm) -> Vec<(Set, Vec<u8>)> {
    let name = interface(&realm.bridge);
    let mut all = vec![(Set::Same, [name.clone(), name.clone()].concat())];
    all.extend([Set::Bridges, Set::Internal, Set::Open, Set::Unwalled, Set::Masked].map(|set| (set, name.clone())));
    all
}

/// An interface's name, as the kernel compares it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn set_of(port: &Published) -> Set {
    match (port.container, port.host.is_unspecified()) {
        (IpAddr::V4(_), true) => Set::Any4,
        (IpAddr::V4(_), false) => Set::Bound4,
        (IpAddr::V6(_), true) => Set::Any6,
        (IpAddr::V6(_), false) => Set::Bound6,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Each part of a key or value fills pieces of four bytes.
fn key_of(port: &Published) -> Vec<u8> {
    let mut key = if port.host.is_unspecified() { Vec::new() } else { octets(port.host) };
    key.extend([Protocol::number(port.protocol), 0, 0, 0]);
    key.extend(port.host_port.to_be_bytes());
    key.extend([0, 0]);
    key
}

fn value_of(port: &Published) -> Vec<u8> {
    let mut value = octets(port.container);
    value.extend(port.container_port.to_be_bytes());
    value.extend([0, 0]);
    value
}

/// Writes messages about elements: their keys, and for a map their values.
fn elements(messages: &mut Messages, kind: u16, flags: u16, set: Set, all: &[(Vec<u8>, Option<Vec<u8>>)]) {
    let mut rest = all;
    while !rest.is_empty() {
        messages.begin(kind, flags, INET, 0).text(1, TABLE).text(2, set.name());
        let mut count = 0;
        let start = messages.length();
        let here = rest;
        // The length is looked at from inside, where the message grows.
        messages.nest(3, |list| {
            for (key, value) in here {
                list.nest(1, |element| {
                    element.nest(1, |data| {
                        data.bytes(1, key);
                    });
                    if let Some(value) = value {
                        element.nest(2, |data| {
                            data.bytes(1, value);
                        });
                    }
                });
                count += 1;
                if list.length() - start > ROOM {
                    break;
                }
            }
        });
        rest = &rest[count..];
    }
}

/// Writes a message about a range of keys.
fn range(messages: &mut Messages, kind: u16, flags: u16, set: Set, first: &[u8], last: &[u8]) {
    messages.begin(kind, flags, INET, 0).text(1, TABLE).text(2, set.name()).nest(3, |list| {
        list.nest(1, |element| {
            for (attribute, key) in [(1, first), (10, last)] {
                element.nest(attribute, |data| {
                    data.bytes(1, key);
                });
            }
        });
    });
}

/// The values of these keys; none for one that is not there, and an empty one where there are no values.
fn look_up(netfilter: &mut Netfilter, keys: &[(Set, Vec<u8>)]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut found = Vec::new();
    // The answers to one write have to fit into the socket's buffer.
    for some in keys.chunks(128) {
        let mut messages = Messages::default();
        for (set, key) in some {
            elements(&mut messages, message::GET_ELEMENT, 0, *set, &[(key.clone(), None)]);
        }
        let mut answers: Vec<Option<Option<Vec<u8>>>> = vec![None; some.len()];
        let mut left = some.len();
        let mut failure = None;
        netfilter.ask(messages, |answer| {
            let Some(place) = answers.get_mut(answer.request as usize) else { return false };
            match answer.body {
                Body::Attributes(bytes) => *place = Some(Some(find(bytes, &[3, 1, 2, 1]).unwrap_or_default().to_vec())),
                Body::Ended(None) if place.is_some() => return false,
                Body::Ended(Some(Errno::ENOENT) | None) => *place = Some(None),
                Body::Ended(Some(errno)) => {
                    failure = Some(errno);
                    *place = Some(None);
                }
            }
            left -= 1;
            left == 0
        })?;
        if let Some(errno) = failure {
            return Err(refused("look into the packet filter", errno));
        }
        found.extend(answers.into_iter().map(Option::flatten));
    }
    Ok(found)
}

/// The keys of a set; none if there is no table.
fn dump(netfilter: &mut Netfilter, set: Set) -> Result<Option<Vec<Vec<u8>>>> {
    let mut messages = Messages::default();
    messages.begin(message::GET_ELEMENT, DUMP, INET, 0).text(1, TABLE).text(2, set.name());
    let mut keys = Vec::new();
    let mut ended = None;
    netfilter.ask(messages, |answer| match answer.body {
        Body::Attributes(bytes) => {
            let list = find(bytes, &[3]).unwrap_or_default();
            keys.extend(attributes(list).filter_map(|(_, element)| find(element, &[1, 1]).map(<[u8]>::to_vec)));
            false
        }
        Body::Ended(code) => {
            ended = code;
            true
        }
    })?;
    match ended {
        None => Ok(Some(keys)),
        Some(Errno::ENOENT) => Ok(None),
        Some(errno) => Err(refused("look into the packet filter", errno)),
    }
}

/// Whether any port is published.
fn has_ports(netfilter: &mut Netfilter) -> Result<bool> {
    for set in [Set::Bound4, Set::Bound6, Set::Any4, Set::Any6] {
        if dump(netfilter, set)?.is_some_and(|keys| !keys.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The number of the tables' state, which every change raises.
fn generation(netfilter: &mut Netfilter) -> Result<u32> {
    let mut messages = Messages::default();
    messages.begin(message::GET_GENERATION, 0, 0, 0);
    let mut number = None;
    let mut failure = Errno::EPROTO;
    netfilter.ask(messages, |answer| {
        match answer.body {
            Body::Attributes(bytes) => {
                number = find(bytes, &[1]).and_then(|value| value.try_into().ok()).map(u32::from_be_bytes);
            }
            Body::Ended(code) => failure = code.unwrap_or(failure),
        }
        true
    })?;
    number.ok_or_else(|| refused("look into the packet filter", failure))
}
