//! The engine: what opens the state, makes containers, and finds them again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use estiba_image::{self as image, Layout, OciArchive, Platform, Source};
use estiba_network::{Driver, PortMapping};
use estiba_runtime::{External, Native, Runtime};
use estiba_shim::Runtimes;
use estiba_storage::{Durability as Layers, Overlay, OverlayOptions, Snapshotter};
use oci_spec::image::Descriptor;
use oci_spec::runtime::Mount;

use crate::config::{Config, Parts, SnapshotterKind};
use crate::container::Container;
use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::identity::{ContainerName, Id};
use crate::images::Image;
use crate::journal::Journal;
use crate::networks;
use crate::record::{Origin, Record, Stage, Summary};
use crate::records::Records;
use crate::repair::{self, Watch};
use crate::request::{CreateRequest, Dns, Healthcheck, Namespace, NetworkMode};
use crate::running::Running;
use crate::spec::ImageDefaults;
use crate::start::{self, Starter};
use crate::streams::Streams;
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
    pub(crate) journal: Journal,
    pub(crate) leases: PathBuf,
    runtimes: Runtimes,
    pub(crate) drivers: BTreeMap<String, Arc<dyn Driver>>,
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
                runtimes: Runtimes::default(),
                drivers: BTreeMap::new(),
            };
            Self::compose(config, parts)
        })
        .await?
        .watched()
        .await
    }

    /// Opens the state in `config.root` with the embedder's own parts; `config.snapshotter` is not looked at.
    pub async fn with_parts(config: Config, parts: Parts) -> Result<Self> {
        blocking(move || {
            prepare_root(&config.root)?;
            Self::compose(config, parts)
        })
        .await?
        .watched()
        .await
    }

    fn compose(mut config: Config, parts: Parts) -> Result<(Self, Watch)> {
        folder::make(&config.run)?;
        // The shim and its container have another working directory than the caller.
        for path in [&mut config.root, &mut config.run] {
            *path = fs::canonicalize(&*path).map_err(Error::io("find", path.clone()))?;
        }
        let records = Records::open(&config.root, &config.run)?;
        let journal = Journal::new(&config.root);
        let leases = config.root.join("leases").join(&parts.snapshotter_name);
        folder::make(&leases)?;
        let mut drivers = networks::drivers(&config);
        drivers.extend(parts.drivers);
        let inner = Inner {
            config,
            content: parts.content,
            snapshotter: parts.snapshotter,
            snapshotter_name: parts.snapshotter_name,
            records,
            journal,
            leases,
            runtimes: parts.runtimes,
            drivers,
        };
        let watch = repair::run(&inner)?;
        Ok((Self { inner: Arc::new(inner) }, watch))
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
            // Nobody takes it for rubbish before it has its name.
            let lease = inner.content.lease().map_err(failed)?;
            let manifest = image::copy(&archive, &root, &Platform::host(), &lease).map_err(failed)?;
            if inner.content.resolve(&name).map_err(failed)?.as_ref().map(Descriptor::digest) != Some(manifest.digest())
            {
                inner.content.tag(&name, &manifest).map_err(failed)?;
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
                let Made { mut record, lock: _lock, .. } = inner.make(request)?;
                record.stage = Stage::Created;
                inner.records.write(&record)?;
                inner.records.unmark(&record.id)?;
                inner.tell(&[record.event("create")]);
                Ok(record.id)
            })
            .await?;
        Ok(Container::new(self.clone(), id))
    }

    /// Makes a container and starts it in one go, connected to the caller by all of its streams: if this process dies before the
    /// container was started, nothing of it stays.
    pub async fn run(&self, request: CreateRequest) -> Result<Running> {
        self.run_with(request, Streams::ALL).await
    }

    /// The same, connected to the caller by the streams that it wants.
    pub async fn run_with(&self, request: CreateRequest, streams: Streams) -> Result<Running> {
        let engine = self.clone();
        start::on_thread(self, move |inner, waited| {
            let made = inner.make(request)?;
            inner.tell(&[made.record.event("create")]);
            start::start(&engine, made, streams, Starter::User, &waited)
        })
        .await
    }

    /// The container of that name, id, or beginning of an id.
    pub async fn container(&self, name: &str) -> Result<Container> {
        let name = name.to_owned();
        let id = self.blocking(move |inner| inner.records.find(&name)).await?;
        Ok(Container::new(self.clone(), id))
    }

    /// All containers, the newest first. One whose record cannot be read is passed over, with a warning.
    pub async fn containers(&self) -> Result<Vec<Summary>> {
        self.blocking(|inner| {
            let mut summaries = Vec::new();
            for id in inner.records.ids()? {
                match inner.records.read(&id) {
                    Ok(Some(record)) => summaries.push(inner.summary(record)?),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a container cannot be listed");
                    }
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
        let watch = self
            .blocking(move |inner| {
                let lock = match FolderLock::wait(&inner.records.folder(&id)) {
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Watch::No),
                    lock => lock?,
                };
                repair::settle(inner, &id, &lock)
            })
            .await?;
        if watch == Watch::Needed { self.ensure_monitor().await } else { Ok(()) }
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

/// An engine that was opened, and whether containers that it has found want a monitor.
trait Opened {
    /// Starts the monitor if it is wanted.
    async fn watched(self) -> Result<Engine>;
}

impl Opened for (Engine, Watch) {
    async fn watched(self) -> Result<Engine> {
        let (engine, watch) = self;
        if watch == Watch::Needed {
            engine.ensure_monitor().await?;
        }
        Ok(engine)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    /// Work that nobody waits for any more and that has not begun does not begin: it could come long after.
    struct Unwanted(tokio::task::AbortHandle);

    impl Drop for Unwanted {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    let task = tokio::task::spawn_blocking(work);
    let _unwanted = Unwanted(task.abort_handle());
    match task.await {
        Ok(result) => result,
        Err(panic) => Err(Error::Panicked { source: Box::new(panic) }),
    }
}

/// A container that is to be started, and its lock.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) record: Record,
    pub(crate) lock: FolderLock,
    pub(crate) fresh: Option<Fresh>,
}

/// What is known of a container that was made just now, and has to be found again later.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) defaults: ImageDefaults,
    /// Its root.
    pub(crate) mounts: Vec<Mount>,
}

impl Inner {
    /// Writes a new container's record, takes its name and prepares its snapshot. On failure nothing is left.
    fn make(&self, request: CreateRequest) -> Result<Made> {
        self.try_make(request).map_err(|error| error.without_id().explained())
    }

    fn try_make(&self, request: CreateRequest) -> Result<Made> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        check(&request)?;
        let name = request.name.as_deref().map(str::parse::<ContainerName>).transpose()?;
        // Until the record names the image, this does.
        let lease = self.content.lease().map_err(|source| Error::Content { source: Box::new(source) })?;
        lease
            .hold(&request.image.manifest)
            .map_err(|source| Error::Image { image: request.image.name.clone(), source: Box::new(source) })?;
        // Nor are its layers anybody's rubbish meanwhile.
        let _layers = FolderLock::shared(&self.leases)?;
        let unpacked = unpack::ensure(&request.image, &self.room())?;
        // What a container that stays writes could not be had again: so what it stands on must last as it does.
        if !request.auto_remove
            && let Some(top) = &unpacked.top
        {
            self.snapshotter.sync(top).map_err(|source| Error::Snapshot {
                operation: "sync",
                snapshot: top.to_string(),
                source: Box::new(source),
            })?;
        }
        let command = crate::spec::arguments(&request, &unpacked.defaults)?;
        crate::spec::resources(&request.limits)?;
        if self.config.cgroup_parent.is_empty() {
            crate::spec::refuse_limits(&request.limits)?;
        }
        let id = Id::random()?;
        let name = name.unwrap_or_else(|| ContainerName::from_id(&id));
        let defaults = &unpacked.defaults;
        let origin = Origin {
            snapshotter: &self.snapshotter_name,
            cgroup_parent: &self.config.cgroup_parent,
            image_id: defaults.id.clone(),
            command,
            stop_signal: request.stop_signal.unwrap_or_else(|| stop_signal(defaults)),
            stop_timeout: request.stop_timeout.or(defaults.stop_timeout).unwrap_or(10),
            health: healthcheck(&request, defaults)?,
            volumes: crate::volumes::wanted(&request, defaults)?,
        };
        let mut request = request;
        if request.publish_all {
            publish_exposed(&mut request, defaults)?;
        }
        self.plan_connections(&mut request)?;
        self.name_donors(&mut request)?;
        for (key, value) in &defaults.labels {
            request.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let record = Record::new(id, name, origin, request)?;
        let lock = self.records.insert(&record)?;
        let made = record.id.snapshot_key().and_then(|key| {
            self.snapshotter.prepare(&key, unpacked.top.as_ref()).map_err(|source| Error::Snapshot {
                operation: "prepare",
                snapshot: key.to_string(),
                source: Box::new(source),
            })
        });
        match made.and_then(|mounts| self.make_volumes(&record, &mounts).map(|()| mounts)) {
            Ok(mounts) => Ok(Made { record, lock, fresh: Some(Fresh { defaults: unpacked.defaults, mounts }) }),
            Err(error) => {
                repair::demolish(self, &record)?;
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

    /// What unpacking needs.
    pub(crate) fn room(&self) -> unpack::Room {
        let (content, snapshotter) = (Arc::clone(&self.content), Arc::clone(&self.snapshotter));
        unpack::Room { content, snapshotter, leases: self.leases.clone() }
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

    pub(crate) fn snapshotter_name(&self) -> &str {
        &self.snapshotter_name
    }

    /// The runtime that has made a container.
    pub(crate) fn runtime_of(&self, record: &Record) -> Box<dyn Runtime> {
        let state = self.records.bundle(&record.id).join("runtime");
        match &record.request.runtime {
            None => Box::new(Native::new(state)),
            Some(program) => match program.to_str().and_then(|name| self.runtimes.make(name, state.clone())) {
                Some(registered) => registered,
                None => Box::new(External::new(program.clone(), state)),
            },
        }
    }
}

/// The ports that the image says it serves, at free ports of the host, where nothing else is said.
fn publish_exposed(request: &mut CreateRequest, image: &ImageDefaults) -> Result<()> {
    for exposed in &image.exposed {
        let mapping: PortMapping = exposed.parse().map_err(|_| Error::Request {
            field: "the image's port",
            value: exposed.clone(),
            reason: "it is not PORT[/tcp|udp|sctp]",
        })?;
        let same = |other: &PortMapping| {
            other.protocol == mapping.protocol
                && (other.container_port..=other.container_port.saturating_add(other.count - 1))
                    .contains(&mapping.container_port)
        };
        if !request.ports.iter().any(same) {
            request.ports.push(mapping);
        }
    }
    Ok(())
}

/// What contradicts itself.
fn check(request: &CreateRequest) -> Result<()> {
    if request.auto_remove && request.restart != crate::request::RestartPolicy::No {
        let value = request.restart.name().to_owned();
        let reason = "it cannot be combined with the removal of the container at its end (--rm)";
        return Err(Error::Request { field: "the restart policy", value, reason });
    }
    conflicts(request)?;
    for tmpfs in &request.tmpfs {
        if !tmpfs.destination.starts_with('/') || tmpfs.destination.trim_matches('/').is_empty() {
            let reason = "it must be an absolute path other than /";
            return Err(Error::Request { field: "the place of a tmpfs", value: tmpfs.destination.clone(), reason });
        }
    }
    Ok(())
}

/// What cannot be had of a namespace that is somebody else's.
fn conflicts(request: &CreateRequest) -> Result<()> {
    let refused = |field, value: &str, reason| Err(Error::Request { field, value: value.to_owned(), reason });
    for (field, namespace) in
        [("the namespace of host names", &request.uts), ("the namespace of cgroups", &request.cgroup_namespace)]
    {
        if let Namespace::Container(name) = namespace {
            return refused(field, name, "only the host's can be shared");
        }
    }
    for (field, name) in [("the host name", &request.hostname), ("the domain name", &request.domainname)] {
        let Some(name) = name else { continue };
        if request.uts == Namespace::Host {
            return refused(field, name, "the container has the host's (--uts host)");
        }
        if matches!(request.network, NetworkMode::Container(_)) && field == "the host name" {
            return refused(field, name, "it is that of the container whose network this one is in");
        }
    }
    if matches!(request.network, NetworkMode::Container(_)) {
        let reason = "it is a matter of the container whose network this one is in";
        if let Some(host) = request.extra_hosts.first() {
            return refused("the host", &host.name, reason);
        }
        if request.dns != Dns::default() {
            return refused("the configuration of", "/etc/resolv.conf", reason);
        }
    }
    Ok(())
}

/// The image's stop signal; SIGTERM if it has none or says nonsense.
fn stop_signal(defaults: &ImageDefaults) -> i32 {
    let text = defaults.stop_signal.as_deref().unwrap_or_default().trim();
    crate::signal::parse(text).unwrap_or(nix::libc::SIGTERM)
}

/// How the container is checked: what the request does not say is the image's.
fn healthcheck(request: &CreateRequest, defaults: &ImageDefaults) -> Result<Option<Healthcheck>> {
    let asked = request.health.clone().unwrap_or_default();
    let image = defaults.health.as_ref();
    let duration = |nanos: i64| u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
    let test =
        if asked.test.is_empty() { image.map(|check| check.test.clone()).unwrap_or_default() } else { asked.test };
    let refused = |reason| Error::Request { field: "the health check", value: test.join(" "), reason };
    match test.first().map(String::as_str) {
        None | Some("NONE") => return Ok(None),
        Some("CMD") if test.len() > 1 => {}
        Some("CMD-SHELL") if test.len() == 2 => {}
        Some("CMD" | "CMD-SHELL") => return Err(refused("it names no command")),
        Some(_) => return Err(refused("it must begin with NONE, CMD or CMD-SHELL")),
    }
    Ok(Some(Healthcheck {
        interval: asked.interval.or_else(|| image.and_then(|check| duration(check.interval))),
        timeout: asked.timeout.or_else(|| image.and_then(|check| duration(check.timeout))),
        start_period: asked.start_period.or_else(|| image.and_then(|check| duration(check.start_period))),
        start_interval: asked.start_interval.or_else(|| image.and_then(|check| duration(check.start_interval))),
        retries: asked
            .retries
            .or_else(|| image.and_then(|check| u32::try_from(check.retries).ok().filter(|retries| *retries > 0))),
        test,
    }))
}

fn open_snapshotter(root: &Path, kind: SnapshotterKind) -> Result<Arc<dyn Snapshotter>> {
    let path = root.join("snapshots").join(kind.name());
    folder::make(&path)?;
    let failed =
        |source| Error::Snapshot { operation: "open", snapshot: path.display().to_string(), source: Box::new(source) };
    Ok(match kind {
        SnapshotterKind::Overlay => {
            let options = OverlayOptions { durability: Layers::Boot, ..OverlayOptions::default() };
            Arc::new(Overlay::with_options(&path, options).map_err(failed)?)
        }
        SnapshotterKind::Native => {
            Arc::new(estiba_storage::Native::with_durability(&path, Layers::Boot).map_err(failed)?)
        }
    })
}

/// Makes the root, or checks that what is there is of this version.
fn prepare_root(root: &Path) -> Result<()> {
    let path = root.join("version");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim() == VERSION.to_string() => Ok(()),
        Ok(text) if text.trim().is_empty() => Err(Error::NoVersion { path, known: VERSION }),
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
