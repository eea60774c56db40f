//! Blobs on their way into a layout.
//!
//! A blob is written to a file in `ingest/` that its writer holds an exclusive flock on. The kernel drops the lock with the process,
//! however that ends: a file there that can be locked is a leftover.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{FileStat, fstat};
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, MediaType};

use super::folder::{Folder, is_regular};
use super::lease::Held;
use super::part::PART;
use crate::digest::{Hasher, path_parts};
use crate::{Error, Ingest, Layout, Result};

pub(super) const FOLDER: &str = "ingest";
/// Only files that are called so are taken for ours, and removed when they are left over.
pub(super) const BLOB: &str = "blob-";
pub(super) const LEASE: &str = "lease-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A file in `ingest/` that is locked while this value lives, and removed with it.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: Folder,
    name: String,
    pub(super) file: Flock<File>,
    renamed: bool,
}

impl Temporary {
    /// Makes a file whose name begins so.
    pub(super) fn create(root: &Folder, prefix: &str) -> Result<Self> {
        let folder = root.make_folder(FOLDER)?;
        loop {
            let name = format!("{prefix}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            // Another pid namespace may have the same number: then the next name.
            let Some(file) = folder.create_new(&name)? else { continue };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                // Somebody who cleans up was quicker, and removes it.
                Err((_, Errno::EWOULDBLOCK | Errno::EINTR)) => continue,
                Err((_, errno)) => return Err(Error::io("lock", folder.child(&name), errno)),
            };
            let status = fstat(&*file).map_err(|errno| Error::io("stat", folder.child(&name), errno))?;
            if status.st_nlink == 0 {
                continue;
            }
            return Ok(Self { folder, name, file, renamed: false });
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.child(&self.name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            // If this fails, the next ingest finds the file.
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// A blob on its way in. Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub(super) struct BlobIngest {
    root: Arc<Folder>,
    temporary: Temporary,
    hasher: Option<Hasher>,
    written: u64,
    /// The lease that shall hold the blob.
    lease: Option<Arc<Held>>,
}

impl BlobIngest {
    pub(super) fn begin(root: &Arc<Folder>, lease: Option<Arc<Held>>) -> Result<Self> {
        let temporary = Temporary::create(root, BLOB)?;
        Ok(Self { root: Arc::clone(root), temporary, hasher: Some(Hasher::sha256()), written: 0, lease })
    }

    /// The digest of what was written, in the algorithm of `expected`.
    fn digest(&mut self, expected: &Digest) -> Result<Digest> {
        if *expected.algorithm() == DigestAlgorithm::Sha256
            && let Some(hasher) = self.hasher.take()
        {
            return Ok(hasher.finish());
        }
        // Anything but sha256 is so rare that it is not computed on the way.
        let read = |source| Error::io("read", self.temporary.path(), source);
        let mut hasher = Hasher::for_digest(expected)?;
        let mut file: &File = &self.temporary.file;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(count) => hasher.update(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read(error)),
            }
        }
    }
}

impl Write for BlobIngest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count =
            (&*self.temporary.file).write(bytes).map_err(|source| Error::io("write", self.temporary.path(), source))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..count]);
        }
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ingest for BlobIngest {
    fn commit(mut self: Box<Self>, expected: &Descriptor) -> Result<()> {
        let location = || self.root.path().display().to_string();
        let [blobs, algorithm, hex] = path_parts(expected.digest())?;
        if self.written != expected.size() {
            return Err(Error::SizeMismatch {
                location: location(),
                digest: expected.digest().clone(),
                expected: expected.size(),
                actual: self.written,
            });
        }
        let actual = self.digest(expected.digest())?;
        if actual != *expected.digest() {
            let location = self.root.path().display().to_string();
            return Err(Error::DigestMismatch { location, expected: expected.digest().clone(), actual });
        }
        self.place(expected.digest(), [blobs, algorithm, hex])
    }

    fn finish(mut self: Box<Self>, media_type: MediaType) -> Result<Descriptor> {
        let hasher = self.hasher.take().unwrap_or_else(Hasher::sha256);
        let descriptor = Descriptor::new(media_type, self.written, hasher.finish());
        let parts = path_parts(descriptor.digest())?;
        self.place(descriptor.digest(), parts)?;
        Ok(descriptor)
    }
}

impl BlobIngest {
    /// Makes the bytes durable, then visible.
    fn place(&mut self, digest: &Digest, [blobs, algorithm, hex]: [&str; 3]) -> Result<()> {
        let folder = self.root.make_folder(blobs)?.make_folder(algorithm)?;
        let whole = |status: FileStat| is_regular(&status) && status.st_size as u64 == self.written;
        let there = folder.status(hex)?.is_some_and(whole);
        if !there {
            self.temporary.file.sync_all().map_err(|source| Error::io("sync", self.temporary.path(), source))?;
        }
        // From here to the end nobody collects: what is there stays, and who collects next sees the lease.
        let _lock = self.root.lock_shared()?;
        if let Some(lease) = &self.lease {
            lease.add(digest)?;
        }
        if !folder.status(hex)?.is_some_and(whole) {
            if there {
                // It was there a moment ago, and has been collected since.
                let sync = self.temporary.file.sync_all();
                sync.map_err(|source| Error::io("sync", self.temporary.path(), source))?;
            }
            self.temporary.folder.rename(&self.temporary.name, &folder, hex)?;
            self.temporary.renamed = true;
        }
        folder.sync()
    }
}

/// A file for something that must be read more than once, and is gone after that.
#[derive(Debug)]
pub(crate) struct Spool(Temporary);

impl Spool {
    pub(crate) fn begin(layout: &Layout) -> Result<Self> {
        clean(&layout.root, Parts::Keep)?;
        Ok(Self(Temporary::create(&layout.root, BLOB)?))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path()
    }

    /// The file. It stays locked, and is there, while the spool lives.
    pub(crate) fn file(&self) -> Result<File> {
        self.0.file.try_clone().map_err(|source| Error::io("open", self.path(), source))
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What becomes of blobs that were only fetched in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// The next who wants the blob goes on with them, unless they are old.
    Keep,
    /// They are removed.
    Remove,
}

/// How long a part of a blob is kept.
const PART_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes what ingests left that did not live to end.
pub(super) fn clean(root: &Folder, parts: Parts) -> Result<()> {
    let Some(folder) = root.folder(FOLDER)? else { return Ok(()) };
    for name in &folder.names()? {
        let part = name.starts_with(PART);
        if !part && ![BLOB, LEASE].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let Some(file) = folder.file(name)? else { continue };
        let age = || file.metadata().ok()?.modified().ok()?.elapsed().ok();
        if part && parts == Parts::Keep && age().is_none_or(|age| age < PART_AGE) {
            continue;
        }
        let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { continue };
        // It may have been committed between the two calls, and another file may have its name.
        let ours = fstat(&*file).map_err(|errno| Error::io("stat", folder.child(name), errno))?;
        let there = folder.status(name)?;
        if there.is_some_and(|status| (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino)) {
            folder.remove(name)?;
        }
    }
    Ok(())
}
