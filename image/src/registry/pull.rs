//! Pull: a name becomes an index and a manifest, and what they lead to is fetched into the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};

use super::document::{self, Documents};
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::progress::{BlobState, Event, Progress, Taps};
use super::{Registry, blob};
use crate::layout::{Claim, Part};
use crate::provider::MAX_DOCUMENT;
use crate::{ContentStore, Error, Image, Lease, Platform, Reference, Result, media};

/// How many documents are fetched for one image.
const MAX_DOCUMENTS: usize = 96;

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its full name.
    pub name: String,
    /// What the name stands for: an index or a manifest. It is in the store, whole for the platform that was pulled.
    pub root: Descriptor,
    /// The manifest of the platform; the root itself if that is one.
    pub manifest: Descriptor,
}

impl Registry {
    /// Fetches an image for a platform into the store of the lease, verified. Nothing is named: [`Layout::tag`](crate::Layout::tag) with the root
    /// does that, while the lease is held.
    ///
    /// What is there is not fetched. Documents go into the store after all that they lead to: where a manifest is, its layers are. Of the
    /// places that `registries.conf` and `hosts.toml` name, each is asked until one delivers.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`], with the [`RegistryProblem`](crate::RegistryProblem) as its source; [`Error::DigestMismatch`] and
    /// [`Error::SizeMismatch`] for a registry that lies; what [`Image::load`] says of images that cannot be used here.
    pub async fn pull(
        &self,
        reference: &Reference,
        lease: &Lease,
        platform: &Platform,
        progress: &Progress,
    ) -> Result<Pulled> {
        self.pull_with(reference, lease, platform, progress, None).await
    }

    /// [`pull`](Self::pull), with layers handed out while they come.
    pub async fn pull_with(
        &self,
        reference: &Reference,
        lease: &Lease,
        platform: &Platform,
        progress: &Progress,
        taps: Option<Arc<dyn Taps>>,
    ) -> Result<Pulled> {
        let what = format!("pull {reference}");
        let endpoints = self.endpoints(reference).map_err(|problem| Error::registry(&what, problem))?;
        let endpoints: Arc<[Endpoint]> = endpoints.into();
        let documents = Arc::new(Documents::new(lease, reference.registry()));
        let root = self.resolve(reference, &endpoints, &documents, lease, &what).await?;
        let image = Arc::new(self.image(&root, &endpoints, &documents, platform, &what).await?);
        progress.tell(|| Event::Resolved { root: Box::new(root.clone()), image: Arc::clone(&image) });
        if let Some(taps) = &taps {
            taps.image(&image);
        }
        self.layers(&image, &endpoints, lease, progress, taps).await?;
        put(lease, &documents, &image, &root).await?;
        Ok(Pulled { name: reference.to_string(), root, manifest: bare(image.descriptor()) })
    }

    /// What the name stands for, in the documents or the store.
    async fn resolve(
        &self,
        reference: &Reference,
        endpoints: &[Endpoint],
        documents: &Documents,
        lease: &Lease,
        what: &str,
    ) -> Result<Descriptor> {
        let digest = reference.digest();
        let name = digest.as_ref().map(ToString::to_string);
        let name = name.as_deref().or(reference.tag()).unwrap_or("latest");
        if let Some(digest) = &digest {
            crate::digest::path_parts(digest)?;
        }
        // What the name stood for the last time, if it is still there: then asking for the digest may do.
        let known = known(lease, reference).await?;
        let mut failed = Failed::default();
        for endpoint in endpoints {
            // A digest cannot be resolved wrongly, so any place will do for that.
            if !endpoint.abilities.pull || (digest.is_none() && !endpoint.abilities.resolve) {
                continue;
            }
            if let Some(known) = &known {
                if digest.as_ref() == Some(known.digest()) {
                    return Ok(known.clone());
                }
                if digest.is_none()
                    && let Ok(Some(now)) = document::head(self.transport(), endpoint, name).await
                    && now == *known.digest()
                {
                    return Ok(known.clone());
                }
            }
            match document::manifest(self.transport(), endpoint, name, None).await {
                Ok((root, raw)) => {
                    documents.insert(&root, raw)?;
                    return Ok(root);
                }
                Err(problem) => failed.add(problem),
            }
        }
        Err(Error::registry(what, failed.problem()))
    }

    /// The platform's image: what is missing of the documents is fetched as it is found to be missing.
    async fn image(
        &self,
        root: &Descriptor,
        endpoints: &[Endpoint],
        documents: &Arc<Documents>,
        platform: &Platform,
        what: &str,
    ) -> Result<Image> {
        for _ in 0..MAX_DOCUMENTS {
            let (root, platform, from) = (root.clone(), platform.clone(), Arc::clone(documents));
            let loaded = joined(spawn_blocking(move || Image::load(&*from, &root, &platform)).await)?;
            let missing = match loaded {
                Err(Error::BlobMissing { .. }) => documents.take_missing(),
                other => return other,
            };
            let Some(missing) = missing else { break };
            if missing.size() > MAX_DOCUMENT {
                let what = format!("document {}", missing.digest());
                return Err(Error::TooLarge { what, size: missing.size(), limit: MAX_DOCUMENT });
            }
            let raw = self.document(endpoints, &missing).await.map_err(|problem| Error::registry(what, problem))?;
            documents.insert(&missing, raw)?;
        }
        Err(Error::TooDeep { digest: root.digest().clone() })
    }

    async fn document(&self, endpoints: &[Endpoint], wanted: &Descriptor) -> Result<Vec<u8>, Problem> {
        let mut failed = Failed::default();
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.abilities.pull) {
            let fetched = if media::is_index(wanted.media_type()) || media::is_manifest(wanted.media_type()) {
                let name = wanted.digest().to_string();
                document::manifest(self.transport(), endpoint, &name, Some(wanted)).await.map(|(_, raw)| raw)
            } else {
                document::small_blob(self.transport(), endpoint, wanted).await
            };
            match fetched {
                Ok(raw) => return Ok(raw),
                Err(problem) => failed.add(problem),
            }
        }
        Err(failed.problem())
    }

    async fn layers(
        &self,
        image: &Image,
        endpoints: &Arc<[Endpoint]>,
        lease: &Lease,
        progress: &Progress,
        taps: Option<Arc<dyn Taps>>,
    ) -> Result<()> {
        let parallel = self.settings().parallel.max(1);
        let permits = Arc::new(Semaphore::new(parallel));
        let (mut tasks, mut seen) = (JoinSet::new(), HashSet::new());
        for layer in image.layers() {
            progress.blob(layer.descriptor.digest(), BlobState::Waiting);
        }
        // The lowest first: who unpacks needs it first.
        for layer in image.layers() {
            // One image may have a layer more than once.
            if !seen.insert(layer.descriptor.digest().clone()) {
                continue;
            }
            while tasks.len() >= parallel
                && let Some(ended) = tasks.join_next().await
            {
                joined(ended)??;
            }
            let (registry, endpoints, lease, progress, taps, permits, layer) = (
                self.clone(),
                Arc::clone(endpoints),
                lease.clone(),
                progress.clone(),
                taps.clone(),
                Arc::clone(&permits),
                layer.descriptor.clone(),
            );
            tasks.spawn(async move {
                // Closed never: only this function has it.
                let _permit = permits.acquire().await.ok();
                let fetch = Fetch { registry: &registry, layer: &layer, lease: &lease, progress: &progress };
                fetch.layer(&endpoints, taps.as_deref(), &permits).await
            });
        }
        // The first failure drops the set, and with it whatever is still on its way.
        while let Some(ended) = tasks.join_next().await {
            joined(ended)??;
        }
        Ok(())
    }
}

/// A layer that is wanted.
struct Fetch<'a> {
    registry: &'a Registry,
    layer: &'a Descriptor,
    lease: &'a Lease,
    progress: &'a Progress,
}

impl Fetch<'_> {
    async fn layer(&self, endpoints: &[Endpoint], taps: Option<&dyn Taps>, permits: &Arc<Semaphore>) -> Result<()> {
        let done = |state| {
            if let Some(taps) = taps {
                taps.stored(self.layer);
            }
            self.progress.blob(self.layer.digest(), state);
            Ok(())
        };
        let Some(mut part) = self.claim().await? else { return done(BlobState::Exists) };
        let mut last = None;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.abilities.pull) {
            match blob::fetch(self.registry, endpoint, self.layer, part, taps, self.progress, permits).await {
                Ok(()) => return done(BlobState::Done),
                // Another place may have it whole; what is wrong here stays so.
                Err(error @ (Error::Registry { .. } | Error::SizeMismatch { .. } | Error::DigestMismatch { .. })) => {
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
            match self.claim().await? {
                Some(again) => part = again,
                // Somebody else has fetched it meanwhile.
                None => return done(BlobState::Done),
            }
        }
        let missing =
            || Error::BlobMissing { location: "the registry".to_owned(), digest: self.layer.digest().clone() };
        Err(last.unwrap_or_else(missing))
    }

    /// The right to fetch the layer; `None` if it is in the store. While another process fetches it, that is waited for.
    async fn claim(&self) -> Result<Option<Box<Part>>> {
        const PAUSE: Duration = Duration::from_millis(100);
        loop {
            let (lease, layer) = (self.lease.clone(), self.layer.clone());
            let claim = spawn_blocking(move || {
                if lease.contains(&layer)? {
                    return Ok(None);
                }
                let claim = lease.claim(&layer)?;
                // Who had it until now may have finished it.
                if lease.contains(&layer)? { Ok(None) } else { Ok(Some(claim)) }
            });
            match joined(claim.await)?? {
                None => return Ok(None),
                Some(Claim::Ours(part)) => return Ok(Some(part)),
                Some(Claim::Taken) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

/// What the name stands for in the store, and is there.
async fn known(lease: &Lease, reference: &Reference) -> Result<Option<Descriptor>> {
    let (lease, name) = (lease.clone(), reference.to_string());
    joined(
        spawn_blocking(move || match lease.layout().resolve(&name)? {
            Some(root) if lease.contains(&root)? => Ok(Some(bare(&root))),
            _ => Ok(None),
        })
        .await,
    )?
}

/// Puts the documents into the store, what is named before what names it.
async fn put(lease: &Lease, documents: &Arc<Documents>, image: &Arc<Image>, root: &Descriptor) -> Result<()> {
    let (lease, documents, image, root) = (lease.clone(), Arc::clone(documents), Arc::clone(image), root.clone());
    joined(
        spawn_blocking(move || {
            let config = image.manifest().config().digest();
            let manifest = image.descriptor().digest();
            let first = [config, manifest];
            // Manifests of other platforms were looked into, perhaps; without their layers they must not be there.
            let indexes = documents.indexes();
            let others = indexes.iter().filter(|digest| !first.contains(digest) && *digest != root.digest());
            let order: Vec<&Digest> = first.into_iter().chain(others).chain([root.digest()]).collect();
            for digest in order {
                // Those that are not held are in the store.
                let Some(raw) = documents.get(digest) else { continue };
                let mut ingest = lease.ingest()?;
                ingest.write_all(&raw).map_err(|error| Error::io("write to", lease.layout().path(), error))?;
                let described = Descriptor::new(root.media_type().clone(), raw.len() as u64, digest.clone());
                ingest.commit(&described)?;
            }
            Ok(())
        })
        .await,
    )?
}

/// The descriptor without what an index says beside.
fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}

pub(super) fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Result<T> {
    // Nothing here is cancelled without its waiter; so this is a panic, in a tap or a listener for instance.
    ended.map_err(|error| Error::io("run", "a task of the registry's client", std::io::Error::other(error.to_string())))
}

/// What the places that were asked have said.
#[derive(Default)]
struct Failed {
    tried: usize,
    last: Option<Problem>,
}

impl Failed {
    fn add(&mut self, problem: Problem) {
        self.tried += 1;
        self.last = Some(problem);
    }

    fn problem(self) -> Problem {
        match self.last {
            Some(last) if self.tried == 1 => last,
            Some(last) => Problem::Exhausted { tried: self.tried, source: Box::new(last) },
            None => Problem::Configuration {
                path: "hosts.toml".to_owned(),
                reason: "no host in it may be pulled from".to_owned(),
            },
        }
    }
}
