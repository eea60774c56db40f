//! Copies of whole trees.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::{Errno, Result};

use crate::overlay::{copy_folder_metadata, times};
use crate::sys;
use crate::tree::{self, Next, Visitor};

/// Copies all that is in `from` to the empty folder `to`, and what `from` itself has of owner, mode, times and
/// attributes: content (shared where the file system can), holes, links among the files, every type.
///
/// `links` is an empty folder on the same file system, in which each file of several names is kept for the next one.
pub(crate) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>, links: BorrowedFd<'_>) -> Result<()> {
    let here = rustix::fs::openat(to, c".", sys::DIR, Mode::empty())?;
    tree::walk(from, &mut Copy { here, links })?;
    copy_folder_metadata(from, to)
}

struct Copy<'a> {
    here: OwnedFd,
    links: BorrowedFd<'a>,
}

impl Visitor for Copy<'_> {
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, _: FileType) -> Result<Next> {
        let stat = sys::stat(dir, name)?.ok_or(Errno::NOENT)?;
        if sys::file_type(&stat) == FileType::Directory {
            rustix::fs::mkdirat(&self.here, name, Mode::RWXU)?;
            return Ok(Next::Enter);
        }
        if stat.st_nlink < 2 {
            file(dir, self.here.as_fd(), name, &stat)?;
            return Ok(Next::Pass);
        }
        let link = CString::new(format!("{:x}-{:x}", stat.st_dev, stat.st_ino)).unwrap_or_default();
        match rustix::fs::linkat(self.links, &link, &self.here, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {
                file(dir, self.here.as_fd(), name, &stat)?;
                rustix::fs::linkat(&self.here, name, self.links, &link, AtFlags::empty())?;
            }
            other => other?,
        }
        Ok(Next::Pass)
    }

    fn enter(&mut self, _: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        self.here = sys::open_beneath(self.here.as_fd(), name, sys::DIR)?;
        Ok(())
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, _: BorrowedFd<'_>, _: &CStr) -> Result<()> {
        let above = rustix::fs::openat(&self.here, c"..", sys::DIR, Mode::empty())?;
        copy_folder_metadata(dir, self.here.as_fd())?;
        self.here = above;
        Ok(())
    }
}

/// Copies one thing that is no folder, with all that belongs to it.
pub(crate) fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let kind = sys::file_type(stat);
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    if kind == FileType::RegularFile {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = rustix::fs::openat(from, name, read, Mode::empty())?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::openat(to, name, write, Mode::from_raw_mode(0o600))?;
        sys::copy_content(source.as_fd(), target.as_fd(), stat.st_size.cast_unsigned())?;
        rustix::fs::fchown(&target, uid, gid)?;
        rustix::fs::fchmod(&target, mode)?;
        sys::copy_xattrs(source.as_fd(), target.as_fd())?;
        return rustix::fs::futimens(&target, &times(stat));
    }
    if kind == FileType::Symlink {
        rustix::fs::symlinkat(rustix::fs::readlinkat(from, name, Vec::new())?, to, name)?;
    } else {
        rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
    }
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    let (source, target) = (sys::open_inode(from, name)?, sys::open_inode(to, name)?);
    if kind != FileType::Symlink {
        sys::chmod(target.as_fd(), mode)?;
    }
    sys::copy_xattrs(source.as_fd(), target.as_fd())?;
    rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}
