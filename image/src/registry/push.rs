//! Push: an image of the store goes to a registry, what is named before what names it.

use std::collections::HashSet;
use std::sync::Arc;

use hyper::Method;
use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use super::auth::scope;
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::progress::{BlobState, Progress};
use super::pull::joined;
use super::transport::{Content, Request};
use super::upload::Upload;
use super::{Registry, referrers};
use crate::manifest::{Kind, parse};
use crate::provider::MAX_DOCUMENT;
use crate::{Error, Image, Layout, Platform, Reference, Result, media, read_blob};

/// How many documents one push may have.
const MAX_DOCUMENTS: usize = 1024;
/// The most that they may be together, in bytes.
const MAX_HELD: usize = 64 << 20;

/// What is pushed, and how.
#[derive(Clone, Debug, Default)]
pub struct Push {
    /// Of an index, this platform's manifest alone; `None` pushes all that the index names, which must all be there.
    pub platform: Option<Platform>,
    /// Repositories of the same registry that may have some of the blobs: then they are mounted and not uploaded.
    pub mounts: Vec<Reference>,
}

/// A manifest or index, and what it needs to be there first.
struct Document {
    descriptor: Descriptor,
    raw: Vec<u8>,
    subject: Option<Descriptor>,
}

/// What is to be sent: blobs in any order, then documents in theirs.
#[derive(Default)]
struct Cargo {
    blobs: Vec<Descriptor>,
    documents: Vec<Document>,
    seen: HashSet<Digest>,
    held: usize,
}

impl Registry {
    /// Sends the image that `root` (an index or a manifest in `from`) is to a registry, and gives it the reference's tag there. Returns what
    /// the name stands for then.
    ///
    /// Blobs that the registry has are not sent. Artifacts are pushed like images. With a manifest that has a subject, the list of
    /// referrers is kept in the fallback tag where the registry has no such API.
    ///
    /// # Errors
    ///
    /// [`Error::BlobMissing`] if not all of an index is there: set [`Push::platform`]. [`Error::Registry`] for what the registry says.
    pub async fn push(
        &self,
        from: &Layout,
        root: &Descriptor,
        to: &Reference,
        options: &Push,
        progress: &Progress,
    ) -> Result<Descriptor> {
        let what = format!("push {to}");
        let endpoint = Arc::new(self.home(to).map_err(|problem| Error::registry(&what, problem))?);
        let (layout, root, platform) = (from.clone(), root.clone(), options.platform.clone());
        let (top, cargo) = joined(spawn_blocking(move || collect(&layout, &root, platform.as_ref())).await)??;
        let mounts: Vec<String> = options
            .mounts
            .iter()
            .filter(|other| other.registry() == to.registry())
            .map(|other| other.repository().to_owned())
            .collect();
        self.upload(&endpoint, from, cargo.blobs, mounts.into(), progress).await?;
        for document in &cargo.documents {
            let is_top = document.descriptor.digest() == top.digest();
            let name = document.descriptor.digest().to_string();
            let name = to.tag().filter(|_| is_top).unwrap_or(&name);
            let sent = self.put(&endpoint, document, name).await;
            sent.map_err(|problem| Error::registry(&what, problem))?;
        }
        Ok(top)
    }

    async fn upload(
        &self,
        endpoint: &Arc<Endpoint>,
        from: &Layout,
        blobs: Vec<Descriptor>,
        mounts: Arc<[String]>,
        progress: &Progress,
    ) -> Result<()> {
        let permits = Arc::new(Semaphore::new(self.settings().parallel.max(1)));
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        for descriptor in blobs {
            progress.blob(descriptor.digest(), BlobState::Waiting);
            let (registry, endpoint, from, mounts, progress, permits) = (
                self.clone(),
                Arc::clone(endpoint),
                from.clone(),
                Arc::clone(&mounts),
                progress.clone(),
                Arc::clone(&permits),
            );
            tasks.spawn(async move {
                let _permit = permits.acquire().await.ok();
                let upload = Upload {
                    transport: registry.transport(),
                    endpoint: &endpoint,
                    from: &from,
                    descriptor: &descriptor,
                    mounts: &mounts,
                    chunk: registry.settings().chunk,
                    progress: &progress,
                };
                upload.run().await
            });
        }
        while let Some(ended) = tasks.join_next().await {
            joined(ended)??;
        }
        Ok(())
    }

    async fn put(&self, endpoint: &Endpoint, document: &Document, name: &str) -> Result<(), Problem> {
        let origin = self.transport().origin(endpoint).await?;
        let mut request = Request::new(Method::PUT, endpoint.url(&origin, &format!("manifests/{name}")));
        request.header("content-type", document.descriptor.media_type().as_ref());
        request.content = Content::Bytes(document.raw.clone().into());
        let scopes = [scope(&endpoint.repository, "pull,push")];
        let mut answer = self.transport().call(endpoint, &scopes, request).await?;
        self.transport().read(&mut answer, 64 << 10).await?;
        let digest = document.descriptor.digest();
        if let Some(theirs) = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok())
            && theirs.algorithm() == digest.algorithm()
            && theirs != *digest
        {
            let reason = format!("it took the manifest {digest} for {theirs}");
            return Err(Problem::answer(&endpoint.registry, reason));
        }
        match &document.subject {
            // With this header the registry says that it keeps the list itself.
            Some(subject) if answer.header("oci-subject").is_none() => {
                referrers::add_to_tag(self.transport(), endpoint, subject, &document.descriptor, &document.raw).await
            }
            _ => Ok(()),
        }
    }
}

fn collect(layout: &Layout, root: &Descriptor, platform: Option<&Platform>) -> Result<(Descriptor, Cargo)> {
    let top = match platform {
        Some(platform) if media::is_index(root.media_type()) => {
            let found = Image::load(layout, root, platform)?;
            let descriptor = found.descriptor();
            Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
        }
        _ => root.clone(),
    };
    let mut cargo = Cargo::default();
    cargo.add(layout, &top, 0)?;
    Ok((top, cargo))
}

impl Cargo {
    fn add(&mut self, layout: &Layout, descriptor: &Descriptor, depth: usize) -> Result<()> {
        if !self.seen.insert(descriptor.digest().clone()) {
            return Ok(());
        }
        let is_index = media::is_index(descriptor.media_type());
        if !is_index && !media::is_manifest(descriptor.media_type()) {
            let (digest, media_type) = (descriptor.digest().clone(), descriptor.media_type().clone());
            return Err(Error::UnsupportedMediaType { what: "manifest", digest, media_type });
        }
        if depth > 4 || self.documents.len() >= MAX_DOCUMENTS {
            return Err(Error::TooDeep { digest: descriptor.digest().clone() });
        }
        let raw = read_blob(layout, descriptor, MAX_DOCUMENT)?;
        self.held += raw.len();
        if self.held > MAX_HELD {
            let what = format!("what describes {}", descriptor.digest());
            return Err(Error::TooLarge { what, size: self.held as u64, limit: MAX_HELD as u64 });
        }
        let subject = if is_index {
            let index: ImageIndex = parse(&raw, Kind::Index, descriptor)?;
            for entry in index.manifests() {
                self.add(layout, entry, depth + 1)?;
            }
            index.subject().clone()
        } else {
            let manifest: ImageManifest = parse(&raw, Kind::Manifest, descriptor)?;
            for blob in std::iter::once(manifest.config()).chain(manifest.layers()) {
                // What lies elsewhere stays there.
                let elsewhere = blob.urls().as_ref().is_some_and(|urls| !urls.is_empty());
                if !elsewhere && self.seen.insert(blob.digest().clone()) {
                    self.blobs.push(blob.clone());
                }
            }
            manifest.subject().clone()
        };
        self.documents.push(Document { descriptor: descriptor.clone(), raw, subject });
        Ok(())
    }
}
