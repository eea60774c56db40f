//! The content store: an OCI image layout on disk.

mod collect;
mod folder;
mod index;
mod ingest;
mod lease;
#[cfg_attr(not(feature = "registry"), expect(dead_code, reason = "only what a registry sends comes in parts"))]
mod part;

use std::fs::DirBuilder;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;

use self::folder::Folder;
use self::index::Index;
use crate::digest::path_parts;
use crate::provider::MAX_DOCUMENT;
use crate::{ContentStore, Error, Ingest, Provider, Result};

pub use self::collect::{Check, Collected, ImageUsage, Problem, Usage};
pub use self::index::Listing;
pub(crate) use self::index::{IMAGE_NAME, REF_NAME, list};
pub(crate) use self::ingest::Spool;
pub use self::lease::Lease;
pub use self::part::Follower;
#[cfg(feature = "registry")]
pub(crate) use self::part::{Claim, Part};

const LAYOUT_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";
/// The content of `oci-layout`.
pub(crate) const LAYOUT_VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An OCI image layout on disk: blobs by digest, and `index.json`, which names images.
///
/// Any number of processes may use one at the same time. Blobs come in through `ingest/`, invisible until they are whole; `index.json`
/// is replaced by rename under a flock on the folder, and whatever others wrote in it is kept. No symbolic link below the folder is followed.
/// skopeo (`oci:DIR:NAME`) and umoci read and write it too.
///
/// A name is the annotation `org.opencontainers.image.ref.name` of an entry: of an image from a registry the full reference
/// (then also `io.containerd.image.name`), otherwise what [`Source::import`](crate::Source::import) says, which umoci takes
/// but skopeo does not: its grammar has no place for a path.
#[derive(Clone, Debug)]
pub struct Layout {
    root: Arc<Folder>,
}

impl Layout {
    /// Opens a layout that is there, for reading or writing. Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// [`Error::NotLayout`] if it is a folder without `oci-layout` or `index.json`, or of a version other than 1.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let root = Folder::open_root(&absolute(path.as_ref())?)?;
        if check(&root)? {
            Ok(Self { root: Arc::new(root) })
        } else {
            let reason = "it has no oci-layout or no index.json";
            Err(Error::NotLayout { path: root.path().to_owned(), reason })
        }
    }

    /// Opens a layout as a content store: makes it first (mode 0700) if the folder is empty or absent, and removes what killed
    /// ingests left.
    ///
    /// # Errors
    ///
    /// [`Error::NotLayout`] if the folder has other things in it and is not a layout.
    pub fn open_or_create(path: impl AsRef<Path>) -> Result<Self> {
        let path = absolute(path.as_ref())?;
        let root = match Folder::open_root(&path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&path)
                    .map_err(|source| Error::io("make", &path, source))?;
                Folder::open_root(&path)?
            }
            opened => opened?,
        };
        if !check(&root)? {
            create(&root)?;
        }
        ingest::clean(&root, ingest::Parts::Keep)?;
        Ok(Self { root: Arc::new(root) })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// What the name stands for. Names are compared as they are: normalise references first.
    pub fn resolve(&self, name: &str) -> Result<Option<Descriptor>> {
        Ok(self.index()?.named(name).into_iter().next())
    }

    /// Lets the name stand for an image, and for no other; costs two looks if it does already.
    ///
    /// An image that loses its last name so stays listed without one, as Docker has it (`<none>`): [`forget`](Self::forget) takes it away.
    /// Names of images from registries must be full: `docker.io/library/busybox:latest`.
    ///
    /// # Errors
    ///
    /// [`Error::BlobMissing`] if the index or manifest is not there: hold a [`Lease`] from when it comes in to when it has its name.
    pub fn tag(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        self.tag_all(&[(name, descriptor)])
    }

    /// The former name of [`tag`](Self::tag).
    #[doc(hidden)]
    pub fn set(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        self.tag(name, descriptor)
    }

    /// [`tag`](Self::tag) for several, all at once or none.
    pub fn tag_all(&self, names: &[(&str, &Descriptor)]) -> Result<()> {
        let done = |index: &Index| names.iter().all(|(name, descriptor)| index.is_set(name, descriptor));
        // Without the lock: who only looks holds nobody up.
        if done(&self.index()?) && self.have(names.iter().map(|(_, descriptor)| *descriptor)).is_ok() {
            return Ok(());
        }
        let _lock = self.root.lock()?;
        self.have(names.iter().map(|(_, descriptor)| *descriptor))?;
        let mut index = self.index()?;
        if done(&index) {
            return Ok(());
        }
        for (name, descriptor) in names {
            index.tag(name, descriptor)?;
        }
        self.replace(index)
    }

    /// Lists an image without a name, unless it is listed already: so it stays.
    ///
    /// # Errors
    ///
    /// As [`tag`](Self::tag).
    pub fn keep(&self, descriptor: &Descriptor) -> Result<()> {
        let _lock = self.root.lock()?;
        self.have([descriptor])?;
        let mut index = self.index()?;
        if index.keep(descriptor)? { self.replace(index) } else { Ok(()) }
    }

    /// Takes the name away; what it stood for, if it was there. The blobs stay until [`collect`](Self::collect) finds that
    /// nothing leads to them.
    pub fn untag(&self, name: &str) -> Result<Option<Descriptor>> {
        let _lock = self.root.lock()?;
        let mut index = self.index()?;
        let stood = index.named(name).into_iter().next();
        if index.unset(name) {
            self.replace(index)?;
        }
        Ok(stood)
    }

    /// Takes all entries of an index or manifest away, named or not; whether there were any.
    pub fn forget(&self, root: &Digest) -> Result<bool> {
        let _lock = self.root.lock()?;
        let mut index = self.index()?;
        let listed = index.forget(root);
        if listed {
            self.replace(index)?;
        }
        Ok(listed)
    }

    /// A lease on blobs of this layout.
    pub fn lease(&self) -> Result<Lease> {
        ingest::clean(&self.root, ingest::Parts::Keep)?;
        Lease::new(self.clone())
    }

    fn have<'a>(&self, descriptors: impl IntoIterator<Item = &'a Descriptor>) -> Result<()> {
        for descriptor in descriptors {
            if !self.contains(descriptor)? {
                return Err(Error::BlobMissing { location: self.location(), digest: descriptor.digest().clone() });
            }
        }
        Ok(())
    }

    /// All names, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> =
            self.images()?.into_iter().filter_map(|listing| listing.names.into_iter().next()).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// All entries of `index.json`, those of others too.
    pub fn images(&self) -> Result<Vec<Listing>> {
        index::list(&self.read_index()?, &self.index_name())
    }

    fn index_name(&self) -> String {
        self.root.child(INDEX_FILE).display().to_string()
    }

    fn read_index(&self) -> Result<Vec<u8>> {
        self.root
            .read(INDEX_FILE, MAX_DOCUMENT)?
            .ok_or_else(|| Error::NotLayout { path: self.root.path().to_owned(), reason: "its index.json is gone" })
    }

    fn index(&self) -> Result<Index> {
        Index::parse(&self.read_index()?, &self.index_name())
    }

    fn replace(&self, index: Index) -> Result<()> {
        let bytes = index.into_bytes();
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            // It could be written, but not be read again.
            return Err(Error::TooLarge { what: self.index_name(), size, limit: MAX_DOCUMENT });
        }
        self.root.replace(INDEX_FILE, &bytes)
    }

    fn blobs(&self, digest: &Digest) -> Result<Option<Folder>> {
        let [blobs, algorithm, _] = path_parts(digest)?;
        match self.root.folder(blobs)? {
            Some(folder) => folder.folder(algorithm),
            None => Ok(None),
        }
    }
}

impl Provider for Layout {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        let [.., name] = path_parts(descriptor.digest())?;
        let file = match self.blobs(descriptor.digest())? {
            Some(folder) => folder.file(name)?,
            None => None,
        };
        match file {
            Some(file) => Ok(Box::new(file)),
            None => Err(Error::BlobMissing { location: self.location(), digest: descriptor.digest().clone() }),
        }
    }

    fn location(&self) -> String {
        self.root.path().display().to_string()
    }
}

impl ContentStore for Layout {
    fn contains(&self, descriptor: &Descriptor) -> Result<bool> {
        let [.., name] = path_parts(descriptor.digest())?;
        let Some(folder) = self.blobs(descriptor.digest())? else { return Ok(false) };
        let status = folder.status(name)?;
        Ok(status.is_some_and(|status| folder::is_regular(&status) && status.st_size as u64 == descriptor.size()))
    }

    fn ingest(&self) -> Result<Box<dyn Ingest>> {
        ingest::clean(&self.root, ingest::Parts::Keep)?;
        Ok(Box::new(ingest::BlobIngest::begin(&self.root, None)?))
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        let [.., name] = path_parts(digest)?;
        if let Some(folder) = self.blobs(digest)? {
            folder.remove(name)?;
        }
        Ok(())
    }
}

/// Paths in messages and names must mean the same wherever they are read.
fn absolute(path: &Path) -> Result<std::path::PathBuf> {
    std::path::absolute(path).map_err(|source| Error::io("resolve", path, source))
}

/// Checks the content of `oci-layout`.
pub(crate) fn check_layout_file(raw: &[u8]) -> Result<(), &'static str> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct LayoutFile {
        image_layout_version: String,
    }
    let file: LayoutFile = serde_json::from_slice(raw).map_err(|_| "its oci-layout is not valid")?;
    if file.image_layout_version.starts_with("1.") { Ok(()) } else { Err("its version is newer than 1") }
}

/// Whether the folder is a layout.
fn check(root: &Folder) -> Result<bool> {
    let Some(raw) = root.read(LAYOUT_FILE, 4096)? else { return Ok(false) };
    check_layout_file(&raw).map_err(|reason| Error::NotLayout { path: root.path().to_owned(), reason })?;
    Ok(root.status(INDEX_FILE)?.is_some())
}

/// Makes a layout of an empty folder, or finishes one whose maker was killed. `oci-layout` goes last.
fn create(root: &Folder) -> Result<()> {
    let _lock = root.lock()?;
    if check(root)? {
        return Ok(());
    }
    let ours = |name: &String| {
        matches!(name.as_str(), "blobs" | "ingest" | INDEX_FILE | LAYOUT_FILE | ".index.json.new" | ".oci-layout.new")
    };
    if !root.names()?.iter().all(ours) {
        let reason = "it has no oci-layout, and other things are in it; choose an empty folder";
        return Err(Error::NotLayout { path: root.path().to_owned(), reason });
    }
    root.make_folder("blobs")?.make_folder("sha256")?;
    if root.status(INDEX_FILE)?.is_none() {
        root.replace(INDEX_FILE, &index::empty())?;
    }
    root.replace(LAYOUT_FILE, LAYOUT_VERSION)
}
