//! What can go wrong.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::cni::{Command, Failure};
use crate::port::{PortMapping, Protocol};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a network operation. `Display` says this level only; what lies beneath is in
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network namespace could not be made, opened or entered.
    #[error("cannot {operation} the network namespace {}", path.display())]
    Namespace {
        /// What was tried (`open`, `enter` …).
        operation: &'static str,
        /// Its path; of one that has none, where its descriptor shows.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread for the work inside a namespace could not be started.
    #[error("cannot start a thread for the work inside a network namespace")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// A netlink socket did not work.
    #[error("cannot {operation} a netlink socket")]
    Socket {
        /// What was tried (`open`, `write to` …).
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {operation}")]
    Refused {
        /// What was asked (`set the interface lo up` …).
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer over netlink could not be read: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A container of the host's network must not have a namespace of its own.
    #[error("the host network was asked for, and the namespace given is not the host's")]
    NotHost,
    /// A definition cannot be.
    #[error("network {network:?} cannot be: {reason}")]
    Definition {
        /// The network's name.
        network: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A subnet cannot be.
    #[error("subnet {subnet} cannot be: {reason}")]
    Subnet {
        /// The subnet.
        subnet: IpNet,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two subnets have addresses in common.
    #[error("subnet {subnet} overlaps with {other} of network {network:?}: choose another")]
    Overlap {
        /// The subnet.
        subnet: IpNet,
        /// The one that was there before.
        other: IpNet,
        /// Whose that is.
        network: String,
    },
    /// No subnet was given, and none of those that are chosen by themselves is free.
    #[error("no subnet is free for network {network:?}: give it one")]
    NoSubnet {
        /// The network's name.
        network: String,
    },
    /// What is asked for a container cannot be.
    #[error("cannot attach container {container:?}: {reason}")]
    Attachment {
        /// The container's id.
        container: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A hardware address cannot be.
    #[error("{text:?} is no hardware address of an interface: write it as 02:42:0a:58:00:02")]
    Mac {
        /// As it was given.
        text: String,
    },
    /// A port cannot be.
    #[error("{text:?} is no port to publish: {reason}")]
    Port {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A port of the host is somebody's already.
    #[error("port {}/{protocol} of {} is taken: stop what listens there, or publish another",
        port, address.map_or_else(|| "the host".to_owned(), |address| address.to_string()))]
    PortTaken {
        /// The host's address, or all.
        address: Option<IpAddr>,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// An address is not the host's.
    #[error("the host has no address {address}: ports can be published on its own addresses alone")]
    NotLocal {
        /// The address.
        address: IpAddr,
    },
    /// A port cannot be published in this network.
    #[error("cannot publish {mapping}: {reason}")]
    Publish {
        /// The ports.
        mapping: Box<PortMapping>,
        /// Why not.
        reason: &'static str,
    },
    /// All addresses are given out.
    #[error("all addresses of {subnet} are given out")]
    Exhausted {
        /// The first subnet of the pool.
        subnet: IpNet,
    },
    /// Somebody has the address that was asked for.
    #[error("address {address} is given to container {container:?}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        container: String,
    },
    /// The address that was asked for is not one that is given out.
    #[error("address {address} is in no subnet of the network, or is the network's own")]
    AddressOutside {
        /// The address.
        address: IpAddr,
    },
    /// Ports are published by a packet filter, and there is none.
    #[error("no ports can be published: this host's networks have no packet filter")]
    NoFirewall,
    /// Sandboxes are attached to a network that should go.
    #[error("network {network:?} is in use: {containers} containers are attached, {first} among them")]
    InUse {
        /// The network's name.
        network: String,
        /// One of them.
        first: String,
        /// How many there are.
        containers: usize,
    },
    /// There is no interface of that name.
    #[error("the host has no interface {name:?}")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// An interface of the host is in the way.
    #[error("the host's interface {name:?} is not this network's bridge: remove it, or name the bridge otherwise")]
    NotOurs {
        /// Its name.
        name: String,
    },
    /// A file that remembers a network's state could not be used.
    #[error("cannot {operation} {}", path.display())]
    State {
        /// What was tried (`open`, `write` …).
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A network's configuration file or folder could not be read.
    #[error("cannot read the CNI configuration {}", path.display())]
    NetworkFile {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A network's configuration makes no sense.
    #[error("the CNI configuration {} is wrong: {reason}", origin.display())]
    NetworkConfig {
        /// Where it was read.
        origin: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No file of the folder configures that network.
    #[error("there is no CNI network {name:?} in {}", folder.display())]
    NetworkUnknown {
        /// Its name.
        name: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A container, an interface or an argument cannot be called so.
    #[error("the CNI attachment is wrong: {failure}")]
    InvalidAttachment {
        /// What is wrong with it, with the specification's code.
        failure: Failure,
    },
    /// There is no record of that attachment.
    #[error("the container {container:?} is not attached to the CNI network {network:?} as {interface}")]
    NotAttached {
        /// The container.
        container: String,
        /// Its interface.
        interface: String,
        /// The network.
        network: String,
    },
    /// CHECK was asked for before version 0.4.0.
    #[error("the CNI network {network:?} has version {version}, which has no CHECK")]
    CheckUnsupported {
        /// The network.
        network: String,
        /// Its version.
        version: &'static str,
    },
    /// A plugin's executable was not found.
    #[error("the CNI plugin {plugin:?} is in none of the folders {}", listed(path))]
    PluginMissing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        path: Vec<PathBuf>,
    },
    /// A plugin could not be executed or spoken with.
    #[error("cannot {operation} the CNI plugin {}", executable.display())]
    PluginExecute {
        /// What was tried (`execute`, `wait for` …).
        operation: &'static str,
        /// Its executable.
        executable: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A plugin reported an error, or ended without a report that makes sense.
    #[error("the CNI plugin {plugin:?} failed to {command}: {failure}")]
    Plugin {
        /// Its name.
        plugin: String,
        /// What it was asked to do.
        command: Command,
        /// What it reported.
        failure: Failure,
    },
    /// A plugin took too long, and was killed.
    #[error("the CNI plugin {plugin:?} did not {command} within {limit:?}, and was killed")]
    PluginTimeout {
        /// Its name.
        plugin: String,
        /// What it was asked to do.
        command: Command,
        /// How long it might have taken.
        limit: Duration,
    },
    /// The record of an attachment could not be kept or read.
    #[error("cannot {operation} the CNI cache {}", path.display())]
    CacheFile {
        /// What was tried (`write`, `lock` …).
        operation: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The record of an attachment makes no sense.
    #[error("the CNI cache {} is wrong: {reason}", path.display())]
    CacheContent {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Several steps failed, of which each was tried.
    #[error("{} steps failed: {}", errors.len(), joined(errors))]
    Several {
        /// All that failed, in order.
        errors: Vec<Error>,
    },
}

fn listed(path: &[PathBuf]) -> String {
    let folders: Vec<_> = path.iter().map(|folder| folder.display().to_string()).collect();
    folders.join(", ")
}

/// Several errors have no one source, so each is told with all that lies beneath it.
fn joined(errors: &[Error]) -> String {
    let chain = |error: &Error| {
        let mut line = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            line = format!("{line}: {error}");
            source = error.source();
        }
        line
    };
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}
