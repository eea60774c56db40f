//! Copying an image from one place to another.

use oci_spec::image::Descriptor;

use crate::{ContentStore, Platform, Provider, Result};

/// Copies the image that `root` (an index or a manifest) has for `platform`, verified, and returns its manifest's descriptor.
///
/// Blobs that `to` has already are not read again. The manifest goes last: where it is, everything it names is.
pub fn copy<P, S>(from: &P, root: &Descriptor, platform: &Platform, to: &S) -> Result<Descriptor>
where
    P: Provider + ?Sized,
    S: ContentStore + ?Sized,
{
    let _ = (from, root, platform, to);
    todo!()
}
