//! One image for one platform.

use oci_spec::image::{Descriptor, Digest, ImageManifest, PlatformBuilder};

use crate::digest::{digest_of, path_parts};
use crate::{Error, ImageConfig, Platform, Provider, Result, manifest, media};

/// The largest layer that is believed, in bytes: 1 TiB.
const MAX_LAYER: u64 = 1 << 40;

/// The most layers of one image: what the kernel stacks in one overlay.
const MAX_LAYERS: usize = 500;

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
    /// How the blob is compressed.
    pub compression: media::Compression,
    /// The digest of the blob's content after decompression.
    pub diff_id: Digest,
}

impl Image {
    /// Loads the image that `root` (an index or a manifest) has for `platform`.
    ///
    /// Of an index the best match is taken, as [`Platform::rank`] has it; attestations in it are skipped. A manifest is taken for
    /// whatever platform it is: see [`platform`](Self::platform).
    ///
    /// # Errors
    ///
    /// Whatever is not an image of a root file system that can be unpacked here: artifacts, foreign or encrypted layers, ambiguous
    /// documents, a config whose diff ids do not go with the layers.
    pub fn load<P: Provider + ?Sized>(provider: &P, root: &Descriptor, platform: &Platform) -> Result<Self> {
        let manifest::Resolved { mut descriptor, raw, manifest } = manifest::resolve(provider, root, platform)?;
        let (raw_config, config) = manifest::read_config(provider, manifest.config())?;
        let layers = pair_layers(&descriptor, &manifest, &config)?;
        let mut described =
            PlatformBuilder::default().os(config.oci.os().clone()).architecture(config.oci.architecture().clone());
        if let Some(variant) = config.oci.variant() {
            described = described.variant(variant.clone());
        }
        descriptor.set_platform(described.build().ok());
        Ok(Self { descriptor, manifest, raw_manifest: raw, config, raw_config, layers })
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
        self.config.platform()
    }

    /// The layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The chain id of each layer: of the stack of it and all layers below, lowest first.
    ///
    /// See the image specification's `config.md`, "Layer ChainID".
    #[must_use]
    pub fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let id = match chain.last() {
                None => layer.diff_id.clone(),
                Some(below) => digest_of(format!("{below} {}", layer.diff_id).as_bytes()),
            };
            chain.push(id);
        }
        chain
    }
}

fn pair_layers(descriptor: &Descriptor, manifest: &ImageManifest, config: &ImageConfig) -> Result<Vec<Layer>> {
    let config_digest = manifest.config().digest();
    let rootfs = config.oci.rootfs();
    if rootfs.typ() != "layers" {
        let source = format!("rootfs.type is {:?}, not \"layers\"", rootfs.typ()).into();
        return Err(Error::InvalidDocument { what: format!("config {config_digest}"), source });
    }
    let (layers, diff_ids) = (manifest.layers(), rootfs.diff_ids());
    // What kind of thing a layer is says more than the counts: an artifact has layers of its own kind.
    let compressions = layers.iter().map(media::layer_compression).collect::<Result<Vec<_>>>()?;
    if layers.len() != diff_ids.len() {
        let digest = descriptor.digest().clone();
        return Err(Error::LayerCount { digest, layers: layers.len(), diff_ids: diff_ids.len() });
    }
    if layers.len() > MAX_LAYERS {
        let source = format!("it has {} layers, and at most {MAX_LAYERS} can be used", layers.len()).into();
        return Err(Error::InvalidDocument { what: format!("manifest {}", descriptor.digest()), source });
    }
    let pairs = layers.iter().zip(compressions).zip(diff_ids);
    pairs
        .map(|((layer, compression), diff_id)| {
            path_parts(layer.digest())?;
            if layer.size() > MAX_LAYER {
                return Err(Error::TooLarge {
                    what: format!("layer {}", layer.digest()),
                    size: layer.size(),
                    limit: MAX_LAYER,
                });
            }
            let invalid = || Error::InvalidDiffId { digest: config_digest.clone(), diff_id: diff_id.clone() };
            let diff_id: Digest = diff_id.parse().map_err(|_| invalid())?;
            path_parts(&diff_id)?;
            Ok(Layer { descriptor: layer.clone(), compression, diff_id })
        })
        .collect()
}
