//! What a runtime makes in a root file system, so that there is something to mount on.

use std::os::fd::AsFd as _;

use rustix::fs::{FileType, Mode};

use super::compare::Found;
use crate::archive::descent::shown;
use crate::{Error, Result, sys};

/// Where a runtime mounts something in every container, by paths without a `/` before them. A file or folder that is new there, and
/// empty, was made to be mounted on: it is no change of the container's. Nor is a folder changed in which nothing else was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountPoints<'a>(pub &'a [&'a str]);

impl MountPoints<'_> {
    /// Whether something was made only to be mounted on.
    pub(super) fn is(self, found: &Found<'_>) -> Result<bool> {
        if found.old.is_some() || !self.0.iter().any(|place| place.as_bytes() == found.path) {
            return Ok(false);
        }
        let is_empty = match sys::file_type(found.stat) {
            FileType::RegularFile => Ok(found.stat.st_size == 0),
            FileType::Directory => rustix::fs::openat(found.inode, c".", sys::DIR, Mode::empty())
                .and_then(|folder| sys::names(folder.as_fd()))
                .map(|names| names.is_empty()),
            _ => Ok(false),
        };
        is_empty.map_err(Error::io("list", shown(found.path)))
    }

    /// Whether such places lie in a folder.
    pub(super) fn are_below(self, folder: &[u8]) -> bool {
        self.0.iter().any(|place| place.as_bytes().strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/')))
    }
}
