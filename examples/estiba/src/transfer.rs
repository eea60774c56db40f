//! What is shown of images on their way from a registry or to it: a line for each layer that changes on a terminal, plain lines
//! elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use estiba_engine::image::{BlobState, Event, Progress, short_id};

use crate::size;

/// Whose words are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Pull,
    Push,
}

/// Where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// On standard output: it is what the command is for.
    Standard,
    /// On standard error: the output is the container's.
    Errors,
}

impl Output {
    fn is_terminal(self) -> bool {
        match self {
            Self::Standard => io::stdout().is_terminal(),
            Self::Errors => io::stderr().is_terminal(),
        }
    }

    /// Writes. A reader that has gone is nobody to tell.
    pub(crate) fn say(self, text: &str) {
        let _ = match self {
            Self::Standard => io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()),
            Self::Errors => io::stderr().lock().write_all(text.as_bytes()),
        };
    }
}

/// The lines that have been shown.
#[derive(Debug)]
struct Lines {
    direction: Direction,
    output: Output,
    terminal: bool,
    /// Id and what was last said of it.
    said: Vec<(String, String)>,
}

/// Shows what happens, unless it is to be quiet.
pub(crate) fn progress(direction: Direction, quiet: bool, output: Output) -> Progress {
    if quiet {
        return Progress::none();
    }
    let terminal = output.is_terminal();
    let lines = Arc::new(Mutex::new(Lines { direction, output, terminal, said: Vec::new() }));
    Progress::to(move |event| lines.lock().unwrap_or_else(PoisonError::into_inner).note(&event))
}

impl Lines {
    fn note(&mut self, event: &Event) {
        let Event::Blob { digest, state } = event else { return };
        if let Some(text) = words(self.direction, state, self.terminal) {
            self.say(short_id(digest), text);
        }
    }

    /// Says something of a layer. A reader that has gone is nobody to tell.
    fn say(&mut self, id: &str, text: String) {
        let known = self.said.iter().position(|(there, _)| there == id);
        if known.is_some_and(|at| self.said[at].1 == text) {
            return;
        }
        let mut out = String::new();
        match known {
            Some(at) if self.terminal => {
                let up = self.said.len() - at;
                let _ = write!(out, "\x1b[{up}A\r\x1b[2K{id}: {text}\x1b[{up}B\r");
                self.said[at].1 = text;
            }
            known => {
                let _ = writeln!(out, "{id}: {text}");
                match known {
                    Some(at) => self.said[at].1 = text,
                    None => self.said.push((id.to_owned(), text)),
                }
            }
        }
        self.output.say(&out);
    }
}

/// Docker's words for a state; those of a movement are for terminals alone.
fn words(direction: Direction, state: &BlobState, terminal: bool) -> Option<String> {
    let pull = direction == Direction::Pull;
    Some(match state {
        BlobState::Waiting => (if pull { "Pulling fs layer" } else { "Preparing" }).to_owned(),
        BlobState::Exists => (if pull { "Already exists" } else { "Layer already exists" }).to_owned(),
        BlobState::Mounted => "Mounted".to_owned(),
        BlobState::Moving { done, total } if terminal => {
            let word = if pull { "Downloading" } else { "Pushing" };
            format!("{word} {} {}/{}", bar(*done, *total), size::human(*done), size::human(*total))
        }
        BlobState::Retrying { reason } => format!("Retrying: {}", crate::failure::one_line(reason)),
        BlobState::Verifying if pull => "Verifying Checksum".to_owned(),
        BlobState::Done => (if pull { "Pull complete" } else { "Pushed" }).to_owned(),
        _ => return None,
    })
}

/// How much of a whole is done, drawn.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: u64 = 40;
    let filled = done.min(total).saturating_mul(WIDTH).checked_div(total).unwrap_or(WIDTH);
    let (full, rest) = (usize::try_from(filled).unwrap_or(0), usize::try_from(WIDTH - filled).unwrap_or(0));
    format!("[{}>{}]", "=".repeat(full), " ".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill() {
        assert_eq!(bar(0, 100), format!("[>{}]", " ".repeat(40)));
        assert_eq!(bar(50, 100), format!("[{}>{}]", "=".repeat(20), " ".repeat(20)));
        assert_eq!(bar(200, 100), format!("[{}>]", "=".repeat(40)));
        assert_eq!(bar(0, 0), format!("[{}>]", "=".repeat(40)));
    }

    #[test]
    fn movements_are_for_terminals() {
        let moving = BlobState::Moving { done: 1, total: 2 };
        assert!(words(Direction::Pull, &moving, false).is_none());
        assert!(words(Direction::Push, &moving, true).expect("shown").starts_with("Pushing [="));
        assert_eq!(words(Direction::Pull, &BlobState::Done, false).as_deref(), Some("Pull complete"));
    }
}
