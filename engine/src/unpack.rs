//! Unpack: an image's layers become committed snapshots, named by their chain ids. Here image and storage meet.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use estiba_image::{ContentStore, Follower, Layout, Platform, Provider, Verified};
use estiba_runtime::rootless::{self, Ids};
use estiba_storage::archive::Owner;
use estiba_storage::layer::{self, Compression, Limits, Target};
use estiba_storage::{Key, Name, SnapshotId, Snapshotter};
use oci_spec::image::Descriptor;

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

/// How many layers are unpacked at once, at most. Each has two threads and some megabytes of memory; those that come wait for their
/// bytes, and those that are done for the layer below them.
const AT_ONCE: usize = 8;

/// What unpacking needs of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    pub(crate) content: Arc<Layout>,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    /// The folder of leases.
    pub(crate) leases: PathBuf,
}

/// Makes sure that every layer of the image is a committed snapshot. Cheap if they are.
pub(crate) fn ensure(image: &Image, room: &Room) -> Result<Unpacked> {
    let loaded = load(image, &room.content)?;
    let chain = chain(&image.name, &loaded)?;
    layers(&image.name, &loaded, &chain, room, &Stored)?;
    Ok(Unpacked { top: chain.last().cloned(), defaults: defaults(&loaded) })
}

/// The names of the snapshots of an image's layers, the lowest first.
pub(crate) fn chain(name: &str, image: &estiba_image::Image) -> Result<Vec<Name>> {
    let ids = image.chain_ids();
    let names = ids.iter().map(|id| id.to_string().parse());
    names.collect::<std::result::Result<_, estiba_storage::Error>>().map_err(|source| Error::Snapshot {
        operation: "name",
        snapshot: name.to_owned(),
        source: Box::new(source),
    })
}

/// Where the bytes of layers are.
pub(crate) trait Sources: Sync {
    /// Where this layer is; waits for it.
    fn take(&self, layer: &Descriptor, done: &Done) -> Result<Source>;

    /// Lets those who wait look at `done` again.
    fn wake(&self);
}

/// All in the content store.
#[derive(Debug)]
struct Stored;

impl Sources for Stored {
    fn take(&self, _: &Descriptor, _: &Done) -> Result<Source> {
        Ok(Source::Stored)
    }

    fn wake(&self) {}
}

/// Unpacks the layers that are no snapshots yet, side by side where the snapshotter can.
pub(crate) fn layers(
    name: &str,
    image: &estiba_image::Image,
    chain: &[Name],
    room: &Room,
    sources: &dyn Sources,
) -> Result<()> {
    // The top stands on all others: if it is there, they are.
    if chain.last().is_none_or(|top| exists(&*room.snapshotter, top)) {
        return Ok(());
    }
    let there = chain.iter().take_while(|name| exists(&*room.snapshotter, name)).count();
    let missing = chain.len() - there;
    let work = Work {
        image: name,
        room,
        sources,
        layers: chain.iter().zip(image.layers()).collect(),
        done: Arc::new(Done { state: Mutex::new(Progress { done: there, failed: None }), changed: Condvar::new() }),
        next: AtomicUsize::new(there),
    };
    thread::scope(|scope| {
        // This thread is the first worker.
        for number in 1..missing.min(AT_ONCE) {
            let begun = thread::Builder::new().name(format!("unpack-{number}")).spawn_scoped(scope, || work.some());
            if begun.is_err() {
                // Fewer do it, too.
                break;
            }
        }
        work.some();
    });
    let mut state = work.done.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.failed.take().map_or(Ok(()), Err)
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

/// How far an image is unpacked.
#[derive(Debug)]
pub(crate) struct Done {
    state: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug)]
struct Progress {
    /// So many layers, from below, are committed snapshots.
    done: usize,
    /// What went wrong first. Then nothing is begun any more.
    failed: Option<Error>,
}

impl Done {
    /// Waits until the layers below this one are snapshots. False if that will not be.
    fn wait_below(&self, position: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.done < position && state.failed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.is_none()
    }

    /// Whether something has gone wrong.
    #[cfg(feature = "registry")]
    pub(crate) fn has_failed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed.is_some()
    }

    fn is_below_done(&self, position: usize) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done >= position
    }

    /// Notes that a layer is a snapshot now; those below it are.
    fn add(&self, position: usize) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done = position + 1;
        self.changed.notify_all();
    }

    fn fail(&self, error: Error) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed.get_or_insert(error);
        self.changed.notify_all();
    }
}

struct Work<'a> {
    image: &'a str,
    room: &'a Room,
    sources: &'a dyn Sources,
    /// The snapshot's name and the layer.
    layers: Vec<(&'a Name, &'a estiba_image::Layer)>,
    done: Arc<Done>,
    /// The layer that is begun next: always the lowest, so that nobody waits for one that nobody does.
    next: AtomicUsize,
}

/// How filling a snapshot ended.
enum Filled {
    Whole,
    /// The bytes were given up by whoever fetches them; they come again.
    Void,
}

impl Work<'_> {
    /// Unpacks layers until there are none left.
    fn some(&self) {
        loop {
            let position = self.next.fetch_add(1, Ordering::Relaxed);
            if position >= self.layers.len() {
                return;
            }
            match self.layer(position) {
                Ok(()) => self.done.add(position),
                Err(error) => {
                    self.done.fail(error);
                    self.sources.wake();
                    return;
                }
            }
        }
    }

    fn layer(&self, position: usize) -> Result<()> {
        let (name, layer) = self.layers[position];
        loop {
            let source = self.sources.take(&layer.descriptor, &self.done)?;
            if matches!(self.unpack(position, name, layer, source)?, Filled::Whole) {
                return Ok(());
            }
        }
    }

    fn unpack(&self, position: usize, name: &Name, layer: &estiba_image::Layer, source: Source) -> Result<Filled> {
        let snapshotter = &self.room.snapshotter;
        let lease = Lease::new(&self.room.leases)?;
        let filled = self.prepare(position, &lease.key).and_then(|target| self.fill(&target, layer, source));
        let made = filled.and_then(|filled| {
            if matches!(filled, Filled::Void) {
                return Ok((filled, false));
            }
            match snapshotter.commit(name, &lease.key) {
                Ok(()) => Ok((filled, true)),
                // Somebody else was quicker: theirs is as good.
                Err(estiba_storage::Error::AlreadyExists { .. }) => Ok((filled, false)),
                Err(source) => Err(snapshot("commit", &lease.key)(source)),
            }
        });
        if !matches!(made, Ok((_, true))) {
            remove(&**snapshotter, &lease.key)?;
        }
        lease.end()?;
        made.map(|(filled, _)| filled)
    }

    /// Makes the snapshot that a layer goes to. What lies below it may still be on its way, if the snapshotter can do that.
    fn prepare(&self, position: usize, key: &Key) -> Result<Target> {
        let snapshotter = &self.room.snapshotter;
        let parent = position.checked_sub(1).map(|below| self.layers[below].0);
        if let Some(parent) = parent
            && !self.done.is_below_done(position)
        {
            if let Some(late) = snapshotter.late_parent() {
                let mounts = late.prepare_late(key).map_err(snapshot("prepare", key))?;
                let (done, snapshotter) = (Arc::clone(&self.done), Arc::clone(snapshotter));
                let (key, parent) = (key.clone(), parent.clone());
                let settled = move || {
                    let unknown = || estiba_storage::Error::ParentUnknown { id: SnapshotId::Key(key.clone()) };
                    if !done.wait_below(position) {
                        return Err(unknown());
                    }
                    snapshotter.late_parent().ok_or_else(unknown)?.set_parent(&key, &parent)
                };
                return Target::late(&mounts, settled).map_err(|source| self.unpack_error(position, source));
            }
            if !self.done.wait_below(position) {
                let id = SnapshotId::Key(key.clone());
                return Err(snapshot("prepare", key)(estiba_storage::Error::ParentUnknown { id }));
            }
        }
        let mounts = snapshotter.prepare(key, parent).map_err(snapshot("prepare", key))?;
        Target::from_mounts(&mounts).map_err(|source| self.unpack_error(position, source))
    }

    fn unpack_error(&self, position: usize, source: estiba_storage::Error) -> Error {
        let layer = self.layers[position].1.descriptor.digest().to_string();
        Error::Unpack { image: self.image.to_owned(), layer, source: Box::new(source) }
    }

    fn fill(&self, target: &Target, layer: &estiba_image::Layer, source: Source) -> Result<Filled> {
        let descriptor = &layer.descriptor;
        match source {
            Source::Stored => {
                let blob = self
                    .room
                    .content
                    .open(descriptor)
                    .map_err(|source| Error::Image { image: self.image.to_owned(), source: Box::new(source) })?;
                // The content store has verified the blob when it took it in; what is unpacked is held against the diff id.
                match self.apply(blob.take(descriptor.size()), target, layer) {
                    Ok(()) => Ok(Filled::Whole),
                    Err(error) => Err(self.blame(descriptor, error)),
                }
            }
            Source::Coming(mut blob) => match self.apply(&mut blob, target, layer) {
                Ok(()) => Ok(Filled::Whole),
                Err(_) if blob.is_void() => Ok(Filled::Void),
                Err(error) => Err(error),
            },
        }
    }

    fn apply(&self, blob: impl Read, target: &Target, layer: &estiba_image::Layer) -> Result<()> {
        let (image, digest) = (self.image.to_owned(), layer.descriptor.digest().to_string());
        let compression = Compression::from_media_type(layer.descriptor.media_type().as_ref()).unwrap_or_default();
        let owner = match rootless::ids() {
            // There is nobody else who could own a file.
            Ids::Single => Owner::Given { uid: 0, gid: 0 },
            Ids::Host | Ids::Mapped => Owner::Archived,
        };
        let applied = match layer::apply_as(blob, compression, target, &Limits::default(), owner) {
            Ok(applied) => applied,
            Err(source) => return Err(Error::Unpack { image, layer: digest, source: Box::new(source) }),
        };
        let (found, expected): (_, &str) = (applied.diff_id(), layer.diff_id.as_ref());
        if found != expected {
            return Err(Error::DiffId { image, layer: digest, found, expected: expected.to_owned() });
        }
        Ok(())
    }

    /// What really was wrong, if a layer could not be unpacked: a blob that was damaged after the content store had taken
    /// it in is removed, so that the next import brings it again. An import alone only looks at the size.
    fn blame(&self, descriptor: &Descriptor, error: Error) -> Error {
        let content = &self.room.content;
        let location = content.path().display().to_string();
        let verified = content.open(descriptor).and_then(|blob| Verified::new(blob, descriptor, &location));
        let Ok(mut verified) = verified else { return error };
        let Err(source) = io::copy(&mut verified, &mut io::sink()) else { return error };
        // Nothing but other content says that the blob is damaged; a disk that cannot be read now may be readable later.
        if source.raw_os_error().is_some() {
            return error;
        }
        let layer = descriptor.digest().to_string();
        match content.remove(descriptor.digest()) {
            Ok(()) => Error::DamagedBlob { image: self.image.to_owned(), layer, source },
            Err(source) => Error::Content { source: Box::new(source) },
        }
    }
}

fn snapshot(operation: &'static str, key: &Key) -> impl FnOnce(estiba_storage::Error) -> Error + use<> {
    let snapshot = key.to_string();
    move |source| Error::Snapshot { operation, snapshot, source: Box::new(source) }
}

/// Where a layer's bytes are.
#[derive(Debug)]
#[cfg_attr(not(feature = "registry"), expect(dead_code, reason = "only what is pulled is on its way"))]
pub(crate) enum Source {
    /// In the content store.
    Stored,
    /// On their way.
    Coming(Follower),
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
