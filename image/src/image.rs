//! One image for one platform.

use oci_spec::image::{Descriptor, Digest, ImageManifest};

use crate::{ImageConfig, Platform, Provider, Result};

/// An image for one platform: its manifest and config, verified, with the raw bytes beside what was read from them.
#[derive(Clone, Debug)]
pub struct Image {
    descriptor: Descriptor,
    manifest: ImageManifest,
    raw_manifest: Vec<u8>,
    config: ImageConfig,
    raw_config: Vec<u8>,
    layers: Vec<Layer>,
}

/// A layer: the blob as it is stored, and the digest of the tar in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the blob's content after decompression.
    pub diff_id: Digest,
}

impl Image {
    /// Loads the image that `root` (an index or a manifest) has for `platform`.
    pub fn load<P: Provider + ?Sized>(provider: &P, root: &Descriptor, platform: &Platform) -> Result<Self> {
        let _ = (provider, root, platform);
        todo!()
    }

    /// The manifest's descriptor: of the platform's manifest, if the root was an index.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &ImageManifest {
        &self.manifest
    }

    /// The manifest's bytes as they were fetched.
    #[must_use]
    pub fn raw_manifest(&self) -> &[u8] {
        &self.raw_manifest
    }

    /// The config.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The config's bytes as they were fetched.
    #[must_use]
    pub fn raw_config(&self) -> &[u8] {
        &self.raw_config
    }

    /// The image id: the config's digest.
    #[must_use]
    pub fn id(&self) -> &Digest {
        self.manifest.config().digest()
    }

    /// The platform that the config says the image is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        todo!()
    }

    /// The layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The chain id of each layer: of the stack of it and all layers below, lowest first.
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        todo!()
    }
}
