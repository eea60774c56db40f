//! Images that are made here.

use std::io::{Read, Write};
use std::time::{Duration, UNIX_EPOCH};

use estiba_image::media::{self, Compression};
use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{
    Change, Commit, Committed, Error, Image, Layer, LayerWriter, Layout, Lease, Platform, Provider, Result, Settings,
    digest_of, import_layer, read_blob,
};
use flate2::read::MultiGzDecoder;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Files, Made, check_stored, gzip, layer, platform, tree};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["commit":
        writes_layers_through,
        a_child_keeps_what_the_parent_had,
        a_child_of_a_docker_image_is_one,
        nothing_changed_is_no_layer,
        imports_a_root_file_system,
        imports_gzip_byte_by_byte,
        refuses_what_is_no_tar,
        the_same_commit_gives_the_same_image,
        needs_its_parent,
        a_bad_change_leaves_no_image,
    ]
}

struct Place {
    _folder: TempDir,
    store: Layout,
    lease: Lease,
    made: Made,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut files = Files::default();
        let made = files.image("parent", "amd64");
        files.list(&[(Some("docker.io/library/parent:1"), made.manifest.clone())]);
        files.write(&folder.path().join("store"));
        let store = Layout::open_or_create(folder.path().join("store")).expect("opens");
        let lease = store.lease().expect("is given");
        Self { _folder: folder, store, lease, made }
    }

    fn parent(&self) -> Image {
        Image::load(&self.store, &self.made.manifest, &platform()).expect("loads")
    }

    fn layer(&self, tar: &[u8], compression: Compression) -> Layer {
        let mut writer = LayerWriter::begin(&self.lease, compression).expect("begins");
        for part in tar.chunks(1000) {
            writer.write_all(part).expect("writes");
        }
        writer.finish().expect("finishes")
    }

    fn blob(&self, descriptor: &Descriptor) -> Vec<u8> {
        read_blob(&self.store, descriptor, 1 << 24).expect("is there")
    }

    fn json(&self, descriptor: &Descriptor) -> Value {
        serde_json::from_slice(&self.blob(descriptor)).expect("JSON")
    }
}

fn changes(list: &[&str]) -> Vec<Change> {
    list.iter().map(|text| text.parse().expect("is right")).collect()
}

fn writes_layers_through() {
    let place = Place::new();
    for size in [0, 1, 100, 3000] {
        let tar = layer(&"x".repeat(size));
        let plain = place.layer(&tar, Compression::None);
        assert_eq!((plain.descriptor.digest(), &plain.diff_id), (&digest_of(&tar), &digest_of(&tar)));
        assert_eq!(place.blob(&plain.descriptor), tar);
        let packed = place.layer(&tar, Compression::Gzip);
        assert_eq!(packed.diff_id, digest_of(&tar));
        let blob = place.blob(&packed.descriptor);
        assert_eq!(
            (blob.len() as u64, digest_of(&blob)),
            (packed.descriptor.size(), packed.descriptor.digest().clone())
        );
        let mut inflated = Vec::new();
        MultiGzDecoder::new(&blob[..]).read_to_end(&mut inflated).expect("inflates");
        assert!(inflated == tar);
        assert_eq!(packed, place.layer(&tar, Compression::Gzip), "the same tar gives the same blob");
    }
    assert!(matches!(LayerWriter::begin(&place.store, Compression::Zstd), Err(Error::InvalidCommit { .. })));
    let before = tree(place.store.path());
    let mut writer = LayerWriter::begin(&place.store, Compression::Gzip).expect("begins");
    writer.write_all(&layer("dropped")).expect("writes");
    drop(writer);
    assert_eq!(tree(place.store.path()), before);
}

fn a_child_keeps_what_the_parent_had() {
    let place = Place::new();
    let (parent, tar) = (place.parent(), layer("child"));
    let layer = place.layer(&tar, Compression::Gzip);
    let committed = Commit {
        parent: Some(&parent),
        layer: Some(&layer),
        settings: Settings { env: Some(vec!["PATH=/bin".to_owned()]), ..Settings::default() },
        changes: changes(&["ENV PATH=$PATH:/x", "LABEL a=b", "WORKDIR /w", "USER 7", "EXPOSE 80"]),
        author: Some("A".to_owned()),
        message: Some("m".to_owned()),
        created_by: Some("sh -c x".to_owned()),
        created: Some(UNIX_EPOCH + Duration::from_secs(1_709_164_800)),
        ..Commit::default()
    }
    .write(&place.lease, Some(&"child".parse().expect("a name")))
    .expect("commits");
    let found = place.store.find("child").expect("has its name");
    assert_eq!(found.root.digest(), committed.manifest.digest());
    assert_eq!(check_stored(&place.store, &committed.manifest), 5);

    let image = Image::load(&place.store, &committed.manifest, &platform()).expect("loads");
    assert_eq!(*image.id(), committed.id);
    assert_eq!(image.layers()[..2], *parent.layers());
    assert_eq!(image.layers()[2], layer);
    let config = image.config();
    assert_eq!((config.env(), config.user(), config.working_dir()), (&["PATH=/bin:/x".to_owned()][..], "7", "/w"));
    assert_eq!((config.cmd(), config.exposed_ports()), (Some(&["sh".to_owned()][..]), vec!["80/tcp"]));
    assert_eq!(config.labels().into_iter().collect::<Vec<_>>(), [("a", "b")]);
    assert_eq!(
        (config.created(), config.author(), config.comment()),
        (Some("2024-02-29T00:00:00Z"), Some("A"), Some("m"))
    );
    let raw: Value = serde_json::from_slice(image.raw_config()).expect("JSON");
    assert_eq!(raw["vendor.unknown"], 1, "what is not known is kept");
    assert_eq!(raw["config"]["Healthcheck"], json!({ "Test": ["NONE"] }));
    assert_eq!(
        raw["history"],
        json!([{ "created": "2024-02-29T00:00:00Z", "created_by": "sh -c x", "author": "A", "comment": "m" }])
    );
    // The parent is what it was, and both live without a lease.
    drop(place.lease);
    assert_eq!(place.store.collect(&[]).expect("collects").blobs, 0);
    assert_eq!(check_stored(&place.store, &place.made.manifest), 4);
}

fn a_child_of_a_docker_image_is_one() {
    let mut files = Files::default();
    let tar = layer("docker");
    let blob = files.blob(media::DOCKER_LAYER_GZIP, &gzip(&tar));
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","container":"abc","container_config":{{"Cmd":["x"]}},"docker_version":"20.10","parent":"sha256:x","comment":"old",
            "config":{{"Cmd":["sh"],"Image":"sha256:y"}},"history":[{{"created_by":"one"}}],"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest_of(&tar)
    );
    let config = files.blob(media::DOCKER_CONFIG, config.as_bytes());
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST, "config": config, "layers": [blob] });
    let root = files.document(&MediaType::from(media::DOCKER_MANIFEST), &manifest);
    files.list(&[(Some("docker.io/library/d:1"), root.clone())]);
    let place = Place::new();
    files.0.remove("index.json");
    files.write(place.store.path());
    let parent = Image::load(&place.store, &root, &platform()).expect("loads");
    let layer = place.layer(&layer("child"), Compression::Gzip);
    let commit = Commit { parent: Some(&parent), layer: Some(&layer), ..Commit::default() };
    let committed = commit.write(&place.lease, None).expect("commits");
    let manifest = place.json(&committed.manifest);
    assert_eq!(manifest["mediaType"], media::DOCKER_MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], media::DOCKER_CONFIG);
    assert_eq!(manifest["layers"][1]["mediaType"], media::DOCKER_LAYER_GZIP);
    let image = Image::load(&place.store, &committed.manifest, &platform()).expect("loads");
    let raw: Value = serde_json::from_slice(image.raw_config()).expect("JSON");
    for key in ["container", "container_config", "docker_version", "parent", "comment"] {
        assert_eq!(raw.get(key), None, "{key} is about how the parent was made");
    }
    assert_eq!(image.config().history().len(), 2);
    assert_eq!(place.store.find(committed.id.as_ref()).expect("by id").name, None);
}

fn nothing_changed_is_no_layer() {
    let place = Place::new();
    let parent = place.parent();
    let empty = place.layer(&[0; 1024], Compression::Gzip);
    for layer in [None, Some(&empty)] {
        let commit = Commit { parent: Some(&parent), layer, changes: changes(&["USER x"]), ..Commit::default() };
        let committed = commit.write(&place.lease, None).expect("commits");
        let image = Image::load(&place.store, &committed.manifest, &platform()).expect("loads");
        assert_eq!(image.layers(), parent.layers());
        assert_eq!(image.config().history()[0].empty_layer(), Some(true));
        assert_eq!(image.config().user(), "x");
    }
}

fn imports_a_root_file_system() {
    let place = Place::new();
    let tar = layer("root");
    let layer = import_layer(&tar[..], &place.lease).expect("imports");
    assert_eq!((layer.compression, &layer.diff_id), (Compression::Gzip, &digest_of(&tar)));
    let committed = Commit {
        platform: Platform::new("linux", "arm", Some("v7")),
        layer: Some(&layer),
        changes: changes(&["CMD /bin/sh"]),
        message: Some("imported".to_owned()),
        ..Commit::default()
    }
    .write(&place.lease, Some(&"imported:1".parse().expect("a name")))
    .expect("commits");
    let image = Image::load(&place.store, &committed.manifest, &platform()).expect("loads");
    assert_eq!(image.layers(), [layer]);
    assert_eq!(image.platform().to_string(), "linux/arm/v7");
    assert_eq!(image.config().cmd().map(<[String]>::len), Some(3));
    assert_eq!(*image.descriptor().media_type(), MediaType::ImageManifest);
    let platform = Commit::default().platform;
    assert_eq!((platform.os(), platform.architecture()), ("linux", Platform::host().architecture()));
    assert!(platform.architecture() == "arm" || platform.variant().is_none(), "{platform}");
}

fn imports_gzip_byte_by_byte() {
    let place = Place::new();
    let tar = layer(&"root".repeat(1000));
    // Of two members, as parallel compressors write it.
    let packed = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let layer = import_layer(&packed[..], &place.lease).expect("imports");
    assert_eq!((layer.descriptor.digest(), layer.descriptor.size()), (&digest_of(&packed), packed.len() as u64));
    assert_eq!(layer.diff_id, digest_of(&tar));
    assert_eq!(place.blob(&layer.descriptor), packed);
}

fn refuses_what_is_no_tar() {
    let place = Place::new();
    let before = tree(place.store.path());
    let tar = layer("root");
    let packed = gzip(&tar);
    let bad: &[(&[u8], &str)] = &[
        (b"", "not a tar"),
        (b"hello", "not a tar"),
        (&[b'x'; 2000], "not a tar"),
        (&gzip(&[b'x'; 2000]), "not a tar"),
        (&packed[..packed.len() - 9], "gzip stream is damaged"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0..", "xz"),
    ];
    for (bytes, text) in bad {
        let error = import_layer(*bytes, &place.lease).expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(tree(place.store.path()), before);
}

fn the_same_commit_gives_the_same_image() {
    let place = Place::new();
    let parent = place.parent();
    let layer = place.layer(&layer("child"), Compression::Gzip);
    let make = |second: u64| -> Committed {
        let created = Some(UNIX_EPOCH + Duration::from_secs(second));
        let commit = Commit { parent: Some(&parent), layer: Some(&layer), created, ..Commit::default() };
        commit.write(&place.lease, None).expect("commits")
    };
    assert_eq!(make(1), make(1));
    assert_ne!(make(1).id, make(2).id);
}

fn needs_its_parent() {
    let place = Place::new();
    let parent = place.parent();
    place.store.untag("docker.io/library/parent:1").expect("untags");
    assert_eq!(place.store.collect(&[]).expect("collects").blobs, 4);
    let before = tree(place.store.path());
    let error = Commit { parent: Some(&parent), ..Commit::default() }.write(&place.lease, None).expect_err("is gone");
    assert!(matches!(error, Error::BlobMissing { .. }), "{error}");
    assert_eq!(tree(place.store.path()), before);
    assert!(place.store.location().ends_with("store"));
}

fn a_bad_change_leaves_no_image() {
    let place = Place::new();
    let parent = place.parent();
    let before = tree(place.store.path());
    let outcome: Result<Committed> =
        Commit { parent: Some(&parent), changes: changes(&["WORKDIR $NOTHING"]), ..Commit::default() }
            .write(&place.lease, Some(&"x".parse().expect("a name")));
    assert!(matches!(outcome, Err(Error::InvalidChange { .. })));
    assert_eq!(tree(place.store.path()), before);
}
