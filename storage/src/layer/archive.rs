//! The entries of a tar archive, as they stream by.

use super::Limits;
use super::header::{BLOCK, Header, Reason, text};
use super::pax::{Pax, map_line};
use crate::{Error, Result};

/// Bytes that come one piece after the other.
pub(crate) trait Source {
    /// The bytes that are there, at least one until the end.
    fn fill(&mut self) -> Result<&[u8]>;
    /// Takes bytes that [`fill`](Self::fill) showed.
    fn consume(&mut self, bytes: usize);
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Character,
    Block,
    Fifo,
}

/// An entry, with the extended headers before it worked in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file's length.
    pub(crate) length: u64,
    /// Where the entry's data belongs, if not all from the start.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// An empty file.
    pub(crate) fn named(name: Vec<u8>) -> Self {
        Entry {
            name,
            kind: Kind::File,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            xattrs: Vec::new(),
            length: 0,
            sparse: None,
        }
    }
}

/// A reader of entries.
pub(crate) struct Archive<'a, S> {
    source: S,
    limits: &'a Limits,
    /// Data of the current entry that has not been read.
    data: u64,
    /// What pads it to a whole block.
    padding: u64,
    pub(crate) entries: u64,
}

/// The name of an entry for people.
pub(crate) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    if text.chars().count() > 200 { text.chars().take(200).chain(['…']).collect() } else { text.into_owned() }
}

fn invalid(name: &[u8], reason: impl Into<String>) -> Error {
    Error::InvalidLayer { entry: show(name), reason: reason.into() }
}

fn limit(name: &[u8], what: &'static str, limit: u64) -> Error {
    Error::LimitExceeded { what, limit, entry: show(name) }
}

impl<'a, S: Source> Archive<'a, S> {
    pub(crate) fn new(source: S, limits: &'a Limits) -> Self {
        Archive { source, limits, data: 0, padding: 0, entries: 0 }
    }

    pub(crate) fn into_source(self) -> S {
        self.source
    }

    /// The next entry, whatever of the last one's data was left unread. `None` at the archive's end.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_data()?;
        let mut pax: Option<Pax> = None;
        let (mut long_name, mut long_link): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
        let mut pending = false;
        loop {
            let Some(block) = self.block()? else {
                return if pending { Err(invalid(b"", "the archive ends after an extended header")) } else { Ok(None) };
            };
            let header = Header(&block);
            if header.is_zero() {
                if pending {
                    return Err(invalid(b"", "the archive ends after an extended header"));
                }
                return match self.block()? {
                    Some(block) if !Header(&block).is_zero() => {
                        Err(invalid(b"", "a lone zero block stands in the archive"))
                    }
                    _ => Ok(None),
                };
            }
            let short_name = text(&block[..100]).to_vec();
            let bad = |reason: Reason| invalid(&short_name, reason);
            header.check().map_err(bad)?;
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(limit(&short_name, "entries", self.limits.entries));
            }
            let twice = "two extended headers of a kind stand before one entry";
            match header.kind() {
                b'x' => {
                    let data = self.extension(&short_name, header.size().map_err(bad)?)?;
                    if pax.replace(Pax::parse(&data).map_err(bad)?).is_some() {
                        return Err(bad(twice));
                    }
                }
                b'L' | b'K' => {
                    let data = self.extension(&short_name, header.size().map_err(bad)?)?;
                    let name = text(&data).to_vec();
                    if data[name.len()..].iter().any(|b| *b != 0) {
                        return Err(bad("a long name has a NUL"));
                    }
                    let place = if header.kind() == b'L' { &mut long_name } else { &mut long_link };
                    if place.replace(name).is_some() {
                        return Err(bad(twice));
                    }
                }
                b'g' => {
                    let data = self.extension(&short_name, header.size().map_err(bad)?)?;
                    Pax::check_global(&data).map_err(bad)?;
                    continue;
                }
                _ => return self.entry(&header, pax.unwrap_or_default(), long_name, long_link).map(Some),
            }
            pending = true;
        }
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        mut pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let short = text(&header.0[..100]).to_vec();
        let bad = |reason: Reason| invalid(&short, reason);
        if (pax.path.is_some() && long_name.is_some()) || (pax.link.is_some() && long_link.is_some()) {
            return Err(bad("it has both a PAX and a GNU name"));
        }
        let listed = pax.path.take().or(long_name).map_or_else(|| header.name().map_err(bad), Ok)?;
        let name = pax.sparse.name.take().unwrap_or(listed);
        let bad = |reason: Reason| invalid(&name, reason);
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
        if name.len().max(link.len()) as u64 > self.limits.path {
            return Err(limit(&name, "bytes in a path", self.limits.path));
        }
        let slash = name.ends_with(b"/");
        let kind = match header.kind() {
            0 if slash => Kind::Directory,
            b'0' | b'7' | b'S' if slash => return Err(bad("a file's name ends with '/'")),
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(invalid(&name, format!("entries of type {:?} are not supported", char::from(other)))),
        };
        let in_header = header.size().map_err(bad)?;
        let stored = match pax.size {
            // Only what does not fit the header, or an empty header, leaves PAX the say in all readers.
            Some(size) if in_header != size && in_header != 0 && size < 1 << 33 => {
                return Err(bad("its header and its extended header disagree on its size"));
            }
            Some(size) => size,
            None => in_header,
        };
        if kind != Kind::File && stored != 0 {
            return Err(bad("an entry without content has a size"));
        }
        let id = |number: i64| match u32::try_from(number) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(bad("its owner is out of range")),
        };
        let xattrs = pax.xattrs;
        let bytes = xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>();
        if bytes > self.limits.xattrs {
            return Err(limit(&name, "bytes of extended attributes", self.limits.xattrs));
        }
        let mut entry = Entry {
            kind,
            link,
            mode: header.mode().map_err(bad)?,
            uid: id(pax.uid.map_or_else(|| header.uid().map_err(bad), Ok)?)?,
            gid: id(pax.gid.map_or_else(|| header.gid().map_err(bad), Ok)?)?,
            mtime: pax.mtime.map_or_else(|| header.mtime().map(|time| (time, 0)).map_err(bad), Ok)?,
            device: if matches!(kind, Kind::Character | Kind::Block) { header.device().map_err(bad)? } else { (0, 0) },
            xattrs,
            length: stored,
            sparse: None,
            name: Vec::new(),
        };
        self.data = stored;
        self.padding = stored.wrapping_neg() % BLOCK as u64;
        self.sparse(header, &name, &pax.sparse, &mut entry)?;
        entry.name = name;
        Ok(entry)
    }

    /// Finds the map of a sparse file, in whichever of four ways GNU tar wrote it.
    fn sparse(&mut self, header: &Header<'_>, name: &[u8], pax: &super::pax::Sparse, entry: &mut Entry) -> Result<()> {
        const BAD: &str = "its sparse map is malformed";
        let bad = |reason: Reason| invalid(name, reason);
        let map = if header.kind() == b'S' {
            let (mut map, mut more, length) = header.sparse().map_err(bad)?;
            entry.length = length;
            while more {
                let block = self.block()?.ok_or_else(|| bad("the archive is cut short"))?;
                let (pairs, again) = Header(&block).sparse_more().map_err(bad)?;
                map.extend(pairs);
                more = again;
                self.check_map(name, &map)?;
            }
            map
        } else {
            match (pax.major, pax.minor, &pax.map) {
                (None, None, None) if *pax == super::pax::Sparse::default() => return Ok(()),
                (None, None, Some(map)) | (Some(0), Some(0 | 1), Some(map)) => {
                    if pax.blocks.is_some_and(|blocks| blocks != map.len() as u64) {
                        return Err(bad(BAD));
                    }
                    map.clone()
                }
                (Some(1), Some(0), None) => self.leading_map(name)?,
                _ => return Err(bad(BAD)),
            }
        };
        if header.kind() != b'S' {
            entry.length = pax.length.ok_or_else(|| bad(BAD))?;
        }
        if entry.kind != Kind::File {
            return Err(bad("an entry without content is sparse"));
        }
        self.check_map(name, &map)?;
        let mut end = 0;
        let mut total = 0_u64;
        for (offset, length) in &map {
            if *offset < end {
                return Err(bad(BAD));
            }
            end = offset.checked_add(*length).ok_or_else(|| bad(BAD))?;
            total = total.checked_add(*length).ok_or_else(|| bad(BAD))?;
        }
        if end > entry.length || total != self.data {
            return Err(bad(BAD));
        }
        if entry.length > self.limits.bytes {
            return Err(limit(name, "bytes", self.limits.bytes));
        }
        entry.sparse = Some(map);
        Ok(())
    }

    fn check_map(&self, name: &[u8], map: &[(u64, u64)]) -> Result<()> {
        if map.len() as u64 * 16 > self.limits.header {
            return Err(limit(name, "bytes in an extended header", self.limits.header));
        }
        Ok(())
    }

    /// Version 1.0: the map stands before the data, a number a line, padded to whole blocks.
    fn leading_map(&mut self, name: &[u8]) -> Result<Vec<(u64, u64)>> {
        let bad = |reason: Reason| invalid(name, reason);
        let mut numbers = Vec::new();
        let mut line = Vec::new();
        let mut wanted = 1_u64;
        while (numbers.len() as u64) < wanted {
            if self.data < BLOCK as u64 {
                return Err(bad("its sparse map is cut short"));
            }
            let block = self.block()?.ok_or_else(|| bad("the archive is cut short"))?;
            self.data -= BLOCK as u64;
            for byte in block {
                if numbers.len() as u64 == wanted {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad("its sparse map is malformed"));
                    }
                    continue;
                }
                let number = map_line(&line).map_err(bad)?;
                line.clear();
                if numbers.is_empty() {
                    if number > self.limits.header / 16 {
                        return Err(limit(name, "bytes in an extended header", self.limits.header));
                    }
                    wanted = 1 + 2 * number;
                }
                numbers.push(number);
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// The content of an extended header.
    fn extension(&mut self, name: &[u8], size: u64) -> Result<Vec<u8>> {
        if size > self.limits.header {
            return Err(limit(name, "bytes in an extended header", self.limits.header));
        }
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        let mut content = Vec::new();
        while self.data > 0 {
            let piece = self.piece(name)?;
            content.extend_from_slice(piece);
            let taken = piece.len();
            self.take(taken);
        }
        self.skip_data()?;
        Ok(content)
    }

    /// The next bytes of the current entry's data; empty at its end.
    pub(crate) fn piece(&mut self, name: &[u8]) -> Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill()?;
        if bytes.is_empty() {
            return Err(invalid(name, "the archive is cut short"));
        }
        let length = usize::try_from(self.data).unwrap_or(usize::MAX).min(bytes.len());
        Ok(&bytes[..length])
    }

    /// Takes bytes that [`piece`](Self::piece) showed.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.source.consume(bytes);
        self.data -= bytes as u64;
    }

    fn skip_data(&mut self) -> Result<()> {
        let (mut left, padding) = (self.data + self.padding, self.padding);
        (self.data, self.padding) = (0, 0);
        while left > 0 {
            let bytes = self.source.fill()?.len();
            if bytes == 0 {
                // Writers exist (umoci 0.4.7 is one) that end right after the last file's content, and readers take it.
                return if left <= padding { Ok(()) } else { Err(invalid(b"", "the archive is cut short")) };
            }
            let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes);
            self.source.consume(taken);
            left -= taken as u64;
        }
        Ok(())
    }

    /// The next block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut length = 0;
        while length < BLOCK {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return if length == 0 { Ok(None) } else { Err(invalid(b"", "the archive is cut short")) };
            }
            let taken = bytes.len().min(BLOCK - length);
            block[length..length + taken].copy_from_slice(&bytes[..taken]);
            self.source.consume(taken);
            length += taken;
        }
        Ok(Some(block))
    }
}
