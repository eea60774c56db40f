//! Reading manifests and indexes strictly, and finding a platform's manifest.

use std::collections::HashMap;
use std::fmt;

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::provider::MAX_DOCUMENT;
use crate::{ContentStore, Error, ImageConfig, Platform, Provider, Result, media, read_blob};

/// Honest images nest one index in another at most.
const MAX_DEPTH: usize = 4;
/// How many documents a search may read, over all levels.
const MAX_DOCUMENTS: usize = 64;
/// How many manifests one image may have.
const MAX_LISTED: usize = 1024;
/// BuildKit's mark on attestations, which lie in an index beside the images.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// A manifest that was found, and its bytes.
pub(crate) struct Resolved {
    pub(crate) descriptor: Descriptor,
    pub(crate) raw: Vec<u8>,
    pub(crate) manifest: ImageManifest,
}

/// Finds the manifest that `root` has for `platform`. A root that is a manifest itself is taken for whatever platform it is.
pub(crate) fn resolve<P: Provider + ?Sized>(provider: &P, root: &Descriptor, platform: &Platform) -> Result<Resolved> {
    Search { provider, platform, left: MAX_DOCUMENTS }.visit(root, 0)
}

/// The manifests of all platforms that `root` leads to and the provider has.
pub(crate) fn images<S: ContentStore + ?Sized>(store: &S, root: &Descriptor) -> Result<Vec<Descriptor>> {
    let (mut found, mut pending, mut left) = (Vec::new(), vec![(root.clone(), 0)], MAX_DOCUMENTS);
    while let Some((descriptor, depth)) = pending.pop() {
        let too_deep = || Error::TooDeep { digest: descriptor.digest().clone() };
        if !media::is_index(descriptor.media_type()) {
            found.push(descriptor);
            continue;
        }
        left = left.checked_sub(1).filter(|_| depth < MAX_DEPTH).ok_or_else(too_deep)?;
        let raw = read_blob(store, &descriptor, MAX_DOCUMENT)?;
        let index: ImageIndex = parse(&raw, Kind::Index, &descriptor)?;
        if found.len() + index.manifests().len() > MAX_LISTED {
            return Err(too_deep());
        }
        for entry in index.manifests().iter().rev().filter(|entry| is_image(entry)) {
            if store.contains(entry)? {
                pending.push((entry.clone(), depth + 1));
            }
        }
    }
    Ok(found)
}

/// The image id of a manifest.
pub(crate) fn config_digest<P: Provider + ?Sized>(provider: &P, descriptor: &Descriptor) -> Result<Digest> {
    let raw = read_blob(provider, descriptor, MAX_DOCUMENT)?;
    let manifest: ImageManifest = parse(&raw, Kind::Manifest, descriptor)?;
    Ok(manifest.config().digest().clone())
}

struct Search<'a, P: ?Sized> {
    provider: &'a P,
    platform: &'a Platform,
    left: usize,
}

impl<P: Provider + ?Sized> Search<'_, P> {
    fn visit(&mut self, root: &Descriptor, depth: usize) -> Result<Resolved> {
        self.left = self.left.checked_sub(1).ok_or_else(|| Error::TooDeep { digest: root.digest().clone() })?;
        if media::is_manifest(root.media_type()) {
            return self.manifest(root);
        }
        if !media::is_index(root.media_type()) {
            return Err(Error::UnsupportedMediaType {
                what: "manifest",
                digest: root.digest().clone(),
                media_type: root.media_type().clone(),
            });
        }
        if depth == MAX_DEPTH {
            return Err(Error::TooDeep { digest: root.digest().clone() });
        }
        let raw = read_blob(self.provider, root, MAX_DOCUMENT)?;
        let index: ImageIndex = parse(&raw, Kind::Index, root)?;
        self.select(root, &index, depth)
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Resolved> {
        let raw = read_blob(self.provider, descriptor, MAX_DOCUMENT)?;
        let manifest = parse(&raw, Kind::Manifest, descriptor)?;
        let (media_type, digest) = (descriptor.media_type().clone(), descriptor.digest().clone());
        Ok(Resolved { descriptor: Descriptor::new(media_type, descriptor.size(), digest), raw, manifest })
    }

    fn select(&mut self, root: &Descriptor, index: &ImageIndex, depth: usize) -> Result<Resolved> {
        let images = || index.manifests().iter().filter(|entry| is_image(entry));
        let best = images()
            .filter_map(|entry| {
                let platform = Platform::from(entry.platform().as_ref()?);
                Some((self.platform.rank(&platform)?, entry))
            })
            .min_by_key(|(rank, _)| *rank);
        if let Some((_, entry)) = best {
            return self.visit(entry, depth + 1);
        }
        // Entries that do not say their platform must be looked into.
        for entry in images().filter(|entry| entry.platform().is_none()) {
            match self.visit(entry, depth + 1) {
                Ok(found) if media::is_index(entry.media_type()) || self.fits(&found.manifest)? => return Ok(found),
                Ok(_) | Err(Error::NoPlatform { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let available = images()
            .map(|entry| match entry.platform() {
                Some(platform) => Platform::from(platform).to_string(),
                None => format!("{} (which does not say)", entry.digest()),
            })
            .collect();
        Err(Error::NoPlatform { digest: root.digest().clone(), wanted: self.platform.to_string(), available })
    }

    fn fits(&self, manifest: &ImageManifest) -> Result<bool> {
        if !media::is_config(manifest.config().media_type()) {
            return Ok(false);
        }
        let (_, config) = read_config(self.provider, manifest.config())?;
        Ok(self.platform.rank(&config.platform()).is_some())
    }
}

/// Whether an index's entry can be an image: other things in an index are ignored, as the specification wants.
fn is_image(entry: &Descriptor) -> bool {
    let attestation = entry.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(ATTESTATION));
    (media::is_manifest(entry.media_type()) || media::is_index(entry.media_type())) && !attestation
}

/// Reads and parses an image config.
pub(crate) fn read_config<P: Provider + ?Sized>(provider: &P, config: &Descriptor) -> Result<(Vec<u8>, ImageConfig)> {
    if !media::is_config(config.media_type()) {
        return Err(Error::UnsupportedMediaType {
            what: "config",
            digest: config.digest().clone(),
            media_type: config.media_type().clone(),
        });
    }
    let raw = read_blob(provider, config, MAX_DOCUMENT)?;
    let what = format!("config {}", config.digest());
    check_keys(&raw, &what)?;
    let parsed = ImageConfig::parse(&raw).map_err(|source| Error::InvalidDocument { what, source: source.into() })?;
    Ok((raw, parsed))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Index,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Index => "index",
        }
    }
}

/// Parses a manifest or an index of which a descriptor is known.
pub(crate) fn parse<T: for<'de> Deserialize<'de>>(raw: &[u8], kind: Kind, descriptor: &Descriptor) -> Result<T> {
    let what = format!("{} {}", kind.name(), descriptor.digest());
    if let Some(found) = check_document(raw, kind, &what)?
        && found != descriptor.media_type().as_ref()
    {
        return Err(Error::MediaTypeMismatch {
            digest: descriptor.digest().clone(),
            announced: descriptor.media_type().clone(),
            found,
        });
    }
    serde_json::from_slice(raw).map_err(|source| Error::InvalidDocument { what, source: source.into() })
}

/// Parses the `index.json` of a layout.
pub(crate) fn parse_index_json(raw: &[u8], what: &str) -> Result<ImageIndex> {
    if let Some(found) = check_document(raw, Kind::Index, what)?
        && !media::is_index(&MediaType::from(found.as_str()))
    {
        let problem = format!("it calls itself {found:?}");
        return Err(Error::AmbiguousDocument { what: what.to_owned(), problem });
    }
    serde_json::from_slice(raw)
        .map_err(|source| Error::InvalidDocument { what: what.to_owned(), source: source.into() })
}

/// Checks that every reader will take the document for the same thing, and returns the media type that it says it has.
fn check_document(raw: &[u8], kind: Kind, what: &str) -> Result<Option<String>> {
    // The names of what makes a manifest of either schema, or an index; and `mediaType`.
    const MANIFEST: [&str; 3] = ["config", "layers", "fsLayers"];
    const INDEX: [&str; 1] = ["manifests"];
    const OTHER: [&str; 5] = ["mediaType", "schemaVersion", "artifactType", "subject", "annotations"];
    let ambiguous = |problem: String| Error::AmbiguousDocument { what: what.to_owned(), problem };
    let keys = check_keys(raw, what)?;
    for key in &keys.names {
        for known in MANIFEST.iter().chain(&INDEX).chain(&OTHER) {
            if key != known && fold(key) == fold(known) {
                return Err(ambiguous(format!("some readers take its {key:?} for {known:?}")));
            }
        }
        let foreign = match kind {
            Kind::Manifest => INDEX.contains(&key.as_str()) || key == "fsLayers",
            Kind::Index => MANIFEST.contains(&key.as_str()),
        };
        if foreign {
            return Err(ambiguous(format!("it is announced as {} but has {key:?} (CVE-2021-41190)", kind.name())));
        }
    }
    match keys.schema_version {
        Some(2) => Ok(keys.media_type),
        _ => Err(Error::InvalidDocument { what: what.to_owned(), source: "schemaVersion is not 2".into() }),
    }
}

/// The outermost object of a JSON document: its keys, and two values.
#[derive(Default)]
struct Keys {
    names: Vec<String>,
    media_type: Option<String>,
    schema_version: Option<u64>,
}

/// Checks that no object in the document has two keys that some reader takes for one.
fn check_keys(raw: &[u8], what: &str) -> Result<Keys> {
    let checked: Checked = serde_json::from_slice(raw)
        .map_err(|source| Error::InvalidDocument { what: what.to_owned(), source: source.into() })?;
    if let Some(key) = checked.twice {
        let problem = format!("it has the key {key:?} twice");
        return Err(Error::AmbiguousDocument { what: what.to_owned(), problem });
    }
    match checked.keys {
        Some(keys) => Ok(keys),
        None => Err(Error::InvalidDocument { what: what.to_owned(), source: "it is not a JSON object".into() }),
    }
}

/// Go's `encoding/json` matches keys to fields without regard to case, by Unicode's simple folding.
fn fold(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// Any JSON value, of which only the keys are looked at.
#[derive(Default)]
struct Checked {
    keys: Option<Keys>,
    twice: Option<String>,
    text: Option<String>,
    number: Option<u64>,
}

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor)
    }
}

struct CheckedVisitor;

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Checked, A::Error> {
        let mut seen: HashMap<String, ()> = HashMap::new();
        let mut keys = Keys::default();
        let mut twice = None;
        while let Some(key) = map.next_key::<String>()? {
            if seen.insert(fold(&key), ()).is_some() {
                twice.get_or_insert_with(|| key.clone());
            }
            // The keys of these are data, not fields: case matters in them to every reader.
            if matches!(key.as_str(), "annotations" | "Labels" | "ExposedPorts" | "Volumes") {
                map.next_value::<IgnoredAny>()?;
            } else {
                let value: Checked = map.next_value()?;
                twice = twice.or(value.twice);
                match key.as_str() {
                    "mediaType" => keys.media_type = value.text,
                    "schemaVersion" => keys.schema_version = value.number,
                    _ => {}
                }
            }
            keys.names.push(key);
        }
        Ok(Checked { keys: Some(keys), twice, ..Checked::default() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Checked, A::Error> {
        let mut twice = None;
        while let Some(value) = seq.next_element::<Checked>()? {
            twice = twice.or(value.twice);
        }
        Ok(Checked { twice, ..Checked::default() })
    }

    fn visit_str<E>(self, text: &str) -> Result<Checked, E> {
        Ok(Checked { text: Some(text.to_owned()), ..Checked::default() })
    }

    fn visit_u64<E>(self, number: u64) -> Result<Checked, E> {
        Ok(Checked { number: Some(number), ..Checked::default() })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked::default())
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2021_41190_a_document_is_one_thing() {
        let cases: &[(Kind, &str, bool)] = &[
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[]}"#, true),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[],"Manifests":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[],"fsLayers":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[],"layers":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[],"LAYERS":[]}"#, false),
            (Kind::Manifest, "{\"schemaVersion\":2,\"config\":{},\"layers\":[],\"manifest\u{17f}\":[]}", false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{"digest":"a","Digest":"b"},"layers":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"config":{},"layers":[{"size":1,"size":2}]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":1,"config":{},"layers":[]}"#, false),
            (Kind::Manifest, r#"{"schemaVersion":2,"annotations":{"a":"1","A":"2"}}"#, true),
            (Kind::Manifest, "[]", false),
            (Kind::Manifest, "{", false),
            (Kind::Index, r#"{"schemaVersion":2,"manifests":[]}"#, true),
            (Kind::Index, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, false),
            (Kind::Index, r#"{"schemaVersion":2,"manifests":[],"config":{}}"#, false),
            (Kind::Index, r#"{"schemaVersion":2,"manifests":[],"vendor.thing":[{"a":null,"b":[1.5,-1,true]}]}"#, true),
        ];
        for (kind, text, good) in cases {
            assert_eq!(check_document(text.as_bytes(), *kind, "it").is_ok(), *good, "{kind:?} {text}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let text = "[".repeat(100_000);
        assert!(matches!(check_keys(text.as_bytes(), "it"), Err(Error::InvalidDocument { .. })));
    }
}
