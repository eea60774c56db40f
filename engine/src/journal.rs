//! The journal of events: `ROOT/events`, a line of JSON each, only ever appended to.
//!
//! A line is written by one write(2) on a file opened for appending, under a shared lock; who begins a new file takes the lock
//! alone. The full file becomes `events.1`, and the one that had that name goes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bytes after which a new file is begun.
const FULL: u64 = 8 << 20;

/// The greatest length of a line; a longer one is not of ours.
const MAX_LINE: u64 = 1 << 20;

/// Something that happened to a container or an image, in Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time_nano: u64,
    /// To what: `container`, `image`, `volume` or `network`.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What: `create`, `start`, `die` …
    pub action: String,
    /// The container's id, or the image's name.
    pub id: String,
    /// More about it: `name`, `image`, `exitCode`, `signal` …
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// What an [`Event`] happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
    /// A network.
    Network,
}

impl Kind {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

impl Event {
    /// An event of now.
    pub(crate) fn new(kind: Kind, action: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            time_nano: nanos(SystemTime::now()),
            kind,
            action: action.into(),
            id: id.into(),
            attributes: BTreeMap::new(),
        }
    }

    pub(crate) fn with(mut self, key: &str, value: &(impl ToString + ?Sized)) -> Self {
        self.attributes.insert(key.to_owned(), value.to_string());
        self
    }

    /// When it happened.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.time_nano)
    }
}

pub(crate) fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The journal of a root.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    path: PathBuf,
    full: u64,
}

impl Journal {
    pub(crate) fn new(root: &Path) -> Self {
        Self { path: root.join("events"), full: FULL }
    }

    fn former(&self) -> PathBuf {
        self.path.with_extension("1")
    }

    /// Appends events. The first line that a program reads after it is one that began after the last write had ended.
    pub(crate) fn append(&self, events: &[Event]) -> Result<()> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event)
                .map_err(|source| Error::Damaged { path: self.path.clone(), source: source.into() })?;
            lines.push(b'\n');
        }
        let failed = |error| Error::io("write", &self.path)(error);
        let size = loop {
            let file = self.open().map_err(failed)?;
            let mut file = lock(file, FlockArg::LockShared).map_err(failed)?;
            // Somebody may have begun a new file between the opening and the lock.
            if !self.is_current(&file) {
                continue;
            }
            file.write_all(&lines).map_err(failed)?;
            break file.metadata().map_err(failed)?.len();
        };
        if size > self.full { self.rotate() } else { Ok(()) }
    }

    fn rotate(&self) -> Result<()> {
        let failed = |error| Error::io("rename", &self.path)(error);
        let file = lock(self.open().map_err(failed)?, FlockArg::LockExclusive).map_err(failed)?;
        if self.is_current(&file) && file.metadata().map_err(failed)?.len() > self.full {
            fs::rename(&self.path, self.former()).map_err(failed)?;
        }
        Ok(())
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)
    }

    fn is_current(&self, file: &File) -> bool {
        same(file, &self.path)
    }

    /// Reads from the oldest event on.
    pub(crate) fn read(&self) -> Reader {
        let first = File::open(self.former()).or_else(|_| File::open(&self.path)).ok();
        Reader { journal: self.clone(), file: first.map(BufReader::new), line: Vec::new() }
    }

    /// Reads what is appended from now on.
    pub(crate) fn read_new(&self) -> Result<Reader> {
        let mut file = OpenOptions::new()
            .append(true)
            .read(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(Error::io("open", &self.path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("read", &self.path))?;
        Ok(Reader { journal: self.clone(), file: Some(BufReader::new(file)), line: Vec::new() })
    }
}

fn lock(file: File, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

fn same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Reads a journal, from one file into the next.
#[derive(Debug)]
pub(crate) struct Reader {
    journal: Journal,
    file: Option<BufReader<File>>,
    /// A line whose end has not been written yet.
    line: Vec<u8>,
}

impl Reader {
    /// The next event; `None` if there is none yet.
    pub(crate) fn next(&mut self) -> Result<Option<Event>> {
        use std::io::Read as _;
        loop {
            let path = &self.journal.path;
            let file = match &mut self.file {
                Some(file) => file,
                None => match File::open(path) {
                    Ok(file) => self.file.insert(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(source) => return Err(Error::io("open", path)(source)),
                },
            };
            // Looked at before the last read: what was appended to it before it got another name is still read.
            let current = same(file.get_ref(), path);
            file.take(MAX_LINE).read_until(b'\n', &mut self.line).map_err(Error::io("read", path))?;
            if self.line.ends_with(b"\n") {
                let event = serde_json::from_slice(&self.line);
                self.line.clear();
                match event {
                    Ok(event) => return Ok(Some(event)),
                    // Of another version, or torn by a full disk.
                    Err(_) => continue,
                }
            }
            if self.line.len() as u64 >= MAX_LINE {
                self.line.clear();
                continue;
            }
            if current {
                return Ok(None);
            }
            self.line.clear();
            self.file = None;
            if !path.exists() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(full: u64) -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal { full, ..Journal::new(folder.path()) };
        (folder, journal)
    }

    fn ids(reader: &mut Reader) -> Vec<u32> {
        std::iter::from_fn(|| reader.next().expect("read")).map(|event| event.id.parse().expect("a number")).collect()
    }

    fn event(number: u32) -> Event {
        Event::new(Kind::Container, "start", number.to_string()).with("name", "x")
    }

    #[test]
    fn a_follower_reads_on_in_the_next_file() {
        let (_folder, journal) = journal(1000);
        let mut reader = journal.read();
        assert!(reader.next().expect("read").is_none());
        let mut seen = Vec::new();
        for number in 0..100 {
            journal.append(&[event(number)]).expect("appended");
            if number % 3 == 0 {
                seen.extend(ids(&mut reader));
            }
        }
        seen.extend(ids(&mut reader));
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(journal.former().exists());
        let kept = ids(&mut journal.read());
        assert!(kept.len() < 100 && kept.last() == Some(&99), "{kept:?}");
        assert!(ids(&mut journal.read_new().expect("open")).is_empty());
    }

    #[test]
    fn many_writers_lose_and_tear_nothing() {
        let (_folder, journal) = journal(1 << 20);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for number in 0..100 {
                        journal.append(&[event(thread * 100 + number)]).expect("appended");
                    }
                });
            }
        });
        let mut all = ids(&mut journal.read());
        all.sort_unstable();
        assert_eq!(all, (0..400).collect::<Vec<_>>());
    }

    #[test]
    fn damaged_and_torn_lines_are_passed_over() {
        let (_folder, journal) = journal(1 << 20);
        journal.append(&[event(1)]).expect("appended");
        let mut file = journal.open().expect("open");
        file.write_all(b"{nonsense\n{\"torn").expect("written");
        let mut reader = journal.read();
        assert_eq!(ids(&mut reader), [1]);
        file.write_all(b"\n").expect("written");
        journal.append(&[event(2)]).expect("appended");
        assert_eq!(ids(&mut reader), [2]);
    }
}
