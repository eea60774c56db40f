//! Images from registries and to them.

use std::sync::Arc;

use estiba_image::{Lease, Platform, Progress, Pulled, Push, Reference, Registry, Taps};
use oci_spec::image::Descriptor;

use crate::arrivals::{self, Arrivals};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::folder::FolderLock;
use crate::images::Image;

impl Engine {
    /// Fetches an image for this machine's platform from a registry, and gives it the reference's name. What is there is not fetched.
    ///
    /// As root, its layers become snapshots while they come: each is received, hashed, stored, inflated, hashed and applied at once.
    ///
    /// Needs a tokio runtime with I/O and time.
    pub async fn pull(&self, registry: &Registry, reference: &Reference, progress: &Progress) -> Result<Image> {
        let failed = |source| Error::Image { image: reference.familiar(), source: Box::new(source) };
        // What comes in is held until it has its name.
        let lease = self.blocking(|inner| inner.content.lease().map_err(content)).await?;
        if !nix::unistd::geteuid().is_root() {
            let platform = Platform::host();
            let pulled = Box::pin(registry.pull(reference, &lease, &platform, progress)).await.map_err(failed)?;
            return self.name_pulled(pulled, (lease, None)).await;
        }
        let arrivals = Arc::new(Arrivals::default());
        // Whatever becomes of this future, the threads below end.
        let _end = End(Arc::clone(&arrivals));
        let unpacking = {
            let (arrivals, name) = (Arc::clone(&arrivals), reference.familiar());
            self.blocking(move |inner| arrivals::while_it_comes(&name, &arrivals, &inner.room()))
        };
        let platform = Platform::host();
        let (pulled, unpacked) = {
            let taps: Arc<dyn Taps> = arrivals.clone();
            let mut pulling = Box::pin(registry.pull_with(reference, &lease, &platform, progress, Some(taps)));
            tokio::pin!(unpacking);
            tokio::select! {
                pulled = &mut pulling => {
                    arrivals.end();
                    // Nothing is half done when an error is told.
                    (pulled.map_err(failed), unpacking.await)
                }
                unpacked = &mut unpacking => match unpacked {
                    // A layer that cannot be unpacked: the rest is not worth fetching.
                    Err(error) => return Err(error),
                    Ok(lock) => (pulling.await.map_err(failed), Ok(lock)),
                },
            }
        };
        self.name_pulled(pulled?, (lease, Some(unpacked?))).await
    }

    /// Gives a pulled image its name. What it consists of is held until then.
    async fn name_pulled(&self, pulled: Pulled, held: (Lease, Option<FolderLock>)) -> Result<Image> {
        self.blocking(move |inner| {
            inner.content.tag(&pulled.name, &pulled.root).map_err(content)?;
            inner.tell_image("pull", &pulled.name);
            drop(held);
            Ok(Image { name: pulled.name, manifest: pulled.manifest })
        })
        .await
    }

    /// Sends the image that has this name to the registry in its name. Returns what the name stands for there.
    ///
    /// Of an image for several platforms, that of this machine is sent if not all are there.
    pub async fn push(&self, registry: &Registry, reference: &Reference, progress: &Progress) -> Result<Descriptor> {
        let failed = |source| Error::Image { image: reference.familiar(), source: Box::new(source) };
        let name = reference.to_string();
        let root = self.blocking(move |inner| Ok(inner.content.find(&name).map_err(content)?.root)).await.map_err(
            |error| match error {
                Error::Content { source } => Error::Image { image: reference.familiar(), source },
                error => error,
            },
        )?;
        let from = &self.inner.content;
        let sent = match registry.push(from, &root, reference, &Push::default(), progress).await {
            Err(estiba_image::Error::BlobMissing { .. }) => {
                let options = Push { platform: Some(Platform::host()), ..Push::default() };
                registry.push(from, &root, reference, &options, progress).await.map_err(failed)?
            }
            sent => sent.map_err(failed)?,
        };
        let name = reference.to_string();
        self.blocking(move |inner| {
            inner.tell_image("push", &name);
            Ok(sent)
        })
        .await
    }
}

/// Ends a pull's arrivals when it is dropped.
struct End(Arc<Arrivals>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn content(source: estiba_image::Error) -> Error {
    Error::Content { source: Box::new(source) }
}
