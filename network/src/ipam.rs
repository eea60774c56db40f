//! Who has which address.

use std::fmt::Debug;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, Result};

mod host_local;

pub use host_local::HostLocal;

/// Who an address is given to: an interface of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// The container's id.
    pub container: String,
    /// The interface's name in the container.
    pub interface: String,
}

/// An address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address, with the length of its subnet's prefix.
    pub address: IpNet,
    /// The subnet's gateway.
    pub gateway: Option<IpAddr>,
    /// Who has it. A file that was cut off in its making names nobody: an empty container.
    pub owner: Owner,
}

/// A keeper of addresses, which gives none of them out twice however many programs ask at once. All operations block.
pub trait Ipam: Debug + Send + Sync {
    /// Gives an address of each pool to the owner: the one that is wanted, if one is, or any. After an error nothing is
    /// given. Nobody is asked whether the owner has addresses already.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`], [`Error::AddressTaken`], or [`Error::AddressOutside`] for one that is in no pool or is the
    /// gateway's.
    fn reserve(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<Lease>>;

    /// Takes back what the owner has; nothing is fine. With `known` addresses only those are looked at, which costs the
    /// same however many are given out.
    fn release(&self, owner: &Owner, known: &[IpAddr]) -> Result<()>;

    /// All addresses that are given out, in their order.
    fn leases(&self) -> Result<Vec<Lease>>;

    /// Takes back what owners have who are not alive any more, and returns it.
    fn release_dead(&self, alive: &dyn Fn(&Owner) -> bool) -> Result<Vec<Lease>> {
        let mut dead = self.leases()?;
        dead.retain(|lease| !alive(&lease.owner));
        for lease in &dead {
            self.release(&lease.owner, &[lease.address.addr()])?;
        }
        Ok(dead)
    }
}

/// Addresses that are known beforehand: everybody who asks gets all of them, so it is for one sandbox.
#[derive(Debug, Clone, Default)]
pub struct Static {
    /// The addresses, and their gateways.
    pub addresses: Vec<(IpNet, Option<IpAddr>)>,
}

impl Ipam for Static {
    fn reserve(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<Lease>> {
        let known = |address: &IpAddr| self.addresses.iter().any(|(known, _)| known.addr() == *address);
        if let Some(address) = wanted.iter().find(|address| !known(address)) {
            return Err(Error::AddressOutside { address: *address });
        }
        let lease = |(address, gateway): &(IpNet, Option<IpAddr>)| Lease {
            address: *address,
            gateway: *gateway,
            owner: owner.clone(),
        };
        Ok(self.addresses.iter().map(lease).collect())
    }

    fn release(&self, _owner: &Owner, _known: &[IpAddr]) -> Result<()> {
        Ok(())
    }

    /// It remembers nobody.
    fn leases(&self) -> Result<Vec<Lease>> {
        Ok(Vec::new())
    }
}
