#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod config;
mod container;
mod engine;
mod error;
mod folder;
mod identity;
mod images;
mod record;
mod repair;
mod request;
mod running;
mod spec;
mod stdio;
mod task;
mod unpack;
mod user;

pub use config::{Config, Parts, ShimProgram, SnapshotterKind};
pub use container::{Container, Kill};
pub use engine::Engine;
pub use error::{Error, Result};
pub use identity::{ContainerName, Id};
pub use images::Image;
pub use record::{Exit, Record, Stage, Status, Summary};
pub use request::{Bind, CreateRequest, NetworkMode};
pub use running::Running;

pub use estiba_image as image;
pub use estiba_network as network;
pub use estiba_runtime as runtime;
pub use estiba_shim as shim;
pub use estiba_storage as storage;
pub use oci_spec;

/// The one call that a program which embeds the engine makes first in its `main`, if it is to be its own shim
/// ([`ShimProgram::Reexec`]): in a process that was started as a shim it serves and never returns; in any other it
/// returns at once.
pub fn reexec() {
    estiba_shim::reexec();
}
