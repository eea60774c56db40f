//! The content store: an OCI image layout on disk.

use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, Digest};

use crate::{ContentStore, Ingest, Provider, Result};

/// An image that a layout or an archive lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its names, as they are written there; none if it has no name.
    pub names: Vec<String>,
    /// Its index or manifest.
    pub root: Descriptor,
}

/// An OCI image layout on disk.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
}

impl Layout {
    /// Opens a layout that is there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// Opens a layout as a content store, and makes it first if the folder is empty or absent.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the name stands for.
    pub fn resolve(&self, name: &str) -> Result<Option<Descriptor>> {
        let _ = name;
        todo!()
    }

    /// Lets the name stand for an image; costs nothing if it does already.
    pub fn set(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        let _ = (name, descriptor);
        todo!()
    }

    /// Takes the name away; whether it was there.
    pub fn unset(&self, name: &str) -> Result<bool> {
        let _ = name;
        todo!()
    }

    /// All names.
    pub fn names(&self) -> Result<Vec<String>> {
        todo!()
    }

    /// All entries of `index.json`.
    pub fn images(&self) -> Result<Vec<Listing>> {
        todo!()
    }
}

impl Provider for Layout {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let _ = descriptor;
        todo!()
    }
}

impl ContentStore for Layout {
    fn contains(&self, descriptor: &Descriptor) -> Result<bool> {
        let _ = descriptor;
        todo!()
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>> {
        todo!()
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        let _ = digest;
        todo!()
    }
}
