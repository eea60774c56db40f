//! Kills one process of ours after the other: commands, shims, the monitor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::dice::Dice;
use crate::home::Home;
use crate::processes::{self, Process};

/// What a process of ours is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Command,
    Shim,
    Monitor,
}

/// The role of a process of ours; `None` for one of a container, also before it has executed its program.
pub(crate) fn role(process: &Process) -> Option<Role> {
    let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", process.pid)).ok();
    if link("ns/pid")? != fs::read_link("/proc/self/ns/pid").ok()? {
        return None;
    }
    if process.is_shim() {
        return Some(Role::Shim);
    }
    let own = link("exe")?;
    if own != Path::new(Home::program()) {
        return None;
    }
    Some(if process.is_monitor() { Role::Monitor } else { Role::Command })
}

/// The container of a shim, by its command line.
pub(crate) fn id_of(shim: &Process) -> Option<&str> {
    let mut words = shim.command.split(' ');
    words.find(|word| matches!(*word, "--id" | "-id"))?;
    words.next()
}

/// How often each role was hit.
pub(crate) type Hits = BTreeMap<Role, u32>;

/// Kills every 200 ms until told to stop. A shim of a container whose name begins with one of `spared` is left alone: of that
/// container nothing may be lost.
pub(crate) fn kill_until(stop: &AtomicBool, root: &Path, seed: u64, spared: &[&str]) -> Hits {
    let mut dice = Dice::new(seed, 1000);
    let mut hits = Hits::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(200));
        // The roles are drawn first: else the one with the most processes is hit always.
        let mut by_role: BTreeMap<Role, Vec<Process>> = BTreeMap::new();
        for process in processes::below() {
            let Some(role) = role(&process) else { continue };
            let is_spared = role == Role::Shim
                && id_of(&process).and_then(|id| name_of(root, id)).is_none_or(|name| {
                    let mut spared = spared.iter();
                    spared.any(|start| name.starts_with(start))
                });
            if !is_spared {
                by_role.entry(role).or_default().push(process);
            }
        }
        let roles: Vec<_> = by_role.into_iter().collect();
        if !roles.is_empty() {
            let (role, victims) = dice.one_of(&roles);
            processes::end(dice.one_of(victims).pid);
            *hits.entry(*role).or_default() += 1;
        }
    }
    hits
}

/// A container's name, from its record.
fn name_of(root: &Path, id: &str) -> Option<String> {
    let record: PathBuf = root.join("containers").join(id).join("record.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
    record["name"].as_str().map(str::to_owned)
}
