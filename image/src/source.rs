//! Where images come from, as people write it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use crate::{Error, Layout, Platform, Reference, Result};

/// Where an image comes from: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:REFERENCE]`, or a reference.
///
/// The syntax is that of containers/image (skopeo, podman, buildah): the path ends at the first colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder that is an OCI image layout.
    OciDir {
        /// The folder.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A tar file of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A tar file that `docker save` wrote.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A name in a registry.
    Registry(Reference),
}

/// An image that is in the content store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its name in the content store.
    pub name: String,
    /// Its manifest.
    pub manifest: Descriptor,
}

impl Source {
    /// Copies the image for this machine's platform into the content store, verified, and names it there.
    pub fn import(&self, to: &Layout) -> Result<Imported> {
        self.import_for(&Platform::host(), to)
    }

    /// The same for another platform.
    pub fn import_for(&self, platform: &Platform, to: &Layout) -> Result<Imported> {
        let _ = (platform, to);
        todo!()
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let _ = text;
        todo!()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        todo!()
    }
}
