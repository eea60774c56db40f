//! Snapshots by the kernel's overlay file system.

use std::ops::ControlFlow;
use std::path::Path;

use oci_spec::runtime::Mount;

use crate::{Durability, Info, Key, Name, Repaired, Result, SnapshotId, Snapshotter, Usage};

/// How [`Overlay`] makes its mounts and keeps its promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// What a power cut may cost.
    pub durability: Durability,
    /// Mount active snapshots with `volatile`: the kernel never syncs the upper folder, `fsync` in the container is
    /// free, and after a crash of the machine such a snapshot can no longer be mounted. Layers are never volatile.
    pub volatile: bool,
}

/// Snapshots as folders that the kernel's overlay file system stacks.
#[derive(Debug)]
pub struct Overlay {}

impl Overlay {
    /// Opens the store in the folder `root` (`ROOT/snapshots`), which is made if it is missing. Cheap.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::with_options(root, OverlayOptions::default())
    }

    /// [`open`](Self::open) with options.
    pub fn with_options(_root: impl AsRef<Path>, _options: OverlayOptions) -> Result<Self> {
        todo!()
    }

    /// Finds and removes what killed processes and power cuts left behind.
    pub fn repair(&self) -> Result<Repaired> {
        todo!()
    }
}

impl Snapshotter for Overlay {
    fn stat(&self, _id: &SnapshotId) -> Result<Info> {
        todo!()
    }
    fn usage(&self, _id: &SnapshotId) -> Result<Usage> {
        todo!()
    }
    fn mounts(&self, _key: &Key) -> Result<Vec<Mount>> {
        todo!()
    }
    fn prepare(&self, _key: &Key, _parent: Option<&Name>) -> Result<Vec<Mount>> {
        todo!()
    }
    fn view(&self, _key: &Key, _parent: Option<&Name>) -> Result<Vec<Mount>> {
        todo!()
    }
    fn commit(&self, _name: &Name, _key: &Key) -> Result<()> {
        todo!()
    }
    fn remove(&self, _id: &SnapshotId) -> Result<()> {
        todo!()
    }
    fn walk(&self, _visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()> {
        todo!()
    }
}
