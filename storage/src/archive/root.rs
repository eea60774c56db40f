//! Paths inside the root of a container, which may change while they are followed.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use super::Link;
use crate::sys;

/// Symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// Folders on one path, each of which is an open descriptor while it is followed by hand.
const MAX_DEPTH: usize = 256;

/// Opens what `path` leads to, as a process in the root would see it: `..` and absolute links never lead out of it, and
/// the links of `/proc` that are none on disk lead nowhere.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path, link: Link) -> Result<OwnedFd> {
    // An empty path is the root here.
    let inside = CString::new([b"/", path.as_os_str().as_bytes()].concat()).map_err(|_| Errno::INVAL)?;
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, link == Link::Itself);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match sys::open_resolved(root, &inside, flags, resolve)? {
        Some(fd) => Ok(fd),
        None => walk(root, path, link)?.found.ok_or(Errno::NOENT),
    }
}

/// Where a path leads.
pub(crate) struct Walked {
    /// Its names from the root, without symbolic links; what is not there is taken by the letter.
    pub(crate) names: Vec<CString>,
    /// What is there.
    pub(crate) found: Option<OwnedFd>,
}

/// Follows a path one name at a time, by descriptors alone: `..` is the folder that the path came from, wherever it has
/// been moved since.
pub(crate) fn walk(root: BorrowedFd<'_>, path: &Path, link: Link) -> Result<Walked> {
    let path = path.as_os_str().as_bytes();
    let mut todo: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
    let mut names: Vec<CString> = Vec::new();
    let mut opened: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    let mut last_is_folder = true;
    while let Some(part) = todo.pop_front() {
        match part.as_slice() {
            b"" | b"." => {
                if !last_is_folder && opened.len() == names.len() {
                    return Err(Errno::NOTDIR);
                }
                continue;
            }
            b".." => {
                if !last_is_folder && opened.len() == names.len() {
                    return Err(Errno::NOTDIR);
                }
                names.pop();
                opened.truncate(names.len());
                last_is_folder = true;
                continue;
            }
            _ => {}
        }
        let name = CString::new(part).map_err(|_| Errno::INVAL)?;
        if names.len() >= MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        if opened.len() < names.len() {
            names.push(name);
            continue;
        }
        if !last_is_folder {
            return Err(Errno::NOTDIR);
        }
        let inode = match sys::open_inode(opened.last().map_or(root, AsFd::as_fd), &name) {
            Ok(inode) => inode,
            Err(Errno::NOENT) => {
                names.push(name);
                continue;
            }
            Err(error) => return Err(error),
        };
        let kind = sys::file_type(&rustix::fs::fstat(&inode)?);
        // As in the kernel, a '/' after a link is a reason to follow it.
        if kind == FileType::Symlink && (link == Link::Followed || !todo.is_empty()) {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = rustix::fs::readlinkat(&inode, c"", Vec::new())?;
            if target.as_bytes().starts_with(b"/") {
                names.clear();
                opened.clear();
            }
            for part in target.as_bytes().split(|b| *b == b'/').rev() {
                todo.push_front(part.to_vec());
            }
            continue;
        }
        last_is_folder = kind == FileType::Directory;
        names.push(name);
        opened.push(inode);
    }
    let found = if opened.len() < names.len() {
        None
    } else {
        Some(match opened.pop() {
            Some(last) => last,
            None => rustix::fs::openat(root, c".", sys::PLACE, Mode::empty())?,
        })
    };
    Ok(Walked { names, found })
}

/// The names joined as a path below the root, `.` for the root itself.
pub(crate) fn below(names: &[CString]) -> CString {
    let path = names.iter().map(CString::as_bytes).collect::<Vec<_>>().join(&b'/');
    if path.is_empty() { c".".to_owned() } else { CString::new(path).unwrap_or_default() }
}
