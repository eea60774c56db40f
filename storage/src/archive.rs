//! Archives of a container's files: `export`, and `cp` in both directions.
//!
//! The root is a descriptor: of a detached mount that nobody else sees, or of `/proc/PID/root` of a running container. Whatever
//! is in it may be hostile and may change at any moment.
//!
//! - **Paths** are resolved by `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, and what they lead to is used by
//!   descriptor from there on. No name is looked up outside the root whatever is renamed or linked meanwhile
//!   (CVE-2018-15664). No program or library of the container is ever run or loaded (CVE-2019-14271).
//! - **Nothing is opened before it is looked at**: no device, no pipe, no socket, even if it comes into a file's place
//!   between two calls.
//! - **What is gone when its turn comes** is not in the archive. A file that grows or shrinks while it is read is cut, or filled
//!   with zeros, to the length that its header has.
//! - **The same tree makes the same bytes**: names in order, numeric owners, times of files only.
//!
//! A tree on a file system that the container itself serves (FUSE) can make a read wait for as long as the container
//! likes; [`Mounts::Stay`] keeps out of those that are mounted inside the root.

pub(crate) mod descent;
pub(crate) mod pack;
pub(crate) mod root;
mod unpack;

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FileType;

use crate::layer::{Compression, Limits};
pub use crate::sys::Mounts;
use crate::{Error, Result, sys};
pub use pack::pack;
pub use unpack::unpack;

/// What is meant by a path whose last name is a symbolic link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Link {
    /// The link itself, unless a `/` follows it.
    #[default]
    Itself,
    /// What it leads to.
    Followed,
}

/// The name of the first entry of an archive, and of what the others stand below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Root {
    /// The last name of the path; `.` where it has none.
    #[default]
    Own,
    /// This one. It may have several components.
    Named(OsString),
    /// A folder has no entry itself, and what is in it stands at the archive's root. A file has its own name.
    Contents,
}

/// How [`pack`] makes an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// What the first entry is called.
    pub root: Root,
    /// Whether a symbolic link at the path's end is followed. Those in the tree never are.
    pub link: Link,
    /// Whether what is mounted in the tree is in the archive. Where it is not, a mount point is an empty folder, or missing if it is a file.
    /// What the kernel makes up (proc, sysfs, cgroups, devpts and their like) never is.
    pub mounts: Mounts,
    /// What the archive may cost at most; of [`Limits`] those of bytes, entries, path and depth. A container can make a
    /// file of any length from nothing.
    pub limits: Limits,
}

/// What [`pack`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Files, folders and other things in it.
    pub entries: u64,
    /// What no archive can hold: sockets, overlay's whiteouts, and attributes with a `=` in their name.
    pub skipped: u64,
}

/// Whom unpacked files belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Whom the archive names, by number.
    #[default]
    Archived,
    /// All to one.
    Given {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

/// What may take the place of what is there. Files always replace files, and folders are merged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Replace {
    /// A file replaces a folder with all that is in it, and a folder a file.
    #[default]
    Any,
    /// Neither; it is an error ([`Error::Occupied`]).
    SameKind,
}

/// How [`unpack`] writes an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Whom the files belong to.
    pub owner: Owner,
    /// What may replace what.
    pub replace: Replace,
    /// Whether paths of the archive may lead into what is mounted in the tree.
    pub mounts: Mounts,
    /// How the archive is packed.
    pub compression: Compression,
    /// What it may cost at most.
    pub limits: Limits,
}

impl Default for UnpackOptions {
    /// As `tar` would: all is replaced, paths lead into mounts.
    fn default() -> Self {
        UnpackOptions {
            owner: Owner::default(),
            replace: Replace::default(),
            mounts: Mounts::Cross,
            compression: Compression::default(),
            limits: Limits::default(),
        }
    }
}

/// What [`unpack`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
    /// Headers of the archive, extended ones among them.
    pub entries: u64,
    /// Extended attributes that the file system cannot hold, and overlay's own; they are left out.
    pub skipped_xattrs: u64,
}

/// What kind of thing a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What [`stat`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The last name of the path as it was asked for; `/` where it has none.
    pub name: OsString,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the set-user-id, set-group-id and sticky bits (`0o7777`).
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// When its content was changed.
    pub modified: SystemTime,
    /// Where a symbolic link leads: a path from the root, without further links, of what may or may not exist. It is said for people; it
    /// may lead elsewhere a moment later.
    pub target: Option<PathBuf>,
}

/// What `path` is in the root.
///
/// Errors: [`Error::Io`] with `ENOENT`, `ENOTDIR` or `ELOOP`.
pub fn stat(root: BorrowedFd<'_>, path: impl AsRef<Path>, link: Link) -> Result<Stat> {
    let path = path.as_ref();
    let failed = || Error::io("look at", path);
    let inode = root::open(root, path, link).map_err(failed())?;
    let stat = rustix::fs::fstat(&inode).map_err(failed())?;
    let kind = match sys::file_type(&stat) {
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::RegularFile | FileType::Unknown => Kind::File,
    };
    let target = if kind == Kind::Symlink {
        let walked = root::walk(root, path, Link::Followed).map_err(failed())?;
        let names = [b"/", root::below(&walked.names).as_bytes()].concat();
        Some(PathBuf::from(OsString::from_vec(if names == b"/." { b"/".to_vec() } else { names })))
    } else {
        None
    };
    let whole = Duration::from_secs(stat.st_mtime.unsigned_abs());
    let modified = if stat.st_mtime < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    Ok(Stat {
        name: path.file_name().map_or_else(|| "/".into(), ToOwned::to_owned),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size.cast_unsigned(),
        modified: modified + Duration::from_nanos(stat.st_mtime_nsec),
        target,
    })
}
