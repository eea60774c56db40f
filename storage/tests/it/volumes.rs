//! Volumes: made, listed, filled, removed, by many at once.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use estiba_storage::volume::Volumes;
use estiba_storage::{Error, VolumeName};
use libtest_mimic::Trial;

use crate::differential::{TREE, bash};
use crate::tree::{self, Times};
use crate::{plain, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        plain("volumes_are_made_listed_and_removed", life),
        plain("volumes_are_made_once", once),
        plain("damaged_volumes_can_be_seen_and_removed", damaged),
        privileged("volumes_are_filled_when_they_are_empty", &["bash", "setfattr"], filled),
        plain("volumes_are_filled_from_inside_the_root", from_inside),
    ]
}

fn name(name: &str) -> VolumeName {
    name.parse().expect("a name")
}

fn names(volumes: &Volumes) -> Vec<String> {
    let mut names = Vec::new();
    let mut visit = |name: &VolumeName, _: Result<_, _>| {
        names.push(name.to_string());
        ControlFlow::Continue(())
    };
    volumes.walk(&mut visit).expect("walk");
    names
}

fn empty(volumes: &Volumes, of: &str) -> std::path::PathBuf {
    volumes.create(&name(of), BTreeMap::new(), BTreeMap::new()).expect("created").path
}

fn life() {
    let root = tempfile::tempdir().expect("a folder");
    let volumes = Volumes::open(root.path().join("volumes")).expect("open");
    let labels = BTreeMap::from([("team".to_owned(), "a \"b\"".to_owned())]);
    let options = BTreeMap::from([("type".to_owned(), "tmpfs".to_owned())]);
    let made = volumes.create(&name("web.data"), labels.clone(), options.clone()).expect("created");
    assert_eq!((&made.labels, &made.options), (&labels, &options));
    assert_eq!(fs::metadata(&made.path).expect("its folder").mode() & 0o7777, 0o755);
    empty(&volumes, "db");
    assert_eq!(names(&volumes), ["db", "web.data"]);
    // Another process sees the same.
    let again = Volumes::open(root.path().join("volumes")).expect("open");
    assert_eq!(again.get(&name("web.data")).expect("there"), made);
    fs::write(made.path.join("file"), vec![1; 50_000]).expect("write");
    assert!(again.usage(&name("web.data")).expect("usage").bytes >= 50_000);
    again.remove(&name("web.data")).expect("removed");
    assert!(!made.path.exists());
    assert_eq!(names(&volumes), ["db"]);
    for error in [
        volumes.get(&name("web.data")).map(drop),
        volumes.remove(&name("web.data")),
        volumes.usage(&name("none")).map(drop),
        volumes.fill(&name("none"), fs::File::open(root.path()).expect("open").as_fd(), "/").map(drop),
    ] {
        assert!(matches!(error, Err(Error::VolumeNotFound { .. })), "{error:?}");
    }
    for bad in ["", ".tmp", "../x", "a/b", "a:b"] {
        let error = bad.parse::<VolumeName>().expect_err("no name").to_string();
        assert!(error.starts_with("invalid volume name"), "{error}");
    }
}

fn once() {
    let root = tempfile::tempdir().expect("a folder");
    let made = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let volumes = Volumes::open(root.path()).expect("open");
                for at in 0..20 {
                    match volumes.create(&name(&format!("v{at}")), BTreeMap::new(), BTreeMap::new()) {
                        Ok(volume) => {
                            fs::write(volume.path.join("mine"), "").expect("write");
                            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                        Err(Error::VolumeExists { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    // Others' work must not be taken for leftovers.
                    volumes.repair().expect("repair");
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 20);
    let volumes = Volumes::open(root.path()).expect("open");
    assert_eq!(names(&volumes).len(), 20);
    assert_eq!(fs::read_dir(root.path().join(".tmp")).expect("read").count(), 0);
    fs::create_dir_all(root.path().join(".tmp/left/by")).expect("folder");
    assert_eq!(volumes.repair().expect("repair"), 1);
}

fn damaged() {
    let root = tempfile::tempdir().expect("a folder");
    let volumes = Volumes::open(root.path()).expect("open");
    let path = empty(&volumes, "torn");
    fs::write(path.with_file_name("volume.json"), "{").expect("write");
    assert!(matches!(volumes.get(&name("torn")), Err(Error::DamagedRecord { .. })));
    assert_eq!(names(&volumes), ["torn"]);
    volumes.remove(&name("torn")).expect("removed");
    assert_eq!(names(&volumes), [""; 0]);
}

fn fill(volumes: &Volumes, of: &str, root: &Path, path: &str) -> bool {
    volumes.fill(&name(of), fs::File::open(root).expect("open").as_fd(), path).expect("filled")
}

fn filled() {
    let work = tempfile::tempdir().expect("a folder");
    let image = work.path().join("image");
    fs::create_dir_all(image.join("srv/empty")).expect("folder");
    bash(&image.join("srv"), TREE);
    bash(&image, "chmod 2770 srv srv/empty; chown 7:8 srv srv/empty; setfattr -n user.note -v v srv");
    let volumes = Volumes::open(work.path().join("volumes")).expect("open");
    let path = empty(&volumes, "v");
    assert!(fill(&volumes, "v", &image, "/srv"));
    tree::assert_same(&tree::list(&image.join("srv"), Times::All), &tree::list(&path, Times::All), "image and volume");
    fs::write(image.join("srv/later"), "").expect("write");
    assert!(!fill(&volumes, "v", &image, "/srv"), "it has something");
    assert!(!path.join("later").exists());
    // An empty folder gives what it is.
    let path = empty(&volumes, "e");
    assert!(fill(&volumes, "e", &image, "srv/empty"));
    assert_eq!(tree::list(&path, Times::All), tree::list(&image.join("srv/empty"), Times::All));
    assert_eq!(fs::read_dir(work.path().join("volumes/.tmp")).expect("read").count(), 0);
}

fn from_inside() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("etc")).expect("folder");
    fs::write(root.join("etc/inside"), "").expect("write");
    fs::create_dir(outer.path().join("etc")).expect("folder");
    fs::write(outer.path().join("etc/outside"), "").expect("write");
    symlink("/../../../etc", root.join("link")).expect("a link");
    symlink("none", root.join("dead")).expect("a link");
    let volumes = Volumes::open(outer.path().join("volumes")).expect("open");
    let path = empty(&volumes, "v");
    for nothing in ["none", "dead", "etc/inside", "etc/inside/x"] {
        assert!(!fill(&volumes, "v", &root, nothing), "{nothing}");
    }
    assert_eq!(fs::read_dir(&path).expect("read").count(), 0);
    assert!(fill(&volumes, "v", &root, "link"));
    assert!(path.join("inside").exists() && !path.join("outside").exists());
}
