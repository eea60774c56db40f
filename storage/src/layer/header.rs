//! One 512-byte header of a tar archive.
//!
//! Where the readers of the world disagree on what a header says, it is refused: what GNU tar, Go's `archive/tar` and
//! this crate see in an archive is the same or nothing.

/// Bytes in a block, which is what everything in an archive is padded to.
pub(crate) const BLOCK: usize = 512;

/// Offsets and lengths of what a sparse file holds.
pub(crate) type Map = Vec<(u64, u64)>;

/// A header as it stands.
pub(crate) struct Header<'a>(pub(crate) &'a [u8; BLOCK]);

/// Whose conventions the header follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Before POSIX: no prefix, no devices.
    V7,
    /// POSIX: `ustar\0`.
    Ustar,
    /// GNU: `ustar  \0`.
    Gnu,
}

/// Why a header cannot be read.
pub(crate) type Reason = &'static str;

impl Header<'_> {
    fn field(&self, start: usize, end: usize) -> &[u8] {
        &self.0[start..end]
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    pub(crate) fn check(&self) -> Result<(), Reason> {
        let stored = number(self.field(148, 156))?;
        let sum = |value: fn(u8) -> i64| -> i64 {
            self.0.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { value(*b) }).sum()
        };
        // Historic archivers added signed characters.
        if stored == sum(i64::from) || stored == sum(|b| i64::from(b.cast_signed())) {
            Ok(())
        } else {
            Err("the header's checksum is wrong")
        }
    }

    pub(crate) fn format(&self) -> Format {
        match self.field(257, 265) {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::V7,
        }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with POSIX's prefix.
    pub(crate) fn name(&self) -> Result<Vec<u8>, Reason> {
        let name = text(self.field(0, 100));
        match self.format() {
            Format::V7 => {}
            Format::Ustar => {
                // star's own format keeps times at the prefix's end.
                let end = if self.field(508, 512) == b"tar\0" { 476 } else { 500 };
                let prefix = text(self.field(345, end));
                if !prefix.is_empty() {
                    return Ok([prefix, b"/", name].concat());
                }
            }
            Format::Gnu => {
                // Go takes a prefix where GNU keeps a time, if the time is none.
                number(self.field(345, 357)).map_err(|_| "a GNU header has a prefix")?;
            }
        }
        Ok(name.to_vec())
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(self.field(157, 257)).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<u32, Reason> {
        let mode = number(self.field(100, 108))?;
        u32::try_from(mode).map(|mode| mode & 0o7777).map_err(|_| "its mode is out of range")
    }

    pub(crate) fn uid(&self) -> Result<i64, Reason> {
        number(self.field(108, 116))
    }

    pub(crate) fn gid(&self) -> Result<i64, Reason> {
        number(self.field(116, 124))
    }

    pub(crate) fn size(&self) -> Result<u64, Reason> {
        number(self.field(124, 136)).and_then(size)
    }

    pub(crate) fn mtime(&self) -> Result<i64, Reason> {
        number(self.field(136, 148))
    }

    pub(crate) fn device(&self) -> Result<(u32, u32), Reason> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        let part = |field: &[u8], bits: u32| match number(field) {
            Ok(number) if (0..1_i64 << bits).contains(&number) => Ok(number as u32),
            _ => Err("its device number is out of range"),
        };
        Ok((part(self.field(329, 337), 12)?, part(self.field(337, 345), 20)?))
    }

    /// GNU's sparse map: pairs of offset and length, whether more follow, and the file's length.
    pub(crate) fn sparse(&self) -> Result<(Map, bool, u64), Reason> {
        let map = sparse_pairs(self.field(386, 482))?;
        let length = number(self.field(483, 495)).and_then(size)?;
        Ok((map, self.0[482] != 0, length))
    }

    /// A block that continues GNU's sparse map.
    pub(crate) fn sparse_more(&self) -> Result<(Map, bool), Reason> {
        Ok((sparse_pairs(self.field(0, 504))?, self.0[504] != 0))
    }
}

fn sparse_pairs(field: &[u8]) -> Result<Map, Reason> {
    let mut pairs = Vec::new();
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        pairs.push((number(&pair[..12]).and_then(size)?, number(&pair[12..]).and_then(size)?));
    }
    Ok(pairs)
}

fn size(number: i64) -> Result<u64, Reason> {
    u64::try_from(number).map_err(|_| "its size is negative")
}

/// Text up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// A number in octal digits, or in base 256 as GNU writes large and negative ones.
fn number(field: &[u8]) -> Result<i64, Reason> {
    const BAD: Reason = "a number in its header is malformed";
    match field.first() {
        Some(0x80) => field[1..].iter().try_fold(0_i64, |value, byte| {
            value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*byte))).ok_or(BAD)
        }),
        Some(0xff) => field[1..].iter().try_fold(-1_i64, |value, byte| {
            value.checked_mul(256).and_then(|value| value.checked_add(i64::from(*byte))).ok_or(BAD)
        }),
        _ => {
            let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
            let digits = &field[start..];
            let end = digits.iter().position(|b| *b == 0 || *b == b' ').unwrap_or(digits.len());
            let (digits, rest) = digits.split_at(end);
            if rest.iter().any(|b| *b != 0 && *b != b' ') {
                return Err(BAD);
            }
            digits.iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => {
                    value.checked_mul(8).and_then(|value| value.checked_add(i64::from(digit - b'0'))).ok_or(BAD)
                }
                _ => Err(BAD),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"        ", Ok(0)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"77777777", Ok(0o7777_7777)),
            (b"\x80\0\0\0\0\0\x01\0", Ok(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Ok(-256)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Err(())),
            (b"0000648\0", Err(())),
            (b"-000001\0", Err(())),
            (b"\x00000644\0", Err(())),
            (b"644\0\0\x0001", Err(())),
            (b"\xc0\0\0\0\0\0\0\x01", Err(())),
        ] {
            assert_eq!(number(field).map_err(|_| ()), expected, "{field:?}");
        }
    }
}
