//! Media types: OCI's and Docker's for the same things.

use oci_spec::image::{Descriptor, MediaType};

use crate::{Error, Result};

/// OCI's index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index, which it calls a manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's layer, not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker's layer, compressed with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker's layer, compressed with zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// How a layer's tar is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// zstd, possibly of several frames.
    Zstd,
}

/// Whether it is an image index (OCI's or Docker's).
#[must_use]
pub fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex) || media_type.as_ref() == DOCKER_INDEX
}

/// Whether it is an image manifest (OCI's or Docker's schema 2).
#[must_use]
pub fn is_manifest(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageManifest) || media_type.as_ref() == DOCKER_MANIFEST
}

/// Whether it is an image config (OCI's or Docker's).
#[must_use]
pub fn is_config(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageConfig) || media_type.as_ref() == DOCKER_CONFIG
}

/// How the layer is compressed, by its media type.
///
/// # Errors
///
/// [`Error::ForeignLayer`] for layers that lie elsewhere; [`Error::UnsupportedMediaType`] for anything that is no layer of a root
/// file system, or is encrypted.
pub fn layer_compression(layer: &Descriptor) -> Result<Compression> {
    if layer.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
        return Err(Error::ForeignLayer { digest: layer.digest().clone() });
    }
    match layer.media_type() {
        MediaType::ImageLayer => Ok(Compression::None),
        MediaType::ImageLayerGzip => Ok(Compression::Gzip),
        MediaType::ImageLayerZstd => Ok(Compression::Zstd),
        MediaType::ImageLayerNonDistributable
        | MediaType::ImageLayerNonDistributableGzip
        | MediaType::ImageLayerNonDistributableZstd => Err(Error::ForeignLayer { digest: layer.digest().clone() }),
        other => match other.as_ref() {
            DOCKER_LAYER => Ok(Compression::None),
            DOCKER_LAYER_GZIP => Ok(Compression::Gzip),
            DOCKER_LAYER_ZSTD => Ok(Compression::Zstd),
            text if text.starts_with("application/vnd.docker.image.rootfs.foreign.") => {
                Err(Error::ForeignLayer { digest: layer.digest().clone() })
            }
            _ => Err(Error::UnsupportedMediaType {
                what: "layer",
                digest: layer.digest().clone(),
                media_type: other.clone(),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::digest_of;

    #[test]
    fn layers_are_told_apart_by_media_type() {
        let cases: &[(&str, Option<Compression>)] = &[
            ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
            (DOCKER_LAYER, Some(Compression::None)),
            (DOCKER_LAYER_GZIP, Some(Compression::Gzip)),
            (DOCKER_LAYER_ZSTD, Some(Compression::Zstd)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", None),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", None),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", None),
            ("application/vnd.oci.image.config.v1+json", None),
            ("text/plain", None),
        ];
        for (text, wanted) in cases {
            let layer = Descriptor::new(MediaType::from(*text), 1, digest_of(b"x"));
            assert_eq!(layer_compression(&layer).ok(), *wanted, "{text}");
            let mut elsewhere = layer.clone();
            elsewhere.set_urls(Some(vec!["https://example.com/layer".to_owned()]));
            assert!(matches!(layer_compression(&elsewhere), Err(Error::ForeignLayer { .. })), "{text} with urls");
        }
    }
}
