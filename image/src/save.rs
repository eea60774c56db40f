//! `docker save`: images become an archive.

use std::collections::HashSet;
use std::io::{self, Read, Write};

use oci_spec::image::{Descriptor, Digest};
use serde_json::{Map, Value, json};

use crate::archive::TarWriter;
use crate::digest::path_parts;
use crate::layout::{IMAGE_NAME, LAYOUT_VERSION, REF_NAME};
use crate::{DockerArchive, Error, Image, OciArchive, Platform, Provider, Reference, Result, Verified, media};

/// An image that is to be written into an archive, and the names that it shall have there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its index or manifest.
    pub root: Descriptor,
    /// Its names; without one it is known by its id alone.
    pub names: Vec<Reference>,
}

impl DockerArchive {
    /// Writes what `docker save` writes since Docker 25: `manifest.json` and `repositories` for Docker's own and podman's reader, and an
    /// OCI layout of the same blobs for all others.
    ///
    /// Of each image the part for `platform` is written. Every blob is what it is in the store, byte by byte, so manifest
    /// digests and image ids survive; layers stay compressed, which every Docker since 1.10 and podman read. The same images and names in the
    /// same order give the same bytes, and nothing but small documents is held in memory. A name with a digest and no tag is left out, as Docker
    /// does.
    ///
    /// # Errors
    ///
    /// Blobs are verified on their way. If one is missing or damaged, `out` has got a part of an archive, without an end.
    pub fn write<P, W>(from: &P, images: &[Export], platform: &Platform, out: W) -> Result<()>
    where
        P: Provider + ?Sized,
        W: Write,
    {
        let images = load(from, images, platform)?;
        let (mut items, mut entries, mut repositories) = (Vec::new(), Vec::new(), Map::new());
        for (image, names) in &images {
            let tagged: Vec<Reference> = names.iter().filter_map(Reference::tagged).collect();
            let place = |digest: &Digest| path_parts(digest).map(|parts| parts.join("/"));
            let layers = image.layers().iter().map(|layer| place(layer.descriptor.digest()));
            items.push(json!({
                "Config": place(image.id())?,
                // In full, as skopeo has it: Docker takes either, and podman takes `busybox:1` for `localhost/busybox:1`.
                "RepoTags": tagged.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "Layers": layers.collect::<Result<Vec<_>>>()?,
            }));
            for name in &tagged {
                // As containerd and Docker have it: the short name is the tag.
                entries.push(entry(image, Some((name.tag().unwrap_or_default(), name)))?);
                if let (Some(top), Some((repository, tag))) = (image.layers().last(), name.familiar().rsplit_once(':'))
                {
                    repositories.entry(repository).or_insert_with(|| json!({}))[tag] = json!(top.diff_id.digest());
                }
            }
            if tagged.is_empty() {
                entries.push(entry(image, None)?);
            }
        }
        let mut documents = vec![("manifest.json", json!(items))];
        if !repositories.is_empty() {
            documents.push(("repositories", Value::Object(repositories)));
        }
        write(from, &images, &entries, &documents, out)
    }
}

impl OciArchive {
    /// Writes a tar file of an OCI image layout, what skopeo and podman call `oci-archive`.
    ///
    /// As [`DockerArchive::write`] does, but without Docker's own documents, and an image's name is its full reference in both
    /// annotations: skopeo and podman take it from the one, containerd and Docker from the other.
    pub fn write<P, W>(from: &P, images: &[Export], platform: &Platform, out: W) -> Result<()>
    where
        P: Provider + ?Sized,
        W: Write,
    {
        let images = load(from, images, platform)?;
        let mut entries = Vec::new();
        for (image, names) in &images {
            for name in names {
                entries.push(entry(image, Some((&name.to_string(), name)))?);
            }
            if names.is_empty() {
                entries.push(entry(image, None)?);
            }
        }
        write(from, &images, &entries, &[], out)
    }
}

/// Each image once, with all its names.
type Loaded = Vec<(Image, Vec<Reference>)>;

fn load<P: Provider + ?Sized>(from: &P, exports: &[Export], platform: &Platform) -> Result<Loaded> {
    let mut images: Loaded = Vec::new();
    let mut taken: HashSet<String> = HashSet::new();
    for export in exports {
        let image = Image::load(from, &export.root, platform)?;
        let same = |(other, _): &(Image, _)| other.descriptor().digest() == image.descriptor().digest();
        let position = images.iter().position(same).unwrap_or(images.len());
        if position == images.len() {
            images.push((image, Vec::new()));
        }
        for name in &export.names {
            // Of two images that want one name the first has it: readers differ about which they would take.
            if taken.insert(name.to_string()) {
                images[position].1.push(name.clone());
            }
        }
    }
    Ok(images)
}

/// An entry of `index.json`.
fn entry(image: &Image, name: Option<(&str, &Reference)>) -> Result<Value> {
    let descriptor = image.descriptor();
    let mut value = serde_json::to_value(descriptor).map_err(|source| Error::InvalidDocument {
        what: format!("manifest {}", descriptor.digest()),
        source: source.into(),
    })?;
    if let Some((short, name)) = name {
        value["annotations"] = json!({ REF_NAME: short, IMAGE_NAME: name.to_string() });
    }
    Ok(value)
}

fn write<P, W>(from: &P, images: &Loaded, entries: &[Value], documents: &[(&str, Value)], out: W) -> Result<()>
where
    P: Provider + ?Sized,
    W: Write,
{
    let fail = |source: io::Error| Error::io("write", "the archive", source);
    let mut tar = TarWriter::new(out);
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries });
    // Documents first: who reads a stream knows then what comes.
    tar.file("oci-layout", LAYOUT_VERSION).map_err(fail)?;
    tar.file("index.json", index.to_string().as_bytes()).map_err(fail)?;
    for (name, document) in documents {
        tar.file(name, document.to_string().as_bytes()).map_err(fail)?;
    }
    tar.folder("blobs").map_err(fail)?;
    let mut written: HashSet<Digest> = HashSet::new();
    let mut folders: HashSet<String> = HashSet::new();
    for (image, _) in images {
        let documents = [(image.descriptor(), image.raw_manifest()), (image.manifest().config(), image.raw_config())];
        let layers = image.layers().iter().map(|layer| &layer.descriptor);
        for descriptor in documents.iter().map(|(descriptor, _)| *descriptor).chain(layers) {
            if !written.insert(descriptor.digest().clone()) {
                continue;
            }
            let [blobs, algorithm, hex] = path_parts(descriptor.digest())?;
            if folders.insert(algorithm.to_owned()) {
                tar.folder(&format!("{blobs}/{algorithm}")).map_err(fail)?;
            }
            let name = format!("{blobs}/{algorithm}/{hex}");
            match documents.iter().find(|(other, _)| other.digest() == descriptor.digest()) {
                Some((_, raw)) => tar.file(&name, raw).map_err(fail)?,
                None => blob(from, descriptor, &name, &mut tar)?,
            }
        }
    }
    tar.finish().map_err(fail)
}

fn blob<P, W>(from: &P, descriptor: &Descriptor, name: &str, tar: &mut TarWriter<W>) -> Result<()>
where
    P: Provider + ?Sized,
    W: Write,
{
    let fail = |source: io::Error| Error::io("write", "the archive", source);
    let location = from.location();
    let mut reader = Verified::new(from.open(descriptor)?, descriptor, &location)?;
    tar.begin(name, descriptor.size()).map_err(fail)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => tar.content(&buffer[..count]).map_err(fail)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::from_read(error, &location, descriptor.digest())),
        }
    }
    tar.end(descriptor.size()).map_err(fail)
}
