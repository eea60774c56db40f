//! Copying an image from one place to another.

use std::io::{Read, Write};

use oci_spec::image::Descriptor;

use crate::{ContentStore, Error, Image, Platform, Provider, Result};

/// Copies the image that `root` (an index or a manifest) has for `platform`, verified, and returns its manifest's descriptor.
///
/// Blobs that `to` has already are not read again. The manifest goes last: where it is, everything it names is.
pub fn copy<P, S>(from: &P, root: &Descriptor, platform: &Platform, to: &S) -> Result<Descriptor>
where
    P: Provider + ?Sized,
    S: ContentStore + ?Sized,
{
    let image = Image::load(from, root, platform)?;
    for layer in image.layers() {
        if !to.contains(&layer.descriptor)? {
            transfer(&mut *from.open(&layer.descriptor)?, &layer.descriptor, &from.location(), to)?;
        }
    }
    let documents = [(image.manifest().config(), image.raw_config()), (image.descriptor(), image.raw_manifest())];
    for (descriptor, mut raw) in documents {
        if !to.contains(descriptor)? {
            transfer(&mut raw, descriptor, &from.location(), to)?;
        }
    }
    Ok(image.descriptor().clone())
}

/// Moves one blob. The bytes are hashed once, by the ingest.
fn transfer<S: ContentStore + ?Sized>(
    reader: &mut dyn Read,
    descriptor: &Descriptor,
    location: &str,
    to: &S,
) -> Result<()> {
    const BUFFER: usize = 256 << 10;
    let mut ingest = to.ingest()?;
    let wanted = usize::try_from(descriptor.size()).unwrap_or(BUFFER).clamp(1, BUFFER);
    let mut buffer = vec![0; wanted];
    // One byte more than described is enough to know that there are too many.
    let mut reader = reader.take(descriptor.size().saturating_add(1));
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::from_read(error, location, descriptor.digest())),
        };
        ingest.write_all(&buffer[..count]).map_err(|error| {
            error.downcast::<Error>().unwrap_or_else(|source| Error::io("write to", to.location(), source))
        })?;
    }
    ingest.commit(descriptor).map_err(|error| match error {
        // The store only saw the bytes; it is the source that had the wrong ones.
        Error::DigestMismatch { expected, actual, .. } => {
            Error::DigestMismatch { location: location.to_owned(), expected, actual }
        }
        Error::SizeMismatch { digest, expected, actual, .. } => {
            Error::SizeMismatch { location: location.to_owned(), digest, expected, actual }
        }
        other => other,
    })
}
