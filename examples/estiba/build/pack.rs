//! An OCI image archive of one layer, made from one program.
//!
//! The same input gives the same bytes: every time is 0, every owner root, every list in a fixed order.

use std::io::{Result, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Packs `program` as `/hello` of an image ([OCI image layout] in a tar).
///
/// [OCI image layout]: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
pub(crate) fn archive(program: &[u8], architecture: &str, version: &str) -> Result<Vec<u8>> {
    let layer = layer(program)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&layer)?;
    let compressed = encoder.finish()?;

    let labels = json!({
        "org.opencontainers.image.title": "hello",
        "org.opencontainers.image.description": "Says what a container looks like from inside",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    });
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/"],
            "Entrypoint": ["/hello"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "estiba", "comment": "hello" }],
    });
    let config = serde_json::to_vec(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &compressed)],
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let mut named = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    named["platform"] = json!({ "architecture": architecture, "os": "linux" });
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": "hello" });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    });

    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
    append(&mut tar, "blobs/", 0o755, b"")?;
    append(&mut tar, "blobs/sha256/", 0o755, b"")?;
    for blob in [&manifest, &config, &compressed] {
        append(&mut tar, &format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)?;
    }
    tar.into_inner()
}

fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    append(&mut tar, "etc/", 0o755, b"")?;
    append(&mut tar, "etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    let users = b"root:x:0:0:root:/:/hello\nnobody:x:65534:65534:nobody:/nonexistent:/hello\n";
    append(&mut tar, "etc/passwd", 0o644, users)?;
    append(&mut tar, "hello", 0o755, program)?;
    append(&mut tar, "tmp/", 0o1777, b"")?;
    tar.into_inner()
}

/// A name that ends in `/` is a folder.
fn append(tar: &mut Builder<Vec<u8>>, name: &str, mode: u32, data: &[u8]) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular });
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, data)
}

fn digest(data: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(data).iter().fold(String::from("sha256:"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn descriptor(media_type: &str, data: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(data), "size": data.len() })
}
