//! What a command prints.

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Status of a program that writes into a pipe nobody reads: 128 + SIGPIPE.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Prints text on stdout. A reader that has gone is no failure to talk about.
pub(crate) fn print(text: &str) -> Result<u8> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(error) => Err(Failure::caused("cannot write to stdout", error)),
    }
}

/// One line for each item.
pub(crate) fn lines(items: impl IntoIterator<Item = impl Display>) -> String {
    let mut text = String::new();
    for item in items {
        let _ = writeln!(text, "{item}");
    }
    text
}

/// Where an archive is written to: a file, which is only there when it is whole, or standard output.
#[derive(Debug)]
pub(crate) struct Destination {
    path: Option<PathBuf>,
}

impl Destination {
    /// Standard output without a path. A terminal is refused.
    pub(crate) fn open(path: Option<PathBuf>) -> Result<Self> {
        let path = path.filter(|path| path.as_os_str() != "-" && !path.as_os_str().is_empty());
        if path.is_none() && io::stdout().is_terminal() {
            return Err(Failure::new("cowardly refusing to save to a terminal. Use the -o flag or redirect"));
        }
        Ok(Self { path })
    }

    fn partial(path: &Path) -> PathBuf {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        path.with_file_name(name)
    }

    /// What to write to.
    pub(crate) fn writer(&self) -> Result<Box<dyn io::Write + Send>> {
        let Some(path) = &self.path else { return Ok(Box::new(io::BufWriter::with_capacity(1 << 16, io::stdout()))) };
        // A device or pipe is written to as it is.
        let into = if is_other(path) { path.clone() } else { Self::partial(path) };
        let file = File::create(&into)
            .map_err(|error| Failure::caused(format!("cannot write the file {}", path.display()), error))?;
        Ok(Box::new(io::BufWriter::with_capacity(1 << 16, file)))
    }

    /// Gives the file its name, or removes what was written of it.
    pub(crate) fn finish(self, result: Result<(), estiba_engine::Error>) -> Result<u8> {
        let Some(path) = self.path.filter(|path| !is_other(path)) else {
            return match result {
                Err(error) if is_broken_pipe(&error) => Ok(BROKEN_PIPE),
                result => Ok(result.map(|()| 0)?),
            };
        };
        let partial = Self::partial(&path);
        let named = match result {
            Ok(()) => std::fs::rename(&partial, &path)
                .map_err(|error| Failure::caused(format!("cannot write the file {}", path.display()), error)),
            Err(error) => Err(error.into()),
        };
        if named.is_err() {
            // The failure that led here is what is told.
            let _ = std::fs::remove_file(&partial);
        }
        named.map(|()| 0)
    }
}

fn is_other(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Whether it failed because nobody reads any more.
fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return true;
        }
        next = error.source();
    }
    false
}
