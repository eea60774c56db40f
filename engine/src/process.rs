//! A process in a container, by two connections to its shim: one for calls, one that waits for its end.

use estiba_shim::proto;
use estiba_shim::proto::Call;
use tokio::sync::Mutex;

use crate::connection::{Blocking, Connection};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::Record;
use crate::streams::{Ends, Fifos};

/// A process in a container: its first one, or one that was added.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) engine: Engine,
    /// Apart from the rest, so that futures stay small.
    pub(crate) record: Box<Record>,
    /// Its name; empty for the first one.
    pub(crate) exec_id: String,
    control: Mutex<Connection>,
    waiting: Mutex<Connection>,
    /// What the shim calls the streams of this client.
    attachment: Option<u64>,
}

impl Process {
    pub(crate) fn new(
        engine: Engine,
        record: Record,
        exec_id: String,
        control: Connection,
        waiting: Connection,
    ) -> Self {
        let (control, waiting) = (Mutex::new(control), Mutex::new(waiting));
        Self { engine, record: Box::new(record), exec_id, control, waiting, attachment: None }
    }

    /// With the streams that the shim knows by that number.
    pub(crate) fn attached(self, attachment: Option<u64>) -> Self {
        Self { attachment, ..self }
    }

    /// Both connections, for a thread that may block: calls, and the wait. `None` for one whose last call was given up.
    pub(crate) fn into_blocking(self) -> (Option<Blocking>, Option<Blocking>) {
        let blocking = |connection: Mutex<Connection>| connection.into_inner().into_blocking().ok();
        (blocking(self.control), blocking(self.waiting))
    }

    fn id(&self) -> String {
        self.record.id.to_string()
    }

    pub(crate) fn shim(&self, operation: &'static str) -> impl FnOnce(estiba_shim::Error) -> Error {
        let id = self.record.id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    }

    pub(crate) async fn call<C: Call>(&self, call: &C) -> Result<C::Response, estiba_shim::Error> {
        self.control.lock().await.call(call).await
    }

    /// Connects fifos with the process. `stdin_once`: the end of this client's input is the end of the process's.
    pub(crate) async fn attach(&mut self, fifos: Fifos, stdin_once: bool) -> Result<Ends> {
        let Some(call) = fifos.call(&self.record, self.exec_id.clone(), stdin_once) else { return Ok(Ends::default()) };
        let answer = self.call(&call).await.map_err(self.shim("attach to"))?;
        self.attachment = Some(answer.attachment);
        fifos.ends()
    }

    /// Takes this client's streams away from the process without an end of its input.
    pub(crate) async fn detach(&self) -> Result<()> {
        let Some(attachment) = self.attachment else { return Ok(()) };
        let call = proto::DetachRequest { id: self.id(), exec_id: self.exec_id.clone(), attachment };
        self.call(&call).await.map_err(self.shim("detach from"))?;
        Ok(())
    }

    /// Waits for the end of the process; returns its status as a shell has it.
    pub(crate) async fn wait(&self) -> Result<i32> {
        let call = proto::WaitRequest { id: self.id(), exec_id: self.exec_id.clone() };
        match self.waiting.lock().await.call(&call).await {
            Ok(answer) => Ok(i32::try_from(answer.exit_status).unwrap_or(255)),
            Err(estiba_shim::Error::Disconnected { .. }) => Err(Error::ShimLost { id: self.record.id.clone() }),
            Err(source) => Err(self.shim("wait for")(source)),
        }
    }

    /// Sends a signal to the process.
    pub(crate) async fn kill(&self, signal: i32) -> Result<()> {
        let call = proto::KillRequest {
            id: self.id(),
            exec_id: self.exec_id.clone(),
            signal: u32::try_from(signal).unwrap_or_default(),
            all: false,
        };
        self.call(&call).await.map_err(self.shim("signal"))?;
        Ok(())
    }

    /// Sets the size of the process's terminal, in characters.
    pub(crate) async fn resize(&self, width: u16, height: u16) -> Result<()> {
        let call = proto::ResizePtyRequest {
            id: self.id(),
            exec_id: self.exec_id.clone(),
            width: width.into(),
            height: height.into(),
        };
        self.call(&call).await.map_err(self.shim("resize the terminal of"))?;
        Ok(())
    }

    /// Deletes the process at the shim. Whether that was done; else somebody else has, or the shim has gone.
    pub(crate) async fn delete(&self) -> bool {
        let call = proto::DeleteRequest { id: self.id(), exec_id: self.exec_id.clone() };
        self.call(&call).await.is_ok()
    }

    /// Ends the shim, whose container is deleted, and waits until it has gone.
    pub(crate) async fn shut_down(self) {
        let call = proto::ShutdownRequest { id: self.id(), now: true };
        // The shim may end before its answer has left.
        let _ = self.control.into_inner().call(&call).await;
        self.waiting.into_inner().closed().await;
    }
}
