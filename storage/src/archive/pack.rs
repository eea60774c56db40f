//! Files below a folder of the root become an archive.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use super::{PackOptions, Packed, Root, root};
use crate::layer::Limits;
use crate::layer::archive::{Entry, Kind};
use crate::layer::place::is_whiteout;
use crate::layer::writer::Writer;
use crate::sys::{self, Mounts};
use crate::{Error, Result};

/// Packs what `path` leads to in the root, with all that is below it, as a tar archive (POSIX, with extended headers where
/// a plain one does not do).
///
/// Everything that an inode has is in it: type, mode, owner by number, time of modification to the nanosecond, extended attributes
/// (`SCHILY.xattr`; but not overlay's own, nor SELinux labels), links among the files, device numbers.
///
/// Errors: [`Error::Io`] for the path and what cannot be read, [`Error::WriteArchive`], [`Error::LimitExceeded`].
/// Blocks.
pub fn pack(root: BorrowedFd<'_>, path: impl AsRef<Path>, out: impl Write, options: &PackOptions) -> Result<Packed> {
    let path = path.as_ref();
    let top = root::open(root, path, options.link).map_err(Error::io("open", path))?;
    let stat = rustix::fs::fstat(&top).map_err(Error::io("look at", path))?;
    let own = || path.file_name().map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec());
    let is_folder = sys::file_type(&stat) == FileType::Directory;
    let name = match &options.root {
        Root::Named(name) => {
            let name = name.as_bytes();
            name[..name.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1)].to_vec()
        }
        Root::Contents if is_folder => Vec::new(),
        Root::Own | Root::Contents => own(),
    };
    let mut items = Items::new(Writer::new(out, &options.limits));
    if !is_folder {
        items.add(top.as_fd(), &stat, name)?;
        return items.finish();
    }
    if !name.is_empty() {
        items.add(top.as_fd(), &stat, name.clone())?;
    }
    let mut walk = Walk { options, items, buffer: Vec::new() };
    walk.folder(&top, name)?;
    walk.items.finish()
}

/// Things of a tree as entries, with what they have in common.
pub(crate) struct Items<'a, W> {
    pub(crate) writer: Writer<'a, W>,
    /// The first name in the archive of each file that has several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    pub(crate) skipped: u64,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Items<'a, W> {
    pub(crate) fn new(writer: Writer<'a, W>) -> Self {
        Items { writer, linked: HashMap::new(), skipped: 0, buffer: Vec::new() }
    }

    /// Adds the inode under a name, with its content. A folder's name gets its `/` here.
    pub(crate) fn add(&mut self, inode: BorrowedFd<'_>, stat: &Stat, mut name: Vec<u8>) -> Result<()> {
        let failed = |operation| Error::io(operation, shown(&name));
        let mut link = Vec::new();
        let kind = match sys::file_type(stat) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File,
            FileType::Symlink => {
                link = rustix::fs::readlinkat(inode, c"", Vec::new()).map_err(failed("read link"))?.into_bytes();
                Kind::Symlink
            }
            FileType::Fifo => Kind::Fifo,
            FileType::BlockDevice => Kind::Block,
            FileType::CharacterDevice if !is_whiteout(stat) => Kind::Character,
            _ => {
                self.skipped += 1;
                return Ok(());
            }
        };
        if kind == Kind::Directory {
            name.push(b'/');
        } else if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&sys::identity(stat)) {
                let entry = Entry { link: first.clone(), ..entry(name, Kind::HardLink, stat) };
                return self.writer.entry(&entry);
            }
            self.linked.insert(sys::identity(stat), name.clone());
        }
        let mut entry = Entry { link, ..entry(name, kind, stat) };
        if matches!(kind, Kind::Character | Kind::Block) {
            entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        }
        self.xattrs(inode, &mut entry)?;
        if kind == Kind::File { self.file(inode, entry) } else { self.writer.entry(&entry) }
    }

    fn xattrs(&mut self, inode: BorrowedFd<'_>, entry: &mut Entry) -> Result<()> {
        let failed = |name: &[u8]| Error::io("read extended attributes of", shown(name));
        let mut names = sys::xattr_names(inode).map_err(failed(&entry.name))?;
        names.sort_unstable();
        for name in names {
            if sys::is_overlay_xattr(&name) || name == b"security.selinux" {
                continue;
            }
            // It would end the keyword.
            if name.contains(&b'=') {
                self.skipped += 1;
                continue;
            }
            if let Some(value) = sys::get_xattr(inode, OsStr::from_bytes(&name)).map_err(failed(&entry.name))? {
                entry.xattrs.push((name, value));
            }
        }
        Ok(())
    }

    fn file(&mut self, inode: BorrowedFd<'_>, mut entry: Entry) -> Result<()> {
        let shown = shown(&entry.name);
        let file = sys::reopen(inode).map_err(Error::io("open", &shown))?;
        let stat = rustix::fs::fstat(&file).map_err(Error::io("look at", &shown))?;
        entry.length = stat.st_size.cast_unsigned();
        self.writer.entry(&entry)?;
        self.buffer.resize(128 << 10, 0);
        let mut left = entry.length;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            match rustix::io::read(&file, &mut self.buffer[..want]) {
                Ok(0) => break,
                Ok(length) => {
                    self.writer.content(&self.buffer[..length])?;
                    left -= length as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("read", &shown)(errno)),
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Packed> {
        let (entries, skipped) = (self.writer.entries, self.skipped);
        let (_, bytes) = self.writer.finish()?;
        Ok(Packed { bytes, entries, skipped })
    }
}

fn shown(name: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(name))
}

fn entry(name: Vec<u8>, kind: Kind, stat: &Stat) -> Entry {
    Entry {
        name,
        kind,
        link: Vec::new(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
        device: (0, 0),
        xattrs: Vec::new(),
        length: 0,
        sparse: None,
    }
}

struct Walk<'a, W> {
    options: &'a PackOptions,
    items: Items<'a, W>,
    buffer: Vec<u8>,
}

/// A folder on the way down.
struct Level {
    /// Its own name in the folder above.
    name: CString,
    /// Its name in the archive.
    path: Vec<u8>,
    identity: (u64, u64),
    /// What is still to come, the next one last.
    pending: Vec<CString>,
}

impl<W: Write> Walk<'_, W> {
    /// All that is in a folder. Few descriptors are open at a time whatever the depth.
    fn folder(&mut self, top: &OwnedFd, path: Vec<u8>) -> Result<()> {
        let open = |errno| Error::io("open folder", shown(&path))(errno);
        let mut here = rustix::fs::openat(top, c".", sys::DIR, Mode::empty()).map_err(open)?;
        let mut levels = vec![self.level(here.as_fd(), CString::default(), path)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.pending.pop() {
                let path = child(&level.path, &name);
                let Some(folder) = self.child(here.as_fd(), &name, &path)? else { continue };
                if levels.len() as u64 >= self.options.limits.depth {
                    return Err(too_deep(&self.options.limits, &path));
                }
                levels.push(self.level(folder.as_fd(), name, path)?);
                here = folder;
                continue;
            }
            levels.pop();
            while !levels.is_empty() {
                if let Some(above) = self.above(here.as_fd(), top, &levels) {
                    here = above;
                    break;
                }
                // It is no longer in the tree, and neither is what it had left.
                levels.pop();
            }
        }
        Ok(())
    }

    fn level(&mut self, folder: BorrowedFd<'_>, name: CString, path: Vec<u8>) -> Result<Level> {
        let pending = sorted(folder, &mut self.buffer).map_err(Error::io("read folder", shown(&path)))?;
        let stat = rustix::fs::fstat(folder).map_err(Error::io("look at", shown(&path)))?;
        Ok(Level { name, path, identity: sys::identity(&stat), pending })
    }

    /// The folder of the last level, from one that was in it. If that has been moved meanwhile, `..` leads elsewhere, and the
    /// way goes down from the top again.
    fn above(&self, here: BorrowedFd<'_>, top: &OwnedFd, levels: &[Level]) -> Option<OwnedFd> {
        let above = rustix::fs::openat(here, c"..", sys::DIR, Mode::empty()).ok();
        if let (Some(above), Some(level)) = (above, levels.last())
            && rustix::fs::fstat(&above).is_ok_and(|stat| sys::identity(&stat) == level.identity)
        {
            return Some(above);
        }
        let mut folder = rustix::fs::openat(top, c".", sys::DIR, Mode::empty()).ok()?;
        for level in &levels[1..] {
            folder = sys::open_below(folder.as_fd(), &level.name, sys::DIR, self.options.mounts).ok()?;
        }
        Some(folder)
    }

    /// Adds what has a name in a folder; returns it if it is a folder to go into.
    fn child(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Option<OwnedFd>> {
        let failed = |operation| Error::io(operation, shown(path));
        let (inode, mounted) = match sys::open_beneath(dir, name, sys::INODE) {
            Ok(inode) => (inode, false),
            Err(Errno::XDEV) => match sys::open_below(dir, name, sys::INODE, Mounts::Cross) {
                Ok(inode) => (inode, true),
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(failed("open")(errno)),
            },
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("open")(errno)),
        };
        let stat = rustix::fs::fstat(&inode).map_err(failed("look at"))?;
        let is_folder = sys::file_type(&stat) == FileType::Directory;
        let enter = !mounted
            || (self.options.mounts == Mounts::Cross && !is_made_up(inode.as_fd()).map_err(failed("look at"))?);
        if enter || is_folder {
            self.items.add(inode.as_fd(), &stat, path.to_vec())?;
        }
        if !enter || !is_folder {
            return Ok(None);
        }
        rustix::fs::openat(&inode, c".", sys::DIR, Mode::empty()).map(Some).map_err(failed("open folder"))
    }
}

/// The names in a folder, the last in order first.
pub(crate) fn sorted(folder: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    sys::for_each_entry(folder, buffer, |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    names.sort_unstable_by(|left, right| right.cmp(left));
    Ok(names)
}

/// The name in the archive of what has `name` in the folder `path`.
pub(crate) fn child(path: &[u8], name: &CStr) -> Vec<u8> {
    if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() }
}

pub(crate) fn too_deep(limits: &Limits, path: &[u8]) -> Error {
    Error::LimitExceeded { what: "folders in a path", limit: limits.depth, entry: crate::layer::archive::show(path) }
}

/// Whether the kernel makes up the file system: there are no files of anybody's in it, and reading may do things.
fn is_made_up(inode: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    /// `linux/magic.h`: proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs, securityfs, bpf, mqueue, configfs, pstore,
    /// selinuxfs, efivarfs, fusectl, binfmt_misc, nsfs.
    const MAGIC: [i64; 17] = [
        0x9fa0,
        0x6265_6572,
        0x27_e0eb,
        0x6367_7270,
        0x1cd1,
        0x6462_6720,
        0x7472_6163,
        0x7363_6673,
        0xcafe_4a11,
        0x1980_0202,
        0x6265_6570,
        0x6165_676c,
        0xf97c_ff8c,
        0xde5e_81e4,
        0x6573_5543,
        0x4249_4e4d,
        0x6e73_6673,
    ];
    let kind = rustix::fs::fstatfs(inode)?.f_type;
    Ok(MAGIC.contains(&(kind & 0xffff_ffff)))
}
