//! Garbage collection, what there is, and whether it is whole.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::Value;

use super::folder::{Folder, is_regular};
use super::index::Listing;
use super::ingest::{Parts, clean};
use super::{Layout, lease};
use crate::digest::{Hasher, digest_of};
use crate::provider::MAX_DOCUMENT;
use crate::{Error, Result, media};

/// The algorithms that a blob's folder is named for.
const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// How many blobs.
    pub blobs: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// What a content store takes on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The images that `index.json` lists, in its order, each once.
    pub images: Vec<ImageUsage>,
    /// How many blobs there are.
    pub blobs: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// How much of it [`Layout::collect`] with the same roots would remove now, were no lease there.
    pub unreachable: Collected,
}

/// What an image takes on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUsage {
    /// Its index or manifest.
    pub root: Descriptor,
    /// The size of all blobs that are there of it, in bytes; each counted once.
    pub size: u64,
    /// The part of it that other images of the list have too.
    pub shared: u64,
}

/// What [`Layout::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// How many blobs were read.
    pub blobs: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// What is wrong, sorted by digest.
    pub problems: Vec<Problem>,
}

/// A blob that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// Its bytes have another digest.
    Damaged {
        /// The digest that it is named for.
        digest: Digest,
        /// The digest that its bytes have.
        actual: Digest,
    },
    /// A manifest or index of an image names it, and it is not there.
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// A manifest or index cannot be understood.
    Unreadable {
        /// The document.
        digest: Digest,
    },
}

impl Problem {
    /// The blob.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Damaged { digest, .. } | Self::Missing { digest } | Self::Unreadable { digest } => digest,
        }
    }
}

impl Layout {
    /// Removes the blobs that no entry of `index.json`, none of `roots` (what containers hold) and no [`Lease`](crate::Lease) leads to.
    ///
    /// It may run beside anything in any process; whoever adds blobs without a lease, though, may find them gone before
    /// they have a name. A collection that is killed has removed a part. Files that are not called for a digest stay.
    ///
    /// # Errors
    ///
    /// [`Error::Uncollectable`] if an index or a manifest on the way is damaged, or one that `index.json` lists is missing: then nobody knows what
    /// belongs to it, and nothing is removed.
    pub fn collect(&self, roots: &[Descriptor]) -> Result<Collected> {
        let _lock = self.root.lock()?;
        clean(&self.root, Parts::Remove)?;
        let listings = self.images()?;
        let blobs = Blobs::list(&self.root)?;
        let mut mark = Mark::new(&blobs);
        for listing in &listings {
            mark.root(listing)?;
        }
        for root in roots {
            mark.follow(root)?;
        }
        for digest in lease::held(&self.root)? {
            mark.follow_digest(digest)?;
        }
        let reached = mark.reached;
        let mut ranks: [Vec<&Digest>; 3] = Default::default();
        for digest in blobs.sizes.keys().filter(|digest| !reached.contains_key(*digest)) {
            ranks[blobs.rank(digest)].push(digest);
        }
        let mut collected = Collected::default();
        // Where a manifest is, everything it names is: so what names others goes first.
        for rank in &ranks {
            for digest in rank {
                if blobs.remove(digest)? {
                    collected.blobs += 1;
                    collected.bytes += blobs.sizes[*digest];
                }
            }
            if !rank.is_empty() {
                blobs.sync()?;
            }
        }
        Ok(collected)
    }

    /// What the store takes, by image and in all.
    ///
    /// Where a damaged document stands in the way of a collection, nothing counts as unreachable.
    pub fn usage(&self, roots: &[Descriptor]) -> Result<Usage> {
        let _lock = self.root.lock_shared()?;
        let blobs = Blobs::list(&self.root)?;
        let mut whole = true;
        let mut tolerate = |outcome: Result<()>| match outcome {
            Err(Error::Uncollectable { .. }) => {
                whole = false;
                Ok(())
            }
            other => other,
        };
        let mut images: Vec<(Descriptor, HashSet<Digest>)> = Vec::new();
        let mut owners: HashMap<Digest, u32> = HashMap::new();
        let mut all: HashSet<Digest> = HashSet::new();
        for listing in self.images()? {
            if images.iter().any(|(root, _)| root.digest() == listing.root.digest()) {
                continue;
            }
            let mut mark = Mark::new(&blobs);
            tolerate(mark.root(&listing))?;
            let reached: HashSet<Digest> = mark.reached.into_keys().collect();
            for digest in &reached {
                *owners.entry(digest.clone()).or_default() += 1;
            }
            all.extend(reached.iter().cloned());
            images.push((listing.root, reached));
        }
        let mut mark = Mark::new(&blobs);
        for root in roots {
            tolerate(mark.follow(root))?;
        }
        all.extend(mark.reached.into_keys());
        let size = |digest: &Digest| blobs.sizes.get(digest).copied().unwrap_or(0);
        let (count, bytes) = (blobs.sizes.len() as u64, blobs.sizes.values().sum());
        let mut usage = Usage { blobs: count, bytes, ..Usage::default() };
        for (root, reached) in images {
            let shared = reached.iter().filter(|digest| owners[*digest] > 1).map(size).sum();
            usage.images.push(ImageUsage { root, size: reached.iter().map(size).sum(), shared });
        }
        if whole {
            let unreachable = || blobs.sizes.iter().filter(|(digest, _)| !all.contains(*digest));
            usage.unreachable.blobs = unreachable().count() as u64;
            usage.unreachable.bytes = unreachable().map(|(_, bytes)| bytes).sum();
        }
        Ok(usage)
    }

    /// Reads every blob and compares it with its digest, and looks for what the images name and is not there.
    ///
    /// Platforms of an index that were never copied are not missing.
    pub fn verify(&self) -> Result<Check> {
        let blobs = Blobs::list(&self.root)?;
        let mut check = Check::default();
        for digest in blobs.sizes.keys() {
            // It may have been collected meanwhile.
            let Some((actual, size)) = blobs.hash(digest)? else { continue };
            check.blobs += 1;
            check.bytes += size;
            if actual != *digest {
                check.problems.push(Problem::Damaged { digest: digest.clone(), actual });
            }
        }
        let _lock = self.root.lock_shared()?;
        let blobs = Blobs::list(&self.root)?;
        let mut mark = Mark::new(&blobs);
        for listing in self.images()? {
            match mark.root(&listing) {
                Ok(()) => {}
                Err(Error::Uncollectable { digest, .. }) if blobs.sizes.contains_key(&digest) => {
                    check.problems.push(Problem::Unreadable { digest });
                }
                Err(Error::Uncollectable { digest, .. }) => check.problems.push(Problem::Missing { digest }),
                Err(error) => return Err(error),
            }
        }
        check.problems.extend(mark.missing.into_iter().map(|digest| Problem::Missing { digest }));
        check.problems.sort_by(|a, b| a.digest().as_ref().cmp(b.digest().as_ref()));
        // What is damaged is not understood either: once is enough.
        check.problems.dedup_by(|later, first| later.digest() == first.digest());
        Ok(check)
    }
}

/// The blobs in a layout: regular files that are called for a digest.
struct Blobs {
    folders: Vec<(&'static str, Folder)>,
    sizes: HashMap<Digest, u64>,
}

impl Blobs {
    fn list(root: &Folder) -> Result<Self> {
        let mut found = Self { folders: Vec::new(), sizes: HashMap::new() };
        let Some(blobs) = root.folder("blobs")? else { return Ok(found) };
        for algorithm in ALGORITHMS {
            let Some(folder) = blobs.folder(algorithm)? else { continue };
            for name in folder.names()? {
                let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
                if let Some(status) = folder.status(&name)?.filter(is_regular) {
                    found.sizes.insert(digest, status.st_size as u64);
                }
            }
            found.folders.push((algorithm, folder));
        }
        Ok(found)
    }

    fn folder(&self, digest: &Digest) -> Option<&Folder> {
        let algorithm = digest.algorithm().to_string();
        self.folders.iter().find(|(name, _)| *name == algorithm).map(|(_, folder)| folder)
    }

    fn remove(&self, digest: &Digest) -> Result<bool> {
        self.folder(digest).map_or(Ok(false), |folder| folder.remove(digest.digest()))
    }

    fn sync(&self) -> Result<()> {
        self.folders.iter().try_for_each(|(_, folder)| folder.sync())
    }

    /// Looks at a blob as a document.
    fn look(&self, digest: &Digest) -> Result<Look> {
        if self.sizes.get(digest).is_none_or(|size| *size > MAX_DOCUMENT) {
            return Ok(Look::Bytes);
        }
        let Some(folder) = self.folder(digest) else { return Ok(Look::Damaged) };
        let Some(raw) = folder.read(digest.digest(), MAX_DOCUMENT)? else { return Ok(Look::Damaged) };
        let mut hasher = Hasher::for_digest(digest)?;
        hasher.update(&raw);
        if hasher.finish() != *digest {
            return Ok(Look::Damaged);
        }
        // Layers are not parsed for nothing.
        match raw.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Ok(serde_json::from_slice(&raw).map_or(Look::Bytes, Look::Json)),
            _ => Ok(Look::Bytes),
        }
    }

    /// The digest and size that a blob's bytes have; `None` if it is gone.
    fn hash(&self, digest: &Digest) -> Result<Option<(Digest, u64)>> {
        let Some(folder) = self.folder(digest) else { return Ok(None) };
        let Some(mut file) = folder.file(digest.digest())? else { return Ok(None) };
        let (mut hasher, mut buffer, mut size) = (Hasher::for_digest(digest)?, vec![0; 256 << 10], 0);
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(Some((hasher.finish(), size))),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", folder.child(digest.digest()), error)),
            }
        }
    }

    /// 0 for what looks like an index, 1 for what looks like a manifest, 2 for anything else.
    fn rank(&self, digest: &Digest) -> usize {
        match self.look(digest) {
            Ok(Look::Json(value)) if value.get("manifests").is_some() => 0,
            Ok(Look::Json(value)) if value.get("layers").is_some() || value.get("config").is_some_and(has_digest) => 1,
            _ => 2,
        }
    }
}

fn has_digest(value: &Value) -> bool {
    value.get("digest").is_some()
}

/// What a blob is at a first look.
enum Look {
    /// A JSON object with the right digest.
    Json(Value),
    /// Too large for a document, or something else with the right digest.
    Bytes,
    /// Small enough for a document, but its bytes have another digest.
    Damaged,
}

/// What a blob is by who names it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// An index or a manifest: if it cannot be read, nobody knows what else belongs to the image.
    Document,
    /// A layer or a config, which leads nowhere.
    Leaf,
    /// Whatever it is.
    Unknown,
}

impl Role {
    fn of(media_type: &MediaType) -> Self {
        let leaf = || {
            let layer = Descriptor::new(media_type.clone(), 0, digest_of(b""));
            media::is_config(media_type) || media::layer_compression(&layer).is_ok()
        };
        match media_type {
            media_type if media::is_index(media_type) || media::is_manifest(media_type) => Self::Document,
            _ if leaf() => Self::Leaf,
            _ => Self::Unknown,
        }
    }
}

/// A blob that something names.
struct Named {
    digest: Digest,
    role: Role,
    /// Whether an image is incomplete without it.
    required: bool,
}

/// What is reached from roots.
///
/// Documents are followed by whatever in them has a `digest`, known or not: an artifact of a kind that is not known here keeps its blobs.
struct Mark<'a> {
    blobs: &'a Blobs,
    /// With whether it was looked into.
    reached: HashMap<Digest, bool>,
    missing: Vec<Digest>,
}

impl<'a> Mark<'a> {
    fn new(blobs: &'a Blobs) -> Self {
        Self { blobs, reached: HashMap::new(), missing: Vec::new() }
    }

    /// Follows an entry of `index.json`, which must be there.
    fn root(&mut self, listing: &Listing) -> Result<()> {
        let digest = listing.root.digest();
        if !self.blobs.sizes.contains_key(digest) {
            return Err(uncollectable(digest, listing.names.first().map_or("", String::as_str)));
        }
        self.follow(&listing.root).map_err(|error| match error {
            Error::Uncollectable { digest, image } if image.is_empty() => {
                Error::Uncollectable { digest, image: listing.names.first().cloned().unwrap_or_default() }
            }
            other => other,
        })
    }

    fn follow(&mut self, descriptor: &Descriptor) -> Result<()> {
        let (digest, role) = (descriptor.digest().clone(), Role::of(descriptor.media_type()));
        self.visit(vec![Named { digest, role, required: false }])
    }

    /// Follows what is only known by digest.
    fn follow_digest(&mut self, digest: Digest) -> Result<()> {
        self.visit(vec![Named { digest, role: Role::Unknown, required: false }])
    }

    fn visit(&mut self, mut pending: Vec<Named>) -> Result<()> {
        while let Some(Named { digest, role, required }) = pending.pop() {
            if !self.blobs.sizes.contains_key(&digest) {
                if required {
                    self.missing.push(digest);
                }
                continue;
            }
            let looked = self.reached.entry(digest.clone()).or_default();
            if role == Role::Leaf || *looked {
                continue;
            }
            match self.blobs.look(&digest)? {
                Look::Json(value) => {
                    *looked = true;
                    references(&value, "", &mut pending);
                }
                Look::Bytes if role != Role::Document => *looked = true,
                Look::Bytes | Look::Damaged => return Err(uncollectable(&digest, "")),
            }
        }
        Ok(())
    }
}

fn uncollectable(digest: &Digest, image: &str) -> Error {
    Error::Uncollectable { digest: digest.clone(), image: image.to_owned() }
}

/// Everything in a document that looks like a descriptor; `key` is where the value was found.
fn references(value: &Value, key: &str, found: &mut Vec<Named>) {
    match value {
        Value::Object(map) => {
            if let Some(digest) = map.get("digest").and_then(Value::as_str).and_then(|text| text.parse().ok()) {
                let media_type = map.get("mediaType").and_then(Value::as_str);
                let role = match media_type.map_or(Role::Unknown, |text| Role::of(&text.into())) {
                    // Only there it must be one: else a `subject` that is a layer would end every collection.
                    Role::Document if key != "manifests" => Role::Unknown,
                    role => role,
                };
                // Platforms of an index that were never copied are no loss.
                found.push(Named { digest, role, required: matches!(key, "layers" | "config") });
            }
            map.iter().for_each(|(key, value)| references(value, key, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, key, found)),
        _ => {}
    }
}
