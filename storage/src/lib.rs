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
mod staging;
mod store;
mod sys;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;
pub mod volume;

pub use error::{Error, Result};
pub use name::{Key, Name, SnapshotId, VolumeName};
pub use native::Native;
pub use overlay::{Overlay, OverlayOptions, Writes};
pub use snapshotter::{Durability, Info, Kind, LateParent, Repaired, Snapshotter, Usage};
