//! What a run could leave behind, counted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::processes;

/// The state of everything that a container touches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct World {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
    networks: BTreeSet<String>,
    processes: BTreeSet<String>,
    /// Everything below the engine's folders but the contents of snapshots.
    files: BTreeSet<PathBuf>,
}

impl World {
    pub(crate) fn look(folders: &[PathBuf], cgroup: &str) -> Self {
        let mut world = Self::default();
        for process in processes::below() {
            world.networks.extend(process.network());
            world.processes.insert(format!("{} {} ({})", process.pid, process.command, process.name));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            // The three numbers in front are the kernel's own.
            world.mounts.insert(line.splitn(4, ' ').last().unwrap_or(line).to_owned());
        }
        for hierarchy in hierarchies(&mounts) {
            folders_below(&hierarchy.join(cgroup.trim_start_matches('/')), &mut world.cgroups);
        }
        for folder in folders {
            files_below(folder, &mut world.files);
        }
        world
    }

    /// What there is now and was not in `before`, and the other way round; empty if nothing differs.
    pub(crate) fn differences(&self, before: &Self) -> Vec<String> {
        let mut told = Vec::new();
        let mut tell = |what: &str, now: Vec<String>, then: Vec<String>| {
            told.extend(
                now.iter().filter(|item| !then.contains(item)).map(|item| format!("left behind: {what} {item}")),
            );
            told.extend(then.iter().filter(|item| !now.contains(item)).map(|item| format!("gone: {what} {item}")));
        };
        let paths = |set: &BTreeSet<PathBuf>| set.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let texts = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
        tell("mount", texts(&self.mounts), texts(&before.mounts));
        tell("cgroup", paths(&self.cgroups), paths(&before.cgroups));
        tell("network namespace", texts(&self.networks), texts(&before.networks));
        tell("process", texts(&self.processes), texts(&before.processes));
        tell("file", paths(&self.files), paths(&before.files));
        told
    }
}

/// Where the cgroup hierarchies are mounted.
pub(crate) fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let of_cgroups = mountinfo.lines().filter(|line| line.contains(" - cgroup"));
    of_cgroups.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

fn folders_below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders_below(&entry.path(), found);
            found.insert(entry.path());
        }
    }
}

fn files_below(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // What a snapshot holds is the image's or the container's.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "fs" {
            files_below(&entry.path(), found);
        }
        found.insert(entry.path());
    }
}
