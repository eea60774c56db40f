//! Blobs on their way into a layout.
//!
//! A blob is written to a file in `ingest/` that its writer holds an exclusive flock on. The kernel drops the lock with the process,
//! however that ends: a file there that can be locked is a leftover.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};

use super::folder::{Folder, is_regular};
use crate::digest::{Hasher, path_parts};
use crate::{Error, Ingest, Result};

const FOLDER: &str = "ingest";
/// Only files that are called so are taken for ours, and removed when they are left over.
const PREFIX: &str = "blob-";

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A blob on its way in. Dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub(super) struct BlobIngest {
    root: Arc<Folder>,
    folder: Folder,
    name: String,
    file: Flock<File>,
    hasher: Option<Hasher>,
    written: u64,
    renamed: bool,
}

impl BlobIngest {
    pub(super) fn begin(root: &Arc<Folder>) -> Result<Self> {
        let folder = root.make_folder(FOLDER)?;
        loop {
            let name = format!("{PREFIX}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
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
            let hasher = Some(Hasher::sha256());
            return Ok(Self { root: Arc::clone(root), folder, name, file, hasher, written: 0, renamed: false });
        }
    }

    /// The digest of what was written, in the algorithm of `expected`.
    fn digest(&mut self, expected: &Digest) -> Result<Digest> {
        if *expected.algorithm() == DigestAlgorithm::Sha256
            && let Some(hasher) = self.hasher.take()
        {
            return Ok(hasher.finish());
        }
        // Anything but sha256 is so rare that it is not computed on the way.
        let read = |source| Error::io("read", self.folder.child(&self.name), source);
        let mut hasher = Hasher::for_digest(expected)?;
        let mut file: &File = &self.file;
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
            (&*self.file).write(bytes).map_err(|source| Error::io("write", self.folder.child(&self.name), source))?;
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
        let folder = self.root.make_folder(blobs)?.make_folder(algorithm)?;
        let there = folder.status(hex)?;
        if !there.is_some_and(|status| is_regular(&status) && status.st_size as u64 == expected.size()) {
            self.file.sync_all().map_err(|source| Error::io("sync", self.folder.child(&self.name), source))?;
            self.folder.rename(&self.name, &folder, hex)?;
            self.renamed = true;
        }
        folder.sync()
    }
}

impl Drop for BlobIngest {
    fn drop(&mut self) {
        if !self.renamed {
            // If this fails, the next ingest finds the file.
            let _ = self.folder.remove(&self.name);
        }
    }
}

/// Removes what ingests left that did not live to end.
pub(super) fn clean(root: &Folder) -> Result<()> {
    let Some(folder) = root.folder(FOLDER)? else { return Ok(()) };
    for name in folder.names()?.iter().filter(|name| name.starts_with(PREFIX)) {
        let Some(file) = folder.file(name)? else { continue };
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
