#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod bridge;
pub mod cni;
mod conntrack;
pub mod dns;
mod driver;
mod endpoint;
mod error;
pub mod files;
pub mod firewall;
pub mod ipam;
mod ledger;
mod link;
mod mac;
mod macvlan;
mod netfilter;
mod netlink;
mod network;
mod nftables;
mod port;
pub mod ports;
mod sandbox;
mod sysctl;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use bridge::{Bridge, Sweep};
pub use cni::Cni;
pub use driver::{Driver, Host, Loopback};
pub use endpoint::{Attachment, Endpoint, Interface};
pub use error::{Error, Result};
pub use firewall::Firewall;
pub use ipam::Ipam;
pub use ipnet;
pub use mac::MacAddress;
pub use macvlan::{Kind, Macvlan};
pub use netlink::{Batch, Link, Netlink};
pub use network::{Network, Subnet};
pub use nftables::Nftables;
pub use port::{PortMapping, Protocol};
pub use sandbox::Sandbox;
