//! The container's first process, with its standard streams and what became of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use estiba_runtime::{Created, ExitStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::exit;
use crate::proto::CreateTaskRequest;
use crate::pump::{Input, Output};
use crate::stdio::{self, Sink, Stdio};

/// How long the end of output is waited for once the process is gone and nothing more comes: another process may hold the
/// container's pipe open.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// How long a reader may hold up the news of the end without taking a byte, and how long output may go on after it.
pub(crate) const STALL: Duration = Duration::from_secs(10);

/// The standard streams of a container that is being created.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Pipes or `/dev/null`: the container's ends, and ours.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd, outputs: Vec<Output>, input: Option<Input> },
    /// A terminal, which the runtime makes.
    Terminal { sink: Sink, source: Option<File> },
}

impl Streams {
    /// Opens what a request names.
    pub(crate) fn open(request: &CreateTaskRequest) -> Result<Self> {
        let [stdin, stdout, stderr] = [&request.stdin, &request.stdout, &request.stderr];
        let source = stdio::open_source(&stdin.parse()?)?;
        let stdout: Stdio = stdout.parse()?;
        if request.terminal {
            return Ok(Self::Terminal { sink: Sink::open(&stdout)?, source });
        }
        let mut outputs = Vec::new();
        let mut output = |place: &Stdio| -> Result<OwnedFd> {
            if *place == Stdio::Null {
                return null();
            }
            let sink = Sink::open(place)?;
            let (reader, writer) = pipe()?;
            outputs.push(Output::new(ours(reader)?, sink));
            Ok(writer)
        };
        let stdout = output(&stdout)?;
        let stderr = output(&stderr.parse()?)?;
        let (stdin, input) = match source {
            None => (null()?, None),
            Some(source) => {
                let (reader, writer) = pipe()?;
                (reader, Some(Input::to_pipe(source, ours(writer)?)))
            }
        };
        Ok(Self::Pipes { stdin, stdout, stderr, outputs, input })
    }

    /// As the runtime takes them.
    pub(crate) fn for_runtime(&self) -> estiba_runtime::Stdio<'_> {
        match self {
            Self::Terminal { .. } => estiba_runtime::Stdio::Terminal,
            Self::Pipes { stdin, stdout, stderr, .. } => {
                estiba_runtime::Stdio::Fds { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() }
            }
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) at: SystemTime,
    pub(crate) oom_killed: bool,
    /// The same moment, to measure from.
    since: Instant,
}

impl Ended {
    pub(crate) fn now(status: ExitStatus, oom_killed: bool) -> Self {
        Self { status, at: SystemTime::now(), oom_killed, since: Instant::now() }
    }
}

/// The container's first process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pidfd: OwnedFd,
    console: Option<File>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) input: Option<Input>,
    pub(crate) ended: Option<Ended>,
}

impl Process {
    pub(crate) fn new(created: Created, streams: Streams) -> Result<Self> {
        let (outputs, input, console) = match streams {
            Streams::Pipes { outputs, input, .. } => (outputs, input, None),
            Streams::Terminal { sink, source } => {
                let missing = || Error::system("take over the terminal", io::Error::from(io::ErrorKind::NotFound));
                let console = ours(created.console.ok_or_else(missing)?)?;
                let another = || console.try_clone().map_err(|error| Error::system("duplicate the terminal", error));
                let input = source.map(|source| Ok::<_, Error>(Input::to_terminal(source, another()?))).transpose()?;
                (vec![Output::new(another()?, sink)], input, Some(console))
            }
        };
        let start_time = exit::start_time(created.pid);
        Ok(Self { pid: created.pid, start_time, pidfd: created.pidfd, console, outputs, input, ended: None })
    }

    /// What to poll to learn of the end.
    pub(crate) fn pidfd(&self) -> Option<&OwnedFd> {
        self.ended.is_none().then_some(&self.pidfd)
    }

    /// Reaps the process if it has ended within `patience`, and says how it ended.
    pub(crate) fn reap(&self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut set = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(0) | Err(_) => return None,
                Ok(_) => break,
            }
        }
        Some(estiba_runtime::wait(self.pidfd.as_fd(), self.pid).unwrap_or_else(|error| {
            // Somebody else reaped it, so its status is lost; that it was killed is the likeliest.
            crate::daemon::log(&crate::error::chain(&error));
            ExitStatus::Signaled(libc::SIGKILL)
        }))
    }

    /// It ended: nobody reads its input.
    pub(crate) fn set_ended(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.input = None;
    }

    /// Whether the end may be told: its output is handed on, as far as that can be waited for.
    pub(crate) fn is_settled(&mut self) -> bool {
        let Some(Ended { since, .. }) = self.ended else { return false };
        let mut settled = true;
        for output in self.outputs.iter_mut().filter(|output| !output.is_done()) {
            let quiet = since.max(output.moved).elapsed();
            if output.is_held_up() {
                // Its reader does not read. The rest is kept for it, but others need not wait for that.
                settled &= quiet >= STALL;
            } else if quiet >= QUIET || since.elapsed() >= STALL {
                // Another process holds the container's side open.
                output.abandon_source();
            } else {
                settled = false;
            }
        }
        settled
    }

    /// Whether all output has been handed on or thrown away.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.iter().all(Output::is_done)
    }

    /// Tells the terminal its size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<bool> {
        let Some(console) = &self.console else { return Ok(false) };
        crate::sys::resize(console.as_fd(), columns, rows)
            .map_err(|error| Error::system("resize the terminal", error))?;
        Ok(true)
    }
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| Error::file("open", "/dev/null", error))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().map_err(|error| Error::system("make a pipe", error))?;
    Ok((reader.into(), writer.into()))
}

/// Our end of a stream, which never makes us wait. The container's end keeps blocking.
fn ours(fd: OwnedFd) -> Result<File> {
    crate::sys::set_nonblocking(&fd).map_err(|error| Error::system("make a stream not block", error))?;
    Ok(File::from(fd))
}
