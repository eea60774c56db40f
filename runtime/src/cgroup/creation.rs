//! Making a cgroup's folders, and undoing it.

use std::io;
use std::path::{Path, PathBuf};

use super::folder::{self, Folder};
use super::hierarchies::{Controller, Hierarchies, Mode};
use super::limits::Plan;
use super::{ALWAYS, Cgroup, CgroupPath, words};
use crate::error::{Error, Result};

/// The folders that were made, the last one first to be removed if [`Made::keep`] is not reached.
#[derive(Debug, Default)]
pub(super) struct Made {
    folders: Vec<PathBuf>,
}

impl Made {
    pub(super) fn keep(mut self) {
        self.folders.clear();
    }

    /// Makes a cgroup's folder in one hierarchy, with the parents that are missing. `wanted` is for the version 2 tree, where each
    /// parent has to hand its controllers down.
    pub(super) fn make(&mut self, place: &CgroupPath, depth: usize, wanted: Option<(&Plan, &[String])>) -> Result<()> {
        let mut attempts = 0;
        loop {
            let result = self.make_once(place, depth, wanted);
            // Somebody else's failed creation takes away the parent that both wanted.
            let lost = |e: &Error| matches!(e, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
            attempts += 1;
            if attempts == 10 || !result.as_ref().is_err_and(lost) {
                return result;
            }
        }
    }

    fn make_once(&mut self, place: &CgroupPath, depth: usize, wanted: Option<(&Plan, &[String])>) -> Result<()> {
        if wanted.is_none() {
            // Nearly always the parents are there.
            match mkdir(&place.path) {
                Ok(()) => {
                    self.folders.push(place.path.clone());
                    return Ok(());
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
                Err(e) => return Err(place.io("make cgroup")(e)),
            }
        }
        let parents: Vec<&Path> = place.path.ancestors().skip(1).take(depth).collect();
        for (at, parent) in parents.into_iter().rev().enumerate() {
            // The first is the mount point.
            if at > 0 {
                match mkdir(parent) {
                    Ok(()) => self.folders.push(parent.to_owned()),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(Error::Io { operation: "make cgroup", path: parent.to_owned(), source }),
                }
            }
            if let Some((plan, available)) = wanted {
                enable_controllers(parent, plan, available)?;
            }
        }
        match mkdir(&place.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                if is_frozen(&place.path) {
                    return Err(Error::CgroupFrozen { path: place.path.clone() });
                }
                // A crashed run's leftover: made anew, it has no limits of that one's. Those below one may be anybody's.
                match folder::remove_alone(&place.path) {
                    Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
                        return Err(Error::CgroupNotEmpty { path: place.path.clone() });
                    }
                    Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
                        let pids = Cgroup::from_paths(vec![place.clone()]).pids()?;
                        return Err(Error::CgroupInUse { path: place.path.clone(), pids });
                    }
                    removed => removed.and_then(|()| mkdir(&place.path)).map_err(place.io("make cgroup"))?,
                }
            }
            other => other.map_err(place.io("make cgroup"))?,
        }
        self.folders.push(place.path.clone());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in self.folders.iter().rev() {
            // The error that led here is told; a parent may meanwhile be in use by somebody else.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Whether somebody has stopped what is or will be in it. A crashed run leaves no such thing behind.
fn is_frozen(path: &Path) -> bool {
    let reads =
        |file: &str, text: &str| std::fs::read_to_string(path.join(file)).is_ok_and(|now| now.trim_end() == text);
    reads("freezer.state", "FROZEN") || reads("cgroup.freeze", "1")
}

fn mkdir(path: &Path) -> io::Result<()> {
    std::fs::create_dir(path)
}

/// The names in the version 2 root's `cgroup.controllers`.
pub(super) fn available(hierarchies: &Hierarchies) -> Result<Vec<String>> {
    let Some(root) = hierarchies.unified_mount() else {
        return Ok(Vec::new());
    };
    let read = Folder::open(root).and_then(|folder| words(&folder, "cgroup.controllers"));
    read.map_err(|source| Error::Io { operation: "read the controllers of cgroup", path: root.to_owned(), source })
}

/// A setting of `linux.resources.unified` may name a controller that is not in the version 2 tree.
pub(super) fn refuse_missing_v2(hierarchies: &Hierarchies, plan: &Plan, available: &[String]) -> Result<()> {
    for setting in &plan.v2 {
        let missing = setting.controller.v2_name().is_some_and(|name| !available.iter().any(|a| a == name));
        if missing || !hierarchies.has_unified() {
            let reason = match hierarchies.mode() {
                Mode::V1 => "it needs cgroup version 2, and this host has version 1".to_owned(),
                _ => format!("the controller {} is not in this host's cgroup version 2", setting.controller.v1_name()),
            };
            return Err(Error::InvalidSpec { field: setting.field.to_string(), reason });
        }
    }
    Ok(())
}

/// Lets the children of a version 2 cgroup have the controllers that the plan needs, and the usual ones where it can be.
fn enable_controllers(parent: &Path, plan: &Plan, available: &[String]) -> Result<()> {
    let failed = |source| Error::Io { operation: "read the controllers of cgroup", path: parent.to_owned(), source };
    let folder = Folder::open(parent).map_err(failed)?;
    let enabled = words(&folder, "cgroup.subtree_control").map_err(failed)?;
    let add = |wanted: &mut Vec<&'static str>, controller: Controller| {
        if let Some(name) = controller.v2_name()
            && !enabled.iter().any(|e| e == name)
            && !wanted.contains(&name)
        {
            wanted.push(name);
        }
    };
    let mut needed = Vec::new();
    plan.v2.iter().for_each(|s| add(&mut needed, s.controller));
    let mut all = needed.clone();
    let usual = ALWAYS.into_iter().filter(|c| c.v2_name().is_some_and(|name| available.iter().any(|a| a == name)));
    usual.for_each(|c| add(&mut all, c));
    let text = |names: &[&str]| names.iter().map(|n| format!("+{n}")).collect::<Vec<_>>().join(" ");
    if all.is_empty() {
        return Ok(());
    }
    let refused = |occupied, source| Error::CgroupControllers {
        path: parent.to_owned(),
        controllers: text(&needed),
        occupied,
        source,
    };
    // Only the root, which has no type, may have processes and controlled children. The kernel refuses that for some controllers,
    // and for others makes the children ones that no process can join.
    let kind = folder.read("cgroup.type");
    if kind.is_ok() && !folder.processes().map_err(failed)?.is_empty() {
        if needed.is_empty() {
            return Ok(());
        }
        return Err(refused(true, io::Error::from_raw_os_error(libc::EBUSY)));
    }
    // Without the usual ones a container runs; without the needed ones a limit would not hold.
    if folder.write("cgroup.subtree_control", &text(&all)).is_ok() || needed.is_empty() {
        return Ok(());
    }
    let written = folder.write("cgroup.subtree_control", &text(&needed));
    written.map_err(|source| refused(source.raw_os_error() == Some(libc::EBUSY), source))
}

/// A new version 1 cpuset is empty, and nothing can join it: each level takes what its parent has.
pub(super) fn inherit_cpuset(folder: &Folder, depth: usize) -> Result<()> {
    let levels: Vec<&Path> = folder.path.ancestors().take(depth + 1).collect();
    let mut above: Option<Folder> = None;
    for level in levels.into_iter().rev() {
        let failed =
            |source| Error::Io { operation: "give its parent's processors to cgroup", path: level.to_owned(), source };
        let this = Folder::open(level).map_err(failed)?;
        if let Some(above) = above {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if this.read(file).map_err(failed)?.trim().is_empty() {
                    above.read(file).and_then(|list| this.write(file, list.trim())).map_err(failed)?;
                }
            }
        }
        above = Some(this);
    }
    Ok(())
}
