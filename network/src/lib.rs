#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod driver;
mod error;
mod netlink;
mod sandbox;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use driver::{Driver, Endpoint, Host, Interface, Loopback};
pub use error::{Error, Result};
pub use netlink::Netlink;
pub use sandbox::Sandbox;
