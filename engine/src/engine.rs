//! The engine: what opens the state, makes containers, and finds them again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estiba_image::{self as image, Layout, OciArchive, Platform, Source};
use estiba_network::{Driver, Host, Loopback};
use estiba_storage::Snapshotter;
use oci_spec::image::Descriptor;

use crate::config::{Config, Parts, SnapshotterKind};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::identity::{ContainerName, Id};
use crate::images::Image;
use crate::record::{Record, Records, Stage, Status, Summary};
use crate::repair;
use crate::request::{CreateRequest, NetworkMode};
use crate::running::{self, Running};
use crate::unpack;

/// The format of everything below a root.
const VERSION: u32 = 1;

/// A container engine on one root. Any number of engines, in any number of processes, may use the same root at once.
///
/// Cloning gives another handle on the same engine. Every method that is `async` needs a tokio runtime with I/O enabled;
/// the blocking work is done on its blocking threads. Dropping a future at any point leaves the state that a crash
/// there would leave, which the next ordinary command mends.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) content: Arc<Layout>,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    snapshotter_name: String,
    pub(crate) records: Records,
    pub(crate) leases: PathBuf,
}

impl Engine {
    /// Opens the state in `config.root`, which is made if it is not there, and mends what killed commands have left.
    pub async fn open(config: Config) -> Result<Self> {
        blocking(move || {
            prepare_root(&config.root)?;
            let content = config.root.join("content");
            let parts = Parts {
                content: Arc::new(
                    Layout::open_or_create(&content).map_err(|source| Error::Content { source: Box::new(source) })?,
                ),
                snapshotter: open_snapshotter(&config.root, config.snapshotter)?,
                snapshotter_name: config.snapshotter.name().to_owned(),
            };
            Self::compose(config, parts)
        })
        .await
    }

    /// Opens the state in `config.root` with the embedder's own parts; `config.snapshotter` is not looked at.
    pub async fn with_parts(config: Config, parts: Parts) -> Result<Self> {
        blocking(move || {
            prepare_root(&config.root)?;
            Self::compose(config, parts)
        })
        .await
    }

    fn compose(mut config: Config, parts: Parts) -> Result<Self> {
        folder::make(&config.run)?;
        // The shim and its container have another working directory than the caller.
        for path in [&mut config.root, &mut config.run] {
            *path = fs::canonicalize(&*path).map_err(Error::io("find", path.clone()))?;
        }
        let records = Records::open(&config.root, &config.run)?;
        let leases = config.root.join("leases").join(&parts.snapshotter_name);
        folder::make(&leases)?;
        let inner = Inner {
            config,
            content: parts.content,
            snapshotter: parts.snapshotter,
            snapshotter_name: parts.snapshotter_name,
            records,
            leases,
        };
        repair::run(&inner)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings an image into the content store, if it is not there yet, and names it. A registry reference is looked up
    /// among the images that are there.
    pub async fn import(&self, source: Source) -> Result<Image> {
        self.blocking(move |inner| {
            let imported = source
                .import(&inner.content)
                .map_err(|error| Error::Image { image: source.to_string(), source: Box::new(error) })?;
            Ok(Image { name: imported.name, manifest: imported.manifest })
        })
        .await
    }

    /// Brings an OCI archive that is in memory (one that is part of the program, say) into the content store under
    /// `name`.
    pub async fn import_bytes(&self, archive: &'static [u8], name: &str) -> Result<Image> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let failed = |source| Error::Image { image: name.clone(), source: Box::new(source) };
            let archive = OciArchive::from_bytes(archive).map_err(failed)?;
            let listing = archive.images().map_err(failed)?.into_iter().next();
            let root = listing.ok_or_else(|| Error::EmptyArchive { image: name.clone() })?.root;
            let manifest = image::copy(&archive, &root, &Platform::host(), &*inner.content).map_err(failed)?;
            if inner.content.resolve(&name).map_err(failed)?.as_ref().map(Descriptor::digest) != Some(manifest.digest())
            {
                inner.content.set(&name, &manifest).map_err(failed)?;
            }
            Ok(Image { name, manifest })
        })
        .await
    }

    /// The images that have a name.
    pub async fn images(&self) -> Result<Vec<Image>> {
        self.blocking(|inner| {
            let listings = inner.content.images().map_err(|source| Error::Content { source: Box::new(source) })?;
            let named = |listing: image::Listing| {
                listing.names.into_iter().map(move |name| Image { name, manifest: listing.root.clone() })
            };
            Ok(listings.into_iter().flat_map(named).collect())
        })
        .await
    }

    /// Makes a container, to be started later, and by any process.
    pub async fn create(&self, request: CreateRequest) -> Result<Container> {
        let id = self
            .blocking(move |inner| {
                let (mut record, _lock) = inner.make(request)?;
                record.stage = Stage::Created;
                inner.records.write(&record)?;
                Ok(record.id)
            })
            .await?;
        Ok(Container::new(self.clone(), id))
    }

    /// Makes a container and starts it in one go: if this process dies before the container was started, nothing of it
    /// stays.
    pub async fn run(&self, request: CreateRequest) -> Result<Running> {
        let (record, lock) = self.blocking(move |inner| inner.make(request)).await?;
        running::start(self.clone(), record, lock).await
    }

    /// The container of that name, id, or beginning of an id.
    pub async fn container(&self, name: &str) -> Result<Container> {
        let name = name.to_owned();
        let id = self.blocking(move |inner| inner.records.find(&name)).await?;
        Ok(Container::new(self.clone(), id))
    }

    /// All containers, the newest first.
    pub async fn containers(&self) -> Result<Vec<Summary>> {
        self.blocking(|inner| {
            let mut summaries = Vec::new();
            for id in inner.records.ids()? {
                if let Some(record) = inner.records.read(&id)? {
                    let status = inner.records.status(&record)?;
                    summaries.push(Summary { record, status });
                }
            }
            summaries.sort_by_key(|summary| std::cmp::Reverse(summary.record.created));
            Ok(summaries)
        })
        .await
    }

    /// What a shim's exit command does: settles a container that has ended while no client was there. One that is gone
    /// already, or that somebody else is settling, is fine.
    pub async fn cleanup(&self, id: Id) -> Result<()> {
        self.blocking(move |inner| {
            let folder = inner.records.folder(&id);
            if !folder.exists() {
                return Ok(());
            }
            let lock = match FolderLock::wait(&folder) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
                lock => lock?,
            };
            repair::settle(inner, &id, &lock)
        })
        .await
    }

    /// Runs blocking work on one of tokio's blocking threads: the one place where the engine leaves async.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        blocking(move || work(&inner)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => Err(Error::Panicked { source: Box::new(panic) }),
    }
}

impl Inner {
    /// Writes a new container's record, takes its name and prepares its snapshot. On failure nothing is left.
    fn make(&self, request: CreateRequest) -> Result<(Record, FolderLock)> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        let name = request.name.as_deref().map(str::parse::<ContainerName>).transpose()?;
        let unpacked = unpack::ensure(&request.image, &self.content, &*self.snapshotter, &self.leases)?;
        crate::spec::arguments(&request, &unpacked.defaults)?;
        let id = Id::random()?;
        let name = name.unwrap_or_else(|| ContainerName::from_id(&id));
        let (snapshotter, cgroup) = (&self.snapshotter_name, &self.config.cgroup_parent);
        let record = Record::new(id, name, Stage::Creating, snapshotter, cgroup, request)?;
        let lock = self.records.insert(&record)?;
        let made = record.id.snapshot_key().and_then(|key| {
            self.snapshotter.prepare(&key, unpacked.top.as_ref()).map_err(|source| Error::Snapshot {
                operation: "prepare",
                snapshot: key.to_string(),
                source: Box::new(source),
            })
        });
        match made {
            Ok(_) => Ok((record, lock)),
            Err(error) => {
                self.records.remove(&record)?;
                Err(error)
            }
        }
    }

    /// The lock on a container's folder and its record, for a command that changes it.
    pub(crate) fn lock(&self, id: &Id) -> Result<(FolderLock, Record)> {
        let gone = || Error::NoContainer { name: id.to_string() };
        let lock = match FolderLock::wait(&self.records.folder(id)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Err(gone()),
            lock => lock?,
        };
        // Whoever had the lock before may have removed the container.
        let record = self.records.read(id)?.ok_or_else(gone)?;
        Ok((lock, record))
    }

    /// The snapshotter that holds a container's root: not the engine's own, if the container was made with another.
    pub(crate) fn snapshotter_of(&self, record: &Record) -> Result<Arc<dyn Snapshotter>> {
        if record.snapshotter == self.snapshotter_name {
            return Ok(Arc::clone(&self.snapshotter));
        }
        let kind = SnapshotterKind::named(&record.snapshotter).ok_or_else(|| Error::OtherSnapshotter {
            id: record.id.clone(),
            snapshotter: record.snapshotter.clone(),
        })?;
        open_snapshotter(&self.config.root, kind)
    }

    pub(crate) fn network(mode: NetworkMode) -> &'static dyn Driver {
        match mode {
            NetworkMode::None => &Loopback,
            NetworkMode::Host => &Host,
        }
    }

    pub(crate) fn status(&self, id: &Id) -> Result<Status> {
        let record = self.records.read(id)?.ok_or_else(|| Error::NoContainer { name: id.to_string() })?;
        self.records.status(&record)
    }
}

fn open_snapshotter(root: &Path, kind: SnapshotterKind) -> Result<Arc<dyn Snapshotter>> {
    let path = root.join("snapshots").join(kind.name());
    folder::make(&path)?;
    let failed =
        |source| Error::Snapshot { operation: "open", snapshot: path.display().to_string(), source: Box::new(source) };
    Ok(match kind {
        SnapshotterKind::Overlay => Arc::new(estiba_storage::Overlay::open(&path).map_err(failed)?),
        SnapshotterKind::Native => Arc::new(estiba_storage::Native::open(&path).map_err(failed)?),
    })
}

/// Makes the root, or checks that what is there is of this version.
fn prepare_root(root: &Path) -> Result<()> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == VERSION.to_string() => Ok(()),
        Ok(text) => Err(Error::Version { path, found: text.trim().chars().take(20).collect(), known: VERSION }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            folder::make(root)?;
            // Several may be the first.
            let _alone = FolderLock::wait(root)?;
            if path.exists() {
                return prepare_root(root);
            }
            folder::replace(root, "version", format!("{VERSION}\n").as_bytes(), Durability::Synced)
        }
        Err(source) => Err(Error::io("read", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_root_is_refused() {
        let root = tempfile::tempdir().expect("a folder");
        prepare_root(root.path()).expect("new");
        prepare_root(root.path()).expect("known");
        fs::write(root.path().join("version"), "2\n").expect("written");
        let error = prepare_root(root.path()).expect_err("newer");
        assert!(matches!(error, Error::Version { .. }), "{error}");
    }
}
