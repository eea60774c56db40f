#![doc = include_str!("../README.md")]

mod bundle;
pub mod cgroup;
mod child;
mod error;
mod exit;
mod external;
mod features;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod id;
pub mod mount;
mod native;
mod offspring;
mod plan;
mod resolve;
mod rights;
pub mod rootless;
mod runtime;
pub mod seccomp;
mod state;
mod stats;
mod sys;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use bundle::{Bundle, Root};
pub use cgroup::{Cgroup, Hierarchies};
pub use error::{Error, Result};
pub use exit::{ExitStatus, wait};
pub use external::External;
pub use features::Features;
pub use id::ContainerId;
pub use native::{Details, Native};
pub use oci_spec;
pub use runtime::{
    CreateOptions, Created, DeleteMode, ExecOptions, Keyring, KillTarget, Labels, Paused, RootSwitch, Runtime, Stdio,
    SubCgroup, inherited_fds,
};
pub use state::{State, Status};
pub use stats::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};
