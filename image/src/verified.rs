//! A reader that checks what passes through it.

use std::fmt;
use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest};

use crate::digest::Hasher;
use crate::{Error, Result};

/// A reader of a blob that fails unless the bytes have the size and digest of the descriptor.
///
/// The last bytes are handed out only after the digest of all of them was found right: who got `size` bytes without an error has
/// the blob. Bytes beyond the size are an error too, seen at the read after the last one.
/// Errors are `io::Error`s that hold an [`Error`], for `io::Error::downcast`.
pub struct Verified<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Digest,
    size: u64,
    read: u64,
    failed: bool,
    location: String,
}

impl<R: Read> Verified<R> {
    /// Wraps a reader that is at the blob's first byte. `location` names the place in errors.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedDigest`] if the digest's algorithm cannot be computed.
    pub fn new(inner: R, descriptor: &Descriptor, location: &str) -> Result<Self> {
        let hasher = Hasher::for_digest(descriptor.digest())?;
        Ok(Self {
            inner,
            hasher: Some(hasher),
            expected: descriptor.digest().clone(),
            size: descriptor.size(),
            read: 0,
            failed: false,
            location: location.to_owned(),
        })
    }

    fn size_mismatch(&self, actual: u64) -> io::Error {
        Error::SizeMismatch {
            location: self.location.clone(),
            digest: self.expected.clone(),
            expected: self.size,
            actual,
        }
        .into()
    }

    /// Compares the digest once all bytes were seen.
    fn finish(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual != self.expected {
            let (location, expected) = (self.location.clone(), self.expected.clone());
            return Err(Error::DigestMismatch { location, expected, actual }.into());
        }
        Ok(())
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the blob was found wrong before"));
        }
        let outcome = self.pass(buffer);
        self.failed = outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
        outcome
    }
}

impl<R: Read> Verified<R> {
    fn pass(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let left = self.size - self.read;
        if left == 0 {
            self.finish()?;
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                more => Err(self.size_mismatch(self.read + more as u64)),
            };
        }
        let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(self.size_mismatch(self.read));
        }
        self.read += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        if self.read == self.size {
            self.finish()?;
        }
        Ok(count)
    }
}

impl<R> fmt::Debug for Verified<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("expected", &self.expected)
            .field("size", &self.size)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::digest::digest_of;

    fn describe(bytes: &[u8], size: u64) -> Descriptor {
        Descriptor::new(MediaType::ImageLayer, size, digest_of(bytes))
    }

    fn check(bytes: &[u8], descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        Verified::new(bytes, descriptor, "a test")
            .expect("sha256")
            .read_to_end(&mut out)
            .map_err(|error| error.downcast::<Error>().expect("one of ours"))?;
        Ok(out)
    }

    #[test]
    fn hands_out_what_is_right_and_nothing_else() {
        assert_eq!(check(b"hello", &describe(b"hello", 5)).expect("right"), b"hello");
        assert_eq!(check(b"", &describe(b"", 0)).expect("right"), b"");
        assert!(matches!(check(b"hell", &describe(b"hello", 5)), Err(Error::SizeMismatch { actual: 4, .. })));
        assert!(matches!(check(b"hello!", &describe(b"hello", 5)), Err(Error::SizeMismatch { actual: 6, .. })));
        assert!(matches!(check(b"hellO", &describe(b"hello", 5)), Err(Error::DigestMismatch { .. })));
        assert!(matches!(check(b"", &describe(b"hello", 0)), Err(Error::DigestMismatch { .. })));
    }

    #[test]
    fn the_last_byte_is_kept_back_until_the_digest_is_right() {
        let descriptor = describe(b"hello", 5);
        let mut reader = Verified::new(&b"hellO"[..], &descriptor, "a test").expect("sha256");
        let mut first = [0; 4];
        reader.read_exact(&mut first).expect("the first bytes come as they are");
        let mut last = [0; 1];
        reader.read_exact(&mut last).expect_err("the last byte only with the right digest");
        reader.read_exact(&mut last).expect_err("an error stays one");
    }
}
