//! The traits by which image content is read and stored.

use std::fmt::Debug;
use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest, MediaType};

use crate::{Error, Result, Verified};

/// The largest manifest, index or config that is read, in bytes: 4 MiB, the limit that registries have.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Somewhere that has the bytes of blobs: a layout, an archive, later a registry.
pub trait Provider: Debug + Send + Sync {
    /// Opens the blob for reading from its beginning.
    ///
    /// The bytes are *not* to be trusted: wrap the reader in [`Verified`], or use [`read_blob`] or [`copy`](crate::copy()).
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>>;

    /// How a person would name this place; it stands in error messages.
    fn location(&self) -> String {
        "the image's source".to_owned()
    }
}

/// A provider that can also take blobs in.
pub trait ContentStore: Provider {
    /// Whether the blob is there. What is there was verified when it came in, so only its size is compared.
    fn contains(&self, descriptor: &Descriptor) -> Result<bool>;

    /// Begins to take in a blob. Nothing is visible before [`Ingest::commit`]; dropping the ingest discards it.
    fn ingest(&self) -> Result<Box<dyn Ingest>>;

    /// Removes a blob; one that is not there is no error.
    fn remove(&self, digest: &Digest) -> Result<()>;
}

/// A blob on its way in: write its bytes, then commit.
pub trait Ingest: io::Write + Send + Debug {
    /// Verifies size and digest, makes the bytes durable, and only then makes the blob visible.
    fn commit(self: Box<Self>, expected: &Descriptor) -> Result<()>;

    /// Makes whatever was written durable and visible under its sha256 digest, which the descriptor then has: for blobs that are
    /// made here.
    fn finish(self: Box<Self>, media_type: MediaType) -> Result<Descriptor>;
}

/// Reads a whole blob into memory, verified.
///
/// # Errors
///
/// [`Error::TooLarge`] if the descriptor (checked before anything is read) claims more than `max` bytes;
/// [`Error::SizeMismatch`] and [`Error::DigestMismatch`] if the bytes are not the ones described.
pub fn read_blob<P: Provider + ?Sized>(provider: &P, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>> {
    if descriptor.size() > max {
        return Err(Error::TooLarge {
            what: format!("blob {} in {}", descriptor.digest(), provider.location()),
            size: descriptor.size(),
            limit: max,
        });
    }
    let location = provider.location();
    let mut reader = Verified::new(provider.open(descriptor)?, descriptor, &location)?;
    let mut bytes = Vec::with_capacity(descriptor.size() as usize);
    reader.read_to_end(&mut bytes).map_err(|source| Error::from_read(source, &location, descriptor.digest()))?;
    Ok(bytes)
}
