//! What `docker save` writes.

use std::io::Read;
use std::path::Path;

use oci_spec::image::Descriptor;

use crate::{Listing, Provider, Result};

/// What `docker save` writes, plain or gzip, or in memory.
#[derive(Debug)]
pub struct DockerArchive {}

impl DockerArchive {
    /// Opens an archive; it is scanned once, and nothing is written to disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// Opens an archive that is in memory, as from `include_bytes!`.
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self> {
        let _ = bytes;
        todo!()
    }

    /// The images that its `manifest.json` lists.
    pub fn images(&self) -> Result<Vec<Listing>> {
        todo!()
    }
}

impl Provider for DockerArchive {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let _ = descriptor;
        todo!()
    }
}
