//! From compressed bytes to hashed ones: inflation on the caller's thread, hashing and all that follows on another.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::archive::Source;
use super::{Compression, Limits};
use crate::{Error, Result};

/// Bytes in one buffer that goes from thread to thread, and how many wait at most.
const BUFFER: usize = 256 << 10;
const WAITING: usize = 4;

/// Bytes that must have come out before the ratio is looked at: a small file of zeros is no bomb.
const RATIO_FROM: u64 = 64 << 20;

/// The receiving end: hashes what it hands out.
pub(crate) struct Input {
    full: Receiver<Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    position: usize,
    hash: Sha256,
    bytes: u64,
}

impl Source for Input {
    fn fill(&mut self) -> Result<&[u8]> {
        if self.position == self.buffer.len() {
            let used = std::mem::take(&mut self.buffer);
            self.position = 0;
            // Nobody takes it once the stream has ended.
            let _ = self.empty.send(used);
            if let Ok(next) = self.full.recv() {
                self.buffer = next?;
                self.hash.update(&self.buffer);
                self.bytes += self.buffer.len() as u64;
            }
        }
        Ok(&self.buffer[self.position..])
    }

    fn consume(&mut self, bytes: usize) {
        self.position += bytes;
    }
}

impl Input {
    /// Reads to the stream's very end; returns its hash and length.
    pub(crate) fn finish(mut self) -> Result<([u8; 32], u64)> {
        loop {
            let left = self.fill()?.len();
            if left == 0 {
                return Ok((self.hash.finalize().into(), self.bytes));
            }
            self.consume(left);
        }
    }
}

/// Runs `work` on the bytes that come out of `reader`.
pub(crate) fn run<T: Send>(
    reader: impl Read,
    compression: Compression,
    limits: &Limits,
    work: impl FnOnce(Input) -> Result<T> + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let (full, from_full) = sync_channel(WAITING);
        let (empty, from_empty) = channel();
        let input = Input { full: from_full, empty, buffer: Vec::new(), position: 0, hash: Sha256::new(), bytes: 0 };
        let worker = thread::Builder::new()
            .name("layer".into())
            .spawn_scoped(scope, || work(input))
            .map_err(|source| Error::ReadLayer { source })?;
        if let Err(error) = pump(reader, compression, limits, &full, &from_empty) {
            // The worker gets it in its turn, unless it has failed itself before.
            let _ = full.send(Err(error));
        }
        drop(full);
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What the decoder cannot tell: how much was read, and whose failure an error is.
#[derive(Default)]
struct Meter {
    bytes: Cell<u64>,
    failed: Cell<bool>,
}

struct Metered<R> {
    reader: R,
    meter: Rc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(bytes) => {
                self.meter.bytes.set(self.meter.bytes.get() + bytes as u64);
                Ok(bytes)
            }
            Err(error) => {
                self.meter.failed.set(error.kind() != io::ErrorKind::Interrupted);
                Err(error)
            }
        }
    }
}

fn pump(
    reader: impl Read,
    compression: Compression,
    limits: &Limits,
    full: &SyncSender<Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<()> {
    let meter = Rc::new(Meter::default());
    let mut reader = Metered { reader, meter: Rc::clone(&meter) };
    let mut start = [0; 4];
    let length = read_full(&mut reader, &mut start).map_err(|source| Error::ReadLayer { source })?;
    let start = &start[..length];
    let (name, mut decoder): (_, Box<dyn Read + '_>) = {
        let whole = BufReader::with_capacity(BUFFER, start.chain(reader));
        match if compression == Compression::Sniff { sniff(start) } else { compression } {
            Compression::Gzip => ("gzip", Box::new(MultiGzDecoder::new(whole))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(whole);
                ("zstd", Box::new(decoder.map_err(|source| Error::Decompress { compression: "zstd", source })?))
            }
            Compression::None | Compression::Sniff => ("plain", Box::new(whole)),
        }
    };
    let mut bytes = 0_u64;
    loop {
        let mut buffer = empty.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let length = read_full(&mut decoder, &mut buffer).map_err(|source| {
            if meter.failed.get() || name == "plain" {
                Error::ReadLayer { source }
            } else {
                Error::Decompress { compression: name, source }
            }
        })?;
        bytes += length as u64;
        let exceeded = |what, limit| Err(Error::LimitExceeded { what, limit, entry: String::new() });
        if bytes > limits.bytes {
            return exceeded("bytes", limits.bytes);
        }
        if bytes > RATIO_FROM && bytes / limits.ratio.max(1) > meter.bytes.get() {
            return exceeded("bytes for each compressed byte", limits.ratio);
        }
        if length == 0 {
            return Ok(());
        }
        buffer.truncate(length);
        if full.send(Ok(buffer)).is_err() {
            return Ok(());
        }
    }
}

fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(bytes) => length += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn sniff(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable one before it.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
        _ => Compression::None,
    }
}
