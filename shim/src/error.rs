//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::proto::{Code, ExitCode, Status};

/// The result of what this crate does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in this crate. `Display` says this level only; the cause is in `source()`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file failed.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call that concerns no file failed.
    #[error("cannot {operation}")]
    System {
        /// What was tried, as a verb.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The peer sent bytes that are no frame of ttrpc.
    #[error("not a frame of ttrpc: {reason}")]
    Frame {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The peer sent bytes that are not the message they should be.
    #[error("not a message of type {message}")]
    Message {
        /// The type that was expected.
        message: &'static str,
        /// What is wrong.
        source: Boxed,
    },
    /// The shim refused a call.
    #[error("{}", status.message)]
    Status {
        /// The call.
        method: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The connection to the shim broke or could not be used.
    #[error("lost the shim while calling {method}{}", tail(log))]
    Disconnected {
        /// The call.
        method: &'static str,
        /// The end of the shim's log; empty if there is none.
        log: String,
        /// Why the connection broke.
        source: io::Error,
    },
    /// The shim's program could not be started.
    #[error("cannot start the shim {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The shim ended before it served.
    #[error("the shim ended at once ({status}){}", tail(log))]
    EarlyExit {
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of the shim's log; empty if there is none.
        log: String,
    },
    /// Another shim lives in that folder.
    #[error("a shim runs in {} already", bundle.display())]
    Busy {
        /// The folder.
        bundle: PathBuf,
    },
    /// The arguments of `serve` are wrong.
    #[error("shim arguments: {reason}: {argument:?}")]
    Argument {
        /// What is wrong.
        reason: &'static str,
        /// The argument.
        argument: String,
    },
    /// A call contradicts itself or the bundle.
    #[error("wrong request: {reason}")]
    Request {
        /// What is wrong.
        reason: &'static str,
    },
    /// The place for a standard stream is not one that this shim can use.
    #[error("standard stream {uri:?}: {reason}")]
    Stdio {
        /// The place.
        uri: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The runtime failed.
    #[error("{operation} container {id}")]
    Runtime {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The container.
        id: String,
        /// Why it failed.
        source: Box<estiba_runtime::Error>,
    },
}

impl Error {
    /// The exit status that this means for a command that was to run a container, as Docker has it: 127 if the program to
    /// run is not found, 126 if it cannot be executed, else 125.
    ///
    /// Our own shim says which; what another shim says is judged by the words that runc uses.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Runtime { source, .. } => source.exit_code(),
            Self::Status { status, .. } => {
                let said = status.details.iter().find_map(|any| any.unpack::<ExitCode>().ok().flatten());
                said.map_or_else(|| guess(&status.message), |exit| i32::try_from(exit.code).unwrap_or(125))
            }
            _ => 125,
        }
    }

    /// The kind of refusal, if the shim refused a call.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Status { status, .. } => Some(Code::try_from(status.code).unwrap_or(Code::Unknown)),
            _ => None,
        }
    }

    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::File { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn system(operation: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { operation, source: source.into() }
    }
}

/// Judges a foreign shim's message by the words that Docker looks for, too.
fn guess(message: &str) -> i32 {
    let message = message.to_ascii_lowercase();
    if !message.contains("exec") {
        125
    } else if message.contains("executable file not found") || message.contains("no such file or directory") {
        127
    } else if ["permission denied", "is a directory", "exec format error"].iter().any(|word| message.contains(word)) {
        126
    } else {
        125
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!("; its log ends: {}", lines.join(" | ")) }
}

/// An error and all of its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Any;

    #[test]
    fn exit_codes() {
        let runc = r#"OCI runtime create failed: exec: "nope": executable file not found in $PATH: unknown"#;
        let cases = [
            (runc, None, 127),
            ("exec /x: no such file or directory", None, 127),
            ("exec /etc: permission denied", None, 126),
            ("exec /x: exec format error", None, 126),
            ("mount proc: permission denied", None, 125),
            ("start container x", Some(126), 126),
            (runc, Some(125), 125),
        ];
        for (message, said, expected) in cases {
            let details = said.map(|code| Any::pack(&ExitCode { code })).into_iter().collect();
            let error =
                Error::Status { method: "Start", status: Status { code: 2, message: message.to_owned(), details } };
            assert_eq!(error.exit_code(), expected, "{message}");
        }
    }
}
