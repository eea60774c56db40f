//! Signals that arrive here, for the container.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) const SIGWINCH: i32 = 28;
pub(crate) const SIGCONT: i32 = 18;

/// What is not the container's. SIGKILL and SIGSTOP can't be caught; SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV
/// and SIGSYS say that this program is broken; SIGPIPE, SIGCHLD, SIGTTIN, SIGTTOU and SIGURG are about its own files and
/// children.
const OURS: [i32; 14] = [9, 19, 4, 5, 6, 7, 8, 11, 31, 13, 17, 21, 22, 23];

/// The first signal that the C library leaves to programs: glibc keeps 32 and 33 for itself, musl 34, too.
const FIRST_REALTIME: i32 = if cfg!(target_env = "musl") { 35 } else { 34 };

const LAST_REALTIME: i32 = 64;

/// All signals that are caught to be handed on, from here on to the end of the process.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        caught().map(|number| Ok((number, signal(SignalKind::from_raw(number))?))).collect::<io::Result<_>>().map(Self)
    }

    /// The next signal's number. Cancel-safe: a signal that is not returned is returned by a later call.
    pub(crate) async fn next(&mut self) -> i32 {
        self.next_of(|_| true).await
    }

    /// The next signal that asks a program to end: SIGHUP, SIGINT, SIGQUIT or SIGTERM. Others stay for later calls.
    pub(crate) async fn next_deadly(&mut self) -> i32 {
        self.next_of(|number| matches!(number, 1 | 2 | 3 | 15)).await
    }

    async fn next_of(&mut self, wanted: impl Fn(i32) -> bool) -> i32 {
        poll_fn(|context| {
            for (number, signal) in self.0.iter_mut().filter(|(number, _)| wanted(*number)) {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The exit status that says that a signal has ended a program.
pub(crate) fn exit_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn caught() -> impl Iterator<Item = i32> {
    (1..=31).chain(FIRST_REALTIME..=LAST_REALTIME).filter(|number| !OURS.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_this_program_alone_is_left() {
        let caught: Vec<i32> = caught().collect();
        for forwarded in [1, 2, 3, 10, 12, 15, SIGCONT, 20, SIGWINCH, 35, 64] {
            assert!(caught.contains(&forwarded), "{forwarded}");
        }
        for ours in OURS.into_iter().chain([32, 33]) {
            assert!(!caught.contains(&ours), "{ours}");
        }
    }
}
