//! Garbage collection beside everything else, and what a kill leaves.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{Collected, ContentStore, DockerArchive, Error, Layout, Lease, Problem, copy, digest_of};
use libtest_mimic::Trial;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use tempfile::TempDir;

use crate::child;
use crate::fixture::{Files, Made, check_stored, platform, tree};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["collect":
        removes_what_nothing_reaches,
        keeps_what_roots_and_leases_hold,
        a_lease_holds_what_comes_in,
        a_lease_dies_with_its_process,
        whoever_looks_waits_for_a_collection,
        removes_nothing_that_it_does_not_understand,
        keeps_kinds_that_are_not_known,
        a_hostile_document_stops_no_collection,
        counts_what_there_is,
        verifies_every_blob,
        kill_9_anywhere,
        many_processes_at_once,
    ]
}

struct Place {
    folder: TempDir,
    store: Layout,
    one: Made,
    two: Made,
}

impl Place {
    /// Two images with one layer in common, of which the first has a name.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut files = Files::default();
        let shared = crate::fixture::layer("shared");
        let one = files.image_of(vec![shared.clone(), crate::fixture::layer("one")], "amd64");
        let two = files.image_of(vec![shared, crate::fixture::layer("two")], "amd64");
        files.list(&[(Some("docker.io/library/one:1"), one.manifest.clone())]);
        files.write(&folder.path().join("store"));
        let store = Layout::open_or_create(folder.path().join("store")).expect("opens");
        Self { folder, store, one, two }
    }

    fn blob(&self, descriptor: &Descriptor) -> PathBuf {
        self.store.path().join("blobs/sha256").join(descriptor.digest().digest())
    }

    fn put(&self, media_type: &MediaType, bytes: &[u8]) -> Descriptor {
        let mut ingest = self.store.ingest().expect("begins");
        ingest.write_all(bytes).expect("writes");
        ingest.finish(media_type.clone()).expect("finishes")
    }

    fn collect(&self) -> Collected {
        self.store.collect(&[]).expect("collects")
    }
}

fn removes_what_nothing_reaches() {
    let place = Place::new();
    let odd = place.store.path().join("blobs/sha256/not-a-digest");
    std::fs::write(&odd, "x").expect("write");
    let before = tree(place.store.path()).values().map(|content| content.len() as u64).sum::<u64>();
    let usage = place.store.usage(&[]).expect("counts");
    let collected = place.collect();
    // Manifest, config and the layer that the first image does not have.
    assert_eq!(collected.blobs, 3);
    assert_eq!(usage.unreachable, collected, "it was told before");
    let after = tree(place.store.path()).values().map(|content| content.len() as u64).sum::<u64>();
    assert_eq!(before - after, collected.bytes);
    assert_eq!(check_stored(&place.store, &place.one.manifest), 4);
    assert!(!place.store.contains(&place.two.manifest).expect("looks"));
    assert!(odd.exists(), "it is not called for a digest");
    assert_eq!(place.collect(), Collected::default());
}

fn keeps_what_roots_and_leases_hold() {
    let place = Place::new();
    let two = place.two.manifest.clone();
    assert_eq!(place.store.collect(std::slice::from_ref(&two)).expect("collects"), Collected::default());
    let lease = place.store.lease().expect("is given");
    lease.hold(&two).expect("is there");
    let other = lease.clone();
    drop(lease);
    assert_eq!(place.collect(), Collected::default(), "its clone holds");
    assert_eq!(check_stored(&place.store, &two), 4);
    drop(other);
    assert_eq!(place.collect().blobs, 3);
    assert_eq!(std::fs::read_dir(place.store.path().join("ingest")).expect("list").count(), 0);
    let lease = place.store.lease().expect("is given");
    assert!(matches!(lease.hold(&two), Err(Error::BlobMissing { .. })));
}

fn a_lease_holds_what_comes_in() {
    let place = Place::new();
    place.collect();
    let mut files = Files::default();
    let made = files.image("new", "amd64");
    files.list(&[(Some("new"), made.manifest.clone())]);
    let from = place.folder.path().join("from");
    files.write(&from);
    let from = Layout::open(from).expect("opens");
    let lease = place.store.lease().expect("is given");
    let manifest = copy(&from, &made.manifest, &platform(), &lease).expect("copies");
    assert_eq!(place.collect(), Collected::default());
    place.store.tag("docker.io/library/new:1", &manifest).expect("tags");
    drop(lease);
    assert_eq!(place.collect(), Collected::default());
    assert_eq!(check_stored(&place.store, &manifest), 4);

    // What was there before and was found through a lease is held as well; an ingest without one holds nothing.
    let loose = place.put(&MediaType::ImageLayer, b"loose");
    let lease = place.store.lease().expect("is given");
    assert!(lease.contains(&loose).expect("looks"));
    assert_eq!(place.collect(), Collected::default());
    drop(lease);
    assert_eq!(place.collect(), Collected { blobs: 1, bytes: 5 });
}

fn a_lease_dies_with_its_process() {
    let place = Place::new();
    let id = place.two.manifest.digest().to_string();
    place.store.tag("two", &place.two.manifest).expect("tags");
    let mut child = child::spawn(&format!("lease {id}"), place.store.path());
    child::wait_ready(&mut child);
    place.store.untag("two").expect("untags");
    assert_eq!(place.collect(), Collected::default());
    child.kill().expect("kill");
    child.wait().expect("wait");
    let left = || std::fs::read_dir(place.store.path().join("ingest")).expect("list").count();
    assert_eq!(left(), 1, "the kill left something to find");
    assert_eq!(place.collect().blobs, 3);
    assert_eq!(left(), 0);
}

/// With a collection played by the test: the lock of the folder, and a blob that goes while it is held.
fn whoever_looks_waits_for_a_collection() {
    type Look = fn(&Lease, &Descriptor, &[u8]) -> bool;
    let looks: [(&str, bool, Look); 3] = [
        ("contains", false, |lease, blob, _| lease.contains(blob).expect("looks")),
        ("ingest", true, |lease, blob, bytes| {
            let mut ingest = lease.ingest().expect("begins");
            ingest.write_all(bytes).expect("writes");
            ingest.commit(blob).expect("commits");
            lease.layout().contains(blob).expect("looks")
        }),
        ("tag", false, |lease, blob, _| match lease.layout().tag("name", blob) {
            Err(Error::BlobMissing { .. }) => false,
            outcome => panic!("{outcome:?}"),
        }),
    ];
    for (what, there, look) in looks {
        let place = Place::new();
        let blob = place.put(&MediaType::ImageManifest, b"blob");
        let lease = place.store.lease().expect("is given");
        let folder = std::fs::File::open(place.store.path()).expect("opens");
        let lock = Flock::lock(folder, FlockArg::LockExclusive).expect("nobody has it");
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(look(&lease, &blob, b"blob")));
            let early = receiver.recv_timeout(Duration::from_millis(100));
            assert!(early.is_err(), "{what} did not wait");
            std::fs::remove_file(place.blob(&blob)).expect("remove");
            drop(lock);
            assert_eq!(receiver.recv().expect("ends"), there, "{what}");
        });
        assert_eq!(place.collect().blobs, 3, "{what}: what came in is held");
    }
}

fn removes_nothing_that_it_does_not_understand() {
    let damage: [fn(&Path); 4] = [
        |path| std::fs::write(path, "{}").expect("write"),
        |path| {
            let mut bytes = std::fs::read(path).expect("read");
            bytes[0] = b'[';
            std::fs::write(path, bytes).expect("write");
        },
        |path| std::fs::File::options().write(true).open(path).and_then(|file| file.set_len(10)).expect("truncate"),
        |path| std::fs::remove_file(path).expect("remove"),
    ];
    for damage in damage {
        let place = Place::new();
        damage(&place.blob(&place.one.manifest));
        let before = tree(place.store.path());
        let error = place.store.collect(&[]).expect_err("cannot know what belongs to it");
        let said = error.to_string();
        assert!(matches!(error, Error::Uncollectable { .. }) && said.contains("docker.io/library/one:1"), "{said}");
        assert_eq!(tree(place.store.path()), before);
        assert_eq!(place.store.usage(&[]).expect("counts").unreachable, Collected::default());
        // The message says the way out.
        place.store.untag("docker.io/library/one:1").expect("untags");
        assert!(place.collect().blobs >= 6);
    }
    // A damaged index of an image, too; a damaged layer is no reason.
    let place = Place::new();
    let index = json!({ "schemaVersion": 2, "manifests": [place.one.manifest, place.two.manifest] });
    let index = place.put(&MediaType::ImageIndex, index.to_string().as_bytes());
    place.store.tag("index", &index).expect("tags");
    assert_eq!(place.collect(), Collected::default());
    let layer = Descriptor::new(MediaType::ImageLayer, 1, digest_of(&place.one.tars[0]));
    std::fs::write(place.blob(&layer), "damaged").expect("write");
    assert_eq!(place.collect(), Collected::default());
    std::fs::write(place.blob(&place.two.manifest), "damaged").expect("write");
    assert!(matches!(place.store.collect(&[]), Err(Error::Uncollectable { .. })));
    // A platform that was never copied is no reason either.
    std::fs::remove_file(place.blob(&place.two.manifest)).expect("remove");
    assert_eq!(place.collect().blobs, 2);
    assert_eq!(check_stored_but(&place, &layer), 3);
}

/// How many blobs of the first image are whole, without the one.
fn check_stored_but(place: &Place, damaged: &Descriptor) -> usize {
    std::fs::write(place.blob(damaged), &place.one.tars[0]).expect("write");
    check_stored(&place.store, &place.one.manifest) - 1
}

fn keeps_kinds_that_are_not_known() {
    let place = Place::new();
    let part = place.put(&MediaType::Other("application/vnd.vendor.part".to_owned()), b"part");
    let thing = json!({ "vendor": { "parts": [{ "digest": part.digest().as_ref(), "size": 4 }] } }).to_string();
    let thing = place.put(&MediaType::Other("application/vnd.vendor.thing+json".to_owned()), thing.as_bytes());
    place.store.tag("thing", &thing).expect("tags");
    assert_eq!(place.collect().blobs, 3, "the image without a name");
    assert!(place.store.contains(&part).expect("looks"));
    place.store.untag("thing").expect("untags");
    assert_eq!(place.collect().blobs, 2);
}

fn a_hostile_document_stops_no_collection() {
    let place = Place::new();
    let layer = Descriptor::new(MediaType::ImageManifest, 1, digest_of(&place.one.tars[0]));
    let absent = Descriptor::new(MediaType::ImageManifest, 1, digest_of(b"absent"));
    let config = json!({ "mediaType": MediaType::ImageConfig.as_ref(), "digest": digest_of(&place.one.config).as_ref(), "size": 1 });
    let mut deep = json!({ "digest": "../../etc/passwd", "size": -1 });
    for _ in 0..100 {
        deep = json!([deep, { "digest": 7 }]);
    }
    for subject in [&layer, &absent] {
        let hostile = json!({
            "schemaVersion": 2, "config": config, "layers": [], "subject": subject, "annotations": { "digest": "x" }, "deep": deep,
        });
        let hostile = place.put(&MediaType::ImageManifest, hostile.to_string().as_bytes());
        place.store.tag("hostile", &hostile).expect("tags");
        place.collect();
        assert_eq!(check_stored(&place.store, &place.one.manifest), 4);
    }
    // A manifest that another one calls a layer is followed all the same where it is a manifest.
    let disguised = json!({ "schemaVersion": 2, "config": config, "layers": [
        { "mediaType": MediaType::ImageLayer.as_ref(), "digest": place.one.manifest.digest().as_ref(), "size": 1 } ] });
    let disguised = place.put(&MediaType::ImageManifest, disguised.to_string().as_bytes());
    place.store.tag("another", &disguised).expect("tags");
    place.store.untag("docker.io/library/one:1").expect("untags");
    place.store.tag("later", &place.one.manifest).expect("tags");
    place.collect();
    assert_eq!(check_stored(&place.store, &place.one.manifest), 4);
}

fn counts_what_there_is() {
    let place = Place::new();
    place.store.tag("two", &place.two.manifest).expect("tags");
    place.store.tag("again", &place.one.manifest).expect("tags");
    let usage = place.store.usage(&[]).expect("counts");
    assert_eq!((usage.images.len(), usage.blobs, usage.unreachable), (2, 7, Collected::default()));
    let shared = place.one.tars[0].len() as u64;
    assert!(usage.images.iter().all(|image| image.shared == shared));
    assert_eq!(usage.images.iter().map(|image| image.size).sum::<u64>() - shared, usage.bytes);
    place.store.untag("two").expect("untags");
    let usage = place.store.usage(&[]).expect("counts");
    assert_eq!((usage.images.len(), usage.images[0].shared, usage.unreachable.blobs), (1, 0, 3));
    let held = place.store.usage(std::slice::from_ref(&place.two.manifest)).expect("counts");
    assert_eq!(held.unreachable, Collected::default());
}

fn verifies_every_blob() {
    let place = Place::new();
    let check = place.store.verify().expect("verifies");
    let bytes: u64 = place.store.usage(&[]).expect("counts").bytes;
    assert_eq!((check.blobs, check.bytes, check.problems.len()), (7, bytes, 0));
    let layer = Descriptor::new(MediaType::ImageLayer, 1, digest_of(&place.one.tars[0]));
    let mut content = std::fs::read(place.blob(&layer)).expect("read");
    content[0] ^= 1;
    std::fs::write(place.blob(&layer), &content).expect("write");
    let config = Descriptor::new(MediaType::ImageConfig, 1, digest_of(&place.one.config));
    std::fs::remove_file(place.blob(&config)).expect("remove");
    let problems = place.store.verify().expect("verifies").problems;
    let damaged = Problem::Damaged { digest: layer.digest().clone(), actual: digest_of(&content) };
    let missing = Problem::Missing { digest: config.digest().clone() };
    assert!(problems.len() == 2 && problems.contains(&damaged) && problems.contains(&missing), "{problems:?}");
    std::fs::remove_file(place.blob(&place.one.manifest)).expect("remove");
    let problems = place.store.verify().expect("verifies").problems;
    assert!(problems.contains(&Problem::Missing { digest: place.one.manifest.digest().clone() }), "{problems:?}");
}

/// An archive of images that are not in the place's store.
fn archive(place: &Place, count: usize) -> PathBuf {
    let (mut files, mut exports) = (Files::default(), Vec::new());
    for number in 0..count {
        let made = files.image(&format!("archived {number}"), "amd64");
        let names = crate::save::names(&[&format!("archived:{number}"), &format!("again:{number}")]);
        exports.push(estiba_image::Export { root: made.manifest, names });
    }
    files.list(&[]);
    let folder = place.folder.path().join("archived");
    files.write(&folder);
    let mut bytes = Vec::new();
    DockerArchive::write(&Layout::open(folder).expect("opens"), &exports, &platform(), &mut bytes).expect("writes");
    let path = place.folder.path().join("archive.tar");
    std::fs::write(&path, bytes).expect("write");
    path
}

/// Whatever happened: what has a name is whole, and nothing is left over.
fn check_whole(store: &Layout) {
    let problems = store.verify().expect("verifies").problems;
    assert!(problems.is_empty(), "{problems:?}");
    for stored in store.stored().expect("lists") {
        assert!(stored.problem.is_none(), "{stored:?}");
        assert!(stored.platforms.iter().all(|image| image.complete), "{stored:?}");
    }
    Layout::open_or_create(store.path()).expect("opens");
    let left = std::fs::read_dir(store.path().join("ingest")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "nothing is in the ingest folder");
}

fn kill_9_anywhere() {
    let place = Place::new();
    let archive = archive(&place, 6);
    let jobs = [
        format!("load {}", archive.display()),
        "save".to_owned(),
        "commit one:1".to_owned(),
        "collect".to_owned(),
        format!("churn 1000 {}", archive.display()),
    ];
    for round in 0..12_u64 {
        for (position, job) in jobs.iter().enumerate() {
            let mut child = child::spawn(job, place.store.path());
            // Another moment each time, over what a start and some turns take.
            let moment = 3 + (round * 7 + position as u64 * 3) % 45;
            std::thread::sleep(Duration::from_millis(moment));
            let ended = child.try_wait().expect("wait");
            assert!(ended.is_none(), "{job} ended by itself: {ended:?}");
            child.kill().expect("kill");
            child.wait().expect("wait");
            check_whole(&place.store);
            assert_eq!(check_stored(&place.store, &place.one.manifest), 4, "{job}");
        }
        // The next command works.
        let loaded = place.store.load(&archive, &platform()).expect("loads");
        assert_eq!(loaded.len(), 6);
        assert!(loaded.iter().all(|image| check_stored(&place.store, &image.manifest) == 4));
        for name in loaded.iter().flat_map(|image| &image.names) {
            place.store.untag(name).expect("untags");
        }
        place.collect();
    }
    // Without its names nothing of the archive is left, however often it was half there.
    let names = place.store.names().expect("lists");
    assert!(names.iter().all(|name| name.contains("/one") || name.contains("/made-")), "{names:?}");
    check_whole(&place.store);
}

fn many_processes_at_once() {
    let place = Place::new();
    let archive = archive(&place, 3);
    let churn = format!("churn 15 {}", archive.display());
    let jobs = [churn.as_str(), &churn, &churn, "commits 15 one:1", "commits 15 one:1"];
    let children: Vec<_> = jobs.iter().map(|job| child::spawn(job, place.store.path())).collect();
    let mut collector = child::spawn("collect", place.store.path());
    for child in children {
        let output = child.wait_with_output().expect("wait");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(collector.try_wait().expect("wait").is_none(), "it goes on");
    collector.kill().expect("kill");
    collector.wait().expect("wait");
    check_whole(&place.store);
    let made = place.store.names().expect("lists").iter().filter(|name| name.contains("/made-")).count();
    assert_eq!(made, 30);
    let bytes = std::fs::read(&archive).expect("read");
    assert_eq!(place.store.load_stream(Cursor::new(bytes), 1 << 30, &platform()).expect("loads").len(), 3);
}
