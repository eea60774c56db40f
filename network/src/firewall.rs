//! What the host's packet filter does for networks: the way in by published ports, the way out by the host's address, and
//! the walls between networks.

use std::fmt::Debug;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, Result};
use crate::network::Network;
use crate::port::Protocol;
use crate::sandbox::Sandbox;

/// One port of the host that leads to a port of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Published {
    /// Its protocol.
    pub protocol: Protocol,
    /// The host's address; of the family of `container`, and unspecified for all of them.
    pub host: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's address.
    pub container: IpAddr,
    /// The container's port.
    pub container_port: u16,
}

/// A network's bridge, to the packet filter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent wall or door")]
pub struct Realm {
    /// The bridge's name.
    pub bridge: String,
    /// The addresses of its containers.
    pub subnets: Vec<IpNet>,
    /// Nothing leaves and nothing enters.
    pub internal: bool,
    /// Other networks' containers are kept out.
    pub isolate: bool,
    /// What leaves has the host's address.
    pub masquerade: bool,
    /// Only published ports lead in from elsewhere, and what it has asked for. Without, everything that is routed to it.
    pub walls: bool,
}

impl Realm {
    /// The realm of a network whose bridge has that name.
    #[must_use]
    pub fn of(network: &Network, bridge: &str) -> Self {
        let Network { internal, isolate, masquerade, .. } = *network;
        let subnets = network.subnets.iter().map(|subnet| subnet.subnet).collect();
        Self { bridge: bridge.to_owned(), subnets, internal, isolate, masquerade, walls: true }
    }
}

/// A host's packet filter. `host` is its network namespace; without one it is the caller's. All operations block and can
/// be repeated; each is made as a whole or not at all.
pub trait Firewall: Debug + Send + Sync {
    /// Sets up what a network needs.
    fn admit(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<()>;

    /// Whether what [`admit`](Self::admit) has set up still stands.
    fn stands(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<bool>;

    /// Takes back what [`admit`](Self::admit) has set up; with the last network, everything goes.
    fn withdraw(&self, host: Option<&Sandbox>, realm: &Realm) -> Result<()>;

    /// Publishes ports.
    ///
    /// # Errors
    ///
    /// [`Error::PortTaken`] if one leads to another container already.
    fn publish(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<()>;

    /// Whether all of these ports lead where they are said to lead.
    fn leads(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<bool>;

    /// Takes back ports that lead where they are said to lead; others are let alone.
    fn unpublish(&self, host: Option<&Sandbox>, ports: &[Published]) -> Result<()>;

    /// Sets up everything that is missing, after somebody has flushed the filter or changed it.
    fn reconcile(&self, host: Option<&Sandbox>, realms: &[Realm], ports: &[Published]) -> Result<()> {
        for realm in realms {
            self.admit(host, realm)?;
        }
        self.publish(host, ports)
    }
}

/// No packet filter: for hosts without one, and for those who see to it themselves. It publishes no ports.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFirewall;

impl Firewall for NoFirewall {
    fn admit(&self, _host: Option<&Sandbox>, _realm: &Realm) -> Result<()> {
        Ok(())
    }

    fn stands(&self, _host: Option<&Sandbox>, _realm: &Realm) -> Result<bool> {
        Ok(true)
    }

    fn withdraw(&self, _host: Option<&Sandbox>, _realm: &Realm) -> Result<()> {
        Ok(())
    }

    fn publish(&self, _host: Option<&Sandbox>, ports: &[Published]) -> Result<()> {
        if ports.is_empty() { Ok(()) } else { Err(Error::NoFirewall) }
    }

    fn leads(&self, _host: Option<&Sandbox>, ports: &[Published]) -> Result<bool> {
        Ok(ports.is_empty())
    }

    fn unpublish(&self, _host: Option<&Sandbox>, _ports: &[Published]) -> Result<()> {
        Ok(())
    }
}
