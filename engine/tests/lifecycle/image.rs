//! A small image of the machine's static busybox.

use std::io::Write;

use estiba_engine::Image;
use estiba_engine::image::{ContentStore, Layout, digest_of};
use estiba_engine::oci_spec::image::{Descriptor, MediaType};
use serde_json::json;
use tar::EntryType::{Directory, Regular, Symlink};

use crate::Result;

pub(crate) const BUSYBOX: &str = "/bin/busybox";

/// Puts the image into a content store.
pub(crate) fn store(content: &Layout) -> Result<Image> {
    let layer = layer()?;
    let diff_id = digest_of(&layer).to_string();
    let layer = put(content, MediaType::ImageLayer, &layer)?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = put(content, MediaType::ImageConfig, &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::ImageManifest, "config": config, "layers": [layer],
    });
    let manifest = put(content, MediaType::ImageManifest, &serde_json::to_vec(&manifest)?)?;
    content.set("busybox", &manifest)?;
    Ok(Image { name: "busybox".to_owned(), manifest })
}

fn put(content: &Layout, kind: MediaType, bytes: &[u8]) -> Result<Descriptor> {
    let descriptor = Descriptor::new(kind, bytes.len() as u64, digest_of(bytes));
    let mut ingest = content.ingest()?;
    ingest.write_all(bytes)?;
    ingest.commit(&descriptor)?;
    Ok(descriptor)
}

fn layer() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: &str| -> Result {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link)?;
        }
        tar.append_data(&mut header, name, content)?;
        Ok(())
    };
    for folder in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
        add(folder, Directory, 0o755, b"", "")?;
    }
    add("bin/busybox", Regular, 0o755, &std::fs::read(BUSYBOX)?, "")?;
    for name in ["sh", "cat", "echo", "sleep", "id", "hostname", "grep", "dd", "true"] {
        add(&format!("bin/{name}"), Symlink, 0o777, b"", "busybox")?;
    }
    add("etc/passwd", Regular, 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n", "")?;
    add("etc/group", Regular, 0o644, b"root:x:0:\nweb:x:34:\nextra:x:50:web\n", "")?;
    Ok(tar.into_inner()?)
}
