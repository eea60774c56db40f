//! A process of the container, with its standard streams and what became of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use estiba_runtime::{Created, ExitStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::exit;
use crate::streams::{Ends, Streams, ours};

/// How long the end of output is waited for once the process is gone and nothing more comes: another process may hold the
/// container's pipe open.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// How long a reader may hold up the news of the end without taking a byte, and how long output may go on after it.
pub(crate) const STALL: Duration = Duration::from_secs(10);

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

/// A process of the container: its first, or one that was added.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
    pidfd: OwnedFd,
    console: Option<File>,
    pub(crate) streams: Streams,
    pub(crate) ended: Option<Ended>,
}

impl Process {
    pub(crate) fn new(created: Created, mut streams: Streams, ends: &Ends) -> Result<Self> {
        let mut console = None;
        if matches!(ends, Ends::Terminal) {
            let missing = || Error::system("take over the terminal", io::Error::from(io::ErrorKind::NotFound));
            let terminal = ours(created.console.ok_or_else(missing)?)?;
            let another = || terminal.try_clone().map_err(|error| Error::system("duplicate the terminal", error));
            if let Some(input) = &mut streams.input {
                input.connect_terminal(another()?);
            }
            for output in &mut streams.outputs {
                output.connect(another()?);
            }
            console = Some(terminal);
        }
        let start_time = exit::start_time(created.pid);
        Ok(Self { pid: created.pid, start_time, pidfd: created.pidfd, console, streams, ended: None })
    }

    /// Sends a signal to this very process, whoever may have its number by now.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        crate::sys::pidfd_send_signal(self.pidfd.as_fd(), signal).map_err(|error| Error::system("send a signal", error))
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
        self.streams.input = None;
    }

    /// Whether the end may be told: its output is handed on, as far as that can be waited for.
    pub(crate) fn is_settled(&mut self) -> bool {
        let Some(Ended { since, .. }) = self.ended else { return false };
        let mut settled = true;
        for output in self.streams.outputs.iter_mut().filter(|output| !output.is_done()) {
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

    /// Tells the terminal its size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<bool> {
        let Some(console) = &self.console else { return Ok(false) };
        crate::sys::resize(console.as_fd(), columns, rows)
            .map_err(|error| Error::system("resize the terminal", error))?;
        Ok(true)
    }
}
