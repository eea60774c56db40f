//! The bytes of an archive: of a file or in memory, plain or inflated.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use crate::ArchiveProblem;

/// Bytes that can be read anywhere, by any number of readers.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    File(Arc<File>),
    Bytes(&'static [u8]),
}

impl Raw {
    pub(super) fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Reads from `offset`, as `pread(2)` does.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(buffer, offset),
            Self::Bytes(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                Ok(count)
            }
        }
    }
}

/// A reader of a range of the bytes.
#[derive(Debug)]
pub(super) struct Range {
    raw: Raw,
    position: u64,
    end: u64,
}

impl Range {
    pub(super) fn new(raw: &Raw, start: u64, end: u64) -> Self {
        Self { raw: raw.clone(), position: start, end }
    }
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let room = buffer.len().min(left);
        let count = self.raw.read_at(&mut buffer[..room], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// An inflated stream and the position in it.
pub(super) struct Inflated {
    decoder: MultiGzDecoder<Range>,
    position: u64,
    limit: u64,
}

impl Inflated {
    pub(super) fn new(raw: &Raw, limit: u64) -> io::Result<Self> {
        let decoder = MultiGzDecoder::new(Range::new(raw, 0, raw.len()?));
        Ok(Self { decoder, position: 0, limit })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.position += count as u64;
        if self.position > self.limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, ArchiveProblem::Bomb(self.limit)));
        }
        Ok(count)
    }
}

impl fmt::Debug for Inflated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflated").field("position", &self.position).finish_non_exhaustive()
    }
}
