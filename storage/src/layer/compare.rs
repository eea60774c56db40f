//! What a snapshot has that those below it do not.
//!
//! Two ways. An overlay's upper folder has the changes by itself: what is in it is new, whiteouts hide what is below.
//! Any other tree is compared with its parent, and what is missing is gone. Nothing is mounted, and a container may go
//! on meanwhile: what is gone when its turn comes is left out.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use super::Limits;
use super::target::{Target, Whiteouts};
use crate::archive::descent::{Descent, shown};
use crate::sys::{self, Mounts};
use crate::tree::Next;
use crate::{Error, Result};

/// Descriptors of lower folders that are kept for the way back up.
const KEPT: usize = 256;

/// What to do with folders that hide all below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opaque {
    /// They are told as such, and what is in them is new.
    Told,
    /// They are compared with what they hide, name by name.
    Compared,
}

/// What lower layers show under a name.
pub(crate) struct Old {
    pub(crate) inode: OwnedFd,
    pub(crate) stat: Stat,
}

/// What the snapshot has.
pub(crate) struct Found<'a> {
    /// From the root, without a `/` before or behind it.
    pub(crate) path: &'a [u8],
    pub(crate) inode: BorrowedFd<'a>,
    pub(crate) stat: &'a Stat,
    pub(crate) old: Option<&'a Old>,
    /// A folder that hides all that lower layers have in it; only where they have a folder, too.
    pub(crate) opaque: bool,
}

pub(crate) trait Visitor {
    /// Something that is in the upper folder, or in the tree that is compared.
    fn found(&mut self, found: &Found<'_>) -> Result<Next>;

    /// Something that lower layers show and the snapshot does not.
    fn gone(&mut self, path: &[u8]) -> Result<()>;
}

/// What lies below a folder of the way.
struct Below {
    /// The lower folders that show, the nearest first; `None` if their descriptors have been given up.
    folders: Option<Vec<OwnedFd>>,
    /// The folder is all that there is: what it does not have is gone.
    whole: bool,
}

/// Tells a visitor of all that is in the target but its root, in order: a folder before what is in it.
pub(crate) fn compare(target: &Target, opaque: Opaque, limits: &Limits, visitor: &mut dyn Visitor) -> Result<()> {
    let whole = target.whiteouts == Whiteouts::Remove;
    let lowers = target.lowers().iter().map(|lower| rustix::fs::openat(lower, c".", sys::DIR, Mode::empty()));
    let below =
        Below { folders: Some(lowers.collect::<Result<_, _>>().map_err(Error::io("open folder", "/"))?), whole };
    let more = names(&below, b"")?;
    let mut descent = Descent::new(target.upper.as_fd(), Vec::new(), below, more, Mounts::Stay, limits)?;
    let mut entries = 0_u64;
    while let Some((name, path)) = descent.next() {
        entries += 1;
        if entries > limits.entries {
            let entry = super::archive::show(&path);
            return Err(Error::LimitExceeded { what: "entries", limit: limits.entries, entry });
        }
        let failed = |operation| Error::io(operation, shown(&path));
        recall(target, &mut descent).map_err(failed("look below"))?;
        let inode = match sys::open_beneath(descent.here(), &name, sys::INODE) {
            Ok(inode) => Some(inode),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("open")(errno)),
        };
        let Some(below) = descent.data() else { continue };
        let whole = below.whole;
        let (old, folders) =
            look(target, below.folders.as_deref().unwrap_or_default(), &name).map_err(failed("look below"))?;
        let stat = inode.as_ref().map(rustix::fs::fstat).transpose().map_err(failed("look at"))?;
        let (Some(inode), Some(stat)) = (inode, stat) else {
            // A name that vanished from an upper folder says nothing.
            if whole && old.is_some() {
                visitor.gone(&path)?;
            }
            continue;
        };
        if target.is_whiteout(&stat) {
            if old.is_some() {
                visitor.gone(&path)?;
            }
            continue;
        }
        let folder = sys::file_type(&stat) == FileType::Directory;
        refuse_references(target, inode.as_fd(), &stat, &path)?;
        let hides = folder && target.is_opaque(inode.as_fd()).map_err(failed("look at"))?;
        let opaque_here = hides && opaque == Opaque::Told && !folders.is_empty();
        let found = Found { path: &path, inode: inode.as_fd(), stat: &stat, old: old.as_ref(), opaque: opaque_here };
        if visitor.found(&found)? == Next::Enter && folder {
            let below = Below {
                folders: Some(if hides && opaque == Opaque::Told { Vec::new() } else { folders }),
                whole: whole || hides,
            };
            let more = names(&below, &path)?;
            descent.enter(inode.as_fd(), name, path, below, more)?;
            forget(&mut descent);
        }
    }
    Ok(())
}

/// What lower layers show under a name, and if that is a folder, all folders that it is made of.
fn look(target: &Target, folders: &[OwnedFd], name: &CStr) -> rustix::io::Result<(Option<Old>, Vec<OwnedFd>)> {
    let (mut old, mut found) = (None, Vec::new());
    for folder in folders {
        let inode = match sys::open_beneath(folder.as_fd(), name, sys::INODE) {
            Ok(inode) => inode,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&inode)?;
        let is_folder = sys::file_type(&stat) == FileType::Directory;
        if target.is_whiteout(&stat) || (!is_folder && old.is_some()) {
            break;
        }
        let last = !is_folder || target.is_opaque(inode.as_fd())?;
        if is_folder {
            found.push(rustix::fs::openat(&inode, c".", sys::DIR, Mode::empty())?);
        }
        old.get_or_insert(Old { inode, stat });
        if last {
            break;
        }
    }
    Ok((old, found))
}

/// The names that lower layers have in a folder, where they tell what is gone.
fn names(below: &Below, path: &[u8]) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for folder in below.folders.iter().flatten().filter(|_| below.whole) {
        names.extend(sys::names(folder.as_fd()).map_err(Error::io("read folder", shown(path)))?);
    }
    Ok(names)
}

/// Gives up the descriptors that are needed last, so that depth times layers is not what is open.
fn forget(descent: &mut Descent<'_, Below>) {
    let mut open: usize = descent.all().map(|below| below.folders.as_ref().map_or(0, Vec::len)).sum();
    let last = descent.names().count();
    for below in descent.all().take(last) {
        if open <= KEPT {
            break;
        }
        if let Some(folders) = below.folders.take_if(|folders| !folders.is_empty()) {
            open -= folders.len();
        }
    }
}

/// Opens again what was given up.
fn recall(target: &Target, descent: &mut Descent<'_, Below>) -> rustix::io::Result<()> {
    if descent.data().is_none_or(|below| below.folders.is_some()) {
        return Ok(());
    }
    let names: Vec<CString> = descent.names().map(CStr::to_owned).collect();
    let mut folders = Vec::new();
    for lower in target.lowers() {
        folders.push(rustix::fs::openat(lower, c".", sys::DIR, Mode::empty())?);
    }
    for name in names {
        folders = look(target, &folders, &name)?.1;
    }
    if let Some(below) = descent.data() {
        below.folders = Some(folders);
    }
    Ok(())
}

/// An upper folder that only refers to what is below it does not have the changes by itself.
fn refuse_references(target: &Target, inode: BorrowedFd<'_>, stat: &Stat, path: &[u8]) -> Result<()> {
    let Whiteouts::Overlay { opaque } = target.whiteouts else { return Ok(()) };
    let prefix = opaque.trim_end_matches("opaque");
    let feature = match sys::file_type(stat) {
        FileType::Directory => "redirect",
        FileType::RegularFile => "metacopy",
        _ => return Ok(()),
    };
    let attribute = format!("{prefix}{feature}");
    match sys::get_xattr(inode, OsStr::new(&attribute)) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(Error::UnsupportedMounts {
            reason: format!(
                "{} has the attribute {attribute}: mount with redirect_dir=off and metacopy=off",
                shown(path).display()
            ),
        }),
        Err(errno) => Err(Error::io("look at", shown(path))(errno)),
    }
}
