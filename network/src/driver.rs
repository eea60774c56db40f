//! Networks: what attaches a sandbox to them.

use std::fmt::Debug;

use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

/// A kind of network. All operations block, and can be repeated: what is there already is no error.
pub trait Driver: Debug + Send + Sync {
    /// Connects the sandbox. When it fails, the sandbox is as it was.
    fn attach(&self, sandbox: &Sandbox) -> Result<Endpoint>;

    /// Disconnects the sandbox; one that is not connected is fine.
    fn detach(&self, sandbox: &Sandbox) -> Result<()>;
}

/// What a sandbox was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The interfaces that are up in the sandbox.
    pub interfaces: Vec<Interface>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is up.
    pub up: bool,
}

/// The network `none`: the loopback interface, and nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loopback;

impl Driver for Loopback {
    fn attach(&self, sandbox: &Sandbox) -> Result<Endpoint> {
        sandbox.netlink()?.set_loopback_up()?;
        Ok(Endpoint { interfaces: vec![Interface { index: 1, name: "lo".to_owned(), up: true }] })
    }

    /// There is nothing to undo: the interface goes with its namespace.
    fn detach(&self, _sandbox: &Sandbox) -> Result<()> {
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
    fn attach(&self, sandbox: &Sandbox) -> Result<Endpoint> {
        if !sandbox.is_current()? {
            return Err(Error::NotHost);
        }
        let interfaces = sandbox.netlink()?.interfaces()?.into_iter().filter(|interface| interface.up).collect();
        Ok(Endpoint { interfaces })
    }

    fn detach(&self, _sandbox: &Sandbox) -> Result<()> {
        Ok(())
    }
}
