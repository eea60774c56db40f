//! What `docker save` writes.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;
use serde_json::json;

use crate::archive::{Archive, Place};
use crate::digest::{Hasher, digest_of};
use crate::provider::MAX_DOCUMENT;
use crate::{ArchiveProblem, Error, ImageConfig, Listing, Provider, Reference, Result};

/// How many images one archive may have.
const MAX_IMAGES: usize = 1024;
/// How many bytes all configs of one archive may have.
const MAX_CONFIGS: u64 = 64 << 20;

/// What `docker save` writes, plain or gzip, or in memory.
///
/// Both forms are read: the one before Docker 25 (`HEX.json`, `ID/layer.tar`, `repositories`), which podman and skopeo still write, and the one
/// since, which is an OCI layout as well. `manifest.json` says which images there are.
///
/// Such an archive has no manifests of the registry's kind, so an OCI manifest is made for each image. Its config is the config in
/// the archive, byte by byte: the image id stays the same. Its layers are as they lie in the archive, mostly not compressed.
/// The same archive always gives the same manifest.
#[derive(Debug)]
pub struct DockerArchive {
    archive: Archive,
    images: Vec<Listing>,
    blobs: HashMap<Digest, Blob>,
}

#[derive(Debug)]
enum Blob {
    Document(Vec<u8>),
    Layer(Place),
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    /// Opens an archive; it is scanned once, and nothing is written to disk.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Archive::open(path.as_ref())?)
    }

    /// Opens an archive that is in memory, as from `include_bytes!`.
    pub fn from_bytes(bytes: &'static [u8]) -> Result<Self> {
        Self::new(Archive::from_bytes(bytes)?)
    }

    pub(crate) fn new(archive: Archive) -> Result<Self> {
        let Some(raw) = archive.document("manifest.json", MAX_DOCUMENT)? else {
            let oci = archive.find("oci-layout")?.is_some();
            let old = archive.find("repositories")?.is_some();
            return Err(archive.error(match (oci, old) {
                (true, _) => ArchiveProblem::OtherKind("oci-archive"),
                (false, true) => ArchiveProblem::NoManifest,
                (false, false) => ArchiveProblem::Missing("manifest.json"),
            }));
        };
        let what = format!("manifest.json in {}", archive.name());
        let items: Vec<Item> = serde_json::from_slice(&raw)
            .map_err(|source| Error::InvalidDocument { what: what.clone(), source: source.into() })?;
        if items.len() > MAX_IMAGES {
            return Err(Error::TooLarge { what, size: items.len() as u64, limit: MAX_IMAGES as u64 });
        }
        let mut made = Self { archive, images: Vec::new(), blobs: HashMap::new() };
        let mut left = MAX_CONFIGS;
        for item in &items {
            let listing = made.add(item, &mut left)?;
            made.images.push(listing);
        }
        Ok(made)
    }

    /// The images that its `manifest.json` lists, with their names normalised.
    #[must_use]
    pub fn images(&self) -> &[Listing] {
        &self.images
    }

    fn add(&mut self, item: &Item, left: &mut u64) -> Result<Listing> {
        let mut names = Vec::new();
        for tag in item.repo_tags.iter().flatten() {
            names.push(tag.parse::<Reference>()?.to_string());
        }
        let missing = || Error::NoSuchImage {
            location: self.archive.name().to_owned(),
            wanted: item.config.clone(),
            available: Vec::new(),
        };
        let raw = self.archive.document(&item.config, MAX_DOCUMENT.min(*left))?.ok_or_else(missing)?;
        *left -= raw.len() as u64;
        let digest = digest_of(&raw);
        if let Some(named) = digest_in_name(&item.config)
            && named != digest
        {
            let location = self.archive.name().to_owned();
            return Err(Error::DigestMismatch { location, expected: named, actual: digest });
        }
        let what = format!("config {digest} in {}", self.archive.name());
        let config =
            ImageConfig::parse(&raw).map_err(|source| Error::InvalidDocument { what, source: source.into() })?;
        let files = item.layers.as_deref().unwrap_or_default();
        let diff_ids = config.oci.rootfs().diff_ids();
        if files.len() != diff_ids.len() {
            return Err(Error::LayerCount { digest, layers: files.len(), diff_ids: diff_ids.len() });
        }
        let mut layers = Vec::with_capacity(files.len());
        for (file, diff_id) in files.iter().zip(diff_ids) {
            let diff_id = diff_id
                .parse()
                .map_err(|_| Error::InvalidDiffId { digest: digest.clone(), diff_id: diff_id.clone() })?;
            layers.push(self.layer(file, diff_id)?);
        }
        // serde_json writes the keys sorted: the same archive gives the same bytes.
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.as_ref(),
            "config": { "mediaType": MediaType::ImageConfig.as_ref(), "digest": digest.as_ref(), "size": raw.len() },
            "layers": layers.iter().map(|layer| json!({
                "mediaType": layer.media_type().as_ref(),
                "digest": layer.digest().as_ref(),
                "size": layer.size(),
            })).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        self.blobs.insert(digest, Blob::Document(raw));
        let root = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, digest_of(&manifest));
        self.blobs.insert(root.digest().clone(), Blob::Document(manifest));
        Ok(Listing { names, root })
    }

    /// Describes a layer as it lies in the archive. A layer that is not compressed has its diff id for a digest: it need not be read
    /// to be described, and whoever reads it finds out if that is not true.
    fn layer(&mut self, file: &str, diff_id: Digest) -> Result<Descriptor> {
        let place = self.archive.find(file)?.cloned();
        let place = place
            .ok_or_else(|| Error::BlobMissing { location: self.archive.name().to_owned(), digest: diff_id.clone() })?;
        let media_type = match place.head {
            [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
            [0x28, 0xb5, 0x2f, 0xfd] => MediaType::ImageLayerZstd,
            _ => MediaType::ImageLayer,
        };
        let digest = match (&media_type, digest_in_name(file)) {
            (MediaType::ImageLayer, _) => diff_id,
            (_, Some(named)) if named != diff_id => named,
            _ => self.hash(&place)?,
        };
        let size = place.size;
        self.blobs.insert(digest.clone(), Blob::Layer(place));
        Ok(Descriptor::new(media_type, size, digest))
    }

    fn hash(&self, place: &Place) -> Result<Digest> {
        let fail = |source| Error::io("read", self.archive.name(), source);
        let mut reader = self.archive.read(place).map_err(fail)?;
        let (mut hasher, mut buffer) = (Hasher::sha256(), vec![0; 256 << 10]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fail(error)),
            }
        }
    }
}

impl Provider for DockerArchive {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let digest = descriptor.digest();
        match self.blobs.get(digest) {
            Some(Blob::Document(bytes)) => Ok(Box::new(Cursor::new(bytes))),
            Some(Blob::Layer(place)) => {
                self.archive.read(place).map_err(|source| Error::from_read(source, self.archive.name(), digest))
            }
            None => Err(Error::BlobMissing { location: self.location(), digest: digest.clone() }),
        }
    }

    fn location(&self) -> String {
        self.archive.name().to_owned()
    }
}

/// The digest that a file is named for: `HEX.json`, `HEX.tar`, `blobs/sha256/HEX`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let hex = match name.strip_prefix("blobs/sha256/") {
        Some(hex) => hex,
        None => last.strip_suffix(".json")?,
    };
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_digests() {
        let hex = digest_of(b"x").digest().to_owned();
        for name in [format!("{hex}.json"), format!("blobs/sha256/{hex}")] {
            assert_eq!(digest_in_name(&name), Some(digest_of(b"x")), "{name}");
        }
        for name in [format!("{hex}/layer.tar"), "config.json".to_owned(), format!("blobs/sha256/{hex}/x")] {
            assert_eq!(digest_in_name(&name), None, "{name}");
        }
    }
}
