#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "registry")]
mod arrivals;
mod bundle;
mod changes;
mod config;
mod connection;
mod container;
mod device;
mod engine;
mod error;
mod events;
mod exec;
mod files;
mod folder;
mod health;
mod identity;
mod images;
mod journal;
mod logs;
mod monitor;
mod networks;
mod process;
mod record;
mod records;
#[cfg(feature = "registry")]
mod registry;
mod repair;
mod request;
mod running;
mod sharing;
mod signal;
mod spec;
mod start;
mod store;
mod streams;
mod unpack;
mod user;
mod volumes;

pub use changes::CommitRequest;
pub use config::{Config, Parts, ShimProgram, SnapshotterKind};
pub use container::{Container, Kill, OwnVolumes, Until, Usage};
pub use engine::Engine;
pub use error::{Error, Result, chain};
pub use events::{Events, EventsRequest};
pub use exec::{Exec, ExecRequest};
pub use health::{Health, HealthStatus, Probe};
pub use identity::{ContainerName, Id};
pub use images::Image;
pub use journal::{Event, Kind};
pub use logs::{Logs, LogsRequest};
pub use networks::{Connection, DEFAULT_NETWORK, NetworkRequest};
pub use record::{Ended, Exit, Record, Stage, Status, Summary};
pub use request::{
    Bind, CreateRequest, Device, DeviceAccess, DeviceKind, DeviceLimit, DeviceLimitKind, DeviceRule, Dns, ExtraHost,
    Healthcheck, IpcMode, Limits, LogConfig, Namespace, NetworkMode, RestartPolicy, Tmpfs, Ulimit,
};
pub use running::Running;
pub use store::{DiskUsage, Force, ImageDiskUsage, Removed};
pub use streams::Streams;
pub use volumes::VolumeUse;

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
    estiba_runtime::rootless::helper();
    estiba_shim::reexec();
}

/// The same, for a program that has runtimes of its own: they are found by their names in the shim, too.
pub fn reexec_with(runtimes: &shim::Runtimes) {
    estiba_runtime::rootless::helper();
    estiba_shim::reexec_with(runtimes);
}
