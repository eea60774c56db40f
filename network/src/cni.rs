//! The [Container Network Interface](https://www.cni.dev/docs/spec/), from both sides: [`Runner`] executes chains of
//! plugins as a container engine does, [`plugin`] is what a plugin is written with.
//!
//! Specification versions 0.3.0 to 1.1.0, and 0.1.0 and 0.2.0 for results that have no more than one address a family.
//! [`Success`] is what ADD gives, whatever the version of the network's configuration; [`Failure`] is an error as a
//! plugin reports it.
//!
//! ```no_run
//! use std::path::Path;
//! use estiba_network::cni::{Attachment, Network, Runner};
//!
//! let network = Network::load(Path::new("/etc/cni/net.d"), "podman")?;
//! let runner = Runner::default(); // plugins in /opt/cni/bin and /usr/lib/cni, results in /var/lib/cni
//! let attachment = Attachment::new("c1", Path::new("/run/netns/c1"), "eth0");
//! let success = runner.add(&network, &attachment)?;
//! println!("{}", success.ips[0].address);
//! runner.del(&network, &attachment)?;
//! # Ok::<(), estiba_network::Error>(())
//! ```

mod cache;
mod config;
mod driver;
mod execute;
mod failure;
mod names;
pub mod plugin;
mod runner;
mod success;
mod version;

pub use cache::Cached;
pub use config::{Network, PluginConfig};
pub use driver::Cni;
pub use failure::{Failure, code};
pub use names::{check_container_id, check_interface_name, check_network_name};
pub use runner::{Attachment, Runner, Valid};
pub use serde_json;
pub use success::{Dns, Interface, IpConfig, Route, Success};
pub use version::Version;

use std::fmt;

/// What a plugin is asked to do (specification, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Make the interface, or change it.
    Add,
    /// Undo that.
    Del,
    /// Look whether all is as ADD left it. Since 0.4.0.
    Check,
    /// Remove what belongs to attachments that are no more. Since 1.1.0.
    Gc,
    /// Say whether ADD would work. Since 1.1.0.
    Status,
    /// Say which versions are supported.
    Version,
}

impl Command {
    /// Its name in `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The command of that name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version];
        all.into_iter().find(|command| command.as_str() == name)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
