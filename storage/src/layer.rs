//! Layers of an image: from a tar stream to a snapshot.
//!
//! A layer is a tar archive of what changed ([image-spec, layer.md]). Its bytes come from anywhere, and they are
//! written as root: nothing in them is believed.
//!
//! - **Paths.** Every path is resolved inside the target, from an open folder, one name at a time or by
//!   `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`. Symbolic links of the image are followed as the image means
//!   them: inside its root. No file is created, changed, linked or removed outside. The root itself can only be a folder.
//! - **Meaning.** What GNU tar, Go's `archive/tar` and this module see in an archive is the same, or the layer is
//!   refused. POSIX (PAX) and GNU extensions are known: long names, large numbers, extended attributes, sparse files in
//!   four forms. Global headers may only hold a comment. Entries of other types are refused by name.
//! - **Cost.** Sizes, counts, depths and the ratio of compression are bounded by [`Limits`], memory by a constant,
//!   and work is linear in the size of the uncompressed stream.
//! - **Whiteouts** (`.wh.NAME`, `.wh..wh..opq`) hide what lower layers have, never what the layer itself has, wherever
//!   in the archive they stand. On overlay they become overlay's own form.
//! - **Hard links** to a file of a lower layer copy it up first, as the kernel's overlay would.
//! - **Folders that no entry names** are copies of the lower layer's (owner, mode, attributes, times), or else belong
//!   to root with mode 0755.
//! - Owners are applied before modes, modes before times, times of folders last. `user.overlay.*` and
//!   `trusted.overlay.*` attributes are dropped, and a device 0:0 (overlay's whiteout) is refused.
//!
//! [image-spec, layer.md]: https://github.com/opencontainers/image-spec/blob/main/layer.md

pub(crate) mod archive;
mod changes;
mod compare;
mod diff;
pub(crate) mod extract;
mod header;
mod made;
mod pax;
pub(crate) mod place;
pub(crate) mod stream;
pub(crate) mod target;
pub(crate) mod writer;

use std::io::Read;

use archive::Archive;
pub use changes::{Change, ChangeKind, changes, changes_without};
pub use diff::{Diffed, diff, diff_without};
use extract::Rules;
pub use made::MountPoints;
pub use target::Target;

use crate::archive::Owner;
use crate::{Error, Result};

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

/// What a layer or another archive may cost at most. One that passes a limit is refused, and what was written of it
/// stays for the caller to remove with its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed stream, and of file content that sparse entries and links to lower layers add.
    pub bytes: u64,
    /// Headers of the archive.
    pub entries: u64,
    /// Bytes of an entry's path or link target.
    pub path: u64,
    /// Components of an entry's path.
    pub depth: u64,
    /// Bytes of one entry's extended attributes, names and values.
    pub xattrs: u64,
    /// Bytes of one extended header (PAX or GNU long name).
    pub header: u64,
    /// Bytes of names and paths that are kept in memory at once while an archive or a list is made: to bring them in order,
    /// and to find the links among files.
    pub names: u64,
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
            names: 256 << 20,
            ratio: 2000,
        }
    }
}

impl Limits {
    /// Counts a name that is kept.
    pub(crate) fn keep(&self, kept: &mut u64, name: &[u8]) -> Result<()> {
        *kept += name.len() as u64 + NAME;
        if *kept > self.names {
            let entry = archive::show(name);
            return Err(Error::LimitExceeded { what: "bytes of names in memory", limit: self.names, entry });
        }
        Ok(())
    }
}

/// What a name costs besides its bytes.
const NAME: u64 = 32;

/// What [`apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// SHA-256 of the uncompressed stream, to its very end: the layer's diff id.
    pub diff_id_sha256: [u8; 32],
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
    /// Headers of the archive, extended ones and whiteouts among them.
    pub entries: u64,
    /// Extended attributes that the file system of the target cannot hold, and overlay's own; they are left out.
    pub skipped_xattrs: u64,
}

impl Applied {
    /// The diff id as image configurations spell it: `sha256:` and 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn diff_id(&self) -> String {
        spell(&self.diff_id_sha256)
    }
}

fn spell(sha256: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    sha256.iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Applies a layer to a target.
///
/// The stream is hashed as it goes and read to its very end; compare [`Applied::diff_id`] with the image's
/// configuration before you commit. The archive is not trusted: see the [module](self).
///
/// Blocks. Inflation runs on the calling thread, the rest on a second one that ends before this returns.
pub fn apply(reader: impl Read, compression: Compression, target: &Target, limits: &Limits) -> Result<Applied> {
    apply_as(reader, compression, target, limits, Owner::Archived)
}

/// The same, with the files given to `owner`: where there is nobody else, as in a user namespace that maps one user alone.
pub fn apply_as(
    reader: impl Read,
    compression: Compression,
    target: &Target,
    limits: &Limits,
    owner: Owner,
) -> Result<Applied> {
    let rules = Rules { owner, ..Rules::default() };
    stream::run(reader, compression, limits, |input| {
        let mut archive = Archive::new(input, limits);
        let skipped_xattrs =
            extract::all(&mut archive, target, limits, &rules).map_err(|error| target.explain(error))?;
        let entries = archive.entries;
        let (diff_id_sha256, bytes) = archive.into_source().finish()?;
        Ok(Applied { diff_id_sha256, bytes, entries, skipped_xattrs })
    })
}
