//! Signals to other processes.

use super::{Call, done};

/// [`kill(2)`](https://man7.org/linux/man-pages/man2/kill.2.html) of one process. Any number is a signal, the realtime ones, too.
pub(crate) fn kill(pid: i32, signal: i32) -> Call {
    if pid <= 0 {
        return Err(libc::ESRCH);
    }
    // SAFETY: plain numbers.
    done(unsafe { libc::kill(pid, signal) }.into())
}
