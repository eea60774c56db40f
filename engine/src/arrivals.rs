//! Layers on their way from a registry to snapshots.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use estiba_image::{Follower, Image};
use oci_spec::image::{Descriptor, Digest};

use crate::error::{Error, Result};
use crate::folder::FolderLock;
use crate::unpack::{self, Done, Room, Source, Sources};

/// The layers of an image that is being pulled, as they come.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    state: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Arrived {
    image: Option<Arc<Image>>,
    layers: HashMap<Digest, Source>,
    over: bool,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pull has ended: no more comes.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits for the image that is pulled; `None` if the pull has ended before it was known.
    pub(crate) fn image(&self) -> Option<Arc<Image>> {
        let mut state = self.lock();
        loop {
            match &state.image {
                Some(image) => return Some(Arc::clone(image)),
                None if state.over => return None,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn put(&self, layer: &Descriptor, source: Source) {
        self.lock().layers.insert(layer.digest().clone(), source);
        self.changed.notify_all();
    }
}

impl Sources for Arrivals {
    /// The bytes of a layer on their way can be had once; after that it is waited for in the store.
    fn take(&self, layer: &Descriptor, done: &Done) -> Result<Source> {
        let mut state = self.lock();
        loop {
            if matches!(state.layers.get(layer.digest()), Some(Source::Stored)) {
                return Ok(Source::Stored);
            }
            if let Some(coming) = state.layers.remove(layer.digest()) {
                return Ok(coming);
            }
            // Somebody else says what is wrong.
            if state.over || done.has_failed() {
                return Err(Error::GivenUp);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        // With the lock: nobody is between his look and his wait.
        drop(self.lock());
        self.changed.notify_all();
    }
}

impl estiba_image::Taps for Arrivals {
    fn image(&self, image: &Arc<Image>) {
        self.lock().image = Some(Arc::clone(image));
        self.changed.notify_all();
    }

    fn coming(&self, layer: &Descriptor, blob: Follower) {
        self.put(layer, Source::Coming(blob));
    }

    fn stored(&self, layer: &Descriptor) {
        self.put(layer, Source::Stored);
    }
}

/// Unpacks the image that a pull brings, while it comes. What it has made stays until the lock is given up.
pub(crate) fn while_it_comes(name: &str, arrivals: &Arrivals, room: &Room) -> Result<FolderLock> {
    let lock = FolderLock::shared(&room.leases)?;
    let Some(image) = arrivals.image() else { return Ok(lock) };
    unpack::layers(name, &image, &unpack::chain(name, &image)?, room, arrivals)?;
    Ok(lock)
}
