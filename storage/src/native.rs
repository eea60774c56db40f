//! Snapshots by copying.

use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::Mode;

use crate::overlay::{bind, create_root};
use crate::record::{Made, Record};
use crate::store::{Links, Store};
use crate::{Durability, Error, Info, Key, Name, Repaired, Result, SnapshotId, Snapshotter, Usage, copy, sys, tree};

/// Snapshots as full copies of their parents: on any file system and kernel. Blocks are shared where the file system
/// can (btrfs, xfs); elsewhere each snapshot costs what its whole tree costs.
#[derive(Debug)]
pub struct Native {
    store: Store,
}

impl Native {
    /// Opens the store in the folder `root` (`ROOT/snapshots`), which is made if it is missing. Cheap.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::with_durability(root, Durability::default())
    }

    /// [`open`](Self::open) with another promise.
    pub fn with_durability(root: impl AsRef<Path>, durability: Durability) -> Result<Self> {
        let store = Store::open(root.as_ref(), "native 1", Links::None, durability)?;
        if store.root().to_str().is_none() {
            return Err(Error::UnmountablePath { path: store.root().to_owned() });
        }
        Ok(Native { store })
    }

    /// Finds and removes what killed processes and power cuts left behind. Other processes may go on meanwhile.
    pub fn repair(&self) -> Result<Repaired> {
        self.store.repair()
    }

    fn describe(&self, key: &Key, record: &Record) -> Vec<Mount> {
        let own = format!("{}/fs", self.store.key_path(key).display());
        match (record.made, &record.parent) {
            (Made::Active | Made::Late, _) => bind(&own, "rw"),
            (Made::View, None) => bind(&own, "ro"),
            (Made::View, Some(parent)) => self.committed(parent),
        }
    }

    fn committed(&self, name: &Name) -> Vec<Mount> {
        bind(&format!("{}/fs", self.store.name_path(name).display()), "ro")
    }
}

impl Snapshotter for Native {
    fn stat(&self, id: &SnapshotId) -> Result<Info> {
        self.store.info(id)
    }

    fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        self.store.usage(id)
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        Ok(self.describe(key, &self.store.record(&key.into())?))
    }

    fn look(&self, name: &Name) -> Result<Vec<Mount>> {
        self.store.record(&name.into())?;
        Ok(self.committed(name))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        let record = self.store.create(Made::Active, key, parent, |folder, path, parent| {
            create_root(folder, path, parent)?;
            let Some(parent) = parent else { return Ok(()) };
            let copy = || -> rustix::io::Result<()> {
                let open = |dir, name| rustix::fs::openat(dir, name, sys::DIR, Mode::empty());
                rustix::fs::mkdirat(folder, c"links", Mode::RWXU)?;
                let (from, to) = (open(parent.folder.as_fd(), c"fs")?, open(folder, c"fs")?);
                copy::tree(from.as_fd(), to.as_fd(), open(folder, c"links")?.as_fd())?;
                tree::remove(folder, c"links")
            };
            copy().map_err(Error::io("copy the parent to", path))
        })?;
        Ok(self.describe(key, &record))
    }

    fn view(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        let record = self.store.create(Made::View, key, parent, |folder, path, parent| match parent {
            Some(_) => Ok(()),
            None => create_root(folder, path, None),
        })?;
        Ok(self.describe(key, &record))
    }

    fn commit(&self, name: &Name, key: &Key) -> Result<()> {
        self.store.commit(name, key)
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        self.store.remove(id)
    }

    fn sync(&self, name: &Name) -> Result<()> {
        self.store.sync(name)
    }

    fn repair(&self) -> Result<Repaired> {
        self.store.repair()
    }

    fn walk(&self, visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()> {
        self.store.walk(visit)
    }
}
