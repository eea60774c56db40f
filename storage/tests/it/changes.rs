//! Layers from snapshots, and lists of what was changed.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use estiba_storage::layer::{
    ChangeKind, Compression, Diffed, Limits, MountPoints, Target, apply, changes, changes_without, diff, diff_without,
};
use estiba_storage::{Durability, Error, Key, Name, Native, Overlay, OverlayOptions, Snapshotter};
use libtest_mimic::Trial;

use crate::archive::Tar;
use crate::differential::{TREE, bash};
use crate::files::{exchange, meanwhile};
use crate::random::{Dice, without_links};
use crate::tree::{self, Times};
use crate::{mounts, plain, privileged};

const TOOLS: &[&str] = &["tar", "bash", "setfattr", "umoci"];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        privileged("a_layer_of_changes_makes_the_same_tree", TOOLS, round_trip),
        privileged("random_changes_make_the_same_tree", &[], || {
            let rounds = std::env::var("ESTIBA_RANDOM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
            for seed in 1..=rounds {
                random(seed);
            }
        }),
        privileged("changes_are_listed_as_docker_does", &["bash"], listed),
        privileged("references_of_an_upper_folder_are_refused", &["setfattr", "bash"], references),
        privileged("a_layer_of_a_container_that_runs", &[], running),
        plain("what_no_layer_holds_is_left_out", left_out),
        plain("what_was_made_to_mount_on_is_no_change", mount_points),
    ];
    trials.push(plain("no_changes_make_the_empty_layer", || {
        each(&mut |snapshotter| {
            base(snapshotter, &Tar::new().dir("a", 0o755).file("a/f", b"x").finish());
            snapshotter.prepare(&key("c"), Some(&name("base"))).expect("prepare");
            let (bytes, done) = made(snapshotter);
            assert_eq!(bytes, [0; 1024]);
            assert_eq!(done.diff_id(), "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef");
            assert_eq!(changes(snapshotter, &key("c"), &Limits::default()).expect("listed"), []);
            let none = changes(snapshotter, &key("none"), &Limits::default());
            assert!(matches!(none, Err(Error::NotFound { .. })), "{none:?}");
        });
    }));
    trials
}

fn key(key: &str) -> Key {
    key.parse().expect("a key")
}

fn name(name: &str) -> Name {
    name.parse().expect("a name")
}

/// Runs with a store of each kind.
fn each(run: &mut dyn FnMut(&dyn Snapshotter)) {
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    run(&Overlay::with_options(root.path().join("overlay"), options).expect("open"));
    run(&Native::with_durability(root.path().join("native"), Durability::None).expect("open"));
}

fn put(snapshotter: &dyn Snapshotter, layer: &[u8], parent: Option<&Name>, as_name: &str) {
    let mounts = snapshotter.prepare(&key("unpack"), parent).expect("prepare");
    let target = Target::from_mounts(&mounts).expect("a target");
    apply(Cursor::new(layer), Compression::None, &target, &Limits::default()).expect("applied");
    snapshotter.commit(&name(as_name), &key("unpack")).expect("commit");
}

fn base(snapshotter: &dyn Snapshotter, layer: &[u8]) {
    put(snapshotter, layer, None, "base");
}

/// The layer of the snapshot `c`.
fn made(snapshotter: &dyn Snapshotter) -> (Vec<u8>, Diffed) {
    let mut bytes = Vec::new();
    let done = diff(snapshotter, &key("c"), &mut bytes, &Limits::default()).expect("a layer");
    assert_eq!(done.bytes, bytes.len() as u64);
    (bytes, done)
}

/// What a snapshot looks like when it is mounted.
fn seen(snapshotter: &dyn Snapshotter, of: &Key) -> std::collections::BTreeMap<String, String> {
    let mut list = None;
    let mounts = snapshotter.mounts(of).expect("mounts");
    mounts::with(&mounts, &mut |place| list = Some(tree::list(place, Times::All)));
    list.expect("a list")
}

fn tar_of(script: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("t")).expect("folder");
    bash(&folder.path().join("t"), script);
    let all = "tar --format=posix --xattrs --xattrs-include='*' -cf ../t.tar .";
    bash(&folder.path().join("t"), all);
    fs::read(folder.path().join("t.tar")).expect("an archive")
}

const CHANGES: &str = r"
set -e
rm usr/bin/dash; rm -r etc/empty; echo more >> usr/share/data; chmod 4711 usr/bin/sh
rm -r 'with space'; mkdir 'with space'; echo new > 'with space/new'; mkdir -p 'with space/sub/sub'
rm -r usr/share/doc; echo file > usr/share/doc
rm etc/void; mkdir etc/void; echo in > etc/void/in
ln usr/bin/sh usr/bin/another; ln -s nowhere dangling; ln dev-null dev-null-2; mknod dev-new b 7 3; mkfifo -m 612 fifo-new
chown 77:88 huge-owner; chown -h 3:4 bin; rm sparse; truncate -s 3M sparse-2
echo cap > capable; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 capable
setfattr -x security.capability usr/share/data || true
setfattr -n user.note -v other etc; setfattr -n trusted.mine -v yes 'with space'
long=$(printf 'l0ng%.0s' $(seq 45)); mkdir -p $long/$long; echo deep > $long/$long/$long; ln -s $long/$long/$long $long/link
mv $'new\nline' moved; mkdir empty-new; touch -d '2003-04-05 06:07:08.9' usr/share moved
rmdir usr/share/none 2>/dev/null || true; touch -d '1955-01-01 00:00:00.5' . ; chmod 751 .
";

/// With everything that a tree can have, by both snapshotters, and by umoci.
fn round_trip() {
    let layer = tar_of(TREE);
    mounts::private(|| {
        each(&mut |snapshotter| {
            base(snapshotter, &layer);
            put(
                snapshotter,
                &Tar::new().dir("usr/share/doc/more", 0o700).file(".wh.negative-time", b"").finish(),
                Some(&name("base")),
                "two",
            );
            let mounts = snapshotter.prepare(&key("c"), Some(&name("two"))).expect("prepare");
            mounts::with(&mounts, &mut |place| bash(place, CHANGES));
            let (bytes, done) = made(snapshotter);
            assert_eq!((done.skipped, made(snapshotter)), (0, (bytes.clone(), done.clone())), "the same bytes");
            put(snapshotter, &bytes, Some(&name("two")), "again");
            snapshotter.view(&key("again"), Some(&name("again"))).expect("view");
            let (expected, again) = (seen(snapshotter, &key("c")), seen(snapshotter, &key("again")));
            assert!(expected.contains_key("usr/bin/another") && !expected.contains_key("usr/bin/dash"));
            tree::assert_same(&expected, &again, &format!("{snapshotter:?}"));
            by_umoci(&layer, &bytes, &expected);
            // From nothing, without whiteouts.
            snapshotter.remove(&key("c").into()).expect("remove");
            let mounts = snapshotter.prepare(&key("c"), None).expect("prepare");
            mounts::with(&mounts, &mut |place| bash(place, TREE));
            let (bytes, _) = made(snapshotter);
            put(snapshotter, &bytes, None, "whole");
            snapshotter.view(&key("whole"), Some(&name("whole"))).expect("view");
            tree::assert_same(&seen(snapshotter, &key("c")), &seen(snapshotter, &key("whole")), "from nothing");
        });
    });
}

fn by_umoci(one: &[u8], three: &[u8], expected: &std::collections::BTreeMap<String, String>) {
    let work = tempfile::tempdir().expect("a folder");
    let two = Tar::new().dir("usr/share/doc/more", 0o700).file(".wh.negative-time", b"").finish();
    for (file, layer) in [("one.tar", one), ("two.tar", two.as_slice()), ("three.tar", three)] {
        fs::write(work.path().join(file), layer).expect("write");
    }
    bash(
        work.path(),
        "set -e; exec >/dev/null; umoci init --layout i; umoci new --image i:t; \
         for l in one two three; do umoci raw add-layer --image i:t $l.tar; done; umoci unpack --image i:t u",
    );
    let mut theirs = tree::list(&work.path().join("u/rootfs"), Times::NotOfFolders);
    theirs.remove("");
    let mut ours = without_links(expected);
    ours.remove("");
    // The time of a folder in which something was hidden is umoci's own.
    let strip = |list: std::collections::BTreeMap<String, String>| -> std::collections::BTreeMap<String, String> {
        list.into_iter().filter(|(_, line)| !line.starts_with('4')).collect()
    };
    tree::assert_same(&strip(ours), &strip(without_links(&theirs)), "umoci and ours");
}

fn listed() {
    let before = "mkdir -p etc/conf.d usr/bin var/log opt/a/b; echo x > etc/passwd; echo y > etc/conf.d/one; \
                  echo z > usr/bin/tool; echo l > var/log/log; echo b > opt/a/b/f; echo s > same; ln -s same link; mkdir swap; echo f > unswap";
    let layer = tar_of(before);
    let change = "set -e; echo more >> etc/passwd; rm var/log/log; mkdir -p new/deep; echo n > new/deep/f; chmod 700 usr/bin; \
                  rm -r opt/a; mkdir opt/a; echo g > opt/a/g; chmod 644 same; touch -d @5 usr; ln -sf other link; \
                  rm -r swap; echo f > swap; rm unswap; mkdir unswap; echo i > unswap/i; echo t > tmp; rm tmp; mkfifo a-b";
    mounts::private(|| {
        each(&mut |snapshotter| {
            base(snapshotter, &layer);
            let mounts = snapshotter.prepare(&key("c"), Some(&name("base"))).expect("prepare");
            mounts::with(&mounts, &mut |place| bash(place, change));
            let list = changes(snapshotter, &key("c"), &Limits::default()).expect("listed");
            let lines: Vec<_> =
                list.iter().map(|change| format!("{} {}", letter(change.kind), change.path.display())).collect();
            let expected = [
                "A /a-b",
                "C /etc",
                "C /etc/passwd",
                "C /link",
                "A /new",
                "A /new/deep",
                "A /new/deep/f",
                "C /opt",
                "C /opt/a",
                "D /opt/a/b",
                "A /opt/a/g",
                "C /swap",
                "C /unswap",
                "A /unswap/i",
                "C /usr",
                "C /usr/bin",
                "C /var",
                "C /var/log",
                "D /var/log/log",
            ];
            assert_eq!(lines, expected, "{snapshotter:?}");
            let limits = Limits { entries: 5, ..Limits::default() };
            let error = changes(snapshotter, &key("c"), &limits).expect_err("too many");
            assert!(matches!(error, Error::LimitExceeded { what: "entries", .. }), "{error}");
            let limits = Limits { names: 600, ..Limits::default() };
            let error = changes(snapshotter, &key("c"), &limits).expect_err("too many");
            assert!(matches!(error, Error::LimitExceeded { what: "bytes of names in memory", .. }), "{error}");
        });
    });
}

fn letter(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Modified => 'C',
        ChangeKind::Deleted => 'D',
    }
}

fn upper(snapshotter: &dyn Snapshotter) -> PathBuf {
    let mounts = snapshotter.mounts(&key("c")).expect("mounts");
    let options = mounts[0].options().clone().unwrap_or_default();
    let upper = options.iter().find_map(|option| option.strip_prefix("upperdir="));
    upper.map_or_else(|| mounts[0].source().clone().expect("a source"), PathBuf::from)
}

fn references() {
    let root = tempfile::tempdir().expect("a folder");
    let overlay = Overlay::open(root.path()).expect("open");
    base(&overlay, &Tar::new().dir("a", 0o755).file("f", b"x").finish());
    overlay.prepare(&key("c"), Some(&name("base"))).expect("prepare");
    let upper = upper(&overlay);
    for (make, unmake, attribute) in [
        ("mkdir d; setfattr -n trusted.overlay.redirect -v /a d", "rm -r d", "trusted.overlay.redirect"),
        ("touch f; setfattr -n trusted.overlay.metacopy f", "rm f", "trusted.overlay.metacopy"),
    ] {
        bash(&upper, make);
        let error = diff(&overlay, &key("c"), std::io::sink(), &Limits::default()).expect_err("not by itself");
        assert!(error.to_string().contains(attribute), "{error}");
        changes(&overlay, &key("c"), &Limits::default()).expect_err("not by itself");
        bash(&upper, unmake);
    }
    diff(&overlay, &key("c"), std::io::sink(), &Limits::default()).expect("now it is");
}

fn left_out() {
    each(&mut |snapshotter| {
        base(snapshotter, &Tar::new().dir("a", 0o755).file("a/f", b"x").finish());
        snapshotter.prepare(&key("c"), Some(&name("base"))).expect("prepare");
        // Native has a copy there already.
        let upper = upper(snapshotter);
        fs::create_dir_all(upper.join("a")).expect("folder");
        // As a layer's these names would remove what the container has not removed.
        for file in ["a/.wh.f", "a/.wh..wh..opq", ".wh.a", "kept"] {
            fs::write(upper.join(file), "").expect("write");
        }
        fs::create_dir(upper.join(".wh.folder")).expect("folder");
        fs::write(upper.join(".wh.folder/f"), "").expect("write");
        let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("a socket");
        let (bytes, done) = made(snapshotter);
        assert_eq!(done.skipped, 5, "{snapshotter:?}");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("kept") && !text.contains(".wh."), "{snapshotter:?}");
        assert!(changes(snapshotter, &key("c"), &Limits::default()).expect("listed").len() > 5);
    });
}

/// Folders come, go, move, and are swapped for links that lead out, while the layer is made.
fn mount_points() {
    const MADE: MountPoints<'_> = MountPoints(&["dev", "etc/hosts", "etc/deep/file", "run"]);
    each(&mut |snapshotter| {
        base(snapshotter, &Tar::new().dir("etc", 0o755).dir("etc/deep", 0o755).file("etc/f", b"x").finish());
        snapshotter.prepare(&key("c"), Some(&name("base"))).expect("prepare");
        let upper = upper(snapshotter);
        fs::create_dir_all(upper.join("etc/deep")).expect("folder");
        fs::create_dir(upper.join("dev")).expect("folder");
        for file in ["etc/hosts", "etc/deep/file"] {
            fs::write(upper.join(file), b"").expect("file");
        }
        let layer = || {
            let mut bytes = Vec::new();
            diff_without(MADE, snapshotter, &key("c"), &mut bytes, &Limits::default()).expect("a layer");
            let mut names = Vec::new();
            let mut rest = bytes.as_slice();
            while rest.first().is_some_and(|byte| *byte != 0) {
                let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches('\0').to_owned();
                let size = usize::from_str_radix(&text(&rest[124..136]), 8).expect("a size");
                // Extended headers are no entries.
                if rest[156] != b'x' {
                    names.push(text(&rest[..100]).trim_end_matches('/').to_owned());
                }
                rest = &rest[512 + size.next_multiple_of(512)..];
            }
            names
        };
        let list = || {
            let list = changes_without(MADE, snapshotter, &key("c"), &Limits::default()).expect("listed");
            list.iter().map(|one| format!("{} {}", letter(one.kind), one.path.display())).collect::<Vec<_>>()
        };
        assert_eq!((layer(), list()), (vec![], vec![]));
        // What the container has made itself is all there, with the folders on the way.
        fs::write(upper.join("etc/deep/other"), b"x").expect("file");
        fs::create_dir(upper.join("run")).expect("folder");
        fs::write(upper.join("run/pid"), b"1").expect("file");
        assert_eq!(layer(), ["etc", "etc/deep", "etc/deep/other", "run", "run/pid"]);
        assert_eq!(list(), ["C /etc", "C /etc/deep", "A /etc/deep/other", "A /run", "A /run/pid"]);
        fs::write(upper.join("etc/hosts"), b"127.0.0.1 me").expect("file");
        assert!(list().contains(&"A /etc/hosts".to_owned()));
    });
}

fn running() {
    let outer = tempfile::tempdir().expect("a folder");
    fs::create_dir(outer.path().join("secret")).expect("folder");
    fs::write(outer.path().join("secret/data"), "SECRET").expect("write");
    let turn = AtomicU64::new(0);
    mounts::private(|| {
        each(&mut |snapshotter| {
            let mut tar = Tar::new();
            for folder in ["a", "b", "c"] {
                tar = tar
                    .dir(folder, 0o755)
                    .file(&format!("{folder}/data"), b"inside")
                    .dir(&format!("{folder}/sub"), 0o755);
            }
            base(snapshotter, &tar.finish());
            let mounts = snapshotter.prepare(&key("c"), Some(&name("base"))).expect("prepare");
            mounts::with(&mounts, &mut |place| {
                std::os::unix::fs::symlink(outer.path().join("secret"), place.join("link")).expect("a link");
                fs::create_dir_all(place.join("own/sub")).expect("folder");
                fs::write(place.join("own/data"), "inside").expect("write");
                meanwhile(
                    || {
                        exchange(&place.join("own"), &place.join("link"));
                        exchange(&place.join("own"), &place.join("link"));
                        let file = place.join("a/new");
                        match turn.fetch_add(1, Ordering::Relaxed) % 4 {
                            0 => fs::write(file, vec![1; 100_000]).expect("write"),
                            1 => fs::remove_file(file).unwrap_or(()),
                            2 => fs::create_dir_all(place.join("b/sub/x/y/z")).expect("folder"),
                            _ => fs::remove_dir_all(place.join("b/sub")).unwrap_or(()),
                        }
                    },
                    || {
                        for _ in 0..100 {
                            let (bytes, _) = made(snapshotter);
                            assert!(!bytes.windows(6).any(|window| window == b"SECRET"), "it got out");
                            let folder = tempfile::tempdir().expect("a folder");
                            let target = Target::folder(folder.path()).expect("a target");
                            apply(Cursor::new(&bytes), Compression::None, &target, &Limits::default())
                                .expect("a layer");
                            changes(snapshotter, &key("c"), &Limits::default()).expect("listed");
                        }
                    },
                );
            });
        });
    });
}

/// One random change of a tree; whether it can be done does not matter.
fn change(dice: &mut Dice, root: &Path) {
    let (path, other) = (root.join(dice.path()), root.join(dice.path()));
    // What overlay does differently: it moves no folders of lower layers, and a change parts the names of a file.
    let plain = path.symlink_metadata().is_ok_and(|stat| !stat.is_dir() && stat.nlink() == 1);
    let _ = match dice.roll(10) {
        0 | 1 => fs::create_dir_all(&path),
        2 | 3 if !plain && path.is_file() => fs::remove_file(&path),
        2 | 3 => fs::write(&path, format!("{}", dice.roll(100_000))),
        4 => fs::remove_file(&path),
        5 => fs::remove_dir_all(&path),
        6 => std::os::unix::fs::symlink("b", &path),
        7 => fs::hard_link(&path, &other),
        8 if plain => fs::rename(&path, &other),
        8 => Ok(()),
        // Gone and there again: a folder that hides.
        _ => fs::remove_dir_all(&path).and_then(|()| fs::create_dir(&path)),
    };
}

fn random(seed: u64) {
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    let overlay = Overlay::with_options(root.path().join("overlay"), options).expect("open");
    let native = Native::with_durability(root.path().join("native"), Durability::None).expect("open");
    mounts::private(|| {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut parent: Option<Name> = None;
        for layer in 0..3 {
            let next = name(&format!("layer{layer}"));
            let mut lists = Vec::new();
            let start = dice.clone();
            for snapshotter in [&overlay as &dyn Snapshotter, &native] {
                dice = start.clone();
                let mounts = snapshotter.prepare(&key("c"), parent.as_ref()).expect("prepare");
                mounts::with(&mounts, &mut |place| {
                    for _ in 0..=dice.roll(12) {
                        change(&mut dice, place);
                    }
                });
                let (bytes, _) = made(snapshotter);
                put(snapshotter, &bytes, parent.as_ref(), next.as_str());
                snapshotter.view(&key("v"), Some(&next)).expect("view");
                let what = format!("seed {seed} layer {layer} {snapshotter:?}");
                tree::assert_same(&seen(snapshotter, &key("c")), &seen(snapshotter, &key("v")), &what);
                lists.push(changes(snapshotter, &key("c"), &Limits::default()).expect("listed"));
                for id in ["c", "v"] {
                    snapshotter.remove(&key(id).into()).expect("remove");
                }
            }
            assert_eq!(lists[0], lists[1], "seed {seed} layer {layer}");
            parent = Some(next);
        }
    });
}
