//! Reads a log, also while it is written and rotated.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::numbered;
use super::record::Entry;
use crate::error::{Error, Result};

/// How much is read at once.
const BLOCK: usize = 64 << 10;

/// The longest line that may be an entry; a longer one is damaged.
const FARTHEST: usize = 1 << 20;

/// How often a file is looked at where the kernel does not tell of changes, and where it does, too, lest one be missed.
const INTERVAL: Duration = Duration::from_millis(500);

/// How many times events are read before the log is looked at; what is left wakes again.
const EVENTS: u32 = 8;

/// How often a rotation may come between when a file is opened.
const TRIES: u32 = 100;

/// What to read of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Only so many entries from the end; `None` is all. Counted before `since` and `until` choose, as with Docker.
    pub tail: Option<u64>,
    /// Only entries of this moment or later.
    pub since: Option<SystemTime>,
    /// Only entries of this moment or earlier. Reading ends with the first that is later.
    pub until: Option<SystemTime>,
    /// Wait for more at the end.
    pub follow: bool,
}

/// Reads a log that a shim writes, all of its files, oldest first; while it is written, and across rotation: each entry
/// once, none lost, unless its file is rotated away before it was read.
///
/// Damaged lines are skipped, and so is half an entry at the end.
///
/// ```no_run
/// use estiba_shim::{LogOptions, LogReader};
///
/// let options = LogOptions { tail: Some(10), follow: true, ..LogOptions::default() };
/// let mut reader = LogReader::open("/var/lib/example/web/log", options)?;
/// while !reader.is_finished() {
///     match reader.next_entry()? {
///         Some(entry) => print!("{}", String::from_utf8_lossy(&entry.bytes)),
///         None => reader.wait(None)?,
///     }
/// }
/// # Ok::<(), estiba_shim::Error>(())
/// ```
///
/// It blocks for the disk alone. An asynchronous program polls [`notifier`](Self::notifier) instead of calling
/// [`wait`](Self::wait), or just comes back after a while.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    options: LogOptions,
    current: Option<Position>,
    /// The file after `current`, once there is one: `current` does not grow any more then.
    next: Option<Position>,
    /// The files after `current` that were open when lines were counted from the end: they may be rotated away before they are read.
    ahead: VecDeque<Position>,
    /// Where the log ended when it was opened, which is where reading ends unless it follows.
    end: Option<Mark>,
    /// Bytes of `current` that were read and not yet taken, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    /// What `buffer` begins with is the rest of a line that is too long.
    skipping: bool,
    notify: Option<Inotify>,
    finished: bool,
}

/// A file and how far it was read.
#[derive(Debug)]
struct Position {
    file: File,
    id: FileId,
    /// What was taken of it: the end of an entry.
    offset: u64,
}

/// Which file: device and inode. They are not used again while the file is open.
type FileId = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Mark {
    id: FileId,
    size: u64,
}

impl Position {
    /// Opens a file; `None` if there is none.
    fn open(path: &Path) -> Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| Error::file("inspect", path, error))?;
                Ok(Some(Self { file, id: (metadata.dev(), metadata.ino()), offset: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("open", path, error)),
        }
    }

    fn size(&self, path: &Path) -> Result<u64> {
        let metadata = self.file.metadata().map_err(|error| Error::file("inspect", path, error))?;
        Ok(metadata.len())
    }
}

impl LogReader {
    /// Opens the log whose youngest file is `path`. There need not be one yet.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if a file of it cannot be read.
    pub fn open(path: impl Into<PathBuf>, options: LogOptions) -> Result<Self> {
        let path = path.into();
        // Watched before anything is read, so that no change is missed.
        let notify = if options.follow { watch(&path) } else { None };
        let end = match Position::open(&path)? {
            Some(position) => Some(Mark { id: position.id, size: position.size(&path)? }),
            None => None,
        };
        let mut reader = Self {
            path,
            options,
            current: None,
            next: None,
            ahead: VecDeque::new(),
            end,
            buffer: Vec::new(),
            start: 0,
            skipping: false,
            notify,
            finished: false,
        };
        reader.current = match reader.options.tail {
            None => reader.oldest()?,
            Some(count) => {
                let mut files = reader.tail(count)?;
                // It is counted from there, which may be later by now.
                reader.end = files.back().map(|(position, size)| Mark { id: position.id, size: *size });
                let first = files.pop_front().map(|(position, _)| position);
                reader.ahead = files.into_iter().map(|(position, _)| position).collect();
                first
            }
        };
        Ok(reader)
    }

    /// The next entry; `None` if there is none now: for good if it [`is_finished`](Self::is_finished), else it is
    /// worth to [`wait`](Self::wait).
    ///
    /// # Errors
    ///
    /// [`Error::File`] if a file cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        while !self.finished {
            // What is in the buffer may have come later.
            if self.is_at_end() {
                self.finished = true;
                break;
            }
            if let Some(length) = self.line() {
                let line = &self.buffer[self.start..self.start + length];
                let entry = if self.skipping { None } else { Entry::parse(line) };
                self.skipping = false;
                self.take(length);
                let Some(entry) = entry else { continue };
                if self.options.until.is_some_and(|until| entry.time > until) {
                    self.finished = true;
                } else if self.options.since.is_none_or(|since| entry.time >= since) {
                    return Ok(Some(entry));
                }
                continue;
            }
            if !self.fill()? && !self.advance()? {
                if !self.options.follow {
                    self.finished = true;
                }
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Whether there will be no more entries.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads what is there and then ends, though it was to follow: for when the container has ended.
    pub fn stop_following(&mut self) {
        if self.options.follow {
            self.options.follow = false;
            self.end = None;
        }
    }

    /// Becomes readable when the log may have more, if it follows and the kernel tells of changes
    /// ([inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html)). [`next_entry`](Self::next_entry) takes notice.
    #[must_use]
    pub fn notifier(&self) -> Option<BorrowedFd<'_>> {
        self.notify.as_ref().map(AsFd::as_fd)
    }

    /// Waits until the log may have more, or until so much time has passed; half a second at most.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the kernel refuses to wait.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.unwrap_or(INTERVAL).min(INTERVAL);
        let Some(notify) = &self.notify else {
            std::thread::sleep(timeout);
            return Ok(());
        };
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut set = [PollFd::new(notify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut set, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(Error::system("wait for a log", error)),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// The length of the whole line at the start of the buffer, with its newline.
    fn line(&self) -> Option<usize> {
        self.buffer[self.start..].iter().position(|byte| *byte == b'\n').map(|at| at + 1)
    }

    fn take(&mut self, length: usize) {
        self.start += length;
        if let Some(current) = &mut self.current {
            current.offset += length as u64;
        }
    }

    /// Whether everything was read that was there when the log was opened.
    fn is_at_end(&self) -> bool {
        let (Some(current), Some(end)) = (&self.current, self.end) else { return false };
        !self.options.follow && current.id == end.id && current.offset >= end.size
    }

    /// Reads more of the current file; whether there was a whole line or the end of one.
    ///
    /// Half a line at the end of the file is not kept, but read again from its beginning: a writer may take it back.
    fn fill(&mut self) -> Result<bool> {
        let Some(current) = &mut self.current else { return Ok(false) };
        self.buffer.drain(..self.start);
        self.start = 0;
        loop {
            let known = self.buffer.len();
            self.buffer.resize(known + BLOCK, 0);
            let read = current.file.read_at(&mut self.buffer[known..], current.offset + known as u64);
            let count = match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                other => other.map_err(|error| Error::file("read", &self.path, error))?,
            };
            self.buffer.truncate(known + count);
            if self.buffer[known..].contains(&b'\n') {
                return Ok(true);
            }
            if self.buffer.len() > FARTHEST {
                // Its beginning is taken, and its end will be skipped.
                current.offset += self.buffer.len() as u64;
                self.buffer.clear();
                self.skipping = true;
                continue;
            }
            if count == 0 {
                break;
            }
        }
        self.buffer = Vec::new();
        let size = current.size(&self.path)?;
        if size < current.offset {
            // Somebody emptied it.
            current.offset = 0;
            self.skipping = false;
            return Ok(size > 0);
        }
        Ok(false)
    }

    /// At the end of the current file: goes on to the next if there is one. Whether it is worth to read on.
    fn advance(&mut self) -> Result<bool> {
        if let Some(next) = self.next.take() {
            let last = self.end.is_some_and(|end| self.current.as_ref().is_some_and(|current| current.id == end.id));
            if last && !self.options.follow {
                return Ok(false);
            }
            self.current = Some(next);
            self.skipping = false;
            return Ok(true);
        }
        // Those before the last of them are whole.
        if let Some(next) = self.ahead.pop_front() {
            self.current = Some(next);
            self.skipping = false;
            return Ok(true);
        }
        if let Some(notify) = &self.notify {
            // Before looking, so that what comes after it wakes again.
            for _ in 0..EVENTS {
                if notify.read_events().is_err() {
                    break;
                }
            }
        }
        let Some(current) = &self.current else {
            self.current = self.oldest()?;
            return Ok(self.current.is_some());
        };
        // What was written until now may have come before the events were taken, so read once more in any case.
        let size = current.size(&self.path)?;
        let grown = size > current.offset && self.ends_a_line(size)?;
        self.next = self.younger()?;
        Ok(grown || self.next.is_some())
    }

    /// Whether there is a newline between what was taken and `size`.
    fn ends_a_line(&self, size: u64) -> Result<bool> {
        let Some(current) = &self.current else { return Ok(false) };
        let mut block = vec![0; BLOCK];
        let mut offset = current.offset;
        while offset < size {
            let count =
                current.file.read_at(&mut block, offset).map_err(|error| Error::file("read", &self.path, error))?;
            if count == 0 {
                return Ok(false);
            }
            if block[..count].contains(&b'\n') {
                return Ok(true);
            }
            offset += count as u64;
        }
        Ok(false)
    }

    /// The numbers and identities of all files, youngest first.
    ///
    /// Renaming only moves files to higher numbers, so one that is looked for from the lowest number up is met at least once.
    fn files(&self) -> Vec<(u32, FileId)> {
        let highest = self.highest();
        let mut found: Vec<(u32, FileId)> = Vec::new();
        let mut number = 0;
        // One more for a rotation that comes meanwhile.
        while number <= highest + 1 || found.last().is_some_and(|(last, _)| *last + 1 == number) {
            if let Ok(metadata) = fs::metadata(numbered(&self.path, number)) {
                let id = (metadata.dev(), metadata.ino());
                if found.iter().all(|(_, known)| *known != id) {
                    found.push((number, id));
                }
            }
            number += 1;
        }
        found
    }

    /// The highest number of a file.
    fn highest(&self) -> u32 {
        let (Some(folder), Some(name)) = (self.path.parent(), self.path.file_name().and_then(|name| name.to_str()))
        else {
            return 0;
        };
        let number = |entry: &fs::DirEntry| -> Option<u32> {
            entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
        };
        // Numbers far away are not ours.
        let numbers = fs::read_dir(folder).into_iter().flatten().flatten();
        numbers.filter_map(|entry| number(&entry)).filter(|number| *number < 1 << 16).max().unwrap_or(0)
    }

    /// Opens a file by its number if it still is the one that is meant.
    fn open_file(&self, number: u32, id: FileId) -> Result<Option<Position>> {
        // It may have moved on by now.
        for number in number..number + TRIES {
            match Position::open(&numbered(&self.path, number))? {
                Some(position) if position.id == id => return Ok(Some(position)),
                // Gone, unless a rotation is under way.
                None if number > self.highest() + 1 => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    fn oldest(&self) -> Result<Option<Position>> {
        for _ in 0..TRIES {
            let Some((number, id)) = self.files().pop() else { return Ok(None) };
            if let Some(position) = self.open_file(number, id)? {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// The file after the current one; `None` if that is the youngest. If the current one was rotated away, the oldest that is
    /// left.
    fn younger(&self) -> Result<Option<Position>> {
        let Some(current) = &self.current else { return Ok(None) };
        if fs::metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == current.id) {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let files = self.files();
            let next = match files.iter().position(|(_, id)| *id == current.id) {
                Some(0) => return Ok(None),
                Some(index) => files.get(index - 1),
                // All that is left is younger than what was there when the log was opened.
                None if !self.options.follow
                    && self.end.is_some_and(|end| files.iter().all(|(_, id)| *id != end.id)) =>
                {
                    return Ok(None);
                }
                None => files.last(),
            };
            let Some((number, id)) = next else { return Ok(None) };
            if let Some(position) = self.open_file(*number, *id)? {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// The files that hold the last `count` lines, oldest first, at where these begin, each with its size.
    fn tail(&self, count: u64) -> Result<VecDeque<(Position, u64)>> {
        let mut left = count;
        let mut files = VecDeque::new();
        for (number, id) in self.files() {
            let Some(mut position) = self.open_file(number, id)? else { continue };
            let size = position.size(&self.path)?;
            let (offset, found) = lines_before(&position.file, size, left)
                .map_err(|error| Error::file("read", numbered(&self.path, number), error))?;
            left -= found;
            position.offset = offset;
            files.push_front((position, size));
            if left == 0 {
                break;
            }
        }
        Ok(files)
    }
}

/// Tells of changes in the folder of a log; `None` where that cannot be had.
fn watch(path: &Path) -> Option<Inotify> {
    let notify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let events = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    notify.add_watch(folder, events).ok()?;
    Some(notify)
}

/// Where the last `count` whole lines before `size` begin, and how many there are.
fn lines_before(file: &File, size: u64, count: u64) -> io::Result<(u64, u64)> {
    let mut block = vec![0; BLOCK];
    // Newlines that were met, the one that ends the last line among them.
    let mut met = 0;
    let mut start = size;
    while start > 0 {
        let length = start.min(BLOCK as u64);
        start -= length;
        let bytes = &mut block[..length as usize];
        file.read_exact_at(bytes, start)?;
        for at in (0..bytes.len()).rev().filter(|at| bytes[*at] == b'\n') {
            let end = start + at as u64 + 1;
            if met == count {
                return Ok((end, count));
            }
            met += 1;
        }
    }
    // The first line begins at the beginning; without any, what is torn is read again once it is whole.
    Ok((0, met.min(count)))
}
