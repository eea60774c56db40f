//! `index.json`: which images there are, and their names.

use oci_spec::image::{Descriptor, Digest, ImageIndex};
use serde_json::{Map, Value, json};

use crate::{Error, Reference, Result, manifest, media};

/// The annotation by which the image specification names an image in a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which containerd and Docker write the full name.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// An image that a layout or an archive lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its names, as they are written there; none if it has no name.
    pub names: Vec<String>,
    /// Its index or manifest.
    pub root: Descriptor,
}

/// What an `index.json` lists.
pub(crate) fn list(raw: &[u8], what: &str) -> Result<Vec<Listing>> {
    let index: ImageIndex = manifest::parse_index_json(raw, what)?;
    let listing = |root: &Descriptor| {
        let mut names = Vec::new();
        for key in [REF_NAME, IMAGE_NAME] {
            let name = root.annotations().as_ref().and_then(|annotations| annotations.get(key));
            if let Some(name) = name.filter(|name| !name.is_empty() && !names.contains(*name)) {
                names.push(name.clone());
            }
        }
        Listing { names, root: root.clone() }
    };
    Ok(index.manifests().iter().map(listing).collect())
}

/// The bytes of an index without images.
pub(super) fn empty() -> Vec<u8> {
    write(&json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [] }))
}

/// An `index.json` that is being changed: everything in it that is not understood is kept.
#[derive(Debug)]
pub(super) struct Index(Map<String, Value>);

impl Index {
    pub(super) fn parse(raw: &[u8], what: &str) -> Result<Self> {
        // Nothing is written back that could not be read.
        list(raw, what)?;
        let map = serde_json::from_slice(raw)
            .map_err(|source| Error::InvalidDocument { what: what.to_owned(), source: source.into() })?;
        Ok(Self(map))
    }

    /// The entries that have this name.
    pub(super) fn named(&self, name: &str) -> Vec<Descriptor> {
        self.entries()
            .iter()
            .filter(|entry| has_name(entry, name))
            .filter_map(|entry| serde_json::from_value(entry.clone()).ok())
            .collect()
    }

    /// Whether the name stands for just this already.
    pub(super) fn is_set(&self, name: &str, descriptor: &Descriptor) -> bool {
        let same = |entry: &Descriptor| {
            entry.digest() == descriptor.digest()
                && entry.size() == descriptor.size()
                && entry.media_type() == descriptor.media_type()
        };
        matches!(self.named(name).as_slice(), [entry] if same(entry))
    }

    /// Lets the name stand for an image. The one that loses its last name is kept without.
    pub(super) fn tag(&mut self, name: &str, descriptor: &Descriptor) -> Result<()> {
        let lost = self.named(name);
        self.unset(name);
        let mut named = descriptor.clone();
        let mut annotations = named.annotations().clone().unwrap_or_default();
        annotations.insert(REF_NAME.to_owned(), name.to_owned());
        annotations.remove(IMAGE_NAME);
        if let Some(reference) = Reference::from_full(name) {
            annotations.insert(IMAGE_NAME.to_owned(), reference.to_string());
        }
        named.set_annotations(Some(annotations));
        self.drop_unnamed(descriptor.digest());
        self.push(&named, name)?;
        for lost in lost {
            self.keep(&lost)?;
        }
        Ok(())
    }

    /// Lists an image without a name; false if it is listed already.
    pub(super) fn keep(&mut self, descriptor: &Descriptor) -> Result<bool> {
        if self.entries().iter().any(|entry| is_of(entry, descriptor.digest())) {
            return Ok(false);
        }
        let mut unnamed = descriptor.clone();
        let mut annotations = unnamed.annotations().clone().unwrap_or_default();
        annotations.retain(|key, _| key != REF_NAME && key != IMAGE_NAME);
        unnamed.set_annotations(if annotations.is_empty() { None } else { Some(annotations) });
        self.push(&unnamed, "")?;
        Ok(true)
    }

    /// Removes all entries of an image; whether there were any.
    pub(super) fn forget(&mut self, root: &Digest) -> bool {
        self.retain(|entry| !is_of(entry, root))
    }

    /// An image with a name needs no entry without.
    fn drop_unnamed(&mut self, digest: &Digest) {
        let named = |entry: &Value, key: &str| entry.get("annotations").and_then(|all| all.get(key)).is_some();
        self.retain(|entry| !is_of(entry, digest) || named(entry, REF_NAME) || named(entry, IMAGE_NAME));
    }

    fn entries(&self) -> &[Value] {
        self.0.get("manifests").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn push(&mut self, descriptor: &Descriptor, name: &str) -> Result<()> {
        let entry = serde_json::to_value(descriptor)
            .map_err(|source| Error::InvalidDocument { what: format!("image {name:?}"), source: source.into() })?;
        if let Some(Value::Array(entries)) = self.0.get_mut("manifests") {
            entries.push(entry);
        }
        Ok(())
    }

    /// Whether any were removed.
    fn retain(&mut self, keep: impl Fn(&Value) -> bool) -> bool {
        let Some(Value::Array(entries)) = self.0.get_mut("manifests") else { return false };
        let before = entries.len();
        entries.retain(keep);
        entries.len() != before
    }

    pub(super) fn unset(&mut self, name: &str) -> bool {
        self.retain(|entry| !has_name(entry, name))
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        write(&Value::Object(self.0))
    }
}

/// By either annotation: others write a short one into the first and the full name into the second.
fn has_name(entry: &Value, name: &str) -> bool {
    let is = |key: &str| entry.get("annotations").and_then(|all| all.get(key)).and_then(Value::as_str) == Some(name);
    is(REF_NAME) || is(IMAGE_NAME)
}

fn is_of(entry: &Value, digest: &Digest) -> bool {
    entry.get("digest").and_then(Value::as_str) == Some(digest.as_ref())
}

fn write(index: &Value) -> Vec<u8> {
    let mut bytes = format!("{index:#}").into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::digest_of;

    #[test]
    fn keeps_what_it_does_not_understand() {
        let digest = digest_of(b"foreign");
        let raw = format!(
            r#"{{"schemaVersion":2,"vendor.key":{{"a":[1,2.5,null]}},"annotations":{{"x":"y"}},"manifests":[
            {{"mediaType":"application/vnd.vendor.thing","size":7,"digest":"{digest}","vendor":true,
              "annotations":{{"org.opencontainers.image.ref.name":"theirs"}}}}]}}"#
        );
        let ours = Descriptor::new(MediaType::ImageManifest, 3, digest_of(b"ours"));
        let mut index = Index::parse(raw.as_bytes(), "it").expect("parses");
        index.tag("docker.io/library/a:b", &ours).expect("is set");
        assert!(index.is_set("docker.io/library/a:b", &ours));
        let bytes = index.into_bytes();
        let value: Value = serde_json::from_slice(&bytes).expect("is JSON");
        let before: Value = serde_json::from_str(&raw).expect("is JSON");
        assert_eq!(value["vendor.key"], before["vendor.key"]);
        assert_eq!(value["annotations"], before["annotations"]);
        assert_eq!(value["manifests"][0], before["manifests"][0]);
        assert_eq!(value["manifests"][1]["annotations"][IMAGE_NAME], "docker.io/library/a:b");

        // A name moves, it is not doubled.
        let other = Descriptor::new(MediaType::ImageManifest, 5, digest_of(b"other"));
        let mut index = Index::parse(&bytes, "it").expect("parses");
        index.tag("docker.io/library/a:b", &other).expect("is set");
        assert!(index.is_set("docker.io/library/a:b", &other) && !index.is_set("docker.io/library/a:b", &ours));
        assert!(index.unset("docker.io/library/a:b") && !index.unset("docker.io/library/a:b"));
        let listed = list(&index.into_bytes(), "it").expect("parses");
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0].names, ["theirs"]);
        assert!(listed[1].names.is_empty(), "what had the name before is kept without");
        assert_eq!(listed[1].root.digest(), ours.digest());
    }
}
