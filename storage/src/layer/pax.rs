//! PAX extended headers.

use super::header::Reason;

/// What an extended header says of the entry that follows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<(i64, u32)>,
    /// Extended attributes, in the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// GNU's keywords for sparse files, of its three versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    /// The real name, where `path` has a made-up one.
    pub(crate) name: Option<Vec<u8>>,
    /// The file's real length.
    pub(crate) length: Option<u64>,
    /// The map of versions 0.0 and 0.1.
    pub(crate) map: Option<Vec<(u64, u64)>>,
    pub(crate) blocks: Option<u64>,
}

/// The records of an extended header: `LENGTH KEY=VALUE\n` each.
fn records(mut data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), Reason>> {
    const BAD: Reason = "its extended header is malformed";
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let record = (|| {
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
            let length = usize::try_from(decimal(&data[..space])?).map_err(|_| BAD)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(BAD);
            }
            let body = &data[space + 1..length - 1];
            let equals = body.iter().position(|b| *b == b'=').ok_or(BAD)?;
            let (key, value) = (&body[..equals], &body[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err(BAD);
            }
            Ok((key, value, length))
        })();
        match record {
            Ok((key, value, length)) => {
                data = &data[length..];
                Some(Ok((key, value)))
            }
            Err(reason) => {
                data = &[];
                Some(Err(reason))
            }
        }
    })
}

fn decimal(digits: &[u8]) -> Result<u64, Reason> {
    const BAD: Reason = "a number in its extended header is malformed";
    if digits.is_empty() || digits.len() > 19 {
        return Err(BAD);
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0'))).ok_or(BAD),
        _ => Err(BAD),
    })
}

/// Seconds with an optional sign and fraction.
fn time(value: &[u8]) -> Result<(i64, u32), Reason> {
    const BAD: Reason = "a time in its extended header is malformed";
    let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let (seconds, fraction) = match value.iter().position(|b| *b == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &[][..]),
    };
    let seconds = i64::try_from(decimal(seconds)?).map_err(|_| BAD)?;
    let mut nanoseconds = 0;
    for at in 0..fraction.len().max(9) {
        let digit = match fraction.get(at) {
            Some(digit @ b'0'..=b'9') => u32::from(digit - b'0'),
            Some(_) => return Err(BAD),
            None => 0,
        };
        if at < 9 {
            nanoseconds = nanoseconds * 10 + digit;
        }
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Reason> {
    if place.replace(value).is_some() {
        return Err("its extended header says a thing twice");
    }
    Ok(())
}

fn name(value: &[u8]) -> Result<Vec<u8>, Reason> {
    if value.contains(&0) {
        return Err("a name in its extended header has a NUL");
    }
    Ok(value.to_vec())
}

impl Pax {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, Reason> {
        let mut pax = Pax::default();
        // Version 0.0 repeats two keywords; the order is the map.
        let mut offset = None;
        for record in records(data) {
            let (key, value) = record?;
            if let Some(xattr) = key.strip_prefix(b"SCHILY.xattr.") {
                if xattr.is_empty() || pax.xattrs.iter().any(|(name, _)| name == xattr) {
                    return Err("its extended header says a thing twice");
                }
                pax.xattrs.push((xattr.to_vec(), value.to_vec()));
                continue;
            }
            // An empty value takes back what a global header said; there is none here.
            if value.is_empty() {
                continue;
            }
            match key {
                b"path" => once(&mut pax.path, name(value)?)?,
                b"linkpath" => once(&mut pax.link, name(value)?)?,
                b"size" => once(&mut pax.size, decimal(value)?)?,
                b"uid" => once(&mut pax.uid, decimal(value)?.cast_signed())?,
                b"gid" => once(&mut pax.gid, decimal(value)?.cast_signed())?,
                b"mtime" => once(&mut pax.mtime, time(value)?)?,
                b"GNU.sparse.major" => once(&mut pax.sparse.major, decimal(value)?)?,
                b"GNU.sparse.minor" => once(&mut pax.sparse.minor, decimal(value)?)?,
                b"GNU.sparse.name" => once(&mut pax.sparse.name, name(value)?)?,
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => once(&mut pax.sparse.length, decimal(value)?)?,
                b"GNU.sparse.numblocks" => once(&mut pax.sparse.blocks, decimal(value)?)?,
                b"GNU.sparse.map" => once(&mut pax.sparse.map, map(value)?)?,
                b"GNU.sparse.offset" => once(&mut offset, decimal(value)?)?,
                b"GNU.sparse.numbytes" => match offset.take() {
                    Some(offset) => pax.sparse.map.get_or_insert_default().push((offset, decimal(value)?)),
                    None => return Err("its sparse map is malformed"),
                },
                _ if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" => {
                    return Err("it is sparse in a way that is not supported");
                }
                // Times of access, names of owners, ACLs as text, comments, vendors' own.
                _ => {}
            }
        }
        if offset.is_some() {
            return Err("its sparse map is malformed");
        }
        Ok(pax)
    }

    /// A global header may only carry comments: GNU tar applies the rest to all that follows, Go to nothing.
    pub(crate) fn check_global(data: &[u8]) -> Result<(), Reason> {
        for record in records(data) {
            if record?.0 != b"comment" {
                return Err("a global extended header sets more than a comment");
            }
        }
        Ok(())
    }
}

fn map(value: &[u8]) -> Result<Vec<(u64, u64)>, Reason> {
    let numbers = value.split(|b| *b == b',').map(decimal).collect::<Result<Vec<_>, _>>()?;
    if numbers.len() % 2 != 0 {
        return Err("its sparse map is malformed");
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// The numbers of version 1.0's map, a line each, which stand before the data.
pub(crate) fn map_line(line: &[u8]) -> Result<u64, Reason> {
    decimal(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_is_well_formed_and_refuses_the_rest() {
        let good =
            Pax::parse(b"12 path=a/b\n18 mtime=-1.25000\n29 SCHILY.xattr.user.k=a\0=\nc\n").expect("well formed");
        assert_eq!(good.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(good.mtime, Some((-2, 750_000_000)));
        assert_eq!(good.xattrs, [(b"user.k".to_vec(), b"a\0=\nc".to_vec())]);
        for bad in [
            &b"12 path=a/b"[..],
            b"13 path=a/b\n",
            b"3 a\n",
            b"0 path=a/b\n",
            b"-1 path=a\n",
            b"99999999999999999999 path=a\n",
            b"12 path=a\0b\n",
            b"11 size=1x\n",
            b"12 size=-10\n",
            b"10 path=a\n10 path=b\n",
            b"10 size=1\n10 size=2\n",
            b"6 =ab\n",
            b"25 GNU.sparse.map=1,2,3\n",
            b"25 GNU.sparse.numbytes=1\n",
            b"24 GNU.sparse.mystery=1\n",
        ] {
            assert!(Pax::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn global_headers() {
        assert!(Pax::check_global(b"15 comment=abc\n").is_ok());
        assert!(Pax::check_global(b"10 path=a\n").is_err());
        assert!(Pax::check_global(b"10 size=1\n").is_err());
    }
}
