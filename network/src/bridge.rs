//! The driver `bridge`: a switch on the host, and a cable from it to each sandbox.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;

use crate::driver::Driver;
use crate::endpoint::{Attachment, Endpoint};
use crate::error::{Error, Result};
use crate::firewall::{Firewall, Published, Realm};
use crate::ipam::{HostLocal, Ipam, Owner};
use crate::ledger::{Ledger, Lock, Record};
use crate::link::{self, New};
use crate::mac::MacAddress;
use crate::netlink::{Batch, Netlink};
use crate::network::{Family, Network, Subnet};
use crate::sandbox::{self, Sandbox};
use crate::{ports, sysctl};

/// The driver `bridge`.
///
/// A network's bridge is made with its first sandbox and removed with the last one. The host routes between it and the
/// outside: `net.ipv4.ip_forward`, and with IPv6 addresses `net.ipv6.conf.all.forwarding`, are set to 1 when the bridge of
/// a network that is not internal is made, and left so.
#[derive(Debug)]
pub struct Bridge {
    /// The host's network namespace; without one, the one that the calling thread is in.
    pub host: Option<Sandbox>,
    /// A folder for what is attached; best one that a restart of the machine clears, as it clears the interfaces.
    pub state: PathBuf,
    /// A folder for the addresses that are given out, a folder for each network: `host-local`'s `dataDir`.
    pub leases: PathBuf,
    /// The packet filter.
    pub firewall: Arc<dyn Firewall>,
    /// When a bridge goes that nothing is attached to any more.
    pub sweep: Sweep,
}

/// When a bridge goes that nothing is attached to any more. That costs some 20 ms, which the kernel takes to wait for all
/// processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sweep {
    /// With the last attachment.
    #[default]
    AtOnce,
    /// When [`Bridge::sweep`] is called, which can be while other things are done.
    Later,
}

/// What the names of cables begin with.
const CABLE: &str = "veth";

/// How many names are tried for the host's end of a cable whose name is taken.
const ATTEMPTS: u32 = 16;

impl Driver for Bridge {
    /// Gives the network a bridge's name, and a subnet if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::Overlap`] if a subnet has addresses of another network; [`Error::NoSubnet`].
    fn create(&self, mut network: Network, others: &[Network]) -> Result<Network> {
        network.check()?;
        let taken: Vec<&Subnet> = others.iter().flat_map(|other| &other.subnets).collect();
        if network.subnets.is_empty() {
            let routes = self.netlink()?.routes()?;
            let free = |subnet: &Subnet| {
                !taken.iter().any(|other| other.overlaps(subnet))
                    && !routes.iter().any(|route| Subnet::new(*route).overlaps(subnet))
            };
            let chosen = candidates().map(Subnet::new).find(free);
            network.subnets = vec![chosen.ok_or_else(|| Error::NoSubnet { network: network.name.clone() })?];
        }
        for other in others {
            for (subnet, other_subnet) in network.subnets.iter().flat_map(|a| other.subnets.iter().map(move |b| (a, b)))
            {
                if subnet.overlaps(other_subnet) {
                    let (subnet, with) = (subnet.subnet, other_subnet.subnet);
                    return Err(Error::Overlap { subnet, other: with, network: other.name.clone() });
                }
            }
        }
        for subnet in &mut network.subnets {
            subnet.gateway = Some(subnet.gateway());
        }
        network.interface = Some(bridge_name(&network));
        Ok(network)
    }

    fn delete(&self, network: &Network) -> Result<()> {
        let ledger = self.ledger(network);
        let lock = ledger.lock_alone()?;
        let records = ledger.list()?;
        if let Some(first) = records.first() {
            let (network, first) = (network.name.clone(), first.attachment.container.clone());
            return Err(Error::InUse { network, first, containers: records.len() });
        }
        self.remove_bridge(network, &ledger, &lock)?;
        self.ipam(network).remove_folder()
    }

    fn attach(&self, network: &Network, sandbox: &Sandbox, attachment: &Attachment) -> Result<Endpoint> {
        attachment.check()?;
        if network.internal
            && let Some(mapping) = attachment.ports.first()
        {
            let mapping = Box::new(mapping.clone());
            return Err(Error::Publish { mapping, reason: "the network is internal" });
        }
        let ledger = self.ledger(network);
        let lock = ledger.lock_shared()?;
        if let Some(record) = ledger.read(&attachment.container, &attachment.interface)? {
            if record.ready && record.endpoint.stands(sandbox)? {
                return Ok(record.endpoint);
            }
            self.undo(network, &ledger, Some(sandbox), &record)?;
        }
        let mut record = Record { attachment: attachment.clone(), endpoint: Endpoint::default(), ready: false };
        let made = ledger.write(&record).and_then(|()| self.make(network, &ledger, sandbox, &mut record));
        if let Err(error) = made {
            // What cannot be undone now is on record, and undone by the next attempt or by `repair`.
            let _ = self.undo(network, &ledger, Some(sandbox), &record);
            drop(lock);
            let _ = self.sweep_now(network);
            return Err(error);
        }
        Ok(record.endpoint)
    }

    fn detach(&self, network: &Network, sandbox: Option<&Sandbox>, attachment: &Attachment) -> Result<()> {
        attachment.check()?;
        let ledger = self.ledger(network);
        let lock = ledger.lock_shared()?;
        if let Some(record) = ledger.read(&attachment.container, &attachment.interface)? {
            self.undo(network, &ledger, sandbox, &record)?;
        } else {
            // Its first record may have been on the way.
            ledger.remove(&attachment.container, &attachment.interface)?;
        }
        drop(lock);
        self.sweep_now(network)
    }

    fn repair(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<()> {
        Self::repair(self, network, alive).map(drop)
    }
}

impl Bridge {
    /// The endpoint of an attachment, if it is attached.
    pub fn endpoint(&self, network: &Network, container: &str, interface: &str) -> Result<Option<Endpoint>> {
        let record = self.ledger(network).read(container, interface)?;
        Ok(record.filter(|record| record.ready).map(|record| record.endpoint))
    }

    /// All that is attached to a network.
    pub fn endpoints(&self, network: &Network) -> Result<Vec<(Attachment, Endpoint)>> {
        let records = self.ledger(network).list()?.into_iter().filter(|record| record.ready);
        Ok(records.map(|record| (record.attachment, record.endpoint)).collect())
    }

    /// Undoes what killed programs have left of a network: attachments and addresses of containers that are not alive,
    /// and the bridge if nothing is attached. Returns the containers whose attachments were undone.
    pub fn repair(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let ledger = self.ledger(network);
        let lock = ledger.lock_alone()?;
        let mut undone = Vec::new();
        let mut kept = Vec::new();
        for record in ledger.list()? {
            let Attachment { container, interface, .. } = record.attachment.clone();
            if alive(&container) {
                kept.push(Owner { container, interface });
            } else {
                self.undo(network, &ledger, None, &record)?;
                undone.push(container);
            }
        }
        self.ipam(network).release_dead(&|owner| alive(&owner.container) || kept.contains(owner))?;
        self.unplug_strangers(network, &ledger)?;
        if kept.is_empty() {
            self.remove_bridge(network, &ledger, &lock)?;
        }
        Ok(undone)
    }

    /// Removes cables of the bridge that no record knows: of a namespace that somebody holds though its container is gone.
    fn unplug_strangers(&self, network: &Network, ledger: &Ledger) -> Result<()> {
        let mut host = self.netlink()?;
        let Some(bridge) = host.link(&bridge_name(network))? else { return Ok(()) };
        let known: Vec<String> =
            ledger.list()?.into_iter().filter_map(|record| record.endpoint.host_interface).collect();
        let mut batch = Batch::new();
        for link in host.links()? {
            if link.master == Some(bridge.index) && link.name.starts_with(CABLE) && !known.contains(&link.name) {
                batch.remove(format!("remove the interface {}", link.name), link::delete(link.index));
            }
        }
        host.commit(&batch)
    }

    /// Removes the bridge, and what the packet filter has of the network, if nothing is attached.
    pub fn sweep(&self, network: &Network) -> Result<()> {
        let ledger = self.ledger(network);
        if !ledger.is_empty()? {
            return Ok(());
        }
        let lock = ledger.lock_alone()?;
        if !ledger.is_empty()? {
            return Ok(());
        }
        self.remove_bridge(network, &ledger, &lock)
    }

    /// Sets the packet filter up again for all that is attached to these networks, after somebody has flushed it.
    pub fn reconcile(&self, networks: &[Network]) -> Result<()> {
        let (mut realms, mut ports) = (Vec::new(), Vec::new());
        let mut locks = Vec::new();
        for network in networks {
            let ledger = self.ledger(network);
            locks.push(ledger.lock_shared()?);
            let mut records = ledger.list()?;
            // What is in the making sees to itself.
            records.retain(|record| record.ready);
            if !records.is_empty() {
                realms.push(Realm::of(network, &bridge_name(network)));
            }
            ports.extend(records.iter().flat_map(|record| ports::published(&record.endpoint)));
        }
        self.firewall.reconcile(self.host.as_ref(), &realms, &ports)
    }

    fn make(&self, network: &Network, ledger: &Ledger, sandbox: &Sandbox, record: &mut Record) -> Result<()> {
        let Record { attachment, endpoint, .. } = &mut *record;
        endpoint.lease(network, &self.ipam(network), attachment)?;
        endpoint.ports = ports::choose(self.host.as_ref(), &attachment.ports, &endpoint.addresses)?;
        let mut host = self.netlink()?;
        let bridge = self.ensure_bridge(network, &mut host)?;
        let interface = attachment.interface.clone();
        plug(network, ledger, sandbox, record, &mut host, bridge)?;

        let endpoint = &mut record.endpoint;
        endpoint.configure(sandbox, &interface)?;
        host.settle(endpoint.host_interface.as_deref().unwrap_or_default())?;
        host.settle(&bridge_name(network))?;
        let published = ports::published(endpoint);
        if !published.is_empty() {
            self.open_loopback(network, &published)?;
            self.firewall.publish(self.host.as_ref(), &published)?;
        }
        record.ready = true;
        ledger.write(record)
    }

    /// The bridge's number; makes it if it is not there, or not complete.
    fn ensure_bridge(&self, network: &Network, host: &mut Netlink) -> Result<u32> {
        let name = bridge_name(network);
        let realm = Realm::of(network, &name);
        let mac = bridge_mac(network);
        if let Some(link) = host.link(&name)? {
            if link.kind.as_deref() != Some("bridge") || mac.is_some_and(|mac| link.address != mac.octets()) {
                return Err(Error::NotOurs { name });
            }
            // It is set up last.
            if link.up {
                if !self.firewall.stands(self.host.as_ref(), &realm)? {
                    self.firewall.admit(self.host.as_ref(), &realm)?;
                    let records = self.ledger(network).list()?;
                    let ports: Vec<Published> = records
                        .iter()
                        .filter(|record| record.ready)
                        .flat_map(|r| ports::published(&r.endpoint))
                        .collect();
                    self.firewall.publish(self.host.as_ref(), &ports)?;
                }
                return Ok(link.index);
            }
        }
        let vlan_filtering = network.options.get("vlan_filtering").is_some_and(|value| value == "1" || value == "true");
        let new = New { name: &name, mac, mtu: network.mtu, namespace: None, up: false };
        let mut batch = Batch::new();
        batch.ensure(format!("make the bridge {name}"), link::bridge(&new, vlan_filtering));
        host.commit(&batch)?;
        let index = host.link(&name)?.ok_or_else(|| Error::NoInterface { name: name.clone() })?.index;
        let (v4, v6) = (network.has(Family::V4), network.has(Family::V6));
        let forward = !network.internal;
        let bridge = name.clone();
        sandbox::within(self.host.as_ref(), move || -> Result<()> {
            // A container must not tell the host its routes: CVE-2020-13401.
            sysctl::set_if_there(&format!("net/ipv6/conf/{bridge}/accept_ra"), "0")?;
            if forward && v4 {
                sysctl::ensure("net/ipv4/ip_forward", "1")?;
            }
            if forward && v6 {
                sysctl::ensure("net/ipv6/conf/all/forwarding", "1")?;
            }
            Ok(())
        })??;
        self.firewall.admit(self.host.as_ref(), &realm)?;
        let mut batch = Batch::new();
        // The kernel would give a link-local address a second late, and not before a port has a carrier; until then no
        // IPv6 neighbour can be asked for on behalf of others.
        batch.change(format!("choose the addresses of the bridge {name}"), link::without_link_local(index));
        if v6 {
            batch.ensure(format!("give the bridge {name} a link-local address"), link::address(index, link_local()));
        }
        for subnet in &network.subnets {
            let address = IpNet::new(subnet.gateway(), subnet.subnet.prefix_len()).unwrap_or(subnet.subnet);
            batch.ensure(format!("give the bridge {name} the address {address}"), link::address(index, address));
        }
        batch.change(format!("set the bridge {name} up"), link::up(index));
        host.commit(&batch)?;
        Ok(index)
    }

    /// Lets the host's own programs reach published ports at 127.0.0.1: their packets leave through the bridge. The
    /// firewall keeps everybody else from addressing 127.0.0.0/8 through it (CVE-2020-8558).
    fn open_loopback(&self, network: &Network, published: &[Published]) -> Result<()> {
        let loopback = |port: &Published| match port.host {
            IpAddr::V4(host) => host.is_unspecified() || host.is_loopback(),
            IpAddr::V6(_) => false,
        };
        if !published.iter().any(loopback) {
            return Ok(());
        }
        let path = format!("net/ipv4/conf/{}/route_localnet", bridge_name(network));
        sandbox::within(self.host.as_ref(), move || sysctl::ensure(&path, "1"))?
    }

    /// Undoes an attachment, however far it came: what was made last goes first, the record at the end.
    fn undo(&self, network: &Network, ledger: &Ledger, sandbox: Option<&Sandbox>, record: &Record) -> Result<()> {
        let Record { attachment, endpoint, .. } = record;
        let published = ports::published(endpoint);
        if !published.is_empty() {
            self.firewall.unpublish(self.host.as_ref(), &published)?;
        }
        self.unplug(endpoint, sandbox)?;
        let known: Vec<IpAddr> = endpoint.addresses.iter().map(IpNet::addr).collect();
        self.ipam(network).release(&attachment.owner(), &known)?;
        ledger.remove(&attachment.container, &attachment.interface)
    }

    /// Takes the cable away, if the sandbox stays. That costs some 20 ms, in which the kernel waits for all processors; with a
    /// namespace that goes, it clears up both ends by itself and nobody waits.
    fn unplug(&self, endpoint: &Endpoint, sandbox: Option<&Sandbox>) -> Result<()> {
        let (Some(_), Some(name)) = (sandbox, &endpoint.host_interface) else { return Ok(()) };
        let mut host = self.netlink()?;
        let Some(link) = host.link(name)? else { return Ok(()) };
        let mut batch = Batch::new();
        batch.remove(format!("remove the interface {name}"), link::delete(link.index));
        host.commit(&batch)
    }

    fn sweep_now(&self, network: &Network) -> Result<()> {
        match self.sweep {
            Sweep::AtOnce => self.sweep(network),
            Sweep::Later => Ok(()),
        }
    }

    fn remove_bridge(&self, network: &Network, ledger: &Ledger, _alone: &Lock) -> Result<()> {
        let name = bridge_name(network);
        self.firewall.withdraw(self.host.as_ref(), &Realm::of(network, &name))?;
        let mut host = self.netlink()?;
        if let Some(link) = host.link(&name)?
            && link.kind.as_deref() == Some("bridge")
            && bridge_mac(network).is_none_or(|mac| link.address == mac.octets())
        {
            let mut batch = Batch::new();
            batch.remove(format!("remove the bridge {name}"), link::delete(link.index));
            host.commit(&batch)?;
        }
        ledger.remove_folder()
    }

    fn netlink(&self) -> Result<Netlink> {
        sandbox::within(self.host.as_ref(), Netlink::open)?
    }

    fn ledger(&self, network: &Network) -> Ledger {
        Ledger::of(&self.state, &network.id)
    }

    fn ipam(&self, network: &Network) -> HostLocal {
        HostLocal::of(network, &self.leases)
    }
}

/// Makes the cable: both ends in one message, each where it belongs.
fn plug(
    network: &Network,
    ledger: &Ledger,
    sandbox: &Sandbox,
    record: &mut Record,
    host: &mut Netlink,
    bridge: u32,
) -> Result<()> {
    let mut attempt = 0;
    loop {
        let name = host_name(network, &record.attachment, attempt);
        record.endpoint.host_interface = Some(name.clone());
        ledger.write(record)?;
        let interface = &record.attachment.interface;
        // An end cannot be born up: the other one is not complete then (ENOTCONN).
        let near = New { name: &name, mac: None, mtu: network.mtu, namespace: None, up: false };
        let mac = record.endpoint.mac;
        let far = New { name: interface, mac, mtu: network.mtu, namespace: Some(sandbox.namespace()), up: false };
        let mut batch = Batch::new();
        batch.create(format!("make the interface {interface} with its host's end {name}"), link::veth(&near, &far));
        batch.change(format!("connect {name} to the bridge"), link::join(&name, bridge, None));
        batch.change(format!("set up {name} as a port"), link::port(&name, !network.switch));
        match host.commit(&batch) {
            // The end of an earlier cable may still be on its way out: its namespace is cleared up in the background.
            Err(Error::Refused { source, .. })
                if source.raw_os_error() == Some(Errno::EEXIST as i32)
                    && attempt < ATTEMPTS
                    && host.link(&name)?.is_some() =>
            {
                attempt += 1;
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// What routers are often called by their own links.
fn link_local() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), 64))
}

fn bridge_name(network: &Network) -> String {
    network.interface.clone().unwrap_or_else(|| {
        let id = &network.id;
        // Docker's way; a short name is told apart from another network's by nothing else.
        if id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            format!("br-{}", &id[..12])
        } else {
            format!("br-{:012x}", hash(id) & 0xffff_ffff_ffff)
        }
    })
}

/// A fixed address: otherwise a bridge takes that of one of its ports, and changes it when that one goes.
fn bridge_mac(network: &Network) -> Option<MacAddress> {
    network.subnets.first().map(|subnet| MacAddress::of(subnet.gateway()))
}

fn host_name(network: &Network, attachment: &Attachment, attempt: u32) -> String {
    let hash = hash((&network.id, &attachment.container, &attachment.interface, attempt));
    format!("{CABLE}{:011x}", hash & 0xfff_ffff_ffff)
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The subnets that are chosen by themselves, in their order: few use the first ones.
fn candidates() -> impl Iterator<Item = IpNet> {
    let net = |a, b, c, prefix| Ipv4Net::new(Ipv4Addr::new(a, b, c, 0), prefix).ok().map(IpNet::V4);
    let wide = iter::once(10).flat_map(move |a| (89..=255).map(move |b| net(a, b, 0, 24)));
    let more = (0..=255).map(move |c| net(172, 30, c, 24));
    wide.chain(more).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel() {
        let network = Network::named("mine");
        assert_eq!(bridge_name(&network).len(), 15);
        let docker = Network { id: "0123456789abcdef".to_owned(), ..network.clone() };
        assert_eq!(bridge_name(&docker), "br-0123456789ab");
        let attachment = Attachment { container: "c".to_owned(), ..Attachment::default() };
        assert_eq!(host_name(&network, &attachment, 0).len(), 15);
        assert_ne!(host_name(&network, &attachment, 0), host_name(&network, &attachment, 1));
    }
}
