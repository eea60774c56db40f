//! Layers that are made here.

use std::fmt;
use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use oci_spec::image::MediaType;

use crate::archive::{BLOCK, begins_tar};
use crate::digest::Hasher;
use crate::media::Compression;
use crate::{ArchiveProblem, ContentStore, Error, Ingest, Layer, Result};

/// Half the time of zlib's usual 6, for a twentieth more bytes.
const LEVEL: u32 = 2;

/// A tar that is on its way into a content store as a new layer: write its bytes, then [`finish`](Self::finish).
///
/// It is hashed twice on its way, as it is and as it is stored, and is nowhere in memory or on disk but in the store. Dropped before the end, it
/// leaves nothing.
pub struct LayerWriter {
    stage: Stage,
    hasher: Hasher,
    location: String,
}

enum Stage {
    Plain(Box<dyn Ingest>),
    Gzip(Box<GzEncoder<Box<dyn Ingest>>>),
}

impl LayerWriter {
    /// Begins a layer that is stored plain or with gzip.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCommit`] for zstd, which this crate does not write.
    pub fn begin<S: ContentStore + ?Sized>(store: &S, compression: Compression) -> Result<Self> {
        let stage = match compression {
            Compression::None => Stage::Plain(store.ingest()?),
            // Without a name and a time in the header, the same tar gives the same blob.
            Compression::Gzip => {
                Stage::Gzip(Box::new(GzEncoder::new(store.ingest()?, flate2::Compression::new(LEVEL))))
            }
            Compression::Zstd => {
                return Err(Error::InvalidCommit { reason: "layers are not written with zstd, use gzip".to_owned() });
            }
        };
        Ok(Self { stage, hasher: Hasher::sha256(), location: store.location() })
    }

    /// Ends the layer: it is in the store then.
    pub fn finish(self) -> Result<Layer> {
        let (ingest, compression, media_type) = match self.stage {
            Stage::Plain(ingest) => (ingest, Compression::None, MediaType::ImageLayer),
            Stage::Gzip(encoder) => {
                let ingest = encoder.finish().map_err(|error| written(error, &self.location))?;
                (ingest, Compression::Gzip, MediaType::ImageLayerGzip)
            }
        };
        Ok(Layer { descriptor: ingest.finish(media_type)?, compression, diff_id: self.hasher.finish() })
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = match &mut self.stage {
            Stage::Plain(ingest) => ingest.write(bytes),
            Stage::Gzip(encoder) => encoder.write(bytes),
        }?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for LayerWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerWriter").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Takes in a tar of a root file system as a layer, as `docker import` does; one with gzip stays byte by byte what it is.
///
/// # Errors
///
/// [`Error::Archive`] if it is no tar, or compressed in another way.
pub fn import_layer<S: ContentStore + ?Sized>(mut input: impl Read, store: &S) -> Result<Layer> {
    let mut head = [0; BLOCK];
    let count = read_full(&mut input, &mut head)?;
    let head = &head[..count];
    match head {
        [0x1f, 0x8b, ..] => import_gzip(head.chain(input), store),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Err(problem(ArchiveProblem::Compressed("zstd"))),
        [b'B', b'Z', b'h', ..] => Err(problem(ArchiveProblem::Compressed("bzip2"))),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(problem(ArchiveProblem::Compressed("xz"))),
        head if !begins_tar(head) => Err(problem(ArchiveProblem::NotTar)),
        head => {
            let mut layer = LayerWriter::begin(store, Compression::Gzip)?;
            pump(&mut head.chain(input), &mut layer, &store.location())?;
            layer.finish()
        }
    }
}

fn import_gzip<S: ContentStore + ?Sized>(input: impl Read, store: &S) -> Result<Layer> {
    let location = store.location();
    let mut decoder = MultiGzDecoder::new(Tee { input, ingest: store.ingest()? });
    let mut hasher = Hasher::sha256();
    let mut head = [0; BLOCK];
    let inflate = |error: io::Error| match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof) => {
            problem(ArchiveProblem::Gzip(0))
        }
        Err(error) => Error::io("read", "the layer", error),
    };
    let count = fill(&mut decoder, &mut head).map_err(inflate)?;
    if !begins_tar(&head[..count]) {
        return Err(problem(ArchiveProblem::NotTar));
    }
    hasher.update(&head[..count]);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match decoder.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(inflate(error)),
        }
    }
    // Whatever the decoder did not look at belongs to the blob.
    let Tee { mut input, mut ingest } = decoder.into_inner();
    pump(&mut input, &mut ingest, &location)?;
    let descriptor = ingest.finish(MediaType::ImageLayerGzip)?;
    Ok(Layer { descriptor, compression: Compression::Gzip, diff_id: hasher.finish() })
}

/// A reader whose bytes go into an ingest as well.
struct Tee<R> {
    input: R,
    ingest: Box<dyn Ingest>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.ingest.write_all(&buffer[..count])?;
        Ok(count)
    }
}

fn pump(input: &mut dyn Read, out: &mut dyn Write, location: &str) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => out.write_all(&buffer[..count]).map_err(|error| written(error, location))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", "the layer", error)),
        }
    }
}

/// Fills the buffer, or as much of it as there is.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    fill(input, buffer).map_err(|source| Error::io("read", "the layer", source))
}

fn written(error: io::Error, location: &str) -> Error {
    error.downcast::<Error>().unwrap_or_else(|source| Error::io("write to", location, source))
}

fn problem(problem: ArchiveProblem) -> Error {
    Error::Archive { archive: "the layer".to_owned(), problem }
}
