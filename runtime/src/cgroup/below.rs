//! Cgroups below a container's own, and hierarchies that it joins late.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::creation::{Made, inherit_cpuset};
use super::hierarchies::{Hierarchies, Home};
use super::{Cgroup, CgroupPath, limits};
use crate::SubCgroup;
use crate::error::{Error, Result};

impl Cgroup {
    /// The same cgroup in each hierarchy, or the one below it that `wanted` names for that. They have to be there.
    pub(crate) fn below(&self, wanted: &[SubCgroup]) -> Result<Self> {
        let known = |name: &String| self.paths.iter().any(|place| place.controllers.contains(name));
        for sub in wanted {
            if let Some(unknown) = sub.controllers.iter().find(|name| !known(name)) {
                let reason = format!("unknown controller {unknown}: the container has no cgroup for it");
                return Err(Error::SubCgroup { path: sub.path.clone(), reason });
            }
        }
        let place = |place: &CgroupPath| {
            let named = |sub: &&SubCgroup| sub.controllers.iter().any(|name| place.controllers.contains(name));
            let sub = wanted.iter().find(named).or_else(|| wanted.iter().find(|sub| sub.controllers.is_empty()));
            let mut place = place.clone();
            if let Some(sub) = sub {
                place.path.extend(inner(&sub.path)?.components());
                place.open().map_err(|error| {
                    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    let reason = format!("adding pid of the new process to {}: {source}", place.path.display());
                    Error::SubCgroup { path: sub.path.clone(), reason }
                })?;
            }
            Ok(place)
        };
        Ok(Self { paths: self.paths.iter().map(place).collect::<Result<_>>()? })
    }

    /// Gives the cgroup a folder in each version 1 hierarchy that `resources` needs and that it was made without, and moves its
    /// processes there. Whether there was one.
    pub(crate) fn grow(&mut self, hierarchies: &Hierarchies, resources: &LinuxResources) -> Result<bool> {
        let home = |controller| match hierarchies.home(controller, &[]) {
            Home::V1 => Home::V1,
            _ => Home::Nowhere,
        };
        // What lives elsewhere is told by whoever sets it.
        let Ok(plan) = limits::plan(resources, &home, &|_| Err(std::io::ErrorKind::NotFound.into())) else {
            return Ok(false);
        };
        let mut grown = false;
        for setting in &plan.v1 {
            if self.paths.iter().any(|place| place.has(setting.controller)) {
                continue;
            }
            let Some((place, depth)) = hierarchies.beside(&self.paths, setting.controller) else { continue };
            let mut made = Made::default();
            made.make(&place, depth, None)?;
            let folder = place.open()?;
            if place.has(super::Controller::Cpuset) {
                inherit_cpuset(&folder, depth)?;
            }
            // They may fork meanwhile, until all parents are there.
            loop {
                let there = folder.processes().map_err(place.io("list the processes of cgroup"))?;
                let missing: Vec<i32> = self.pids()?.into_iter().filter(|pid| !there.contains(pid)).collect();
                if missing.is_empty() {
                    break;
                }
                for pid in missing {
                    match folder.write("cgroup.procs", &pid.to_string()) {
                        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                        result => result.map_err(place.io("move a process to cgroup"))?,
                    }
                }
            }
            made.keep();
            self.paths.push(place);
            grown = true;
        }
        Ok(grown)
    }
}

/// A path below a cgroup.
fn inner(path: &Path) -> Result<PathBuf> {
    let refuse = |reason: &str| Error::SubCgroup { path: path.to_owned(), reason: reason.to_owned() };
    let mut inner = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => inner.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(refuse("it holds `..`")),
        }
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup() -> Cgroup {
        let place = |controllers: &[&str], path: &str| CgroupPath {
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            path: path.into(),
        };
        Cgroup::from_paths(vec![place(&["cpu", "cpuacct"], "/nowhere/cpu/a"), place(&["memory"], "/nowhere/memory/a")])
    }

    fn sub(controllers: &[&str], path: &str) -> SubCgroup {
        SubCgroup { controllers: controllers.iter().map(|&name| name.to_owned()).collect(), path: path.into() }
    }

    #[test]
    fn there_is_no_way_up() {
        for path in ["..", "a/..", "../../x", "/.."] {
            let found = cgroup().below(&[sub(&[], path)]);
            assert!(
                matches!(&found, Err(Error::SubCgroup { reason, .. }) if reason.contains("..")),
                "{path}: {found:?}"
            );
        }
        assert_eq!(inner(Path::new("/a/./b")).expect("a path"), Path::new("a/b"));
    }

    #[test]
    fn only_what_the_container_has_is_joined() {
        assert_eq!(cgroup().below(&[]).expect("itself"), cgroup());
        let unknown = cgroup().below(&[sub(&["blkio"], "/")]).expect_err("no such hierarchy").to_string();
        assert!(unknown.contains("unknown controller blkio"), "{unknown}");
        let absent = cgroup().below(&[sub(&["memory"], "x")]).expect_err("no such folder").to_string();
        assert!(absent.contains("/nowhere/memory/a/x"), "{absent}");
    }
}
