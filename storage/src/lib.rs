#![doc = include_str!("../README.md")]

pub use oci_spec;

pub mod archive;
mod copy;
mod error;
pub mod layer;
pub mod mounts;
mod name;
mod native;
mod overlay;
mod record;
mod snapshotter;
mod store;
mod sys;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;

pub use error::{Error, Result};
pub use name::{Key, Name, SnapshotId};
pub use native::Native;
pub use overlay::{Overlay, OverlayOptions, Writes};
pub use snapshotter::{Durability, Info, Kind, Repaired, Snapshotter, Usage};
