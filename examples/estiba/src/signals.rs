//! Signals that arrive here, for the container.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) const SIGHUP: i32 = 1;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGCONT: i32 = 18;
pub(crate) const SIGWINCH: i32 = 28;

/// The names of the signals 1 to 31, without SIG.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Parses a signal: a number, or a name with or without SIG, in any case (`15`, `SIGTERM`, `term`, `RTMIN+3`).
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    let unknown =
        || format!("invalid signal: {text}: give a name such as SIGTERM, or a number from 1 to {LAST_REALTIME}");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=LAST_REALTIME).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() {
            return Some(0);
        }
        rest.strip_prefix(sign)?.parse().ok().filter(|offset| (0..=LAST_REALTIME - FIRST_REALTIME).contains(offset))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return realtime(rest, '+').map(|offset| FIRST_REALTIME + offset).ok_or_else(unknown);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return realtime(rest, '-').map(|offset| LAST_REALTIME - offset).ok_or_else(unknown);
    }
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        name => name,
    };
    let index = NAMES.iter().position(|known| *known == name).ok_or_else(unknown)?;
    i32::try_from(index + 1).map_err(|_| unknown())
}

/// A signal's name, with SIG; a real-time one's number.
pub(crate) fn name(number: i32) -> String {
    let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    index.and_then(|index| NAMES.get(index)).map_or_else(|| number.to_string(), |name| format!("SIG{name}"))
}

/// What is not the container's. SIGKILL and SIGSTOP can't be caught; SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV
/// and SIGSYS say that this program is broken; SIGPIPE, SIGCHLD, SIGTTIN, SIGTTOU and SIGURG are about its own files and
/// children.
const OURS: [i32; 14] = [9, 19, 4, 5, 6, 7, 8, 11, 31, 13, 17, 21, 22, 23];

/// The first signal that the C library leaves to programs: glibc keeps 32 and 33 for itself, musl 34, too.
const FIRST_REALTIME: i32 = if cfg!(target_env = "musl") { 35 } else { 34 };

const LAST_REALTIME: i32 = 64;

/// Which signals are caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All that can be the container's. Without a terminal its size is no concern of anybody.
    All { tty: bool },
    /// Those that are about the terminal.
    Terminal,
    /// None: they do to this program what they do to any.
    None,
}

impl Wanted {
    fn includes(self, number: i32) -> bool {
        match self {
            Self::All { tty } => tty || number != SIGWINCH,
            Self::Terminal => matches!(number, SIGHUP | SIGCONT | SIGWINCH),
            Self::None => false,
        }
    }
}

/// Signals that are caught, from here on to the end of the process.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(i32, Signal)>);

impl Signals {
    pub(crate) fn catch(wanted: Wanted) -> io::Result<Self> {
        let caught = caught().filter(|number| wanted.includes(*number));
        caught.map(|number| Ok((number, signal(SignalKind::from_raw(number))?))).collect::<io::Result<_>>().map(Self)
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
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("15", Some(15)),
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigterm", Some(15)),
            ("Kill", Some(9)),
            ("SIGWINCH", Some(28)),
            ("POLL", Some(29)),
            ("64", Some(64)),
            ("RTMIN", Some(FIRST_REALTIME)),
            ("SIGRTMIN+3", Some(FIRST_REALTIME + 3)),
            ("RTMAX-2", Some(62)),
            ("RTMAX", Some(64)),
            ("0", None),
            ("-9", None),
            ("65", None),
            ("RTMIN3", None),
            ("RTMIN+99", None),
            ("RTMIN-1", None),
            ("NOPE", None),
            ("SIG", None),
            ("", None),
        ] {
            assert_eq!(parse(text).ok(), number, "{text:?}");
        }
        assert_eq!((name(15), name(31), name(40)), ("SIGTERM".to_owned(), "SIGSYS".to_owned(), "40".to_owned()));
    }

    #[test]
    fn the_size_of_a_terminal_needs_one() {
        assert!(!Wanted::All { tty: false }.includes(SIGWINCH) && Wanted::All { tty: false }.includes(15));
        assert!(Wanted::Terminal.includes(SIGWINCH) && !Wanted::Terminal.includes(15));
        assert!(!Wanted::None.includes(SIGHUP));
    }

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
