//! An error as a plugin reports it.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The codes that the specification (section 5, "Error") and the reference implementation give a meaning. From 100 on
/// they are a plugin's own.
pub mod code {
    /// The version of the configuration is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field is not supported; the message has its key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// There is no such container, and nothing to clear up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong; the message has its name.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// Something could not be decoded.
    pub const DECODING: u32 = 6;
    /// The configuration does not make sense.
    pub const INVALID_CONFIG: u32 = 7;
    /// The namespace is wrong (the reference implementation's).
    pub const INVALID_NETNS: u32 = 8;
    /// It may work later.
    pub const TRY_AGAIN: u32 = 11;
    /// ADD would fail now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// ADD would fail now, and containers that are there may have lost their network.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else (the reference implementation's).
    pub const INTERNAL: u32 = 999;
}

/// An error as a plugin reports it: a number, a short and a long message (specification, section 5).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failure {
    /// See [`code`].
    #[serde(default)]
    pub code: u32,
    /// What went wrong, in one line.
    #[serde(default)]
    pub msg: String,
    /// More about it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// One without details.
    #[must_use]
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// One of code 7: the configuration does not make sense.
    #[must_use]
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// One of code 999: something went wrong that is nobody's mistake.
    #[must_use]
    pub fn internal(msg: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, msg)
    }

    /// One of code 5: `operation` failed with `error`.
    #[must_use]
    pub fn io(operation: impl fmt::Display, error: &dyn Error) -> Self {
        Self::new(code::IO, chain(&format!("{operation}"), Some(error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(formatter, "; {}", self.details)?;
        }
        write!(formatter, " (code {})", self.code)
    }
}

impl Error for Failure {}

/// An error of this crate becomes one of code 999, with what lies beneath it; what a delegate reported stays as it is.
impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        match error {
            crate::Error::Plugin { failure, .. } => failure,
            error => Self::internal(chain(&error.to_string(), error.source())),
        }
    }
}

/// All levels on one line.
fn chain(first: &str, mut source: Option<&dyn Error>) -> String {
    let mut line = first.to_owned();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
