//! What containers have written.

use std::time::Duration;

use estiba_shim::{Entry as LogEntry, LogOptions, LogReader};
use tokio::sync::mpsc;

use crate::container::Container;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::request::LogConfig;

/// How many entries are read ahead of who takes them.
const AHEAD: usize = 256;

/// How often the end of a container is looked for, though nothing is written.
const LOOK: Duration = Duration::from_millis(100);

/// Which part of a log is wanted.
pub type LogsRequest = LogOptions;

/// What a container has written, entry by entry. Dropping it ends the reading.
#[derive(Debug)]
pub struct Logs {
    entries: mpsc::Receiver<Result<LogEntry>>,
}

impl Logs {
    /// The next entry; `None` at the end, which comes for one that follows when the container has ended.
    pub async fn next(&mut self) -> Option<Result<LogEntry>> {
        self.entries.recv().await
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
        Ok(Logs { entries })
    }
}

fn failed(id: &Id) -> impl Fn(estiba_shim::Error) -> Error {
    let id = id.clone();
    move |source| Error::Log { id: id.clone(), source: Box::new(source) }
}

fn read(inner: &Inner, id: &Id, mut reader: LogReader, entries: &mpsc::Sender<Result<LogEntry>>) {
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => {
                if entries.blocking_send(Ok(entry)).is_err() {
                    return;
                }
            }
            Ok(None) if reader.is_finished() || entries.is_closed() => return,
            Ok(None) => {
                // Looked at before the last read: what came before the end is in it.
                let runs = inner.records.has_shim(id).unwrap_or(false);
                if !runs {
                    reader.stop_following();
                } else if let Err(error) = reader.wait(Some(LOOK)) {
                    let _ = entries.blocking_send(Err(failed(id)(error)));
                    return;
                }
            }
            Err(error) => {
                let _ = entries.blocking_send(Err(failed(id)(error)));
                return;
            }
        }
    }
}
