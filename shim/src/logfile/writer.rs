//! Writes a log.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use super::record::{self, Stream};
use super::{LONGEST, numbered};
use crate::error::{Error, Result};
use crate::moment::rfc3339;

/// So many bytes of entries are gathered at most before they are written.
const BATCH: usize = 32 << 10;

/// The files of one log. Both output streams of a container may share one.
///
/// A log never stops a container: entries that do not fit on the disk are dropped, whole, and those that come when there is
/// room again are written.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    max_size: Option<u64>,
    max_files: u32,
    file: File,
    /// The size of `file`.
    size: u64,
    /// Whole entries that are not written yet.
    batch: Vec<u8>,
    /// How many entries were dropped since the disk was full, while it is.
    dropped: Option<u64>,
    /// Whether that was said.
    told: bool,
    /// Half an entry lies at the end of the file and could not be removed.
    torn: bool,
}

impl Writer {
    /// Opens a log, made if it is not there; what a writer that was killed left half done is removed.
    pub(crate) fn open(path: &Path, max_size: Option<u64>, max_files: u32) -> Result<Self> {
        let fail = |operation| move |error| Error::file(operation, path, error);
        let mut file = create(path, false).map_err(fail("open"))?;
        let size = repair(&mut file).map_err(fail("repair"))?;
        // Fewer files may be wanted than when the container ran last.
        let mut surplus = max_files;
        while fs::remove_file(numbered(path, surplus)).is_ok() {
            surplus += 1;
        }
        let path = path.to_owned();
        Ok(Self { path, max_size, max_files, file, size, batch: Vec::new(), dropped: None, told: false, torn: false })
    }

    /// Adds an entry.
    fn add(&mut self, bytes: &[u8], stream: Stream, time: &str) {
        let before = self.batch.len();
        record::append(&mut self.batch, bytes, stream, time);
        let begun = self.size + before as u64 > 0;
        if self.max_size.is_some_and(|max| begun && self.size + self.batch.len() as u64 > max) {
            let last = self.batch.split_off(before);
            self.flush();
            self.rotate();
            self.batch = last;
        }
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes what was added.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.torn {
            // What was torn becomes one damaged line, and not two.
            self.torn = self.file.write(b"\n").is_err();
            self.size += u64::from(!self.torn);
        }
        let mut written = 0;
        let failure = loop {
            match self.file.write(&self.batch[written..]) {
                _ if written == self.batch.len() => break None,
                Ok(0) => break Some(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
        };
        match failure {
            None => {
                self.size += written as u64;
                self.recovered();
            }
            Some(error) => self.failed(written, &error),
        }
        self.batch.clear();
        self.batch.shrink_to(BATCH);
    }

    /// The first `written` bytes of the batch are in the file: removes the half entry at their end.
    fn failed(&mut self, written: usize, error: &io::Error) {
        let whole = self.batch[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // The file's own size counts: somebody may have emptied it.
        let cut = self.file.metadata().map(|metadata| metadata.len().saturating_sub((written - whole) as u64));
        match cut {
            Ok(size) if written == whole || self.file.set_len(size).is_ok() => self.size = size,
            _ => {
                self.torn = true;
                self.size += written as u64;
            }
        }
        let lost = self.batch[whole..].split_inclusive(|byte| *byte == b'\n').count() as u64;
        self.dropped = Some(self.dropped.unwrap_or(0) + lost);
        self.tell(&format!("entries are dropped: {error}"));
    }

    fn recovered(&mut self) {
        if let Some(dropped) = self.dropped.take() {
            self.told = false;
            self.tell(&format!("it goes on, after {dropped} dropped entries"));
            self.told = false;
        }
    }

    /// Says something once: the shim's own log may lie on the same full disk, so it is tried until it is there.
    fn tell(&mut self, what: &str) {
        if !self.told {
            self.told = crate::daemon::log(&format!("log {}: {what}", self.path.display()));
        }
    }

    /// Begins a new file. The old ones are renamed, oldest first: whoever looks from the youngest to the oldest meets each, and
    /// the new file appears only when the old one is complete and has its new name.
    fn rotate(&mut self) {
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        let file = match create(&beside, true) {
            Ok(file) => file,
            // The old file grows on.
            Err(error) => return self.tell(&format!("cannot be rotated: {error}")),
        };
        let mut gap = 1;
        while gap + 1 < self.max_files && numbered(&self.path, gap).exists() {
            gap += 1;
        }
        if self.max_files > 1 {
            for number in (0..gap).rev() {
                // One that somebody removed leaves its place to the next.
                let _ = fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1));
            }
        }
        match fs::rename(&beside, &self.path) {
            Ok(()) => {
                self.file = file;
                self.size = 0;
                self.torn = false;
            }
            Err(error) => self.tell(&format!("cannot be rotated: {error}")),
        }
    }
}

fn create(path: &Path, truncate: bool) -> io::Result<File> {
    let flags = libc::O_NOCTTY | libc::O_NOFOLLOW | if truncate { libc::O_TRUNC } else { 0 };
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

/// Removes half an entry at the end of a file. Returns the file's size.
fn repair(file: &mut File) -> io::Result<u64> {
    /// More than the longest entry.
    const FARTHEST: u64 = 256 << 10;
    let size = file.metadata()?.len();
    let start = size.saturating_sub(FARTHEST);
    let mut last = [b'\n'];
    if size > 0 {
        file.seek(SeekFrom::Start(size - 1))?;
        file.read_exact(&mut last)?;
    }
    if last == *b"\n" {
        return Ok(size);
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    Read::by_ref(file).take(FARTHEST).read_to_end(&mut end)?;
    match end.iter().rposition(|byte| *byte == b'\n') {
        None if start > 0 => {
            // No entry is so long: it is somebody else's, and stays as a damaged line.
            file.write_all(b"\n")?;
            Ok(size + 1)
        }
        newline => {
            let whole = start + newline.map_or(0, |at| at as u64 + 1);
            file.set_len(whole)?;
            Ok(whole)
        }
    }
}

/// One stream on its way into a log.
#[derive(Debug)]
pub(crate) struct Journal {
    writer: Rc<RefCell<Writer>>,
    stream: Stream,
    /// The beginning of a line whose end has not come yet: at most [`LONGEST`] bytes.
    begun: Vec<u8>,
}

impl Journal {
    pub(crate) fn new(writer: Rc<RefCell<Writer>>, stream: Stream) -> Self {
        Self { writer, stream, begun: Vec::new() }
    }

    /// Takes what was read from the container.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        let time = rfc3339(SystemTime::now());
        let mut writer = self.writer.borrow_mut();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if self.begun.is_empty() && end <= LONGEST {
                writer.add(line, self.stream, &time);
                continue;
            }
            gather(&mut self.begun, &line[..end], &mut writer, self.stream, &time);
            self.begun.push(b'\n');
            writer.add(&self.begun, self.stream, &time);
            self.begun = Vec::new();
        }
        gather(&mut self.begun, bytes, &mut writer, self.stream, &time);
        writer.flush();
    }

    /// The stream ended: what has no newline is an entry, too.
    pub(crate) fn finish(&mut self) {
        if !self.begun.is_empty() {
            let mut writer = self.writer.borrow_mut();
            writer.add(&self.begun, self.stream, &rfc3339(SystemTime::now()));
            writer.flush();
            self.begun = Vec::new();
        }
    }
}

/// Adds bytes without a newline to the beginning of a line. What is too long for one entry goes to the log, and no character is
/// cut in two.
fn gather(begun: &mut Vec<u8>, mut bytes: &[u8], writer: &mut Writer, stream: Stream, time: &str) {
    while !bytes.is_empty() {
        if begun.len() == LONGEST {
            let whole = LONGEST - record::unfinished(begun);
            writer.add(&begun[..whole], stream, time);
            begun.drain(..whole);
        }
        let (now, later) = bytes.split_at(bytes.len().min(LONGEST - begun.len()));
        begun.extend_from_slice(now);
        bytes = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logfile::Entry;

    fn journal(path: &Path, max_size: Option<u64>, max_files: u32) -> Journal {
        let writer = Writer::open(path, max_size, max_files).expect("open");
        Journal::new(Rc::new(RefCell::new(writer)), Stream::Stdout)
    }

    fn entries(path: &Path) -> Vec<String> {
        let bytes = fs::read(path).expect("read");
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let entry = |line| Entry::parse(line).expect("an entry");
        lines.map(|line| String::from_utf8(entry(line).bytes).expect("text")).collect()
    }

    #[test]
    fn lines_are_entries_however_they_are_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        let text = "one\n\ntwo \u{20ac}\u{1f600}\nthree".as_bytes();
        for size in 1..text.len() {
            let path = dir.path().join(size.to_string());
            let mut journal = journal(&path, None, 1);
            text.chunks(size).for_each(|chunk| journal.write(chunk));
            assert_eq!(entries(&path), ["one\n", "\n", "two \u{20ac}\u{1f600}\n"]);
            journal.finish();
            journal.finish();
            assert_eq!(entries(&path)[3..], ["three"]);
        }
    }

    #[test]
    fn long_lines_are_several_entries_and_no_character_is_cut() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (index, (line, count)) in [
            ("a".repeat(LONGEST), 1),
            ("a".repeat(LONGEST + 1), 2),
            (format!("a{}", "\u{20ac}".repeat(LONGEST)), 4),
            (format!("ab{}", "\u{1f600}".repeat(LONGEST)), 5),
        ]
        .into_iter()
        .enumerate()
        {
            for size in [1000, 65_536] {
                let path = dir.path().join(format!("{index}-{size}"));
                let mut journal = journal(&path, None, 1);
                let text = format!("{line}\nnext\n");
                for chunk in text.as_bytes().chunks(size) {
                    journal.write(chunk);
                    assert!(journal.begun.len() <= LONGEST);
                }
                let entries = entries(&path);
                assert_eq!(entries.concat(), text);
                assert_eq!(entries.len(), count + 1);
                assert!(entries.iter().all(|entry| entry.len() <= LONGEST + 1));
                let (whole, parts): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.ends_with('\n'));
                assert_eq!((whole.len(), parts.len()), (2, entries.len() - 2));
            }
        }
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("tempdir");
        for max_files in 1..=4 {
            let path = dir.path().join(format!("log{max_files}"));
            let mut journal = journal(&path, Some(300), max_files);
            for number in 0..40 {
                journal.write(format!("line {number}\n").as_bytes());
            }
            let mut all = Vec::new();
            for number in (0..max_files).rev() {
                let path = numbered(&path, number);
                let size = fs::metadata(&path).expect("a file").len();
                assert!((1..=300).contains(&size), "{size}");
                all.extend(entries(&path));
            }
            assert!(!numbered(&path, max_files).exists());
            let expected: Vec<String> = (40 - all.len()..40).map(|number| format!("line {number}\n")).collect();
            assert_eq!(all, expected);
        }
        assert!(fs::read_dir(dir.path()).expect("list").flatten().all(|entry| !entry.path().ends_with(".new")));
    }

    #[test]
    fn fewer_files_may_be_wanted_later() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        let mut first = journal(&path, Some(100), 6);
        (0..20).for_each(|number| first.write(format!("{number}\n").as_bytes()));
        assert!(numbered(&path, 5).exists());
        journal(&path, Some(100), 3);
        assert!(numbered(&path, 2).exists());
        assert!(!numbered(&path, 3).exists() && !numbered(&path, 5).exists());
    }

    #[test]
    fn a_torn_end_is_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        journal(&path, None, 1).write(b"whole\n");
        let whole = fs::read(&path).expect("read");
        for cut in 0..whole.len() {
            let torn = [&whole[..], &whole[..cut]].concat();
            fs::write(&path, torn).expect("write");
            journal(&path, None, 1).write(b"more\n");
            assert_eq!(entries(&path), ["whole\n", "more\n"]);
        }
        fs::write(&path, &whole[..10]).expect("write");
        journal(&path, None, 1).write(b"more\n");
        assert_eq!(entries(&path), ["more\n"]);
        fs::write(&path, vec![b'x'; 300 << 10]).expect("write");
        journal(&path, None, 1).write(b"more\n");
        let bytes = fs::read(&path).expect("read");
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').count();
        assert_eq!(lines, 2, "nothing of a stranger's is removed");
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        std::os::unix::fs::symlink("/dev/null", &path).expect("symlink");
        assert!(matches!(Writer::open(&path, None, 1), Err(Error::File { .. })));
    }
}
