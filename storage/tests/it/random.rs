//! Random layers on top of each other: overlay, as the kernel shows it, and plain removal must come to the same tree.

use std::fmt::Write as _;
use std::io::Cursor;
use std::sync::Arc;
use std::sync::mpsc::channel;

use estiba_storage::layer::{Compression, Limits, Target, apply};
use estiba_storage::{Durability, Key, LateParent as _, Name, Native, Overlay, OverlayOptions, Snapshotter};
use libtest_mimic::Trial;

use crate::archive::Tar;
use crate::tree::{self, Times};
use crate::{mounts, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("random_layers_are_the_same_on_both_snapshotters", &[], || (1..=rounds()).for_each(compare)),
        privileged("random_layers_are_the_same_whenever_the_parent_comes", &[], || (1..=rounds()).for_each(late)),
    ]
}

/// Enough to meet every pair of kinds in one place; more by the environment.
fn rounds() -> u64 {
    std::env::var("ESTIBA_RANDOM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// xorshift: the same layers every time.
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % sides
    }

    pub(crate) fn path(&mut self) -> String {
        let depth = 1 + self.roll(3);
        (0..depth).map(|_| ["a", "b", "c"][self.roll(3)]).collect::<Vec<_>>().join("/")
    }
}

fn layer(dice: &mut Dice) -> (Vec<u8>, String) {
    let mut tar = Tar::new();
    let mut story = String::new();
    for _ in 0..=dice.roll(10) {
        let path = dice.path();
        let (folder, base) = path.rsplit_once('/').map_or(("", path.as_str()), |(f, b)| (f, b));
        let (next, line) = match dice.roll(9) {
            0 | 1 => (tar.clone().dir(&path, [0o755, 0o700][dice.roll(2)]), format!("dir {path}")),
            2 | 3 => {
                let content = format!("{}", dice.roll(1000));
                (tar.clone().file(&path, content.as_bytes()), format!("file {path}"))
            }
            4 => {
                let target = ["a", "../b", "/c", "b/c", "/a/b", "none"][dice.roll(6)];
                (tar.clone().symlink(&path, target), format!("symlink {path} -> {target}"))
            }
            5 => {
                let target = dice.path();
                (tar.clone().link(&path, &target), format!("link {path} => {target}"))
            }
            6 | 7 => {
                let whiteout = format!("{folder}/.wh.{base}");
                (tar.clone().file(whiteout.trim_start_matches('/'), b""), format!("whiteout {path}"))
            }
            _ => {
                let whiteout = format!("{folder}/.wh..wh..opq");
                (tar.clone().file(whiteout.trim_start_matches('/'), b""), format!("opaque {folder}/"))
            }
        };
        writeln!(story, "    {line}").expect("text");
        tar = next;
    }
    (tar.finish(), story)
}

fn compare(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    let overlay = Overlay::with_options(root.path().join("overlay"), options).expect("open");
    let native = Native::with_durability(root.path().join("native"), Durability::None).expect("open");
    let mut story = format!("seed {seed}\n");
    let mut parent: Option<Name> = None;
    let key: Key = "layer".parse().expect("a key");
    for at in 0..4 {
        let (archive, lines) = layer(&mut dice);
        write!(story, "  layer {at}\n{lines}").expect("text");
        let name: Name = format!("layer{at}").parse().expect("a name");
        let put = |snapshotter: &dyn Snapshotter| {
            let mounts = snapshotter.prepare(&key, parent.as_ref()).expect("prepare");
            let target = Target::from_mounts(&mounts).expect("a target");
            let applied = apply(Cursor::new(&archive), Compression::Sniff, &target, &Limits::default());
            let applied = applied.map_err(|error| error.to_string());
            match &applied {
                Ok(_) => snapshotter.commit(&name, &key).expect("commit"),
                Err(_) => snapshotter.remove(&key.clone().into()).expect("remove"),
            }
            applied
        };
        let (on_overlay, on_native) = (put(&overlay), put(&native));
        assert_eq!(on_overlay, on_native, "{story}");
        if on_overlay.is_err() {
            story += "    (refused by both)\n";
            continue;
        }
        let mut trees = Vec::new();
        mounts::private(|| {
            for snapshotter in [&overlay as &dyn Snapshotter, &native] {
                let mounts = snapshotter.view(&key, Some(&name)).expect("view");
                mounts::with(&mounts, &mut |place| trees.push(tree::list(place, Times::NotOfFolders)));
                snapshotter.remove(&key.clone().into()).expect("remove");
            }
        });
        // The kernel's overlay shows a hard link once an upper layer has copied one of its names up as two files.
        tree::assert_same(&without_links(&trees[0]), &without_links(&trees[1]), &story);
        parent = Some(name);
    }
}

/// Layers that are applied side by side, while their parents are still being made, come to the same tree as one after the
/// other.
fn late(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let root = tempfile::tempdir().expect("a folder");
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    let open = |name: &str| Overlay::with_options(root.path().join(name), options).expect("open");
    let (ordered, side_by_side) = (open("ordered"), Arc::new(open("late")));
    let mut story = format!("seed {seed}\n");
    let name = |at: usize| -> Name { format!("layer{at}").parse().expect("a name") };
    let key: Key = "layer".parse().expect("a key");
    let mut layers = Vec::new();
    while layers.len() < 4 {
        let (archive, lines) = layer(&mut dice);
        let parent = layers.len().checked_sub(1).map(name);
        let mounts = ordered.prepare(&key, parent.as_ref()).expect("prepare");
        let target = Target::from_mounts(&mounts).expect("a target");
        if apply(Cursor::new(&archive), Compression::Sniff, &target, &Limits::default()).is_err() {
            ordered.remove(&key.clone().into()).expect("remove");
            continue;
        }
        ordered.commit(&name(layers.len()), &key).expect("commit");
        write!(story, "  layer {}\n{lines}", layers.len()).expect("text");
        layers.push(archive);
    }
    // Each layer waits for the one below it whenever it needs to; they are started from the top.
    let (senders, receivers): (Vec<_>, Vec<_>) = layers.iter().map(|_| channel::<()>()).unzip();
    let mut below = receivers.into_iter().map(Some).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for (at, archive) in layers.iter().enumerate().rev() {
            let key: Key = format!("late{at}").parse().expect("a key");
            let waits = at.checked_sub(1).and_then(|at| below[at].take());
            let (late, told, done) = (Arc::clone(&side_by_side), &story, senders[at].clone());
            scope.spawn(move || {
                let target = match waits {
                    None => Target::from_mounts(&late.prepare(&key, None).expect("prepare")).expect("a target"),
                    Some(waits) => {
                        let mounts = late.prepare_late(&key).expect("prepare");
                        let (late, key) = (Arc::clone(&late), key.clone());
                        let parent = move || {
                            waits.recv().expect("the layer below");
                            late.set_parent(&key, &name(at - 1))
                        };
                        Target::late(&mounts, parent).expect("a target")
                    }
                };
                apply(Cursor::new(archive), Compression::Sniff, &target, &Limits::default())
                    .unwrap_or_else(|error| panic!("layer {at}: {error}\n{told}"));
                late.commit(&name(at), &key).expect("commit");
                let _ = done.send(());
            });
        }
    });
    mounts::private(|| {
        for at in 0..layers.len() {
            let mut trees = Vec::new();
            for snapshotter in [&ordered, &*side_by_side] {
                let mounts = snapshotter.view(&key, Some(&name(at))).expect("view");
                mounts::with(&mounts, &mut |place| trees.push(tree::list(place, Times::NotOfFolders)));
                snapshotter.remove(&key.clone().into()).expect("remove");
            }
            tree::assert_same(&trees[0], &trees[1], &story);
        }
    });
}

pub(crate) fn without_links(
    tree: &std::collections::BTreeMap<String, String>,
) -> std::collections::BTreeMap<String, String> {
    let cut = |line: &String| line.split(" same as ").next().unwrap_or_default().to_owned();
    tree.iter().map(|(path, line)| (path.clone(), cut(line))).collect()
}
