//! Snapshotters: the conformance suite, and what is particular to ours.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use estiba_storage::{
    Durability, Error, Key, LateParent as _, Name, Native, Overlay, OverlayOptions, Snapshotter, Writes, testsuite,
};
use libtest_mimic::Trial;

use crate::{mounts, plain, privileged};

fn key(text: &str) -> Key {
    text.parse().expect("a key")
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn count(folder: &Path) -> usize {
    fs::read_dir(folder).expect("read folder").count()
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in testsuite::cases() {
        trials.push(privileged(&format!("overlay_{}", case.name), &[], move || {
            let root = tempfile::tempdir().expect("a folder");
            let snapshotter = Overlay::open(root.path().join("snapshots")).expect("open");
            mounts::private(|| case.run(&snapshotter, &mounts::with));
            assert_eq!(count(&root.path().join("snapshots/tmp")), 0);
        }));
        trials.push(privileged(&format!("native_{}", case.name), &[], move || {
            let root = tempfile::tempdir().expect("a folder");
            let store = root.path().join("snapshots");
            let snapshotter = Native::with_durability(store, Durability::None).expect("open");
            mounts::private(|| case.run(&snapshotter, &mounts::with));
            assert_eq!(count(&root.path().join("snapshots/tmp")), 0);
        }));
    }
    trials.push(plain("stores_are_not_mixed", stores_are_not_mixed));
    trials.push(plain("overlay_refuses_paths_that_options_cannot_carry", unmountable_paths));
    trials.push(plain("overlay_mounts_as_options_say", overlay_mounts));
    trials.push(plain("removal_follows_no_link", removal_follows_no_link));
    trials.push(privileged("removal_enters_no_mount", &[], removal_enters_no_mount));
    trials.push(plain("repair_removes_what_was_left", repair));
    trials.push(plain("a_parent_that_comes_late", late_parent));
    trials.push(plain("what_was_not_synced_is_gone_after_a_reboot", reboot));
    trials.push(plain("a_record_cut_short_is_an_error_and_repaired", torn_record));
    trials
}

fn stores_are_not_mixed() {
    let root = tempfile::tempdir().expect("a folder");
    Overlay::open(root.path()).expect("open");
    Overlay::open(root.path()).expect("open again");
    let error = Native::open(root.path()).expect_err("another's store");
    assert!(matches!(error, Error::WrongFormat { .. }), "{error}");
    fs::write(root.path().join("format"), "overlay 2\n").expect("write");
    let error = Overlay::open(root.path()).expect_err("a newer store");
    assert!(matches!(error, Error::WrongFormat { .. }), "{error}");
}

fn unmountable_paths() {
    let root = tempfile::tempdir().expect("a folder");
    for bad in ["a:b", "a,b", "a\\b"] {
        let error = Overlay::open(root.path().join(bad)).expect_err("a path that overlay cannot take");
        assert!(matches!(error, Error::UnmountablePath { .. }), "{error}");
        Native::open(root.path().join(format!("native-{bad}"))).expect("no matter for bind mounts");
    }
}

fn overlay_mounts() {
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { writes: Writes::Volatile, ..OverlayOptions::default() };
    let overlay = Overlay::with_options(root.path(), options).expect("open");
    let shown = |key: &str| {
        let mounts = overlay.mounts(&self::key(key)).expect("mounts");
        assert_eq!(mounts.len(), 1);
        let options = mounts[0].options().clone().expect("options");
        (mounts[0].typ().clone().expect("a type"), mounts[0].source().clone().expect("a source"), options)
    };
    overlay.prepare(&key("base"), None).expect("prepare");
    assert_eq!(shown("base"), ("bind".into(), root.path().join("active/base/fs"), vec!["bind".into(), "rw".into()]));
    overlay.commit(&name("sha256:aa"), &key("base")).expect("commit");
    overlay.view(&key("one"), Some(&name("sha256:aa"))).expect("view");
    let committed = root.path().join("committed/sha256+aa/fs");
    assert_eq!(shown("one"), ("bind".into(), committed.clone(), vec!["bind".into(), "ro".into()]));
    overlay.prepare(&key("second"), Some(&name("sha256:aa"))).expect("prepare");
    overlay.commit(&name("sha256:bb"), &key("second")).expect("commit");
    overlay.prepare(&key("active"), Some(&name("sha256:bb"))).expect("prepare");
    overlay.view(&key("view"), Some(&name("sha256:bb"))).expect("view");
    let (kind, _, active) = shown("active");
    assert_eq!(kind, "overlay");
    assert_eq!(active[0], "index=off");
    assert!(active.contains(&"volatile".into()));
    assert_eq!(active.contains(&"userxattr".into()), !nix::unistd::geteuid().is_root());
    let find = |key: &str| active.iter().find_map(|option| option.strip_prefix(key)).map(str::to_owned);
    assert_eq!(find("upperdir="), Some(root.path().join("active/active/fs").display().to_string()));
    assert_eq!(find("workdir="), Some(root.path().join("active/active/work").display().to_string()));
    let lowers = find("lowerdir=").expect("lower folders");
    let lowers: Vec<_> = lowers.split(':').map(Path::new).collect();
    assert_eq!(lowers.len(), 2);
    assert_eq!(fs::canonicalize(lowers[1]).expect("a link"), committed);
    assert!(lowers.iter().all(|lower| lower.file_name().is_some_and(|name| name.len() == 8)));
    let (_, _, view) = shown("view");
    assert!(view.contains(&"ro".into()) && !view.contains(&"volatile".into()), "{view:?}");
    assert!(!view.iter().any(|option| option.starts_with("upperdir")), "{view:?}");
}

fn removal_follows_no_link() {
    let root = tempfile::tempdir().expect("a folder");
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("kept"), "x").expect("write");
    let overlay = Overlay::open(root.path()).expect("open");
    overlay.prepare(&key("a"), None).expect("prepare");
    symlink(outside.path(), root.path().join("active/a/fs/link")).expect("link");
    // Even the root itself may have been replaced.
    fs::rename(root.path().join("active/a/fs"), root.path().join("active/a/was")).expect("rename");
    symlink(outside.path(), root.path().join("active/a/fs")).expect("link");
    overlay.remove(&key("a").into()).expect("remove");
    assert!(outside.path().join("kept").exists());
    assert_eq!(count(&root.path().join("active")) + count(&root.path().join("tmp")), 0);
}

fn removal_enters_no_mount() {
    mounts::private(|| {
        let root = tempfile::tempdir().expect("a folder");
        let volume = tempfile::tempdir().expect("a folder");
        fs::write(volume.path().join("kept"), "x").expect("write");
        let overlay = Overlay::open(root.path()).expect("open");
        overlay.prepare(&key("a"), None).expect("prepare");
        let place = root.path().join("active/a/fs/volume");
        fs::create_dir(&place).expect("folder");
        let none: Option<&str> = None;
        nix::mount::mount(Some(volume.path()), &place, none, nix::mount::MsFlags::MS_BIND, none).expect("bind");
        let error = overlay.remove(&key("a").into()).expect_err("a mount is inside");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(volume.path().join("kept").exists());
        let moved = fs::read_dir(root.path().join("tmp")).expect("read").next().expect("one").expect("entry").path();
        nix::mount::umount(&moved.join("fs/volume")).expect("unmount");
        assert_eq!(overlay.repair().expect("repair").leftovers, 1);
        assert!(volume.path().join("kept").exists());
    });
}

fn repair() {
    let root = tempfile::tempdir().expect("a folder");
    let overlay = Overlay::open(root.path()).expect("open");
    overlay.prepare(&key("base"), None).expect("prepare");
    overlay.commit(&name("base"), &key("base")).expect("commit");
    overlay.prepare(&key("active"), Some(&name("base"))).expect("prepare");
    assert_eq!(overlay.repair().expect("repair"), estiba_storage::Repaired::default());
    // Killed while it made or removed a snapshot, and while it committed one.
    fs::create_dir_all(root.path().join("tmp/abc/fs/deep")).expect("folders");
    symlink("../committed/none/fs", root.path().join("l/dangling")).expect("link");
    let good = fs::read_dir(root.path().join("l")).expect("read").map(|e| e.expect("entry").path());
    let good = good.filter(|path| !path.ends_with("dangling")).collect::<Vec<_>>();
    fs::remove_file(&good[0]).expect("remove");
    let repaired = overlay.repair().expect("repair");
    assert_eq!((repaired.leftovers, repaired.torn, repaired.links), (1, 0, 2));
    assert_eq!(count(&root.path().join("tmp")), 0);
    assert!(good[0].is_dir());
    assert!(root.path().join("l/dangling").symlink_metadata().is_err());
    // An ordinary removal sweeps too.
    fs::create_dir_all(root.path().join("tmp/def/fs")).expect("folders");
    overlay.remove(&key("active").into()).expect("remove");
    assert_eq!(count(&root.path().join("tmp")), 0);
    overlay.remove(&name("base").into()).expect("remove");
    assert_eq!(count(&root.path().join("l")), 0);
}

fn late_parent() {
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    let overlay = Overlay::with_options(root.path(), options).expect("open");
    let mounts = overlay.prepare_late(&key("top")).expect("prepare");
    let said = |mounts: &[estiba_storage::oci_spec::runtime::Mount], what: &str| {
        mounts[0].options().iter().flatten().any(|option| option.starts_with(what))
    };
    assert!(said(&mounts, "upperdir=") && !said(&mounts, "lowerdir="));
    assert!(matches!(overlay.prepare_late(&key("top")), Err(Error::AlreadyExists { .. })));
    assert!(matches!(overlay.commit(&name("top"), &key("top")), Err(Error::ParentUnknown { .. })));
    assert!(matches!(overlay.set_parent(&key("top"), &name("base")), Err(Error::NotFound { .. })));
    assert!(matches!(overlay.set_parent(&key("none"), &name("base")), Err(Error::NotFound { .. })));
    overlay.prepare(&key("base"), None).expect("prepare");
    assert!(matches!(overlay.set_parent(&key("base"), &name("base")), Err(Error::HasParent { .. })));
    overlay.commit(&name("base"), &key("base")).expect("commit");
    let mounts = overlay.set_parent(&key("top"), &name("base")).expect("set");
    assert!(said(&mounts, "upperdir=") && said(&mounts, "lowerdir="));
    assert_eq!(overlay.mounts(&key("top")).expect("mounts"), mounts);
    assert!(matches!(overlay.set_parent(&key("top"), &name("base")), Err(Error::HasParent { .. })));
    assert!(matches!(overlay.remove(&name("base").into()), Err(Error::InUse { .. })));
    overlay.commit(&name("top"), &key("top")).expect("commit");
    assert_eq!(overlay.stat(&name("top").into()).expect("stat").parent, Some(name("base")));
    // One that never gets its parent can be removed.
    overlay.prepare_late(&key("lonely")).expect("prepare");
    overlay.remove(&key("lonely").into()).expect("remove");
    // A copying snapshotter cannot do it.
    let native = Native::open(root.path().join("native")).expect("open");
    assert!(native.late_parent().is_none());
}

/// Lets the store's snapshots have been committed before the machine was started.
fn start_again(root: &Path) {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    for entry in fs::read_dir(root.join("committed")).expect("read folder") {
        let record = entry.expect("entry").path().join("record.json");
        let text = fs::read_to_string(&record).expect("a record");
        fs::write(record, text.replace(boot.trim(), "another boot")).expect("write");
    }
}

fn reboot() {
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::Boot, ..OverlayOptions::default() };
    let overlay = Overlay::with_options(root.path(), options).expect("open");
    let layer = |to: &str, parent: Option<&str>| {
        let parent = parent.map(name);
        overlay.prepare(&key("layer"), parent.as_ref()).expect("prepare");
        overlay.commit(&name(to), &key("layer")).expect("commit");
    };
    layer("kept-1", None);
    layer("kept-2", Some("kept-1"));
    layer("lost-1", Some("kept-1"));
    layer("lost-2", Some("lost-1"));
    let all = |there: &[&str]| {
        let mut names = Vec::new();
        overlay
            .walk(&mut |info| {
                names.push(info.id.to_string());
                std::ops::ControlFlow::Continue(())
            })
            .expect("walk");
        names.sort();
        assert_eq!(names, there);
    };
    all(&["kept-1", "kept-2", "lost-1", "lost-2"]);
    overlay.sync(&name("kept-2")).expect("sync");
    overlay.sync(&name("kept-2")).expect("again");
    assert!(matches!(overlay.sync(&name("none")), Err(Error::NotFound { .. })));
    start_again(root.path());
    all(&["kept-1", "kept-2"]);
    assert!(matches!(overlay.stat(&name("lost-2").into()), Err(Error::NotFound { .. })));
    assert!(matches!(overlay.prepare(&key("a"), Some(&name("lost-2"))), Err(Error::NotFound { .. })));
    assert!(matches!(overlay.sync(&name("lost-2")), Err(Error::NotFound { .. })));
    // What is unpacked again takes the place of what was lost; a repair removes the rest.
    layer("lost-1", Some("kept-1"));
    all(&["kept-1", "kept-2", "lost-1"]);
    assert_eq!(count(&root.path().join("committed")), 4);
    let repaired = overlay.repair().expect("repair");
    assert_eq!((repaired.torn, count(&root.path().join("committed")), count(&root.path().join("l"))), (1, 3, 3));
    // A store that syncs as it commits has nothing to lose.
    let strict = Overlay::open(root.path().join("strict")).expect("open");
    strict.prepare(&key("layer"), None).expect("prepare");
    strict.commit(&name("layer"), &key("layer")).expect("commit");
    start_again(&root.path().join("strict"));
    strict.stat(&name("layer").into()).expect("is there");
}

fn torn_record() {
    for (content, present) in [("", true), ("{\"made\":\"act", true), ("", false)] {
        let root = tempfile::tempdir().expect("a folder");
        let native = Native::open(root.path()).expect("open");
        native.prepare(&key("torn"), None).expect("prepare");
        native.prepare(&key("good"), None).expect("prepare");
        let record = root.path().join("active/torn/record.json");
        fs::write(&record, content).expect("write");
        if !present {
            fs::remove_file(&record).expect("remove");
        }
        let error = native.stat(&key("torn").into()).expect_err("no record");
        assert!(matches!(error, Error::DamagedRecord { .. }), "{error}");
        assert!(error.to_string().contains("torn/record.json"), "{error}");
        assert_eq!(native.repair().expect("repair").torn, 1);
        assert!(matches!(native.stat(&key("torn").into()), Err(Error::NotFound { .. })));
        native.stat(&key("good").into()).expect("the other");
    }
}
