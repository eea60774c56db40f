//! Differential: whole images, unpacked by this crate and by umoci, are the same tree, entry by entry: type, mode, owner, size,
//! time, extended attributes, links, content.
//!
//! A campaign over images of one's own: `ESTIBA_LAYOUTS="FOLDER:TAG …" cargo nextest run -p estiba-storage --all-features
//! -E 'test(umoci)'`, each an OCI layout as `skopeo copy docker://… oci:FOLDER:TAG` writes it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;

use estiba_storage::layer::{Compression, Limits, Target, apply};
use estiba_storage::{Durability, Key, LateParent as _, Name, Overlay, OverlayOptions, Snapshotter};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::{Header, Tar};
use crate::tree::{self, Times};
use crate::{mounts, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("an_image_is_the_tree_that_umoci_makes", &["umoci"], made_here),
        privileged("images_of_a_campaign_are_the_trees_that_umoci_makes", &["umoci"], campaign),
    ]
}

fn campaign() {
    for layout in std::env::var("ESTIBA_LAYOUTS").unwrap_or_default().split_whitespace() {
        let (folder, tag) = layout.rsplit_once(':').expect("FOLDER:TAG");
        compare(Path::new(folder), tag);
    }
}

/// Writes a blob; its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("text");
        text
    });
    fs::write(layout.join("blobs/sha256").join(&digest), bytes).expect("write");
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
}

fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(layout.join("blobs/sha256")).expect("folders");
    let described: Vec<Value> =
        layers.iter().map(|layer| blob(layout, "application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let ids: Vec<Value> = described.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = blob(layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": described });
    let mut manifest = blob(layout, kind, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "test" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).expect("write");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
}

fn made_here() {
    // cap_net_raw, effective, as the kernel stores it.
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let root = |tar: Tar| tar.dir("./", 0o755);
    let below = root(Tar::new())
        .dir("bin", 0o755)
        .dir("deep", 0o700)
        .dir("deep/er", 0o755)
        .file("deep/er/file", b"below")
        .file("deep/er/other", b"other")
        .dir("gone", 0o755)
        .file("gone/file", b"gone")
        .dir("opaque", 0o755)
        .file("opaque/old", b"old")
        .dir("usr", 0o755)
        .dir("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("changes", b"a file")
        .header(Header::new("bin/su", b'0', 2).octal(100, 8, 0o4755), b"su")
        .link("bin/su-too", "bin/su")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"note")])
        .file("bin/ping", b"ping")
        .pax(&[("uid", b"3000000"), ("gid", b"3000001"), ("mtime", b"1234567890.987654321")])
        .file("owned", b"owned")
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 8, 1)
        .device("fifo", b'6', 0, 0);
    let middle = root(Tar::new())
        .file(".wh.gone", b"")
        .dir("opaque", 0o711)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .dir("deep", 0o700)
        .dir("deep/er", 0o755)
        .file("deep/er/.wh.other", b"")
        .file("deep/er/file", b"above")
        .dir("changes", 0o755)
        .file("changes/within", b"a folder")
        .file("lib/through-a-link", b"lib");
    let top = root(Tar::new())
        .dir("gone", 0o750)
        .file("gone/again", b"again")
        .file(".wh.changes", b"")
        .dir("bin", 0o755)
        // One of several names that came from below would be a file of its own, as the kernel has it.
        .link("bin/ping-again", "bin/ping")
        .symlink("owned", "/nowhere");
    let place = tempfile::tempdir().expect("a folder");
    write_layout(place.path(), &[below.finish(), middle.finish(), top.finish()]);
    compare(place.path(), "test");
}

fn document(layout: &Path, descriptor: &Value) -> Value {
    let path = path(layout, descriptor);
    serde_json::from_slice(&fs::read(&path).expect("a blob"))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn path(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
    let digest = descriptor["digest"].as_str().expect("a digest");
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn compare(layout: &Path, tag: &str) {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("an index")).expect("JSON");
    let mut entries = index["manifests"].as_array().expect("a list").iter();
    let named = entries.find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag);
    let manifest = document(layout, named.expect("the tag"));
    let ids = document(layout, &manifest["config"])["rootfs"]["diff_ids"].clone();
    let place = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    let store = Arc::new(Overlay::with_options(place.path().join("store"), options).expect("open"));
    let layers = manifest["layers"].as_array().expect("a list");
    let name = |at: usize| -> Name { format!("layer{at}").parse().expect("a name") };
    // All at once, as a pull does it: each waits for the one below.
    std::thread::scope(|scope| {
        let mut below = None;
        for (at, layer) in layers.iter().enumerate() {
            let (done, next) = channel::<()>();
            let (waits, store) = (below.replace(next), Arc::clone(&store));
            let expected = ids[at].as_str().expect("a diff id").to_owned();
            scope.spawn(move || {
                let key: Key = format!("key{at}").parse().expect("a key");
                let target = match waits {
                    None => Target::from_mounts(&store.prepare(&key, None).expect("prepare")).expect("a target"),
                    Some(waits) => {
                        let mounts = store.prepare_late(&key).expect("prepare");
                        let (store, key) = (Arc::clone(&store), key.clone());
                        let parent = move || {
                            waits.recv().expect("the layer below");
                            store.set_parent(&key, &name(at - 1))
                        };
                        Target::late(&mounts, parent).expect("a target")
                    }
                };
                let blob = File::open(path(layout, layer)).expect("a blob");
                let applied = apply(blob, Compression::Sniff, &target, &Limits::default()).expect("applied");
                assert_eq!(applied.diff_id(), expected);
                store.commit(&name(at), &key).expect("commit");
                let _ = done.send(());
            });
        }
    });
    let bundle = place.path().join("bundle");
    let image = format!("{}:{tag}", layout.display());
    let done = Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle).output().expect("run");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let theirs = tree::list(&bundle.join("rootfs"), Times::All);
    let top = name(layers.len() - 1);
    mounts::private(|| {
        let mounts = store.look(&top).expect("a look");
        mounts::with(&mounts, &mut |root| tree::assert_same(&tree::list(root, Times::All), &theirs, &image));
    });
}
