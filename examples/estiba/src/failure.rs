//! A failed command: one line for a person, and the exit status.

use std::error::Error;
use std::fmt;

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Exit status of a failure of ours, as Docker has it.
pub(crate) const ENGINE: u8 = 125;

/// Why a command ends, and with which exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { status: ENGINE, message: message.into() }
    }

    /// A failure with what it came from.
    pub(crate) fn caused(message: impl Into<String>, cause: impl Error) -> Self {
        Self::new(format!("{}: {}", message.into(), chain(&cause)))
    }

    /// The same failure with another exit status.
    #[must_use]
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn status(&self) -> u8 {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<estiba_engine::Error> for Failure {
    fn from(error: estiba_engine::Error) -> Self {
        Self { status: error.exit_code(), message: chain(&error) }
    }
}

impl From<estiba_engine::image::Error> for Failure {
    fn from(error: estiba_engine::image::Error) -> Self {
        Self::new(chain(&error))
    }
}

/// An error and all that it came from, in one line.
fn chain(error: &dyn Error) -> String {
    one_line(&estiba_engine::chain(error))
}

/// Output of foreign programs and parsers can hold anything; a terminal's control characters are not for us to pass on.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Level(&'static str, Option<Box<Level>>);

    impl fmt::Display for Level {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Level {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|level| level as _)
        }
    }

    #[test]
    fn the_chain_is_one_line() {
        let error =
            Level("cannot start x", Some(Box::new(Level("a\nb\x1b[31m", Some(Box::new(Level("no such file", None)))))));
        assert_eq!(chain(&error), "cannot start x: a b [31m: no such file");
        let error = Level("open /x: not found", Some(Box::new(Level("not found", None))));
        assert_eq!(chain(&error), "open /x: not found");
    }
}
