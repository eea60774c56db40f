//! Walks over file trees that hold whatever a container left in them: any depth, any name, any type.
//!
//! Two descriptors are open at a time whatever the depth, no symbolic link is followed, and no mount point is entered.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::{Errno, Result};

use crate::{Usage, sys};

/// What to do with a folder that was met.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Go on beside it.
    Pass,
    /// Walk what is in it.
    Enter,
}

/// Who is told of what a walk meets.
pub(crate) trait Visitor {
    /// An entry of the folder `dir`. `kind` may be unknown to the file system; [`Next::Enter`] is for folders only.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<Next>;

    /// The walk has gone into `dir`, which is `name` of the folder where it was.
    fn enter(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let _ = (dir, name);
        Ok(())
    }

    /// All that is in `dir` has been walked; the walk goes back to `parent`, where its name is `name`.
    fn leave(&mut self, dir: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let _ = (dir, parent, name);
        Ok(())
    }
}

struct Level {
    name: CString,
    identity: (u64, u64),
    pending: Vec<CString>,
}

/// Walks what is in the folder `root`.
pub(crate) fn walk(root: BorrowedFd<'_>, visitor: &mut dyn Visitor) -> Result<()> {
    let mut buffer = Vec::new();
    let mut here = rustix::fs::openat(root, c".", sys::DIR, Mode::empty())?;
    let mut levels = vec![list(here.as_fd(), CString::default(), &mut buffer, visitor)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.pending.pop() {
            let child = open_dir(here.as_fd(), &name)?;
            visitor.enter(child.as_fd(), &name)?;
            levels.push(list(child.as_fd(), name, &mut buffer, visitor)?);
            here = child;
        } else if let Some(done) = levels.pop()
            && let Some(above) = levels.last()
        {
            let parent = rustix::fs::openat(&here, c"..", sys::DIR, Mode::empty())?;
            // Somebody moved the folder while it was walked: `..` leads out of the tree.
            if sys::identity(&rustix::fs::fstat(&parent)?) != above.identity {
                return Err(Errno::STALE);
            }
            visitor.leave(here.as_fd(), parent.as_fd(), &done.name)?;
            here = parent;
        }
    }
    Ok(())
}

fn list(dir: BorrowedFd<'_>, name: CString, buffer: &mut Vec<u8>, visitor: &mut dyn Visitor) -> Result<Level> {
    let mut pending = Vec::new();
    sys::for_each_entry(dir, buffer, |entry, kind| {
        if visitor.entry(dir, entry, kind)? == Next::Enter {
            pending.push(entry.to_owned());
        }
        Ok(())
    })?;
    Ok(Level { name, identity: sys::identity(&rustix::fs::fstat(dir)?), pending })
}

fn open_dir(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    match sys::open_beneath(dir, name, sys::DIR) {
        // Not root: a container may have taken its owner's own rights away.
        Err(Errno::ACCESS) => {
            let place = sys::open_beneath(dir, name, sys::PLACE)?;
            sys::chmod(place.as_fd(), Mode::RWXU)?;
            sys::open_beneath(dir, name, sys::DIR)
        }
        other => other,
    }
}

struct Remove;

impl Visitor for Remove {
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<Next> {
        if kind == FileType::Directory {
            return Ok(Next::Enter);
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(Next::Pass),
            Err(Errno::ISDIR) => Ok(Next::Enter),
            Err(error) => Err(error),
        }
    }

    fn leave(&mut self, _: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Removes `name` of `parent` with all that is in it. Fails with `EXDEV` or `EBUSY` at a mount point, before which
/// other things may be gone already. What is not there is fine.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // A few rounds, in case somebody still writes to it or removes it too.
    let mut rounds = 0;
    loop {
        let result = remove_once(parent, name);
        match result {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::STALE) if rounds < 8 => rounds += 1,
            other => return other,
        }
    }
}

fn remove_once(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match sys::stat(parent, name)? {
        None => return Ok(()),
        Some(stat) if sys::file_type(&stat) != FileType::Directory => {
            return rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        Some(_) => {}
    }
    // An empty folder is what most are.
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    walk(open_dir(parent, name)?.as_fd(), &mut Remove)?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

#[derive(Default)]
struct Measure {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Measure {
    fn add(&mut self, stat: &rustix::fs::Stat) {
        let once = sys::file_type(stat) == FileType::Directory || stat.st_nlink < 2;
        if once || self.linked.insert(sys::identity(stat)) {
            self.usage.inodes += 1;
            self.usage.bytes += stat.st_blocks.cast_unsigned() * 512;
        }
    }
}

impl Visitor for Measure {
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, _: FileType) -> Result<Next> {
        let Some(stat) = sys::stat(dir, name)? else { return Ok(Next::Pass) };
        self.add(&stat);
        Ok(if sys::file_type(&stat) == FileType::Directory { Next::Enter } else { Next::Pass })
    }
}

/// What the folder `root` and all in it occupy.
pub(crate) fn usage(root: BorrowedFd<'_>) -> Result<Usage> {
    let mut measure = Measure::default();
    measure.add(&rustix::fs::fstat(root)?);
    walk(root, &mut measure)?;
    Ok(measure.usage)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, sys::DIR, Mode::empty()).expect("a folder")
    }

    #[test]
    fn removes_any_depth_and_leaves_what_links_lead_to() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(root.path().join("outside")).expect("a folder");
        std::fs::write(root.path().join("outside/kept"), "x").expect("a file");
        std::fs::create_dir(root.path().join("tree")).expect("a folder");
        symlink("../outside", root.path().join("tree/link")).expect("a link");
        let mut here = open(&root.path().join("tree"));
        // Deeper than descriptors and paths reach.
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, c"deeper", Mode::RWXU).expect("a folder");
            here = rustix::fs::openat(&here, c"deeper", sys::DIR, Mode::empty()).expect("it");
        }
        sys::write_new_file(here.as_fd(), c"file", b"x").expect("a file");
        drop(here);
        let dir = open(root.path());
        assert_eq!(usage(open(&root.path().join("tree")).as_fd()).expect("usage").inodes, 3003);
        remove(dir.as_fd(), c"tree").expect("removed");
        remove(dir.as_fd(), c"tree").expect("what is absent is fine");
        assert!(!root.path().join("tree").exists());
        assert!(root.path().join("outside/kept").exists());
        symlink("outside", root.path().join("link")).expect("a link");
        remove(dir.as_fd(), c"link").expect("removed");
        assert!(root.path().join("outside/kept").exists());
        assert!(root.path().join("link").symlink_metadata().is_err());
    }

    #[test]
    fn usage_counts_links_once() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::write(root.path().join("a"), vec![1; 100_000]).expect("a file");
        let before = usage(open(root.path()).as_fd()).expect("usage");
        std::fs::hard_link(root.path().join("a"), root.path().join("b")).expect("a link");
        let after = usage(open(root.path()).as_fd()).expect("usage");
        assert_eq!(before, after);
        assert_eq!(after.inodes, 2);
        assert!(after.bytes >= 100_000);
    }
}
