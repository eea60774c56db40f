//! The place where things are made before anybody sees them, and where they go before they are deleted.
//!
//! Whoever makes or deletes a folder here holds a lock on it. One without a lock is what a killed process left.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::sys::Locked;
use crate::{Error, Result, sys, tree};

#[derive(Debug)]
pub(crate) struct Staging {
    dir: OwnedFd,
    path: PathBuf,
}

/// A folder that is being made. It is deleted again if it is dropped before it has been moved away.
pub(crate) struct Staged<'a> {
    staging: &'a Staging,
    name: CString,
    /// The lock goes with the folder through every rename.
    pub(crate) folder: Locked,
    pub(crate) path: PathBuf,
    moved: bool,
}

impl Staging {
    pub(crate) fn new(dir: OwnedFd, path: PathBuf) -> Self {
        Staging { dir, path }
    }

    fn random(&self) -> Result<CString> {
        sys::random_name(16).map(|name| sys::c_name(&name)).map_err(Error::io("name folder in", &self.path))
    }

    fn at(&self, name: &CStr) -> PathBuf {
        self.path.join(name.to_string_lossy().as_ref())
    }

    /// A new locked folder.
    pub(crate) fn create(&self) -> Result<Staged<'_>> {
        loop {
            let name = self.random()?;
            rustix::fs::mkdirat(&self.dir, &name, Mode::RWXU).map_err(Error::io("create folder in", &self.path))?;
            match sys::open_locked(self.dir.as_fd(), &name, FlockOperation::NonBlockingLockExclusive) {
                Ok(Some(folder)) => {
                    let path = self.at(&name);
                    return Ok(Staged { staging: self, name, folder, path, moved: false });
                }
                // A sweep came between and takes it for a leftover.
                Ok(None) | Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(Error::io("lock folder in", &self.path)(errno)),
            }
        }
    }

    /// Moves the locked folder `name` of `from` here; it is gone for everybody else. [`Taken::delete`] deletes it.
    pub(crate) fn take(&self, from: BorrowedFd<'_>, name: &CStr) -> Result<rustix::io::Result<Taken<'_>>> {
        let temporary = self.random()?;
        let moved = rustix::fs::renameat(from, name, &self.dir, &temporary);
        Ok(moved.map(|()| Taken { staging: self, name: temporary }))
    }

    /// Deletes what nobody holds. Returns how much that was.
    pub(crate) fn sweep(&self) -> Result<usize> {
        let dir =
            rustix::fs::openat(&self.dir, c".", sys::DIR, Mode::empty()).map_err(Error::io("open", &self.path))?;
        let mut removed = 0;
        for name in sys::names(dir.as_fd()).map_err(Error::io("read folder", &self.path))? {
            match sys::open_locked(self.dir.as_fd(), &name, FlockOperation::NonBlockingLockExclusive) {
                Ok(Some(_lock)) => {
                    tree::remove(self.dir.as_fd(), &name).map_err(Error::io("delete", self.at(&name)))?;
                    removed += 1;
                }
                Ok(None) | Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return Err(Error::io("lock folder in", &self.path)(errno)),
            }
        }
        Ok(removed)
    }
}

/// A folder that is about to be deleted.
pub(crate) struct Taken<'a> {
    staging: &'a Staging,
    name: CString,
}

impl Taken<'_> {
    pub(crate) fn delete(self) -> Result<()> {
        let Taken { staging, name } = self;
        tree::remove(staging.dir.as_fd(), &name).map_err(Error::io("delete", staging.at(&name)))
    }
}

impl Staged<'_> {
    /// Gives the folder its place, all at once. `EXIST` or `NOTEMPTY` if that is taken by a folder that is not empty.
    pub(crate) fn move_to(mut self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        rustix::fs::renameat(&self.staging.dir, &self.name, dir, name)?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.moved {
            // What cannot be deleted now is a leftover for the next removal.
            let _ = tree::remove(self.staging.dir.as_fd(), &self.name);
        }
    }
}
