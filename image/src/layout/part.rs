//! A blob on its way from a registry: what has come stays when its process is killed, and can be read while more comes.
//!
//! The file in `ingest/` is called for its digest, and whoever fetches the blob holds an exclusive flock on it: so one process
//! fetches and others wait for it, and the next one goes on where a killed one was. What is in it is not believed: all of it is
//! hashed, also what another process has left.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{FileStat, fstat};
use oci_spec::image::{Descriptor, Digest};

use super::folder::{Folder, is_regular};
use super::ingest::FOLDER;
use super::lease::Held;
use crate::digest::{Hasher, path_parts};
use crate::{Error, Result};

/// How the files are called that are kept.
pub(super) const PART: &str = "part-";
/// Less than this is not worth keeping, in bytes.
const WORTH: u64 = 1 << 20;
/// So much is written before the disk is asked to begin with it: the sync at the end waits for less then.
const STRIDE: u64 = 8 << 20;

/// What came of asking for the right to fetch a blob.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is ours to fetch.
    Ours(Box<Part>),
    /// Somebody else fetches it.
    Taken,
}

/// A blob that is being fetched, by this process alone. Dropped without a commit it keeps what it has, if that is much.
#[derive(Debug)]
pub(crate) struct Part {
    root: Arc<Folder>,
    folder: Folder,
    name: String,
    file: Flock<File>,
    digest: Digest,
    hasher: Option<Hasher>,
    /// Bytes that are in the file, and hashed.
    written: u64,
    /// Bytes that were there before.
    found: u64,
    asked: u64,
    fate: Fate,
    lease: Arc<Held>,
    arrival: Arc<Arrival>,
}

impl Part {
    /// Asks for the right to fetch the blob.
    pub(super) fn claim(root: &Arc<Folder>, lease: &Arc<Held>, descriptor: &Descriptor) -> Result<Claim> {
        let [_, algorithm, hex] = path_parts(descriptor.digest())?;
        let (folder, name) = (root.make_folder(FOLDER)?, format!("{PART}{algorithm}-{hex}"));
        let file = loop {
            let file = folder.open_or_create(&name)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(Claim::Taken),
                Err((_, Errno::EINTR)) => continue,
                Err((_, errno)) => return Err(Error::io("lock", folder.child(&name), errno)),
            };
            // Whoever had it before may have moved or removed it since it was opened.
            let ours = fstat(&*file).map_err(|errno| Error::io("stat", folder.child(&name), errno))?;
            let there = folder.status(&name)?;
            if there.is_some_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
                break file;
            }
        };
        let mut part = Self {
            root: Arc::clone(root),
            folder,
            name,
            file,
            digest: descriptor.digest().clone(),
            hasher: Some(Hasher::for_digest(descriptor.digest())?),
            written: 0,
            found: 0,
            asked: 0,
            fate: Fate::Keep,
            lease: Arc::clone(lease),
            arrival: Arc::new(Arrival::default()),
        };
        part.take_up(descriptor)?;
        Ok(Claim::Ours(Box::new(part)))
    }

    /// Hashes what another has left.
    fn take_up(&mut self, descriptor: &Descriptor) -> Result<()> {
        let failed = |part: &Self, operation, source| Error::io(operation, part.path(), source);
        let length = self.file.metadata().map_err(|source| failed(self, "stat", source))?.len();
        if length > descriptor.size() {
            return self.start_over();
        }
        let mut buffer = vec![0; 256 << 10];
        while self.written < length {
            let count = match self.file.read_at(&mut buffer, self.written) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(failed(self, "read", source)),
            };
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&buffer[..count]);
            }
            self.written += count as u64;
        }
        self.found = self.written;
        self.arrival.grow(self.written);
        Ok(())
    }

    /// Forgets what another has left.
    pub(crate) fn start_over(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|source| Error::io("truncate", self.path(), source))?;
        self.arrival.end(End::Void);
        self.arrival = Arc::new(Arrival::default());
        (self.written, self.found, self.asked) = (0, 0, 0);
        (self.hasher, self.fate) = (Some(Hasher::for_digest(&self.digest)?), Fate::Keep);
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.folder.child(&self.name)
    }

    /// Bytes that are there.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Bytes that another process had left.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// A reader of the blob, from its beginning, while it comes.
    pub(crate) fn follow(&self) -> Result<Follower> {
        let file = self.file.try_clone().map_err(|source| Error::io("open", self.path(), source))?;
        Ok(Follower { file, position: 0, arrival: Arc::clone(&self.arrival) })
    }

    /// Adds the next bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.written).map_err(|source| Error::io("write", self.path(), source))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.written += bytes.len() as u64;
        self.arrival.grow(self.written);
        if self.written - self.asked >= STRIDE {
            // Pages that are dirty are not dropped by this but given to the disk. It is advice: nothing depends on it.
            let _ = posix_fadvise(
                &*self.file,
                self.asked.cast_signed(),
                (self.written - self.asked).cast_signed(),
                PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            );
            self.asked = self.written;
        }
        Ok(())
    }

    /// Verifies size and digest, makes the bytes durable, and only then makes the blob visible. Followers see the end of the blob once it
    /// is verified.
    ///
    /// After a [`Error::DigestMismatch`] it can only be [started over](Self::start_over).
    pub(crate) fn commit(&mut self, expected: &Descriptor) -> Result<()> {
        let location = self.root.path().display().to_string();
        if self.written != expected.size() {
            let (digest, expected, actual) = (expected.digest().clone(), expected.size(), self.written);
            return Err(Error::SizeMismatch { location, digest, expected, actual });
        }
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual != *expected.digest() {
            // Nobody is to go on with this.
            self.fate = Fate::Remove;
            return Err(Error::DigestMismatch { location, expected: expected.digest().clone(), actual });
        }
        self.arrival.end(End::Whole);
        self.place(expected)
    }

    fn place(&mut self, expected: &Descriptor) -> Result<()> {
        let [blobs, algorithm, hex] = path_parts(expected.digest())?;
        let folder = self.root.make_folder(blobs)?.make_folder(algorithm)?;
        self.file.sync_all().map_err(|source| Error::io("sync", self.path(), source))?;
        // From here to the end nobody collects: what is there stays, and who collects next sees the lease.
        let _lock = self.root.lock_shared()?;
        self.lease.add(expected.digest())?;
        let whole = |status: FileStat| is_regular(&status) && status.st_size as u64 == self.written;
        if folder.status(hex)?.is_some_and(whole) {
            self.fate = Fate::Remove;
        } else {
            self.folder.rename(&self.name, &folder, hex)?;
            self.fate = Fate::Gone;
        }
        folder.sync()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.arrival.end(End::Void);
        let worthless = self.fate == Fate::Keep && self.written < WORTH;
        if worthless || self.fate == Fate::Remove {
            // If this fails, a later ingest or collection finds the file.
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// What becomes of a part's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Somebody may go on with it.
    Keep,
    /// It is of no use.
    Remove,
    /// It has moved to its place; whatever has the name now is another's.
    Gone,
}

/// How far a blob has come.
#[derive(Debug, Default)]
struct Arrival {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    available: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All is there, and has its digest.
    Whole,
    /// No more comes.
    Void,
}

impl Arrival {
    fn grow(&self, available: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).available = available;
        self.moved.notify_all();
    }

    /// The first end is the one that holds.
    fn end(&self, end: End) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).end.get_or_insert(end);
        self.moved.notify_all();
    }
}

/// Reads a blob while it comes, and waits for what has not come yet.
///
/// The bytes are *not* to be trusted before the end is read: it is seen once the blob was found to have its size and digest. If it does
/// not come whole, the read fails, and [`is_void`](Self::is_void) says so.
#[derive(Debug)]
pub struct Follower {
    file: File,
    position: u64,
    arrival: Arc<Arrival>,
}

impl Follower {
    /// Whether the blob was given up or found to be another one: what was read of it is worth nothing.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.arrival.state.lock().unwrap_or_else(PoisonError::into_inner).end == Some(End::Void)
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut state = self.arrival.state.lock().unwrap_or_else(PoisonError::into_inner);
        let available = loop {
            if state.end == Some(End::Void) {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the layer did not come whole"));
            }
            if state.available > self.position {
                break state.available - self.position;
            }
            if state.end.is_some() {
                return Ok(0);
            }
            state = self.arrival.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let room = buffer.len().min(usize::try_from(available).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..room], self.position)?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file of the layer was cut"));
        }
        self.position += count as u64;
        Ok(count)
    }
}
