//! Mounts that are attached nowhere, and mounts at a path.
//!
//! The crates around this one only *describe* mounts; they are performed here.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Mount;

use crate::Result;

/// A detached mount: a filesystem tree that has no place in any namespace's tree of mounts. Dropping it unmounts it.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Performs the one mount of a snapshot, an overlay or a bind.
    pub fn new(mounts: &[Mount]) -> Result<Self> {
        todo!("{mounts:?}")
    }

    /// Opens a file of the tree, with the flags of [`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html). Absolute links and
    /// `..` stay inside the tree.
    pub fn open(&self, path: impl AsRef<Path>, flags: i32) -> Result<File> {
        todo!("{:?} {flags}", path.as_ref())
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Performs the one mount of a snapshot at a folder of the host.
pub fn attach(mounts: &[Mount], target: &Path) -> Result<()> {
    Tree::new(mounts)?;
    todo!("{target:?}")
}

/// Unmounts what is mounted at a folder, however often. If nothing is, or the folder is absent, that is fine.
pub fn detach(target: &Path) -> Result<()> {
    todo!("{target:?}")
}
