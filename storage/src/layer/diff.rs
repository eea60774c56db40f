//! A layer from what a container has changed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::archive::Kind;
use super::changes::is_other;
use super::compare::{Found, Old, Opaque, Visitor, compare};
use super::extract::{OPAQUE, WHITEOUT};
use super::target::{Target, Whiteouts};
use super::writer::Writer;
use super::{Limits, MountPoints, spell};
use crate::archive::descent::shown;
use crate::archive::pack::{Items, entry};
use crate::tree::Next;
use crate::{Error, Key, Result, Snapshotter, sys};

/// What [`diff`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diffed {
    /// SHA-256 of the archive: the layer's diff id.
    pub diff_id_sha256: [u8; 32],
    /// Bytes of the archive.
    pub bytes: u64,
    /// Files, folders, whiteouts and other things in it.
    pub entries: u64,
    /// What no layer can hold: sockets, names that begin with `.wh.`, devices that are whiteouts, attributes with a `=` in
    /// their name.
    pub skipped: u64,
}

impl Diffed {
    /// The diff id as image configurations spell it: `sha256:` and 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn diff_id(&self) -> String {
        spell(&self.diff_id_sha256)
    }
}

/// Writes what an active snapshot has changed against its parent as a layer: a plain tar archive with whiteouts. Applied to
/// the parent it makes the snapshot's tree again, folders' times included.
///
/// The same changes make the same bytes. Nothing is mounted. The snapshot may be in use: what vanishes meanwhile is left out, and a file that
/// is being written is as it was found. To have all of one moment, pause the container.
///
/// Errors: [`Error::NotFound`], [`Error::UnsupportedMounts`], [`Error::Io`], [`Error::WriteArchive`],
/// [`Error::LimitExceeded`] for bytes, entries, path and depth. Blocks.
pub fn diff(snapshotter: &dyn Snapshotter, key: &Key, out: impl Write, limits: &Limits) -> Result<Diffed> {
    diff_without(MountPoints::default(), snapshotter, key, out, limits)
}

/// The same without what a runtime has made. Of folders in which nothing else was made the layer has nothing, not even that their
/// time is another.
pub fn diff_without(
    made: MountPoints<'_>,
    snapshotter: &dyn Snapshotter,
    key: &Key,
    out: impl Write,
    limits: &Limits,
) -> Result<Diffed> {
    let target = Target::of_snapshot(snapshotter, key)?;
    let mut items = Items::new(Writer::new(Hashed { out, hash: Sha256::new() }, limits));
    root(made, &target, &mut items)?;
    if target.whiteouts == Whiteouts::Remove {
        let mut collect = Collect {
            made,
            items: BTreeMap::new(),
            others: HashSet::new(),
            same: HashMap::new(),
            limits,
            kept: 0,
            skipped: 0,
        };
        compare(&target, Opaque::Told, limits, &mut collect)?;
        items.skipped += collect.skipped;
        collect.write(&target, &mut items)?;
    } else {
        compare(&target, Opaque::Told, limits, &mut Layer { made, held: Vec::new(), items: &mut items })?;
    }
    let (entries, skipped) = (items.writer.entries, items.skipped);
    let (hashed, bytes) = items.writer.finish()?;
    Ok(Diffed { diff_id_sha256: hashed.hash.finalize().into(), bytes, entries, skipped })
}

/// Hashes what goes through it.
struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hash.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The root has an entry if it is not what the parent's root is.
fn root<W: Write>(made: MountPoints<'_>, target: &Target, items: &mut Items<'_, W>) -> Result<()> {
    let failed = || Error::io("look at", "/");
    let stat = rustix::fs::fstat(&target.upper).map_err(failed())?;
    let same = match target.lowers().first() {
        None => false,
        Some(lower) => {
            let inode = rustix::fs::openat(lower, c".", sys::PLACE, Mode::empty()).map_err(failed())?;
            let old = Old { stat: rustix::fs::fstat(&inode).map_err(failed())?, inode };
            let upper = target.upper.as_fd();
            if made == MountPoints::default() {
                is_same(&old, upper, &stat)
            } else {
                is_same_but_for_time(&old, upper, &stat)
            }
            .map_err(failed())?
        }
    };
    if same { Ok(()) } else { items.add(target.upper.as_fd(), &stat, b".".to_vec()) }
}

/// Adds what hides `name` in the folder `path`.
fn hide<W: Write>(items: &mut Items<'_, W>, path: &[u8], name: &[u8]) -> Result<()> {
    let path = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
    items.writer.entry(&entry(path, Kind::File, None))
}

fn whiteout<W: Write>(items: &mut Items<'_, W>, path: &[u8]) -> Result<()> {
    let (folder, name) = split(path);
    hide(items, folder, &[WHITEOUT, name].concat())
}

/// The folder of a path, and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Whether a layer would take the name for a whiteout.
fn is_reserved(path: &[u8]) -> bool {
    split(path).1.starts_with(WHITEOUT)
}

/// An upper folder, which has the changes by itself, goes into the layer as it is met.
struct Layer<'i, 'a, W: Write> {
    made: MountPoints<'i>,
    /// The folders on the way here that may have been changed by nothing but what was made to mount on.
    held: Vec<(Vec<u8>, OwnedFd, Stat)>,
    items: &'i mut Items<'a, W>,
}

impl<W: Write> Layer<'_, '_, W> {
    /// Adds the folders on the way to something that goes into the layer.
    fn come_to(&mut self, path: &[u8]) -> Result<()> {
        for (folder, inode, stat) in std::mem::take(&mut self.held) {
            if is_in(path, &folder) {
                self.items.add(inode.as_fd(), &stat, folder)?;
            }
        }
        Ok(())
    }
}

fn is_in(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl<W: Write> Visitor for Layer<'_, '_, W> {
    fn found(&mut self, found: &Found<'_>) -> Result<Next> {
        if is_reserved(found.path) {
            self.items.skipped += 1;
            return Ok(Next::Pass);
        }
        if self.made.is(found)? {
            return Ok(Next::Pass);
        }
        if let Some(old) = found.old
            && !found.opaque
            && self.made.are_below(found.path)
        {
            let failed = |operation| Error::io(operation, shown(found.path));
            if is_same_but_for_time(old, found.inode, found.stat).map_err(failed("compare"))? {
                let inode = rustix::io::fcntl_dupfd_cloexec(found.inode, 0).map_err(failed("hold"))?;
                self.held.retain(|(folder, ..)| is_in(found.path, folder));
                self.held.push((found.path.to_vec(), inode, *found.stat));
                return Ok(Next::Enter);
            }
        }
        self.come_to(found.path)?;
        self.items.add(found.inode, found.stat, found.path.to_vec())?;
        if found.opaque {
            hide(self.items, found.path, OPAQUE)?;
        }
        Ok(Next::Enter)
    }

    fn gone(&mut self, path: &[u8]) -> Result<()> {
        if is_reserved(path) {
            return Ok(());
        }
        self.come_to(path)?;
        whiteout(self.items, path)
    }
}

/// Of a tree that was compared: first all is found, since a file that goes into the layer takes all its names along.
struct Collect<'l> {
    made: MountPoints<'l>,
    /// By path, with a NUL for each `/`: so a folder comes right before what is in it.
    items: BTreeMap<Vec<u8>, Item>,
    /// Files of several names that go into the layer.
    others: HashSet<(u64, u64)>,
    /// The paths of such files that have not changed themselves.
    same: HashMap<(u64, u64), Vec<Vec<u8>>>,
    limits: &'l Limits,
    /// What all these paths cost.
    kept: u64,
    skipped: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Item {
    There,
    Gone,
}

impl Collect<'_> {
    fn add(&mut self, path: &[u8], item: Item) -> Result<()> {
        let sortable = |path: &[u8]| path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect::<Vec<_>>();
        self.limits.keep(&mut self.kept, path)?;
        self.items.insert(sortable(path), item);
        // Whoever applies the layer elsewhere must know what the folders on the way are.
        let mut parent = split(path).0;
        while !parent.is_empty() && self.items.insert(sortable(parent), Item::There).is_none() {
            self.limits.keep(&mut self.kept, parent)?;
            parent = split(parent).0;
        }
        Ok(())
    }

    fn write<W: Write>(mut self, target: &Target, items: &mut Items<'_, W>) -> Result<()> {
        for inode in std::mem::take(&mut self.others) {
            for path in self.same.remove(&inode).unwrap_or_default() {
                self.add(&path, Item::There)?;
            }
        }
        for (path, item) in self.items {
            let path: Vec<u8> = path.into_iter().map(|byte| if byte == 0 { b'/' } else { byte }).collect();
            if item == Item::Gone {
                whiteout(items, &path)?;
                continue;
            }
            let c_path = CString::new(path.as_slice()).unwrap_or_default();
            let inode = match sys::open_beneath(target.upper.as_fd(), &c_path, sys::INODE) {
                Ok(inode) => inode,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(Error::io("open", shown(&path))(errno)),
            };
            let stat = rustix::fs::fstat(&inode).map_err(Error::io("look at", shown(&path)))?;
            items.add(inode.as_fd(), &stat, path)?;
        }
        Ok(())
    }
}

impl Visitor for Collect<'_> {
    fn found(&mut self, found: &Found<'_>) -> Result<Next> {
        if is_reserved(found.path) {
            self.skipped += 1;
            return Ok(Next::Pass);
        }
        if self.made.is(found)? {
            return Ok(Next::Pass);
        }
        let same = match found.old {
            None => false,
            // What else was made in it brings it in.
            Some(old) if self.made.are_below(found.path) => {
                is_same_but_for_time(old, found.inode, found.stat).map_err(Error::io("compare", shown(found.path)))?
            }
            Some(old) => is_same(old, found.inode, found.stat).map_err(Error::io("compare", shown(found.path)))?,
        };
        let several = sys::file_type(found.stat) != FileType::Directory && found.stat.st_nlink > 1;
        if !same {
            self.add(found.path, Item::There)?;
            if several {
                self.others.insert(sys::identity(found.stat));
            }
        } else if several {
            self.limits.keep(&mut self.kept, found.path)?;
            self.same.entry(sys::identity(found.stat)).or_default().push(found.path.to_vec());
        }
        Ok(Next::Enter)
    }

    fn gone(&mut self, path: &[u8]) -> Result<()> {
        if is_reserved(path) { Ok(()) } else { self.add(path, Item::Gone) }
    }
}

/// Whether two inodes are the same to whoever looks: with their times, attributes, targets and content.
fn is_same(old: &Old, new: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<bool> {
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let kind = sys::file_type(stat);
    if is_other(old, stat) || time(&old.stat) != time(stat) {
        return Ok(false);
    }
    if kind != FileType::Directory && old.stat.st_nlink != stat.st_nlink {
        return Ok(false);
    }
    let old_inode = old.inode.as_fd();
    if xattrs(old_inode)? != xattrs(new)? {
        return Ok(false);
    }
    match kind {
        FileType::Symlink => {
            let target = |inode| rustix::fs::readlinkat(inode, c"", Vec::new());
            Ok(target(old_inode)? == target(new)?)
        }
        FileType::RegularFile if stat.st_size > 0 => has_same_content(old_inode, new),
        _ => Ok(true),
    }
}

/// The same of folders, whose times tell no more than that something was made in them.
fn is_same_but_for_time(old: &Old, new: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<bool> {
    Ok(sys::file_type(stat) == FileType::Directory
        && !is_other(old, stat)
        && xattrs(old.inode.as_fd())? == xattrs(new)?)
}

fn xattrs(inode: BorrowedFd<'_>) -> rustix::io::Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>> {
    let names = sys::xattr_names(inode)?.into_iter();
    names
        .filter(|name| !sys::is_overlay_xattr(name) && name != b"security.selinux")
        .map(|name| Ok((name.clone(), sys::get_xattr(inode, OsStr::from_bytes(&name))?)))
        .collect()
}

fn has_same_content(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (old, new) = (sys::reopen(old)?, sys::reopen(new)?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut offset = 0;
    loop {
        let length = sys::read_full_at(old.as_fd(), &mut left, offset)?;
        if sys::read_full_at(new.as_fd(), &mut right, offset)? != length || left[..length] != right[..length] {
            return Ok(false);
        }
        if length < left.len() {
            return Ok(true);
        }
        offset += length as u64;
    }
}
