//! Images that want to be taken for something else, or to do harm. By number where there is one.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{
    ArchiveProblem, Error, Imported, Layout, OciArchive, Provider, Result, Source, copy, digest_of, media,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Files, append, docker_save_old, layer, platform};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["hostile":
        cve_2021_41190_ambiguous_documents,
        cve_2024_3727_digests_as_paths,
        cve_2020_15157_foreign_layers,
        cve_2020_1702_sizes,
        cve_2025_62518_tar_smuggling,
        media_types_are_believed_once,
        manifest_and_config_must_agree,
        only_images_of_root_file_systems,
        indexes_are_bounded,
        duplicate_entries,
        links_that_lead_out,
        tar_oddities,
        bombs,
        a_source_without_end,
        docker_archives_that_lie,
    ]
}

fn import(files: &Files) -> Result<Imported> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    files.write(&folder.path().join("dir"));
    let from_folder = import_from(&folder, "oci", "dir");
    // An archive with the same files must come to the same.
    std::fs::write(folder.path().join("a.tar"), files.tar()).expect("write");
    let from_archive = import_from(&folder, "oci-archive", "a.tar");
    assert_eq!(from_folder.is_ok(), from_archive.is_ok(), "{from_folder:?} {from_archive:?}");
    from_folder
}

fn import_from(folder: &TempDir, transport: &str, name: &str) -> Result<Imported> {
    let store = Layout::open_or_create(folder.path().join(format!("store-{name}"))).expect("is made");
    let source: Source = format!("{transport}:{}", folder.path().join(name).display()).parse().expect("a source");
    let outcome = source.import_for(&platform(), &store);
    if outcome.is_err() {
        assert_eq!(store.names().expect("lists"), Vec::<String>::new());
        let left = std::fs::read_dir(store.path().join("ingest")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing half-done stays");
    }
    outcome
}

/// An image whose manifest was changed.
fn changed(change: impl Fn(&mut Value)) -> Result<Imported> {
    changed_as(&MediaType::ImageManifest, change)
}

fn changed_as(media_type: &MediaType, change: impl Fn(&mut Value)) -> Result<Imported> {
    let mut files = Files::default();
    let made = files.image("changed", "amd64");
    let path = format!("blobs/sha256/{}", made.manifest.digest().digest());
    let mut manifest: Value = serde_json::from_slice(&files.0[&path]).expect("JSON");
    change(&mut manifest);
    let root = files.document(media_type, &manifest);
    files.list(&[(None, root)]);
    import(&files)
}

fn listed(manifest: &str) -> Result<Imported> {
    let mut files = Files::default();
    files.image("listed", "amd64");
    let root = files.blob(MediaType::ImageManifest.as_ref(), manifest.as_bytes());
    files.list(&[(None, root)]);
    import(&files)
}

fn cve_2021_41190_ambiguous_documents() {
    assert!(changed(|_| {}).is_ok());
    for key in ["manifests", "Manifests", "fsLayers", "MEDIATYPE", "Layers"] {
        let outcome = changed(|manifest| manifest[key] = json!([]));
        assert!(matches!(outcome, Err(Error::AmbiguousDocument { .. })), "{key}: {outcome:?}");
    }
    let mut files = Files::default();
    let made = files.image("index", "amd64");
    for key in ["layers", "config"] {
        let mut index = json!({ "schemaVersion": 2, "manifests": [made.manifest] });
        index[key] = json!([]);
        let root = files.document(&MediaType::ImageIndex, &index);
        files.list(&[(None, root)]);
        let outcome = import(&files);
        assert!(matches!(outcome, Err(Error::AmbiguousDocument { .. })), "{key}: {outcome:?}");
        // The same at the very top.
        files.set("index.json", &index);
        let outcome = import(&files);
        assert!(matches!(outcome, Err(Error::AmbiguousDocument { .. })), "{key}: {outcome:?}");
    }
    let twice = r#"{"schemaVersion":2,"config":{},"layers":[],"layers":[]}"#;
    assert!(matches!(listed(twice), Err(Error::AmbiguousDocument { .. })));
}

fn cve_2024_3727_digests_as_paths() {
    let hex = "a".repeat(64);
    for digest in [
        "sha256:../../../../etc/passwd".to_owned(),
        "sha256:".to_owned(),
        "sha256".to_owned(),
        "../x:abc".to_owned(),
        format!("sha256:{}/..", &hex[..61]),
        format!("sha256:{}", hex.to_uppercase()),
        format!("SHA256:{hex}"),
        format!("sha256:{hex}\n"),
    ] {
        for pointer in ["/layers/0/digest", "/config/digest"] {
            let outcome = changed(|manifest| *manifest.pointer_mut(pointer).expect("is there") = json!(digest));
            assert!(matches!(outcome, Err(Error::InvalidDocument { .. })), "{digest} {pointer}: {outcome:?}");
        }
        let mut files = Files::default();
        files.list(&[]);
        let entry = json!({ "mediaType": MediaType::ImageManifest.as_ref(), "size": 2, "digest": digest });
        files.set("index.json", &json!({ "schemaVersion": 2, "manifests": [entry] }));
        let outcome = import(&files);
        assert!(matches!(outcome, Err(Error::InvalidDocument { .. })), "{digest}: {outcome:?}");
    }
    // Well-formed, but nothing that could be verified, or made a path of.
    for digest in ["md5:d41d8cd98f00b204e9800998ecf8427e", "a.b+c:_-="] {
        let outcome = changed(|manifest| manifest["layers"][0]["digest"] = json!(digest));
        assert!(matches!(outcome, Err(Error::UnsupportedDigest { .. })), "{digest}: {outcome:?}");
    }
}

fn cve_2020_15157_foreign_layers() {
    let outcome = changed(|manifest| manifest["layers"][0]["urls"] = json!(["https://evil.example/"]));
    assert!(matches!(outcome, Err(Error::ForeignLayer { .. })), "{outcome:?}");
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let outcome = changed(|manifest| manifest["layers"][0]["mediaType"] = json!(media_type));
        assert!(matches!(outcome, Err(Error::ForeignLayer { .. })), "{outcome:?}");
    }
}

fn cve_2020_1702_sizes() {
    // Documents are refused by their size before they are read.
    let outcome = listed(&format!(r#"{{"schemaVersion":2,"x":"{}"}}"#, "x".repeat(5 << 20)));
    assert!(matches!(outcome, Err(Error::TooLarge { .. })), "{outcome:?}");
    let outcome = changed(|manifest| manifest["config"]["size"] = json!(u64::MAX));
    assert!(matches!(outcome, Err(Error::TooLarge { .. })), "{outcome:?}");
    for size in [1_u64 << 41, u64::MAX] {
        let outcome = changed(|manifest| manifest["layers"][0]["size"] = json!(size));
        assert!(matches!(outcome, Err(Error::TooLarge { .. })), "{outcome:?}");
    }
    let outcome = changed(|manifest| manifest["layers"][0]["size"] = json!(-1));
    assert!(matches!(outcome, Err(Error::InvalidDocument { .. })), "{outcome:?}");
    let outcome = changed(|manifest| manifest["layers"][0]["size"] = json!(7));
    assert!(matches!(outcome, Err(Error::SizeMismatch { .. })), "{outcome:?}");
    let mut files = Files::default();
    files.list(&[]);
    files.set("index.json", &json!({ "schemaVersion": 2, "manifests": [], "x": "x".repeat(5 << 20) }));
    assert!(matches!(import(&files), Err(Error::TooLarge { .. })));
}

fn media_types_are_believed_once() {
    let outcome = changed(|manifest| manifest["mediaType"] = json!(media::DOCKER_MANIFEST));
    assert!(matches!(outcome, Err(Error::MediaTypeMismatch { .. })), "{outcome:?}");
    let outcome = changed(|manifest| manifest["mediaType"] = json!(MediaType::ImageIndex.as_ref()));
    assert!(matches!(outcome, Err(Error::MediaTypeMismatch { .. })), "{outcome:?}");
    let outcome = changed_as(&MediaType::ImageIndex, |_| {});
    assert!(matches!(outcome, Err(Error::AmbiguousDocument { .. })), "{outcome:?}");
    // OCI does not make a document say what it is.
    assert!(changed(|manifest| drop(manifest.as_object_mut().expect("an object").remove("mediaType"))).is_ok());
    let schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let outcome = changed_as(&MediaType::from(schema_1), |_| {});
    assert!(matches!(outcome, Err(Error::UnsupportedMediaType { what: "manifest", .. })), "{outcome:?}");
}

fn manifest_and_config_must_agree() {
    let outcome = changed(|manifest| drop(manifest["layers"].as_array_mut().expect("layers").pop()));
    assert!(matches!(outcome, Err(Error::LayerCount { layers: 1, diff_ids: 2, .. })), "{outcome:?}");
    let mut files = Files::default();
    for (rootfs, good) in [
        (json!({ "type": "layers", "diff_ids": [] }), true),
        (json!({ "type": "base", "diff_ids": [] }), false),
        (json!({ "type": "layers", "diff_ids": ["sha256:../x"] }), false),
        (json!({ "type": "layers", "diff_ids": ["md5:abc"] }), false),
        (json!({}), false),
    ] {
        let layers: Vec<Descriptor> = rootfs["diff_ids"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|_| files.blob(MediaType::ImageLayer.as_ref(), &layer("x")))
            .collect();
        let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs });
        let config = files.document(&MediaType::ImageConfig, &config);
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let root = files.document(&MediaType::ImageManifest, &manifest);
        files.list(&[(None, root)]);
        assert_eq!(import(&files).is_ok(), good, "{rootfs}");
    }
}

fn only_images_of_root_file_systems() {
    let outcome = changed(|manifest| manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"));
    assert!(matches!(outcome, Err(Error::UnsupportedMediaType { what: "config", .. })), "{outcome:?}");
    for media_type in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/wasm"] {
        let outcome = changed(|manifest| manifest["layers"][0]["mediaType"] = json!(media_type));
        assert!(matches!(outcome, Err(Error::UnsupportedMediaType { what: "layer", .. })), "{outcome:?}");
    }
}

fn indexes_are_bounded() {
    let mut files = Files::default();
    let made = files.image("deep", "amd64");
    let mut nest = |depth: usize| {
        let mut root = made.manifest.clone();
        for _ in 0..depth {
            let index = json!({ "schemaVersion": 2, "manifests": [root] });
            root = files.document(&MediaType::ImageIndex, &index);
        }
        files.list(&[(None, root)]);
        import(&files)
    };
    assert!(nest(2).is_ok());
    let outcome = nest(10);
    assert!(matches!(outcome, Err(Error::TooDeep { .. })), "{outcome:?}");

    // Wide and without platforms: each would have to be looked into.
    let mut files = Files::default();
    let images: Vec<Descriptor> = (0..200).map(|n| files.image(&n.to_string(), "s390x").manifest).collect();
    let root = files.document(&MediaType::ImageIndex, &json!({ "schemaVersion": 2, "manifests": images }));
    files.list(&[(None, root)]);
    let outcome = import(&files);
    assert!(matches!(outcome, Err(Error::TooDeep { .. })), "{outcome:?}");
}

fn problem(tar: Vec<u8>) -> Option<ArchiveProblem> {
    match OciArchive::from_bytes(Box::leak(tar.into_boxed_slice())).map(|archive| archive.images().map(drop)) {
        Err(Error::Archive { problem, .. }) => Some(problem),
        _ => None,
    }
}

fn base() -> Files {
    let mut files = Files::default();
    let made = files.image("base", "amd64");
    files.list(&[(None, made.manifest)]);
    files
}

/// The base archive, open for more entries.
fn open_tar() -> tar::Builder<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in base().0 {
        append(&mut builder, &path, &content);
    }
    builder
}

fn duplicate_entries() {
    assert_eq!(problem(open_tar().into_inner().expect("a tar")), None);
    for name in ["index.json", "./index.json", "blobs/../index.json", ".//index.json"] {
        let mut builder = open_tar();
        let mut header = raw_header(name, b'0');
        header.set_size(2);
        header.set_cksum();
        builder.append(&header, &b"{}"[..]).expect("append");
        let found = problem(builder.into_inner().expect("a tar"));
        assert_eq!(found, Some(ArchiveProblem::Duplicate("index.json".to_owned())), "{name}");
    }
    // Folders may come twice: some tools write them so, and nothing depends on it.
    let mut builder = open_tar();
    for _ in 0..2 {
        builder.append(&raw_header("blobs/", b'5'), std::io::empty()).expect("append");
    }
    assert_eq!(problem(builder.into_inner().expect("a tar")), None);
}

fn raw_header(name: &str, kind: u8) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    header
}

fn links_that_lead_out() {
    for (name, target) in [("x", "/etc/passwd"), ("x", "../x"), ("a/b", "../../x"), ("../x", "y"), ("/x", "y")] {
        let mut builder = open_tar();
        let mut header = raw_header(name, b'2');
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, std::io::empty()).expect("append");
        let found = problem(builder.into_inner().expect("a tar"));
        assert!(matches!(found, Some(ArchiveProblem::Outside(_))), "{name} -> {target}: {found:?}");
    }
    // Links in a circle end.
    let mut files = base();
    let (name, _) = files.0.iter().next().map(|(name, content)| (name.clone(), content.clone())).expect("a blob");
    for (name, target) in
        [(name.as_str(), "link:other"), ("blobs/sha256/other", "link:again"), ("blobs/sha256/again", "link:other")]
    {
        files.0.insert(name.to_owned(), target.as_bytes().to_vec());
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("a.tar"), files.tar()).expect("write");
    let outcome = import_from(&folder, "oci-archive", "a.tar");
    assert!(matches!(outcome, Err(Error::Archive { problem: ArchiveProblem::Dangling(_), .. })), "{outcome:?}");
}

fn tar_oddities() {
    for kind in *b"346gSVM7" {
        let mut builder = open_tar();
        builder.append(&raw_header("odd", kind), std::io::empty()).expect("append");
        let found = problem(builder.into_inner().expect("a tar"));
        assert!(matches!(found, Some(ArchiveProblem::Oddity { .. })), "{}: {found:?}", char::from(kind));
    }
    let good = open_tar().into_inner().expect("a tar");
    // An entry after one block of zeros; an archive without an end; a broken checksum.
    let end = good.len() - 1024;
    let hidden = [&good[..end], &[0; 512], &good[..]].concat();
    assert!(matches!(problem(hidden), Some(ArchiveProblem::Oddity { .. })));
    assert!(matches!(problem(good[..end].to_vec()), Some(ArchiveProblem::Truncated(_))));
    assert_eq!(problem(good[..end + 512].to_vec()), None);
    assert_eq!(problem([&good[..], b"what comes after the end does not matter"].concat()), None);
    for cut in [1, 100, 511, 512, 513, 1000] {
        assert!(problem(good[..cut].to_vec()).is_some(), "{cut}");
    }
    let second = good.windows(5).skip(512).position(|window| window == b"ustar").expect("a second header") + 512;
    let mut broken = good;
    broken[second - 200] ^= 1;
    assert!(matches!(problem(broken), Some(ArchiveProblem::Header { field: "checksum", .. })));
}

fn cve_2025_62518_tar_smuggling() {
    // A size in a PAX header that is not the header's: one reader skips what another reads as entries.
    let inner = open_tar().into_inner().expect("a tar");
    let smuggle = |records: &[u8], size: u64| {
        let mut builder = open_tar();
        let mut pax = raw_header("pax", b'x');
        pax.set_size(records.len() as u64);
        pax.set_cksum();
        builder.append(&pax, records).expect("append");
        let mut header = raw_header("nested", b'0');
        header.set_size(size);
        header.set_cksum();
        builder.append(&header, &inner[..size as usize]).expect("append");
        problem(builder.into_inner().expect("a tar"))
    };
    assert!(matches!(smuggle(b"10 size=0\n", 512), Some(ArchiveProblem::Oddity { .. })));
    assert!(matches!(smuggle(b"13 size=1024\n", 512), Some(ArchiveProblem::Oddity { .. })));
    assert!(matches!(smuggle(b"12 size=512\n12 size=512\n", 512), Some(ArchiveProblem::Oddity { .. })));
    assert!(matches!(smuggle(b"99 size=512\n", 512), Some(ArchiveProblem::Header { .. })));
    assert_eq!(smuggle(b"12 size=512\n", 512), None);
    assert_eq!(smuggle(b"12 path=abc\n", 512), None);

    // GNU's long name before and after a PAX header (GHSA-3cv2-h65g-fgmm).
    for order in ["Lx", "xL", "LL", "xx"] {
        let mut builder = open_tar();
        for kind in order.bytes() {
            let content: &[u8] = if kind == b'x' { b"12 path=abc\n" } else { b"long\0" };
            let mut header = raw_header("extension", kind);
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).expect("append");
        }
        builder.append(&raw_header("entry", b'0'), std::io::empty()).expect("append");
        let found = problem(builder.into_inner().expect("a tar"));
        assert!(matches!(found, Some(ArchiveProblem::Oddity { .. })), "{order}: {found:?}");
    }
    // An extension of nothing, and one without measure.
    for (kind, size) in [(b'x', 1 << 20), (b'L', 8192), (b'K', 8192), (b'L', 0)] {
        let content = vec![b'a'; size];
        let mut builder = open_tar();
        let mut header = raw_header("extension", kind);
        header.set_size(size as u64);
        header.set_cksum();
        builder.append(&header, &content[..]).expect("append");
        builder.append(&raw_header("entry", b'0'), std::io::empty()).expect("append");
        let found = problem(builder.into_inner().expect("a tar"));
        assert!(matches!(found, Some(ArchiveProblem::Oddity { .. })), "{}: {found:?}", char::from(kind));
    }
}

fn bombs() {
    // A file of 8 GiB that is not there; entries without end.
    let mut builder = open_tar();
    let mut header = raw_header("huge", b'0');
    header.set_size(8 << 30);
    header.set_cksum();
    builder.append(&header, std::io::empty()).expect("append");
    assert!(matches!(problem(builder.into_inner().expect("a tar")), Some(ArchiveProblem::Truncated(_))));

    let mut many = Vec::new();
    for number in 0..70_000 {
        many.extend_from_slice(raw_header(&number.to_string(), b'0').as_bytes());
    }
    assert!(matches!(problem(many), Some(ArchiveProblem::TooManyEntries(_))));
}

/// A provider whose layers never end, and that counts what was read of them.
#[derive(Debug)]
struct Endless {
    documents: Layout,
    read: AtomicU64,
}

impl Provider for Endless {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        if media::layer_compression(descriptor).is_err() {
            return self.documents.open(descriptor);
        }
        Ok(Box::new(Counted(&self.read)))
    }
}

struct Counted<'a>(&'a AtomicU64);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        buffer.fill(0);
        self.0.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        Ok(buffer.len())
    }
}

fn a_source_without_end() {
    let mut files = Files::default();
    let made = files.image("endless", "amd64");
    files.list(&[(None, made.manifest.clone())]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    files.write(&folder.path().join("dir"));
    let documents = Layout::open(folder.path().join("dir")).expect("opens");
    let source = Endless { documents, read: AtomicU64::new(0) };
    let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
    let outcome = copy(&source, &made.manifest, &platform(), &store);
    assert!(matches!(outcome, Err(Error::SizeMismatch { .. })), "{outcome:?}");
    let layer = made.tars[0].len() as u64;
    assert_eq!(source.read.load(Ordering::Relaxed), layer + 1, "one byte too many is enough to know");
}

fn docker_archives_that_lie() {
    let (good, made) = docker_save_old(&[("x", &["x:1"])]);
    let try_with = |change: &dyn Fn(&mut Files)| {
        let mut files = good.clone();
        change(&mut files);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("a.tar"), files.tar()).expect("write");
        import_from(&folder, "docker-archive", "a.tar")
    };
    let edit = |files: &mut Files, change: &dyn Fn(&mut Value)| {
        let mut manifest: Value = serde_json::from_slice(&files.0["manifest.json"]).expect("JSON");
        change(&mut manifest);
        files.set("manifest.json", &manifest);
    };
    assert!(try_with(&|_| {}).is_ok());
    let config = format!("{}.json", digest_of(&made[0].config).digest());
    let outcome = try_with(&|files| files.0.get_mut(&config).expect("is there").push(b' '));
    assert!(matches!(outcome, Err(Error::DigestMismatch { .. })), "{outcome:?}");
    let outcome = try_with(&|files| edit(files, &|manifest| manifest[0]["Config"] = json!("../../etc/passwd")));
    assert!(matches!(outcome, Err(Error::Archive { problem: ArchiveProblem::Outside(_), .. })), "{outcome:?}");
    let outcome = try_with(&|files| edit(files, &|manifest| manifest[0]["Config"] = json!("absent.json")));
    assert!(outcome.is_err(), "{outcome:?}");
    let outcome = try_with(&|files| edit(files, &|manifest| manifest[0]["Layers"] = json!(["a"])));
    assert!(matches!(outcome, Err(Error::LayerCount { .. })), "{outcome:?}");
    let outcome = try_with(&|files| edit(files, &|manifest| manifest[0]["Layers"] = json!(["a", "b"])));
    assert!(matches!(outcome, Err(Error::BlobMissing { .. })), "{outcome:?}");
    let outcome = try_with(&|files| edit(files, &|manifest| manifest[0]["RepoTags"] = json!(["../Evil"])));
    assert!(matches!(outcome, Err(Error::InvalidReference { .. })), "{outcome:?}");
    // A layer that is another one than the config says is found out when it is read.
    let outcome = try_with(&|files| {
        let name = files.0.keys().find(|name| name.ends_with("/layer.tar")).expect("a layer").clone();
        files.0.insert(name, layer("another"));
    });
    assert!(matches!(outcome, Err(Error::SizeMismatch { .. } | Error::DigestMismatch { .. })), "{outcome:?}");
}
