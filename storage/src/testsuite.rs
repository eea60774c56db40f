//! What every [`Snapshotter`] must do, as cases that any implementation can run.
//!
//! ```no_run
//! # fn mount_somewhere(_: &[estiba_storage::oci_spec::runtime::Mount], _: &mut dyn FnMut(&std::path::Path)) {}
//! for case in estiba_storage::testsuite::cases() {
//!     let root = tempfile::tempdir().unwrap();
//!     let snapshotter = estiba_storage::Overlay::open(root.path()).unwrap();
//!     case.run(&snapshotter, &mount_somewhere);
//! }
//! ```
//!
//! A case panics where the snapshotter is wrong. Each wants an empty store. The function performs the mounts on a
//! folder (best in a mount namespace of its own), calls what it is given with the folder, and unmounts.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use oci_spec::runtime::Mount;

use crate::{Error, Info, Key, Kind, Name, SnapshotId, Snapshotter};

/// Performs mounts, calls the function with the folder where they are, and unmounts.
pub type WithMounts<'a> = &'a dyn Fn(&[Mount], &mut dyn FnMut(&Path));

/// One thing that a snapshotter must do.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, in lower case with `_`.
    pub name: &'static str,
    body: fn(&Suite<'_>),
}

impl Case {
    /// Runs the case on a snapshotter with an empty store.
    pub fn run(&self, snapshotter: &dyn Snapshotter, with_mounts: WithMounts<'_>) {
        (self.body)(&Suite { snapshotter, with_mounts });
    }
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case { name: stringify!($name), body: $name }),*] };
    }
    cases![
        layers_build_on_each_other,
        stat_of_an_active_snapshot,
        stat_of_a_committed_snapshot,
        parents_of_parents,
        keys_are_taken_once,
        names_are_taken_once,
        what_is_missing_is_not_found,
        views_are_not_committed,
        parents_are_not_removed,
        removal_frees_the_key,
        walk_sees_all_and_can_stop,
        walk_may_call_stat,
        mounts_are_those_of_prepare,
        views_are_read_only,
        a_look_needs_no_snapshot,
        an_active_snapshot_does_not_change_its_parent,
        files_are_updated,
        files_are_deleted,
        folders_are_deleted_and_made_anew,
        files_are_moved_from_below,
        folders_are_renamed,
        owners_and_modes_are_kept,
        the_root_keeps_its_mode_and_owner,
        links_and_times_are_kept,
        usage_grows_with_data,
        many_layers,
        many_at_once,
    ]
}

struct Suite<'a> {
    snapshotter: &'a dyn Snapshotter,
    with_mounts: WithMounts<'a>,
}

fn key(text: &str) -> Key {
    text.parse().expect("a key")
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

impl Suite<'_> {
    fn on(&self, mounts: &[Mount], mut work: impl FnMut(&Path)) {
        assert!(!mounts.is_empty(), "a snapshot has no mounts");
        (self.with_mounts)(mounts, &mut work);
    }

    fn layer(&self, to: &str, parent: Option<&str>, work: impl FnMut(&Path)) {
        let temporary = key(&format!("{}-layer", to.replace(':', "-")));
        let parent = parent.map(name);
        let mounts = self.snapshotter.prepare(&temporary, parent.as_ref()).expect("prepare");
        self.on(&mounts, work);
        self.snapshotter.commit(&name(to), &temporary).expect("commit");
    }

    fn look(&self, parent: &str, work: impl FnMut(&Path)) {
        let temporary = key(&format!("{}-view", parent.replace(':', "-")));
        let mounts = self.snapshotter.view(&temporary, Some(&name(parent))).expect("view");
        self.on(&mounts, work);
        self.snapshotter.remove(&temporary.into()).expect("remove the view");
    }

    fn stat(&self, id: impl Into<SnapshotId>) -> Info {
        self.snapshotter.stat(&id.into()).expect("stat")
    }

    fn all(&self) -> BTreeMap<SnapshotId, Info> {
        let mut all = BTreeMap::new();
        self.snapshotter
            .walk(&mut |info| {
                all.insert(info.id.clone(), info.clone());
                ControlFlow::Continue(())
            })
            .expect("walk");
        all
    }
}

fn write(root: &Path, file: &str, content: &str) {
    fs::write(root.join(file), content).expect("write");
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).expect("read")
}

fn list(root: &Path, folder: &str) -> Vec<String> {
    let names = fs::read_dir(root.join(folder)).expect("read folder");
    let mut names: Vec<_> = names.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn layers_build_on_each_other(suite: &Suite<'_>) {
    suite.layer("sha256:one", None, |root| {
        write(root, "foo", "foo");
        fs::create_dir_all(root.join("a/b/c")).expect("folders");
    });
    assert_eq!(suite.stat(name("sha256:one")).parent, None);
    let mounts = suite.snapshotter.prepare(&key("next"), Some(&name("sha256:one"))).expect("prepare");
    suite.on(&mounts, |root| {
        assert_eq!(read(root, "foo"), "foo");
        assert_eq!(list(root, "a/b"), ["c"]);
        write(root, "foo", "changed");
        write(root, "bar", "bar");
        fs::remove_dir_all(root.join("a/b")).expect("remove");
    });
    suite.snapshotter.commit(&name("sha256:two"), &key("next")).expect("commit");
    assert!(matches!(suite.snapshotter.stat(&key("next").into()), Err(Error::NotFound { .. })));
    suite.look("sha256:two", |root| {
        assert_eq!(read(root, "foo"), "changed");
        assert_eq!(read(root, "bar"), "bar");
        assert!(list(root, "a").is_empty());
    });
    suite.look("sha256:one", |root| assert_eq!(read(root, "foo"), "foo"));
    let error = suite.snapshotter.remove(&name("sha256:one").into()).expect_err("it has a child");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    suite.snapshotter.remove(&name("sha256:two").into()).expect("remove the child");
    suite.snapshotter.remove(&name("sha256:one").into()).expect("remove the parent");
    assert!(suite.all().is_empty());
}

fn stat_of_an_active_snapshot(suite: &Suite<'_>) {
    suite.snapshotter.prepare(&key("active"), None).expect("prepare");
    let info = suite.stat(key("active"));
    assert_eq!((info.id, info.kind, info.parent), (key("active").into(), Kind::Active, None));
    let age = info.created.elapsed().expect("a time in the past");
    assert!(age.as_secs() < 60, "{age:?}");
    suite.snapshotter.view(&key("view"), None).expect("view");
    assert_eq!(suite.stat(key("view")).kind, Kind::View);
}

fn stat_of_a_committed_snapshot(suite: &Suite<'_>) {
    suite.layer("base", None, |root| write(root, "foo", "foo"));
    let info = suite.stat(name("base"));
    assert_eq!((info.id, info.kind, info.parent), (name("base").into(), Kind::Committed, None));
    // Keys and names are two spaces.
    assert!(matches!(suite.snapshotter.stat(&key("base").into()), Err(Error::NotFound { .. })));
}

fn parents_of_parents(suite: &Suite<'_>) {
    suite.layer("a", None, |root| write(root, "foo", "1"));
    suite.layer("b", Some("a"), |root| write(root, "foo", "2"));
    suite.layer("c", Some("b"), |root| write(root, "bar", "3"));
    assert_eq!(suite.stat(name("c")).parent, Some(name("b")));
    assert_eq!(suite.stat(name("b")).parent, Some(name("a")));
    assert_eq!(suite.stat(name("a")).parent, None);
    suite.look("c", |root| assert_eq!((read(root, "foo"), read(root, "bar")), ("2".into(), "3".into())));
}

fn keys_are_taken_once(suite: &Suite<'_>) {
    suite.layer("base", None, |_| ());
    let base = name("base");
    let s = suite.snapshotter;
    s.prepare(&key("active"), Some(&base)).expect("prepare");
    s.view(&key("view"), Some(&base)).expect("view");
    for taken in ["active", "view"] {
        for parent in [None, Some(&base)] {
            assert!(matches!(s.prepare(&key(taken), parent), Err(Error::AlreadyExists { .. })));
            assert!(matches!(s.view(&key(taken), parent), Err(Error::AlreadyExists { .. })));
        }
    }
    assert_eq!(suite.stat(key("active")).kind, Kind::Active);
    assert_eq!(suite.stat(key("view")).kind, Kind::View);
}

fn names_are_taken_once(suite: &Suite<'_>) {
    suite.layer("base", None, |root| write(root, "foo", "first"));
    let mounts = suite.snapshotter.prepare(&key("again"), None).expect("prepare");
    suite.on(&mounts, |root| write(root, "foo", "second"));
    let error = suite.snapshotter.commit(&name("base"), &key("again")).expect_err("the name is taken");
    assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
    assert_eq!(suite.stat(key("again")).kind, Kind::Active);
    suite.look("base", |root| assert_eq!(read(root, "foo"), "first"));
    suite.snapshotter.commit(&name("other"), &key("again")).expect("commit under another name");
    suite.look("other", |root| assert_eq!(read(root, "foo"), "second"));
}

fn what_is_missing_is_not_found(suite: &Suite<'_>) {
    let s = suite.snapshotter;
    let missing = |result: crate::Result<()>| assert!(matches!(result, Err(Error::NotFound { .. })), "{result:?}");
    missing(s.stat(&key("none").into()).map(drop));
    missing(s.stat(&name("none").into()).map(drop));
    missing(s.usage(&key("none").into()).map(drop));
    missing(s.mounts(&key("none")).map(drop));
    missing(s.look(&name("none")).map(drop));
    missing(s.prepare(&key("new"), Some(&name("none"))).map(drop));
    missing(s.view(&key("new"), Some(&name("none"))).map(drop));
    missing(s.commit(&name("new"), &key("none")));
    missing(s.remove(&key("none").into()));
    missing(s.remove(&name("none").into()));
    // An active snapshot is no parent.
    s.prepare(&key("active"), None).expect("prepare");
    missing(s.prepare(&key("new"), Some(&name("active"))).map(drop));
    assert_eq!(suite.all().len(), 1);
}

fn views_are_not_committed(suite: &Suite<'_>) {
    suite.snapshotter.view(&key("view"), None).expect("view");
    let error = suite.snapshotter.commit(&name("new"), &key("view")).expect_err("a view");
    assert!(matches!(error, Error::NotActive { .. }), "{error}");
    assert_eq!(suite.all().len(), 1);
}

fn parents_are_not_removed(suite: &Suite<'_>) {
    suite.layer("a", None, |_| ());
    suite.layer("b", Some("a"), |_| ());
    suite.snapshotter.prepare(&key("active"), Some(&name("b"))).expect("prepare");
    suite.snapshotter.view(&key("view"), Some(&name("b"))).expect("view");
    let in_use = |parent: &str| {
        let result = suite.snapshotter.remove(&name(parent).into());
        assert!(matches!(result, Err(Error::InUse { .. })), "{result:?}");
    };
    in_use("a");
    in_use("b");
    suite.snapshotter.remove(&key("active").into()).expect("remove");
    in_use("b");
    suite.snapshotter.remove(&key("view").into()).expect("remove");
    suite.snapshotter.remove(&name("b").into()).expect("remove");
    suite.snapshotter.remove(&name("a").into()).expect("remove");
}

fn removal_frees_the_key(suite: &Suite<'_>) {
    let mounts = suite.snapshotter.prepare(&key("active"), None).expect("prepare");
    suite.on(&mounts, |root| {
        write(root, "foo", "foo");
        symlink("/etc", root.join("link")).expect("link");
    });
    suite.snapshotter.remove(&key("active").into()).expect("remove");
    assert!(suite.all().is_empty());
    let mounts = suite.snapshotter.prepare(&key("active"), None).expect("prepare again");
    suite.on(&mounts, |root| assert!(list(root, "").is_empty()));
    suite.snapshotter.commit(&name("base"), &key("active")).expect("commit");
    suite.snapshotter.prepare(&key("active"), Some(&name("base"))).expect("prepare once more");
}

fn walk_sees_all_and_can_stop(suite: &Suite<'_>) {
    suite.layer("a", None, |_| ());
    suite.layer("sha256:b", Some("a"), |_| ());
    suite.snapshotter.prepare(&key("active"), Some(&name("sha256:b"))).expect("prepare");
    suite.snapshotter.view(&key("view"), Some(&name("a"))).expect("view");
    let all = suite.all();
    let found: Vec<_> = all.values().map(|info| (info.id.to_string(), info.kind, info.parent.clone())).collect();
    let mut wanted = vec![
        ("active".to_owned(), Kind::Active, Some(name("sha256:b"))),
        ("view".to_owned(), Kind::View, Some(name("a"))),
        ("a".to_owned(), Kind::Committed, None),
        ("sha256:b".to_owned(), Kind::Committed, Some(name("a"))),
    ];
    wanted.sort_by_key(|(id, kind, _)| (*kind == Kind::Committed, id.clone()));
    assert_eq!(found, wanted);
    let mut calls = 0;
    let mut stop = |_: &Info| {
        calls += 1;
        ControlFlow::Break(())
    };
    suite.snapshotter.walk(&mut stop).expect("walk");
    assert_eq!(calls, 1);
}

fn walk_may_call_stat(suite: &Suite<'_>) {
    suite.layer("a", None, |_| ());
    suite.snapshotter.prepare(&key("active"), Some(&name("a"))).expect("prepare");
    suite
        .snapshotter
        .walk(&mut |info| {
            assert_eq!(suite.stat(info.id.clone()), *info);
            ControlFlow::Continue(())
        })
        .expect("walk");
}

fn mounts_are_those_of_prepare(suite: &Suite<'_>) {
    suite.layer("a", None, |_| ());
    suite.layer("b", Some("a"), |_| ());
    for (at, parent) in [None, Some("a"), Some("b")].into_iter().enumerate() {
        let parent = parent.map(name);
        let (active, view) = (key(&format!("active{at}")), key(&format!("view{at}")));
        let prepared = suite.snapshotter.prepare(&active, parent.as_ref()).expect("prepare");
        assert_eq!(suite.snapshotter.mounts(&active).expect("mounts"), prepared);
        let viewed = suite.snapshotter.view(&view, parent.as_ref()).expect("view");
        assert_eq!(suite.snapshotter.mounts(&view).expect("mounts"), viewed);
        assert!(prepared.iter().chain(&viewed).all(|mount| mount.destination() == Path::new("/")));
    }
}

fn views_are_read_only(suite: &Suite<'_>) {
    let refused = |root: &Path| {
        let error = fs::write(root.join("new"), "x").expect_err("read-only");
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    };
    suite.layer("a", None, |root| write(root, "foo", "foo"));
    suite.layer("b", Some("a"), |root| write(root, "bar", "bar"));
    suite.look("a", refused);
    suite.look("b", refused);
    let mounts = suite.snapshotter.view(&key("empty"), None).expect("view");
    suite.on(&mounts, refused);
}

fn a_look_needs_no_snapshot(suite: &Suite<'_>) {
    suite.layer("a", None, |root| write(root, "foo", "foo"));
    suite.layer("b", Some("a"), |root| {
        write(root, "bar", "bar");
        fs::remove_file(root.join("foo")).expect("removed");
    });
    let before = suite.all();
    for (of, files) in [("a", ["foo"]), ("b", ["bar"])] {
        let mounts = suite.snapshotter.look(&name(of)).expect("a look");
        suite.on(&mounts, |root| {
            assert_eq!(list(root, ""), files);
            let error = fs::write(root.join("new"), "x").expect_err("read-only");
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
        });
    }
    assert_eq!(suite.all(), before);
}

fn an_active_snapshot_does_not_change_its_parent(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        write(root, "foo", "foo");
        fs::create_dir(root.join("dir")).expect("folder");
    });
    for at in 0..2 {
        let mounts = suite.snapshotter.prepare(&key(&format!("c{at}")), Some(&name("a"))).expect("prepare");
        suite.on(&mounts, |root| {
            assert_eq!(read(root, "foo"), "foo");
            let file = fs::OpenOptions::new().append(true).open(root.join("foo")).expect("open");
            std::io::Write::write_all(&mut &file, b"more").expect("append");
            fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o700)).expect("mode");
            write(root, "dir/new", "new");
        });
    }
    suite.look("a", |root| {
        assert_eq!(read(root, "foo"), "foo");
        assert!(list(root, "dir").is_empty());
        assert_eq!(fs::metadata(root.join("dir")).expect("stat").mode() & 0o777, 0o755);
    });
}

fn files_are_updated(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        fs::create_dir(root.join("etc")).expect("folder");
        write(root, "etc/profile", "one");
        write(root, "etc/hosts", "hosts");
    });
    suite.layer("b", Some("a"), |root| write(root, "etc/profile", "two"));
    suite.layer("c", Some("b"), |root| write(root, "etc/profile", "three, and longer"));
    suite.look("c", |root| {
        assert_eq!(read(root, "etc/profile"), "three, and longer");
        assert_eq!(read(root, "etc/hosts"), "hosts");
        assert_eq!(list(root, "etc"), ["hosts", "profile"]);
    });
}

fn files_are_deleted(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        write(root, "foo", "foo");
        write(root, "bar", "bar");
    });
    suite.layer("b", Some("a"), |root| fs::remove_file(root.join("bar")).expect("remove"));
    suite.layer("c", Some("b"), |_| ());
    suite.look("c", |root| assert_eq!(list(root, ""), ["foo"]));
    suite.layer("d", Some("c"), |root| write(root, "bar", "again"));
    suite.look("d", |root| assert_eq!(read(root, "bar"), "again"));
}

fn folders_are_deleted_and_made_anew(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        fs::create_dir_all(root.join("etc/sub")).expect("folders");
        write(root, "etc/old", "old");
    });
    suite.layer("b", Some("a"), |root| {
        fs::remove_dir_all(root.join("etc")).expect("remove");
        fs::create_dir(root.join("etc")).expect("folder");
        write(root, "etc/new", "new");
    });
    suite.look("b", |root| assert_eq!(list(root, "etc"), ["new"]));
    suite.layer("c", Some("b"), |root| write(root, "etc/third", "3"));
    suite.look("c", |root| assert_eq!(list(root, "etc"), ["new", "third"]));
}

fn files_are_moved_from_below(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        fs::create_dir_all(root.join("dir1")).expect("folders");
        fs::create_dir_all(root.join("dir2")).expect("folders");
        write(root, "dir1/f1", "f1");
        write(root, "dir2/f2", "f2");
    });
    suite.layer("b", Some("a"), |root| {
        fs::rename(root.join("dir1/f1"), root.join("dir2/f1")).expect("move");
    });
    suite.look("b", |root| {
        assert!(list(root, "dir1").is_empty());
        assert_eq!(list(root, "dir2"), ["f1", "f2"]);
        assert_eq!(read(root, "dir2/f1"), "f1");
    });
}

fn folders_are_renamed(suite: &Suite<'_>) {
    suite.layer("a", None, |root| write(root, "foo", "foo"));
    suite.layer("b", Some("a"), |root| {
        fs::create_dir_all(root.join("new/sub")).expect("folders");
        write(root, "new/sub/file", "x");
        fs::rename(root.join("new"), root.join("renamed")).expect("rename a folder of this layer");
        fs::rename(root.join("foo"), root.join("moved")).expect("rename a file of the layer below");
    });
    suite.look("b", |root| {
        assert_eq!(list(root, ""), ["moved", "renamed"]);
        assert_eq!(read(root, "renamed/sub/file"), "x");
    });
}

fn owners_and_modes_are_kept(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        fs::create_dir(root.join("opt")).expect("folder");
        write(root, "opt/a", "a");
        write(root, "opt/b", "b");
        fs::set_permissions(root.join("opt/b"), fs::Permissions::from_mode(0o4711)).expect("mode");
    });
    suite.layer("b", Some("a"), |root| {
        std::os::unix::fs::chown(root.join("opt/a"), Some(1), Some(2)).expect("chown");
        std::os::unix::fs::chown(root.join("opt"), Some(3), Some(4)).expect("chown");
        fs::set_permissions(root.join("opt"), fs::Permissions::from_mode(0o1770)).expect("mode");
    });
    suite.layer("c", Some("b"), |root| write(root, "opt/c", "c"));
    suite.look("c", |root| {
        let of = |path: &str| {
            let stat = fs::metadata(root.join(path)).expect("stat");
            (stat.uid(), stat.gid(), stat.mode() & 0o7777)
        };
        assert_eq!(of("opt"), (3, 4, 0o1770));
        assert_eq!(of("opt/a"), (1, 2, 0o644));
        assert_eq!(of("opt/b").2, 0o4711);
    });
}

fn the_root_keeps_its_mode_and_owner(suite: &Suite<'_>) {
    let mode = |root: &Path| fs::metadata(root).expect("stat").mode() & 0o7777;
    let mounts = suite.snapshotter.prepare(&key("first"), None).expect("prepare");
    suite.on(&mounts, |root| assert_eq!(mode(root), 0o755));
    suite.layer("a", None, |root| {
        fs::set_permissions(root, fs::Permissions::from_mode(0o711)).expect("mode");
        std::os::unix::fs::chown(root, Some(7), Some(8)).expect("chown");
    });
    suite.layer("b", Some("a"), |root| {
        assert_eq!(mode(root), 0o711);
        write(root, "foo", "foo");
    });
    for layer in ["a", "b"] {
        suite.look(layer, |root| {
            assert_eq!(mode(root), 0o711);
            let stat = fs::metadata(root).expect("stat");
            assert_eq!((stat.uid(), stat.gid()), (7, 8));
        });
    }
}

fn links_and_times_are_kept(suite: &Suite<'_>) {
    suite.layer("a", None, |root| {
        write(root, "file", "x");
        fs::hard_link(root.join("file"), root.join("second")).expect("link");
        symlink("file", root.join("soft")).expect("link");
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_000_000);
        fs::File::open(root.join("file")).and_then(|file| file.set_modified(time)).expect("time");
    });
    let mounts = suite.snapshotter.prepare(&key("active"), Some(&name("a"))).expect("prepare");
    suite.on(&mounts, |root| {
        let (file, second) = (fs::metadata(root.join("file")), fs::metadata(root.join("second")));
        let (file, second) = (file.expect("stat"), second.expect("stat"));
        assert_eq!((file.ino(), file.nlink()), (second.ino(), 2));
        assert_eq!((file.mtime(), file.mtime_nsec()), (1_000_000_000, 123_000_000));
        assert_eq!(fs::read_link(root.join("soft")).expect("a link"), Path::new("file"));
    });
}

fn usage_grows_with_data(suite: &Suite<'_>) {
    let mounts = suite.snapshotter.prepare(&key("active"), None).expect("prepare");
    let before = suite.snapshotter.usage(&key("active").into()).expect("usage");
    suite.on(&mounts, |root| {
        fs::write(root.join("data"), vec![7; 1 << 20]).expect("write");
        fs::File::open(root.join("data")).and_then(|file| file.sync_all()).expect("sync");
    });
    let after = suite.snapshotter.usage(&key("active").into()).expect("usage");
    assert_eq!(after.inodes, before.inodes + 1);
    assert!(after.bytes >= before.bytes + (1 << 20), "{before:?} {after:?}");
    suite.snapshotter.commit(&name("base"), &key("active")).expect("commit");
    assert_eq!(suite.snapshotter.usage(&name("base").into()).expect("usage"), after);
    suite.snapshotter.view(&key("view"), Some(&name("base"))).expect("view");
    assert_eq!(suite.snapshotter.usage(&key("view").into()).expect("usage").bytes, 0);
}

fn many_layers(suite: &Suite<'_>) {
    const LAYERS: usize = 130;
    let mut parent: Option<String> = None;
    for at in 0..LAYERS {
        let layer = format!("sha256:{at:064x}");
        suite.layer(&layer, parent.as_deref(), |root| {
            write(root, "bottom", &at.to_string());
            write(root, &format!("file{at}"), "x");
        });
        parent = Some(layer);
    }
    suite.look(&parent.expect("layers"), |root| {
        assert_eq!(read(root, "bottom"), (LAYERS - 1).to_string());
        assert_eq!(list(root, "").len(), LAYERS + 1);
    });
}

fn many_at_once(suite: &Suite<'_>) {
    suite.layer("base", None, |root| write(root, "foo", "foo"));
    let s = suite.snapshotter;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                scope.spawn(move || {
                    let mut won = 0;
                    for round in 0..20 {
                        let own = key(&format!("own-{thread}-{round}"));
                        s.prepare(&own, Some(&name("base"))).expect("prepare");
                        // One of all wins the shared name, the others keep their key.
                        match s.commit(&name(&format!("shared-{round}")), &own) {
                            Ok(()) => won += 1,
                            Err(Error::AlreadyExists { .. }) => s.remove(&own.into()).expect("remove"),
                            Err(error) => panic!("{error}"),
                        }
                    }
                    won
                })
            })
            .collect();
        let won: usize = threads.into_iter().map(|thread| thread.join().expect("a thread")).sum();
        assert_eq!(won, 20);
    });
    assert_eq!(suite.all().len(), 21);
    // Removal and a new child race: one of them loses, and nothing stands on nothing.
    for round in 0..20 {
        let parent = name(&format!("shared-{round}"));
        let child = key(&format!("child-{round}"));
        let (removed, prepared) = std::thread::scope(|scope| {
            let remove = scope.spawn(|| s.remove(&parent.clone().into()));
            let prepare = scope.spawn(|| s.prepare(&child, Some(&parent)));
            (remove.join().expect("a thread"), prepare.join().expect("a thread"))
        });
        match (&removed, &prepared) {
            (Ok(()), Err(Error::NotFound { .. })) | (Err(Error::InUse { .. }), Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}
