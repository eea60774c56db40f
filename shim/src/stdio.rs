//! Where the standard streams of a container come from and go to.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A place that a standard stream comes from or goes to, as the task API writes it: a path or a URI.
///
/// | text | meaning |
/// |---|---|
/// | empty | nowhere: `/dev/null` |
/// | `/path` or `fifo:///path` | a named pipe |
/// | `file:///path` | a file that output is appended to |
///
/// containerd's `binary://` is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stdio {
    /// Nowhere.
    #[default]
    Null,
    /// A named pipe, which exists already.
    Fifo(PathBuf),
    /// A file, made if it is not there. Output only.
    File(PathBuf),
}

impl FromStr for Stdio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason| Error::Stdio { uri: text.to_owned(), reason };
        let (scheme, path) = match text.split_once("://") {
            _ if text.is_empty() => return Ok(Self::Null),
            _ if text.starts_with('/') => ("fifo", text),
            Some(parts) => parts,
            None => return Err(refuse("its path is not absolute")),
        };
        if !path.starts_with('/') && matches!(scheme, "fifo" | "file") {
            return Err(refuse("its path is not absolute"));
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            _ => Err(refuse("only a path, fifo:// and file:// are supported")),
        }
    }
}

impl fmt::Display for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Fifo(path) => write!(f, "{}", path.display()),
            Self::File(path) => write!(f, "file://{}", path.display()),
        }
    }
}

/// What became of bytes that were offered to a [`Sink`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many of them were taken; for the rest, poll first.
    Some(usize),
    /// Nobody is there to read them: they are gone.
    Nobody,
}

/// The far end of an output stream, open.
#[derive(Debug)]
pub(crate) enum Sink {
    /// All is thrown away.
    Nowhere,
    /// A named pipe.
    Fifo {
        /// Our writing end, not blocking.
        writer: File,
        /// A reading end of our own, held until the container starts: so that nothing is lost to a reader that comes late.
        reader: Option<File>,
    },
    /// A file that is appended to.
    File(File),
}

impl Sink {
    /// Opens an output; never waits for a reader.
    pub(crate) fn open(place: &Stdio) -> Result<Self> {
        match place {
            Stdio::Null => Ok(Self::Nowhere),
            Stdio::File(path) => {
                let options =
                    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(libc::O_NOCTTY).open(path);
                options.map(Self::File).map_err(|error| Error::file("open", path, error))
            }
            Stdio::Fifo(path) => {
                let open = |options: &mut OpenOptions| {
                    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
                    file.map_err(|error| Error::file("open", path, error))
                };
                // With both ends ours the second open cannot fail for want of a reader (fifo(7)).
                let both = open(OpenOptions::new().read(true).write(true))?;
                require_fifo(&both, place)?;
                Ok(Self::Fifo { writer: open(OpenOptions::new().write(true))?, reader: Some(both) })
            }
        }
    }

    /// From now on bytes that nobody reads are thrown away.
    pub(crate) fn release(&mut self) {
        if let Self::Fifo { reader, .. } = self {
            *reader = None;
        }
    }

    /// Offers bytes, without waiting.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> io::Result<Taken> {
        let file = match self {
            Self::Nowhere => return Ok(Taken::Nobody),
            Self::Fifo { writer, .. } => writer,
            Self::File(file) => file,
        };
        loop {
            match file.write(bytes) {
                Ok(count) => return Ok(Taken::Some(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Taken::Some(0)),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Taken::Nobody),
                Err(error) => return Err(error),
            }
        }
    }

    /// What to poll until more can be taken.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nowhere => None,
            Self::Fifo { writer, .. } => Some(writer.as_fd()),
            Self::File(file) => Some(file.as_fd()),
        }
    }
}

/// Opens an input; never waits for a writer.
pub(crate) fn open_source(place: &Stdio) -> Result<Option<File>> {
    let path = match place {
        Stdio::Null => return Ok(None),
        Stdio::Fifo(path) => path,
        Stdio::File(_) => {
            return Err(Error::Stdio { uri: place.to_string(), reason: "standard input comes from a named pipe only" });
        }
    };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(|error| Error::file("open", path, error))?;
    require_fifo(&file, place)?;
    Ok(Some(file))
}

fn require_fifo(file: &File, place: &Stdio) -> Result<()> {
    let kind = file.metadata().map_err(|error| Error::system("inspect a standard stream", error))?.file_type();
    if kind.is_fifo() {
        Ok(())
    } else {
        Err(Error::Stdio { uri: place.to_string(), reason: "it is not a named pipe (write file:// for a file)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn places() {
        let cases = [
            ("", Some(Stdio::Null)),
            ("/run/x/stdout", Some(Stdio::Fifo("/run/x/stdout".into()))),
            ("/odd://name", Some(Stdio::Fifo("/odd://name".into()))),
            ("fifo:///run/x", Some(Stdio::Fifo("/run/x".into()))),
            ("file:///var/log/x", Some(Stdio::File("/var/log/x".into()))),
            ("relative", None),
            ("file://relative", None),
            ("fifo://", None),
            ("binary:///usr/bin/logger?x=1", None),
            ("://", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Stdio>().ok(), expected, "{text}");
        }
        for text in ["", "/run/x/stdout", "file:///var/log/x"] {
            assert_eq!(text.parse::<Stdio>().expect("parses").to_string(), text);
        }
    }

    #[test]
    fn a_pipe_without_reader_holds_until_released_then_discards_then_serves_again() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let mut sink = Sink::open(&Stdio::Fifo(path.clone())).expect("open");
        assert_eq!(sink.offer(b"early").expect("offer"), Taken::Some(5));
        let open = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("reader");
        let mut reader = open();
        sink.release();
        assert_eq!(sink.offer(b"+late").expect("offer"), Taken::Some(5));
        let mut buffer = [0; 64];
        assert_eq!(reader.read(&mut buffer).expect("read"), 10);
        drop(reader);
        assert_eq!(sink.offer(b"lost").expect("offer"), Taken::Nobody);
        let mut reader = open();
        assert_eq!(sink.offer(b"again").expect("offer"), Taken::Some(5));
        assert_eq!(reader.read(&mut buffer).expect("read"), 5);
    }

    #[test]
    fn a_file_is_not_taken_for_a_pipe() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("plain");
        std::fs::write(&path, b"x").expect("write");
        assert!(matches!(Sink::open(&Stdio::Fifo(path.clone())), Err(Error::Stdio { .. })));
        assert!(matches!(open_source(&Stdio::Fifo(path.clone())), Err(Error::Stdio { .. })));
        assert!(matches!(open_source(&Stdio::File(path.clone())), Err(Error::Stdio { .. })));
        assert!(matches!(open_source(&Stdio::Fifo(dir.path().join("absent"))), Err(Error::File { .. })));
        let mut sink = Sink::open(&Stdio::File(path.clone())).expect("open");
        assert_eq!(sink.offer(b"y").expect("offer"), Taken::Some(1));
        assert_eq!(std::fs::read(&path).expect("read"), b"xy");
    }
}
