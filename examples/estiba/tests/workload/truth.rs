//! What is recorded of containers, held against what the kernel knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use crate::home::{Home, Result};
use crate::killer::{Role, id_of, role};
use crate::processes;
use crate::world::hierarchies;

/// A container as `inspect` tells of it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) pid: i32,
    pub(crate) code: i32,
}

impl Told {
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.status.as_str(), "running" | "paused")
    }
}

/// All containers.
pub(crate) fn told(home: &Home) -> Result<Vec<Told>> {
    let ids = home.run(&["ps", "-a", "-q", "--no-trunc"])?.expect_status(0)?;
    let ids: Vec<&str> = ids.out.split_whitespace().collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let format = "{{.Id}} {{.Name}} {{.State.Status}} {{.State.Pid}} {{.State.ExitCode}}";
    let ended = home.run(&[&["inspect", "-f", format], &ids[..]].concat())?.expect_status(0)?;
    ended.out.lines().map(|line| one(line).ok_or_else(|| format!("inspect said {line:?}").into())).collect()
}

fn one(line: &str) -> Option<Told> {
    let mut words = line.split(' ');
    let mut word = || words.next().map(str::to_owned);
    let (id, name, status) = (word()?, word()?.trim_start_matches('/').to_owned(), word()?);
    Some(Told { id, name, status, pid: word()?.parse().ok()?, code: word()?.parse().ok()? })
}

/// Everything that is recorded is so, and nothing runs that is not recorded. What was just killed gets a moment to go.
pub(crate) fn holds(home: &Home) -> Result<Vec<Told>> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let told = told(home)?;
        let wrong = wrong(home, &told);
        if wrong.is_empty() {
            return Ok(told);
        }
        if Instant::now() > deadline {
            return Err(format!("records and kernel differ:\n{}", wrong.join("\n")).into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn wrong(home: &Home, told: &[Told]) -> Vec<String> {
    let mut wrong = Vec::new();
    let running = processes_by_container(home);
    let folders = cgroup_folders(home);
    let known: BTreeMap<&str, &Told> = told.iter().map(|told| (told.id.as_str(), told)).collect();
    let names: BTreeSet<&str> = told.iter().map(|told| told.name.as_str()).collect();
    if names.len() != told.len() {
        wrong.push(format!("a name is there twice: {told:?}"));
    }
    for told in told {
        let pids = running.get(&told.id);
        if told.is_up() {
            // Its cgroup is the container's: so it is no other process that has got the same number.
            if !pids.is_some_and(|pids| pids.contains(&told.pid)) {
                let (id, name, status, pid) = (&told.id, &told.name, &told.status, told.pid);
                wrong.push(format!("{name} ({id}) is {status} with pid {pid}, but its cgroups have {pids:?}"));
            }
        } else {
            if told.pid != 0 {
                wrong.push(format!("{} is {} and has pid {}", told.name, told.status, told.pid));
            }
            if let Some(pids) = pids {
                wrong.push(format!("{} is {}, but {pids:?} run in its cgroups", told.name, told.status));
            }
            if folders.contains(&told.id) {
                wrong.push(format!("{} is {}, but has a cgroup", told.name, told.status));
            }
        }
    }
    for id in running.keys().chain(&folders).filter(|id| !known.contains_key(id.as_str())) {
        wrong.push(format!("there is no record of {id}, but a cgroup with {:?}", running.get(id)));
    }
    for process in processes::below() {
        if role(&process) != Some(Role::Shim) {
            continue;
        }
        let of = id_of(&process).and_then(|id| known.get(id));
        if !of.is_some_and(|told| told.is_up()) {
            wrong.push(format!("the shim {} {} serves {of:?}", process.pid, process.command));
        }
    }
    let snapshots = home.root().join("snapshots/overlay/active");
    for entry in fs::read_dir(snapshots).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known.keys().any(|id| name.contains(id)) {
            wrong.push(format!("the snapshot {name} is of no container"));
        }
    }
    wrong
}

/// The processes below our cgroup, by the folder that is each container's.
fn processes_by_container(home: &Home) -> BTreeMap<String, BTreeSet<i32>> {
    let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    let parent = format!("{}/", home.cgroup());
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let zombie = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        for group in groups.lines().filter(|_| !zombie) {
            let below = group.splitn(3, ':').nth(2).and_then(|path| path.strip_prefix(&parent));
            if let Some(folder) = below.and_then(|path| path.split('/').next()) {
                found.entry(folder.to_owned()).or_default().insert(pid);
            }
        }
    }
    found
}

fn cgroup_folders(home: &Home) -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let parents = hierarchies(&mounts).into_iter().map(|path| path.join(home.cgroup().trim_start_matches('/')));
    let folders = parents.filter_map(|path| fs::read_dir(path).ok()).flatten().flatten();
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
