//! Files below a folder of the root become an archive.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::descent::{Descent, shown};
use super::{PackOptions, Packed, Root, root};
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
    if is_made_up(top.as_fd()).map_err(Error::io("look at", path))? {
        return items.finish();
    }
    let mut descent = Descent::new(top.as_fd(), name, (), Vec::new(), options.mounts, &options.limits)?;
    while let Some((name, path)) = descent.next() {
        if let Some(folder) = child(&mut items, descent.here(), &name, &path, options.mounts)? {
            descent.enter(folder.as_fd(), name, path, (), Vec::new())?;
        }
    }
    items.finish()
}

/// Things of a tree as entries, with what they have in common.
pub(crate) struct Items<'a, W: Write> {
    pub(crate) writer: Writer<'a, W>,
    /// The first name in the archive of each file that has several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// What those names cost.
    kept: u64,
    pub(crate) skipped: u64,
    buffer: Vec<u8>,
}

impl<'a, W: Write> Items<'a, W> {
    pub(crate) fn new(writer: Writer<'a, W>) -> Self {
        Items { writer, linked: HashMap::new(), kept: 0, skipped: 0, buffer: Vec::new() }
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
                let entry = Entry { link: first.clone(), ..entry(name, Kind::HardLink, Some(stat)) };
                return self.writer.entry(&entry);
            }
            self.writer.limits.keep(&mut self.kept, &name)?;
            self.linked.insert(sys::identity(stat), name.clone());
        }
        let mut entry = Entry { link, ..entry(name, kind, Some(stat)) };
        if matches!(kind, Kind::Character | Kind::Block) {
            entry.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        }
        self.xattrs(inode, &mut entry)?;
        if kind != Kind::File {
            return self.writer.entry(&entry);
        }
        entry.length = stat.st_size.cast_unsigned();
        self.file(inode, &entry)
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

    fn file(&mut self, inode: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        let shown = shown(&entry.name);
        let file = sys::reopen(inode).map_err(Error::io("open", &shown))?;
        self.writer.entry(entry)?;
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

/// An entry with what an inode has; without one, an empty file of root's from the beginning of time.
pub(crate) fn entry(name: Vec<u8>, kind: Kind, stat: Option<&Stat>) -> Entry {
    Entry {
        name,
        kind,
        link: Vec::new(),
        mode: stat.map_or(0, |stat| stat.st_mode & 0o7777),
        uid: stat.map_or(0, |stat| stat.st_uid),
        gid: stat.map_or(0, |stat| stat.st_gid),
        mtime: stat.map_or((0, 0), |stat| (stat.st_mtime, stat.st_mtime_nsec as u32)),
        device: (0, 0),
        xattrs: Vec::new(),
        length: 0,
        sparse: None,
    }
}

/// Adds what has a name in a folder; returns it if it is a folder to go into.
fn child<W: Write>(
    items: &mut Items<'_, W>,
    dir: BorrowedFd<'_>,
    name: &CStr,
    path: &[u8],
    mounts: Mounts,
) -> Result<Option<OwnedFd>> {
    let failed = |operation| Error::io(operation, shown(path));
    let (opened, mounted) = match sys::open_beneath(dir, name, sys::INODE) {
        Err(Errno::XDEV) => (sys::open_below(dir, name, sys::INODE, Mounts::Cross), true),
        other => (other, false),
    };
    let inode = match opened {
        Ok(inode) => inode,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed("open")(errno)),
    };
    let stat = rustix::fs::fstat(&inode).map_err(failed("look at"))?;
    let is_folder = sys::file_type(&stat) == FileType::Directory;
    let enter = !mounted || (mounts == Mounts::Cross && !is_made_up(inode.as_fd()).map_err(failed("look at"))?);
    if enter || is_folder {
        items.add(inode.as_fd(), &stat, path.to_vec())?;
    }
    Ok((enter && is_folder).then_some(inode))
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
