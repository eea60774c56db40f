//! The images of a root, and what is kept of them: names, layers, snapshots, and their removal.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use estiba_image::{DockerArchive, Export, Loaded, Platform, Reference, Stored};
use estiba_storage::{Name, SnapshotId};
use oci_spec::image::Descriptor;

use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::folder::FolderLock;
use crate::images::Image;
use crate::journal::{Event, Kind};
use crate::record::Record;

/// The most that [`Engine::load_stream`] takes.
const MAX_STREAM: u64 = 64 << 30;

/// How long a removal waits for those who unpack layers.
const UNPACKS: Duration = Duration::from_secs(2);

/// What [`Engine::remove_image`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that were taken away.
    pub untagged: Vec<String>,
    /// Ids of images that are gone: digests of their configurations.
    pub deleted: Vec<String>,
    /// Bytes of blobs that are gone.
    pub bytes: u64,
}

/// Whether an image may be removed though something speaks against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// It may have several names, or a container that does not run.
    Yes,
    /// It is refused.
    No,
}

/// What a root takes on disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// Of images: each with its size and the part that it shares, in bytes, and how many containers are made from it.
    pub images: Vec<ImageDiskUsage>,
    /// All blobs of images, in bytes.
    pub layers: u64,
    /// Of the changes of containers: each with the bytes of its own.
    pub containers: Vec<(Record, crate::record::Status, u64)>,
}

/// What an image takes on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDiskUsage {
    /// Its index or manifest.
    pub root: Descriptor,
    /// Bytes of its blobs.
    pub size: u64,
    /// The part of it that other images have, too.
    pub shared: u64,
    /// Containers made from it.
    pub containers: usize,
}

impl Engine {
    /// All images, with all their names and platforms.
    pub async fn stored_images(&self) -> Result<Vec<Stored>> {
        self.blocking(|inner| inner.content.stored().map_err(content)).await
    }

    /// The image that a person means by a name, an id, or the beginning of one.
    pub async fn image(&self, text: &str) -> Result<Image> {
        let text = text.to_owned();
        self.blocking(move |inner| {
            let failed = |source| Error::Image { image: text.clone(), source: Box::new(source) };
            let found = inner.content.find(&text).map_err(failed)?;
            let image = estiba_image::Image::load(&*inner.content, &found.root, &Platform::host()).map_err(failed)?;
            Ok(Image { name: found.name.unwrap_or_else(|| text.clone()), manifest: image.descriptor().clone() })
        })
        .await
    }

    /// An image with all that its manifest and configuration say.
    pub async fn inspect_image(&self, text: &str) -> Result<(Stored, estiba_image::Image)> {
        let text = text.to_owned();
        self.blocking(move |inner| {
            let failed = |source| Error::Image { image: text.clone(), source: Box::new(source) };
            let found = inner.content.find(&text).map_err(failed)?;
            let image = estiba_image::Image::load(&*inner.content, &found.root, &Platform::host()).map_err(failed)?;
            let all = inner.content.stored().map_err(content)?;
            let stored = all.into_iter().find(|stored| stored.root.digest() == found.root.digest());
            let stored = stored.ok_or_else(|| Error::NoImage { image: text.clone() })?;
            Ok((stored, image))
        })
        .await
    }

    /// Gives an image one more name (`docker tag`); who had that name loses it.
    pub async fn tag(&self, text: &str, name: &Reference) -> Result<()> {
        let (text, name) = (text.to_owned(), name.to_string());
        self.blocking(move |inner| {
            let failed = |source| Error::Image { image: text.clone(), source: Box::new(source) };
            let found = inner.content.find(&text).map_err(failed)?;
            inner.content.tag(&name, &found.root).map_err(failed)?;
            inner.tell_image("tag", &name);
            Ok(())
        })
        .await
    }

    /// Takes in all images of an archive that `docker save` or an OCI tool wrote.
    pub async fn load(&self, path: PathBuf) -> Result<Vec<Loaded>> {
        self.blocking(move |inner| {
            let image = path.display().to_string();
            let loaded = inner.content.load(&path, &Platform::host());
            Ok(inner.loaded(loaded.map_err(|source| Error::Image { image, source: Box::new(source) })?))
        })
        .await
    }

    /// The same from a stream, such as standard input.
    pub async fn load_stream(&self, input: impl Read + Send + 'static) -> Result<Vec<Loaded>> {
        self.blocking(move |inner| {
            let loaded = inner.content.load_stream(input, MAX_STREAM, &Platform::host());
            let failed = |source| Error::Image { image: "the archive".to_owned(), source: Box::new(source) };
            Ok(inner.loaded(loaded.map_err(failed)?))
        })
        .await
    }

    /// Writes images as `docker save` does. A name is saved as such; an image that is meant by its id has none there.
    pub async fn save(&self, images: Vec<String>, out: impl Write + Send + 'static) -> Result<()> {
        self.blocking(move |inner| {
            let mut exports: Vec<Export> = Vec::new();
            for text in &images {
                let failed = |source| Error::Image { image: text.clone(), source: Box::new(source) };
                let found = inner.content.find(text).map_err(failed)?;
                let name = found.name.as_deref().and_then(reference);
                match exports.iter_mut().find(|export| export.root.digest() == found.root.digest()) {
                    Some(export) => export.names.extend(name),
                    None => exports.push(Export { root: found.root, names: name.into_iter().collect() }),
                }
                inner.tell_image("save", text);
            }
            DockerArchive::write(&*inner.content, &exports, &Platform::host(), out).map_err(content)
        })
        .await
    }

    /// Takes a name away from an image, and the image itself with its last one. By an id, all names go.
    ///
    /// # Errors
    ///
    /// [`Error::ImageInUse`] if a container is made from it (one that runs: in any case), or an id stands for several names; with
    /// [`Force::Yes`] only if a container runs.
    pub async fn remove_image(&self, text: &str, force: Force) -> Result<Removed> {
        let text = text.to_owned();
        self.blocking(move |inner| inner.remove_image(&text, force)).await
    }

    /// Removes images without a name, or all that no container is made from, and what of layers and blobs is in nobody's use.
    pub async fn prune_images(&self, all: bool) -> Result<Removed> {
        self.blocking(move |inner| {
            let mut removed = Removed::default();
            let used = inner.images_in_use()?;
            for stored in inner.content.stored().map_err(content)? {
                let in_use = stored.platforms.iter().any(|one| used.contains_key(&one.manifest.digest().to_string()));
                if in_use || !(all || stored.names.is_empty()) {
                    continue;
                }
                inner.content.forget(stored.root.digest()).map_err(content)?;
                removed.untagged.extend(stored.names.clone());
                removed.deleted.extend(stored.platforms.iter().map(|one| one.id.to_string()));
            }
            removed.bytes = inner.collect()?;
            Ok(removed)
        })
        .await
    }

    /// What the root takes on disk. Reads the changes of every container.
    pub async fn disk_usage(&self) -> Result<DiskUsage> {
        self.blocking(|inner| {
            let used = inner.images_in_use()?;
            let roots: Vec<Descriptor> = used.values().map(|(manifest, _)| manifest.clone()).collect();
            let usage = inner.content.usage(&roots).map_err(content)?;
            let stored = inner.content.stored().map_err(content)?;
            let containers_of = |root: &Descriptor| -> usize {
                let stored = stored.iter().find(|stored| stored.root.digest() == root.digest());
                let platforms = stored.map(|stored| stored.platforms.as_slice()).unwrap_or_default();
                let counts = platforms.iter().filter_map(|one| used.get(&one.manifest.digest().to_string()));
                counts.map(|(_, count)| count).sum()
            };
            let images = usage.images.iter().map(|image| ImageDiskUsage {
                root: image.root.clone(),
                size: image.size,
                shared: image.shared,
                containers: containers_of(&image.root),
            });
            let images = images.collect();
            let mut containers = Vec::new();
            for id in inner.records.ids()? {
                let Ok(Some(record)) = inner.records.read(&id) else { continue };
                let status = inner.records.status(&record)?;
                let size = inner.own_size(&record).unwrap_or(0);
                containers.push((record, status, size));
            }
            Ok(DiskUsage { images, layers: usage.bytes, containers })
        })
        .await
    }

    /// Removes every container that does not run; returns their ids and the bytes that were theirs.
    pub async fn prune_containers(&self, mut wanted: impl FnMut(&Record) -> bool) -> Result<(Vec<crate::Id>, u64)> {
        let (mut ids, mut bytes) = (Vec::new(), 0);
        for summary in self.containers().await? {
            if summary.status.is_running() || summary.record.restarting || !wanted(&summary.record) {
                continue;
            }
            let record = summary.record.clone();
            let size = self.blocking(move |inner| Ok(inner.own_size(&record).unwrap_or(0))).await?;
            let container = self.container(summary.record.id.as_str()).await;
            match container {
                Ok(container) => match container.remove(crate::Kill::No).await {
                    Ok(()) => {
                        ids.push(summary.record.id);
                        bytes += size;
                    }
                    // Somebody has started or removed it meanwhile.
                    Err(Error::StillRunning { .. } | Error::NoContainer { .. }) => {}
                    Err(error) => return Err(error),
                },
                Err(Error::NoContainer { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((ids, bytes))
    }
}

/// A name of the store as the reference that it is, if it is one.
fn reference(name: &str) -> Option<Reference> {
    name.parse::<Reference>().ok().filter(|reference| reference.to_string() == name)
}

fn content(source: estiba_image::Error) -> Error {
    Error::Content { source: Box::new(source) }
}

impl Inner {
    fn loaded(&self, loaded: Vec<Loaded>) -> Vec<Loaded> {
        for image in &loaded {
            self.tell_image("load", image.names.first().map_or(image.id.as_ref(), |name| name.as_str()));
        }
        loaded
    }

    pub(crate) fn tell_image(&self, action: &str, name: &str) {
        self.tell(&[Event::new(Kind::Image, action, name).with("name", name)]);
    }

    /// The manifests that containers are made from, and how many by each. A record that cannot be read is an error: it holds an
    /// image that nobody knows.
    fn images_in_use(&self) -> Result<BTreeMap<String, (Descriptor, usize)>> {
        let mut used: BTreeMap<String, (Descriptor, usize)> = BTreeMap::new();
        for id in self.records.ids()? {
            if let Some(record) = self.records.read(&id)? {
                let manifest = record.request.image.manifest;
                used.entry(manifest.digest().to_string()).or_insert((manifest, 0)).1 += 1;
            }
        }
        Ok(used)
    }

    /// The bytes of a container's own changes.
    pub(crate) fn own_size(&self, record: &Record) -> Result<u64> {
        let key = record.id.snapshot_key()?;
        let failed =
            |source| Error::Snapshot { operation: "measure", snapshot: key.to_string(), source: Box::new(source) };
        let usage = self.snapshotter_of(record)?.usage(&SnapshotId::Key(key.clone()));
        usage.map(|usage| usage.bytes).map_err(failed)
    }

    fn remove_image(&self, text: &str, force: Force) -> Result<Removed> {
        let failed = |source| Error::Image { image: text.to_owned(), source: Box::new(source) };
        let found = self.content.find(text).map_err(failed)?;
        let stored = self.content.stored().map_err(content)?;
        let stored = stored.into_iter().find(|stored| stored.root.digest() == found.root.digest());
        let stored = stored.ok_or_else(|| Error::NoImage { image: text.to_owned() })?;
        let in_use = |reason: String| Error::ImageInUse { image: text.to_owned(), reason };
        let mut removed = Removed::default();
        if let Some(name) = &found.name
            && stored.names.len() > 1
        {
            self.content.untag(name).map_err(failed)?;
            self.tell_image("untag", name);
            removed.untagged.push(name.clone());
            return Ok(removed);
        }
        if found.name.is_none() && stored.names.len() > 1 && force == Force::No {
            return Err(in_use("it has several names; remove them one by one, or force the removal".to_owned()));
        }
        for id in self.records.ids()? {
            let Ok(Some(record)) = self.records.read(&id) else { continue };
            let manifest = record.request.image.manifest.digest().clone();
            if !stored.platforms.iter().any(|one| *one.manifest.digest() == manifest) {
                continue;
            }
            let short = id.short();
            if self.records.status(&record)?.is_running() {
                return Err(in_use(format!("container {short} runs on it; stop and remove that first")));
            }
            if force == Force::No {
                return Err(in_use(format!(
                    "container {short} is made from it; remove that first, or force the removal"
                )));
            }
        }
        self.content.forget(stored.root.digest()).map_err(failed)?;
        for name in &stored.names {
            self.tell_image("untag", name);
        }
        removed.untagged.extend(stored.names);
        removed.bytes = self.collect()?;
        removed.deleted.extend(stored.platforms.iter().map(|one| one.id.to_string()));
        for id in &removed.deleted {
            self.tell_image("delete", id);
        }
        Ok(removed)
    }

    /// Removes blobs that no name and no container leads to, and the snapshots of layers that no image has. Returns the bytes of
    /// the blobs.
    pub(crate) fn collect(&self) -> Result<u64> {
        // Exclusive against unpacks: a layer that is new is not yet anybody's. A pull may take long: then the next removal does it.
        let alone = FolderLock::wait_for(&self.leases, UNPACKS)?;
        let used = self.images_in_use()?;
        let mut roots: Vec<Descriptor> = used.values().map(|(manifest, _)| manifest.clone()).collect();
        let collected = self.content.collect(&roots).map_err(content)?;
        for stored in self.content.stored().map_err(content)? {
            roots.extend(stored.platforms.into_iter().map(|one| one.manifest));
        }
        if alone.is_none() {
            return Ok(collected.bytes);
        }
        let mut chains = HashSet::new();
        for root in &roots {
            match estiba_image::Image::load(&*self.content, root, &Platform::host()) {
                Ok(image) => chains.extend(image.chain_ids().iter().map(ToString::to_string)),
                // What it stands on is not known: nothing is removed.
                Err(_) => return Ok(collected.bytes),
            }
        }
        self.remove_snapshots(|name| !chains.contains(&name.to_string()))?;
        Ok(collected.bytes)
    }

    /// Removes committed snapshots, those first that nothing stands on.
    fn remove_snapshots(&self, unwanted: impl Fn(&Name) -> bool) -> Result<()> {
        let failed =
            |source| Error::Snapshot { operation: "list", snapshot: "all".to_owned(), source: Box::new(source) };
        loop {
            let mut names = Vec::new();
            let walked = self.snapshotter.walk(&mut |info| {
                if let SnapshotId::Name(name) = &info.id
                    && unwanted(name)
                {
                    names.push(name.clone());
                }
                ControlFlow::Continue(())
            });
            walked.map_err(failed)?;
            let mut progress = false;
            for name in names {
                match self.snapshotter.remove(&SnapshotId::Name(name.clone())) {
                    Ok(()) => progress = true,
                    Err(estiba_storage::Error::InUse { .. } | estiba_storage::Error::NotFound { .. }) => {}
                    Err(source) => {
                        let snapshot = name.to_string();
                        return Err(Error::Snapshot { operation: "remove", snapshot, source: Box::new(source) });
                    }
                }
            }
            if !progress {
                return Ok(());
            }
        }
    }
}
