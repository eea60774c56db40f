//! Images made by hand.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{Layout, Platform, Provider, digest_of};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

/// The files of a layout or an archive, by path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(pub(crate) BTreeMap<String, Vec<u8>>);

/// An image in [`Files`].
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Vec<u8>,
    /// The tar of each layer.
    pub(crate) tars: Vec<Vec<u8>>,
}

pub(crate) fn platform() -> Platform {
    Platform::new("linux", "amd64", None)
}

impl Files {
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = digest_of(bytes);
        self.0.insert(format!("blobs/sha256/{}", digest.digest()), bytes.to_vec());
        Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest)
    }

    pub(crate) fn document(&mut self, media_type: &MediaType, value: &Value) -> Descriptor {
        self.blob(media_type.as_ref(), value.to_string().as_bytes())
    }

    /// Adds an image of a plain and a gzip layer whose content depends on `seed`.
    pub(crate) fn image(&mut self, seed: &str, architecture: &str) -> Made {
        self.image_of(vec![layer(&format!("{seed} one")), layer(&format!("{seed} two"))], architecture)
    }

    /// Adds an image of two layers, of which the second is stored with gzip.
    pub(crate) fn image_of(&mut self, tars: Vec<Vec<u8>>, architecture: &str) -> Made {
        let one = self.blob(MediaType::ImageLayer.as_ref(), &tars[0]);
        let two = self.blob(MediaType::ImageLayerGzip.as_ref(), &gzip(&tars[1]));
        let config = config(architecture, &tars);
        let described = self.blob(MediaType::ImageConfig.as_ref(), &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest.as_ref(),
            "config": described,
            "layers": [one, two],
            "vendor.unknown": { "kept": true },
        });
        Made { manifest: self.document(&MediaType::ImageManifest, &manifest), config, tars }
    }

    /// Lists the images in `index.json`.
    pub(crate) fn list(&mut self, images: &[(Option<&str>, Descriptor)]) {
        let manifests: Vec<Value> = images
            .iter()
            .map(|(name, descriptor)| {
                let mut entry = serde_json::to_value(descriptor).expect("a descriptor is JSON");
                if let Some(name) = name {
                    entry["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
                }
                entry
            })
            .collect();
        self.set("index.json", &json!({ "schemaVersion": 2, "manifests": manifests }));
        self.set("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }));
    }

    pub(crate) fn set(&mut self, path: &str, value: &Value) {
        self.0.insert(path.to_owned(), value.to_string().into_bytes());
    }

    pub(crate) fn write(&self, folder: &Path) {
        for (path, content) in &self.0 {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("mkdir");
            std::fs::write(path, content).expect("write");
        }
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in &self.0 {
            match content.strip_prefix(b"link:") {
                Some(target) => {
                    let mut header = tar::Header::new_ustar();
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    header.set_mode(0o777);
                    let target = std::str::from_utf8(target).expect("text");
                    builder.append_link(&mut header, path, target).expect("append");
                }
                None => append(&mut builder, path, content),
            }
        }
        builder.into_inner().expect("a tar")
    }
}

pub(crate) fn append(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content).expect("append");
}

/// A layer's tar.
pub(crate) fn layer(content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "etc/content", content.repeat(200).as_bytes());
    builder.into_inner().expect("a tar")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("deflate");
    encoder.finish().expect("deflate")
}

pub(crate) fn config(architecture: &str, tars: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|tar| digest_of(tar).to_string()).collect();
    // Spaces that a serialiser would not write: bytes must survive as they are.
    format!(
        r#"{{ "os":"linux",  "architecture":"{architecture}", "vendor.unknown": 1,
  "config":{{"Cmd":["sh"],"Healthcheck":{{"Test":["NONE"]}}}},
  "rootfs":{{"type":"layers","diff_ids":{}}} }}"#,
        json!(diff_ids)
    )
    .into_bytes()
}

/// What `docker save` wrote before version 25, of images that share their lowest layer.
pub(crate) fn docker_save_old(images: &[(&str, &[&str])]) -> (Files, Vec<Made>) {
    let (mut files, mut made, mut items) = (Files::default(), Vec::new(), Vec::new());
    let mut repositories = json!({});
    let shared = layer("shared");
    for (position, (seed, tags)) in images.iter().enumerate() {
        let tars = vec![shared.clone(), layer(seed)];
        let config = config("amd64", &tars);
        let config_name = format!("{}.json", digest_of(&config).digest());
        let mut layers = Vec::new();
        for (depth, tar) in tars.iter().enumerate() {
            let id = digest_of(format!("{position} {depth}").as_bytes()).digest().to_owned();
            // A layer that is there already is a link, as Docker writes it.
            let first = digest_of(b"0 0").digest().to_owned();
            let content = if depth == 0 && position > 0 {
                format!("link:../{first}/layer.tar").into_bytes()
            } else {
                tar.clone()
            };
            files.0.insert(format!("{id}/layer.tar"), content);
            files.0.insert(format!("{id}/VERSION"), b"1.0".to_vec());
            files.set(&format!("{id}/json"), &json!({ "id": id }));
            layers.push(format!("{id}/layer.tar"));
        }
        for tag in *tags {
            let (name, tag) = tag.split_once(':').unwrap_or((tag, "latest"));
            repositories[name][tag] = json!(layers.last());
        }
        items.push(json!({ "Config": config_name, "RepoTags": tags, "Layers": layers }));
        files.0.insert(config_name, config.clone());
        made.push(Made { manifest: Descriptor::new(MediaType::ImageManifest, 0, digest_of(b"")), config, tars });
    }
    files.set("manifest.json", &json!(items));
    files.set("repositories", &repositories);
    (files, made)
}

/// What `docker save` writes since version 25: an OCI layout with a `manifest.json` beside.
pub(crate) fn docker_save_new(seed: &str, tag: &str) -> (Files, Made) {
    let mut files = Files::default();
    let made = files.image(seed, "amd64");
    let name = format!("docker.io/library/{tag}");
    let mut listed = made.manifest.clone();
    listed.set_annotations(Some([("io.containerd.image.name".to_owned(), name)].into()));
    let short = tag.split_once(':').expect("a tag").1;
    files.list(&[(Some(short), listed)]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest_of(bytes).digest());
    let layers = [blob(&made.tars[0]), blob(&gzip(&made.tars[1]))];
    files.set("manifest.json", &json!([{ "Config": blob(&made.config), "RepoTags": [tag], "Layers": layers }]));
    (files, made)
}

/// All blobs that the image's manifest names and itself, read and checked by hand.
pub(crate) fn check_stored(store: &Layout, manifest: &Descriptor) -> usize {
    let read = |descriptor: &Descriptor| {
        let mut bytes = Vec::new();
        store.open(descriptor).expect("is there").read_to_end(&mut bytes).expect("reads");
        assert_eq!(digest_of(&bytes), *descriptor.digest());
        bytes
    };
    let parsed: Value = serde_json::from_slice(&read(manifest)).expect("JSON");
    let mut named: Vec<Value> = parsed["layers"].as_array().expect("layers").clone();
    named.push(parsed["config"].clone());
    for value in &named {
        read(&serde_json::from_value(value.clone()).expect("a descriptor"));
    }
    named.len() + 1
}

/// The files in the folder and below, with their content.
pub(crate) fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("list") {
            let path = entry.expect("list").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                found.insert(name, std::fs::read(&path).expect("read"));
            }
        }
    }
    found
}
