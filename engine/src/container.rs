//! A handle on a container that exists.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::record::{Record, Status};
use crate::repair;
use crate::running::{self, Running};

/// A container by its id. The handle holds nothing: the container may change or go at any time.
#[derive(Debug, Clone)]
pub struct Container {
    engine: Engine,
    id: Id,
}

impl Container {
    pub(crate) fn new(engine: Engine, id: Id) -> Self {
        Self { engine, id }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// What is known of it for as long as it exists.
    pub async fn record(&self) -> Result<Record> {
        let id = self.id.clone();
        self.engine
            .blocking(move |inner| inner.records.read(&id)?.ok_or_else(|| Error::NoContainer { name: id.to_string() }))
            .await
    }

    /// What it is doing now.
    pub async fn status(&self) -> Result<Status> {
        let id = self.id.clone();
        self.engine.blocking(move |inner| inner.status(&id)).await
    }

    /// Starts it, connected to the caller.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`] if it runs.
    pub async fn start(&self) -> Result<Running> {
        let id = self.id.clone();
        let (lock, record) = self
            .engine
            .blocking(move |inner| {
                let (lock, record) = inner.lock(&id)?;
                if inner.records.has_shim(&id)? {
                    return Err(Error::StillRunning { id });
                }
                Ok((lock, record))
            })
            .await?;
        running::start(self.engine.clone(), record, lock).await
    }

    /// Removes it with all that is its own. With `kill`, one that runs is killed first.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`] if it runs and `kill` is [`Kill::No`].
    pub async fn remove(&self, kill: Kill) -> Result<()> {
        let id = self.id.clone();
        self.engine
            .blocking(move |inner| {
                if kill == Kill::Yes {
                    repair::end(inner, &id)?;
                }
                let (_lock, record) = inner.lock(&id)?;
                if inner.records.has_shim(&id)? {
                    return Err(Error::StillRunning { id });
                }
                repair::demolish(inner, &record, repair::Keep::Nothing)
            })
            .await
    }
}

/// Whether a container that runs is killed to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// It is killed.
    Yes,
    /// It is refused.
    No,
}
