//! Where a layer goes.

use std::ffi::{CStr, OsStr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, Stat};

use super::place::is_whiteout;
use crate::sys::{self, Mounts};
use crate::{Error, Key, Result, Snapshotter};

/// The tree that a layer is applied to: a folder that takes the entries, what lies below it, and the form that
/// whiteouts take.
#[derive(Debug)]
pub struct Target {
    pub(crate) upper: OwnedFd,
    /// The nearest first.
    pub(crate) lowers: Vec<OwnedFd>,
    pub(crate) whiteouts: Whiteouts,
    /// Whether paths may lead through mount points.
    pub(crate) mounts: Mounts,
}

/// What a whiteout becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Overlay's own: a character device 0:0, and an attribute of this prefix on an opaque folder.
    Overlay { opaque: &'static str },
    /// What it hides is removed.
    Remove,
    /// A file like any other: the archive is no layer.
    Literal,
}

impl Target {
    /// The tree behind a snapshotter's mounts. Nothing is mounted: for overlay the layer goes to the upper folder in
    /// overlay's own form, with a look at the lower folders for the parents, symbolic links and hard links that the
    /// layer refers to; for a bind mount it goes to the source, where a whiteout removes what it hides.
    ///
    /// The mounts must be one writable `overlay` or `bind` mount, and nobody else may use the tree meanwhile.
    pub fn from_mounts(mounts: &[Mount]) -> Result<Self> {
        let [mount] = mounts else {
            return Err(unsupported("there must be exactly one"));
        };
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |wanted: &str| options.iter().any(|option| option == wanted);
        let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
        if has("ro") {
            return Err(unsupported("the mount is read-only"));
        }
        if mount.typ().as_deref() == Some("overlay") {
            let upper = value("upperdir").ok_or_else(|| unsupported("the overlay has no upper folder"))?;
            let lowers = value("lowerdir").ok_or_else(|| unsupported("the overlay has no lower folders"))?;
            if lowers.contains('\\') || lowers.contains("::") {
                return Err(unsupported("the overlay's lower folders are escaped or data-only"));
            }
            let opaque = if has("userxattr") { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
            let lowers = lowers.split(':').map(|lower| open(Path::new(lower))).collect::<Result<Vec<_>>>()?;
            let whiteouts = Whiteouts::Overlay { opaque };
            return Ok(Target { upper: open(Path::new(upper))?, lowers, whiteouts, mounts: Mounts::Stay });
        }
        Self::folder(bind_source(mount)?)
    }

    /// The tree of a snapshot and those on which it stands, to be compared. An overlay's upper folder has the changes
    /// by itself; another tree is compared with its parent, as long as both are folders.
    pub(crate) fn of_snapshot(snapshotter: &dyn Snapshotter, key: &Key) -> Result<Self> {
        let mut target = Self::from_mounts(&snapshotter.mounts(key)?)?;
        if target.whiteouts == Whiteouts::Remove
            && let Some(parent) = snapshotter.stat(&key.into())?.parent
        {
            let mounts = snapshotter.look(&parent)?;
            let [mount] = mounts.as_slice() else { return Err(unsupported("the parent must be exactly one")) };
            target.lowers.push(open(bind_source(mount)?)?);
        }
        Ok(target)
    }

    /// A folder by itself: whiteouts remove what they hide.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        let upper = open(path.as_ref())?;
        Ok(Target { upper, lowers: Vec::new(), whiteouts: Whiteouts::Remove, mounts: Mounts::Stay })
    }

    /// Whether a folder hides all that lower layers have in it.
    pub(crate) fn is_opaque(&self, folder: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        let Whiteouts::Overlay { opaque } = self.whiteouts else { return Ok(false) };
        Ok(sys::get_xattr(folder, OsStr::new(opaque))?.is_some_and(|value| value == b"y"))
    }

    /// Whether an inode of the target hides what lower layers have under its name.
    pub(crate) fn is_whiteout(&self, stat: &Stat) -> bool {
        matches!(self.whiteouts, Whiteouts::Overlay { .. }) && is_whiteout(stat)
    }

    /// Opens a path below a folder of the target, without a symbolic link on it.
    pub(crate) fn open_below(&self, dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        sys::open_below(dir, path, flags, self.mounts)
    }
}

fn unsupported(reason: &str) -> Error {
    Error::UnsupportedMounts { reason: reason.into() }
}

fn bind_source(mount: &Mount) -> Result<&Path> {
    let options = mount.options().as_deref().unwrap_or_default();
    if mount.typ().as_deref() != Some("bind") && !options.iter().any(|option| option == "bind" || option == "rbind") {
        return Err(unsupported("only overlay and bind mounts are known"));
    }
    mount.source().as_deref().ok_or_else(|| unsupported("the bind mount has no source"))
}

/// The folders are the store's own, whose short links may be followed.
fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, sys::DIR.difference(OFlags::NOFOLLOW), Mode::empty()).map_err(Error::io("open folder", path))
}
