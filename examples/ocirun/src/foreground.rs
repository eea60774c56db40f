//! A container that this program waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use estiba_runtime::oci_spec::runtime::{BoxBuilder, Process};
use estiba_runtime::{Created, ExitStatus};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};
use rustix::termios::{tcgetwinsize, tcsetwinsize};

use crate::Result;
use crate::signal::Forwarded;

/// Gives the container's terminal the size of ours.
pub(crate) fn adopt_size(process: &mut Process) {
    let Ok(size) = tcgetwinsize(io::stdin()) else { return };
    let Ok(size) = BoxBuilder::default().width(size.ws_col).height(size.ws_row).build() else { return };
    if process.console_size().is_none() {
        process.set_console_size(Some(size));
    }
}

/// Waits for the container's end. Meanwhile signals go to `kill`, and bytes between our streams and its terminal, if it has one.
pub(crate) fn wait(
    created: &Created,
    mut bridge: Option<Bridge<'_>>,
    signals: &Forwarded,
    kill: impl Fn(i32) -> Result<()>,
) -> Result<ExitStatus> {
    loop {
        let mut fds = vec![
            PollFd::new(created.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(bridge) = &bridge {
            fds.extend(bridge.interests());
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        drop(fds);
        while let Some(signal) = signals.next()? {
            match (Signal::try_from(signal), &bridge) {
                (Ok(Signal::SIGCHLD | Signal::SIGPIPE), _) => {}
                (Ok(Signal::SIGWINCH), Some(bridge)) => bridge.resize(),
                // It may have ended in between, which is seen next.
                _ => drop(kill(signal)),
            }
        }
        let ended = ready.first() == Some(&true);
        if let Some(bridge) = &mut bridge {
            bridge.pump()?;
            if ended {
                bridge.drain()?;
            }
        }
        if ended {
            return Ok(estiba_runtime::wait(created.pidfd.as_fd(), created.pid)?);
        }
    }
}

/// To be made before the program starts, whose first words are meant for it. Carries bytes between the standard streams and the container's terminal. Our own terminal, if there is one, passes all keys on
/// meanwhile, and is put back at the end.
pub(crate) struct Bridge<'a> {
    console: &'a OwnedFd,
    restore: Option<Termios>,
    /// What was read from the standard input and not yet taken by the terminal.
    pending: Vec<u8>,
    input: bool,
    output: bool,
}

impl<'a> Bridge<'a> {
    pub(crate) fn new(console: &'a OwnedFd) -> Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(console, FcntlArg::F_GETFL)?);
        fcntl(console, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // Whoever reads from us gets lines as they were written.
        let mut inner = tcgetattr(console)?;
        inner.output_flags.remove(OutputFlags::ONLCR);
        tcsetattr(console, SetArg::TCSANOW, &inner)?;
        let restore = tcgetattr(io::stdin()).ok();
        if let Some(before) = &restore {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            // It goes on beginning lines at their beginning; the container's terminal leaves that to it, below.
            raw.output_flags.insert(OutputFlags::OPOST);
            tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        }
        Ok(Self { console, restore, pending: Vec::new(), input: true, output: true })
    }

    fn interests(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        let mut console = PollFlags::empty();
        console.set(PollFlags::POLLIN, self.output);
        console.set(PollFlags::POLLOUT, !self.pending.is_empty());
        if !console.is_empty() && self.output {
            fds.push(PollFd::new(self.console.as_fd(), console));
        }
        if self.input && self.pending.is_empty() {
            fds.push(PollFd::new(stdin(), PollFlags::POLLIN));
        }
        fds
    }

    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(self.console, size);
        }
    }

    /// Carries what is there, a buffer at most each way.
    fn pump(&mut self) -> Result<()> {
        let mut buffer = [0u8; 16384];
        if self.input && self.pending.is_empty() && readable(stdin())? {
            match read(stdin(), &mut buffer) {
                // The end of the input is for the container to see, as the terminal says it.
                Ok(0) => {
                    self.input = false;
                    self.pending.push(4);
                }
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(Errno::EIO) => self.input = false,
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.pending.is_empty() {
            match write(self.console, &self.pending) {
                Ok(length) => drop(self.pending.drain(..length)),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.pending.clear(),
            }
        }
        if self.output {
            self.carry_output(&mut buffer)?;
        }
        Ok(())
    }

    /// `false` if there is nothing.
    fn carry_output(&mut self, buffer: &mut [u8]) -> Result<bool> {
        match read(self.console, buffer) {
            Ok(0) | Err(Errno::EIO) => self.output = false,
            Ok(length) => {
                let mut rest = &buffer[..length];
                while !rest.is_empty() {
                    match write(io::stdout(), rest) {
                        Ok(length) => rest = &rest[length..],
                        Err(Errno::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                return Ok(true);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }

    /// Carries what the container left in its terminal.
    fn drain(&mut self) -> Result<()> {
        let mut buffer = [0u8; 16384];
        while self.output && self.carry_output(&mut buffer)? {}
        Ok(())
    }
}

impl Drop for Bridge<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.restore {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

fn stdin() -> BorrowedFd<'static> {
    rustix::stdio::stdin()
}
