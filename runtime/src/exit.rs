//! How a process ended.

use std::io;
use std::os::fd::BorrowedFd;

use crate::{Error, Result, sys};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited by itself, with this status.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
}

impl ExitStatus {
    /// The status as a shell reports it: 128 + n for signal n.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(status) => status,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// Waits for a child process to end, and reaps it.
///
/// The processes of containers tell nobody when they end (their exit signal is 0), so a plain `waitpid(-1)` elsewhere in the
/// program does not see them. This uses [`waitid(2)`](https://man7.org/linux/man-pages/man2/waitid.2.html) with `P_PIDFD` and
/// `__WALL`. `pid` is for the error's text alone.
pub fn wait(pidfd: BorrowedFd<'_>, pid: i32) -> Result<ExitStatus> {
    loop {
        match sys::process::wait(pidfd) {
            Ok(status) => return Ok(status),
            Err(errno) if errno == libc::EINTR => {}
            Err(errno) => return Err(Error::Wait { pid, source: io::Error::from_raw_os_error(errno) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_a_shells() {
        assert_eq!(ExitStatus::Exited(3).code(), 3);
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
    }
}
