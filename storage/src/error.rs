//! The crate's one error type.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Name, SnapshotId, VolumeName};

/// Shorthand for this crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while storing snapshots or applying layers.
///
/// `Display` says this level only; walk [`source`](std::error::Error::source) for the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path of the store failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was being done, as a verb: `"create folder"`.
        operation: &'static str,
        /// The file or folder that it was done to.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A string is not a snapshot's key or name, nor a volume's name.
    #[error("invalid {kind} {value:?}: {reason}")]
    InvalidId {
        /// `"snapshot key"`, `"snapshot name"` or `"volume name"`.
        kind: &'static str,
        /// The string as given.
        value: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// There is no such snapshot.
    #[error("snapshot {id} not found")]
    NotFound {
        /// What was looked for.
        id: SnapshotId,
    },
    /// The key or name is taken.
    #[error("snapshot {id} already exists")]
    AlreadyExists {
        /// The key or name.
        id: SnapshotId,
    },
    /// There is no such volume.
    #[error("volume {name} not found")]
    VolumeNotFound {
        /// What was looked for.
        name: VolumeName,
    },
    /// The volume is there already.
    #[error("volume {name} already exists")]
    VolumeExists {
        /// Its name.
        name: VolumeName,
    },
    /// The snapshot is the parent of another and cannot be removed.
    #[error("cannot remove snapshot {id}: it is the parent of {child}")]
    InUse {
        /// The snapshot that was to be removed.
        id: SnapshotId,
        /// One of its children.
        child: SnapshotId,
    },
    /// A snapshot that was prepared without its parent cannot be committed before it has one.
    #[error("snapshot {id} has not got its parent yet")]
    ParentUnknown {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The parent of a snapshot is not changed.
    #[error("snapshot {id} has its parent already")]
    HasParent {
        /// The snapshot.
        id: SnapshotId,
    },
    /// A view cannot be committed.
    #[error("snapshot {id} is a read-only view and cannot be committed")]
    NotActive {
        /// The view.
        id: SnapshotId,
    },
    /// The snapshot is older than its own parent's removal: the store was damaged from outside.
    #[error("snapshot {id} needs parent {parent}, which is missing")]
    ParentMissing {
        /// The child.
        id: SnapshotId,
        /// The parent that its record names.
        parent: Name,
    },
    /// A snapshot's or a volume's record cannot be read as one.
    #[error("damaged record {}", path.display())]
    DamagedRecord {
        /// The record's file.
        path: PathBuf,
        /// What the parser said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder belongs to another kind of snapshotter, or to a newer version of this one.
    #[error("{} holds snapshots of format {found:?}, not {expected:?}", path.display())]
    WrongFormat {
        /// The store's folder.
        path: PathBuf,
        /// The format found there.
        found: String,
        /// The format that this snapshotter writes.
        expected: &'static str,
    },
    /// A path of the store cannot be written into overlay's mount options.
    #[error("snapshot folder {} contains ':', ',' or '\\', which overlay mount options cannot carry", path.display())]
    UnmountablePath {
        /// The store's folder.
        path: PathBuf,
    },
    /// The mounts are not of a kind that a layer can be applied to or made from.
    #[error("cannot use these mounts: {reason}")]
    UnsupportedMounts {
        /// What is missing or unknown.
        reason: String,
    },
    /// The stream that carries the layer or archive failed.
    #[error("read archive")]
    ReadLayer {
        /// The reader's own error.
        source: io::Error,
    },
    /// The stream is not what its compression says, or it is cut short.
    #[error("decompress {compression} archive")]
    Decompress {
        /// `gzip` or `zstd`.
        compression: &'static str,
        /// The decoder's answer.
        source: io::Error,
    },
    /// The bytes are not an archive that every reader would read alike, or an entry is not allowed in a layer.
    #[error("invalid archive: entry {entry:?}: {reason}")]
    InvalidLayer {
        /// The entry's name as far as it is known.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive exceeds one of the [`Limits`](crate::layer::Limits).
    #[error("archive exceeds the limit of {limit} {what} at entry {entry:?}")]
    LimitExceeded {
        /// Which limit, with its unit.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// The entry at which it was passed.
        entry: String,
    },
    /// An archive that is being made could not be handed on.
    #[error("write archive")]
    WriteArchive {
        /// The writer's own error.
        source: io::Error,
    },
    /// Something of another kind is in an entry's place, and it is to stay.
    #[error("cannot replace the {there} {entry:?} with a {wanted}")]
    Occupied {
        /// The entry's name, as the archive spells it.
        entry: String,
        /// What is there: `"folder"` or `"file"`.
        there: &'static str,
        /// What the archive has.
        wanted: &'static str,
    },
    /// The file system of the target is full, or the quota is used up.
    #[error("{operation} {entry:?} from archive: the file system of {path} is full, {free} bytes are free; free some space or choose another root", path = path.display())]
    NoSpace {
        /// What was being done.
        operation: &'static str,
        /// The entry's name, as the archive spells it.
        entry: String,
        /// The folder that the archive was written to.
        path: PathBuf,
        /// Bytes that are free for this process.
        free: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An entry of the archive could not be written.
    #[error("{operation} {entry:?} from archive")]
    Extract {
        /// What was being done.
        operation: &'static str,
        /// The entry's name, as the archive spells it.
        entry: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { operation, path, source: source.into() }
    }
}
