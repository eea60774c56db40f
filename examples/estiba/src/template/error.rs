//! Errors in Go's words, with the place in the template.

use std::fmt;

/// Why a template could not be parsed or executed: one line that starts with `template:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error(String);

impl Error {
    /// An error of the parser at a byte of the text.
    pub(super) fn parse(text: &str, at: usize, reason: impl fmt::Display) -> Self {
        Self(format!("template: :{}: {reason}", line(text, at)))
    }

    /// An error of the execution, at a byte of the text and in a part of the template.
    pub(super) fn execute(text: &str, at: usize, node: &str, reason: impl fmt::Display) -> Self {
        let before = &text.as_bytes()[..at.min(text.len())];
        let column = before.iter().rposition(|byte| *byte == b'\n').map_or(at, |newline| at - newline - 1);
        Self(format!("template: :{}:{column}: executing \"\" at <{node}>: {reason}", line(text, at)))
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.get(..at).unwrap_or(text).matches('\n').count()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}
