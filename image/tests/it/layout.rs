//! The content store.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{ContentStore, Error, Layout, MAX_DOCUMENT, Provider, digest_of, read_blob};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::child;
use crate::fixture::tree;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = crate::trials!["layout":
        is_made_and_opened_again,
        says_what_is_no_layout,
        takes_in_what_is_right,
        takes_in_sha512,
        shows_nothing_before_the_commit,
        names_images,
        never_follows_links,
        many_processes_take_in_one_blob,
        many_processes_name_images,
        kill_9_leaves_nothing,
        removes_blobs,
        read_blob_is_bounded,
    ];
    let probe = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    let able = probe.is_ok_and(|status| status.success());
    let kind = if able { "" } else { "needs unshare(1) and a user or mount namespace" };
    trials.push(
        Trial::test("layout::privileged_full_disk_is_said_so", || {
            full_disk_is_said_so();
            Ok(())
        })
        .with_kind(kind)
        .with_ignored_flag(!able),
    );
    trials
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(bytes))
}

fn put(store: &Layout, bytes: &[u8]) -> Descriptor {
    let descriptor = describe(bytes);
    let mut ingest = store.ingest().expect("begins");
    ingest.write_all(bytes).expect("writes");
    ingest.commit(&descriptor).expect("commits");
    descriptor
}

fn ingests(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("ingest")).map_or(0, Iterator::count)
}

fn is_made_and_opened_again() {
    let temporary = temporary();
    let folder = temporary.path().join("a/b/content");
    assert!(matches!(Layout::open(&folder), Err(Error::Io { .. })));
    let store = Layout::open_or_create(&folder).expect("is made");
    assert_eq!(store.names().expect("lists"), Vec::<String>::new());
    let before = tree(&folder);
    Layout::open_or_create(&folder).expect("is opened");
    Layout::open(&folder).expect("is opened");
    assert_eq!(tree(&folder), before);

    // A maker that was killed before the end: whatever is there already, it is finished.
    for gone in [&["oci-layout"][..], &["oci-layout", "index.json"]] {
        for name in gone {
            std::fs::remove_file(folder.join(name)).expect("remove");
        }
        std::fs::write(folder.join(".index.json.new"), "{torn").expect("write");
        let store = Layout::open_or_create(&folder).expect("is finished");
        assert!(store.images().expect("lists").is_empty());
        let _ = std::fs::remove_file(folder.join(".index.json.new"));
        assert_eq!(tree(&folder), before);
    }
}

fn says_what_is_no_layout() {
    let temporary = temporary();
    let folder = temporary.path();
    std::fs::write(folder.join("file"), "x").expect("write");
    for (path, text) in [(folder.to_owned(), "has no oci-layout"), (folder.join("file"), "not a folder")] {
        let error = Layout::open(&path).expect_err("no layout");
        assert!(matches!(error, Error::NotLayout { .. }) && error.to_string().contains(text), "{error}");
    }
    let error = Layout::open_or_create(folder).expect_err("something else is in it");
    assert!(error.to_string().contains("other things"), "{error}");
    for (content, text) in [("{}", "not valid"), (r#"{"imageLayoutVersion":"2.0.0"}"#, "newer")] {
        std::fs::write(folder.join("oci-layout"), content).expect("write");
        for error in [Layout::open(folder).expect_err("no"), Layout::open_or_create(folder).expect_err("no")] {
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}

fn takes_in_what_is_right() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    for size in [0, 1, 4096, 700_001] {
        let bytes = vec![b'x'; size];
        assert!(!store.contains(&describe(&bytes)).expect("looks"));
        let descriptor = put(&store, &bytes);
        assert!(store.contains(&descriptor).expect("looks"));
        assert_eq!(read_blob(&store, &descriptor, 1 << 20).expect("reads"), bytes);
        put(&store, &bytes);
    }
    assert_eq!(ingests(temporary.path()), 0);

    // A blob that came to harm on disk counts as missing if its size tells, and is replaced.
    let descriptor = describe(&[b'x'; 4096]);
    let path = temporary.path().join("blobs/sha256").join(descriptor.digest().digest());
    std::fs::write(&path, "short").expect("write");
    assert!(!store.contains(&descriptor).expect("looks"));
    put(&store, &[b'x'; 4096]);
    assert!(read_blob(&store, &descriptor, 4096).is_ok());
    // And is never handed out verified if its size does not.
    std::fs::write(&path, [b'y'; 4096]).expect("write");
    assert!(matches!(read_blob(&store, &descriptor, 4096), Err(Error::DigestMismatch { .. })));
}

fn takes_in_sha512() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let digest = "sha512:9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043";
    let descriptor = Descriptor::new(
        MediaType::ImageLayer,
        5,
        digest.parse::<estiba_image::oci_spec::image::Digest>().expect("a digest"),
    );
    let mut ingest = store.ingest().expect("begins");
    ingest.write_all(b"hellO").expect("writes");
    assert!(matches!(ingest.commit(&descriptor), Err(Error::DigestMismatch { .. })));
    assert!(!store.contains(&descriptor).expect("looks"));
    let mut ingest = store.ingest().expect("begins");
    ingest.write_all(b"hello").expect("writes");
    ingest.commit(&descriptor).expect("commits");
    assert_eq!(read_blob(&store, &descriptor, 5).expect("reads"), b"hello");
}

fn shows_nothing_before_the_commit() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let before = tree(temporary.path());
    let right = describe(b"hello");
    for (bytes, expected) in [
        (&b"hellO"[..], right.clone()),
        (b"hell", right.clone()),
        (b"hello!", right.clone()),
        (b"hello", Descriptor::new(MediaType::ImageLayer, 6, right.digest().clone())),
    ] {
        let mut ingest = store.ingest().expect("begins");
        ingest.write_all(bytes).expect("writes");
        assert!(!store.contains(&right).expect("looks"));
        let error = ingest.commit(&expected).expect_err("is not what it should be");
        assert!(matches!(error, Error::DigestMismatch { .. } | Error::SizeMismatch { .. }), "{error}");
    }
    let mut ingest = store.ingest().expect("begins");
    ingest.write_all(b"hello").expect("writes");
    drop(ingest);
    assert_eq!(tree(temporary.path()), before);
}

fn names_images() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let (one, two) = (put(&store, b"one"), put(&store, b"two"));
    assert_eq!(store.resolve("docker.io/library/a:b").expect("looks"), None);
    store.tag("docker.io/library/a:b", &one).expect("sets");
    store.tag("oci:/x:y", &one).expect("sets");
    let index = temporary.path().join("index.json");
    let first = std::fs::metadata(&index).expect("stat");
    store.tag("docker.io/library/a:b", &one).expect("is set");
    let second = std::fs::metadata(&index).expect("stat");
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&first),
        std::os::unix::fs::MetadataExt::ino(&second),
        "nothing is written if nothing changes"
    );
    store.tag("docker.io/library/a:b", &two).expect("sets");
    assert_eq!(store.names().expect("lists"), ["docker.io/library/a:b", "oci:/x:y"]);
    let resolved = store.resolve("docker.io/library/a:b").expect("looks").expect("is there");
    assert_eq!(resolved.digest(), two.digest());
    assert!(store.untag("oci:/x:y").expect("untags").is_some() && store.untag("oci:/x:y").expect("untags").is_none());
    assert_eq!(store.names().expect("lists"), ["docker.io/library/a:b"]);
}

fn never_follows_links() {
    let temporary = temporary();
    let outside = temporary.path().join("outside");
    std::fs::write(&outside, "hello").expect("write");
    let descriptor = describe(b"hello");
    let hex = descriptor.digest().digest();

    let folder = temporary.path().join("blob");
    let store = Layout::open_or_create(&folder).expect("is made");
    symlink(&outside, folder.join("blobs/sha256").join(hex)).expect("link");
    assert!(!store.contains(&descriptor).expect("looks"));
    let error = store.open(&descriptor).map(|_| ()).expect_err("a link");
    assert!(matches!(error, Error::UnsafePath { found: "a symbolic link", .. }), "{error}");

    let elsewhere = temporary.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join("sha256")).expect("mkdir");
    std::fs::write(elsewhere.join("sha256").join(hex), "hello").expect("write");
    for (name, links) in [("blobs", "blobs"), ("algorithm", "blobs/sha256")] {
        let folder = temporary.path().join(name);
        let store = Layout::open_or_create(&folder).expect("is made");
        std::fs::rename(folder.join(links), folder.join("away")).expect("rename");
        let target = if name == "blobs" { elsewhere.clone() } else { elsewhere.join("sha256") };
        symlink(target, folder.join(links)).expect("link");
        assert!(matches!(store.open(&descriptor), Err(Error::UnsafePath { .. })), "{name}");
        assert!(matches!(store.contains(&descriptor), Err(Error::UnsafePath { .. })), "{name}");
        let mut ingest = store.ingest().expect("begins");
        ingest.write_all(b"other").expect("writes");
        assert!(matches!(ingest.commit(&describe(b"other")), Err(Error::UnsafePath { .. })), "{name}");
    }
    assert_eq!(tree(&elsewhere).len(), 1, "nothing was written through a link");

    // A fifo would hold its reader for ever.
    let folder = temporary.path().join("fifo");
    let store = Layout::open_or_create(&folder).expect("is made");
    let path = folder.join("blobs/sha256").join(hex);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    assert!(matches!(store.open(&descriptor), Err(Error::UnsafePath { found: "a special file", .. })));
}

fn many_processes_take_in_one_blob() {
    let temporary = temporary();
    Layout::open_or_create(temporary.path()).expect("is made");
    let children: Vec<_> = (0..8).map(|_| child::spawn("ingest", temporary.path())).collect();
    for child in children {
        assert!(child.wait_with_output().expect("wait").status.success());
    }
    let store = Layout::open(temporary.path()).expect("opens");
    let (bytes, descriptor) = child::big_blob();
    assert_eq!(read_blob(&store, &descriptor, 1 << 30).expect("reads"), bytes);
    assert_eq!(ingests(temporary.path()), 0);
}

fn many_processes_name_images() {
    let temporary = temporary();
    // None of them finds a layout there: they make it together as well.
    let folder = temporary.path().join("content");
    let children: Vec<_> = (0..6).map(|n| child::spawn(&format!("names p{n}"), &folder)).collect();
    for child in children {
        assert!(child.wait_with_output().expect("wait").status.success());
    }
    assert_eq!(Layout::open(&folder).expect("opens").names().expect("lists").len(), 120);
}

fn kill_9_leaves_nothing() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let before = tree(temporary.path());
    let (_, descriptor) = child::big_blob();

    let mut killed = child::spawn("half", temporary.path());
    child::wait_ready(&mut killed);
    let mut living = child::spawn("half", temporary.path());
    child::wait_ready(&mut living);
    assert_eq!(ingests(temporary.path()), 2);
    assert!(!store.contains(&descriptor).expect("looks"));
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    assert!(!store.contains(&descriptor).expect("looks"));
    assert_eq!(ingests(temporary.path()), 2, "the kill left something to find");
    Layout::open_or_create(temporary.path()).expect("opens");
    assert_eq!(ingests(temporary.path()), 1, "the leftover is gone, the living ingest is not");
    assert_eq!(store.images().expect("lists"), []);

    drop(living.stdin.take());
    assert!(living.wait().expect("wait").success());
    assert!(store.contains(&descriptor).expect("looks"));
    store.remove(descriptor.digest()).expect("removes");
    assert_eq!(tree(temporary.path()), before);

    // A store that stays open cleans up at its next ingest.
    let mut killed = child::spawn("half", temporary.path());
    child::wait_ready(&mut killed);
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    assert_eq!(ingests(temporary.path()), 1);
    put(&store, b"something");
    assert_eq!(ingests(temporary.path()), 0);
}

fn removes_blobs() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let descriptor = put(&store, b"x");
    store.remove(descriptor.digest()).expect("removes");
    store.remove(descriptor.digest()).expect("absent is fine");
    let error = store.open(&descriptor).map(|_| ()).expect_err("is gone");
    assert!(matches!(error, Error::BlobMissing { .. }), "{error}");
}

fn read_blob_is_bounded() {
    let temporary = temporary();
    let store = Layout::open_or_create(temporary.path()).expect("is made");
    let right = put(&store, b"hello");
    // Refused by what it claims, before anything is read or allocated.
    let claims = Descriptor::new(MediaType::ImageManifest, u64::MAX, right.digest().clone());
    assert!(matches!(read_blob(&store, &claims, MAX_DOCUMENT), Err(Error::TooLarge { .. })));
    let short = Descriptor::new(MediaType::ImageManifest, 4, right.digest().clone());
    assert!(matches!(read_blob(&store, &short, MAX_DOCUMENT), Err(Error::DigestMismatch { .. })));
    let long = Descriptor::new(MediaType::ImageManifest, 6, right.digest().clone());
    assert!(matches!(read_blob(&store, &long, MAX_DOCUMENT), Err(Error::SizeMismatch { .. })));
}

/// In a mount namespace of the child's own, on a file system that is too small.
fn full_disk_is_said_so() {
    let temporary = temporary();
    let inner = child::command("full", temporary.path());
    let script = "mount -t tmpfs -o size=256k estiba-test \"$2\" && exec \"$1\" \"$2\"";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script, "sh"])
        .arg(inner.get_program())
        .arg(temporary.path())
        .envs(inner.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .output()
        .expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("NoSpace") && said.ends_with("left 0\n"), "{said}");
    assert_eq!(std::fs::read_dir(temporary.path()).expect("list").count(), 0, "the mount was the child's own");
}
