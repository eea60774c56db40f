//! The drivers `macvlan` and `ipvlan`: sandboxes in the network of one of the host's interfaces.

use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_route::link::MacVlanMode;

use crate::driver::Driver;
use crate::endpoint::{Attachment, Endpoint};
use crate::error::{Error, Result};
use crate::ipam::{HostLocal, Ipam};
use crate::ledger::{Ledger, Record};
use crate::link::{self, New};
use crate::netlink::{Batch, Netlink};
use crate::network::Network;
use crate::sandbox::{self, Sandbox};

/// How a sandbox shares the host's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// With a hardware address of its own. The network's option `mode` is `bridge` (by itself), `private`, `vepa` or
    /// `passthru`.
    Macvlan,
    /// With the interface's hardware address, in mode L2.
    Ipvlan,
}

/// The drivers `macvlan` and `ipvlan`. The network's `interface` is what its sandboxes lie on, and its subnets are those of
/// the network that it leads to. No ports are published: the sandbox has its address there. The host itself does not
/// reach its sandboxes, nor they the host; the kernel does not pass packets between an interface and what lies on it.
#[derive(Debug)]
pub struct Macvlan {
    /// Which of the two.
    pub kind: Kind,
    /// The host's network namespace; without one, the one that the calling thread is in.
    pub host: Option<Sandbox>,
    /// A folder for what is attached.
    pub state: PathBuf,
    /// A folder for the addresses that are given out: `host-local`'s `dataDir`.
    pub leases: PathBuf,
}

impl Driver for Macvlan {
    fn create(&self, network: Network, _others: &[Network]) -> Result<Network> {
        network.check()?;
        let wrong = |reason| Error::Definition { network: network.name.clone(), reason };
        if network.interface.is_none() {
            return Err(wrong("it needs the name of the host's interface that it lies on"));
        }
        if network.subnets.is_empty() {
            return Err(wrong("it needs the subnet of the network that its interface is in"));
        }
        self.mode(&network)?;
        Ok(network)
    }

    fn delete(&self, network: &Network) -> Result<()> {
        let ledger = Ledger::of(&self.state, &network.id);
        let _lock = ledger.lock_alone()?;
        let records = ledger.list()?;
        if let Some(first) = records.first() {
            let (network, first) = (network.name.clone(), first.attachment.container.clone());
            return Err(Error::InUse { network, first, containers: records.len() });
        }
        ledger.remove_folder()?;
        self.ipam(network).remove_folder()
    }

    fn attach(&self, network: &Network, sandbox: &Sandbox, attachment: &Attachment) -> Result<Endpoint> {
        attachment.check()?;
        if let Some(mapping) = attachment.ports.first() {
            let reason = "its containers are reached at their own addresses";
            return Err(Error::Publish { mapping: Box::new(mapping.clone()), reason });
        }
        let ledger = Ledger::of(&self.state, &network.id);
        let _lock = ledger.lock_shared()?;
        if let Some(record) = ledger.read(&attachment.container, &attachment.interface)? {
            if record.ready && record.endpoint.stands(sandbox)? {
                return Ok(record.endpoint);
            }
            self.undo(network, &ledger, Some(sandbox), &record)?;
        }
        let mut record = Record { attachment: attachment.clone(), endpoint: Endpoint::default(), ready: false };
        let made = ledger.write(&record).and_then(|()| self.make(network, &ledger, sandbox, &mut record));
        if let Err(error) = made {
            let _ = self.undo(network, &ledger, Some(sandbox), &record);
            return Err(error);
        }
        Ok(record.endpoint)
    }

    fn repair(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<()> {
        self.forget(network, alive)
    }

    fn detach(&self, network: &Network, sandbox: Option<&Sandbox>, attachment: &Attachment) -> Result<()> {
        attachment.check()?;
        let ledger = Ledger::of(&self.state, &network.id);
        let lock = ledger.lock_shared()?;
        if let Some(record) = ledger.read(&attachment.container, &attachment.interface)? {
            self.undo(network, &ledger, sandbox, &record)?;
        } else {
            // Its first record may have been on the way.
            ledger.remove(&attachment.container, &attachment.interface)?;
        }
        drop(lock);
        let _lock = ledger.lock_alone()?;
        if ledger.is_empty()? { ledger.remove_folder() } else { Ok(()) }
    }
}

impl Macvlan {
    /// Undoes what killed programs have left: attachments and addresses of containers that are not alive.
    fn forget(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<()> {
        let ledger = Ledger::of(&self.state, &network.id);
        let _lock = ledger.lock_alone()?;
        let mut kept = false;
        for record in ledger.list()? {
            if alive(&record.attachment.container) {
                kept = true;
            } else {
                self.undo(network, &ledger, None, &record)?;
            }
        }
        self.ipam(network).release_dead(&|owner| alive(&owner.container))?;
        if kept { Ok(()) } else { ledger.remove_folder() }
    }

    fn make(&self, network: &Network, ledger: &Ledger, sandbox: &Sandbox, record: &mut Record) -> Result<()> {
        let Record { attachment, endpoint, .. } = &mut *record;
        endpoint.lease(network, &self.ipam(network), attachment)?;
        if self.kind == Kind::Ipvlan {
            endpoint.mac = None;
        }
        let (mac, interface) = (endpoint.mac, attachment.interface.clone());
        ledger.write(record)?;
        let parent = network.interface.clone().unwrap_or_default();
        let mut host = sandbox::within(self.host.as_ref(), Netlink::open)??;
        let parent = host.link(&parent)?.ok_or(Error::NoInterface { name: parent })?.index;
        let new = New { name: &interface, mac, mtu: network.mtu, namespace: Some(sandbox.namespace()), up: false };
        let message = match self.kind {
            Kind::Macvlan => link::macvlan(&new, parent, self.mode(network)?),
            Kind::Ipvlan => link::ipvlan(&new, parent),
        };
        let mut batch = Batch::new();
        batch.create(format!("make the interface {interface}"), message);
        host.commit(&batch)?;
        record.endpoint.configure(sandbox, &interface)?;
        record.ready = true;
        ledger.write(record)
    }

    fn undo(&self, network: &Network, ledger: &Ledger, sandbox: Option<&Sandbox>, record: &Record) -> Result<()> {
        let Record { attachment, endpoint, .. } = record;
        // An interface of that name which is no macvlan came from elsewhere, since ours was not made then.
        let kind = if self.kind == Kind::Macvlan { "macvlan" } else { "ipvlan" };
        if let Some(sandbox) = sandbox
            && let Some(link) = sandbox.netlink()?.link(&attachment.interface)?
            && link.kind.as_deref() == Some(kind)
            && endpoint.mac.is_none_or(|mac| link.address == mac.octets())
        {
            let mut batch = Batch::new();
            batch.remove(format!("remove the interface {}", link.name), link::delete(link.index));
            sandbox.netlink()?.commit(&batch)?;
        }
        let known: Vec<_> = endpoint.addresses.iter().map(IpNet::addr).collect();
        self.ipam(network).release(&attachment.owner(), &known)?;
        ledger.remove(&attachment.container, &attachment.interface)
    }

    fn mode(&self, network: &Network) -> Result<MacVlanMode> {
        match network.options.get("mode").map_or("bridge", String::as_str) {
            "bridge" => Ok(MacVlanMode::Bridge),
            "private" => Ok(MacVlanMode::Private),
            "vepa" => Ok(MacVlanMode::Vepa),
            "passthru" => Ok(MacVlanMode::Passthrough),
            "l2" if self.kind == Kind::Ipvlan => Ok(MacVlanMode::Bridge),
            _ => Err(Error::Definition {
                network: network.name.clone(),
                reason: "its mode is bridge, private, vepa or passthru; an ipvlan's is l2",
            }),
        }
    }

    fn ipam(&self, network: &Network) -> HostLocal {
        HostLocal::of(network, &self.leases)
    }
}
