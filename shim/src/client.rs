//! Speaks to a shim, ours or any other of containerd's.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use estiba_runtime::Stats;
use estiba_runtime::oci_spec::runtime::{LinuxResources, Process};

use crate::codec::{self, Decoder};
use crate::daemon::{LOG, SOCKET, open_folder, short_path};
use crate::error::{Error, Result};
use crate::proto::{
    Any, AttachRequest, Call, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest,
    DeleteResponse, DetachRequest, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest,
    ResumeRequest, ShutdownRequest, StartRequest, StateRequest, StateResponse, StatsRequest, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};

/// How much of a shim's log goes into an error.
const TAIL: u64 = 1024;

/// A connection to a shim, which makes one call at a time and blocks until the answer is there.
///
/// A program that must not block takes the stream ([`into_stream`](Self::into_stream)) and drives it with [`codec`](crate::codec).
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    id: String,
    /// The number of the last stream; odd.
    last: u32,
    log: Option<PathBuf>,
}

impl Client {
    /// Connects to the shim of a container that [`Launch`](crate::Launch) started in `bundle_dir`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if there is no such folder or no shim in it.
    pub fn connect(bundle_dir: impl AsRef<Path>, id: impl Into<String>) -> Result<Self> {
        let bundle_dir = bundle_dir.as_ref();
        let folder = open_folder(bundle_dir)?;
        let stream = UnixStream::connect(short_path(&folder, SOCKET))
            .map_err(|error| Error::file("connect to", bundle_dir.join(SOCKET), error))?;
        Ok(Self::new(stream, id.into(), Some(bundle_dir.join(LOG))))
    }

    /// Speaks on a stream that is connected to any shim already.
    #[must_use]
    pub fn from_stream(stream: UnixStream, id: impl Into<String>) -> Self {
        Self::new(stream, id.into(), None)
    }

    pub(crate) fn new(stream: UnixStream, id: String, log: Option<PathBuf>) -> Self {
        // Wraps to 1.
        Self { stream, decoder: Decoder::default(), id, last: u32::MAX, log }
    }

    /// The stream itself, to be driven by other means. No call may be under way.
    #[must_use]
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// For how long a call may block; `None` is for ever. After a call that took too long the connection is useless.
    ///
    /// # Errors
    ///
    /// [`Error::System`], also for a duration of zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let set = self.stream.set_read_timeout(timeout).and_then(|()| self.stream.set_write_timeout(timeout));
        set.map_err(|error| Error::system("set the timeout", error))
    }

    /// Makes any call.
    ///
    /// # Errors
    ///
    /// [`Error::Status`] if the shim refuses, [`Error::Disconnected`] if it is gone, [`Error::Frame`] and
    /// [`Error::Message`] if it does not speak the protocol.
    pub fn call<C: Call>(&mut self, call: &C) -> Result<C::Response> {
        let stream = self.last.wrapping_add(2);
        self.last = stream;
        let mut request = Vec::new();
        codec::encode_request(&mut request, stream, call)?;
        self.stream.write_all(&request).map_err(|source| self.disconnected(C::METHOD, source))?;
        let mut buffer = [0; 4096];
        loop {
            while let Some(frame) = self.decoder.next_frame()? {
                // What answers an earlier call that timed out is skipped.
                if frame.stream == stream {
                    return codec::decode_response::<C>(&frame);
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(self.disconnected(C::METHOD, io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.disconnected(C::METHOD, error)),
            }
        }
    }

    fn disconnected(&self, method: &'static str, source: io::Error) -> Error {
        let log = self.log.as_deref().map(log_tail).unwrap_or_default();
        Error::Disconnected { method, log, source }
    }

    /// Creates the container of `request`, whose `id` is filled in if it is empty. Returns the pid of its first process.
    pub fn create(&mut self, mut request: CreateTaskRequest) -> Result<u32> {
        if request.id.is_empty() {
            request.id.clone_from(&self.id);
        }
        Ok(self.call(&request)?.pid)
    }

    /// Starts the container. Returns the pid of its first process.
    pub fn start(&mut self) -> Result<u32> {
        Ok(self.call(&StartRequest { id: self.id.clone(), ..StartRequest::default() })?.pid)
    }

    /// Waits until the container has ended.
    pub fn wait(&mut self) -> Result<WaitResponse> {
        self.call(&WaitRequest { id: self.id.clone(), ..WaitRequest::default() })
    }

    /// Sends a signal to the container's first process.
    pub fn kill(&mut self, signal: u32) -> Result<()> {
        self.call(&KillRequest { id: self.id.clone(), signal, ..KillRequest::default() }).map(drop)
    }

    /// Sends a signal to every process of the container.
    pub fn kill_all(&mut self, signal: u32) -> Result<()> {
        self.call(&KillRequest { id: self.id.clone(), signal, all: true, ..KillRequest::default() }).map(drop)
    }

    /// The state of the container.
    pub fn state(&mut self) -> Result<StateResponse> {
        self.call(&StateRequest { id: self.id.clone(), ..StateRequest::default() })
    }

    /// Stops every process of the container where it stands.
    pub fn pause(&mut self) -> Result<()> {
        self.call(&PauseRequest { id: self.id.clone() }).map(drop)
    }

    /// Undoes [`pause`](Self::pause).
    pub fn resume(&mut self) -> Result<()> {
        self.call(&ResumeRequest { id: self.id.clone() }).map(drop)
    }

    /// Changes the limits of the container. What `resources` does not name stays as it is.
    pub fn update(&mut self, resources: &LinuxResources) -> Result<()> {
        let resources = Some(Any::pack_spec("LinuxResources", resources)?);
        self.call(&UpdateTaskRequest { id: self.id.clone(), resources, ..UpdateTaskRequest::default() }).map(drop)
    }

    /// What the container uses.
    pub fn stats(&mut self) -> Result<Stats> {
        self.call(&StatsRequest { id: self.id.clone() })?.to_stats()
    }

    /// Connects to the standard streams of the process that `request` names, whose `id` is filled in if it is empty. Returns the
    /// attachment's number. Only our own shim can do it.
    pub fn attach(&mut self, mut request: AttachRequest) -> Result<u64> {
        if request.id.is_empty() {
            request.id.clone_from(&self.id);
        }
        Ok(self.call(&request)?.attachment)
    }

    /// Disconnects from the standard streams of a process; `exec_id` is empty for the first.
    pub fn detach(&mut self, exec_id: &str, attachment: u64) -> Result<()> {
        self.call(&DetachRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), attachment }).map(drop)
    }

    /// Adds a process to the container, which waits for [`start_exec`](Self::start_exec). `request` says its name and streams; its
    /// `id` is filled in if it is empty, and `terminal` and `spec` are those of `process`.
    ///
    /// A process that is not started is forgotten when this client leaves.
    pub fn exec(&mut self, mut request: ExecProcessRequest, process: &Process) -> Result<()> {
        if request.id.is_empty() {
            request.id.clone_from(&self.id);
        }
        request.terminal = process.terminal().unwrap_or(false);
        request.spec = Some(Any::pack_spec("Process", process)?);
        self.call(&request).map(drop)
    }

    /// Starts a process that was added. Returns its pid. If that fails, the process is forgotten.
    pub fn start_exec(&mut self, exec_id: &str) -> Result<u32> {
        Ok(self.call(&StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })?.pid)
    }

    /// Waits until a process that was added has ended.
    pub fn wait_exec(&mut self, exec_id: &str) -> Result<WaitResponse> {
        self.call(&WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })
    }

    /// The state of a process that was added.
    pub fn state_exec(&mut self, exec_id: &str) -> Result<StateResponse> {
        self.call(&StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })
    }

    /// Sends a signal to a process that was added.
    pub fn kill_exec(&mut self, exec_id: &str, signal: u32) -> Result<()> {
        let exec_id = exec_id.to_owned();
        self.call(&KillRequest { id: self.id.clone(), exec_id, signal, all: false }).map(drop)
    }

    /// Tells the terminal of a process that was added its size.
    pub fn resize_exec(&mut self, exec_id: &str, columns: u16, rows: u16) -> Result<()> {
        let (width, height) = (columns.into(), rows.into());
        self.call(&ResizePtyRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), width, height }).map(drop)
    }

    /// Closes the standard input of a process that was added, once it has been given what was written so far.
    pub fn close_exec_stdin(&mut self, exec_id: &str) -> Result<()> {
        self.call(&CloseIoRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), stdin: true }).map(drop)
    }

    /// Forgets a process that was added, which has ended or was never started.
    pub fn delete_exec(&mut self, exec_id: &str) -> Result<DeleteResponse> {
        self.call(&DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() })
    }

    /// The processes of the container.
    pub fn pids(&mut self) -> Result<Vec<u32>> {
        let response = self.call(&PidsRequest { id: self.id.clone() })?;
        Ok(response.processes.iter().map(|process| process.pid).collect())
    }

    /// Tells the container's terminal its size.
    pub fn resize(&mut self, columns: u16, rows: u16) -> Result<()> {
        let (width, height) = (columns.into(), rows.into());
        self.call(&ResizePtyRequest { id: self.id.clone(), width, height, ..ResizePtyRequest::default() }).map(drop)
    }

    /// Closes the container's standard input, once it has been given what was written so far.
    pub fn close_stdin(&mut self) -> Result<()> {
        self.call(&CloseIoRequest { id: self.id.clone(), stdin: true, ..CloseIoRequest::default() }).map(drop)
    }

    /// Deletes the container, which has ended or was never started.
    pub fn delete(&mut self) -> Result<DeleteResponse> {
        self.call(&DeleteRequest { id: self.id.clone(), ..DeleteRequest::default() })
    }

    /// Asks who serves.
    pub fn who(&mut self) -> Result<ConnectResponse> {
        self.call(&ConnectRequest { id: self.id.clone() })
    }

    /// Ends the shim, unless it still has a container.
    pub fn shutdown(&mut self) -> Result<()> {
        self.call(&ShutdownRequest { id: self.id.clone(), now: false }).map(drop)
    }
}

/// The end of a shim's log.
pub(crate) fn log_tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Answers every call on `stream` with these bytes, in a thread.
    fn answering(answers: Vec<Vec<u8>>) -> (Client, thread::JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let server = thread::spawn(move || {
            let mut buffer = [0; 4096];
            for answer in answers {
                let _ = theirs.read(&mut buffer).expect("read");
                theirs.write_all(&answer).expect("write");
            }
        });
        (Client::from_stream(ours, "c1"), server)
    }

    #[test]
    fn streams_are_odd_and_rise_and_stale_answers_are_skipped() {
        let mut second = Vec::new();
        codec::encode_response(&mut second, 1, Ok(b"\x08\x01".to_vec())).expect("encode");
        codec::encode_response(&mut second, 3, Ok(b"\x08\x07".to_vec())).expect("encode");
        let mut first = Vec::new();
        codec::encode_response(&mut first, 1, Ok(b"\x08\x2a".to_vec())).expect("encode");
        let (mut client, server) = answering(vec![first, second]);
        assert_eq!(client.start().expect("first"), 42);
        assert_eq!(client.start().expect("second"), 7);
        server.join().expect("server");
        let error = client.start().expect_err("gone");
        assert!(matches!(error, Error::Disconnected { method: "Start", .. }), "{error}");
    }

    #[test]
    fn a_shim_that_talks_nonsense_is_an_error() {
        let (mut client, server) = answering(vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()]);
        assert!(matches!(client.state(), Err(Error::Frame { .. })));
        server.join().expect("server");
    }
}
