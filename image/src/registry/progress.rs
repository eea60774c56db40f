//! What is told while an image moves.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{Descriptor, Digest};

use crate::Image;
use crate::layout::Follower;

/// Something that happened to an image on its way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A pull knows what it pulls: manifest and config are here and verified, and the layers are known.
    Resolved {
        /// What the name stands for: an index or a manifest.
        root: Box<Descriptor>,
        /// The image of the platform that was asked for.
        image: Arc<Image>,
    },
    /// A layer (or, in a push, any blob) is at this point.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its point.
        state: BlobState,
    },
}

/// The point where a blob on its way is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlobState {
    /// Others are moving.
    Waiting,
    /// It is there already.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It moves. Told at most ten times a second, and at the end.
    Moving {
        /// Bytes that have moved.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Something failed, and is tried again.
    Retrying {
        /// What failed, on one line.
        reason: String,
    },
    /// All bytes moved; they are checked and put away.
    Verifying,
    /// It is there.
    Done,
}

/// Whom events are told. They come from several threads and must not be held up.
#[derive(Clone)]
pub struct Progress(Option<Arc<dyn Fn(Event) + Send + Sync>>);

impl Progress {
    /// Nobody.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Whoever is called with each event.
    pub fn to(tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(super) fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(tell) = &self.0 {
            tell(event());
        }
    }

    pub(super) fn blob(&self, digest: &Digest, state: BlobState) {
        self.tell(|| Event::Blob { digest: digest.clone(), state });
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// Who wants an image's layers while they come, to unpack them. The calls come from several threads and must not be held up.
pub trait Taps: Send + Sync {
    /// The image that is pulled. Comes first.
    fn image(&self, image: &Arc<Image>);

    /// The layer comes from now on. Called again for the same layer if it must be fetched anew: what was read of it so far is
    /// void then.
    fn coming(&self, layer: &Descriptor, blob: Follower);

    /// The layer is in the store.
    fn stored(&self, layer: &Descriptor);
}

/// Tells how far a blob is, not too often.
pub(super) struct Meter {
    progress: Progress,
    digest: Digest,
    total: u64,
    told: Option<std::time::Instant>,
}

impl Meter {
    pub(super) fn new(progress: &Progress, descriptor: &Descriptor) -> Self {
        Self { progress: progress.clone(), digest: descriptor.digest().clone(), total: descriptor.size(), told: None }
    }

    pub(super) fn at(&mut self, done: u64) {
        const PAUSE: Duration = Duration::from_millis(100);
        if done < self.total && self.told.is_some_and(|told| told.elapsed() < PAUSE) {
            return;
        }
        self.told = Some(std::time::Instant::now());
        self.progress.blob(&self.digest, BlobState::Moving { done, total: self.total });
    }
}
