//! Names and ids.

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{Error, Image, Layout, digest_of, short_id};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::fixture::{Files, check_stored, platform};
use crate::save::names;

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["stored":
        finds_as_docker_does,
        ambiguous_ids_are_told,
        an_image_that_loses_its_name_stays,
        lists_what_there_is,
        lists_what_cannot_be_read,
        a_name_needs_an_image,
        finds_foreign_names,
    ]
}

struct Place {
    _folder: TempDir,
    store: Layout,
    one: Descriptor,
    two: Descriptor,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut files = Files::default();
        let (one, two) = (files.image("one", "amd64").manifest, files.image("two", "amd64").manifest);
        files.list(&[]);
        files.write(folder.path());
        let store = Layout::open_or_create(folder.path()).expect("opens");
        store.tag("docker.io/library/hello:latest", &one).expect("tags");
        store.tag("docker.io/library/hello:1", &one).expect("tags");
        store.tag("registry.example:5000/a/b:c", &two).expect("tags");
        store.tag("oci:/images/x:1", &two).expect("tags");
        Self { _folder: folder, store, one, two }
    }
}

fn finds_as_docker_does() {
    let place = Place::new();
    let id = |root: &Descriptor| Image::load(&place.store, root, &platform()).expect("loads").id().clone();
    let (one_id, digest) = (id(&place.one), place.one.digest().clone());
    let hello = Some("docker.io/library/hello:latest");
    let cases: Vec<(String, &Descriptor, Option<&str>)> = vec![
        ("hello".to_owned(), &place.one, hello),
        ("hello:latest".to_owned(), &place.one, hello),
        ("library/hello".to_owned(), &place.one, hello),
        ("index.docker.io/library/hello".to_owned(), &place.one, hello),
        ("hello:1".to_owned(), &place.one, Some("docker.io/library/hello:1")),
        ("registry.example:5000/a/b:c".to_owned(), &place.two, Some("registry.example:5000/a/b:c")),
        ("oci:/images/x:1".to_owned(), &place.two, Some("oci:/images/x:1")),
        (one_id.to_string(), &place.one, None),
        (one_id.digest().to_owned(), &place.one, None),
        (short_id(&one_id).to_owned(), &place.one, None),
        (format!("sha256:{}", &one_id.digest()[..20]), &place.one, None),
        (digest.to_string(), &place.one, None),
        (digest.digest()[..16].to_owned(), &place.one, None),
        (format!("hello@{digest}"), &place.one, None),
        (format!("hello:1@{digest}"), &place.one, None),
    ];
    for (text, root, name) in cases {
        let found = place.store.find(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(found.root.digest(), root.digest(), "{text}");
        assert_eq!(found.name.as_deref(), name, "{text}");
    }
    let missing = [
        "hello:2".to_owned(),
        "b:c".to_owned(),
        String::new(),
        "UPPER".to_owned(),
        "0".repeat(64),
        "sha256:".to_owned(),
        "md5:00".to_owned(),
        format!("hello:2@{digest}"),
        format!("other@{digest}"),
        format!("hello@{}", place.two.digest()),
        "../../etc/passwd".to_owned(),
    ];
    for text in missing {
        let error = place.store.find(&text).expect_err(&text);
        let said = error.to_string();
        assert!(matches!(error, Error::NoSuchImage { .. }) && said.contains("docker.io/library/hello:1"), "{said}");
    }
}

fn ambiguous_ids_are_told() {
    let place = Place::new();
    // Of 17 images two begin with the same digit.
    let mut files = Files::default();
    let many: Vec<Descriptor> = (0..17).map(|n| files.image(&format!("many {n}"), "amd64").manifest).collect();
    files.write(place.store.path());
    for root in &many {
        place.store.keep(root).expect("keeps");
    }
    let ambiguous = "0123456789abcdef".chars().any(|digit| match place.store.find(&digit.to_string()) {
        Err(error @ Error::AmbiguousId { .. }) => {
            assert!(error.to_string().contains("write more of it; there are: sha256:"), "{error}");
            true
        }
        _ => false,
    });
    assert!(ambiguous);
    for root in &many {
        let found = place.store.find(root.digest().as_ref()).expect("the whole digest is not ambiguous");
        assert_eq!(found.root.digest(), root.digest());
    }
}

fn an_image_that_loses_its_name_stays() {
    let place = Place::new();
    place.store.untag("docker.io/library/hello:1").expect("untags");
    place.store.tag("docker.io/library/hello:latest", &place.two).expect("moves");
    let stored = place.store.stored().expect("lists");
    let one = stored.iter().find(|stored| stored.root.digest() == place.one.digest()).expect("is listed");
    assert!(one.names.is_empty(), "as <none>");
    assert_eq!(place.store.collect(&[]).expect("collects").blobs, 0);
    assert_eq!(place.store.find(place.one.digest().as_ref()).expect("by id").name, None);

    // Without the last name it is gone with the next collection.
    assert!(place.store.forget(place.one.digest()).expect("forgets"));
    assert!(!place.store.forget(place.one.digest()).expect("is gone"));
    assert_eq!(place.store.collect(&[]).expect("collects").blobs, 4);
    for name in ["docker.io/library/hello:latest", "registry.example:5000/a/b:c", "oci:/images/x:1"] {
        assert_eq!(check_stored(&place.store, &place.two), 4);
        let stood = place.store.untag(name).expect("untags").expect("was there");
        assert_eq!(stood.digest(), place.two.digest());
    }
    assert_eq!(place.store.untag("oci:/images/x:1").expect("untags"), None);
    assert_eq!(place.store.collect(&[]).expect("collects").blobs, 4);
    assert_eq!(place.store.usage(&[]).expect("counts").blobs, 0);
}

fn lists_what_there_is() {
    let place = Place::new();
    let stored = place.store.stored().expect("lists");
    assert_eq!(stored.len(), 2);
    let one = &stored[0];
    assert_eq!(one.names, ["docker.io/library/hello:1", "docker.io/library/hello:latest"]);
    assert_eq!(one.references(), names(&["hello:1", "hello"]));
    assert_eq!(one.repository_digests(), [format!("hello@{}", place.one.digest())]);
    let image = Image::load(&place.store, &place.one, &platform()).expect("loads");
    let listed = one.for_platform(&platform()).expect("is there");
    assert_eq!((&listed.id, listed.complete, listed.unpacked), (image.id(), true, None));
    assert_eq!(listed.size, image.layers().iter().map(|layer| layer.descriptor.size()).sum::<u64>());
    assert!(one.problem.is_none() && one.for_platform(&estiba_image::Platform::new("linux", "s390x", None)).is_none());

    let layer = &image.layers()[0].descriptor;
    std::fs::remove_file(place.store.path().join("blobs/sha256").join(layer.digest().digest())).expect("remove");
    assert!(!place.store.stored().expect("lists")[0].platforms[0].complete);
}

fn lists_what_cannot_be_read() {
    let place = Place::new();
    let path = place.store.path().join("blobs/sha256").join(place.one.digest().digest());
    let damaged = vec![b' '; usize::try_from(place.one.size()).expect("is small")];
    std::fs::write(&path, damaged).expect("write");
    let stored = place.store.stored().expect("lists");
    assert!(matches!(stored[0].problem, Some(Error::DigestMismatch { .. })));
    assert!(stored[0].platforms.is_empty() && stored[1].problem.is_none());
    // It can be found, and so be removed.
    assert_eq!(place.store.find("hello").expect("by name").root.digest(), place.one.digest());
    assert_eq!(place.store.find(place.one.digest().as_ref()).expect("by digest").root.digest(), place.one.digest());
}

fn a_name_needs_an_image() {
    let place = Place::new();
    let absent = Descriptor::new(MediaType::ImageManifest, 1, digest_of(b"absent"));
    let before = std::fs::read(place.store.path().join("index.json")).expect("read");
    assert!(matches!(place.store.tag("docker.io/library/hello:1", &absent), Err(Error::BlobMissing { .. })));
    assert!(matches!(place.store.keep(&absent), Err(Error::BlobMissing { .. })));
    // All of several names, or none.
    let outcome = place.store.tag_all(&[("new", &place.one), ("newer", &absent)]);
    assert!(matches!(outcome, Err(Error::BlobMissing { .. })));
    assert_eq!(std::fs::read(place.store.path().join("index.json")).expect("read"), before);
}

fn finds_foreign_names() {
    // As containerd and BuildKit write a layout: the short name is the tag.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut files = Files::default();
    let made = files.image("one", "amd64");
    let mut listed = made.manifest.clone();
    listed.set_annotations(Some([("io.containerd.image.name".to_owned(), "docker.io/library/a:b".to_owned())].into()));
    files.list(&[(Some("b"), listed)]);
    files.write(folder.path());
    let store = Layout::open(folder.path()).expect("opens");
    assert_eq!(store.stored().expect("lists")[0].names, ["docker.io/library/a:b"]);
    for name in ["a:b", "b"] {
        assert_eq!(store.find(name).expect(name).root.digest(), made.manifest.digest());
    }
    assert!(store.untag("docker.io/library/a:b").expect("untags").is_some());
    assert!(store.images().expect("lists").is_empty());
}
