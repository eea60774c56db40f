//! Layers of an image: from a tar stream to a snapshot.

use std::io::Read;

use oci_spec::runtime::Mount;

use crate::Result;

/// How a layer's bytes are packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Whatever the first bytes say.
    #[default]
    Sniff,
    /// A plain tar archive.
    None,
    /// gzip, of any number of members.
    Gzip,
    /// Zstandard, of any number of frames, skippable ones among them.
    Zstd,
}

impl Compression {
    /// The compression that a layer's media type tells, for OCI's and Docker's layer types; `None` for others.
    #[must_use]
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        Some(match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
                Self::None
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::Gzip,
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Zstd,
            // Docker writes this type for layers that it has not compressed, and once for compressed ones too.
            "application/vnd.docker.image.rootfs.diff.tar" => Self::Sniff,
            _ => return None,
        })
    }
}

/// What a layer may cost at most. A layer that passes one is refused, and what was written of it stays for the
/// caller to remove with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed stream, and of file content that sparse entries and links to lower layers add.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of an entry's path or link target.
    pub path: u64,
    /// Components of an entry's path.
    pub depth: u64,
    /// Bytes of one entry's extended attributes, names and values.
    pub xattrs: u64,
    /// Bytes of one extended header (PAX or GNU long name).
    pub header: u64,
    /// Uncompressed bytes for each compressed byte; looked at once 64 MiB have come out.
    pub ratio: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 256 << 30,
            entries: 5_000_000,
            path: 4095,
            depth: 512,
            xattrs: 1 << 20,
            header: 1 << 20,
            ratio: 2000,
        }
    }
}

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// SHA-256 of the uncompressed stream, to its very end: the layer's diff id.
    pub diff_id_sha256: [u8; 32],
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
    /// Entries of the archive, whiteouts among them.
    pub entries: u64,
}

impl Applied {
    /// The diff id as image configurations spell it: `sha256:` and 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn diff_id(&self) -> String {
        use std::fmt::Write as _;
        self.diff_id_sha256.iter().fold(String::from("sha256:"), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// The tree that a layer is applied to.
#[derive(Debug)]
pub struct Target {}

impl Target {
    /// The tree behind a snapshotter's mounts, without mounting anything: overlay's upper folder (whiteouts become
    /// overlay's own, lower folders are looked at for parents and hard links), or a bind mount's source (whiteouts
    /// remove).
    pub fn from_mounts(_mounts: &[Mount]) -> Result<Self> {
        todo!()
    }
}

/// Applies a layer to a target.
///
/// The stream is hashed as it goes; compare [`Applied::diff_id`] with the image's configuration before you commit.
pub fn apply(_reader: impl Read, _compression: Compression, _target: &Target, _limits: &Limits) -> Result<Applied> {
    todo!()
}
