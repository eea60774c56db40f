//! Processes that are killed at any moment while others go on, in one store.

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use estiba_storage::layer::{Compression, Limits, Target, apply};
use estiba_storage::{Durability, Error, Key, Name, Overlay, OverlayOptions, SnapshotId, Snapshotter};
use libtest_mimic::Trial;

use crate::archive::Tar;
use crate::plain;

const ASKED: &str = "ESTIBA_TEST_WORK_IN";

pub(crate) fn trials() -> Vec<Trial> {
    vec![plain("killed_at_any_moment_the_store_stays_whole", killed)]
}

fn open(root: &Path) -> Overlay {
    let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
    Overlay::with_options(root, options).expect("open")
}

/// In the program that [`killed`] starts: makes, commits and removes snapshots until it is killed.
pub(crate) fn work_if_asked() {
    if let Some(root) = std::env::var_os(ASKED) {
        let overlay = open(Path::new(&root));
        let layer = (0..30).fold(Tar::new(), |tar, at| tar.file(&format!("d{}/f{at}", at % 5), b"x")).finish();
        for round in 0_u64.. {
            match work(&overlay, &layer, std::process::id(), round) {
                // Others remove and take what this one has just seen.
                Ok(()) | Err(Error::NotFound { .. } | Error::AlreadyExists { .. } | Error::InUse { .. }) => {}
                Err(error) => {
                    fs::write(Path::new(&root).join(format!("failed-{}", std::process::id())), format!("{error:?}"))
                        .expect("write");
                    std::process::exit(1);
                }
            }
        }
    }
}

fn work(overlay: &Overlay, layer: &[u8], me: u32, round: u64) -> Result<(), Error> {
    let key: Key = format!("k-{me}-{}", round % 7).parse()?;
    let name: Name = format!("sha256:{}", round % 5).parse()?;
    let parent: Option<Name> =
        if round.is_multiple_of(3) { None } else { Some(format!("sha256:{}", (round + 1) % 5).parse()?) };
    let mounts = overlay.prepare(&key, parent.as_ref())?;
    let target = Target::from_mounts(&mounts)?;
    apply(Cursor::new(layer), Compression::None, &target, &Limits::default())?;
    if let Err(error) = overlay.commit(&name, &key) {
        overlay.remove(&key.into())?;
        return Err(error);
    }
    overlay.remove(&SnapshotId::Name(format!("sha256:{}", (round + 2) % 5).parse()?))
}

fn start(root: &Path) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program).env(ASKED, root).spawn().expect("start")
}

fn killed() {
    let root = tempfile::tempdir().expect("a folder");
    let overlay = open(root.path());
    let mut workers = [start(root.path()), start(root.path())];
    let mut moment = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..60 {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros(3_000 + (moment >> 33) % 20_000));
        let worker = &mut workers[round % 2];
        worker.kill().expect("kill");
        worker.wait().expect("wait");
        // While the other goes on.
        overlay.repair().expect("repair");
        *worker = start(root.path());
    }
    for worker in &mut workers {
        worker.kill().expect("kill");
        worker.wait().expect("wait");
    }
    let failed: Vec<_> = fs::read_dir(root.path())
        .expect("read")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("failed")))
        .map(|path| fs::read_to_string(path).expect("read"))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    let torn = overlay.repair().expect("repair").torn;
    assert_eq!(torn, 0, "a killed process tears nothing");
    assert_eq!(overlay.repair().expect("repair"), estiba_storage::Repaired::default());
    assert_eq!(fs::read_dir(root.path().join("tmp")).expect("read").count(), 0);
    let mut parents = BTreeMap::new();
    overlay
        .walk(&mut |info| {
            parents.insert(info.id.clone(), info.parent.clone());
            ControlFlow::Continue(())
        })
        .expect("walk");
    for (id, parent) in &parents {
        if let Some(parent) = parent {
            assert!(parents.contains_key(&SnapshotId::Name(parent.clone())), "{id} stands on nothing");
        }
        if let SnapshotId::Name(name) = id {
            let key: Key = "look".parse().expect("a key");
            let mounts = overlay.view(&key, Some(name)).expect("view");
            let options = mounts[0].options().clone().expect("options");
            for lower in options.iter().filter_map(|option| option.strip_prefix("lowerdir=")) {
                assert!(lower.split(':').all(|lower| Path::new(lower).is_dir()), "{lower}");
            }
            overlay.remove(&key.into()).expect("remove");
            // A committed snapshot has all of its layer.
            let fs = root.path().join("committed").join(name.as_str().replace(':', "+")).join("fs");
            let files: usize = (0..5).map(|at| fs.join(format!("d{at}")).read_dir().expect("a folder").count()).sum();
            assert_eq!(files, 30, "{name}");
        }
    }
    // All of it can be removed, children first.
    while !parents.is_empty() {
        let before = parents.len();
        parents.retain(|id, _| match overlay.remove(id) {
            Ok(()) => false,
            Err(Error::InUse { .. }) => true,
            Err(error) => panic!("{error:?}"),
        });
        assert!(parents.len() < before, "a circle of parents");
    }
    for folder in ["active", "committed", "l", "tmp"] {
        assert_eq!(fs::read_dir(root.path().join(folder)).expect("read").count(), 0, "{folder}");
    }
}
