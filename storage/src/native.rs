//! Snapshots by copying.

use std::ops::ControlFlow;
use std::path::Path;

use oci_spec::runtime::Mount;

use crate::{Durability, Info, Key, Name, Repaired, Result, SnapshotId, Snapshotter, Usage};

/// Snapshots as full copies (reflinks where the file system has them).
#[derive(Debug)]
pub struct Native {}

impl Native {
    /// Opens the store in the folder `root` (`ROOT/snapshots`), which is made if it is missing. Cheap.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::with_durability(root, Durability::default())
    }

    /// [`open`](Self::open) with another promise.
    pub fn with_durability(_root: impl AsRef<Path>, _durability: Durability) -> Result<Self> {
        todo!()
    }

    /// Finds and removes what killed processes and power cuts left behind.
    pub fn repair(&self) -> Result<Repaired> {
        todo!()
    }
}

impl Snapshotter for Native {
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
