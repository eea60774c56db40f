//! What a container has changed, as a list.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};

use super::compare::{Found, Old, Opaque, Visitor, compare};
use super::target::Target;
use super::{Limits, MountPoints};
use crate::archive::descent::shown;
use crate::tree::Next;
use crate::{Error, Key, Result, Snapshotter, sys};

/// How something was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// It is new (`A`).
    Added,
    /// It was there, or something in it was changed (`C`).
    Modified,
    /// It was there (`D`).
    Deleted,
}

/// A path that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// From the root of the snapshot, with a `/` before it.
    pub path: PathBuf,
    /// How.
    pub kind: ChangeKind,
}

/// What an active snapshot has changed against its parent, in the order of the paths, as `docker diff` means it: a path is modified if
/// its type, mode, owner, device, capabilities or, for all but folders, length or time are others, and a folder also if something in it was
/// changed. All that is in a new folder is new; of a deleted one only itself is listed.
///
/// The snapshot may be in use. Errors: [`Error::NotFound`], [`Error::UnsupportedMounts`], [`Error::Io`],
/// [`Error::LimitExceeded`] for entries and depth.
pub fn changes(snapshotter: &dyn Snapshotter, key: &Key, limits: &Limits) -> Result<Vec<Change>> {
    changes_without(MountPoints::default(), snapshotter, key, limits)
}

/// The same without what a runtime has made.
pub fn changes_without(
    made: MountPoints<'_>,
    snapshotter: &dyn Snapshotter,
    key: &Key,
    limits: &Limits,
) -> Result<Vec<Change>> {
    let target = Target::of_snapshot(snapshotter, key)?;
    let mut list = List { made, changes: BTreeMap::new(), limits, kept: 0 };
    compare(&target, Opaque::Compared, limits, &mut list)?;
    let change = |(path, kind)| {
        let path = [b"/", Vec::as_slice(&path)].concat();
        Change { path: PathBuf::from(OsString::from_vec(path)), kind }
    };
    Ok(list.changes.into_iter().map(change).collect())
}

struct List<'a> {
    made: MountPoints<'a>,
    changes: BTreeMap<Vec<u8>, ChangeKind>,
    limits: &'a Limits,
    kept: u64,
}

impl List<'_> {
    fn add(&mut self, path: &[u8], kind: ChangeKind) -> Result<()> {
        self.limits.keep(&mut self.kept, path)?;
        self.changes.insert(path.to_vec(), kind);
        let mut parent = path;
        while let Some(slash) = parent.iter().rposition(|byte| *byte == b'/') {
            parent = &parent[..slash];
            if self.changes.contains_key(parent) {
                break;
            }
            self.limits.keep(&mut self.kept, parent)?;
            self.changes.insert(parent.to_vec(), ChangeKind::Modified);
        }
        Ok(())
    }
}

impl Visitor for List<'_> {
    fn found(&mut self, found: &Found<'_>) -> Result<Next> {
        if self.made.is(found)? {
            return Ok(Next::Pass);
        }
        match found.old {
            None => self.add(found.path, ChangeKind::Added)?,
            Some(old) => {
                let failed = Error::io("read capabilities of", shown(found.path));
                if is_other(old, found.stat) || has_other_capabilities(old, found).map_err(failed)? {
                    self.add(found.path, ChangeKind::Modified)?;
                }
            }
        }
        Ok(Next::Enter)
    }

    fn gone(&mut self, path: &[u8]) -> Result<()> {
        self.add(path, ChangeKind::Deleted)
    }
}

/// Whether two inodes differ in what can be seen without opening them. Times of folders do not count.
pub(crate) fn is_other(old: &Old, new: &Stat) -> bool {
    let old = &old.stat;
    let of_file = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev)
        || (sys::file_type(new) != FileType::Directory && of_file(old) != of_file(new))
}

fn has_other_capabilities(old: &Old, found: &Found<'_>) -> rustix::io::Result<bool> {
    use std::os::fd::AsFd as _;
    let name = OsStr::new("security.capability");
    Ok(sys::file_type(found.stat) == FileType::RegularFile
        && sys::get_xattr(old.inode.as_fd(), name)? != sys::get_xattr(found.inode, name)?)
}
