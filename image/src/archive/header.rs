//! Tar headers, read strictly.
//!
//! An archive of images is written by programs, in the ustar format with GNU's or PAX's long names at most. Anything that two readers
//! of tar have been seen to take differently is refused instead of being interpreted: CVE-2025-62518, CVE-2026-33055 and their kin let
//! one archive be two.

use crate::ArchiveProblem;

pub(crate) const BLOCK: usize = 512;
/// The longest name, in bytes.
pub(super) const MAX_NAME: u64 = 4096;
/// The largest PAX header, in bytes.
pub(super) const MAX_PAX: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    Symlink,
    Hardlink,
    /// GNU's long name for the next entry.
    LongName,
    /// GNU's long link target for the next entry.
    LongLink,
    /// PAX records for the next entry.
    Pax,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: u64,
}

impl Header {
    /// Reads a block that is not all zeros.
    pub(super) fn parse(block: &[u8; BLOCK], offset: u64) -> Result<Self, ArchiveProblem> {
        let damaged = |field| ArchiveProblem::Header { offset, field };
        let odd = |what| ArchiveProblem::Oddity { offset, what };
        if !has_checksum(block) {
            return Err(damaged("checksum"));
        }
        let posix = match &block[257..265] {
            b"ustar\x0000" => true,
            b"ustar  \0" => false,
            // The oldest format has nothing there.
            magic if magic.iter().all(|byte| *byte == 0) => false,
            _ => return Err(damaged("magic")),
        };
        let kind = match block[156] {
            b'0' | 0 => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Folder,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'x' => Kind::Pax,
            b'g' => return Err(odd("a global PAX header")),
            b'S' => return Err(odd("a sparse file")),
            b'3' | b'4' | b'6' => return Err(odd("a device or fifo")),
            _ => return Err(odd("an unknown type of entry")),
        };
        let size = number(&block[124..136]).ok_or_else(|| damaged("size"))?;
        if size != 0 && matches!(kind, Kind::Folder | Kind::Symlink | Kind::Hardlink) {
            return Err(odd("a folder or link with content"));
        }
        let name = text(&block[..100]);
        let prefix = if posix { text(&block[345..500]) } else { &[] };
        let name = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        // Before POSIX a folder was a file whose name ends in a slash.
        let kind = if kind == Kind::File && name.ends_with(b"/") { Kind::Folder } else { kind };
        if kind == Kind::Folder && size != 0 {
            return Err(odd("a folder or link with content"));
        }
        Ok(Self { kind, name, link: text(&block[157..257]).to_vec(), size })
    }
}

/// Whether the checksum is that of the block.
fn has_checksum(block: &[u8; BLOCK]) -> bool {
    let bytes = block.iter().enumerate();
    let sum = bytes.map(|(index, byte)| u64::from(if (148..156).contains(&index) { b' ' } else { *byte })).sum();
    octal(&block[148..156]) == Some(sum)
}

/// Whether a tar of whatever kind begins so: with a header, or with the zeros of an empty one.
pub(crate) fn begins_tar(head: &[u8]) -> bool {
    head.try_into().is_ok_and(|block| has_checksum(block) || *block == [0; BLOCK])
}

/// What PAX records say about the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
}

impl Pax {
    /// Reads records of the form `LENGTH KEY=VALUE\n`, with the length counting itself.
    pub(super) fn parse(mut rest: &[u8], offset: u64) -> Result<Self, ArchiveProblem> {
        let damaged = || ArchiveProblem::Header { offset, field: "PAX record" };
        let odd = |what| ArchiveProblem::Oddity { offset, what };
        let mut pax = Self::default();
        while !rest.is_empty() {
            let space = rest.iter().take(6).position(|byte| *byte == b' ').ok_or_else(damaged)?;
            let length = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(damaged)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(damaged());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(damaged)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let fresh = match key {
                b"path" => pax.path.replace(value.to_vec()).is_none(),
                b"linkpath" => pax.link.replace(value.to_vec()).is_none(),
                b"size" => pax.size.replace(decimal(value).ok_or_else(damaged)?).is_none(),
                key if key.starts_with(b"GNU.sparse.") => return Err(odd("a sparse file")),
                b"hdrcharset" => return Err(odd("a PAX character set")),
                // Times, owners and attributes of the archive's files mean nothing here.
                _ => true,
            };
            if !fresh {
                return Err(odd("a PAX record given twice"));
            }
            if value.contains(&0) && matches!(key, b"path" | b"linkpath") {
                return Err(odd("a name with a zero byte"));
            }
        }
        Ok(pax)
    }
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal digits between spaces and zero bytes; an empty field is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Octal, or GNU's binary form for what does not fit.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] != 0x80 {
        return if field[0] & 0x80 == 0 { octal(field) } else { None };
    }
    let value = field[1..].iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)))?;
    i64::try_from(value).ok().map(|_| value)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = std::str::from_utf8(digits).ok()?.parse().ok()?;
    i64::try_from(value).ok().map(|_| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_strictly() {
        let cases: &[(&[u8], Option<u64>)] = &[
            (b"00000000017\0", Some(15)),
            (b"       17 \0 ", Some(15)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"0000000001 7", None),
            (b"00000000018\0", None),
            (b"-0000000001\0", None),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(1 << 33)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, wanted) in cases {
            assert_eq!(number(field), *wanted, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn cve_2026_33055_pax_records_are_read_strictly() {
        let good = Pax::parse(b"12 path=a/b\n10 size=7\n30 mtime=1350244992.023960108\n", 0).expect("is right");
        assert_eq!(good, Pax { path: Some(b"a/b".to_vec()), link: None, size: Some(7) });
        let bad: &[&[u8]] = &[
            b"12 path=a/b",
            b"11 path=a/b\n",
            b"13 path=a/b\n",
            b"999999 path=a/b\n",
            b"0 path=a\n",
            b"3 \n",
            b"path=a\n",
            b"+12 path=a/b\n",
            b"12 path:a/b\n",
            b"10 size=x\n",
            b"11 size=-7\n",
            b"28 size=18446744073709551615\n",
            b"10 size=7\n10 size=8\n",
            b"10 path=a\n10 path=a\n",
            b"11 path=a\0\n",
            b"22 GNU.sparse.major=1\n",
            b"21 hdrcharset=BINARY\n",
        ];
        for record in bad {
            assert!(Pax::parse(record, 0).is_err(), "{}", record.escape_ascii());
        }
    }
}
