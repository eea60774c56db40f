//! Networks: what attaches a sandbox to them.

use std::fmt::Debug;

use crate::endpoint::{Attachment, Endpoint, Interface};
use crate::error::{Error, Result};
use crate::network::Network;
use crate::sandbox::Sandbox;

/// A kind of network. All operations block, and can be repeated: what is there already is no error, and what is gone
/// already neither. After an error everything is as it was.
pub trait Driver: Debug + Send + Sync {
    /// Checks the definition against the other networks that there are, and fills in what it leaves open. What it
    /// returns is to be kept, and given to all other operations. Nothing of the network need exist before the first
    /// sandbox is attached.
    fn create(&self, network: Network, others: &[Network]) -> Result<Network> {
        let _ = others;
        network.check()?;
        Ok(network)
    }

    /// Removes all that there is of the network.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] while sandboxes are attached.
    fn delete(&self, network: &Network) -> Result<()> {
        let _ = network;
        Ok(())
    }

    /// Connects the sandbox, which may be that of a running container.
    fn attach(&self, network: &Network, sandbox: &Sandbox, attachment: &Attachment) -> Result<Endpoint>;

    /// Undoes what killed programs have left of a network: whatever belongs to containers that are not alive.
    fn repair(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<()> {
        let _ = (network, alive);
        Ok(())
    }

    /// Undoes an attachment, of which only `container` and `interface` count. Without a sandbox, its namespace is taken
    /// to be gone or about to go, with everything in it.
    fn detach(&self, network: &Network, sandbox: Option<&Sandbox>, attachment: &Attachment) -> Result<()>;
}

/// The network `none`: the loopback interface, and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loopback;

impl Driver for Loopback {
    fn attach(&self, _network: &Network, sandbox: &Sandbox, _attachment: &Attachment) -> Result<Endpoint> {
        sandbox.netlink()?.set_loopback_up()?;
        let interfaces = vec![Interface { index: 1, name: "lo".to_owned(), up: true }];
        Ok(Endpoint { interfaces, ..Endpoint::default() })
    }

    /// There is nothing to undo: the interface goes with its namespace.
    fn detach(&self, _network: &Network, _sandbox: Option<&Sandbox>, _attachment: &Attachment) -> Result<()> {
        Ok(())
    }
}

/// The network `host`: the namespace of the calling process, as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Driver for Host {
    /// Changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NotHost`] if the sandbox is another namespace than the caller's: that container would believe that it
    /// is on the host's network, and have none.
    fn attach(&self, _network: &Network, sandbox: &Sandbox, _attachment: &Attachment) -> Result<Endpoint> {
        if !sandbox.is_current()? {
            return Err(Error::NotHost);
        }
        let interfaces = sandbox.netlink()?.interfaces()?.into_iter().filter(|interface| interface.up).collect();
        Ok(Endpoint { interfaces, ..Endpoint::default() })
    }

    fn detach(&self, _network: &Network, _sandbox: Option<&Sandbox>, _attachment: &Attachment) -> Result<()> {
        Ok(())
    }
}
