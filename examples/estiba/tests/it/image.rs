//! Images made by the tests themselves, with tar and JSON of their own, so that what a test reads was not written by
//! what it tests.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::home::Result;
use crate::need::find;

/// What the busybox image says in `/etc/os-release`.
pub(crate) const OS_RELEASE: &str = "NAME=\"Test\"\nID=estiba-test\nVERSION_ID=7\n";

const APPLETS: [&str; 24] = [
    "sh", "cat", "echo", "true", "false", "sleep", "ls", "id", "stty", "kill", "hostname", "env", "pwd", "mount", "ps",
    "touch", "mkdir", "rm", "head", "wc", "tty", "seq", "dd", "test",
];

/// A layer's uncompressed tar.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn folder(self, path: &str) -> Result<Self> {
        self.entry(path, tar::EntryType::Directory, 0o755, None, &[])
    }

    pub(crate) fn file(self, path: &str, mode: u32, bytes: &[u8]) -> Result<Self> {
        self.entry(path, tar::EntryType::Regular, mode, None, bytes)
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, tar::EntryType::Symlink, 0o777, Some(target), &[])
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, tar::EntryType::Link, 0o644, Some(target), &[])
    }

    /// Writes the names as they are, however wrong.
    fn entry(
        mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        target: Option<&str>,
        bytes: &[u8],
    ) -> Result<Self> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(target) = target {
            old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        self.0.append(&header, bytes)?;
        Ok(self)
    }

    pub(crate) fn tar(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

/// busybox with its usual names, users and an `os-release`.
pub(crate) fn busybox() -> Result<Vec<u8>> {
    let program = fs::read(find("busybox").ok_or("no busybox")?)?;
    let mut layer = Layer::new().folder("bin/")?.folder("etc/")?.folder("tmp/")?.folder("root/")?;
    layer = layer.file("bin/busybox", 0o755, &program)?;
    for applet in APPLETS {
        layer = layer.link(&format!("bin/{applet}"), "busybox")?;
    }
    layer
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")?
        .file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n")?
        .file("etc/os-release", 0o644, OS_RELEASE.as_bytes())?
        .file("etc/not-a-program", 0o644, b"text\n")?
        .file("etc/broken-program", 0o755, b"\x7fELF, but no more than that")?
        .tar()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
    json!({
        "architecture": architecture(),
        "os": "linux",
        "config": { "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh"], "WorkingDir": "/tmp" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

/// An OCI layout in a folder, whose parts can be made wrong one by one.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) folder: PathBuf,
    pub(crate) layer: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) manifest: PathBuf,
}

impl Layout {
    /// Writes an image of these layers (uncompressed tars) as `latest`.
    pub(crate) fn write(folder: &Path, layers: &[Vec<u8>]) -> Result<Self> {
        Self::write_with(folder, layers, &config(layers))
    }

    /// The same with a configuration of another kind.
    pub(crate) fn write_changed(folder: &Path, layers: &[Vec<u8>], change: fn(&mut Value)) -> Result<Self> {
        let mut config = config(layers);
        change(&mut config);
        Self::write_with(folder, layers, &config)
    }

    fn write_with(folder: &Path, layers: &[Vec<u8>], config: &Value) -> Result<Self> {
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        let blob = |bytes: &[u8], kind: &str| -> Result<(Value, PathBuf)> {
            let digest = digest(bytes);
            let path = folder.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
            fs::write(&path, bytes)?;
            let kind = format!("application/vnd.oci.image.{kind}");
            Ok((json!({ "mediaType": kind, "digest": digest, "size": bytes.len() }), path))
        };
        let (mut descriptors, mut last) = (Vec::new(), PathBuf::new());
        for tar in layers {
            let (descriptor, path) = blob(&gzip(tar)?, "layer.v1.tar+gzip")?;
            descriptors.push(descriptor);
            last = path;
        }
        let (config, config_path) = blob(&serde_json::to_vec(config)?, "config.v1+json")?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": descriptors,
        });
        let (mut manifest, manifest_path) = blob(&serde_json::to_vec(&manifest)?, "manifest.v1+json")?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        manifest["platform"] = json!({ "os": "linux", "architecture": architecture() });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(folder.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { folder: folder.to_owned(), layer: last, config: config_path, manifest: manifest_path })
    }

    pub(crate) fn reference(&self) -> String {
        format!("oci:{}:latest", self.folder.display())
    }

    /// The same as one file, as `oci-archive:` names it.
    pub(crate) fn archive(&self, file: &Path) -> Result<String> {
        let mut tar = tar::Builder::new(File::create(file)?);
        tar.append_dir_all(".", &self.folder)?;
        tar.into_inner()?.sync_all()?;
        Ok(format!("oci-archive:{}:latest", file.display()))
    }
}

/// What `docker save` writes.
pub(crate) fn docker_archive(file: &Path, layers: &[Vec<u8>]) -> Result<String> {
    let config = serde_json::to_vec(&config(layers))?;
    let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{ "Config": config_name, "RepoTags": ["test/busybox:1"], "Layers": names }]);
    let mut tar = tar::Builder::new(File::create(file)?);
    let mut add = |name: &str, bytes: &[u8]| -> Result {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        Ok(tar.append_data(&mut header, name, bytes)?)
    };
    add(&config_name, &config)?;
    for (name, layer) in names.iter().zip(layers) {
        add(name, layer)?;
    }
    add("manifest.json", &serde_json::to_vec(&manifest)?)?;
    tar.into_inner()?.sync_all()?;
    Ok(format!("docker-archive:{}", file.display()))
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
