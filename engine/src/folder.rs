//! Folders of state: locked by flock(2), their files replaced by rename(2).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_DIRECTORY, O_NOFOLLOW};

use crate::error::{Error, Result};

/// A lock on a folder. It ends with the value, or with the process.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _lock: Flock<File>,
}

impl FolderLock {
    /// Waits for the lock.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        Self::take(path, FlockArg::LockExclusive).map_err(Error::io("lock", path))
    }

    /// Waits for a lock that others may share.
    pub(crate) fn shared(path: &Path) -> Result<Self> {
        Self::take(path, FlockArg::LockShared).map_err(Error::io("lock", path))
    }

    /// Takes the lock if it is free: `None` if somebody has it.
    pub(crate) fn try_now(path: &Path) -> Result<Option<Self>> {
        match Self::take(path, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.raw_os_error() == Some(Errno::EWOULDBLOCK as i32) => Ok(None),
            Err(source) => Err(Error::io("lock", path)(source)),
        }
    }

    /// Waits for the lock, but not longer than this: `None` if somebody has it still.
    pub(crate) fn wait_for(path: &Path, longest: Duration) -> Result<Option<Self>> {
        let until = Instant::now() + longest;
        loop {
            match Self::try_now(path)? {
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                lock => return Ok(lock),
            }
        }
    }

    fn take(path: &Path, how: FlockArg) -> io::Result<Self> {
        let folder = OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path)?;
        Ok(Self { _lock: Flock::lock(folder, how).map_err(|(_, errno)| io::Error::from(errno))? })
    }
}

/// Whether somebody holds an exclusive flock(2) on the file. A file that is not there is held by nobody.
pub(crate) fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Error::io("open", path)(source)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(Error::errno("lock", path)(errno)),
    }
}

/// Makes a folder, its parents included, with mode 0700 where it is new.
pub(crate) fn make(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make the folder", path))
}

/// Whether a written file must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// fsync(2) before the rename: losing it would lose something.
    Synced,
    /// The kernel writes it when it likes: after a reboot it would mean nothing, or can be made again.
    Lazy,
}

/// Replaces `folder/name` by `bytes`: at any instant a reader finds the old content or the new.
///
/// On a disk that is full the room of the old file is used, if it is enough: that a container is not wanted any more must be
/// noted where the container has filled the disk. A power cut in that moment could tear it.
pub(crate) fn replace(folder: &Path, name: &str, bytes: &[u8], durability: Durability) -> Result<()> {
    let beside = folder.join(format!(".{name}.new"));
    let path = folder.join(name);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(&beside)?;
        file.write_all(bytes)?;
        if durability == Durability::Synced {
            file.sync_data()?;
        }
        fs::rename(&beside, &path)
    };
    let written = write().or_else(|error| {
        let _ = fs::remove_file(&beside);
        match error.kind() {
            io::ErrorKind::StorageFull if rewrite(&path, bytes, durability).is_ok() => Ok(()),
            _ => Err(error),
        }
    });
    written.map_err(Error::io("write", path.clone()))
}

/// Writes over a file, and spaces over what is left of it: every file that is replaced is a text that they mean nothing in.
fn rewrite(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let file = OpenOptions::new().write(true).custom_flags(O_NOFOLLOW).open(path)?;
    let metadata = file.metadata()?;
    let length = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    // Half of it would be worse than nothing.
    if bytes.len() as u64 > metadata.len().max(metadata.blocks() * 512) || length > 1 << 20 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut content = bytes.to_vec();
    content.resize(length.max(bytes.len()), b' ');
    file.write_all_at(&content, 0)?;
    if durability == Durability::Synced { file.sync_data() } else { Ok(()) }
}

/// Removes a folder and all in it; one that is not there is fine. Symbolic links are removed, not followed.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes all that is in a folder, and leaves the folder.
pub(crate) fn empty(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let inner = entry.path();
        if entry.file_type().map_err(Error::io("look at", &inner))?.is_dir() {
            remove(&inner)?;
        } else {
            fs::remove_file(&inner).map_err(Error::io("remove", &inner))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_exclude() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = FolderLock::try_now(folder.path()).expect("a try").expect("free");
        assert!(FolderLock::try_now(folder.path()).expect("a try").is_none());
        drop(first);
        assert!(FolderLock::try_now(folder.path()).expect("a try").is_some());
    }

    #[test]
    fn replaced_files_are_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        for content in ["one", "second and longer", ""] {
            replace(folder.path(), "file", content.as_bytes(), Durability::Lazy).expect("written");
            assert_eq!(fs::read_to_string(folder.path().join("file")).expect("read"), content);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_file_is_written_over_where_it_has_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, "{\"stopped\":false}").expect("written");
        rewrite(&path, b"{\"stopped\":true}", Durability::Lazy).expect("shorter");
        assert_eq!(fs::read_to_string(&path).expect("read"), "{\"stopped\":true} ");
        rewrite(&path, &[b'x'; 100], Durability::Synced).expect("longer, in the same block");
        assert_eq!(fs::read(&path).expect("read"), [b'x'; 100]);
        rewrite(&path, &vec![b'y'; 1 << 20], Durability::Lazy).expect_err("there is no room for that");
        assert_eq!(fs::read(&path).expect("read"), [b'x'; 100]);
        rewrite(&folder.path().join("none"), b"x", Durability::Lazy).expect_err("there is nothing");
    }

    #[test]
    fn a_held_file_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        assert!(!is_held(&path).expect("absent"));
        let lock = Flock::lock(File::create(&path).expect("made"), FlockArg::LockExclusive).expect("locked");
        assert!(is_held(&path).expect("held"));
        drop(lock);
        assert!(!is_held(&path).expect("free"));
    }
}
