//! What can go wrong.

use std::io;
use std::path::PathBuf;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a network operation. `Display` says this level only; what lies beneath is in
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network namespace could not be made, opened or entered.
    #[error("cannot {operation} the network namespace {}", path.display())]
    Namespace {
        /// What was tried (`open`, `enter` …).
        operation: &'static str,
        /// Its path; of one that has none, where its descriptor shows.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread for the work inside a namespace could not be started.
    #[error("cannot start a thread for the work inside a network namespace")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// A netlink socket did not work.
    #[error("cannot {operation} a netlink socket")]
    Socket {
        /// What was tried (`open`, `write to` …).
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {operation}")]
    Refused {
        /// What was asked (`set the interface lo up` …).
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer over netlink could not be read: {reason}")]
    Answer {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A container of the host's network must not have a namespace of its own.
    #[error("the host network was asked for, and the namespace given is not the host's")]
    NotHost,
}
