//! Walks in order over trees that others change meanwhile.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::layer::Limits;
use crate::layer::archive::show;
use crate::sys::{self, Mounts};
use crate::{Error, Result};

/// The way down from a folder to the names that come next: depth first, the names of a folder in order. One descriptor is
/// open for the way, whatever its length.
///
/// A [`tree::walk`](crate::tree::walk) ends where something is moved; this one goes on with what is still in the tree.
pub(crate) struct Descent<'a, T> {
    top: OwnedFd,
    here: OwnedFd,
    levels: Vec<Level<T>>,
    mounts: Mounts,
    limits: &'a Limits,
    buffer: Vec<u8>,
    /// What the names that are to come cost.
    kept: u64,
}

/// A folder on the way.
struct Level<T> {
    /// Its own name in the folder above.
    name: CString,
    /// Its name for whoever walks.
    path: Vec<u8>,
    identity: (u64, u64),
    /// What is still to come, the next one last.
    pending: Vec<CString>,
    /// What they cost when the folder was read.
    kept: u64,
    data: T,
}

impl<'a, T> Descent<'a, T> {
    /// Begins at the folder `top`, which is called `path`. `more` names come besides those that are in it.
    pub(crate) fn new(
        top: BorrowedFd<'_>,
        path: Vec<u8>,
        data: T,
        more: Vec<CString>,
        mounts: Mounts,
        limits: &'a Limits,
    ) -> Result<Self> {
        let open = || rustix::fs::openat(top, c".", sys::DIR, Mode::empty());
        let (top, here) = open().and_then(|top| Ok((top, open()?))).map_err(Error::io("open folder", shown(&path)))?;
        let mut descent = Descent { top, here, levels: Vec::new(), mounts, limits, buffer: Vec::new(), kept: 0 };
        let here = descent.here.try_clone().map_err(|source| Error::Io {
            operation: "open folder",
            path: shown(&path),
            source,
        })?;
        let level = descent.level(here.as_fd(), CString::default(), path, data, more)?;
        descent.levels.push(level);
        Ok(descent)
    }

    fn level(
        &mut self,
        folder: BorrowedFd<'_>,
        name: CString,
        path: Vec<u8>,
        data: T,
        more: Vec<CString>,
    ) -> Result<Level<T>> {
        let failed = |operation| Error::io(operation, shown(&path));
        let mut pending = more;
        let before = self.kept;
        let mut kept = Ok(());
        for name in &pending {
            self.limits.keep(&mut self.kept, name.to_bytes())?;
        }
        let read = sys::for_each_entry(folder, &mut self.buffer, |name, _| {
            kept = self.limits.keep(&mut self.kept, name.to_bytes());
            pending.push(name.to_owned());
            if kept.is_ok() { Ok(()) } else { Err(Errno::TOOBIG) }
        });
        kept?;
        match read {
            // Removed since it was opened: nothing is in it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("read folder")(errno)),
        }
        pending.sort_unstable_by(|left, right| right.cmp(left));
        pending.dedup();
        let identity = sys::identity(&rustix::fs::fstat(folder).map_err(failed("look at"))?);
        Ok(Level { name, path, identity, pending, kept: self.kept - before, data })
    }

    /// The next name, and its path. It may not be there.
    pub(crate) fn next(&mut self) -> Option<(CString, Vec<u8>)> {
        loop {
            let level = self.levels.last_mut()?;
            if let Some(name) = level.pending.pop() {
                let path = child(&level.path, &name);
                return Some((name, path));
            }
            self.pop();
            // A folder that is no longer in the tree is left with all that it still had.
            while !self.levels.is_empty() {
                if let Some(above) = self.above() {
                    self.here = above;
                    break;
                }
                self.pop();
            }
        }
    }

    fn pop(&mut self) {
        if let Some(level) = self.levels.pop() {
            self.kept -= level.kept;
        }
    }

    /// The folder of the last level, from one that was in it. If that has been moved meanwhile, `..` leads elsewhere,
    /// and the way goes down from the top again.
    fn above(&self) -> Option<OwnedFd> {
        let above = rustix::fs::openat(&self.here, c"..", sys::DIR, Mode::empty()).ok();
        if let (Some(above), Some(level)) = (above, self.levels.last())
            && rustix::fs::fstat(&above).is_ok_and(|stat| sys::identity(&stat) == level.identity)
        {
            return Some(above);
        }
        let mut folder = rustix::fs::openat(&self.top, c".", sys::DIR, Mode::empty()).ok()?;
        for name in self.names() {
            folder = sys::open_below(folder.as_fd(), name, sys::DIR, self.mounts).ok()?;
        }
        Some(folder)
    }

    /// The folder in which the last name is.
    pub(crate) fn here(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// The names that lead from the top to it.
    pub(crate) fn names(&self) -> impl Iterator<Item = &CStr> {
        self.levels.iter().skip(1).map(|level| level.name.as_c_str())
    }

    /// What was given for that folder.
    pub(crate) fn data(&mut self) -> Option<&mut T> {
        self.levels.last_mut().map(|level| &mut level.data)
    }

    /// What was given for all folders on the way, the top's first.
    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut T> {
        self.levels.iter_mut().map(|level| &mut level.data)
    }

    /// Goes into the folder that the last name is.
    pub(crate) fn enter(
        &mut self,
        folder: BorrowedFd<'_>,
        name: CString,
        path: Vec<u8>,
        data: T,
        more: Vec<CString>,
    ) -> Result<()> {
        if self.levels.len() as u64 >= self.limits.depth {
            let limit = self.limits.depth;
            return Err(Error::LimitExceeded { what: "folders in a path", limit, entry: show(&path) });
        }
        let open = |errno| Error::io("open folder", shown(&path))(errno);
        let folder = rustix::fs::openat(folder, c".", sys::DIR, Mode::empty()).map_err(open)?;
        let level = self.level(folder.as_fd(), name, path, data, more)?;
        self.levels.push(level);
        self.here = folder;
        Ok(())
    }
}

/// The path of what has `name` in the folder `path`.
fn child(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

/// A path of a tree, for errors.
pub(crate) fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}
