//! Leases: what a process works with stays, whoever collects meanwhile.
//!
//! A lease is a file in `ingest/` under an exclusive flock, with a line for each blob that it holds. A blob is written into it, and found to
//! be there, under the shared lock of the layout's folder; who collects has that lock exclusively. So a collector either sees the line, or
//! has removed the blob before its presence was looked at.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use oci_spec::image::{Descriptor, Digest};

use super::folder::Folder;
use super::ingest::{BlobIngest, FOLDER, LEASE, Parts, Temporary, clean};
#[cfg(feature = "registry")]
use super::part::{Claim, Part};
use crate::{ContentStore, Error, Ingest, Layout, Provider, Result};

/// More than this is no lease of ours: some hundred thousand blobs.
const MAX_LEASE: u64 = 64 << 20;

/// Holds blobs of a [`Layout`] against [`Layout::collect`], in this and any other process, until it and its clones are dropped or
/// the process ends, however it does.
///
/// It is a [`ContentStore`] itself: whatever is found there or taken in through it is held. So a pull is
///
/// ```no_run
/// # use estiba_image::{Layout, OciArchive, Platform, copy};
/// # let store = Layout::open_or_create("/x")?;
/// # let archive = OciArchive::open("/y")?;
/// # let root = archive.images()?.remove(0).root;
/// let lease = store.lease()?;
/// let manifest = copy(&archive, &root, &Platform::host(), &lease)?;
/// store.tag("docker.io/library/busybox:latest", &manifest)?;
/// drop(lease); // now the name holds it
/// # Ok::<(), estiba_image::Error>(())
/// ```
///
/// and a run holds the image from when it is resolved to when the container's record names it: [`hold`](Self::hold).
#[derive(Clone, Debug)]
pub struct Lease {
    layout: Layout,
    held: Arc<Held>,
}

/// The file of a lease.
#[derive(Debug)]
pub(super) struct Held {
    file: Temporary,
    known: Mutex<HashSet<Digest>>,
}

impl Held {
    /// Writes a blob into the lease. The caller has the shared lock of the layout's folder.
    pub(super) fn add(&self, digest: &Digest) -> Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(digest) {
            return Ok(());
        }
        let line = format!("{digest}\n");
        (&*self.file.file).write_all(line.as_bytes()).map_err(|source| Error::io("write", self.file.path(), source))?;
        known.insert(digest.clone());
        Ok(())
    }
}

impl Lease {
    pub(super) fn new(layout: Layout) -> Result<Self> {
        let file = Temporary::create(&layout.root, LEASE)?;
        Ok(Self { layout, held: Arc::new(Held { file, known: Mutex::default() }) })
    }

    /// Holds a blob and, if it is an index or a manifest, all that it leads to.
    ///
    /// # Errors
    ///
    /// [`Error::BlobMissing`] if it is not there (any more).
    pub fn hold(&self, root: &Descriptor) -> Result<()> {
        if self.contains(root)? {
            return Ok(());
        }
        Err(Error::BlobMissing { location: self.location(), digest: root.digest().clone() })
    }

    /// Asks for the right to fetch a blob, which the lease then holds.
    #[cfg(feature = "registry")]
    pub(crate) fn claim(&self, descriptor: &Descriptor) -> Result<Claim> {
        clean(&self.layout.root, Parts::Keep)?;
        Part::claim(&self.layout.root, &self.held, descriptor)
    }

    /// The layout whose blobs it holds.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl Provider for Lease {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        self.layout.open(descriptor)
    }

    fn location(&self) -> String {
        self.layout.location()
    }
}

impl ContentStore for Lease {
    fn contains(&self, descriptor: &Descriptor) -> Result<bool> {
        let _lock = self.layout.root.lock_shared()?;
        let there = self.layout.contains(descriptor)?;
        if there {
            self.held.add(descriptor.digest())?;
        }
        Ok(there)
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>> {
        clean(&self.layout.root, Parts::Keep)?;
        Ok(Box::new(BlobIngest::begin(&self.layout.root, Some(Arc::clone(&self.held)))?))
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        self.layout.remove(digest)
    }
}

/// What living processes hold. The caller has the exclusive lock of the layout's folder.
pub(super) fn held(root: &Folder) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    let Some(folder) = root.folder(FOLDER)? else { return Ok(digests) };
    for name in folder.names()?.iter().filter(|name| name.starts_with(LEASE)) {
        let Some(file) = folder.file(name)? else { continue };
        // Without a lock on it, it is a leftover: the next ingest removes it.
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => continue,
            Err((file, _)) => file,
        };
        let (mut text, what) = (String::new(), folder.child(name));
        file.take(MAX_LEASE + 1).read_to_string(&mut text).map_err(|source| Error::io("read", &what, source))?;
        if text.len() as u64 > MAX_LEASE {
            let what = what.display().to_string();
            return Err(Error::TooLarge { what, size: text.len() as u64, limit: MAX_LEASE });
        }
        for line in text.lines() {
            let digest = line.parse().map_err(|_| Error::InvalidDocument {
                what: what.display().to_string(),
                source: format!("{line:?} is no digest").into(),
            })?;
            digests.push(digest);
        }
    }
    Ok(digests)
}
