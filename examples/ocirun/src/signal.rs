//! Signals: their names, and those that are handed on to the container.

use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Result;

/// A signal's number, from `9`, `KILL` or `SIGKILL`.
pub(crate) fn parse(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(format!("{number} is no signal").into()) };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    match name.strip_prefix("SIGRTMIN+").and_then(|more| more.parse::<i32>().ok()) {
        Some(more @ 0..=30) => Ok(34 + more),
        _ => Ok(Signal::from_str(&name).map_err(|_| format!("{text:?} is no signal"))? as i32),
    }
}

/// All signals that a program may get, taken as data.
#[derive(Debug)]
pub(crate) struct Forwarded(SignalFd);

impl Forwarded {
    /// Blocks them and starts taking them.
    pub(crate) fn new() -> Result<Self> {
        let mut set = SigSet::all();
        // These are about this program itself.
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT, Signal::SIGTRAP] {
            set.remove(own);
        }
        set.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next one, if there is one.
    pub(crate) fn next(&self) -> Result<Option<i32>> {
        Ok(self.0.read_signal()?.map(|info| info.ssi_signo.cast_signed()))
    }
}

impl AsFd for Forwarded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+1", 35)] {
            assert_eq!(parse(text).ok(), Some(number), "{text}");
        }
        for text in ["0", "65", "", "SIGNONE", "-1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
