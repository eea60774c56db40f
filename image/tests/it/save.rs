//! `docker save` and `docker load`.

use std::io::{Cursor, Read};
use std::path::Path;

use estiba_image::oci_spec::image::Descriptor;
use estiba_image::{
    DockerArchive, Error, Export, Image, Layout, Loaded, OciArchive, Platform, Reference, Result, digest_of, read_blob,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Files, check_stored, docker_save_new, docker_save_old, gzip, platform, tree};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["save":
        an_archive_comes_back_as_it_was,
        the_same_images_give_the_same_bytes,
        is_what_docker_writes,
        writes_each_blob_once,
        damage_is_found_on_the_way,
        a_full_disk_is_said_so,
        loads_what_docker_saved,
        loads_from_a_stream_and_leaves_nothing,
        loads_all_or_changes_no_name,
        keeps_what_has_no_name,
        reads_a_platform_of_an_index,
    ]
}

/// Which archive is written.
type Writer = fn(&Layout, &[Export], &Platform, &mut Vec<u8>) -> Result<()>;
pub(crate) const WRITERS: [(&str, Writer); 2] = [
    ("docker", |store, images, platform, out| DockerArchive::write(store, images, platform, out)),
    ("oci", |store, images, platform, out| OciArchive::write(store, images, platform, out)),
];

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub(crate) fn names(list: &[&str]) -> Vec<Reference> {
    list.iter().map(|name| name.parse().expect("a reference")).collect()
}

/// A store with three images, of which two have the first layer in common, as exports with names.
pub(crate) fn store(folder: &Path) -> (Layout, Vec<Export>) {
    let mut files = Files::default();
    let shared = crate::fixture::layer("shared");
    let one = files.image_of(vec![shared.clone(), crate::fixture::layer("one")], "amd64");
    let two = files.image_of(vec![shared, crate::fixture::layer("two")], "amd64");
    let three = files.image("three", "amd64");
    files.list(&[(Some("one"), one.manifest.clone())]);
    let path = folder.join("store");
    files.write(&path);
    let store = Layout::open_or_create(path).expect("opens");
    let export = |manifest: &Descriptor, list: &[&str]| Export { root: manifest.clone(), names: names(list) };
    let exports = vec![
        export(&one.manifest, &["one:1", "one", "registry.example:5000/a/one:x"]),
        export(&two.manifest, &["two:2"]),
        export(&three.manifest, &[]),
    ];
    (store, exports)
}

fn write(writer: Writer, store: &Layout, exports: &[Export]) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer(store, exports, &platform(), &mut bytes).expect("writes");
    bytes
}

pub(crate) fn load(store: &Layout, bytes: &[u8]) -> Result<Vec<Loaded>> {
    store.load_stream(Cursor::new(bytes), 1 << 30, &platform())
}

fn an_archive_comes_back_as_it_was() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    for (kind, writer) in WRITERS {
        let bytes = write(writer, &from, &exports);
        for compressed in [false, true] {
            let to = Layout::open_or_create(folder.path().join(format!("{kind}-{compressed}"))).expect("is made");
            let path = folder.path().join("archive");
            std::fs::write(&path, if compressed { gzip(&bytes) } else { bytes.clone() }).expect("write");
            let loaded = to.load(&path, &platform()).expect("loads");
            assert_eq!(loaded.len(), 3, "{kind}");
            for (export, image) in exports.iter().zip(&loaded) {
                assert_eq!(image.manifest.digest(), export.root.digest(), "{kind}: not a byte changes");
                assert_eq!(check_stored(&to, &image.manifest), 4);
                let mut wanted: Vec<String> = export.names.iter().map(ToString::to_string).collect();
                wanted.sort();
                assert_eq!(image.names, wanted, "{kind}");
                for name in &image.names {
                    assert_eq!(to.find(name).expect("is there").root.digest(), export.root.digest());
                }
                let before = Image::load(&from, &export.root, &platform()).expect("loads");
                assert_eq!(image.id, *before.id());
            }
            assert_eq!(to.find(loaded[2].id.as_ref()).expect("by id").name, None);
            assert!(to.verify().expect("verifies").problems.is_empty());
            // A second time nothing changes.
            let before = tree(to.path());
            assert_eq!(to.load(&path, &platform()).expect("loads"), loaded);
            assert_eq!(tree(to.path()), before);
        }
    }
}

fn the_same_images_give_the_same_bytes() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    for (kind, writer) in WRITERS {
        let first = write(writer, &from, &exports);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(first == write(writer, &from, &exports), "{kind}");
        // From another store that got them in another order, too.
        let to = Layout::open_or_create(folder.path().join(kind)).expect("is made");
        let mut turned = exports.clone();
        turned.reverse();
        load(&to, &write(writer, &from, &turned)).expect("loads");
        assert!(first == write(writer, &to, &exports), "{kind}");
    }
}

/// The archive's files by another reader than this crate's.
fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("a tar").map(|entry| {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a name").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("reads");
        (name, content)
    });
    entries.collect()
}

fn is_what_docker_writes() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let files = files(&write(WRITERS[0].1, &from, &exports));
    let document = |name: &str| -> Value {
        let found = files.iter().find(|(there, _)| there == name);
        serde_json::from_slice(&found.unwrap_or_else(|| panic!("no {name}")).1).expect("JSON")
    };
    let manifest = document("manifest.json");
    assert_eq!(
        manifest[0]["RepoTags"],
        json!(["docker.io/library/one:1", "docker.io/library/one:latest", "registry.example:5000/a/one:x"])
    );
    assert_eq!(manifest[2]["RepoTags"], json!([]));
    for (item, export) in manifest.as_array().expect("a list").iter().zip(&exports) {
        let image = Image::load(&from, &export.root, &platform()).expect("loads");
        assert_eq!(item["Config"], format!("blobs/sha256/{}", image.id().digest()));
        for (layer, path) in image.layers().iter().zip(item["Layers"].as_array().expect("a list")) {
            let path = path.as_str().expect("text");
            let content = &files.iter().find(|(there, _)| there == path).expect("is there").1;
            assert_eq!(digest_of(content), *layer.descriptor.digest(), "a layer is what it is in the store");
        }
    }
    let top = Image::load(&from, &exports[0].root, &platform()).expect("loads").layers()[1].diff_id.digest().to_owned();
    let repositories = document("repositories");
    assert_eq!(repositories["one"], json!({ "1": top, "latest": top }));
    assert_eq!(repositories["registry.example:5000/a/one"], json!({ "x": top }));
    let index = document("index.json");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(5), "an entry for each name, and one without");
    assert_eq!(
        index["manifests"][1]["annotations"],
        json!({ "io.containerd.image.name": "docker.io/library/one:latest", "org.opencontainers.image.ref.name": "latest" })
    );
    assert_eq!(document("oci-layout")["imageLayoutVersion"], "1.0.0");
    // A name with a digest alone has no tag to be known by.
    let digest = exports[0].root.digest();
    let only = [Export {
        root: exports[0].root.clone(),
        names: names(&[&format!("one@{digest}"), &format!("one:t@{digest}")]),
    }];
    let files = self::files(&write(WRITERS[0].1, &from, &only));
    let manifest: Value =
        serde_json::from_slice(&files.iter().find(|(name, _)| name == "manifest.json").expect("is there").1)
            .expect("JSON");
    assert_eq!(manifest[0]["RepoTags"], json!(["docker.io/library/one:t"]));
}

fn writes_each_blob_once() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let twice: Vec<Export> = exports.iter().chain(&exports).cloned().collect();
    for (kind, writer) in WRITERS {
        let mut seen: Vec<String> = files(&write(writer, &from, &twice)).into_iter().map(|(name, _)| name).collect();
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count, "{kind}");
        // Three images of manifest, config and two layers, of which one is shared.
        assert_eq!(
            seen.iter().filter(|name| name.starts_with("blobs/sha256/") && name.len() > 60).count(),
            11,
            "{kind}"
        );
    }
}

fn damage_is_found_on_the_way() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let image = Image::load(&from, &exports[1].root, &platform()).expect("loads");
    let layer = &image.layers()[1].descriptor;
    let path = from.path().join("blobs/sha256").join(layer.digest().digest());
    let mut bytes = std::fs::read(&path).expect("read");
    *bytes.last_mut().expect("has bytes") ^= 1;
    std::fs::write(&path, &bytes).expect("write");
    for (kind, writer) in WRITERS {
        let mut out = Vec::new();
        let error = writer(&from, &exports, &platform(), &mut out).expect_err("is damaged");
        assert!(
            matches!(&error, Error::DigestMismatch { expected, .. } if expected == layer.digest()),
            "{kind}: {error}"
        );
        let to = Layout::open_or_create(folder.path().join(kind)).expect("is made");
        load(&to, &out).expect_err("has no end");
        assert!(to.images().expect("lists").is_empty(), "{kind}");
    }
    std::fs::remove_file(&path).expect("remove");
    let error = DockerArchive::write(&from, &exports, &platform(), &mut Vec::new()).expect_err("is missing");
    assert!(matches!(error, Error::BlobMissing { .. }), "{error}");
}

fn a_full_disk_is_said_so() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
    let error = OciArchive::write(&from, &exports, &platform(), full).expect_err("is full");
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
}

fn loads_what_docker_saved() {
    let folder = temporary();
    let to = Layout::open_or_create(folder.path().join("store")).expect("is made");
    let (old, made) = docker_save_old(&[("one", &["one:1", "one:2"]), ("two", &[])]);
    let loaded = load(&to, &old.tar()).expect("loads");
    assert_eq!(loaded[0].names, ["docker.io/library/one:1", "docker.io/library/one:2"]);
    assert_eq!(loaded[1].names, Vec::<String>::new());
    for (image, made) in loaded.iter().zip(&made) {
        assert_eq!(image.id, digest_of(&made.config));
        assert_eq!(check_stored(&to, &image.manifest), 4);
    }
    let (new, made) = docker_save_new("new", "busybox:1.36");
    let loaded = load(&to, &new.tar()).expect("loads");
    assert_eq!(loaded[0].manifest.digest(), made.manifest.digest(), "read as the OCI layout that it is as well");
    assert_eq!(loaded[0].names, ["docker.io/library/busybox:1.36"]);
    assert_eq!(to.names().expect("lists").len(), 3);
    assert_eq!(to.images().expect("lists").len(), 4);
}

fn loads_from_a_stream_and_leaves_nothing() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let bytes = write(WRITERS[0].1, &from, &exports);
    let to = Layout::open_or_create(folder.path().join("to")).expect("is made");
    let before = tree(to.path());
    let error = to.load_stream(Cursor::new(&bytes), bytes.len() as u64 - 1, &platform()).expect_err("is too large");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    for bad in [&b""[..], b"no tar", &bytes[..bytes.len() / 2]] {
        load(&to, bad).expect_err("is no archive");
    }
    assert_eq!(tree(to.path()), before, "nothing is left");
    to.load_stream(Cursor::new(&bytes), bytes.len() as u64, &platform()).expect("fits");
    assert_eq!(std::fs::read_dir(to.path().join("ingest")).expect("list").count(), 0);
}

fn loads_all_or_changes_no_name() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let to = Layout::open_or_create(folder.path().join("to")).expect("is made");
    let mut files = Files::default();
    let good = files.image("good", "amd64");
    let bad = files.image("bad", "amd64");
    let layer = digest_of(&gzip(&bad.tars[1]));
    files.0.insert(format!("blobs/sha256/{}", layer.digest()), b"damaged".to_vec());
    files.list(&[(Some("docker.io/library/good:1"), good.manifest), (Some("docker.io/library/bad:1"), bad.manifest)]);
    load(&to, &write(WRITERS[1].1, &from, &exports[..1])).expect("loads");
    let before = to.images().expect("lists");
    load(&to, &files.tar()).expect_err("the second is damaged");
    assert_eq!(to.images().expect("lists"), before);
    // What came in of it is found by nobody and collected.
    assert!(to.collect(&[]).expect("collects").blobs >= 4);
    assert!(to.verify().expect("verifies").problems.is_empty());
    assert_eq!(check_stored(&to, &exports[0].root), 4);
}

fn keeps_what_has_no_name() {
    let folder = temporary();
    let (from, exports) = store(folder.path());
    let to = Layout::open_or_create(folder.path().join("to")).expect("is made");
    load(&to, &write(WRITERS[0].1, &from, &exports[2..])).expect("loads");
    assert_eq!(to.collect(&[]).expect("collects").blobs, 0);
    assert_eq!(check_stored(&to, &exports[2].root), 4);
    let stored = to.stored().expect("lists");
    assert_eq!((stored.len(), stored[0].names.len(), stored[0].platforms.len()), (1, 0, 1));
    // A name takes the place of none.
    to.tag("docker.io/library/three:latest", &exports[2].root).expect("tags");
    assert_eq!(to.images().expect("lists").len(), 1);
}

fn reads_a_platform_of_an_index() {
    let folder = temporary();
    let mut files = Files::default();
    let (amd64, arm64) = (files.image("amd64", "amd64"), files.image("arm64", "arm64"));
    let entry = |manifest: &Descriptor, architecture: &str| {
        let mut entry = serde_json::to_value(manifest).expect("JSON");
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index =
        json!({ "schemaVersion": 2, "manifests": [entry(&amd64.manifest, "amd64"), entry(&arm64.manifest, "arm64")] });
    let root = files.document(&estiba_image::oci_spec::image::MediaType::ImageIndex, &index);
    files.list(&[(Some("docker.io/library/both:1"), root.clone())]);
    files.write(&folder.path().join("store"));
    let from = Layout::open(folder.path().join("store")).expect("opens");
    let exports = [Export { root, names: names(&["both:1"]) }];
    let arm = Platform::new("linux", "arm64", None);
    let mut bytes = Vec::new();
    DockerArchive::write(&from, &exports, &arm, &mut bytes).expect("writes");
    let to = Layout::open_or_create(folder.path().join("to")).expect("is made");
    let loaded = to.load_stream(Cursor::new(&bytes), 1 << 30, &arm).expect("loads");
    assert_eq!(loaded[0].manifest.digest(), arm64.manifest.digest());
    assert!(read_blob(&to, &amd64.manifest, 1 << 20).is_err());
    let stored = from.stored().expect("lists");
    let platforms: Vec<String> = stored[0].platforms.iter().map(|image| image.platform.to_string()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    let arm = stored[0].for_platform(&arm).expect("is there");
    assert_eq!(arm.manifest.digest(), arm64.manifest.digest());
    assert_eq!(from.find(estiba_image::short_id(&arm.id)).expect("by an id").root.digest(), exports[0].root.digest());
}
