//! Images from folders and archives into a content store.

use std::io::Write;
use std::path::{Path, PathBuf};

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{
    ContentStore, DockerArchive, Error, Image, Imported, Layout, OciArchive, Platform, Provider, Result, Source, copy,
    digest_of, media, read_blob,
};
use libtest_mimic::Trial;
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{Files, Made, check_stored, docker_save_new, docker_save_old, gzip, platform, tree};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["archives":
        imports_every_form_of_an_oci_layout,
        imports_what_docker_saved_before_25,
        imports_what_docker_saves_since_25,
        imports_from_memory,
        imports_again_without_reading_blobs,
        names_what_has_no_reference_for_its_place,
        changes_no_other_name,
        chooses_the_platform,
        reads_docker_schema_2,
        loads_an_image,
        tells_what_to_do,
    ]
}

struct Place {
    folder: TempDir,
    store: Layout,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
        Self { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("write");
        path
    }

    fn import(&self, source: &str) -> Result<Imported> {
        let source: Source = source.parse()?;
        source.import_for(&platform(), &self.store)
    }
}

fn oci(transport: &str, path: &Path, tag: &str) -> String {
    format!("{transport}:{}{tag}", path.display())
}

fn check(place: &Place, imported: &Imported, made: &Made) {
    assert_eq!(imported.manifest.digest(), made.manifest.digest(), "not a byte of the manifest changes");
    assert_eq!(check_stored(&place.store, &imported.manifest), 4);
    let resolved = place.store.resolve(&imported.name).expect("looks").expect("is named");
    assert_eq!(resolved.digest(), imported.manifest.digest());
    let image = Image::load(&place.store, &resolved, &platform()).expect("loads");
    assert_eq!(image.raw_config(), made.config);
}

fn imports_every_form_of_an_oci_layout() {
    let mut files = Files::default();
    let (one, two) = (files.image("one", "amd64"), files.image("two", "amd64"));
    files.list(&[(Some("1.36"), one.manifest.clone()), (Some("example.org/a/b:c"), two.manifest.clone())]);
    let place = Place::new();
    files.write(&place.path("dir"));
    let plain = place.file("plain.tar", &files.tar());
    let gz = place.file("a.tar.gz", &gzip(&files.tar()));
    // gzip may be of several members.
    let tar = files.tar();
    let members = place.file("b.tar.gz", &[gzip(&tar[..1000]), gzip(&tar[1000..])].concat());
    for (transport, path) in
        [("oci", place.path("dir")), ("oci-archive", plain), ("oci-archive", gz), ("oci-archive", members)]
    {
        let place = Place::new();
        let imported = place.import(&oci(transport, &path, ":1.36")).expect("imports");
        check(&place, &imported, &one);
        assert_eq!(imported.name, oci(transport, &path, ":1.36"));
        let imported = place.import(&oci(transport, &path, ":example.org/a/b:c")).expect("imports");
        check(&place, &imported, &two);
        assert_eq!(imported.name, "example.org/a/b:c");
        let imported = place.import(&oci(transport, &path, ":@1")).expect("imports");
        assert_eq!(imported.name, "example.org/a/b:c");

        let error = place.import(&oci(transport, &path, "")).expect_err("which?");
        assert!(matches!(error, Error::AmbiguousImage { .. }), "{error}");
        assert!(error.to_string().contains("1.36, example.org/a/b:c"), "{error}");
        let error = place.import(&oci(transport, &path, ":none")).expect_err("is not there");
        assert!(matches!(error, Error::NoSuchImage { .. }), "{error}");
        assert!(error.to_string().contains("\"none\"; there are: 1.36, example.org/a/b:c"), "{error}");
    }
}

fn imports_what_docker_saved_before_25() {
    let (files, made) = docker_save_old(&[("one", &["busybox:1", "localhost:5000/b:2"]), ("two", &["busybox:2"])]);
    let place = Place::new();
    for path in [place.file("plain.tar", &files.tar()), place.file("a.tar.gz", &gzip(&files.tar()))] {
        let place = Place::new();
        for (tag, name, made) in [
            (":busybox:1", "docker.io/library/busybox:1", &made[0]),
            (":localhost:5000/b:2", "localhost:5000/b:2", &made[0]),
            (":busybox:2", "docker.io/library/busybox:2", &made[1]),
        ] {
            let imported = place.import(&oci("docker-archive", &path, tag)).expect("imports");
            assert_eq!(imported.name, name);
            assert_eq!(check_stored(&place.store, &imported.manifest), 4);
            let image = Image::load(&place.store, &imported.manifest, &platform()).expect("loads");
            assert_eq!(image.raw_config(), made.config);
            assert_eq!(*image.id(), digest_of(&made.config), "the image id stays");
            for (layer, tar) in image.layers().iter().zip(&made.tars) {
                assert_eq!(layer.diff_id, digest_of(tar));
                assert_eq!(read_blob(&place.store, &layer.descriptor, 1 << 20).expect("reads"), *tar);
            }
        }
        let error = place.import(&oci("docker-archive", &path, "")).expect_err("which?");
        assert!(error.to_string().contains("docker.io/library/busybox:1, docker.io/library/busybox:2"), "{error}");
        let error = place.import(&oci("docker-archive", &path, ":busybox")).expect_err("there is no latest");
        assert!(matches!(error, Error::NoSuchImage { .. }), "{error}");
    }
}

fn imports_what_docker_saves_since_25() {
    let (files, made) = docker_save_new("new", "busybox:1.36");
    let place = Place::new();
    for path in [place.file("plain.tar", &files.tar()), place.file("a.tar.gz", &gzip(&files.tar()))] {
        let place = Place::new();
        let as_oci = place.import(&oci("oci-archive", &path, "")).expect("imports");
        check(&place, &as_oci, &made);
        assert_eq!(as_oci.name, "docker.io/library/busybox:1.36");
        let as_oci = place.import(&oci("oci-archive", &path, ":1.36")).expect("imports");
        assert_eq!(as_oci.name, "docker.io/library/busybox:1.36");
        let blobs = tree(&place.path("store/blobs")).len();
        let as_docker = place.import(&oci("docker-archive", &path, "")).expect("imports");
        assert_eq!(as_docker.name, "docker.io/library/busybox:1.36");
        let image = Image::load(&place.store, &as_docker.manifest, &platform()).expect("loads");
        assert_eq!(image.raw_config(), made.config);
        assert_eq!(image.layers()[1].compression, media::Compression::Gzip);
        // The two ways share all but the manifest, which is made for the second.
        assert_eq!(tree(&place.path("store/blobs")).len(), blobs + 1);
    }
}

fn imports_from_memory() {
    // Larger than what is kept of a compressed archive, and hard to compress.
    let noise = |seed: u32| -> Vec<u8> {
        (0..200_000_u32).map(|n| (n.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    };
    let mut files = Files::default();
    let made = files.image_of(vec![noise(1), noise(1 << 20)], "amd64");
    files.list(&[(Some("embedded"), made.manifest.clone())]);
    for tar in [files.tar(), gzip(&files.tar())] {
        let archive = OciArchive::from_bytes(Box::leak(tar.into_boxed_slice())).expect("opens");
        let place = Place::new();
        let root = &archive.images().expect("lists")[0].root;
        let manifest = copy(&archive, root, &platform(), &place.store).expect("copies");
        assert_eq!(check_stored(&place.store, &manifest), 4);
        // Several readers at once, in any order, get their own bytes.
        let image = Image::load(&archive, root, &platform()).expect("loads");
        let mut readers: Vec<_> = image
            .layers()
            .iter()
            .rev()
            .map(|layer| (archive.open(&layer.descriptor).expect("opens"), layer.descriptor.digest()))
            .collect();
        let mut contents = vec![Vec::new(); readers.len()];
        loop {
            let mut done = true;
            for ((reader, _), content) in readers.iter_mut().zip(&mut contents) {
                let mut byte = [0; 7001];
                let count = reader.read(&mut byte).expect("reads");
                content.extend_from_slice(&byte[..count]);
                done &= count == 0;
            }
            if done {
                break;
            }
        }
        for ((_, digest), content) in readers.iter().zip(&contents) {
            assert_eq!(digest_of(content), **digest);
        }
    }
    let (files, _) = docker_save_old(&[("embedded", &["embedded:1"])]);
    let archive = DockerArchive::from_bytes(Box::leak(files.tar().into_boxed_slice())).expect("opens");
    assert_eq!(archive.images()[0].names, ["docker.io/library/embedded:1"]);
}

fn imports_again_without_reading_blobs() {
    let mut files = Files::default();
    let made = files.image("again", "amd64");
    files.list(&[(Some("x"), made.manifest.clone())]);
    let place = Place::new();
    files.write(&place.path("dir"));
    let source = oci("oci", &place.path("dir"), ":x");
    let first = place.import(&source).expect("imports");
    let before = tree(&place.path("store"));
    // The layer in the source rots, with the same size. The second import does not look at it.
    let layer = place.path("dir/blobs/sha256").join(digest_of(&made.tars[0]).digest());
    let mut rotten = made.tars[0].clone();
    rotten[600] ^= 1;
    std::fs::write(layer, rotten).expect("write");
    assert_eq!(place.import(&source).expect("imports"), first);
    assert_eq!(tree(&place.path("store")), before);
    // But a store that does not have it does.
    let error = Place::new().import(&source).expect_err("rotten");
    assert!(matches!(&error, Error::DigestMismatch { location, .. } if location.ends_with("dir")), "{error}");
}

fn names_what_has_no_reference_for_its_place() {
    let mut files = Files::default();
    let made = files.image("nameless", "amd64");
    files.list(&[(None, made.manifest.clone())]);
    let place = Place::new();
    files.write(&place.path("dir"));
    std::os::unix::fs::symlink(place.path("dir"), place.path("link")).expect("link");
    let wanted = oci("oci", &place.path("dir").canonicalize().expect("a path"), "");
    for path in [place.path("dir"), place.path("dir/../dir/."), place.path("link")] {
        assert_eq!(place.import(&oci("oci", &path, "")).expect("imports").name, wanted);
    }
    assert_eq!(place.store.names().expect("lists"), [wanted]);
}

fn changes_no_other_name() {
    // An archive with an image that nobody asked for must not move the name that it claims (CVE-2026-50195).
    let (files, _) = docker_save_old(&[("mine", &["mine:1"]), ("evil", &["debian:12"])]);
    let place = Place::new();
    let path = place.file("a.tar", &files.tar());
    let other = Descriptor::new(MediaType::ImageManifest, 1, digest_of(b"x"));
    let mut ingest = place.store.ingest().expect("begins");
    ingest.write_all(b"x").expect("writes");
    ingest.commit(&other).expect("commits");
    place.store.tag("docker.io/library/debian:12", &other).expect("sets");
    place.import(&oci("docker-archive", &path, ":mine:1")).expect("imports");
    let debian = place.store.resolve("docker.io/library/debian:12").expect("looks").expect("is there");
    assert_eq!(debian.digest(), other.digest());
}

fn chooses_the_platform() {
    let mut files = Files::default();
    let describe = |made: &Made, platform: serde_json::Value| {
        let mut entry = serde_json::to_value(&made.manifest).expect("JSON");
        entry["platform"] = platform;
        entry
    };
    let (amd64, arm64) = (files.image("amd64", "amd64"), files.image("arm64", "arm64"));
    let (v6, plain) = (files.image("arm", "arm"), files.image("plain", "riscv64"));
    // BuildKit's attestations lie beside the images and claim no platform.
    let mut attestation =
        describe(&files.image("attestation", "amd64"), json!({ "os": "unknown", "architecture": "unknown" }));
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let mut disguised = describe(&files.image("disguised", "amd64"), json!({ "os": "linux", "architecture": "amd64" }));
    disguised["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let thing = json!({ "mediaType": "application/vnd.vendor.thing", "digest": digest_of(b"x"), "size": 1 });
    let index = |manifests: serde_json::Value| json!({ "schemaVersion": 2, "mediaType": MediaType::ImageIndex.as_ref(), "manifests": manifests });
    let nested = files.document(
        &MediaType::ImageIndex,
        &index(json!([
            disguised,
            describe(&v6, json!({ "os": "linux", "architecture": "arm", "variant": "v6" })),
            describe(&amd64, json!({ "os": "linux", "architecture": "amd64" })),
        ])),
    );
    let root = files.document(
        &MediaType::ImageIndex,
        &index(json!([
            attestation,
            thing,
            describe(&arm64, json!({ "os": "linux", "architecture": "arm64", "variant": "v8" })),
            plain.manifest,
            nested,
        ])),
    );
    files.list(&[(Some("x"), root)]);
    let place = Place::new();
    files.write(&place.path("dir"));
    let source: Source = oci("oci", &place.path("dir"), ":x").parse().expect("a source");
    for (wanted, made) in [
        ("linux/amd64", &amd64),
        ("linux/arm64", &arm64),
        ("linux/arm/v7", &v6),
        ("linux/riscv64", &plain),
        ("linux/amd64/v3", &amd64),
    ] {
        let imported = source.import_for(&wanted.parse().expect("a platform"), &place.store).expect("imports");
        assert_eq!(imported.manifest.digest(), made.manifest.digest(), "{wanted}");
    }
    let error = source.import_for(&Platform::new("linux", "s390x", None), &place.store).expect_err("none");
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
    assert!(
        error.to_string().contains("no image for linux/s390x; there are: ")
            && error.to_string().contains("linux/arm64"),
        "{error}"
    );
}

fn reads_docker_schema_2() {
    let mut files = Files::default();
    let tars = [crate::fixture::layer("schema 2")];
    let layer = files.blob(media::DOCKER_LAYER_GZIP, &gzip(&tars[0]));
    let config = files.blob(media::DOCKER_CONFIG, &crate::fixture::config("amd64", &tars));
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST, "config": config, "layers": [layer] });
    let manifest = files.document(&MediaType::from(media::DOCKER_MANIFEST), &manifest);
    let mut entry = serde_json::to_value(&manifest).expect("JSON");
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let list = json!({ "schemaVersion": 2, "mediaType": media::DOCKER_INDEX, "manifests": [entry] });
    let list = files.document(&MediaType::from(media::DOCKER_INDEX), &list);
    files.list(&[(Some("x"), list)]);
    let place = Place::new();
    files.write(&place.path("dir"));
    let imported = place.import(&oci("oci", &place.path("dir"), "")).expect("imports");
    assert_eq!(
        (imported.manifest.digest(), imported.manifest.media_type().as_ref()),
        (manifest.digest(), media::DOCKER_MANIFEST)
    );
    assert_eq!(check_stored(&place.store, &imported.manifest), 3);
}

fn loads_an_image() {
    let mut files = Files::default();
    let made = files.image("loaded", "arm64");
    files.list(&[(None, made.manifest.clone())]);
    let place = Place::new();
    files.write(&place.path("dir"));
    let layout = Layout::open(place.path("dir")).expect("opens");
    let image = Image::load(&layout, &made.manifest, &platform()).expect("a manifest is taken for what it is");
    assert_eq!(image.platform().to_string(), "linux/arm64");
    assert_eq!(digest_of(image.raw_manifest()), *made.manifest.digest());
    assert_eq!(image.config().docker.healthcheck.as_ref().expect("is there").test, ["NONE"]);
    assert_eq!(image.manifest().layers().len(), 2);
    let diff_ids: Vec<_> = made.tars.iter().map(|tar| digest_of(tar)).collect();
    // By the formula of the image specification.
    let second = digest_of(format!("{} {}", diff_ids[0], diff_ids[1]).as_bytes());
    assert_eq!(image.chain_ids(), [diff_ids[0].clone(), second]);
    assert_eq!(image.layers()[1].diff_id, diff_ids[1]);
}

fn tells_what_to_do() {
    let place = Place::new();
    let (old, _) = docker_save_old(&[("x", &["x:1"])]);
    let mut oci_files = Files::default();
    let made = oci_files.image("x", "amd64");
    oci_files.list(&[(None, made.manifest)]);
    let mut ancient = Files::default();
    ancient.set("repositories", &json!({}));
    std::fs::create_dir(place.path("empty")).expect("mkdir");
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0];
    let cases = [
        ("oci-archive", place.file("old.tar", &old.tar()), "write docker-archive:FILE"),
        ("docker-archive", place.file("oci.tar", &oci_files.tar()), "write oci-archive:FILE"),
        ("docker-archive", place.file("ancient.tar", &ancient.tar()), "save it with a newer one"),
        ("oci-archive", place.file("text", "hello ".repeat(500).as_bytes()), "not a tar archive"),
        ("oci-archive", place.file("short", b"hello"), "truncated"),
        ("oci-archive", place.file("nothing", b""), "truncated"),
        ("oci-archive", place.file("zstd", &zstd), "zstd"),
        ("oci-archive", place.path("empty"), "not a regular file"),
        ("oci", place.path("empty"), "not an OCI image layout"),
        ("oci", place.path("old.tar"), "not a folder"),
        ("oci", place.path("absent"), "cannot open"),
        ("docker-archive", place.path("absent"), "cannot open"),
    ];
    for (transport, path, text) in cases {
        let error = place.import(&oci(transport, &path, "")).expect_err("no image");
        let said = error.to_string();
        assert!(
            said.contains(text) && said.contains(&*path.to_string_lossy()),
            "{transport} {}: {said}",
            path.display()
        );
        assert!(!said.contains('\n'), "one line: {said}");
    }
    let error = place.import("alpine").expect_err("no registries yet");
    assert!(error.to_string().contains("skopeo copy docker://docker.io/library/alpine:latest oci:DIR:TAG"), "{error}");
}
