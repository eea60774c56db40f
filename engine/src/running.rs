//! A container that runs, connected to this process.

use estiba_shim::proto;
use tokio::net::unix::pipe;

use crate::connection::{Blocking, Waiter};
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::process::Process;
use crate::record::{Exit, Record};
use crate::repair::{self, Watch};
use crate::streams::Ends;

/// A container that was started or attached to, with the ends of the standard streams that were asked for.
///
/// Dropping it leaves the container running: its shim goes on, keeps its output, and stores how it ends. If it has a
/// standard input that this client was given by the start, it ends with that.
#[derive(Debug)]
pub struct Running {
    /// Standard input, if the request was interactive. Dropping it is the end of the container's input, if it was started with it.
    pub stdin: Option<pipe::Sender>,
    /// Standard output; of a container with a terminal, all of its output.
    pub stdout: Option<pipe::Receiver>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<pipe::Receiver>,
    process: Process,
}

impl Running {
    pub(crate) fn new(process: Process, ends: Ends) -> Self {
        Self { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr, process }
    }

    /// The container's record, as it was when it was started.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.process.record
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.process.record.id
    }

    /// Waits until the container has ended. All of its output has been written by then, and waits in the pipes.
    ///
    /// # Errors
    ///
    /// [`Error::ShimLost`] if the shim died: the container is then killed by [`finish`](Self::finish).
    pub async fn wait(&self) -> Result<Exit> {
        let status = self.process.wait().await?;
        let record = self.process.record.clone();
        // The shim has written it before it answered. It knows more than the answer does.
        let stored = self.process.engine.blocking(move |inner| inner.records.exit(&record)).await;
        // Somebody else may have cleaned up already, the file with it.
        Ok(stored.ok().flatten().unwrap_or(Exit { status, signal: None, oom_killed: false }))
    }

    /// Sends a signal to the container's first process.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.process.kill(signal).await
    }

    /// Sets the size of the container's terminal, in characters.
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.process.resize(width, height).await
    }

    /// Leaves the container running without an end of its input, which dropping the value might be.
    pub async fn detach(self) -> Result<()> {
        let detached = self.process.detach().await;
        let record = self.process.record.clone();
        self.process
            .engine
            .blocking(move |inner| {
                inner.tell(&[record.event("detach")]);
                Ok(())
            })
            .await?;
        detached
    }

    /// Ends the shim and puts the container's end on record (read its output to the end first: what the shim still holds
    /// for a slow reader goes with it); with `auto_remove`, record and root file system go, too. A container that still
    /// runs is killed.
    pub async fn finish(self) -> Result<()> {
        let Self { process, .. } = self;
        let (engine, id, run) = (process.engine.clone(), process.record.id.clone(), process.record.starts);
        let (control, waiting) = process.into_blocking();
        let caller = Waiter::default();
        let waited = caller.waited();
        let watch = engine
            .blocking(move |inner| {
                if let (Some(control), Some(waiting)) = (control, waiting) {
                    let socket =
                        |source| Error::Io { operation: "use the socket of", path: inner.records.bundle(&id), source };
                    waited.watch(&control).and_then(|()| waited.watch(&waiting)).map_err(socket)?;
                    // Somebody else may have been quicker, or the shim has died: what it leaves is undone all the same.
                    let _ = end(&id, control, waiting);
                }
                repair::settle_ending(inner, &id, run)
            })
            .await;
        caller.done();
        match watch? {
            Watch::Needed => engine.ensure_monitor().await,
            Watch::No => Ok(()),
        }
    }
}

/// Deletes the container at its shim, killing it if it runs, and waits until the shim has gone.
fn end(id: &Id, mut control: Blocking, mut waiting: Blocking) -> std::result::Result<(), estiba_shim::Error> {
    let id = id.to_string();
    let delete = proto::DeleteRequest { id: id.clone(), ..proto::DeleteRequest::default() };
    let shutdown = proto::ShutdownRequest { id: id.clone(), now: true };
    // Both calls at once: a shim that still has its container stays.
    let deleted = control.send(&delete)?;
    let over = control.send(&shutdown)?;
    if control.answer(&deleted).is_err() {
        let kill = proto::KillRequest { id: id.clone(), signal: 9, all: true, ..proto::KillRequest::default() };
        let _ = control.answer(&over);
        if control.call(&kill).is_ok() && waiting.call(&proto::WaitRequest { id, ..Default::default() }).is_ok() {
            let _ = control.call(&delete);
        }
        // The shim may end before its answer has left.
        let _ = control.call(&shutdown);
    }
    drop(control);
    waiting.closed();
    Ok(())
}

impl crate::engine::Engine {
    /// Puts the end of a container whose shim ends on record.
    pub(crate) async fn settled(&self, id: Id, run: u32) -> Result<()> {
        match self.blocking(move |inner| repair::settle_ending(inner, &id, run)).await? {
            Watch::Needed => self.ensure_monitor().await,
            Watch::No => Ok(()),
        }
    }

    /// A connection to the shim of a container; `None` if it has none (any more).
    pub(crate) async fn connect(&self, id: &Id) -> Result<Option<crate::connection::Connection>> {
        let id = id.clone();
        self.blocking(move |inner| {
            let folder = inner.records.bundle(&id);
            let stream = inner.connect(&id)?;
            stream.map(crate::connection::Connection::new).transpose().map_err(Error::io("use the socket of", folder))
        })
        .await
    }

    /// Two connections to the shim of a container that runs.
    pub(crate) async fn process(&self, record: &Record, exec_id: String) -> Result<Process> {
        let gone = || Error::NotRunning { id: record.id.clone() };
        let control = self.connect(&record.id).await?.ok_or_else(gone)?;
        let waiting = self.connect(&record.id).await?.ok_or_else(gone)?;
        Ok(Process::new(self.clone(), record.clone(), exec_id, control, waiting))
    }
}

impl Inner {
    /// A connection to the shim of a container; `None` if it has none (any more).
    pub(crate) fn connect(&self, id: &Id) -> Result<Option<std::os::unix::net::UnixStream>> {
        match estiba_shim::Client::connect(self.records.bundle(id), id.as_str()) {
            Ok(client) => Ok(Some(client.into_stream())),
            Err(estiba_shim::Error::File { .. }) => Ok(None),
            Err(source) => {
                Err(Error::Shim { operation: "connect to the shim of", id: id.clone(), source: Box::new(source) })
            }
        }
    }
}
