//! Cgroups: what a container's processes may use together, and a handle on all of them.
//!
//! Version 1 hierarchies, version 2, and both at once (hybrid) are driven through their files; nothing is executed and no service
//! is asked. A cgroup has its limits and its device rules before any process is in it, so that the kernel never runs one without.
//!
//! Processes are not moved: a parent that writes a pid to `cgroup.procs` waits for the kernel's RCU, 11 ms on an idle machine. They
//! are born in the cgroup ([`Cgroup::dir`] with `CLONE_INTO_CGROUP`) or join by themselves ([`Cgroup::tasks`]).

mod below;
mod creation;
mod devices;
mod folder;
mod hierarchies;
mod limits;
mod oom;
mod program;
mod update;
mod usage;
mod v1;
mod v2;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode as Permissions, OFlags};
use serde::{Deserialize, Serialize};

use self::creation::{Made, available, inherit_cpuset, refuse_missing_v2};
use self::devices::{Devices, Line};
use self::folder::Folder;
use self::hierarchies::{CgroupName, Controller, Home};
pub use self::hierarchies::{Hierarchies, Mode};
use self::limits::{Plan, Setting};
pub use self::oom::OomEvents;
use crate::error::{Error, Result};
use crate::rootless;
use crate::sys::bpf;

/// Every container gets these where they are there: they stop, count and kill, and `update` can set limits later.
const ALWAYS: [Controller; 6] = [
    Controller::Devices,
    Controller::Pids,
    Controller::Memory,
    Controller::Cpu,
    Controller::Cpuacct,
    Controller::Freezer,
];
/// How long the processes of a cgroup may take to freeze or to die.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a process that is ending may hold up a kill.
const LINGERING: Duration = Duration::from_millis(100);

/// One folder of a cgroup, as it stands in a state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupPath {
    /// The version 1 controllers of the folder's hierarchy; empty for the version 2 tree.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// The folder.
    pub path: PathBuf,
}

impl CgroupPath {
    fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.iter().any(|c| c == controller.v1_name())
    }

    fn io(&self, operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = self.path.clone();
        move |source| Error::Io { operation, path, source }
    }

    fn open(&self) -> Result<Folder> {
        Folder::open(&self.path).map_err(self.io("open cgroup"))
    }
}

/// A cgroup: a folder in each hierarchy that it needs.
///
/// The value is a name, not a guard: dropping it changes nothing on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    paths: Vec<CgroupPath>,
}

impl Cgroup {
    /// Makes the cgroup `path` (`linux.cgroupsPath`) with its limits and device rules.
    ///
    /// An absolute path is below the mount points of the hierarchies; a relative one is below the caller's own cgroup on version 1,
    /// and beside it on version 2, where a cgroup with processes can have no controlled children. Missing parents are made, too. A
    /// cgroup of that name without processes is replaced; one that has some is an error.
    ///
    /// Devices are denied unless the rules, or the
    /// [specification](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices), allow them.
    ///
    /// A limit that cannot have its effect on this host is an error that names its field. On failure all that was made is removed.
    pub fn create(hierarchies: &Hierarchies, path: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let name = CgroupName::parse(path)?;
        let none = LinuxResources::default();
        let resources = resources.unwrap_or(&none);
        let available = available(hierarchies)?;
        let home = |controller| hierarchies.home(controller, &available);
        let new = |file: &str| Err(io::Error::new(io::ErrorKind::NotFound, file.to_owned()));
        let plan = limits::plan(resources, &home, &new)?;
        let devices = Devices::new(resources.devices().as_deref().unwrap_or_default())?;
        let lines = if home(Controller::Devices) == Home::V1 { devices.v1()?.lines() } else { Vec::new() };
        refuse_missing_v2(hierarchies, &plan, &available)?;

        let cgroup = Self::select(hierarchies, &name, &plan)?;
        let mut made = Made::default();
        let mut folders = Vec::with_capacity(cgroup.paths.len());
        for place in &cgroup.paths {
            let wanted = if place.is_unified() { Some((&plan, available.as_slice())) } else { None };
            made.make(place, name.depth(), wanted)?;
            let folder = place.open()?;
            if place.has(Controller::Cpuset) {
                inherit_cpuset(&folder, name.depth())?;
            }
            if place.has(Controller::Devices) {
                write_devices(&folder, &lines)?;
            }
            folders.push(folder);
        }
        cgroup.apply(&plan, &folders)?;
        if home(Controller::Devices) == Home::V2 && !devices.is_everything() {
            for (place, folder) in cgroup.paths.iter().zip(&folders).filter(|(p, _)| p.is_unified()) {
                attach_filter(&devices, folder).map_err(place.io("attach a device filter to cgroup"))?;
            }
        }
        made.keep();
        Ok(cgroup)
    }

    /// The cgroup `path` as [`Cgroup::create`] names it, with all folders that it may have. Whether there are any is not looked at.
    pub fn open(hierarchies: &Hierarchies, path: &str) -> Result<Self> {
        let name = CgroupName::parse(path)?;
        let mut cgroup = Self { paths: Vec::new() };
        for hierarchy in hierarchies.legacy() {
            cgroup.push_legacy(hierarchy, &name)?;
        }
        cgroup.push_unified(hierarchies, &name)?;
        Ok(cgroup)
    }

    /// The cgroup that a process is in, as far as it is not the root of a hierarchy.
    pub fn of_process(hierarchies: &Hierarchies, pid: i32) -> Result<Self> {
        let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|source| Error::Io { operation: "read", path, source })?;
        Ok(Self { paths: hierarchies.folders_of(&text) })
    }

    /// A cgroup by the folders that [`Cgroup::paths`] gave.
    #[must_use]
    pub fn from_paths(paths: Vec<CgroupPath>) -> Self {
        Self { paths }
    }

    /// Its folders, for a state file.
    #[must_use]
    pub fn paths(&self) -> &[CgroupPath] {
        &self.paths
    }

    /// The folders that a new cgroup needs.
    fn select(hierarchies: &Hierarchies, name: &CgroupName, plan: &Plan) -> Result<Self> {
        let mut cgroup = Self { paths: Vec::new() };
        for hierarchy in hierarchies.legacy() {
            let needed = |c: &Controller| ALWAYS.contains(c) || plan.v1.iter().any(|s| s.controller == *c);
            if hierarchy.controllers.iter().any(needed) {
                cgroup.push_legacy(hierarchy, name)?;
            }
        }
        // Beside version 1 hierarchies the version 2 tree is used only for what lives there.
        if hierarchies.mode() == Mode::V2 || !plan.v2.is_empty() {
            cgroup.push_unified(hierarchies, name)?;
        }
        Ok(cgroup)
    }

    fn push_legacy(&mut self, hierarchy: &hierarchies::Legacy, name: &CgroupName) -> Result<()> {
        let path = Hierarchies::legacy_folder(hierarchy, name)?;
        let controllers = hierarchy.controllers.iter().map(|c| c.v1_name().to_owned()).collect();
        self.paths.push(CgroupPath { controllers, path });
        Ok(())
    }

    fn push_unified(&mut self, hierarchies: &Hierarchies, name: &CgroupName) -> Result<()> {
        if let Some(path) = hierarchies.unified_folder(name)? {
            self.paths.push(CgroupPath { controllers: Vec::new(), path });
        }
        Ok(())
    }

    /// Write-only descriptors of the version 1 hierarchies' `tasks`. A single thread that writes `0` to each of them is in the
    /// cgroup. Empty on version 2.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let legacy = self.paths.iter().filter(|p| !p.is_unified());
        legacy.map(|place| place.open()?.writer("tasks").map_err(place.io("open the tasks of cgroup"))).collect()
    }

    /// The folder in the version 2 tree, for `CLONE_INTO_CGROUP` of
    /// [`clone3(2)`](https://man7.org/linux/man-pages/man2/clone3.2.html). `None` on version 1, and in hybrid mode where no limit
    /// needs it.
    pub fn dir(&self) -> Result<Option<OwnedFd>> {
        let Some(place) = self.paths.iter().find(|p| p.is_unified()) else {
            return Ok(None);
        };
        // clone3 refuses an O_PATH descriptor.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(&place.path, flags, Permissions::empty());
        fd.map(Some).map_err(|e| place.io("open cgroup")(e.into()))
    }

    /// A write-only descriptor of the version 2 folder's `cgroup.procs`, for a process that joins by writing `0` to it where it
    /// cannot be born in [`Cgroup::dir`].
    pub fn procs(&self) -> Result<Option<OwnedFd>> {
        let Some(place) = self.paths.iter().find(|p| p.is_unified()) else {
            return Ok(None);
        };
        place.open()?.writer("cgroup.procs").map(Some).map_err(place.io("open the processes of cgroup"))
    }

    /// The folder of the version 2 tree that the process `pid` is in: this cgroup's or one below it.
    ///
    /// Where a container has made cgroups of its own and limits them, the kernel lets no process into the one above them (`EBUSY`).
    pub(crate) fn dir_of(&self, pid: i32) -> Result<Option<OwnedFd>> {
        let Some(place) = self.paths.iter().find(|p| p.is_unified()) else {
            return Ok(None);
        };
        let mut found = None;
        folder::for_each_below(&place.path, &mut |path| {
            if found.is_none()
                && let Some(folder) = Folder::open_if_there(path)?
                && folder.processes()?.contains(&pid)
            {
                found = Some(readable(&folder)?);
            }
            Ok(())
        })
        .map_err(place.io("list the processes of cgroup"))?;
        Ok(found)
    }

    /// Whether it is frozen, by whomever.
    pub fn is_frozen(&self) -> Result<bool> {
        let Some((freezer, file, on, _)) = self.freezer() else {
            return Ok(false);
        };
        let Some(folder) = Folder::open_if_there(&freezer.path).map_err(freezer.io("open cgroup"))? else {
            return Ok(false);
        };
        folder.read(file).map(|text| text.trim_end() == on).map_err(freezer.io("read the state of cgroup"))
    }

    fn apply(&self, plan: &Plan, folders: &[Folder]) -> Result<()> {
        let places = || self.paths.iter().zip(folders);
        let v1 = |setting: &Setting| places().find(|(p, _)| p.has(setting.controller)).map(|(_, folder)| folder);
        limits::apply(plan.v1.iter().filter_map(|s| Some((s, v1(s)?))))?;
        let Some((_, unified)) = places().find(|(p, _)| p.is_unified()) else {
            return match plan.v2.first() {
                None => Ok(()),
                Some(setting) => Err(update::no_unified(setting)),
            };
        };
        limits::apply(plan.v2.iter().map(|s| (s, unified)))
    }

    /// Every process in the cgroup and in those below it, each once.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for place in &self.paths {
            folder::for_each_below(&place.path, &mut |path| {
                if let Some(folder) = Folder::open_if_there(path)? {
                    pids.extend(folder.processes()?);
                }
                Ok(())
            })
            .map_err(place.io("list the processes of cgroup"))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops every process where it stands, and returns when all are stopped.
    ///
    /// If they are not within 10 seconds (one may hang in the kernel), they are thawed again and it is an error.
    pub fn freeze(&self) -> Result<()> {
        self.freeze_within(PATIENCE)
    }

    fn freeze_within(&self, limit: Duration) -> Result<()> {
        let Some((freezer, file, on, _)) = self.freezer() else {
            return Err(no_freezer());
        };
        let folder = freezer.open()?;
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_micros(50);
        folder.write(file, on).map_err(freezer.io("freeze cgroup"))?;
        loop {
            let frozen = if freezer.is_unified() {
                folder.read("cgroup.events").map(|text| text.lines().any(|l| l == "frozen 1"))
            } else {
                folder.read(file).map(|text| text.trim_end() == on)
            };
            if frozen.map_err(freezer.io("freeze cgroup"))? {
                return Ok(());
            }
            if Instant::now() > deadline {
                let path = freezer.path.clone();
                // A failure to thaw would hide the failure to freeze.
                let _ = self.thaw();
                return Err(Error::CgroupTimeout { operation: "freeze cgroup", path, limit });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
            if !freezer.is_unified() {
                // A process that was forked while version 1 was freezing can leave it at FREEZING until it is told again.
                folder.write(file, on).map_err(freezer.io("freeze cgroup"))?;
            }
        }
    }

    /// Undoes [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        let Some((freezer, file, _, off)) = self.freezer() else {
            return Err(no_freezer());
        };
        freezer.open()?.write(file, off).map_err(freezer.io("thaw cgroup"))
    }

    /// The folder that freezes, its file, and what to write to freeze and to thaw.
    fn freezer(&self) -> Option<(&CgroupPath, &'static str, &'static str, &'static str)> {
        let legacy = self.paths.iter().find(|p| p.has(Controller::Freezer));
        let legacy = legacy.map(|p| (p, "freezer.state", "FROZEN", "THAWED"));
        let unified = || self.paths.iter().find(|p| p.is_unified()).map(|p| (p, "cgroup.freeze", "1", "0"));
        legacy.or_else(unified)
    }

    /// Sends `signal` to every process in the cgroup and below. They are frozen meanwhile, so that none escapes by forking.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        // One that cannot be frozen is signalled all the same.
        let frozen = self.freeze_within(Duration::from_millis(500)).is_ok();
        let sent = self.pids().and_then(|pids| pids.into_iter().try_for_each(|pid| send(pid, signal)));
        if frozen {
            self.thaw()?;
        }
        sent
    }

    /// Kills every process in the cgroup and below, and returns when there is none left.
    ///
    /// One that is ending and has to wait for somebody else counts as gone after a tenth of a second: the first of a pid namespace
    /// stays until all others of it are reaped, those that were added from outside by their own parents.
    ///
    /// `cgroup.kill` (Linux 5.14) where the version 2 tree has the processes, else by signals to the frozen cgroup. An error if some
    /// are left after 10 seconds.
    pub fn kill(&self) -> Result<()> {
        self.kill_by(KillWay::Kernel)
    }

    /// As [`Cgroup::kill`], in a way that is chosen.
    pub fn kill_by(&self, way: KillWay) -> Result<()> {
        let start = Instant::now();
        let deadline = start + PATIENCE;
        let mut pause = Duration::from_micros(100);
        let mut killed = way == KillWay::Kernel && self.kill_file()?;
        loop {
            let pids = self.pids()?;
            let gone = |pid: &i32| is_ending(*pid);
            if pids.is_empty() || start.elapsed() > LINGERING && pids.iter().all(gone) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let path = self.paths.first().map(|p| p.path.clone()).unwrap_or_default();
                return Err(Error::CgroupInUse { path, pids });
            }
            // What the kernel killed takes a moment to go; what is not in the version 2 folder has to be signalled.
            if !std::mem::take(&mut killed) {
                self.kill_frozen()?;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Whether the kernel killed by itself.
    fn kill_file(&self) -> Result<bool> {
        let Some(place) = self.paths.iter().find(|p| p.is_unified()) else {
            return Ok(false);
        };
        match Folder::open_if_there(&place.path).and_then(|f| f.map(|f| f.write("cgroup.kill", "1")).transpose()) {
            Ok(_) => Ok(true),
            // No such file before 5.14; a threaded cgroup refuses.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => Ok(false),
            Err(e) => Err(place.io("kill cgroup")(e)),
        }
    }

    fn kill_frozen(&self) -> Result<()> {
        let frozen = self.freeze_within(Duration::from_millis(500)).is_ok();
        let sent = self.pids().and_then(|pids| pids.into_iter().try_for_each(|pid| send(pid, libc::SIGKILL)));
        if frozen {
            // On version 1 a frozen process dies only when it is thawed.
            self.thaw()?;
        }
        sent
    }

    /// Removes the cgroup and those below it; absent is fine, parents stay.
    ///
    /// One that is busy is tried again for two seconds, since an exiting process holds its cgroup a little longer than it is listed;
    /// one that has processes is an error after a tenth of a second.
    /// Every folder is tried; the first failure is returned.
    pub fn remove(&self) -> Result<()> {
        let mut result = Ok(());
        for place in &self.paths {
            if let Err(source) = folder::remove(&place.path) {
                let pids = match source.kind() {
                    io::ErrorKind::ResourceBusy => self.pids().unwrap_or_default(),
                    _ => Vec::new(),
                };
                let error = if pids.is_empty() {
                    place.io("remove cgroup")(source)
                } else {
                    Error::CgroupInUse { path: place.path.clone(), pids }
                };
                result = result.and(Err(error));
            }
        }
        result
    }
}

/// The settings and rules of `resources` on a host of each version, made and dropped.
#[cfg(any(fuzzing, test))]
pub(crate) fn plan_only(resources: &LinuxResources) {
    let current = |_: &str| Ok("max 100000".to_owned());
    for home in [Home::V1, Home::V2, Home::Nowhere] {
        let _ = limits::plan(resources, &|_| home, &current);
    }
    if let Ok(devices) = Devices::new(resources.devices().as_deref().unwrap_or_default()) {
        let _ = program::program(&devices);
        let _ = devices.v1().map(|exceptions| exceptions.lines());
    }
}

/// How all processes of a cgroup are killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillWay {
    /// By `cgroup.kill` if the kernel has it.
    Kernel,
    /// By signals only, as on a kernel without it.
    Signals,
}

fn words(folder: &Folder, file: &str) -> io::Result<Vec<String>> {
    Ok(folder.read(file)?.split_whitespace().map(str::to_owned).collect())
}

fn write_devices(folder: &Folder, lines: &[Line]) -> Result<()> {
    let open = |file: &str| {
        folder.writer(file).map_err(|source| Error::Io { operation: "open", path: folder.path.join(file), source })
    };
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    for line in lines {
        let (fd, file, value) = match line {
            Line::Allow(value) => (&allow, "devices.allow", value),
            Line::Deny(value) => (&deny, "devices.deny", value),
        };
        folder::write_once(fd, value).map_err(|source| Error::Limit {
            field: "linux.resources.devices".to_owned(),
            value: value.clone(),
            path: folder.path.join(file),
            source,
        })?;
    }
    Ok(())
}

fn attach_filter(devices: &Devices, folder: &Folder) -> io::Result<()> {
    // Only the host's root may load such a program, and in a user namespace nobody makes devices: those that there are were shown.
    if rootless::ids() != rootless::Ids::Host {
        return Ok(());
    }
    let program = bpf::load_device_filter(&program::program(devices)).map_err(io::Error::from_raw_os_error)?;
    let cgroup = readable(folder)?;
    bpf::attach_device_filter(cgroup.as_fd(), &program).map_err(io::Error::from_raw_os_error)
}

/// bpf(2) refuses an O_PATH descriptor.
fn readable(folder: &Folder) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder.fd(), ".", flags, Permissions::empty())?)
}

/// Whether a process is on its way out and executes nothing more: `PF_EXITING`, the ninth field of
/// [`/proc/PID/stat`](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html).
fn is_ending(pid: i32) -> bool {
    const EXITING: u64 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields
        .split_whitespace()
        .nth(6)
        .and_then(|flags| flags.parse::<u64>().ok())
        .is_some_and(|flags| flags & EXITING != 0)
}

/// Sends a signal; a process that has ended meanwhile is fine.
fn send(pid: i32, signal: i32) -> Result<()> {
    match crate::sys::signal::kill(pid, signal) {
        Ok(()) | Err(libc::ESRCH) => Ok(()),
        Err(errno) => Err(Error::System { operation: "send a signal", source: io::Error::from_raw_os_error(errno) }),
    }
}

fn no_freezer() -> Error {
    Error::Kernel { feature: "a freezer in the container's cgroup", purpose: "to stop all of its processes".to_owned() }
}
