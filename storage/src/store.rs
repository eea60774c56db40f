//! Snapshots on disk: a folder each, moved as a whole.
//!
//! ```text
//! format            which snapshotter writes here
//! active/KEY/       an active snapshot or a view: record.json, fs/, and what the snapshotter needs besides
//! committed/NAME/   the same after commit; ':' is written '+'
//! l/LINK            (overlay) a short symbolic link to ../committed/NAME/fs
//! tmp/RANDOM/       being made or being removed
//! ```
//!
//! **What happens when a process dies.** A snapshot is made in `tmp` and moved to `active` by one rename, moved from
//! there to `committed` by one rename, and moved back to `tmp` by one rename before it is deleted. So under `active`
//! and `committed` there is all of a snapshot or nothing of it. What stays in `tmp` is not locked by anybody, and the
//! next removal or repair deletes it.
//!
//! **What happens when the power fails.** Nothing is synced when a snapshot is prepared or removed: after a power cut
//! an active snapshot may be there or not, with an empty record (`repair` removes it) or with files as old as the
//! file system's own delay. With [`Durability::Commit`] everything in a snapshot is synced before the rename that
//! commits it, and that rename after: a committed snapshot is whole. The order of removals (rename, then deletion) is
//! kept by file systems that journal their metadata in order (ext4, xfs, btrfs).
//!
//! **Locks.** `flock` on a snapshot's own folder, which goes with it through every rename: shared on a parent while a
//! child appears, exclusive to commit, remove and make. `l` is locked (shared) while a link waits for its snapshot.

use std::ffi::{CStr, CString};
use std::fs::DirBuilder;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{AtFlags, FlockOperation, Mode};
use rustix::io::Errno;

use crate::record::{self, Made, Record};
use crate::staging::Staging;
use crate::sys::Locked;
use crate::{Durability, Error, Info, Key, Kind, Name, Repaired, Result, SnapshotId, Usage, sys, tree};

const ACTIVE: &str = "active";
const COMMITTED: &str = "committed";
const LINKS: &str = "l";
const TMP: &str = "tmp";

/// Length of a short link: 40 bits, and its creation is exclusive.
const LINK_LENGTH: usize = 8;

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    active: OwnedFd,
    committed: OwnedFd,
    tmp: Staging,
    links: Option<OwnedFd>,
    durability: Durability,
    boot: String,
}

/// Whether committed snapshots get short links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    Short,
    None,
}

/// A parent while its child is made: it cannot be removed meanwhile.
pub(crate) struct Parent {
    pub(crate) folder: Locked,
    pub(crate) record: Record,
}

impl Store {
    pub(crate) fn open(root: &Path, format: &'static str, links: Links, durability: Durability) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .and_then(|()| root.canonicalize())
            .map_err(|source| Error::Io { operation: "create folder", path: root.to_owned(), source })
            .and_then(|root| {
                let dir = rustix::fs::open(&root, sys::DIR, Mode::empty()).map_err(Error::io("open folder", &root))?;
                check_format(dir.as_fd(), &root, format)?;
                let open = |name: &str| open_or_create(dir.as_fd(), &sys::c_name(name), &root.join(name));
                let (active, committed, tmp) = (open(ACTIVE)?, open(COMMITTED)?, open(TMP)?);
                let links = if links == Links::Short { Some(open(LINKS)?) } else { None };
                let tmp = Staging::new(tmp, root.join(TMP));
                let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
                let boot = boot.trim().to_owned();
                // What cannot be told from another boot's must be on disk.
                let unknown = durability == Durability::Boot && boot.is_empty();
                let durability = if unknown { Durability::Commit } else { durability };
                Ok(Store { root, active, committed, tmp, links, durability, boot })
            })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn key_path(&self, key: &Key) -> PathBuf {
        self.root.join(ACTIVE).join(key.file_name())
    }

    pub(crate) fn name_path(&self, name: &Name) -> PathBuf {
        self.root.join(COMMITTED).join(name.file_name())
    }

    pub(crate) fn link_path(&self, link: &str) -> PathBuf {
        self.root.join(LINKS).join(link)
    }

    fn path(&self, id: &SnapshotId) -> PathBuf {
        match id {
            SnapshotId::Key(key) => self.key_path(key),
            SnapshotId::Name(name) => self.name_path(name),
        }
    }

    fn place(&self, id: &SnapshotId) -> (BorrowedFd<'_>, CString) {
        match id {
            SnapshotId::Key(key) => (self.active.as_fd(), sys::c_name(key.file_name())),
            SnapshotId::Name(name) => (self.committed.as_fd(), sys::c_name(&name.file_name())),
        }
    }

    /// Opens and locks a snapshot's folder. `NotFound`.
    fn lock(&self, id: &SnapshotId, operation: FlockOperation) -> Result<Locked> {
        let (dir, name) = self.place(id);
        match sys::open_locked(dir, &name, operation) {
            Ok(Some(folder)) => Ok(folder),
            Ok(None) => Err(Error::NotFound { id: id.clone() }),
            Err(errno) => Err(Error::io("lock snapshot folder", self.path(id))(errno)),
        }
    }

    /// The record of a snapshot that is there. `NotFound`, also for one that did not last.
    pub(crate) fn record(&self, id: &SnapshotId) -> Result<Record> {
        let record = self.raw_record(id)?;
        if self.is_lost(id, &record)? { Err(Error::NotFound { id: id.clone() }) } else { Ok(record) }
    }

    /// Whether a power cut may have taken some of the snapshot's files.
    fn is_lost(&self, id: &SnapshotId, record: &Record) -> Result<bool> {
        Ok(record.unsynced.as_ref().is_some_and(|boot| *boot != self.boot) && !self.has_mark(id)?)
    }

    fn has_mark(&self, id: &SnapshotId) -> Result<bool> {
        let (dir, name) = self.place(id);
        let mark = sys::c_name(&format!("{}/{}", name.to_string_lossy(), record::SYNCED));
        let found = sys::stat(dir, &mark).map_err(Error::io("look at", self.path(id).join(record::SYNCED)))?;
        Ok(found.is_some())
    }

    /// Makes a committed snapshot, and all that it stands on, last.
    pub(crate) fn sync(&self, name: &Name) -> Result<()> {
        let mut unsynced = Vec::new();
        let mut next = Some(name.clone());
        while let Some(name) = next {
            let id = SnapshotId::Name(name);
            let record = self.record(&id)?;
            if record.unsynced.is_some() && !self.has_mark(&id)? {
                unsynced.push(id);
            }
            next = record.parent;
        }
        let Some(first) = unsynced.first() else { return Ok(()) };
        rustix::fs::syncfs(&self.committed).map_err(Error::io("sync file system of", self.path(first)))?;
        for id in unsynced {
            // The marks come after what they speak of. One that a power cut takes is no loss but of time.
            let folder = self.lock(&id, FlockOperation::LockShared)?;
            match sys::write_new_file(folder.as_fd(), &sys::c_name(record::SYNCED), b"") {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create", self.path(&id).join(record::SYNCED))(errno)),
            }
        }
        Ok(())
    }

    fn raw_record(&self, id: &SnapshotId) -> Result<Record> {
        let (dir, name) = self.place(id);
        let mut path = PathBuf::from(name.to_string_lossy().into_owned());
        path.push(record::FILE);
        match sys::read_file(dir, &path, record::MAX) {
            Ok(bytes) => Record::parse(&bytes, &self.path(id).join(record::FILE)),
            // A folder without its record is what a power cut left.
            Err(Errno::NOENT) if matches!(sys::stat(dir, &name), Ok(Some(_))) => {
                Record::parse(&[], &self.path(id).join(record::FILE))
            }
            Err(Errno::NOENT) => Err(Error::NotFound { id: id.clone() }),
            Err(errno) => Err(Error::io("read snapshot record", self.path(id).join(record::FILE))(errno)),
        }
    }

    pub(crate) fn info(&self, id: &SnapshotId) -> Result<Info> {
        let record = self.record(id)?;
        let kind = match (id, record.made) {
            (SnapshotId::Name(_), _) => Kind::Committed,
            (SnapshotId::Key(_), Made::Active | Made::Late) => Kind::Active,
            (SnapshotId::Key(_), Made::View) => Kind::View,
        };
        Ok(Info { id: id.clone(), kind, parent: record.parent, created: record.created })
    }

    pub(crate) fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        let folder = self.lock(id, FlockOperation::LockShared)?;
        match rustix::fs::openat(&folder, c"fs", sys::DIR, Mode::empty()) {
            Ok(fs) => tree::usage(fs.as_fd()).map_err(Error::io("measure", self.path(id).join("fs"))),
            // A view has no data of its own.
            Err(Errno::NOENT) => Ok(Usage::default()),
            Err(errno) => Err(Error::io("open folder", self.path(id).join("fs"))(errno)),
        }
    }

    /// Makes a snapshot: `build` fills its folder. Nothing is visible before all of it is there.
    pub(crate) fn create(
        &self,
        made: Made,
        key: &Key,
        parent: Option<&Name>,
        build: impl FnOnce(BorrowedFd<'_>, &Path, Option<&Parent>) -> Result<()>,
    ) -> Result<Record> {
        let id = SnapshotId::from(key);
        let (active, name) = self.place(&id);
        if sys::stat(active, &name).map_err(Error::io("look for snapshot", self.path(&id)))?.is_some() {
            return Err(Error::AlreadyExists { id });
        }
        let parent = parent.map(|name| self.parent(name)).transpose()?;
        let record = Record {
            made,
            parent: parent.as_ref().map(|(name, _)| name.clone()),
            created: SystemTime::now(),
            lowers: parent.as_ref().map(|(_, parent)| lowers(&parent.record)).unwrap_or_default(),
            unsynced: None,
            link: None,
        };
        let staged = self.tmp.create()?;
        build(staged.folder.as_fd(), &staged.path, parent.as_ref().map(|(_, parent)| parent))?;
        write_record(staged.folder.as_fd(), record::FILE, &record, &staged.path)?;
        match staged.move_to(active, &name) {
            Ok(()) => {}
            // A snapshot's folder is never empty, and only an empty folder is replaced.
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(Error::AlreadyExists { id }),
            Err(errno) => return Err(Error::io("create snapshot", self.path(&id))(errno)),
        }
        Ok(record)
    }

    fn parent(&self, name: &Name) -> Result<(Name, Parent)> {
        let id = SnapshotId::from(name);
        let folder = self.lock(&id, FlockOperation::LockShared)?;
        Ok((name.clone(), Parent { folder, record: self.record(&id)? }))
    }

    /// Names the parent of a snapshot that was made without: `build` adds to its folder what it needs besides.
    pub(crate) fn set_parent(
        &self,
        key: &Key,
        parent: &Name,
        build: impl FnOnce(BorrowedFd<'_>, &Path) -> Result<()>,
    ) -> Result<Record> {
        let id = SnapshotId::from(key);
        let folder = self.lock(&id, FlockOperation::LockExclusive)?;
        let mut record = self.record(&id)?;
        if record.made != Made::Late {
            return Err(Error::HasParent { id });
        }
        let (name, parent) = self.parent(parent)?;
        let path = self.path(&id);
        build(folder.as_fd(), &path)?;
        record.made = Made::Active;
        record.parent = Some(name);
        record.lowers = lowers(&parent.record);
        // While the parent is locked: from here on it is known to have a child.
        replace_record(folder.as_fd(), &record, &path)?;
        Ok(record)
    }

    pub(crate) fn commit(&self, name: &Name, key: &Key) -> Result<()> {
        let (key, name) = (SnapshotId::from(key), SnapshotId::from(name));
        let folder = self.lock(&key, FlockOperation::LockExclusive)?;
        let mut record = self.record(&key)?;
        match record.made {
            Made::Active => {}
            Made::Late => return Err(Error::ParentUnknown { id: key }),
            Made::View => return Err(Error::NotActive { id: key }),
        }
        let (committed, file) = self.place(&name);
        if sys::stat(committed, &file).map_err(Error::io("look for snapshot", self.path(&name)))?.is_some() {
            match self.record(&name) {
                // What a power cut has left of it makes room.
                Err(Error::NotFound { .. } | Error::DamagedRecord { .. }) => self.remove(&name)?,
                _ => return Err(Error::AlreadyExists { id: name }),
            }
        }
        if self.durability == Durability::Boot {
            record.unsynced = Some(self.boot.clone());
        }
        let waiting = self.link(&file, &mut record)?;
        let done = self.move_to_committed(folder.as_fd(), &record, &key, &name);
        if let (Err(_), Some((link, _))) = (&done, &waiting) {
            self.unlink(link);
        }
        done
    }

    fn move_to_committed(
        &self,
        folder: BorrowedFd<'_>,
        record: &Record,
        key: &SnapshotId,
        name: &SnapshotId,
    ) -> Result<()> {
        let path = self.path(key);
        if record.link.is_some() || record.unsynced.is_some() {
            replace_record(folder, record, &path)?;
        }
        if self.durability == Durability::Commit {
            rustix::fs::syncfs(folder).map_err(Error::io("sync file system of", &path))?;
        }
        let ((from, old), (to, new)) = (self.place(key), self.place(name));
        match rustix::fs::renameat(from, old, to, new) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(Error::AlreadyExists { id: name.clone() }),
            Err(errno) => return Err(Error::io("commit snapshot", path)(errno)),
        }
        if self.durability == Durability::Commit {
            rustix::fs::fsync(to).map_err(Error::io("sync", self.root.join(COMMITTED)))?;
        }
        Ok(())
    }

    /// Makes the short link of a snapshot that is about to be committed. The lock keeps `repair` from taking it for
    /// one that leads nowhere.
    fn link(&self, file: &CStr, record: &mut Record) -> Result<Option<(String, Locked)>> {
        let Some(links) = &self.links else { return Ok(None) };
        let path = || self.root.join(LINKS);
        let lock = rustix::fs::openat(links, c".", sys::DIR, Mode::empty()).map_err(Error::io("open", path()))?;
        let lock = Locked::new(lock, FlockOperation::LockShared).map_err(Error::io("lock", path()))?;
        loop {
            let link = sys::random_name(LINK_LENGTH).map_err(Error::io("name link in", path()))?;
            match rustix::fs::symlinkat(link_target(file), links, &link) {
                Ok(()) => {
                    record.link = Some(link.clone());
                    return Ok(Some((link, lock)));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create link in", path())(errno)),
            }
        }
    }

    fn unlink(&self, link: &str) {
        if let Some(links) = &self.links {
            // One that stays leads nowhere, and repair finds it.
            let _ = rustix::fs::unlinkat(links, link, AtFlags::empty());
        }
    }

    pub(crate) fn remove(&self, id: &SnapshotId) -> Result<()> {
        let folder = self.lock(id, FlockOperation::LockExclusive)?;
        if let SnapshotId::Name(name) = id
            && let Some(child) = self.child(name)?
        {
            return Err(Error::InUse { id: id.clone(), child });
        }
        let result = self.take_away(id, folder);
        self.tmp.sweep()?;
        result
    }

    /// Moves a locked snapshot to `tmp`, then deletes it there.
    fn take_away(&self, id: &SnapshotId, folder: Locked) -> Result<()> {
        let link = match id {
            SnapshotId::Name(_) => self.raw_record(id).ok().and_then(|record| record.link),
            SnapshotId::Key(_) => None,
        };
        let (dir, name) = self.place(id);
        let taken = self.tmp.take(dir, &name)?.map_err(Error::io("remove snapshot", self.path(id)))?;
        if let Some(link) = link {
            self.unlink(&link);
        }
        let result = taken.delete();
        drop(folder);
        result
    }

    /// Some child of the committed snapshot. A snapshot that is committed meanwhile moves from `active` to
    /// `committed`: in this order it is seen at least once.
    fn child(&self, parent: &Name) -> Result<Option<SnapshotId>> {
        let mut found = None;
        self.walk_records(&mut |id, record| {
            if record.is_ok_and(|record| record.parent.as_ref() == Some(parent)) {
                found = Some(id.clone());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Visits what is there, and what has no record.
    fn walk_records(&self, visit: &mut dyn FnMut(&SnapshotId, Result<Record>) -> ControlFlow<()>) -> Result<()> {
        self.walk_raw(&mut |id, record| match record.as_ref().map(|record| self.is_lost(id, record)) {
            Ok(Ok(true)) => ControlFlow::Continue(()),
            _ => visit(id, record),
        })
    }

    /// The same, with what did not last.
    fn walk_raw(&self, visit: &mut dyn FnMut(&SnapshotId, Result<Record>) -> ControlFlow<()>) -> Result<()> {
        for (dir, folder) in [(&self.active, ACTIVE), (&self.committed, COMMITTED)] {
            let path = || self.root.join(folder);
            let dir = rustix::fs::openat(dir, c".", sys::DIR, Mode::empty()).map_err(Error::io("open", path()))?;
            for file in sys::names(dir.as_fd()).map_err(Error::io("read folder", path()))? {
                let Ok(file) = file.into_string() else { continue };
                let id = match folder {
                    ACTIVE => file.parse::<Key>().ok().map(SnapshotId::Key),
                    _ => Name::from_file_name(&file).map(SnapshotId::Name),
                };
                let Some(id) = id else { continue };
                let record = self.raw_record(&id);
                if matches!(record, Err(Error::NotFound { .. })) {
                    continue;
                }
                if visit(&id, record).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn walk(&self, visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()> {
        self.walk_records(&mut |id, record| match record {
            Ok(record) => {
                let kind = match (id, record.made) {
                    (SnapshotId::Name(_), _) => Kind::Committed,
                    (SnapshotId::Key(_), Made::Active | Made::Late) => Kind::Active,
                    (SnapshotId::Key(_), Made::View) => Kind::View,
                };
                visit(&Info { id: id.clone(), kind, parent: record.parent, created: record.created })
            }
            // Torn by a power cut: no snapshot, and repair's work.
            Err(_) => ControlFlow::Continue(()),
        })
    }

    pub(crate) fn repair(&self) -> Result<Repaired> {
        let mut repaired = Repaired { leftovers: self.tmp.sweep()?, ..Repaired::default() };
        let mut torn = Vec::new();
        self.walk_raw(&mut |id, record| {
            let lost = |record: &Record| self.is_lost(id, record).unwrap_or(false);
            if matches!(&record, Err(Error::DamagedRecord { .. })) || record.is_ok_and(|record| lost(&record)) {
                torn.push(id.clone());
            }
            ControlFlow::Continue(())
        })?;
        for id in torn {
            match self.remove(&id) {
                Ok(()) => repaired.torn += 1,
                Err(Error::NotFound { .. } | Error::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        repaired.links = self.repair_links()?;
        Ok(repaired)
    }

    fn repair_links(&self) -> Result<usize> {
        let Some(links) = &self.links else { return Ok(0) };
        let path = || self.root.join(LINKS);
        let lock = rustix::fs::openat(links, c".", sys::DIR, Mode::empty()).map_err(Error::io("open", path()))?;
        let lock = match Locked::new(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => lock,
            // Somebody commits: another time.
            Err(Errno::WOULDBLOCK) => return Ok(0),
            Err(errno) => return Err(Error::io("lock", path())(errno)),
        };
        let mut repaired = 0;
        let mut wanted = std::collections::HashMap::new();
        self.walk_records(&mut |id, record| {
            if let (SnapshotId::Name(name), Ok(Record { link: Some(link), .. })) = (id, record) {
                wanted.insert(link, link_target(&sys::c_name(&name.file_name())));
            }
            ControlFlow::Continue(())
        })?;
        for link in sys::names(lock.as_fd()).map_err(Error::io("read folder", path()))? {
            let target = rustix::fs::readlinkat(links, &link, Vec::new()).ok();
            let expected = link.to_str().ok().and_then(|link| wanted.get(link));
            if target.is_some() && target.as_ref() == expected {
                wanted.remove(link.to_string_lossy().as_ref());
            } else {
                rustix::fs::unlinkat(links, &link, AtFlags::empty()).map_err(Error::io("remove link in", path()))?;
                repaired += 1;
            }
        }
        for (link, target) in wanted {
            match rustix::fs::symlinkat(&target, links, &link) {
                Ok(()) | Err(Errno::EXIST) => repaired += 1,
                Err(errno) => return Err(Error::io("create link in", path())(errno)),
            }
        }
        Ok(repaired)
    }
}

/// The links of a child's lower folders, the nearest first.
pub(crate) fn lowers(parent: &Record) -> Vec<String> {
    parent.link.iter().chain(&parent.lowers).cloned().collect()
}

fn link_target(file: &CStr) -> CString {
    sys::c_name(&format!("../{COMMITTED}/{}/fs", file.to_string_lossy()))
}

fn replace_record(folder: BorrowedFd<'_>, record: &Record, path: &Path) -> Result<()> {
    const NEW: &str = "record.json.new";
    let _ = rustix::fs::unlinkat(folder, NEW, AtFlags::empty());
    write_record(folder, NEW, record, path)?;
    rustix::fs::renameat(folder, NEW, folder, record::FILE).map_err(Error::io("replace record in", path))
}

fn write_record(folder: BorrowedFd<'_>, file: &str, record: &Record, path: &Path) -> Result<()> {
    let bytes = record.to_bytes(path)?;
    sys::write_new_file(folder, &sys::c_name(file), &bytes).map_err(Error::io("write record in", path))
}

pub(crate) fn open_or_create(dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<OwnedFd> {
    loop {
        match rustix::fs::openat(dir, name, sys::DIR, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io("create folder", path)(errno)),
            },
            Err(errno) => return Err(Error::io("open folder", path)(errno)),
        }
    }
}

/// Says in the store what may be read from it, and refuses to read what another snapshotter wrote.
fn check_format(dir: BorrowedFd<'_>, root: &Path, expected: &'static str) -> Result<()> {
    const FILE: &CStr = c"format";
    let path = root.join("format");
    loop {
        match sys::read_file(dir, Path::new("format"), 4096) {
            Ok(found) => {
                let found = String::from_utf8_lossy(&found).trim_end().to_owned();
                if found == expected {
                    return Ok(());
                }
                return Err(Error::WrongFormat { path: root.to_owned(), found, expected });
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(Error::io("read", path)(errno)),
        }
        // Written beside and linked, so that nobody reads half of it.
        let temporary = sys::c_name(&sys::random_name(16).map_err(Error::io("create", &path))?);
        let made = sys::write_new_file(dir, &temporary, format!("{expected}\n").as_bytes())
            .and_then(|()| rustix::fs::linkat(dir, &temporary, dir, FILE, AtFlags::empty()));
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Error::io("create", path)(errno)),
        }
    }
}
