#![doc = include_str!("../README.md")]

pub use oci_spec;

mod error;
pub mod layer;
mod name;
mod native;
mod overlay;
mod snapshotter;

pub use error::{Error, Result};
pub use name::{Key, Name, SnapshotId};
pub use native::Native;
pub use overlay::{Overlay, OverlayOptions};
pub use snapshotter::{Durability, Info, Kind, Repaired, Snapshotter, Usage};
