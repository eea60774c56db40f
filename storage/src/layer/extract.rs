//! Entries become files.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString, OsStr};
use std::hash::BuildHasher as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Limits;
use super::archive::{Archive, Entry, Kind, Source, show};
use super::place::{Place, Places, is_whiteout, join, parts};
use super::target::{Target, Whiteouts};
use crate::archive::{Owner, Replace};
use crate::overlay::{copy_folder_metadata, times as copied_times};
use crate::{Error, Result, copy, sys, tree};

pub(crate) const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bytes of folder names that wait for their times before they get them early.
const WAITING: usize = 16 << 20;

/// Bytes of the whiteouts that wait for the layer below, before the whole layer does.
const WAITING_WHITEOUTS: usize = 4 << 20;

/// Steps from folder to folder that an archive may take, besides those that its entries pay for. A folder takes them
/// once, when it comes into the upper tree; links that lead through many folders are the only way to use them up.
const STEPS: u64 = 1_000_000;
const STEPS_FOR_ENTRY: u64 = 64;

/// What an archive that is no layer does differently.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// The folder of the target below which the entries stand.
    pub(crate) base: Vec<CString>,
    pub(crate) owner: Owner,
    pub(crate) replace: Replace,
}

impl Rules {
    /// The names from the target's root.
    fn full<'p>(&'p self, parts: &[&'p [u8]]) -> Vec<&'p [u8]> {
        self.base.iter().map(CString::as_bytes).chain(parts.iter().copied()).collect()
    }
}

/// Applies all entries; returns the number of extended attributes left out.
pub(crate) fn all<S: Source>(
    archive: &mut Archive<'_, S>,
    target: &Target,
    limits: &Limits,
    rules: &Rules,
) -> Result<u64> {
    let mut extract = Extract {
        target,
        limits,
        rules,
        places: Places::new(target, rules.replace),
        books: Books::new(target)?,
        times: Vec::new(),
        waiting: 0,
        added: 0,
        skipped_xattrs: 0,
        root_opaque: false,
        noted: None,
        ghosts: HashSet::new(),
        copied: HashSet::new(),
        rooted: false,
        waiting_whiteouts: Vec::new(),
        waiting_bytes: 0,
    };
    if target.whiteouts != Whiteouts::Literal && target.is_settled() {
        // As long as no entry says otherwise, the root is what it was, like all folders that are on the way to what changes.
        let root = rustix::fs::fstat(&target.upper).map_err(|errno| extract_error("look at root for", b"", errno))?;
        extract.times.push((c".".to_owned(), copied_times(&root)));
    }
    while let Some(mut entry) = archive.next()? {
        if let Owner::Given { uid, gid } = rules.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        let budget = STEPS + STEPS_FOR_ENTRY * archive.entries;
        extract.places.budget = budget;
        let done = extract.entry(archive, &entry);
        if extract.places.steps > budget {
            return Err(Error::LimitExceeded { what: "folders on the way", limit: budget, entry: show(&entry.name) });
        }
        done?;
    }
    let (settled, budget) = (extract.settle(), extract.places.budget);
    if extract.places.steps > budget {
        return Err(Error::LimitExceeded { what: "folders on the way", limit: budget, entry: String::new() });
    }
    settled?;
    extract.set_times(None)?;
    Ok(extract.skipped_xattrs)
}

struct Extract<'a> {
    target: &'a Target,
    limits: &'a Limits,
    rules: &'a Rules,
    places: Places<'a>,
    books: Books,
    /// Folders and the times that they get when nothing more is written to them.
    times: Vec<(CString, Timestamps)>,
    waiting: usize,
    /// Bytes that were not in the stream: holes, and files of lower layers.
    added: u64,
    skipped_xattrs: u64,
    root_opaque: bool,
    /// The last place whose ancestors are in the books.
    noted: Option<Rc<Place>>,
    /// Folders of the upper tree that are no entries and hold none, only whiteouts and copies: a whiteout hides them.
    ghosts: HashSet<u64>,
    /// Files of lower layers that were copied up to be linked, by path: a whiteout hides them too.
    copied: HashSet<CString>,
    /// An entry said what the root is.
    rooted: bool,
    /// Whiteouts in folders that the layer has itself, until it is known what lies below.
    waiting_whiteouts: Vec<Vec<u8>>,
    waiting_bytes: usize,
}

/// What this layer has made in a tree that lower layers have filled before, where whiteouts remove: they must not
/// remove what is the layer's own.
struct Books {
    /// There was anything before.
    kept: bool,
    keys: RandomState,
    /// Hashes of (folder, name).
    own: HashSet<u64>,
    /// Folders that hold nothing but what is the layer's own.
    whole: HashSet<u64>,
}

impl Books {
    fn new(target: &Target) -> Result<Self> {
        let kept = target.whiteouts == Whiteouts::Remove && {
            let names = rustix::fs::openat(&target.upper, c".", sys::DIR, Mode::empty())
                .and_then(|root| sys::names(root.as_fd()))
                .map_err(|errno| extract_error("read the root for", b"", errno))?;
            !names.is_empty()
        };
        Ok(Books { kept, keys: RandomState::new(), own: HashSet::new(), whole: HashSet::new() })
    }

    fn key(&self, folder: u64, name: &CStr) -> u64 {
        self.keys.hash_one((folder, name))
    }

    fn add(&mut self, folder: u64, name: &CStr) {
        if self.kept {
            let key = self.key(folder, name);
            self.own.insert(key);
        }
    }

    fn add_whole(&mut self, folder: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.kept {
            self.whole.insert(rustix::fs::fstat(folder)?.st_ino);
        }
        Ok(())
    }

    /// Removes from a folder what is not the layer's own, at any depth. A second time there is nothing to do.
    fn purge(&mut self, folder: &OwnedFd) -> rustix::io::Result<()> {
        let inode = rustix::fs::fstat(folder)?.st_ino;
        if !self.whole.insert(inode) {
            return Ok(());
        }
        for name in sys::names(folder.as_fd())? {
            if !self.own.contains(&self.key(inode, &name)) {
                tree::remove(folder.as_fd(), &name)?;
            } else if let Ok(below) = sys::open_beneath(folder.as_fd(), &name, sys::DIR) {
                self.purge(&below)?;
            }
        }
        Ok(())
    }
}

fn extract_error(operation: &'static str, name: &[u8], errno: Errno) -> Error {
    Error::Extract { operation, entry: show(name), source: io::Error::from(errno) }
}

impl Extract<'_> {
    fn entry<S: Source>(&mut self, archive: &mut Archive<'_, S>, entry: &Entry) -> Result<()> {
        let name = &entry.name;
        let invalid = |reason: &str| Error::InvalidLayer { entry: show(name), reason: reason.into() };
        let parts = parts(name);
        if parts.len() as u64 > self.limits.depth {
            return Err(Error::LimitExceeded {
                what: "folders in a path",
                limit: self.limits.depth,
                entry: show(name),
            });
        }
        let literal = self.target.whiteouts == Whiteouts::Literal;
        let rules = self.rules;
        let full = rules.full(&parts);
        if parts.is_empty() {
            // CVE-2021-29136: a link in the root's place would lead all others out.
            if entry.kind != Kind::Directory {
                return Err(invalid("the root can only be a folder"));
            }
            // What the folder is that files are copied into is not the archive's to say.
            if literal {
                return Ok(());
            }
            let place = self.places.place(&[]).map_err(|errno| extract_error("open root for", name, errno))?;
            self.rooted = true;
            self.folder_metadata(entry, place.upper.as_fd(), c".", false)?;
            return Ok(());
        }
        let Some((base, parents)) = full.split_last() else { return Ok(()) };
        if base.starts_with(WHITEOUT) && !literal {
            if entry.kind != Kind::File {
                return Err(invalid("a whiteout can only be a file"));
            }
            return self.whiteout(entry, parents, base);
        }
        let c_base = CString::new(*base).map_err(|_| invalid("its name has a NUL"))?;
        let failed = |errno| match errno {
            Errno::NOTDIR => invalid("a parent is not a folder"),
            Errno::LOOP => invalid("its parents have too many symbolic links"),
            errno => extract_error("create parent of", name, errno),
        };
        let place = if let Some(place) = self.places.own_place(parents).map_err(failed)? {
            place
        } else {
            self.settle()?;
            self.places.place(parents).map_err(failed)?
        };
        self.note_implied();
        self.note_ancestors(&place).map_err(|errno| extract_error("open parent of", name, errno))?;
        match entry.kind {
            Kind::Directory => return self.folder(entry, &full, &place, &c_base),
            Kind::File => self.file(archive, entry, &place, &c_base)?,
            Kind::HardLink => self.hard_link(entry, &place, &c_base)?,
            Kind::Symlink | Kind::Character | Kind::Block | Kind::Fifo => self.special(entry, &place, &c_base)?,
        }
        self.books.add(place.inode, &c_base);
        if !self.copied.is_empty() {
            self.copied.remove(&join(&place.path, &c_base).map_err(|errno| extract_error("create", name, errno))?);
        }
        Ok(())
    }

    /// Makes something new, in the place of whatever has its name.
    fn make<T>(
        &self,
        entry: &Entry,
        place: &Place,
        base: &CStr,
        create: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match create(place.upper.as_fd()) {
            Err(Errno::EXIST) => self.clear(entry, place, base)?.and_then(|()| create(place.upper.as_fd())),
            other => other,
        };
        made.map_err(|errno| extract_error("create", &entry.name, errno))
    }

    /// Removes what is in an entry's place, unless it is a folder that is to stay.
    fn clear(&self, entry: &Entry, place: &Place, base: &CStr) -> Result<rustix::io::Result<()>> {
        if self.rules.replace == Replace::SameKind {
            let removed = rustix::fs::unlinkat(&place.upper, base, AtFlags::empty());
            if removed == Err(Errno::ISDIR) {
                return Err(Error::Occupied { entry: show(&entry.name), there: "folder", wanted: "file" });
            }
            return Ok(removed);
        }
        Ok(tree::remove(place.upper.as_fd(), base))
    }

    fn folder(&mut self, entry: &Entry, parts: &[&[u8]], place: &Rc<Place>, base: &CStr) -> Result<()> {
        let failed = |errno| match errno {
            Errno::NOTDIR if self.rules.replace == Replace::SameKind => {
                Error::Occupied { entry: show(&entry.name), there: "file", wanted: "folder" }
            }
            errno => extract_error("create folder", &entry.name, errno),
        };
        let made = self.places.make_folder(place.upper.as_fd(), base).map_err(failed)?;
        if made.fresh {
            self.books.add_whole(made.folder.as_fd()).map_err(failed)?;
        } else if !self.ghosts.is_empty() {
            self.ghosts.remove(&rustix::fs::fstat(&made.folder).map_err(failed)?.st_ino);
        }
        self.books.add(place.inode, base);
        let path = join(&place.path, base).map_err(failed)?;
        self.folder_metadata(entry, made.folder.as_fd(), &path, made.fresh)?;
        self.places.went_into(parts, made.folder, place, base).map_err(failed)
    }

    fn folder_metadata(&mut self, entry: &Entry, folder: BorrowedFd<'_>, path: &CStr, fresh: bool) -> Result<()> {
        if !fresh && self.target.whiteouts != Whiteouts::Literal {
            // The entry is all that there is to the folder: what it had before is not kept.
            sys::remove_xattrs(folder, |name| entry.xattrs.iter().any(|(kept, _)| kept == name))
                .map_err(|errno| extract_error("remove extended attributes of", &entry.name, errno))?;
        }
        Self::own(entry, folder)?;
        self.xattrs(entry, folder)?;
        self.later(path.to_owned(), times(entry.mtime))
    }

    /// Owner, then mode: `chown` takes the set-user-id bit away.
    fn own(entry: &Entry, fd: BorrowedFd<'_>) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rustix::fs::fchown(fd, uid, gid).map_err(|errno| extract_error("set owner of", &entry.name, errno))?;
        rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))
            .map_err(|errno| extract_error("set mode of", &entry.name, errno))
    }

    fn xattrs(&mut self, entry: &Entry, fd: BorrowedFd<'_>) -> Result<()> {
        for (name, value) in &entry.xattrs {
            if sys::is_overlay_xattr(name) {
                self.skipped_xattrs += 1;
                continue;
            }
            match sys::set_xattr(fd, OsStr::from_bytes(name), value) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => self.skipped_xattrs += 1,
                // The kernel keeps user attributes off links and devices.
                Err(Errno::PERM) if name.starts_with(b"user.") && entry.kind != Kind::File => self.skipped_xattrs += 1,
                Err(errno) => return Err(extract_error("set extended attribute of", &entry.name, errno)),
            }
        }
        Ok(())
    }

    fn file<S: Source>(
        &mut self,
        archive: &mut Archive<'_, S>,
        entry: &Entry,
        place: &Place,
        base: &CStr,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            self.make(entry, place, base, |dir| rustix::fs::openat(dir, base, flags, Mode::from_raw_mode(0o600)))?;
        let failed = |errno| extract_error("write", &entry.name, errno);
        let whole = [(0, entry.length)];
        for &(start, length) in entry.sparse.as_deref().unwrap_or(&whole) {
            let (mut offset, end) = (start, start + length);
            while offset < end {
                let piece = archive.piece(&entry.name)?;
                let piece = &piece[..piece.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX))];
                let taken = piece.len();
                sys::write_all_at(file.as_fd(), piece, offset).map_err(failed)?;
                archive.take(taken);
                offset += taken as u64;
            }
        }
        if let Some(map) = &entry.sparse {
            self.add_bytes(entry, entry.length - map.iter().map(|(_, length)| length).sum::<u64>())?;
            rustix::fs::ftruncate(&file, entry.length).map_err(failed)?;
        }
        Self::own(entry, file.as_fd())?;
        self.xattrs(entry, file.as_fd())?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|errno| extract_error("set times of", &entry.name, errno))
    }

    fn add_bytes(&mut self, entry: &Entry, bytes: u64) -> Result<()> {
        self.added = self.added.saturating_add(bytes);
        if self.added > self.limits.bytes {
            return Err(Error::LimitExceeded { what: "bytes", limit: self.limits.bytes, entry: show(&entry.name) });
        }
        Ok(())
    }

    fn special(&mut self, entry: &Entry, place: &Place, base: &CStr) -> Result<()> {
        let invalid = |reason: &str| Error::InvalidLayer { entry: show(&entry.name), reason: reason.into() };
        let mode = Mode::from_raw_mode(entry.mode);
        let kind = match entry.kind {
            Kind::Character => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            _ => FileType::Symlink,
        };
        if kind == FileType::Symlink {
            if entry.link.is_empty() {
                return Err(invalid("a symbolic link without a target"));
            }
            self.make(entry, place, base, |dir| rustix::fs::symlinkat(entry.link.as_slice(), dir, base))?;
        } else {
            if kind == FileType::CharacterDevice && entry.device == (0, 0) {
                return Err(invalid("a device 0:0 is overlay's whiteout"));
            }
            let device = rustix::fs::makedev(entry.device.0, entry.device.1);
            self.make(entry, place, base, |dir| rustix::fs::mknodat(dir, base, kind, mode & Mode::RWXU, device))?;
        }
        // What was made is what is changed from here on, whatever a container puts in its place.
        let failed = |operation| move |errno| extract_error(operation, &entry.name, errno);
        let inode = sys::open_inode(place.upper.as_fd(), base).map_err(failed("open"))?;
        if sys::file_type(&rustix::fs::fstat(&inode).map_err(failed("open"))?) != kind {
            return Err(failed("create")(Errno::STALE));
        }
        let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rustix::fs::chownat(&inode, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(failed("set owner of"))?;
        if kind != FileType::Symlink {
            sys::chmod(inode.as_fd(), mode).map_err(failed("set mode of"))?;
        }
        self.xattrs(entry, inode.as_fd())?;
        rustix::fs::utimensat(&inode, c"", &times(entry.mtime), AtFlags::EMPTY_PATH).map_err(failed("set times of"))
    }

    fn hard_link(&mut self, entry: &Entry, place: &Rc<Place>, base: &CStr) -> Result<()> {
        let invalid = |reason: &str| Error::InvalidLayer { entry: show(&entry.name), reason: reason.into() };
        let failed = |errno| match errno {
            Errno::NOTDIR => invalid("a parent of its link target is not a folder"),
            Errno::ISDIR => invalid("its link target is a folder"),
            Errno::LOOP => invalid("its link target has too many symbolic links"),
            errno => extract_error("link", &entry.name, errno),
        };
        let missing = || invalid("its link target does not exist");
        let path = parts(&entry.link);
        if path.len() as u64 > self.limits.depth {
            return Err(Error::LimitExceeded {
                what: "folders in a path",
                limit: self.limits.depth,
                entry: show(&entry.name),
            });
        }
        if path.is_empty() {
            return Err(invalid("its link target is a folder"));
        }
        let rules = self.rules;
        let path = rules.full(&path);
        let Some((source_base, parents)) = path.split_last() else { return Err(missing()) };
        let source_base = CString::new(*source_base).map_err(|_| missing())?;
        // Nearly all targets are in the layer itself, by a path without symbolic links.
        let parent_path = if parents.is_empty() { b".".to_vec() } else { parents.join(&b'/') };
        let parent_path = CString::new(parent_path).map_err(|_| missing())?;
        let near = self.target.open_below(self.target.upper.as_fd(), &parent_path, sys::PLACE).ok();
        if let Some(near) = near
            && let Some(stat) = sys::stat(near.as_fd(), &source_base).map_err(failed)?
        {
            return self.link(entry, near.as_fd(), &source_base, &stat, place, base);
        }
        self.settle()?;
        let folder = self.places.resolve(parents).map_err(failed)?;
        let (lower, stat) = self.places.file(&folder, &source_base).map_err(failed)?.ok_or_else(missing)?;
        match (lower, folder.upper()) {
            (None, Some(upper)) => self.link(entry, upper.as_fd(), &source_base, &stat, place, base),
            (None, None) => Err(missing()),
            (Some(lower), _) => {
                // A link needs one file in one layer: copied up with its folders, as the kernel would.
                self.add_bytes(entry, stat.st_size.cast_unsigned())?;
                let up = self.places.ensure(&folder).map_err(failed)?;
                self.note_ghosts();
                self.copied.insert(join(&up.path, &source_base).map_err(failed)?);
                copy::file(lower.as_fd(), up.upper.as_fd(), &source_base, &stat).map_err(failed)?;
                self.link(entry, up.upper.as_fd(), &source_base, &stat, place, base)
            }
        }
    }

    fn link(
        &mut self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        source: &CStr,
        stat: &rustix::fs::Stat,
        place: &Place,
        base: &CStr,
    ) -> Result<()> {
        let invalid = |reason: &str| Error::InvalidLayer { entry: show(&entry.name), reason: reason.into() };
        if self.target.is_whiteout(stat) {
            return Err(invalid("its link target does not exist"));
        }
        if sys::file_type(stat) == FileType::Directory {
            return Err(invalid("its link target is a folder"));
        }
        let failed = |errno| extract_error("link", &entry.name, errno);
        // Already the same: removing it to link it anew would remove the target.
        if let Some(there) = sys::stat(place.upper.as_fd(), base).map_err(failed)?
            && sys::identity(&there)
                == sys::identity(&rustix::fs::statat(dir, source, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?)
        {
            return Ok(());
        }
        match rustix::fs::linkat(dir, source, &place.upper, base, AtFlags::empty()) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(failed),
        }
        self.clear(entry, place, base)?.map_err(failed)?;
        match rustix::fs::linkat(dir, source, &place.upper, base, AtFlags::empty()) {
            // The target was inside the folder that the link replaces.
            Err(Errno::NOENT) => Err(invalid("its link target does not exist")),
            other => other.map_err(failed),
        }
    }

    fn whiteout(&mut self, entry: &Entry, parents: &[&[u8]], base: &[u8]) -> Result<()> {
        let invalid = |reason: &str| Error::InvalidLayer { entry: show(&entry.name), reason: reason.into() };
        let failed = |errno| extract_error("apply whiteout", &entry.name, errno);
        let hidden = &base[WHITEOUT.len()..];
        if base.starts_with(META) && base != OPAQUE {
            return Err(invalid("an unknown kind of whiteout"));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(invalid("a whiteout that names nothing"));
        }
        if !self.target.has_below() && !self.books.kept {
            // Nothing lies below.
            return Ok(());
        }
        if !self.target.is_settled() {
            if self.waiting_bytes < WAITING_WHITEOUTS && self.places.own_place(parents).map_err(failed)?.is_some() {
                self.waiting_bytes += entry.name.len() + size_of::<Vec<u8>>();
                self.waiting_whiteouts.push(entry.name.clone());
                return Ok(());
            }
            self.settle()?;
        }
        // Where no layer has the folder there is nothing to hide.
        let Some(place) = self.places.stacked(parents).map_err(failed)? else { return Ok(()) };
        self.note_ghosts();
        if base == OPAQUE {
            return self.opaque(&place).map_err(failed);
        }
        let hidden = CString::new(hidden).map_err(|_| invalid("its name has a NUL"))?;
        self.hide(&place, &hidden).map_err(failed)
    }

    /// Waits until it is known what lies below, and does what was put off until then. After that all is as if it had been
    /// known from the start:
    ///
    /// - The root has what the root below has, unless an entry has said otherwise.
    /// - A whiteout hides what lies below, never what the layer has itself, so that it may come later than what stands after
    ///   it in the archive, but for entries that need what lies below: none of these is before this. A folder that the
    ///   layer has replaced since by something else has taken its whiteouts with it.
    fn settle(&mut self) -> Result<()> {
        if self.target.is_settled() {
            return Ok(());
        }
        self.target.settle()?;
        if !self.rooted
            && let Some(below) = self.target.lowers().first()
        {
            let failed = |errno| extract_error("copy to the root for", b"", errno);
            copy_folder_metadata(below.as_fd(), self.target.upper.as_fd()).map_err(failed)?;
            let times = copied_times(&rustix::fs::fstat(below).map_err(failed)?);
            self.times.insert(0, (c".".to_owned(), times));
        }
        // What was seen of folders was seen without what lies below.
        self.places.forget();
        for name in std::mem::take(&mut self.waiting_whiteouts) {
            let failed = |errno| extract_error("apply whiteout", &name, errno);
            let parts = parts(&name);
            let rules = self.rules;
            let full = rules.full(&parts);
            let Some((base, parents)) = full.split_last() else { continue };
            if self.places.own_place(parents).map_err(failed)?.is_none() {
                continue;
            }
            let entry = Entry::named(name.clone());
            self.whiteout(&entry, parents, base)?;
        }
        self.waiting_bytes = 0;
        Ok(())
    }

    /// Hides one name of lower layers.
    fn hide(&mut self, place: &Place, name: &CStr) -> rustix::io::Result<()> {
        match self.target.whiteouts {
            Whiteouts::Literal => Ok(()),
            Whiteouts::Remove => {
                if !self.books.own.contains(&self.books.key(place.inode, name)) {
                    return tree::remove(place.upper.as_fd(), name);
                }
                match sys::open_beneath(place.upper.as_fd(), name, sys::DIR) {
                    Ok(folder) => self.books.purge(&folder),
                    Err(_) => Ok(()),
                }
            }
            Whiteouts::Overlay { opaque } => {
                if !self.places.is_below(place, name)? {
                    return Ok(());
                }
                let none = rustix::fs::makedev(0, 0);
                match rustix::fs::mknodat(&place.upper, name, FileType::CharacterDevice, Mode::empty(), none) {
                    Err(Errno::EXIST) => {}
                    other => return other,
                }
                // The layer has the name itself: only what lies below a folder is left to hide.
                match sys::open_beneath(place.upper.as_fd(), name, sys::DIR) {
                    Ok(folder) if !self.ghosts.contains(&rustix::fs::fstat(&folder)?.st_ino) => {
                        let path = join(&place.path, name)?;
                        return self.make_opaque(&folder, &path, opaque);
                    }
                    Err(_) if !self.copied.remove(&join(&place.path, name)?) => return Ok(()),
                    _ => {}
                }
                self.places.forget();
                tree::remove(place.upper.as_fd(), name)?;
                rustix::fs::mknodat(&place.upper, name, FileType::CharacterDevice, Mode::empty(), none)
            }
        }
    }

    /// Hides all that lower layers have in a folder.
    fn opaque(&mut self, place: &Place) -> rustix::io::Result<()> {
        match self.target.whiteouts {
            Whiteouts::Literal => Ok(()),
            Whiteouts::Remove => self.books.purge(&rustix::fs::openat(&place.upper, c".", sys::DIR, Mode::empty())?),
            Whiteouts::Overlay { .. } if !Places::has_below(place) => Ok(()),
            // The kernel does not ask whether the root is opaque: each name is hidden by itself.
            Whiteouts::Overlay { .. } if place.path.as_bytes() == b"." => {
                if !std::mem::replace(&mut self.root_opaque, true) {
                    for name in self.places.names_below(place)? {
                        self.hide(place, &name)?;
                    }
                }
                Ok(())
            }
            Whiteouts::Overlay { opaque } => {
                self.places.forget();
                let folder = rustix::fs::openat(&place.upper, c".", sys::DIR, Mode::empty())?;
                self.make_opaque(&folder, &place.path, opaque)
            }
        }
    }

    /// Makes a folder opaque, and those in it: nothing below is left for them to show, and the kernel would list the
    /// whiteouts in them as files. A second time there is nothing to do, so that nesting costs nothing.
    fn make_opaque(&mut self, folder: &OwnedFd, path: &CStr, attribute: &str) -> rustix::io::Result<()> {
        if sys::get_xattr(folder.as_fd(), OsStr::new(attribute))?.is_some() {
            return Ok(());
        }
        sys::set_xattr(folder.as_fd(), OsStr::new(attribute), b"y")?;
        for name in sys::names(folder.as_fd())? {
            let Some(stat) = sys::stat(folder.as_fd(), &name)? else { continue };
            let path = join(path, &name)?;
            if sys::file_type(&stat) == FileType::Directory && !self.ghosts.contains(&stat.st_ino) {
                self.make_opaque(&sys::open_beneath(folder.as_fd(), &name, sys::DIR)?, &path, attribute)?;
            } else if sys::file_type(&stat) == FileType::Directory || is_whiteout(&stat) || self.copied.remove(&path) {
                tree::remove(folder.as_fd(), &name)?;
            }
        }
        Ok(())
    }

    /// What leads to the layer's own things is its own too.
    fn note_ancestors(&mut self, place: &Rc<Place>) -> rustix::io::Result<()> {
        let noted = self.noted.as_ref().is_some_and(|noted| Rc::ptr_eq(noted, place));
        let no_books = !self.books.kept && self.ghosts.is_empty();
        if no_books || noted || place.path.as_bytes() == b"." {
            return Ok(());
        }
        let mut folder = rustix::fs::openat(&self.target.upper, c".", sys::PLACE, Mode::empty())?;
        for part in place.path.as_bytes().split(|b| *b == b'/') {
            self.places.steps += 1;
            let name = CString::new(part).map_err(|_| Errno::INVAL)?;
            self.books.add(rustix::fs::fstat(&folder)?.st_ino, &name);
            folder = sys::open_beneath(folder.as_fd(), &name, sys::PLACE)?;
            self.ghosts.remove(&rustix::fs::fstat(&folder)?.st_ino);
        }
        self.noted = Some(Rc::clone(place));
        Ok(())
    }

    /// Takes notice of folders that were made on the way. Returns them.
    fn note_implied(&mut self) -> Vec<u64> {
        let mut inodes = Vec::new();
        for implied in std::mem::take(&mut self.places.implied) {
            inodes.push(implied.inode);
            if let Some((path, times)) = implied.times {
                self.waiting += path.count_bytes();
                self.times.push((path, times));
            }
        }
        inodes
    }

    /// The same for folders that are not the layer's own.
    fn note_ghosts(&mut self) {
        let made = self.note_implied();
        if !made.is_empty() {
            self.ghosts.extend(made);
            self.noted = None;
        }
    }

    fn later(&mut self, path: CString, times: Timestamps) -> Result<()> {
        self.waiting += path.count_bytes() + size_of::<(CString, Timestamps)>();
        self.times.push((path, times));
        if self.waiting > WAITING {
            // What waits would give folders new times.
            self.settle()?;
            let current = self.times.last().map(|(path, _)| path.clone());
            self.set_times(current.as_deref())?;
        }
        Ok(())
    }

    /// Gives folders their times, but those on the way to `except`, in which more is to come.
    fn set_times(&mut self, except: Option<&CStr>) -> Result<()> {
        let (upper, mut kept) = (self.target.upper.as_fd(), Vec::new());
        for (path, times) in std::mem::take(&mut self.times) {
            let on_the_way = |below: &CStr| {
                path.as_bytes() == b"."
                    || below
                        .to_bytes()
                        .strip_prefix(path.as_bytes())
                        .is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            };
            if except.is_some_and(on_the_way) {
                kept.push((path, times));
                continue;
            }
            match self.target.open_below(upper, &path, sys::DIR) {
                Ok(folder) => rustix::fs::futimens(folder, &times)
                    .map_err(|errno| extract_error("set times of", path.as_bytes(), errno))?,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(extract_error("set times of", path.as_bytes(), errno)),
            }
        }
        self.waiting = kept.iter().map(|(path, _)| path.count_bytes() + size_of::<(CString, Timestamps)>()).sum();
        self.times = kept;
        Ok(())
    }
}

/// The time of an entry as both of its times: when it was read is not in the archive.
fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
