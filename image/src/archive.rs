//! A tar file as a read-only map from names to bytes.
//!
//! One scan makes the index; files are then read where they lie. Nothing is written to disk.

mod header;
mod raw;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use self::header::{BLOCK, begins_tar};
use self::header::{Header, Kind, MAX_NAME, MAX_PAX, Pax};
use self::raw::{Inflated, Range, Raw};
pub(crate) use self::write::TarWriter;
use crate::{ArchiveProblem, Error, Result};

/// More entries than this are not believed. An image has a few per layer.
const MAX_ENTRIES: usize = 65_536;
/// How many links may lead to one another.
const MAX_LINKS: usize = 8;
/// Files up to this size are kept when a compressed archive is scanned, since going back in it means to inflate it again.
const KEPT_FILE: u64 = 64 << 10;
/// How much is kept so at most.
const KEPT_TOTAL: u64 = 16 << 20;
/// A compressed archive may inflate to this, or else by the factor below.
const INFLATED_FLOOR: u64 = 256 << 20;
const INFLATED_FACTOR: u64 = 200;

/// How a file in the archive begins: enough to know gzip and zstd by.
pub(crate) const HEAD: usize = 4;

#[derive(Debug)]
pub(crate) struct Archive {
    name: String,
    raw: Raw,
    /// A compressed archive's stream, kept where the last reader left it: reading in order inflates once.
    inflated: Option<Mutex<Option<Inflated>>>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder,
    Link(String),
    File(Place),
}

/// Where a file lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    offset: u64,
    pub(crate) size: u64,
    /// Its first bytes, or all of them if there are fewer.
    pub(crate) head: [u8; HEAD],
    kept: Option<Arc<[u8]>>,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        // Opening a fifo would wait for its writer.
        let file = File::options()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(|source| Error::io("open", path, source))?;
        Self::of_file(name, file)
    }

    /// An archive in a file that is open, which need not have a name any more.
    pub(crate) fn of_file(name: String, file: File) -> Result<Self> {
        let metadata = file.metadata().map_err(|source| Error::io("stat", &name, source))?;
        if !metadata.is_file() {
            return Err(Error::Archive { archive: name, problem: ArchiveProblem::NotFile });
        }
        Self::scan(name, Raw::File(Arc::new(file)), INFLATED_FLOOR)
    }

    pub(crate) fn from_bytes(bytes: &'static [u8]) -> Result<Self> {
        Self::scan("the archive in memory".to_owned(), Raw::Bytes(bytes), INFLATED_FLOOR)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn error(&self, problem: ArchiveProblem) -> Error {
        Error::Archive { archive: self.name.clone(), problem }
    }

    /// The file of that name, through links within the archive; `None` if nothing has the name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&Place>> {
        let Some(mut name) = normalise("", name) else {
            return Err(self.error(ArchiveProblem::Outside(name.to_owned())));
        };
        let wanted = name.clone();
        for step in 0..=MAX_LINKS {
            match self.entries.get(&name) {
                Some(Entry::File(place)) => return Ok(Some(place)),
                Some(Entry::Link(target)) => name.clone_from(target),
                None if step == 0 => return Ok(None),
                None | Some(Entry::Folder) => break,
            }
        }
        Err(self.error(ArchiveProblem::Dangling(wanted)))
    }

    /// Reads a small file; `None` if it is not there.
    pub(crate) fn document(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(place) = self.find(name)? else { return Ok(None) };
        if place.size > limit {
            return Err(Error::TooLarge { what: format!("{name} in {}", self.name), size: place.size, limit });
        }
        let mut bytes = Vec::with_capacity(place.size as usize);
        let read = self.read(place).and_then(|mut reader| reader.read_to_end(&mut bytes));
        match read {
            Ok(count) if count as u64 == place.size => Ok(Some(bytes)),
            Ok(count) => Err(self.error(ArchiveProblem::Truncated(place.offset + count as u64))),
            Err(source) => Err(self.read_error(source, place.offset)),
        }
    }

    /// A reader of a file from its beginning.
    pub(crate) fn read(&self, place: &Place) -> io::Result<Box<dyn Read + Send + '_>> {
        if let Some(kept) = &place.kept {
            return Ok(Box::new(io::Cursor::new(Arc::clone(kept))));
        }
        let Some(parked) = &self.inflated else {
            return Ok(Box::new(Range::new(&self.raw, place.offset, place.offset + place.size)));
        };
        let stream = parked.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut stream = match stream {
            Some(stream) if stream.position() <= place.offset => stream,
            _ => Inflated::new(&self.raw, u64::MAX)?,
        };
        let gap = place.offset - stream.position();
        io::copy(&mut (&mut stream).take(gap), &mut io::sink())?;
        Ok(Box::new(InflatedFile { parked, stream: Some(stream), left: place.size }))
    }

    fn read_error(&self, source: io::Error, offset: u64) -> Error {
        let problem = match source.downcast::<ArchiveProblem>() {
            Ok(problem) => problem,
            Err(source) => match source.kind() {
                io::ErrorKind::UnexpectedEof => ArchiveProblem::Truncated(offset),
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => ArchiveProblem::Gzip(offset),
                _ => return Error::io("read", &self.name, source),
            },
        };
        self.error(problem)
    }

    /// Makes the index. A compressed archive may inflate to `floor` bytes whatever its size.
    fn scan(name: String, raw: Raw, floor: u64) -> Result<Self> {
        let mut archive = Self { name, raw, inflated: None, entries: HashMap::new() };
        let fail = |source| Error::io("read", &archive.name, source);
        let mut magic = [0; 6];
        let count = read_full_at(&archive.raw, &mut magic, 0).map_err(fail)?;
        let length = archive.raw.len().map_err(fail)?;
        let mut cursor = match magic {
            [0x1f, 0x8b, ..] => {
                let limit = floor.max(length.saturating_mul(INFLATED_FACTOR));
                Cursor::Inflated(Box::new(Inflated::new(&archive.raw, limit).map_err(fail)?))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => return Err(archive.error(ArchiveProblem::Compressed("zstd"))),
            [b'B', b'Z', b'h', ..] => return Err(archive.error(ArchiveProblem::Compressed("bzip2"))),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(archive.error(ArchiveProblem::Compressed("xz"))),
            _ if count == 0 => return Err(archive.error(ArchiveProblem::Truncated(0))),
            _ => Cursor::Plain { raw: archive.raw.clone(), position: 0, length },
        };
        let mut scan = Scan::default();
        if let Err(stop) = scan.run(&mut cursor) {
            return Err(match stop {
                Stop::Problem(problem) => archive.error(problem),
                Stop::Read(source) => archive.read_error(source, cursor.position()),
            });
        }
        archive.entries = scan.entries;
        if let Cursor::Inflated(_) = cursor {
            archive.inflated = Some(Mutex::new(None));
        }
        Ok(archive)
    }
}

/// A file in a compressed archive. When it is dropped, the next reader goes on from where this one was.
struct InflatedFile<'a> {
    parked: &'a Mutex<Option<Inflated>>,
    stream: Option<Inflated>,
    left: u64,
}

impl Read for InflatedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        let count = stream.take(self.left).read(buffer)?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Drop for InflatedFile<'_> {
    fn drop(&mut self) {
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = self.stream.take();
    }
}

fn read_full_at(raw: &Raw, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match raw.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A way through the archive, forward only.
enum Cursor {
    Plain { raw: Raw, position: u64, length: u64 },
    Inflated(Box<Inflated>),
}

impl Cursor {
    fn position(&self) -> u64 {
        match self {
            Self::Plain { position, .. } => *position,
            Self::Inflated(stream) => stream.position(),
        }
    }

    /// Fills the buffer, or as much of it as there is.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain { raw, position, .. } => {
                let count = read_full_at(raw, buffer, *position)?;
                *position += count as u64;
                Ok(count)
            }
            Self::Inflated(stream) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    match stream.read(&mut buffer[filled..]) {
                        Ok(0) => break,
                        Ok(count) => filled += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(filled)
            }
        }
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Stop> {
        let count = self.read(buffer)?;
        if count == buffer.len() { Ok(()) } else { Err(ArchiveProblem::Truncated(self.position()).into()) }
    }

    fn skip(&mut self, distance: u64) -> Result<(), Stop> {
        match self {
            Self::Plain { position, length, .. } => {
                let end = position.checked_add(distance).filter(|end| end <= length);
                *position = end.ok_or(ArchiveProblem::Truncated(*length))?;
            }
            Self::Inflated(stream) => {
                if io::copy(&mut (&mut **stream).take(distance), &mut io::sink())? != distance {
                    return Err(ArchiveProblem::Truncated(stream.position()).into());
                }
            }
        }
        Ok(())
    }
}

enum Stop {
    Problem(ArchiveProblem),
    Read(io::Error),
}

impl From<ArchiveProblem> for Stop {
    fn from(problem: ArchiveProblem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Stop {
    fn from(source: io::Error) -> Self {
        Self::Read(source)
    }
}

#[derive(Default)]
struct Scan {
    entries: HashMap<String, Entry>,
    seen: usize,
    kept: u64,
    /// What came before an entry and is about it.
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl Scan {
    fn run(&mut self, cursor: &mut Cursor) -> Result<(), Stop> {
        let mut block = [0; BLOCK];
        let mut zeros = 0;
        loop {
            let offset = cursor.position();
            match cursor.read(&mut block)? {
                BLOCK => {}
                // Go's and GNU's readers take one block of zeros for the end too, if nothing follows.
                0 if zeros == 1 => break,
                _ => return Err(ArchiveProblem::Truncated(cursor.position()).into()),
            }
            if block.iter().all(|byte| *byte == 0) {
                zeros += 1;
                if zeros == 2 {
                    break;
                }
                continue;
            }
            if zeros == 1 {
                return Err(ArchiveProblem::Oddity { offset, what: "an entry after a block of zeros" }.into());
            }
            self.seen += 1;
            if self.seen > MAX_ENTRIES {
                return Err(ArchiveProblem::TooManyEntries(MAX_ENTRIES).into());
            }
            let header = match Header::parse(&block, offset) {
                Err(ArchiveProblem::Header { field: "checksum" | "magic", .. }) if offset == 0 => {
                    return Err(ArchiveProblem::NotTar.into());
                }
                parsed => parsed?,
            };
            self.entry(header, offset, cursor)?;
        }
        if self.long_name.is_some() || self.long_link.is_some() || self.pax.is_some() {
            return Err(
                ArchiveProblem::Oddity { offset: cursor.position(), what: "an extension without its entry" }.into()
            );
        }
        Ok(())
    }

    fn entry(&mut self, header: Header, offset: u64, cursor: &mut Cursor) -> Result<(), Stop> {
        let odd = |what| ArchiveProblem::Oddity { offset, what };
        match header.kind {
            Kind::LongName | Kind::LongLink | Kind::Pax => self.extension(&header, offset, cursor),
            Kind::File | Kind::Folder | Kind::Symlink | Kind::Hardlink => {
                let pax = self.pax.take().unwrap_or_default();
                let (long_name, long_link) = (self.long_name.take(), self.long_link.take());
                if (long_name.is_some() || long_link.is_some()) && pax != Pax::default() {
                    return Err(odd("GNU and PAX extensions for one entry").into());
                }
                let size = match pax.size {
                    // A size that does not fit into the old field leaves anything there; one that fits must not differ.
                    Some(size) if size < 1 << 33 && header.size != size && header.size != 0 => {
                        return Err(odd("two sizes for one entry").into());
                    }
                    Some(size) if size != 0 && header.kind != Kind::File => {
                        return Err(odd("a folder or link with content").into());
                    }
                    Some(size) => size,
                    None => header.size,
                };
                let raw_name = pax.path.or(long_name).unwrap_or(header.name);
                let raw_link = pax.link.or(long_link).unwrap_or(header.link);
                let name = entry_name(&raw_name, offset)?;
                let entry = match header.kind {
                    Kind::Folder => Entry::Folder,
                    Kind::Symlink | Kind::Hardlink => {
                        let folder = if header.kind == Kind::Symlink { parent(&name) } else { "" };
                        let target = utf8(&raw_link, offset)?;
                        let target = normalise(folder, target).ok_or_else(|| ArchiveProblem::Outside(name.clone()))?;
                        Entry::Link(target)
                    }
                    _ => Entry::File(self.place(size, cursor)?),
                };
                let folder = matches!(entry, Entry::Folder);
                match self.entries.insert(name.clone(), entry) {
                    None => Ok(()),
                    Some(Entry::Folder) if folder => Ok(()),
                    Some(_) => Err(ArchiveProblem::Duplicate(name).into()),
                }
            }
        }
    }

    /// Reads what an extension says about the entry after it.
    fn extension(&mut self, header: &Header, offset: u64, cursor: &mut Cursor) -> Result<(), Stop> {
        let limit = if header.kind == Kind::Pax { MAX_PAX } else { MAX_NAME };
        let odd = |what| Stop::from(ArchiveProblem::Oddity { offset, what });
        if header.size > limit {
            return Err(odd("an oversized extension"));
        }
        let mut content = vec![0; header.size as usize];
        cursor.read_exact(&mut content)?;
        cursor.skip(padding(header.size))?;
        if header.kind == Kind::Pax {
            let pax = Pax::parse(&content, offset)?;
            return if self.pax.replace(pax).is_none() { Ok(()) } else { Err(odd("an extension given twice")) };
        }
        if content.last() == Some(&0) {
            content.pop();
        }
        if content.is_empty() || content.contains(&0) {
            return Err(odd("an empty name or one with a zero byte"));
        }
        let slot = if header.kind == Kind::LongName { &mut self.long_name } else { &mut self.long_link };
        if slot.replace(content).is_none() { Ok(()) } else { Err(odd("an extension given twice")) }
    }

    /// Notes where a file lies and goes past it.
    fn place(&mut self, size: u64, cursor: &mut Cursor) -> Result<Place, Stop> {
        let offset = cursor.position();
        let mut place = Place { offset, size, head: [0; HEAD], kept: None };
        let begin = size.min(HEAD as u64) as usize;
        let keep = matches!(cursor, Cursor::Inflated(_)) && size <= KEPT_FILE && self.kept + size <= KEPT_TOTAL;
        if keep {
            let mut content = vec![0; size as usize];
            cursor.read_exact(&mut content)?;
            place.head[..begin].copy_from_slice(&content[..begin]);
            place.kept = Some(content.into());
            self.kept += size;
        } else {
            cursor.read_exact(&mut place.head[..begin])?;
            cursor.skip(size - begin as u64)?;
        }
        cursor.skip(padding(size))?;
        Ok(place)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn utf8(bytes: &[u8], offset: u64) -> Result<&str, ArchiveProblem> {
    std::str::from_utf8(bytes).map_err(|_| ArchiveProblem::Oddity { offset, what: "a name that is not UTF-8" })
}

fn entry_name(raw: &[u8], offset: u64) -> Result<String, ArchiveProblem> {
    let odd = |what| ArchiveProblem::Oddity { offset, what };
    if raw.len() as u64 > MAX_NAME {
        return Err(odd("an oversized name"));
    }
    let text = utf8(raw, offset)?;
    if text.is_empty() {
        return Err(odd("an empty name"));
    }
    normalise("", text).ok_or_else(|| ArchiveProblem::Outside(text.to_owned()))
}

fn parent(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..slash])
}

/// The name without `.` and `..`, from the folder that it is relative to; `None` if it is absolute or leads out.
fn normalise(folder: &str, name: &str) -> Option<String> {
    if name.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let cases = [
            ("", "a/b", Some("a/b")),
            ("", "./a//b/", Some("a/b")),
            ("", "./", Some("")),
            ("", "a/../b", Some("b")),
            ("", "../a", None),
            ("", "/a", None),
            ("", "a/../../b", None),
            ("x/y", "../z/layer.tar", Some("x/z/layer.tar")),
            ("x", "../z/layer.tar", Some("z/layer.tar")),
            ("x", "../../z", None),
            ("x", "/z", None),
        ];
        for (folder, name, wanted) in cases {
            assert_eq!(normalise(folder, name).as_deref(), wanted, "{name} in {folder}");
        }
    }

    #[test]
    fn a_bomb_is_not_inflated_to_its_end() {
        let mut header = tar::Header::new_ustar();
        header.set_path("zeros").expect("fits");
        header.set_size(4 << 20);
        header.set_mode(0o644);
        header.set_cksum();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        io::Write::write_all(&mut encoder, header.as_bytes()).expect("deflates");
        io::Write::write_all(&mut encoder, &vec![0; (4 << 20) + 1024]).expect("deflates");
        let bytes: &'static [u8] = Box::leak(encoder.finish().expect("deflates").into_boxed_slice());
        for (floor, good) in [(1 << 20, false), (8 << 20, true)] {
            let outcome = Archive::scan("it".to_owned(), Raw::Bytes(bytes), floor);
            assert_eq!(outcome.is_ok(), good, "{floor}");
            if let Err(error) = outcome {
                assert!(matches!(error, Error::Archive { problem: ArchiveProblem::Bomb(_), .. }), "{error}");
            }
        }
    }

    #[test]
    fn padding_fills_the_block() {
        for (size, wanted) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), (u64::MAX - 511, 0)] {
            assert_eq!(padding(size), wanted, "{size}");
        }
    }
}
