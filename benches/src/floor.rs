//! What the kernel itself charges for one container: the same namespaces, the same cgroup work, proc, a tmpfs,
//! `pivot_root` and `execve`, with nothing read, parsed, stored or checked. No runtime that does its work can be faster.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::{self, Step};

/// The version 1 hierarchies that a container with the usual limits joins.
const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "devices", "freezer"];

/// A probe that runs `/true` of a root file system again and again.
#[derive(Debug)]
pub(crate) struct Floor {
    rootfs: PathBuf,
    flags: u64,
    /// Folders of this probe, below which each run makes its own.
    parents: Vec<PathBuf>,
    unified: bool,
    runs: u64,
}

/// Whether the probe makes a network namespace, the most expensive of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Network {
    Host,
    Own,
}

impl Floor {
    /// `parent` is the name of a cgroup that no other probe of this run has.
    pub(crate) fn new(rootfs: &Path, network: Network, parent: &str) -> io::Result<Self> {
        let mut flags =
            libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP;
        if network == Network::Own {
            flags |= libc::CLONE_NEWNET;
        }
        let (mounts, unified) = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
        let parents: Vec<PathBuf> = mounts.iter().map(|mount| mount.join(parent)).collect();
        for parent in &parents {
            fs::create_dir_all(parent)?;
        }
        Ok(Self { rootfs: rootfs.to_owned(), flags: flags as u64, parents, unified, runs: 0 })
    }

    /// One run: from the making of the cgroups to their removal.
    pub(crate) fn once(&mut self) -> io::Result<Duration> {
        self.runs += 1;
        let start = sys::monotonic();
        let result = self.run();
        for parent in &self.parents {
            fs::remove_dir(parent.join(self.runs.to_string()))?;
        }
        let took = sys::monotonic().saturating_sub(start);
        match result? {
            0 => Ok(took),
            status => Err(io::Error::other(format!("the floor's child ended with {status}: step {}", status - 100))),
        }
    }

    fn run(&self) -> io::Result<i32> {
        let mut steps = Vec::with_capacity(16);
        let mut into: Option<OwnedFd> = None;
        for parent in &self.parents {
            let folder = parent.join(self.runs.to_string());
            fs::create_dir(&folder)?;
            if self.unified {
                into = Some(File::open(&folder)?.into());
            } else {
                steps.push(Step::Join(File::options().write(true).open(folder.join("tasks"))?.into()));
            }
        }
        let root = c_string(&self.rootfs)?;
        let none = CString::default;
        let filesystem = |name: &std::ffi::CStr, target: PathBuf| -> io::Result<Step> {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            Ok(Step::Mount { source: name.to_owned(), target: c_string(&target)?, kind: name.to_owned(), flags })
        };
        let private = libc::MS_REC | libc::MS_PRIVATE;
        steps.push(Step::Mount { source: none(), target: c"/".to_owned(), kind: none(), flags: private });
        steps.push(Step::Mount { source: root.clone(), target: root.clone(), kind: none(), flags: libc::MS_BIND });
        steps.push(filesystem(c"proc", self.rootfs.join("proc"))?);
        steps.push(filesystem(c"tmpfs", self.rootfs.join("dev"))?);
        steps.push(Step::Enter(root));
        steps.push(Step::Pivot);
        steps.push(Step::Execute(c"/true".to_owned()));
        let pidfd = sys::clone_and_make(self.flags, into.as_ref().map(AsRawFd::as_raw_fd), &steps)?;
        sys::wait_pidfd(pidfd.as_fd())
    }
}

/// Removes a cgroup and all below it from every hierarchy: the runs' common parent, in which some peers leave folders.
pub(crate) fn remove_cgroups(name: &str) -> io::Result<()> {
    fn remove(folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                remove(&entry.path())?;
            }
        }
        fs::remove_dir(folder)
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines().filter(|line| line.contains(" - cgroup")) {
        let folder = Path::new(line.split(' ').nth(4).unwrap_or_default()).join(name);
        if folder.is_dir() {
            remove(&folder)?;
        }
    }
    Ok(())
}

/// The mount points to work below, and whether that is the one of version 2.
fn hierarchies(mountinfo: &str) -> (Vec<PathBuf>, bool) {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        if kind == "cgroup2" {
            unified = Some(PathBuf::from(point));
        } else if kind == "cgroup" && options.split(',').any(|option| CONTROLLERS.contains(&option)) {
            found.push(PathBuf::from(point));
        }
    }
    if found.is_empty() { (unified.into_iter().collect(), true) } else { (found, false) }
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_the_three_modes() {
        let cpu = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";
        let set = "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n";
        let pids = "39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n";
        let two = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (a, b) = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids");
        assert_eq!(hierarchies(&format!("{cpu}{set}{pids}")), (paths(&[a, b]), false));
        assert_eq!(hierarchies(&format!("{cpu}{set}{two}{pids}")), (paths(&[a, b]), false));
        assert_eq!(hierarchies(two), (paths(&["/sys/fs/cgroup/unified"]), true));
        assert_eq!(hierarchies("22 27 0:21 / /proc rw - proc proc rw"), (paths(&[]), true));
    }
}
