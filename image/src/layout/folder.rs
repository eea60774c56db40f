//! A folder that is held open, and files beneath it that are reached without following a symbolic link.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::{Error, Result};

const OPEN_FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A folder that is held open; its path is for messages.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens the layout's own folder; here links are followed, since a person named it.
    pub(super) fn open_root(path: &Path) -> Result<Self> {
        let fd = openat(AT_FDCWD, path, OPEN_FOLDER, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOTDIR => Error::NotLayout { path: path.to_owned(), reason: "it is not a folder" },
            errno => Error::io("open", path, errno),
        })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn child(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a folder in this one; `None` if it is not there.
    pub(super) fn folder(&self, name: &str) -> Result<Option<Self>> {
        match openat(&self.fd, name, OPEN_FOLDER | OFlag::O_NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.child(name) })),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => Err(self.unsafe_path(name, "folder")),
            Err(errno) => Err(Error::io("open", self.child(name), errno)),
        }
    }

    /// Opens a folder in this one, which is made if it is not there.
    pub(super) fn make_folder(&self, name: &str) -> Result<Self> {
        if let Some(folder) = self.folder(name)? {
            return Ok(folder);
        }
        match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => self.sync()?,
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Error::io("make", self.child(name), errno)),
        }
        self.folder(name)?.ok_or_else(|| Error::io("open", self.child(name), Errno::ENOENT))
    }

    /// Opens a regular file in this folder for reading; `None` if it is not there.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>> {
        // Without O_NONBLOCK a fifo in a hostile layout would hold the caller for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP | Errno::ENXIO) => return Err(self.unsafe_path(name, "regular file")),
            Err(errno) => return Err(Error::io("open", self.child(name), errno)),
        };
        let status = fstat(&fd).map_err(|errno| Error::io("stat", self.child(name), errno))?;
        if !is_regular(&status) {
            return Err(self.unsafe_path(name, "regular file"));
        }
        Ok(Some(File::from(fd)))
    }

    /// Reads a small file; `None` if it is not there.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", self.child(name), source))?;
        if bytes.len() as u64 > limit {
            let what = self.child(name).display().to_string();
            return Err(Error::TooLarge { what, size: bytes.len() as u64, limit });
        }
        Ok(Some(bytes))
    }

    /// Creates a file that is not there yet; `None` if it is.
    pub(super) fn create_new(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::from_bits_truncate(0o644)) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(Error::io("create", self.child(name), errno)),
        }
    }

    /// Opens a regular file for reading and writing, and creates it if it is not there.
    pub(super) fn open_or_create(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::from_bits_truncate(0o644)) {
            Ok(fd) => fd,
            Err(Errno::ELOOP | Errno::ENXIO | Errno::EISDIR) => return Err(self.unsafe_path(name, "regular file")),
            Err(errno) => return Err(Error::io("create", self.child(name), errno)),
        };
        let status = fstat(&fd).map_err(|errno| Error::io("stat", self.child(name), errno))?;
        if !is_regular(&status) {
            return Err(self.unsafe_path(name, "regular file"));
        }
        Ok(File::from(fd))
    }

    /// Replaces a file's content at once and durably. The caller holds the folder's lock.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        use std::io::Write;
        let temporary = format!(".{name}.new");
        self.remove(&temporary)?;
        let mut file =
            self.create_new(&temporary)?.ok_or_else(|| Error::io("create", self.child(&temporary), Errno::EEXIST))?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        let outcome = match written {
            Ok(()) => self.rename(&temporary, self, name),
            Err(source) => Err(Error::io("write", self.child(&temporary), source)),
        };
        if outcome.is_err() {
            // The first error tells more than one of this would.
            let _ = self.remove(&temporary);
        }
        outcome.and_then(|()| self.sync())
    }

    pub(super) fn rename(&self, from: &str, folder: &Self, to: &str) -> Result<()> {
        renameat(&self.fd, from, &folder.fd, to)
            .map_err(|errno| Error::io("rename into place", folder.child(to), errno))
    }

    /// Removes a file; whether it was there.
    pub(super) fn remove(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::io("remove", self.child(name), errno)),
        }
    }

    /// What is there under this name, without following a link; `None` if nothing is.
    pub(super) fn status(&self, name: &str) -> Result<Option<FileStat>> {
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(status) => Ok(Some(status)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::io("stat", self.child(name), errno)),
        }
    }

    /// The names in this folder.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path).map_err(|source| Error::io("list", &self.path, source))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::io("list", &self.path, source))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Makes changes of the folder's entries durable.
    pub(super) fn sync(&self) -> Result<()> {
        fsync(&self.fd).map_err(|errno| Error::io("sync", &self.path, errno))
    }

    /// Waits for the folder's lock, which is held until the value is dropped.
    pub(super) fn lock(&self) -> Result<Flock<File>> {
        self.lock_as(FlockArg::LockExclusive)
    }

    /// The same, beside others that share it.
    pub(super) fn lock_shared(&self) -> Result<Flock<File>> {
        self.lock_as(FlockArg::LockShared)
    }

    fn lock_as(&self, how: FlockArg) -> Result<Flock<File>> {
        // A lock belongs to an open file description: each holder needs one of its own.
        let fd =
            openat(&self.fd, ".", OPEN_FOLDER, Mode::empty()).map_err(|errno| Error::io("open", &self.path, errno))?;
        let mut file = File::from(fd);
        loop {
            match Flock::lock(file, how) {
                Ok(lock) => return Ok(lock),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(Error::io("lock", &self.path, errno)),
            }
        }
    }

    fn unsafe_path(&self, name: &str, expected: &'static str) -> Error {
        let found = match self.status(name) {
            Ok(Some(status)) => match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFLNK => "a symbolic link",
                SFlag::S_IFDIR => "a folder",
                SFlag::S_IFREG => "a regular file",
                _ => "a special file",
            },
            Ok(None) | Err(_) => "something else",
        };
        Error::UnsafePath { path: self.child(name), found, expected }
    }
}

pub(super) fn is_regular(status: &FileStat) -> bool {
    SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}
