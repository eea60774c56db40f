//! Images from registries and to them.

use estiba_image::{Platform, Progress, Push, Reference, Registry};
use oci_spec::image::Descriptor;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::images::Image;

impl Engine {
    /// Fetches an image for this machine's platform from a registry, and gives it the reference's name. What is there is not fetched.
    ///
    /// Needs a tokio runtime with I/O and time.
    pub async fn pull(&self, registry: &Registry, reference: &Reference, progress: &Progress) -> Result<Image> {
        let failed = |source| Error::Image { image: reference.familiar(), source: Box::new(source) };
        // What comes in is held until it has its name.
        let lease = self.blocking(|inner| inner.content.lease().map_err(content)).await?;
        let pulled = registry.pull(reference, &lease, &Platform::host(), progress).await.map_err(failed)?;
        self.blocking(move |inner| {
            inner.content.tag(&pulled.name, &pulled.root).map_err(content)?;
            inner.tell_image("pull", &pulled.name);
            drop(lease);
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

fn content(source: estiba_image::Error) -> Error {
    Error::Content { source: Box::new(source) }
}
