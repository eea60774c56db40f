//! Images as the engine speaks of them: a name and the manifest that it stood for.

use oci_spec::image::Descriptor;
use serde::{Deserialize, Serialize};

/// An image in the engine's content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The name that it is known by.
    pub name: String,
    /// The manifest for this machine's platform. The content behind a digest never changes.
    pub manifest: Descriptor,
}

impl Image {
    /// Its name in the short form that Docker shows, if it is a reference.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        match self.name.parse::<estiba_image::Reference>() {
            Ok(reference) if reference.to_string() == self.name => reference.familiar(),
            _ => self.name.clone(),
        }
    }

    /// The image of a container whose record cannot be read.
    pub(crate) fn unknown() -> Self {
        Self { name: String::new(), manifest: nowhere(0) }
    }
}

/// A manifest that nothing has.
fn nowhere(size: u64) -> Descriptor {
    let digest: oci_spec::image::Digest = format!("sha256:{}", "0".repeat(64)).parse().expect("64 digits are a digest");
    Descriptor::new(oci_spec::image::MediaType::ImageManifest, size, digest)
}

#[cfg(test)]
impl Image {
    /// An image that is nowhere, for tests that only look at requests.
    pub(crate) fn for_tests() -> Self {
        Self { name: "test".to_owned(), manifest: nowhere(2) }
    }
}
