//! What containers have written.

use std::time::Duration;

use estiba_shim::{Entry as LogEntry, LogOptions, LogReader};
use tokio::sync::mpsc;

use crate::container::Container;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::request::LogConfig;

/// How many entries are handed over at once, if there are so many: each handing over wakes another thread.
const TOGETHER: usize = 256;

/// How many times so many are read ahead of who takes them.
const AHEAD: usize = 2;

/// How often the end of a container is looked for, though nothing is written.
const LOOK: Duration = Duration::from_millis(100);

/// Which part of a log is wanted.
pub type LogsRequest = LogOptions;

/// What a container has written, entry by entry. Dropping it ends the reading.
#[derive(Debug)]
pub struct Logs {
    entries: mpsc::Receiver<Result<Vec<LogEntry>>>,
    /// Those that are here.
    ready: std::vec::IntoIter<LogEntry>,
}

impl Logs {
    /// The next entry; `None` at the end, which comes for one that follows when the container has ended.
    pub async fn next(&mut self) -> Option<Result<LogEntry>> {
        loop {
            if let Some(entry) = self.ready.next() {
                return Some(Ok(entry));
            }
            match self.entries.recv().await? {
                Ok(entries) => self.ready = entries.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next entry if it is here without waiting: for who writes several at once.
    pub fn next_ready(&mut self) -> Option<LogEntry> {
        self.ready.next()
    }
}

impl Container {
    /// Reads what it has written. With `follow`, until it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::NoLog`] if none is kept.
    pub async fn logs(&self, request: LogsRequest) -> Result<Logs> {
        let (sender, entries) = mpsc::channel(AHEAD);
        let reader = self
            .with(move |inner, id| {
                if inner.record(id)?.request.log == LogConfig::None {
                    return Err(Error::NoLog { id: id.clone() });
                }
                LogReader::open(inner.records.log(id), request).map_err(failed(id))
            })
            .await?;
        let container = self.clone();
        // It ends with the reader of the entries, or with the container.
        tokio::task::spawn_blocking(move || read(&container.engine.inner, &container.id, reader, &sender));
        Ok(Logs { entries, ready: Vec::new().into_iter() })
    }
}

fn failed(id: &Id) -> impl Fn(estiba_shim::Error) -> Error {
    let id = id.clone();
    move |source| Error::Log { id: id.clone(), source: Box::new(source) }
}

fn read(inner: &Inner, id: &Id, mut reader: LogReader, entries: &mpsc::Sender<Result<Vec<LogEntry>>>) {
    let mut batch = Vec::new();
    loop {
        let found = reader.next_entry();
        let is_entry = matches!(found, Ok(Some(_)));
        let failure = match found {
            Ok(entry) => {
                batch.extend(entry);
                None
            }
            Err(error) => Some(error),
        };
        let is_due = !is_entry || batch.len() >= TOGETHER;
        if is_due && !batch.is_empty() && entries.blocking_send(Ok(std::mem::take(&mut batch))).is_err() {
            return;
        }
        if let Some(error) = failure {
            let _ = entries.blocking_send(Err(failed(id)(error)));
            return;
        }
        if is_entry {
            continue;
        }
        if reader.is_finished() || entries.is_closed() {
            return;
        }
        // Looked at before the last read: what came before the end is in it.
        let runs = inner.records.has_shim(id).unwrap_or(false);
        if !runs {
            reader.stop_following();
        } else if let Err(error) = reader.wait(Some(LOOK)) {
            let _ = entries.blocking_send(Err(failed(id)(error)));
            return;
        }
    }
}
