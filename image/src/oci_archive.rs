//! An OCI image layout in a tar file.

use std::io::Read;
use std::path::Path;

use oci_spec::image::Descriptor;

use crate::archive::Archive;
use crate::digest::path_parts;
use crate::provider::MAX_DOCUMENT;
use crate::{ArchiveProblem, Error, Listing, Provider, Result, layout};

/// An OCI image layout in a tar file, plain or gzip, or in memory.
///
/// What skopeo and podman call `oci-archive`, what `docker buildx build -o type=oci` writes, and what `docker save` writes since Docker 25.
/// A compressed one is inflated again for each reader that does not go on where the last one stopped.
#[derive(Debug)]
pub struct OciArchive {
    archive: Archive,
}

impl OciArchive {
    /// Opens an archive; it is scanned once, and nothing is written to disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Archive::open(path.as_ref())?)
    }

    /// Opens an archive that is in memory, as from `include_bytes!`.
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self> {
        Self::new(Archive::from_bytes(bytes)?)
    }

    pub(crate) fn new(archive: Archive) -> Result<Self> {
        let Some(raw) = archive.document("oci-layout", 4096)? else {
            let docker = archive.find("manifest.json")?.is_some();
            return Err(archive.error(if docker {
                ArchiveProblem::OtherKind("docker-archive")
            } else {
                ArchiveProblem::Missing("oci-layout")
            }));
        };
        layout::check_layout_file(&raw).map_err(|reason| Error::NotLayout { path: archive.name().into(), reason })?;
        Ok(Self { archive })
    }

    /// The images that its `index.json` lists.
    pub fn images(&self) -> Result<Vec<Listing>> {
        let raw = self
            .archive
            .document("index.json", MAX_DOCUMENT)?
            .ok_or_else(|| self.archive.error(ArchiveProblem::Missing("index.json")))?;
        layout::list(&raw, &format!("index.json in {}", self.archive.name()))
    }
}

impl Provider for OciArchive {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let name = path_parts(descriptor.digest())?.join("/");
        let digest = descriptor.digest();
        let place = self
            .archive
            .find(&name)?
            .ok_or_else(|| Error::BlobMissing { location: self.location(), digest: digest.clone() })?;
        self.archive.read(place).map_err(|source| Error::from_read(source, self.archive.name(), digest))
    }

    fn location(&self) -> String {
        self.archive.name().to_owned()
    }
}
