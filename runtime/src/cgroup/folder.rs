//! One cgroup's folder in one hierarchy, held open.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How long a folder may stay busy after its last process was killed: an exiting process leaves its
/// cgroup a little later than it leaves `cgroup.procs`.
const BUSY: Duration = Duration::from_secs(2);
/// How long it may stay busy with processes that are listed: they may just be ending.
const OCCUPIED: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Folder {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Self { fd: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// As [`open`](Self::open); `None` when there is no such folder.
    pub(super) fn open_if_there(path: &Path) -> io::Result<Option<Self>> {
        match Self::open(path) {
            Ok(folder) => Ok(Some(folder)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A write-only descriptor of one of the folder's files.
    pub(super) fn writer(&self, file: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.fd, file, flags, Mode::empty())?)
    }

    /// Writes `value` in one `write(2)`, which is what the kernel parses.
    pub(super) fn write(&self, file: &str, value: &str) -> io::Result<()> {
        write_once(&self.writer(file)?, value)
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&self.fd, file, flags, Mode::empty())?;
        let mut text = String::new();
        fs::File::from(fd).read_to_string(&mut text)?;
        Ok(text)
    }

    /// The processes in it, not those of the folders below. A process of an outer pid namespace reads
    /// as 0 and is left out: nobody may take it for a pid.
    pub(super) fn processes(&self) -> io::Result<Vec<i32>> {
        let text = match self.read("cgroup.procs") {
            // A threaded cgroup of version 2 lists threads only.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => self.read("cgroup.threads")?,
            // It was removed while it was open.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
            other => other?,
        };
        Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid > 0).collect())
    }
}

/// One `write(2)` of the whole value.
pub(super) fn write_once(fd: &OwnedFd, value: &str) -> io::Result<()> {
    loop {
        match rustix::io::write(fd, value.as_bytes()) {
            Ok(n) if n == value.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Calls `f` for the folder at `path` and for all below it, the deepest first. Absent is fine.
pub(super) fn for_each_below(path: &Path, f: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(e) if gone(&e) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = match entry {
            Err(e) if gone(&e) => break,
            other => other?,
        };
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            for_each_below(&entry.path(), f)?;
        }
    }
    f(path)
}

fn gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

/// Removes a cgroup and those below it. Absent is fine; busy is tried again for a bounded time.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    remove_by(path, &mut |path| for_each_below(path, &mut rmdir))
}

/// Removes a cgroup that has none below it: if it has, the error is
/// [`DirectoryNotEmpty`](io::ErrorKind::DirectoryNotEmpty) and all stays.
pub(super) fn remove_alone(path: &Path) -> io::Result<()> {
    remove_by(path, &mut |path| {
        for entry in fs::read_dir(path)? {
            if entry?.file_type().is_ok_and(|kind| kind.is_dir()) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
        }
        rmdir(path)
    })
}

fn remove_by(path: &Path, again: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        // Nearly always there is nothing below: try before reading the folder.
        match rmdir(path) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {}
            other => return other,
        }
        match again(path) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                let patience = if is_occupied(path) { OCCUPIED } else { BUSY };
                if start.elapsed() > patience {
                    return Err(e);
                }
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Whether there are processes, here or below.
fn is_occupied(path: &Path) -> bool {
    let mut occupied = false;
    let looked = for_each_below(path, &mut |path| {
        occupied |= !Folder::open(path)?.processes()?.is_empty();
        Ok(())
    });
    looked.is_ok() && occupied
}

fn rmdir(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
