//! Tar archives in the making: POSIX (PAX), as GNU tar, Go's `archive/tar` and this crate read them.
//!
//! The same entries make the same bytes: nothing of the time, the process or the machine is in them. What a plain
//! header can hold stands there, the rest in an extended header before it.

use std::fmt::Write as _;
use std::io::{BufWriter, IntoInnerError, Write};

use super::Limits;
use super::archive::{Entry, Kind, show};
use super::header::BLOCK;
use crate::{Error, Result};

/// What fits into a header's fields of seven and eleven octal digits.
const SHORT: u64 = 0o777_7777;
const LONG: u64 = 0o777_7777_7777;

const BUFFER: usize = 64 << 10;

static ZEROS: [u8; 32 << 10] = [0; 32 << 10];

pub(crate) struct Writer<'a, W: Write> {
    /// Most files are small, and each has a header, content and padding.
    out: BufWriter<W>,
    pub(crate) limits: &'a Limits,
    /// Bytes written.
    pub(crate) bytes: u64,
    /// Entries written.
    pub(crate) entries: u64,
    /// Content of the current entry that is still to come, and what pads it to a whole block.
    content: u64,
    padding: u64,
}

impl<'a, W: Write> Writer<'a, W> {
    pub(crate) fn new(out: W, limits: &'a Limits) -> Self {
        Writer { out: BufWriter::with_capacity(BUFFER, out), limits, bytes: 0, entries: 0, content: 0, padding: 0 }
    }

    /// Begins an entry. A file's [`content`](Self::content) follows; what the last one lacks is filled with zeros.
    pub(crate) fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.fill()?;
        let limit = |what, limit| Err(Error::LimitExceeded { what, limit, entry: show(&entry.name) });
        if entry.name.len().max(entry.link.len()) as u64 > self.limits.path {
            return limit("bytes in a path", self.limits.path);
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return limit("entries", self.limits.entries);
        }
        if entry.length > self.limits.bytes.saturating_sub(self.bytes) {
            return limit("bytes", self.limits.bytes);
        }
        let records = records(entry);
        if !records.is_empty() {
            let mut extension = blank(b"PaxHeaders/entry", b'x', records.len() as u64);
            octal(&mut extension[100..108], 0o644);
            self.put(&sealed(extension))?;
            self.put(&records)?;
            self.put(&ZEROS[..records.len().wrapping_neg() % BLOCK])?;
        }
        let mut header = blank(&entry.name, kind(entry.kind), if entry.length > LONG { 0 } else { entry.length });
        octal(&mut header[100..108], entry.mode.into());
        octal(&mut header[108..116], fitting(entry.uid));
        octal(&mut header[116..124], fitting(entry.gid));
        octal(&mut header[136..148], u64::try_from(entry.mtime.0).ok().filter(|time| *time <= LONG).unwrap_or(0));
        let link = &entry.link[..entry.link.len().min(100)];
        header[157..157 + link.len()].copy_from_slice(link);
        octal(&mut header[329..337], entry.device.0.into());
        octal(&mut header[337..345], entry.device.1.into());
        self.put(&sealed(header))?;
        self.content = entry.length;
        self.padding = entry.length.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// Content of the entry that was begun. What is more than its length is left out.
    pub(crate) fn content(&mut self, piece: &[u8]) -> Result<()> {
        let length = piece.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        self.content -= length as u64;
        self.put(&piece[..length])
    }

    /// Ends the archive. Returns what was written to.
    pub(crate) fn finish(mut self) -> Result<(W, u64)> {
        self.fill()?;
        self.put(&ZEROS[..2 * BLOCK])?;
        let failed = |source| Error::WriteArchive { source };
        let mut out = self.out.into_inner().map_err(IntoInnerError::into_error).map_err(failed)?;
        out.flush().map_err(failed)?;
        Ok((out, self.bytes))
    }

    fn fill(&mut self) -> Result<()> {
        let mut left = self.content + self.padding;
        (self.content, self.padding) = (0, 0);
        while left > 0 {
            let length = ZEROS.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.put(&ZEROS[..length])?;
            left -= length as u64;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|source| Error::WriteArchive { source })
    }
}

fn kind(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// A number that does not fit is 0 in the header: the extended one says it.
fn fitting(id: u32) -> u64 {
    Some(u64::from(id)).filter(|id| *id <= SHORT).unwrap_or(0)
}

/// The records of an entry's extended header.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.name.len() > 100 {
        record(&mut records, b"path", &entry.name);
    }
    if entry.link.len() > 100 {
        record(&mut records, b"linkpath", &entry.link);
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > SHORT {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if entry.length > LONG {
        record(&mut records, b"size", entry.length.to_string().as_bytes());
    }
    let (seconds, nanoseconds) = entry.mtime;
    if nanoseconds != 0 || !u64::try_from(seconds).is_ok_and(|seconds| seconds <= LONG) {
        record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// Seconds and nanoseconds since 1970 as a decimal number.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, fraction) = match (seconds, nanoseconds) {
        (0.., _) => ("", seconds.unsigned_abs(), nanoseconds),
        (_, 0) => ("-", seconds.unsigned_abs(), 0),
        _ => ("-", seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    let mut text = format!("{sign}{whole}");
    if fraction != 0 {
        let _ = write!(text, ".{fraction:09}");
        text.truncate(text.trim_end_matches('0').len());
    }
    text
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    for part in [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

fn blank(name: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let name = &name[..name.len().min(100)];
    header[..name.len()].copy_from_slice(name);
    for (start, end) in [(108, 116), (116, 124), (136, 148), (329, 337), (337, 345)] {
        octal(&mut header[start..end], 0);
    }
    octal(&mut header[124..136], size);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
}

/// The header with its checksum, in which the checksum counts as blanks.
fn sealed(mut header: [u8; BLOCK]) -> [u8; BLOCK] {
    header[148..156].fill(b' ');
    let sum = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
    header
}

#[cfg(test)]
mod tests {
    use super::super::archive::{Archive, Source};
    use super::*;

    struct Bytes(Vec<u8>, usize);

    impl Source for Bytes {
        fn fill(&mut self) -> Result<&[u8]> {
            Ok(&self.0[self.1..])
        }
        fn consume(&mut self, bytes: usize) {
            self.1 += bytes;
        }
    }

    fn entry(name: &[u8], kind: Kind) -> Entry {
        Entry {
            name: name.to_vec(),
            kind,
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
            device: (0, 0),
            xattrs: Vec::new(),
            length: 0,
            sparse: None,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [b"folder/".repeat(40), b"name".to_vec()].concat();
        let entries = [
            entry(b"./", Kind::Directory),
            Entry { mode: 0o7777, uid: 2_097_151, gid: 2_097_152, ..entry(&long, Kind::File) },
            Entry { uid: 4_294_967_294, mtime: (-2, 750_000_000), ..entry(&[b'a'; 100], Kind::Fifo) },
            Entry { mtime: (-1, 500_000_000), link: long.clone(), ..entry(b"l", Kind::Symlink) },
            Entry { mtime: (-5, 0), link: vec![b'x'; 100], ..entry(b"h", Kind::HardLink) },
            Entry { mtime: (1 << 40, 123), device: (4095, 1_048_575), ..entry(b"c", Kind::Character) },
            Entry { mtime: (0, 1), device: (8, 1), ..entry(b"\xff\xfe\n", Kind::Block) },
            Entry {
                xattrs: vec![(b"user.a".to_vec(), b"\0=\n".to_vec()), (b"user.b".to_vec(), vec![7; 1000])],
                length: 700,
                ..entry(b"file", Kind::File)
            },
        ];
        let limits = Limits::default();
        let mut writer = Writer::new(Vec::new(), &limits);
        for entry in &entries {
            writer.entry(entry).expect("written");
            // Too much for one, too little for others.
            writer.content(&[1; 600]).expect("content");
        }
        let (bytes, length) = writer.finish().expect("finished");
        assert_eq!(bytes.len() as u64, length);
        let mut archive = Archive::new(Bytes(bytes, 0), &limits);
        for expected in &entries {
            assert_eq!(archive.next().expect("readable").as_ref(), Some(expected));
            let content = archive.piece(b"").expect("content").to_vec();
            if expected.length > 0 {
                assert_eq!(content, [vec![1; 600], vec![0; 100]].concat());
            }
        }
        assert!(archive.next().expect("readable").is_none());
    }

    #[test]
    fn sizes_that_no_header_holds() {
        let big = Entry { length: 1 << 33, ..entry(b"big", Kind::File) };
        let records = records(&big);
        assert_eq!(records, b"19 size=8589934592\n");
        let limits = Limits { bytes: 1 << 33, ..Limits::default() };
        let mut writer = Writer::new(std::io::sink(), &limits);
        writer.entry(&big).expect("as large as may be");
        assert!(matches!(writer.entry(&big), Err(Error::LimitExceeded { what: "bytes", .. })));
    }
}
