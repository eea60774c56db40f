//! Where a layer goes.

use std::ffi::{CStr, OsStr};
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags, Stat};

use super::place::is_whiteout;
use crate::sys::{self, Mounts};
use crate::{Error, Key, Result, Snapshotter};

/// The tree that a layer is applied to: a folder that takes the entries, what lies below it, and the form that
/// whiteouts take.
pub struct Target {
    pub(crate) upper: OwnedFd,
    /// The nearest first; not set while the parent is not known.
    lowers: OnceLock<Vec<OwnedFd>>,
    parent: Mutex<Option<Parent>>,
    pub(crate) whiteouts: Whiteouts,
    /// Whether paths may lead through mount points.
    pub(crate) mounts: Mounts,
}

/// Waits for the parent of a snapshot that is being filled, and returns the mounts that it has from then on.
type Parent = Box<dyn FnOnce() -> Result<Vec<Mount>> + Send>;

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("upper", &self.upper)
            .field("lowers", &self.lowers)
            .field("whiteouts", &self.whiteouts)
            .field("mounts", &self.mounts)
            .finish_non_exhaustive()
    }
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
        let mount = writable(mounts)?;
        if mount.typ().as_deref() == Some("overlay") {
            return Ok(Self::new(
                overlay_upper(mount)?,
                overlay_lowers(mount)?,
                overlay_whiteouts(mount),
                Mounts::Stay,
            ));
        }
        Self::folder(bind_source(mount)?)
    }

    /// The tree of a snapshot that is filled while its parent is still being made: `mounts` is what
    /// [`LateParent::prepare_late`](crate::LateParent::prepare_late) gave. `parent` waits until the parent is committed and
    /// gives what [`LateParent::set_parent`](crate::LateParent::set_parent) says then. It is called once, on the thread that
    /// applies: when the layer first needs what lies below it, or at its end. An error of it ends the application.
    pub fn late(mounts: &[Mount], parent: impl FnOnce() -> Result<Vec<Mount>> + Send + 'static) -> Result<Self> {
        let mount = writable(mounts)?;
        if mount.typ().as_deref() != Some("overlay") {
            return Err(unsupported("only an overlay can get its parent later"));
        }
        Ok(Target {
            upper: overlay_upper(mount)?,
            lowers: OnceLock::new(),
            parent: Mutex::new(Some(Box::new(parent))),
            whiteouts: overlay_whiteouts(mount),
            mounts: Mounts::Stay,
        })
    }

    pub(crate) fn new(upper: OwnedFd, lowers: Vec<OwnedFd>, whiteouts: Whiteouts, mounts: Mounts) -> Self {
        Target { upper, lowers: lowers.into(), parent: Mutex::new(None), whiteouts, mounts }
    }

    /// Says of a file system that is full which one it is.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match error {
            Error::Extract { operation, entry, source }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                let path = std::fs::read_link(sys::magic(self.upper.as_fd())).unwrap_or_default();
                let free = rustix::fs::fstatvfs(&self.upper).map_or(0, |state| state.f_bavail * state.f_frsize);
                Error::NoSpace { operation, entry, path, free, source }
            }
            other => other,
        }
    }

    /// What lies below, the nearest first; nothing as long as it is not known.
    pub(crate) fn lowers(&self) -> &[OwnedFd] {
        self.lowers.get().map_or(&[], Vec::as_slice)
    }

    /// Whether it is known what lies below.
    pub(crate) fn is_settled(&self) -> bool {
        self.lowers.get().is_some()
    }

    /// Whether anything lies below, or will.
    pub(crate) fn has_below(&self) -> bool {
        self.lowers.get().is_none_or(|lowers| !lowers.is_empty())
    }

    /// Waits until it is known what lies below.
    pub(crate) fn settle(&self) -> Result<()> {
        let parent = self.parent.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(parent) = parent else { return Ok(()) };
        let lowers = overlay_lowers(writable(&parent()?)?)?;
        // Nobody else has taken the function, so that nobody else sets it.
        let _ = self.lowers.set(lowers);
        Ok(())
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
            target.lowers = vec![open(bind_source(mount)?)?].into();
        }
        Ok(target)
    }

    /// A folder by itself: whiteouts remove what they hide.
    pub fn folder(path: impl AsRef<Path>) -> Result<Self> {
        let upper = open(path.as_ref())?;
        Ok(Self::new(upper, Vec::new(), Whiteouts::Remove, Mounts::Stay))
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

/// The one mount, which can be written to.
fn writable(mounts: &[Mount]) -> Result<&Mount> {
    let [mount] = mounts else {
        return Err(unsupported("there must be exactly one"));
    };
    if has(mount, "ro") {
        return Err(unsupported("the mount is read-only"));
    }
    Ok(mount)
}

fn has(mount: &Mount, wanted: &str) -> bool {
    mount.options().iter().flatten().any(|option| option == wanted)
}

fn value<'m>(mount: &'m Mount, key: &str) -> Option<&'m str> {
    mount.options().iter().flatten().find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
}

fn overlay_upper(mount: &Mount) -> Result<OwnedFd> {
    open(Path::new(value(mount, "upperdir").ok_or_else(|| unsupported("the overlay has no upper folder"))?))
}

fn overlay_lowers(mount: &Mount) -> Result<Vec<OwnedFd>> {
    let lowers = value(mount, "lowerdir").ok_or_else(|| unsupported("the overlay has no lower folders"))?;
    if lowers.contains('\\') || lowers.contains("::") {
        return Err(unsupported("the overlay's lower folders are escaped or data-only"));
    }
    lowers.split(':').map(|lower| open(Path::new(lower))).collect()
}

fn overlay_whiteouts(mount: &Mount) -> Whiteouts {
    let opaque = if has(mount, "userxattr") { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    Whiteouts::Overlay { opaque }
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
