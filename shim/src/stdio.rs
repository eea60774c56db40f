//! Where the standard streams of a container come from and go to.

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// A place that a standard stream comes from or goes to, as the task API writes it: a path or a URI.
///
/// | text | meaning |
/// |---|---|
/// | empty | nowhere: `/dev/null` |
/// | `/path` or `fifo:///path` | a named pipe |
/// | `file:///path` | a file that output is appended to |
/// | `json-file:///path?max-size=BYTES&max-file=COUNT` | a log in Docker's format, read by [`LogReader`](crate::LogReader); output only |
/// | `attach:` | whoever attaches, and nobody else |
///
/// In the path of `json-file`, `%3F` and the like stand for bytes. Both outputs may name the same log. containerd's
/// `binary://` is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stdio {
    /// Nowhere.
    #[default]
    Null,
    /// A named pipe, which exists already.
    Fifo(PathBuf),
    /// A file, made if it is not there. Output only.
    File(PathBuf),
    /// A log in Docker's json-file format. Output only.
    JsonFile {
        /// The youngest file.
        path: PathBuf,
        /// From so many bytes on a file is rotated; `None` is never. A file is larger only if one entry is.
        max_size: Option<u64>,
        /// How many files there are at most, 1 at least: `path`, `path.1` and so on.
        max_files: u32,
    },
    /// Clients that attach. An input stays open while nobody is attached, and an output that nobody reads is thrown away.
    Attach,
}

impl FromStr for Stdio {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |reason| Error::Stdio { uri: text.to_owned(), reason };
        let (scheme, path) = match text.split_once("://") {
            _ if text.is_empty() => return Ok(Self::Null),
            _ if text == "attach:" => return Ok(Self::Attach),
            _ if text.starts_with('/') => ("fifo", text),
            Some(parts) => parts,
            None => return Err(refuse("its path is not absolute")),
        };
        if !path.starts_with('/') && matches!(scheme, "fifo" | "file" | "json-file") {
            return Err(refuse("its path is not absolute"));
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            "json-file" => json_file(path).map_err(refuse),
            _ => Err(refuse("only a path, fifo://, file://, json-file:// and attach: are supported")),
        }
    }
}

impl fmt::Display for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Fifo(path) => write!(f, "{}", path.display()),
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::Attach => f.write_str("attach:"),
            Self::JsonFile { path, max_size, max_files } => {
                f.write_str("json-file://")?;
                for byte in path.as_os_str().as_bytes() {
                    match byte {
                        b'%' | b'?' | b'#' | 0..=0x20 | 0x7f.. => write!(f, "%{byte:02X}")?,
                        _ => f.write_char(char::from(*byte))?,
                    }
                }
                match max_size {
                    Some(max) => write!(f, "?max-size={max}&max-file={max_files}"),
                    None => write!(f, "?max-file={max_files}"),
                }
            }
        }
    }
}

/// Reads what follows `json-file://`.
fn json_file(text: &str) -> Result<Stdio, &'static str> {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let (mut max_size, mut max_files) = (None, 1);
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("max-size", value)) => {
                let value: u64 = value.parse().map_err(|_| "max-size is not a number of bytes")?;
                max_size = Some(value).filter(|value| *value > 0);
            }
            Some(("max-file", value)) => {
                let value: Option<u32> = value.parse().ok().filter(|value| (1..=MAX_FILES).contains(value));
                max_files = value.ok_or("max-file is not a number from 1 to 10000")?;
            }
            _ => return Err("its options are max-size=BYTES and max-file=COUNT"),
        }
    }
    let path = decode(path).ok_or("what follows a % in its path is not two hexadecimal digits")?;
    if path.contains(&0) {
        return Err("its path has a byte 0");
    }
    Ok(Stdio::JsonFile { path: OsString::from_vec(path).into(), max_size, max_files })
}

/// Undoes percent encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            (digit()? << 4 | digit()?) as u8
        } else {
            byte
        });
    }
    Some(decoded)
}

/// How many files a log may have.
const MAX_FILES: u32 = 10_000;

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
            // A log is no sink but a journal of the output's own.
            Stdio::Null | Stdio::Attach | Stdio::JsonFile { .. } => Ok(Self::Nowhere),
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

    /// Opens a named pipe for a client that attaches: it reads already.
    pub(crate) fn attach(path: &Path) -> Result<Self> {
        let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let writer = writer.map_err(|error| Error::file("open", path, error))?;
        require_fifo(&writer, &Stdio::Fifo(path.to_owned()))?;
        Ok(Self::Fifo { writer, reader: None })
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
        Stdio::Null | Stdio::Attach => return Ok(None),
        Stdio::Fifo(path) => path,
        Stdio::File(_) | Stdio::JsonFile { .. } => {
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
        let log = |path: &str, max_size, max_files| Stdio::JsonFile { path: path.into(), max_size, max_files };
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
            ("attach:", Some(Stdio::Attach)),
            ("attach:x", None),
            ("json-file:///l", Some(log("/l", None, 1))),
            ("json-file:///l?max-file=3&max-size=10485760", Some(log("/l", Some(10 << 20), 3))),
            ("json-file:///l?max-size=0", Some(log("/l", None, 1))),
            ("json-file:///a%3Fb%25", Some(log("/a?b%", None, 1))),
            ("json-file://l", None),
            ("json-file:///l?max-file=0", None),
            ("json-file:///l?max-file=1000000", None),
            ("json-file:///l?max-size=10m", None),
            ("json-file:///l?max-size=-1", None),
            ("json-file:///l?compress=true", None),
            ("json-file:///l%", None),
            ("json-file:///l%zz", None),
            ("json-file:///l%00", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Stdio>().ok(), expected, "{text}");
        }
        for text in ["", "/run/x/stdout", "file:///var/log/x", "attach:", "json-file:///l?max-size=5&max-file=2"] {
            assert_eq!(text.parse::<Stdio>().expect("parses").to_string(), text);
        }
        let odd = Stdio::JsonFile {
            path: OsString::from_vec(b"/a b?&%#\n\xff\xc3\xa9".to_vec()).into(),
            max_size: None,
            max_files: 7,
        };
        assert_eq!(odd.to_string().parse::<Stdio>().expect("parses"), odd);
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
