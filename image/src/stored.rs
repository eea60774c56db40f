//! Which images a store has, and which of them a person means.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, Digest};

use crate::{ContentStore, Error, Image, Layout, Listing, Platform, Reference, Result, manifest, media};

/// How many hexadecimal digits people are shown of an id.
const SHORT: usize = 12;

/// An image that a store lists, with all its names.
#[derive(Debug)]
pub struct Stored {
    /// Its index or manifest.
    pub root: Descriptor,
    /// Its names, sorted; none if it lost the last one.
    pub names: Vec<String>,
    /// What it is, for each platform that is there.
    pub platforms: Vec<StoredPlatform>,
    /// Why it cannot be read (in full): it is damaged, or something else than an image.
    pub problem: Option<Error>,
}

/// An image for one platform that a store has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPlatform {
    /// The platform that its config says.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its id: the digest of its config.
    pub id: Digest,
    /// When it was made, as its config says (RFC 3339).
    pub created: Option<String>,
    /// The size of its layers as they are stored, in bytes.
    pub size: u64,
    /// The size of its layers' tars, in bytes; `None` if one is compressed, since then only unpacking tells.
    pub unpacked: Option<u64>,
    /// Whether all its layers are there.
    pub complete: bool,
}

impl Stored {
    /// The names that are references with a tag or digest.
    #[must_use]
    pub fn references(&self) -> Vec<Reference> {
        self.names.iter().filter_map(|name| Reference::from_full(name)).collect()
    }

    /// `REPOSITORY@DIGEST` for each repository that it has a name in, as `docker inspect` shows them in `RepoDigests`; the root's digest
    /// is the one that a registry knows.
    #[must_use]
    pub fn repository_digests(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.references().iter().map(|name| name.familiar_at(self.root.digest())).collect();
        found.sort();
        found.dedup();
        found
    }

    /// What of it is for the platform, best match first choice.
    #[must_use]
    pub fn for_platform(&self, platform: &Platform) -> Option<&StoredPlatform> {
        let ranked = self.platforms.iter().filter_map(|image| Some((platform.rank(&image.platform)?, image)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, image)| image)
    }
}

/// An image that a text means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its index or manifest.
    pub root: Descriptor,
    /// Its name in the store, if the text is that name; `None` if the text is an id or a digest.
    pub name: Option<String>,
}

impl Layout {
    /// All images that the store lists, each once, in the order in which they were first listed.
    ///
    /// Reads each manifest and config. What cannot be read is there too, with its [`problem`](Stored::problem).
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let mut all: Vec<Stored> = Vec::new();
        for listing in self.images()? {
            let names = names_of(&listing);
            if let Some(stored) = all.iter_mut().find(|stored| stored.root.digest() == listing.root.digest()) {
                stored.names.extend(names);
                continue;
            }
            let (platforms, problem) = self.platforms(&listing.root);
            all.push(Stored { root: listing.root, names, platforms, problem });
        }
        for stored in &mut all {
            stored.names.sort();
            stored.names.dedup();
        }
        Ok(all)
    }

    /// The image that a person means, by Docker's rules: a name as it is stored; a reference (`hello` is `docker.io/library/hello:latest`);
    /// `REPOSITORY@DIGEST`; an image id or a manifest's digest, with or without `sha256:`, or the beginning of one.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchImage`] with the names that are there; [`Error::AmbiguousId`] with the images whose ids begin so.
    pub fn find(&self, text: &str) -> Result<Found> {
        let listings = self.images()?;
        let by_name = |name: &str| {
            let listing = listings.iter().find(|listing| listing.names.iter().any(|there| there == name))?;
            Some(Found { root: listing.root.clone(), name: Some(name.to_owned()) })
        };
        let reference: Option<Reference> = text.parse().ok();
        let full = reference.as_ref().map(ToString::to_string);
        if let Some(found) = by_name(text).or_else(|| by_name(full.as_deref()?)) {
            return Ok(found);
        }
        if let Some(reference) = &reference
            && let Some(digest) = reference.digest()
        {
            return self.find_digest(&listings, reference, &digest).ok_or_else(|| self.none(text, &listings));
        }
        self.find_id(&listings, text)
    }

    fn find_digest(&self, listings: &[Listing], wanted: &Reference, digest: &Digest) -> Option<Found> {
        let fits = |name: &String| {
            Reference::from_full(name).is_some_and(|name| {
                name.registry() == wanted.registry()
                    && name.repository() == wanted.repository()
                    && wanted.tag().is_none_or(|tag| name.tag() == Some(tag))
            })
        };
        let named = listings.iter().filter(|listing| listing.names.iter().any(fits));
        named
            .into_iter()
            .find(|listing| self.ids(&listing.root).contains(digest))
            .map(|listing| Found { root: listing.root.clone(), name: None })
    }

    fn find_id(&self, listings: &[Listing], text: &str) -> Result<Found> {
        let (algorithm, hex) = text.split_once(':').map_or(("sha256", text), |(algorithm, hex)| (algorithm, hex));
        let hexadecimal = |hex: &str| !hex.is_empty() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !hexadecimal(hex) || !matches!(algorithm, "sha256" | "sha512") {
            return Err(self.none(text, listings));
        }
        let prefix = format!("{algorithm}:{hex}");
        let (mut seen, mut found, mut matches) = (HashSet::new(), Vec::new(), Vec::new());
        for listing in listings {
            if !seen.insert(listing.root.digest()) {
                continue;
            }
            let ids = self.ids(&listing.root);
            if let Some(id) = ids.iter().find(|id| id.as_ref().starts_with(&prefix)) {
                let name = names_of(listing).into_iter().next().map_or(String::new(), |name| format!(" ({name})"));
                matches.push(format!("{id}{name}"));
                found.push((id.clone(), listing));
            }
        }
        let Some((id, _)) = found.first() else { return Err(self.none(text, listings)) };
        // One image may be stored twice, its layers compressed in two ways: then the id is not ambiguous.
        if found.iter().any(|(other, _)| other != id) {
            return Err(Error::AmbiguousId { prefix: text.to_owned(), matches });
        }
        let named = found.iter().find(|(_, listing)| !listing.names.is_empty()).or(found.first());
        named.map_or_else(
            || Err(self.none(text, listings)),
            |(_, listing)| Ok(Found { root: listing.root.clone(), name: None }),
        )
    }

    fn none(&self, text: &str, listings: &[Listing]) -> Error {
        let mut available: Vec<String> = listings.iter().flat_map(names_of).collect();
        available.sort();
        available.dedup();
        Error::NoSuchImage { location: self.path().display().to_string(), wanted: text.to_owned(), available }
    }

    /// What an image is known by: ids first, then digests of manifests. Of what cannot be read only the root's digest.
    fn ids(&self, root: &Descriptor) -> Vec<Digest> {
        let mut ids = Vec::new();
        let mut digests = Vec::new();
        for descriptor in manifest::images(self, root).unwrap_or_default() {
            if let Ok(id) = manifest::config_digest(self, &descriptor) {
                ids.push(id);
            }
            digests.push(descriptor.digest().clone());
        }
        ids.extend(digests);
        ids.push(root.digest().clone());
        ids
    }

    fn platforms(&self, root: &Descriptor) -> (Vec<StoredPlatform>, Option<Error>) {
        let (mut platforms, mut problem) = (Vec::new(), None);
        let manifests = match manifest::images(self, root) {
            Ok(manifests) => manifests,
            Err(error) => return (platforms, Some(error)),
        };
        for descriptor in manifests {
            match self.platform(&descriptor) {
                Ok(image) => platforms.push(image),
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        (platforms, problem)
    }

    fn platform(&self, descriptor: &Descriptor) -> Result<StoredPlatform> {
        // A manifest is taken for whatever platform it is.
        let image = Image::load(self, descriptor, &Platform::host())?;
        let mut complete = true;
        for layer in image.layers() {
            complete &= self.contains(&layer.descriptor)?;
        }
        let plain = image.layers().iter().all(|layer| layer.compression == media::Compression::None);
        let size = image.layers().iter().map(|layer| layer.descriptor.size()).sum();
        Ok(StoredPlatform {
            platform: image.platform(),
            manifest: image.descriptor().clone(),
            id: image.id().clone(),
            created: image.config().created().map(str::to_owned),
            size,
            unpacked: plain.then_some(size),
            complete,
        })
    }
}

/// The full names of an entry; if it has none, what it is called.
fn names_of(listing: &Listing) -> Vec<String> {
    let full: Vec<String> = listing.names.iter().filter(|name| Reference::from_full(name).is_some()).cloned().collect();
    if full.is_empty() { listing.names.first().cloned().into_iter().collect() } else { full }
}

/// The beginning of an id that people are shown: twelve hexadecimal digits.
#[must_use]
pub fn short_id(id: &Digest) -> &str {
    let hex = id.digest();
    &hex[..hex.len().min(SHORT)]
}
