//! The host's packet filter, and what attachments have in it: an interface of the host has there what any of them asks for.

use std::net::IpAddr;

use estiba_network::cni::plugin::Request;
use estiba_network::cni::{Failure, IpConfig};
use estiba_network::firewall::{Firewall, Published, Realm};
use estiba_network::ipnet::IpNet;
use estiba_network::{Netlink, Nftables};
use serde::{Deserialize, Serialize};

use crate::address;
use crate::device::Device;
use crate::record::{Key, Records};

/// The kernel's packet filter, in the namespace that the plugin runs in.
pub(crate) fn kernel() -> impl Firewall {
    Nftables::default()
}

/// Which plugin has asked for something: each has its own records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// `ipMasq` of those that make interfaces.
    Maker,
    Portmap,
    Firewall,
}

impl Asker {
    const ALL: [Self; 3] = [Self::Maker, Self::Portmap, Self::Firewall];

    /// The kind of its records. Those of the first are locked for all work on interfaces.
    fn kind(self) -> &'static str {
        match self {
            Self::Maker => "masquerade",
            Self::Portmap => "ports",
            Self::Firewall => "walls",
        }
    }
}

/// What an attachment has in the packet filter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The interface of the host that the container is behind.
    pub(crate) interface: String,
    /// The networks of the container's addresses.
    #[serde(default)]
    pub(crate) subnets: Vec<IpNet>,
    /// What leaves has the host's address.
    #[serde(default)]
    pub(crate) masquerade: bool,
    /// Only published ports lead in.
    #[serde(default)]
    pub(crate) walls: bool,
    /// The ports that lead to it.
    #[serde(default)]
    pub(crate) ports: Vec<Lead>,
}

/// The networks of addresses, each once.
pub(crate) fn subnets(ips: &[IpConfig]) -> Vec<IpNet> {
    let mut subnets: Vec<_> = ips.iter().map(|ip| ip.address.trunc()).collect();
    subnets.sort_unstable();
    subnets.dedup();
    subnets
}

/// A published port, as it is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lead {
    protocol: String,
    host: IpAddr,
    host_port: u16,
    container: IpAddr,
    container_port: u16,
}

impl From<Published> for Lead {
    fn from(port: Published) -> Self {
        let Published { protocol, host, host_port, container, container_port } = port;
        Self { protocol: protocol.to_string(), host, host_port, container, container_port }
    }
}

impl Lead {
    fn published(&self) -> Option<Published> {
        let Self { ref protocol, host, host_port, container, container_port } = *self;
        Some(Published { protocol: protocol.parse().ok()?, host, host_port, container, container_port })
    }
}

/// The records of all askers; the first one's lock is everybody's.
struct All(Vec<(Asker, Records)>);

impl All {
    fn open() -> Result<Self, Failure> {
        let open = |asker: Asker| Ok((asker, Records::open(asker.kind())?));
        Ok(Self(Asker::ALL.into_iter().map(open).collect::<Result<_, Failure>>()?))
    }

    fn of(&self, asker: Asker) -> Result<&Records, Failure> {
        let found = self.0.iter().find(|(other, _)| *other == asker);
        found.map(|(_, records)| records).ok_or_else(|| Failure::internal("no records"))
    }

    /// What all attachments together want of an interface, but for one that is about to go; none if nobody wants anything.
    fn realm(&self, interface: &str, going: Option<(Asker, &Key)>) -> Option<Realm> {
        let mut realm = None;
        for (asker, records) in &self.0 {
            let mut keys = records.keys();
            keys.retain(|key| going != Some((*asker, key)));
            for held in keys.iter().filter_map(|key| records.read::<Held>(key)) {
                if held.interface == interface {
                    let realm = realm.get_or_insert_with(|| Realm {
                        bridge: interface.to_owned(),
                        subnets: Vec::new(),
                        internal: false,
                        isolate: false,
                        masquerade: false,
                        walls: false,
                    });
                    for subnet in held.subnets {
                        // One that lies in another is there already.
                        if !realm.subnets.iter().any(|other| other.contains(&subnet)) {
                            realm.subnets.retain(|other| !subnet.contains(other));
                            realm.subnets.push(subnet);
                        }
                    }
                    realm.subnets.sort_unstable();
                    realm.masquerade |= held.masquerade;
                    realm.walls |= held.walls;
                    realm.isolate |= held.walls;
                }
            }
        }
        realm
    }

    /// Brings an interface from what it had to what is wanted now.
    fn settle(&self, before: Option<&Realm>, interface: &str, going: Option<(Asker, &Key)>) -> Result<(), Failure> {
        let now = self.realm(interface, going);
        let firewall = kernel();
        if let Some(before) = before.filter(|before| now.as_ref() != Some(before)) {
            firewall.withdraw(None, before)?;
        }
        match now {
            Some(now) => Ok(firewall.admit(None, &now)?),
            None => Ok(()),
        }
    }

    fn release(&self, asker: Asker, key: &Key) -> Result<(), Failure> {
        let records = self.of(asker)?;
        if let Some(held) = records.read::<Held>(key) {
            let ports: Vec<_> = held.ports.iter().filter_map(Lead::published).collect();
            kernel().unpublish(None, &ports)?;
            let before = self.realm(&held.interface, None);
            // It stays on record until that is done.
            self.settle(before.as_ref(), &held.interface, Some((asker, key)))?;
        }
        records.remove(key)
    }
}

/// Sets up what an attachment asks for, and keeps it on record.
pub(crate) fn hold(asker: Asker, key: &Key, held: &Held) -> Result<(), Failure> {
    let all = All::open()?;
    // It was asked for before, and not taken back.
    all.release(asker, key)?;
    let before = all.realm(&held.interface, None);
    all.of(asker)?.write(key, held)?;
    let ports: Vec<_> = held.ports.iter().filter_map(Lead::published).collect();
    let done = all.settle(before.as_ref(), &held.interface, None).and_then(|()| Ok(kernel().publish(None, &ports)?));
    if done.is_err() {
        let _ = all.release(asker, key);
    }
    done
}

/// Takes back what an attachment has. Nothing is fine.
pub(crate) fn release(asker: Asker, key: &Key) -> Result<(), Failure> {
    if !Records::exist(asker.kind()) {
        return Ok(());
    }
    All::open()?.release(asker, key)
}

/// Takes it back from attachments that nobody wants any more.
pub(crate) fn collect(asker: Asker, request: &Request) -> Result<(), Failure> {
    if !Records::exist(asker.kind()) {
        return Ok(());
    }
    let all = All::open()?;
    let stale = all.of(asker)?.stale(request);
    stale.iter().try_for_each(|key| all.release(asker, key))
}

/// What an attachment has, if all of it still stands.
pub(crate) fn verify(asker: Asker, key: &Key) -> Result<Option<Held>, Failure> {
    let all = All::open()?;
    let Some(held) = all.of(asker)?.read::<Held>(key) else { return Ok(None) };
    let missing =
        |what: &str| Err(Failure::internal(format!("{what} of {} is gone from the packet filter", held.interface)));
    if let Some(realm) = all.realm(&held.interface, None)
        && !kernel().stands(None, &realm)?
    {
        return missing("what there was");
    }
    let ports: Vec<_> = held.ports.iter().filter_map(Lead::published).collect();
    if !kernel().leads(None, &ports)? {
        return missing("a port");
    }
    Ok(Some(held))
}

/// The interface of the host by which an address is reached.
pub(crate) fn way_to(host: &mut Netlink, address: IpAddr) -> Result<Device, Failure> {
    let mut routes = address::routes(host)?;
    routes.retain(|route| route.to.contains(&address) && route.to.prefix_len() > 0);
    let best = routes.iter().max_by_key(|route| route.to.prefix_len()).and_then(|route| route.interface);
    let device = best.map(|index| Device::numbered(host, index)).transpose()?.flatten();
    device.ok_or_else(|| Failure::config(format!("the host has no route to {address}")))
}
