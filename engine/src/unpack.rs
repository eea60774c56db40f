//! Unpack: an image's layers become committed snapshots, named by their chain ids. Here image and storage meet.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use estiba_image::{ContentStore, Layout, Platform, Provider, Verified};
use estiba_storage::layer::{self, Compression, Limits, Target};
use estiba_storage::{Key, Name, SnapshotId, Snapshotter};

use crate::error::{Error, Result};
use crate::folder::{self, FolderLock};
use crate::identity::Id;
use crate::images::Image;
use crate::spec::ImageDefaults;

/// An image whose layers are all snapshots.
#[derive(Debug)]
pub(crate) struct Unpacked {
    /// The snapshot of its last layer: the parent of containers' roots. `None` for an image without layers.
    pub(crate) top: Option<Name>,
    pub(crate) defaults: ImageDefaults,
}

/// Makes sure that every layer of the image is a committed snapshot. Cheap if they are.
pub(crate) fn ensure(
    image: &Image,
    content: &Layout,
    snapshotter: &dyn Snapshotter,
    leases: &Path,
) -> Result<Unpacked> {
    let loaded = load(image, content)?;
    let defaults = defaults(&loaded);
    let chain: Vec<Name> = loaded
        .chain_ids()
        .iter()
        .map(|id| id.to_string().parse())
        .collect::<std::result::Result<_, estiba_storage::Error>>()
        .map_err(|source| Error::Snapshot {
            operation: "name",
            snapshot: image.name.clone(),
            source: Box::new(source),
        })?;
    let unpacked = Unpacked { top: chain.last().cloned(), defaults };
    // The top stands on all others: if it is there, they are.
    if chain.last().is_none_or(|top| exists(snapshotter, top)) {
        return Ok(unpacked);
    }
    let mut parent: Option<&Name> = None;
    for (name, layer) in chain.iter().zip(loaded.layers()) {
        if !exists(snapshotter, name) {
            let work = Work { image, content, snapshotter, leases };
            work.layer(name, parent, &layer.descriptor, layer.diff_id.as_ref())?;
        }
        parent = Some(name);
    }
    Ok(unpacked)
}

/// How the image says that it is run.
pub(crate) fn defaults_of(image: &Image, content: &Layout) -> Result<ImageDefaults> {
    load(image, content).map(|loaded| defaults(&loaded))
}

fn load(image: &Image, content: &Layout) -> Result<estiba_image::Image> {
    estiba_image::Image::load(content, &image.manifest, &Platform::host())
        .map_err(|source| Error::Image { image: image.name.clone(), source: Box::new(source) })
}

fn exists(snapshotter: &dyn Snapshotter, name: &Name) -> bool {
    snapshotter.stat(&SnapshotId::Name(name.clone())).is_ok()
}

struct Work<'a> {
    image: &'a Image,
    content: &'a Layout,
    snapshotter: &'a dyn Snapshotter,
    leases: &'a Path,
}

impl Work<'_> {
    fn layer(
        &self,
        name: &Name,
        parent: Option<&Name>,
        descriptor: &oci_spec::image::Descriptor,
        diff_id: &str,
    ) -> Result<()> {
        let lease = Lease::new(self.leases)?;
        let snapshot = |operation| {
            let snapshot = lease.key.to_string();
            move |source| Error::Snapshot { operation, snapshot, source: Box::new(source) }
        };
        let mounts = self.snapshotter.prepare(&lease.key, parent).map_err(snapshot("prepare"))?;
        let filled = self.fill(&mounts, descriptor, diff_id).map_err(|error| self.blame(descriptor, error));
        let made = filled.and_then(|()| {
            match self.snapshotter.commit(name, &lease.key) {
                Ok(()) => Ok(true),
                // Somebody else was quicker: theirs is as good.
                Err(estiba_storage::Error::AlreadyExists { .. }) => Ok(false),
                Err(source) => Err(snapshot("commit")(source)),
            }
        });
        if !matches!(made, Ok(true)) {
            remove(self.snapshotter, &lease.key)?;
        }
        lease.end()?;
        made.map(drop)
    }

    /// What really was wrong, if a layer could not be unpacked: a blob that was damaged after the content store had taken
    /// it in is removed, so that the next import brings it again. An import alone only looks at the size.
    fn blame(&self, descriptor: &oci_spec::image::Descriptor, error: Error) -> Error {
        let location = self.content.path().display().to_string();
        let verified = self.content.open(descriptor).and_then(|blob| Verified::new(blob, descriptor, &location));
        let Ok(mut verified) = verified else { return error };
        let Err(source) = io::copy(&mut verified, &mut io::sink()) else { return error };
        // Nothing but other content says that the blob is damaged; a disk that cannot be read now may be readable later.
        if source.raw_os_error().is_some() {
            return error;
        }
        let layer = descriptor.digest().to_string();
        match self.content.remove(descriptor.digest()) {
            Ok(()) => Error::DamagedBlob { image: self.image.name.clone(), layer, source },
            Err(source) => Error::Content { source: Box::new(source) },
        }
    }

    fn fill(
        &self,
        mounts: &[oci_spec::runtime::Mount],
        descriptor: &oci_spec::image::Descriptor,
        diff_id: &str,
    ) -> Result<()> {
        let layer = descriptor.digest().to_string();
        let unpack =
            |source| Error::Unpack { image: self.image.name.clone(), layer: layer.clone(), source: Box::new(source) };
        let target = Target::from_mounts(mounts).map_err(unpack)?;
        let blob = self
            .content
            .open(descriptor)
            .map_err(|source| Error::Image { image: self.image.name.clone(), source: Box::new(source) })?;
        let compression = Compression::from_media_type(descriptor.media_type().as_ref()).unwrap_or_default();
        // The content store has verified the blob when it took it in; what is unpacked is held against the diff id below.
        let applied =
            layer::apply(blob.take(descriptor.size()), compression, &target, &Limits::default()).map_err(unpack)?;
        let found = applied.diff_id();
        if found != diff_id {
            return Err(Error::DiffId { image: self.image.name.clone(), layer, found, expected: diff_id.to_owned() });
        }
        Ok(())
    }
}

/// Removes an active snapshot; one that is not there is fine.
pub(crate) fn remove(snapshotter: &dyn Snapshotter, key: &Key) -> Result<()> {
    match snapshotter.remove(&SnapshotId::Key(key.clone())) {
        Ok(()) | Err(estiba_storage::Error::NotFound { .. }) => Ok(()),
        Err(source) => {
            Err(Error::Snapshot { operation: "remove", snapshot: key.to_string(), source: Box::new(source) })
        }
    }
}

/// Says that a snapshot is being filled. The folder is there before the snapshot and goes after it, and is locked by
/// whoever fills it: one without a lock names a snapshot that is rubbish.
#[derive(Debug)]
struct Lease {
    path: PathBuf,
    key: Key,
    _lock: FolderLock,
}

impl Lease {
    fn new(leases: &Path) -> Result<Self> {
        let name = format!("unpack-{}", Id::random()?.short());
        let path = leases.join(&name);
        // Shared with other leases: `remove_abandoned` takes nobody's new folder for an abandoned one.
        let _fresh = FolderLock::shared(leases)?;
        std::fs::create_dir(&path).map_err(Error::io("make the folder", &path))?;
        let lock = FolderLock::wait(&path)?;
        let key = name.parse().map_err(|source| Error::Snapshot {
            operation: "name",
            snapshot: name,
            source: Box::new(source),
        })?;
        Ok(Self { path, key, _lock: lock })
    }

    fn end(self) -> Result<()> {
        folder::remove(&self.path)
    }
}

/// Removes the snapshots of unpacks that were killed.
pub(crate) fn remove_abandoned(snapshotter: &dyn Snapshotter, leases: &Path) -> Result<()> {
    let list = || -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(leases).map_err(Error::io("list", leases))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    };
    if list()?.is_empty() {
        return Ok(());
    }
    // While somebody unpacks or makes a container, the next command does it.
    let Some(_alone) = FolderLock::try_now(leases)? else { return Ok(()) };
    for path in list()? {
        let Some(Ok(key)) = path.file_name().and_then(|name| name.to_str()).map(str::parse::<Key>) else { continue };
        if path.exists() && FolderLock::try_now(&path).is_ok_and(|lock| lock.is_some()) {
            remove(snapshotter, &key)?;
            folder::remove(&path)?;
        }
    }
    Ok(())
}

fn defaults(image: &estiba_image::Image) -> ImageDefaults {
    let docker = &image.config().docker;
    let id = image.id().to_string();
    let beside = ImageDefaults {
        health: docker.healthcheck.clone(),
        volumes: image.config().volumes().iter().map(|path| (*path).to_owned()).collect(),
        exposed: image.config().exposed_ports().iter().map(|port| (*port).to_owned()).collect(),
        stop_timeout: docker.stop_timeout,
        id,
        ..ImageDefaults::default()
    };
    let Some(config) = image.config().oci.config() else { return beside };
    ImageDefaults {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        command: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        workdir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
        ..beside
    }
}
