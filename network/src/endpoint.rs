//! What a sandbox asks of a network, and what it gets.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ipam::{Ipam, Owner};
use crate::link;
use crate::mac::MacAddress;
use crate::netlink::{Batch, LOOPBACK_INDEX};
use crate::network::{Network, is_interface_name, is_name};
use crate::port::PortMapping;
use crate::sandbox::Sandbox;

/// A container's place in a network, as it is asked for. `container` and `interface` together are its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Whose it is: the container's id.
    pub container: String,
    /// The name that the interface gets in the sandbox.
    pub interface: String,
    /// Addresses that it must have, one of a family at most; for the other families, any.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The hardware address; without it, one that belongs to the first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The ports of the host that lead to it.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Its names in the network, beside its id.
    #[serde(default)]
    pub names: Vec<String>,
    /// Whether the network's gateway is the sandbox's way to everywhere else: of several networks, one's.
    #[serde(default = "yes")]
    pub default_route: bool,
}

fn yes() -> bool {
    true
}

impl Default for Attachment {
    /// `eth0` of nobody, with the default route.
    fn default() -> Self {
        Self {
            container: String::new(),
            interface: "eth0".to_owned(),
            addresses: Vec::new(),
            mac: None,
            ports: Vec::new(),
            names: Vec::new(),
            default_route: true,
        }
    }
}

impl Attachment {
    /// # Errors
    ///
    /// [`Error::Attachment`] or [`Error::Port`]: what in it can never be.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason| Err(Error::Attachment { container: self.container.clone(), reason });
        if !is_name(&self.container) {
            return wrong("a container's id has letters, digits, '_', '.' and '-', 128 at most");
        }
        if !is_interface_name(&self.interface) || self.interface == "lo" {
            return wrong("the interface's name is one of 15 bytes at most, without '/', ':', '%' and spaces, not lo");
        }
        self.ports.iter().try_for_each(PortMapping::check)
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner { container: self.container.clone(), interface: self.interface.clone() }
    }
}

/// What a sandbox was given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The interfaces that are up in the sandbox for it.
    pub interfaces: Vec<Interface>,
    /// Its addresses, with the length of the network's prefix.
    #[serde(default)]
    pub addresses: Vec<IpNet>,
    /// The gateways that the default routes lead to.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// The hardware address of the first interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The name of the host's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_interface: Option<String>,
    /// The published ports, with the numbers that free ones got.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

impl Endpoint {
    /// Takes addresses for it, and what follows from them.
    pub(crate) fn lease(&mut self, network: &Network, ipam: &dyn Ipam, attachment: &Attachment) -> Result<()> {
        let leases = ipam.reserve(&attachment.owner(), &attachment.addresses)?;
        self.addresses = leases.iter().map(|lease| lease.address).collect();
        if attachment.default_route && !network.internal {
            self.gateways = leases.iter().filter_map(|lease| lease.gateway).collect();
        }
        self.mac = attachment.mac.or(self.addresses.first().map(|address| MacAddress::of(address.addr())));
        Ok(())
    }

    /// Sets up an interface that is in the sandbox, in one write.
    pub(crate) fn configure(&mut self, sandbox: &Sandbox, interface: &str) -> Result<()> {
        let mut inside = sandbox.netlink()?;
        let link = inside.link(interface)?.ok_or_else(|| Error::NoInterface { name: interface.to_owned() })?;
        let mut batch = Batch::new();
        batch.change("set the interface lo up", link::up(LOOPBACK_INDEX));
        for address in &self.addresses {
            batch.create(format!("give {interface} the address {address}"), link::address(link.index, *address));
        }
        batch.change(format!("set the interface {interface} up"), link::up(link.index));
        for gateway in &self.gateways {
            let route = link::default_route(link.index, *gateway);
            batch.create(format!("make {gateway} the gateway of {interface}"), route);
        }
        inside.commit(&batch)?;
        inside.settle(interface)?;
        self.interfaces = vec![Interface { index: link.index, name: interface.to_owned(), up: true }];
        Ok(())
    }

    /// Whether the interface is in the sandbox, and is the one that was made.
    pub(crate) fn stands(&self, sandbox: &Sandbox) -> Result<bool> {
        let Some(interface) = self.interfaces.first() else { return Ok(false) };
        let link = sandbox.netlink()?.link(&interface.name)?;
        Ok(link.is_some_and(|link| {
            link.up && link.index == interface.index && self.mac.is_none_or(|mac| link.address == mac.octets())
        }))
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
}
