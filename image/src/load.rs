//! `docker load`: all images of an archive come into a store.

use std::io::{self, Read, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, Digest};

use crate::archive::Archive;
use crate::layout::Spool;
use crate::{DockerArchive, Error, Image, Layout, Listing, OciArchive, Platform, Provider, Reference, Result, copy};

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its id: the digest of its config.
    pub id: Digest,
    /// Its names in the store, full; if it has none, it is listed without.
    pub names: Vec<String>,
}

impl Layout {
    /// Takes in all images of an archive, of either kind, plain or gzip, for `platform`, and gives them all names that the archive
    /// gives them: all at once, after the last blob is there.
    ///
    /// An archive that is an OCI layout as well, as Docker writes since 25, is read as one: manifests keep their digests. Its names
    /// are those in `io.containerd.image.name`, and those in `org.opencontainers.image.ref.name` that are references with a tag.
    ///
    /// # Errors
    ///
    /// [`Error::NoPlatform`] if an index in it has nothing for the platform. No name has changed after an error.
    pub fn load(&self, path: impl AsRef<Path>, platform: &Platform) -> Result<Vec<Loaded>> {
        self.load_archive(Archive::open(path.as_ref())?, platform)
    }

    /// The same from a stream, such as standard input.
    ///
    /// What an archive has can only be known when all of it was read, so it goes to a file in the store's `ingest/` first, at most
    /// `limit` bytes. It is removed at the end; if the process is killed, by the next ingest.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] beyond the limit.
    pub fn load_stream(&self, mut input: impl Read, limit: u64, platform: &Platform) -> Result<Vec<Loaded>> {
        let mut spool = Spool::begin(self)?;
        let mut buffer = vec![0; 256 << 10];
        let mut size = 0;
        loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(Error::io("read", "the archive", source)),
            };
            size += count as u64;
            if size > limit {
                return Err(Error::TooLarge { what: "the archive".to_owned(), size, limit });
            }
            spool.write_all(&buffer[..count]).map_err(|source| Error::io("write", spool.path(), source))?;
        }
        self.load_archive(Archive::of_file("the archive".to_owned(), spool.file()?)?, platform)
    }

    fn load_archive(&self, archive: Archive, platform: &Platform) -> Result<Vec<Loaded>> {
        if archive.find("oci-layout")?.is_some() {
            let archive = OciArchive::new(archive)?;
            self.load_from(&archive, &archive.images()?, platform)
        } else {
            let archive = DockerArchive::new(archive)?;
            self.load_from(&archive, archive.images(), platform)
        }
    }

    fn load_from(&self, from: &dyn Provider, images: &[Listing], platform: &Platform) -> Result<Vec<Loaded>> {
        if images.is_empty() {
            return Err(Error::NoSuchImage { location: from.location(), wanted: String::new(), available: Vec::new() });
        }
        let lease = self.lease()?;
        let mut loaded: Vec<Loaded> = Vec::new();
        for listing in images {
            // Docker lists an image once for each name.
            let manifest = copy(from, &listing.root, platform, &lease)?;
            let names = listing.names.iter().filter_map(|name| full_name(name));
            if let Some(other) = loaded.iter_mut().find(|other| other.manifest.digest() == manifest.digest()) {
                other.names.extend(names);
            } else {
                let id = Image::load(self, &manifest, platform)?.id().clone();
                loaded.push(Loaded { manifest, id, names: names.collect() });
            }
        }
        let mut names = Vec::new();
        for image in &mut loaded {
            image.names.sort();
            image.names.dedup();
            names.extend(image.names.iter().map(|name| (name.as_str(), &image.manifest)));
        }
        self.tag_all(&names)?;
        for image in loaded.iter().filter(|image| image.names.is_empty()) {
            self.keep(&image.manifest)?;
        }
        Ok(loaded)
    }
}

/// The reference that a name in an archive is, in full. A word without a tag may be the tag of something.
fn full_name(name: &str) -> Option<String> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let reference: Reference = name.parse().ok()?;
    (last.contains([':', '@'])).then(|| reference.to_string())
}
