//! What a container has changed in its root file system, and images that are made of it.

use std::io::Read;

use estiba_image::media::Compression;
use estiba_image::{Change, Commit, Layer, LayerWriter, Platform, Reference, Settings, import_layer};
use estiba_storage::layer::{self, MountPoints};

use crate::container::Container;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::files::files;
use crate::folder::FolderLock;
use crate::images::Image;
use crate::record::Status;

/// What an image is made with, beside the files (`docker commit`).
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// Its name; without one it is known by its id alone.
    pub name: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// What they say about it.
    pub message: Option<String>,
    /// What is to be another than with the container.
    pub changes: Vec<Change>,
    /// The container goes on while its files are read, which may then be of several moments.
    pub running: bool,
}

/// Where something is mounted in every container: what stands for it in the root file system was not made by the container. Where it
/// has a volume, a folder is in the image that is made of it, as with Docker.
const MADE: MountPoints<'_> = MountPoints(&["dev", "proc", "sys", "etc/hostname", "etc/hosts", "etc/resolv.conf"]);

impl Container {
    /// What it has changed, in the order of the paths, in Docker's meaning.
    pub async fn changes(&self) -> Result<Vec<layer::Change>> {
        self.with(|inner, id| {
            let record = inner.record(id)?;
            let snapshotter = inner.snapshotter_of(&record)?;
            layer::changes_without(MADE, &*snapshotter, &id.snapshot_key()?, &layer::Limits::default())
                .map_err(files(id, "list the changes of"))
        })
        .await
    }

    /// Makes an image of what it has changed, over its own image. One that runs is paused meanwhile, unless the request says
    /// otherwise; if the future is dropped or the process ends, the next [`Engine::open`] lets it go on.
    pub async fn commit(&self, request: CommitRequest) -> Result<Image> {
        let mark = if request.running { None } else { self.pause_for_commit().await? };
        let committed = self.commit_now(request).await;
        if let Some(mark) = mark {
            match self.unpause().await {
                Ok(()) | Err(Error::NotRunning { .. } | Error::NotPaused { .. } | Error::NoContainer { .. }) => {}
                Err(error) => return Err(error),
            }
            self.with(|inner, id| inner.records.end_commit(id, mark)).await?;
        }
        committed
    }

    /// Pauses it if it runs, and if nobody else has. Before that it is said what for: else nobody would let it go on when this
    /// process is killed.
    async fn pause_for_commit(&self) -> Result<Option<FolderLock>> {
        let mark = self
            .with(|inner, id| {
                let (_lock, record) = inner.lock(id)?;
                match inner.records.status(&record)? {
                    Status::Running => inner.records.begin_commit(id),
                    _ => Ok(None),
                }
            })
            .await?;
        let Some(mark) = mark else { return Ok(None) };
        match self.pause().await {
            Ok(()) => Ok(Some(mark)),
            Err(error) => {
                self.with(|inner, id| inner.records.end_commit(id, mark)).await?;
                if matches!(error, Error::NotRunning { .. } | Error::Paused { .. }) { Ok(None) } else { Err(error) }
            }
        }
    }

    async fn commit_now(&self, request: CommitRequest) -> Result<Image> {
        self.with(move |inner, id| {
            let record = inner.record(id)?;
            let image = &record.request.image;
            let failed = |source| Error::Image { image: image.name.clone(), source: Box::new(source) };
            let lease = inner.content.lease().map_err(failed)?;
            lease.hold(&image.manifest).map_err(failed)?;
            let parent =
                estiba_image::Image::load(&*inner.content, &image.manifest, &Platform::host()).map_err(failed)?;
            let mut writer = LayerWriter::begin(&lease, Compression::Gzip).map_err(failed)?;
            let snapshotter = inner.snapshotter_of(&record)?;
            layer::diff_without(MADE, &*snapshotter, &id.snapshot_key()?, &mut writer, &layer::Limits::default())
                .map_err(files(id, "read the changes of"))?;
            let layer = writer.finish().map_err(failed)?;
            let asked = &record.request;
            // What the container was run with is what the image says from now on.
            let settings = Settings {
                entrypoint: asked.entrypoint.clone(),
                cmd: (!asked.command.is_empty() || asked.entrypoint.is_some()).then(|| asked.command.clone()),
                env: (!asked.env.is_empty()).then(|| crate::spec::configured(&asked.env, parent.config().env())),
                working_dir: asked.workdir.clone(),
                user: asked.user.clone(),
                labels: Some(asked.labels.clone()),
                ..Settings::default()
            };
            let commit = Commit {
                parent: Some(&parent),
                layer: Some(&layer),
                settings,
                changes: request.changes,
                author: request.author,
                message: request.message,
                created_by: Some(record.command.join(" ")),
                ..Commit::default()
            };
            let made = commit.write(&lease, request.name.as_ref()).map_err(failed)?;
            let id = made.id.to_string();
            inner.tell(&[record.event("commit").with("imageID", id.as_str())]);
            let name = request.name.map_or(id, |name| name.to_string());
            Ok(Image { name, manifest: made.manifest })
        })
        .await
    }
}

impl Engine {
    /// Makes an image of one layer from a tar archive of a root file system, plain or gzip (`docker import`).
    pub async fn import_tree(&self, input: impl Read + Send + 'static, request: CommitRequest) -> Result<Image> {
        self.blocking(move |inner| {
            let image = request.name.as_ref().map_or_else(|| "the archive".to_owned(), ToString::to_string);
            let failed = |source| Error::Image { image: image.clone(), source: Box::new(source) };
            let lease = inner.content.lease().map_err(failed)?;
            let layer: Layer = import_layer(input, &lease).map_err(failed)?;
            let commit = Commit {
                layer: Some(&layer),
                changes: request.changes,
                author: request.author,
                message: request.message,
                ..Commit::default()
            };
            let made = commit.write(&lease, request.name.as_ref()).map_err(failed)?;
            let name = request.name.map_or_else(|| made.id.to_string(), |name| name.to_string());
            inner.tell_image("import", &name);
            Ok(Image { name, manifest: made.manifest })
        })
        .await
    }
}
