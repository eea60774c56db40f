//! Which cgroup hierarchies this host has, and where they are mounted.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::CgroupPath;
use crate::error::{Error, Result};

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Where every distribution mounts its cgroups.
const USUAL_ROOT: &str = "/sys/fs/cgroup";

/// A resource controller, by what it controls. Version 1 and 2 name some of them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    Blkio,
    Cpu,
    Cpuacct,
    Cpuset,
    Devices,
    Freezer,
    Hugetlb,
    Memory,
    Misc,
    NetCls,
    NetPrio,
    Pids,
    Rdma,
}

impl Controller {
    const ALL: [Self; 13] = [
        Self::Blkio,
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Devices,
        Self::Freezer,
        Self::Hugetlb,
        Self::Memory,
        Self::Misc,
        Self::NetCls,
        Self::NetPrio,
        Self::Pids,
        Self::Rdma,
    ];

    /// The name as a mount option of a version 1 hierarchy.
    pub(crate) fn v1_name(self) -> &'static str {
        match self {
            Self::Blkio => "blkio",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Devices => "devices",
            Self::Freezer => "freezer",
            Self::Hugetlb => "hugetlb",
            Self::Memory => "memory",
            Self::Misc => "misc",
            Self::NetCls => "net_cls",
            Self::NetPrio => "net_prio",
            Self::Pids => "pids",
            Self::Rdma => "rdma",
        }
    }

    /// The name in `cgroup.controllers`. `None` where version 2 has no such controller: devices are
    /// an eBPF program there, the freezer and the counting of processor time are part of every cgroup, the network
    /// ones are gone.
    pub(crate) fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Blkio => Some("io"),
            Self::Cpuacct | Self::Devices | Self::Freezer | Self::NetCls | Self::NetPrio => None,
            other => Some(other.v1_name()),
        }
    }
}

/// One mounted version 1 hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Legacy {
    pub(crate) controllers: Vec<Controller>,
    /// All names that the kernel gives it, as in `/proc/PID/cgroup`: `cpu,cpuacct`.
    names: Vec<String>,
    mount: Mounted,
}

/// Where a hierarchy, or a part of one, is mounted.
#[derive(Clone, Debug)]
struct Mounted {
    point: PathBuf,
    /// The part of the hierarchy that is mounted: `/` but in a container without a cgroup namespace.
    root: PathBuf,
}

/// The cgroup hierarchies of a host: version 1, version 2, or both at once (hybrid).
///
/// Looking changes nothing on the machine. The value may be kept: hierarchies do not come and go.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    legacy: Vec<Legacy>,
    unified: Option<Mounted>,
}

/// Which versions a host's hierarchies are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 1 only.
    V1,
    /// Version 1 for some controllers, beside a version 2 tree for others or for none.
    Hybrid,
    /// Version 2 only.
    V2,
}

/// Where a controller lives on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    V1,
    V2,
    Nowhere,
}

impl Hierarchies {
    /// Finds the hierarchies that this process sees.
    ///
    /// A pure version 2 host is recognised by one `statfs(2)` of `/sys/fs/cgroup`; else
    /// `/proc/self/mountinfo` is read.
    pub fn detect() -> Result<Self> {
        let usual = Path::new(USUAL_ROOT);
        if is_cgroup2(usual) {
            return Ok(Self::unified_at(usual.to_owned()));
        }
        Self::from_mountinfo(&mountinfo()?, None)
    }

    /// The hierarchies at `root`: a mounted cgroup2 file system, or a folder that holds the mount
    /// points of version 1 hierarchies as `/sys/fs/cgroup` does.
    pub fn at(root: &Path) -> Result<Self> {
        if is_cgroup2(root) {
            return Ok(Self::unified_at(root.to_owned()));
        }
        Self::from_mountinfo(&mountinfo()?, Some(root))
    }

    /// Which versions they are of.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match (self.legacy.is_empty(), &self.unified) {
            (true, _) => Mode::V2,
            (false, Some(_)) => Mode::Hybrid,
            (false, None) => Mode::V1,
        }
    }

    fn unified_at(point: PathBuf) -> Self {
        Self { legacy: Vec::new(), unified: Some(Mounted { point, root: PathBuf::from("/") }) }
    }

    fn from_mountinfo(text: &str, below: Option<&Path>) -> Result<Self> {
        let mut legacy: Vec<Legacy> = Vec::new();
        let mut unified: Option<Mounted> = None;
        for line in text.lines() {
            let Some(mount) = MountLine::parse(line) else {
                continue;
            };
            if below.is_some_and(|root| !mount.mounted.point.starts_with(root)) {
                continue;
            }
            match mount.kind {
                // The same hierarchy may be mounted many times: the usual place wins, else the first.
                "cgroup2" if unified.is_none() || mount.mounted.point.starts_with(USUAL_ROOT) => {
                    unified = Some(mount.mounted);
                }
                "cgroup" => {
                    let controllers: Vec<Controller> = Controller::ALL
                        .into_iter()
                        .filter(|c| mount.options.split(',').any(|o| o == c.v1_name()))
                        .collect();
                    if controllers.is_empty() {
                        continue;
                    }
                    let names = mount.options.split(',').map(str::to_owned).collect();
                    let entry = Legacy { controllers, names, mount: mount.mounted };
                    match legacy.iter_mut().find(|l| l.controllers == entry.controllers) {
                        Some(known) if entry.mount.point.starts_with(USUAL_ROOT) => *known = entry,
                        Some(_) => {}
                        None => legacy.push(entry),
                    }
                }
                _ => {}
            }
        }
        if legacy.is_empty() && unified.is_none() {
            return Err(Error::CgroupsNotMounted);
        }
        Ok(Self { legacy, unified })
    }

    pub(crate) fn legacy(&self) -> &[Legacy] {
        &self.legacy
    }

    pub(crate) fn has_unified(&self) -> bool {
        self.unified.is_some()
    }

    /// The root of the version 2 tree.
    pub(crate) fn unified_mount(&self) -> Option<&Path> {
        self.unified.as_ref().map(|m| m.point.as_path())
    }

    /// Where `controller` lives. `available` holds the names in the version 2 root's `cgroup.controllers`.
    pub(crate) fn home(&self, controller: Controller, available: &[String]) -> Home {
        if self.legacy.iter().any(|l| l.controllers.contains(&controller)) {
            return Home::V1;
        }
        match controller.v2_name() {
            Some(name) if available.iter().any(|a| a == name) => Home::V2,
            None if self.legacy.is_empty() && matches!(controller, Controller::Devices | Controller::Freezer) => {
                Home::V2
            }
            _ => Home::Nowhere,
        }
    }

    /// The folder of a cgroup in the version 1 hierarchy of `controller`, by those that it has in others, and how deep it lies.
    pub(crate) fn beside(&self, places: &[CgroupPath], controller: Controller) -> Option<(CgroupPath, usize)> {
        let below = places.iter().find_map(|place| {
            let legacy = self
                .legacy
                .iter()
                .find(|l| l.controllers.iter().any(|c| place.controllers.iter().any(|n| n == c.v1_name())))?;
            place.path.strip_prefix(&legacy.mount.point).ok()
        })?;
        let legacy = self.legacy.iter().find(|l| l.controllers.contains(&controller))?;
        let controllers = legacy.controllers.iter().map(|c| c.v1_name().to_owned()).collect();
        Some((CgroupPath { controllers, path: legacy.mount.point.join(below) }, below.components().count()))
    }

    /// The folder of `cgroup` in a version 1 hierarchy.
    pub(crate) fn legacy_folder(hierarchy: &Legacy, cgroup: &CgroupName) -> Result<PathBuf> {
        let own = |text: &str| {
            own_path(text, |controllers| controllers.split(',').any(|c| hierarchy.names.iter().any(|n| n == c)))
        };
        hierarchy.mount.folder(cgroup, own)
    }

    /// The folder of `cgroup` in the version 2 tree, if there is one.
    pub(crate) fn unified_folder(&self, cgroup: &CgroupName) -> Result<Option<PathBuf>> {
        let Some(mounted) = &self.unified else {
            return Ok(None);
        };
        // The caller's own cgroup has processes in it (the caller), so controllers cannot be enabled
        // for folders below it: a relative name is a sibling of it.
        let own = |text: &str| {
            own_path(text, str::is_empty).map(|p| p.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
        };
        mounted.folder(cgroup, own).map(Some)
    }
}

impl Hierarchies {
    /// The folders of the cgroup that a process is in, from the text of its `/proc/PID/cgroup`; the roots are left out.
    pub(crate) fn folders_of(&self, text: &str) -> Vec<CgroupPath> {
        let mut folders = Vec::new();
        let mut push = |mounted: &Mounted, controllers: Vec<String>, own: Option<PathBuf>| {
            let below = own.as_ref().and_then(|own| own.strip_prefix(&mounted.root).ok());
            // A path with `..` lies outside of what is visible here.
            let inside = |below: &&Path| below.components().all(|part| matches!(part, Component::Normal(_)));
            if let Some(below) = below.filter(inside).filter(|below| !below.as_os_str().is_empty()) {
                folders.push(CgroupPath { controllers, path: mounted.point.join(below) });
            }
        };
        for hierarchy in &self.legacy {
            let listed = |controllers: &str| controllers.split(',').any(|c| hierarchy.names.iter().any(|n| n == c));
            let controllers = hierarchy.controllers.iter().map(|c| c.v1_name().to_owned()).collect();
            push(&hierarchy.mount, controllers, own_path(text, listed));
        }
        if let Some(unified) = &self.unified {
            push(unified, Vec::new(), own_path(text, str::is_empty));
        }
        folders
    }
}

impl Mounted {
    fn folder(&self, cgroup: &CgroupName, own: impl FnOnce(&str) -> Option<PathBuf>) -> Result<PathBuf> {
        if cgroup.absolute {
            return Ok(self.point.join(&cgroup.path));
        }
        let text = fs::read_to_string("/proc/self/cgroup").map_err(|source| Error::Io {
            operation: "read",
            path: "/proc/self/cgroup".into(),
            source,
        })?;
        let own = own(&text).unwrap_or_else(|| PathBuf::from("/"));
        // What is mounted may be a part of the hierarchy; a path outside of it cannot be reached.
        let below = own.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let below = below.strip_prefix("/").unwrap_or(below);
        Ok(self.point.join(below).join(&cgroup.path))
    }
}

/// A cgroup's name (`linux.cgroupsPath`), checked: no `..`, not the root itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CgroupName {
    absolute: bool,
    /// Never absolute, never empty.
    path: PathBuf,
}

impl CgroupName {
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let refuse = |reason: &str| {
            Err(Error::InvalidSpec { field: "linux.cgroupsPath".to_owned(), reason: format!("{name:?}: {reason}") })
        };
        let mut path = PathBuf::new();
        for component in Path::new(name).components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(part) => {
                    if part.as_bytes().iter().any(|b| matches!(b, 0 | b'\n')) {
                        return refuse("it holds a NUL or a line break");
                    }
                    if part.len() > 255 {
                        return refuse("a part of it is longer than 255 bytes");
                    }
                    path.push(part);
                }
                Component::ParentDir => return refuse("it holds `..`"),
                Component::Prefix(_) => return refuse("it has a prefix"),
            }
        }
        if path.as_os_str().is_empty() {
            return refuse("it names the root of the hierarchy");
        }
        Ok(Self { absolute: name.starts_with('/'), path })
    }

    /// How many folders deep it is.
    pub(crate) fn depth(&self) -> usize {
        self.path.components().count()
    }
}

/// The fields of a line of `/proc/self/mountinfo` that matter here (proc_pid_mountinfo(5)).
struct MountLine<'a> {
    mounted: Mounted,
    kind: &'a str,
    options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let kind = file_system.next()?;
        if kind != "cgroup" && kind != "cgroup2" {
            return None;
        }
        let options = file_system.nth(1)?;
        let mut mount = mount.split(' ').skip(3);
        let root = unescape(mount.next()?);
        let point = unescape(mount.next()?);
        Some(Self { mounted: Mounted { point, root }, kind, options })
    }
}

/// Undoes mountinfo's octal escapes of space, tab, line break and backslash.
fn unescape(field: &str) -> PathBuf {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|d| u8::from_str_radix(d, 8).ok());
        out.push(code.map_or('\\', char::from));
        rest = &rest[at + if code.is_some() { 4 } else { 1 }..];
    }
    out.push_str(rest);
    out.into()
}

/// The path of the line of `/proc/self/cgroup` whose controllers are `wanted` (cgroups(7)).
fn own_path(text: &str, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        wanted(controllers).then(|| PathBuf::from(path))
    })
}

fn mountinfo() -> Result<String> {
    let path = Path::new("/proc/self/mountinfo");
    let bytes =
        fs::read(path).map_err(|source: io::Error| Error::Io { operation: "read", path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type as u64 == CGROUP2_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 1 0:21 / / rw - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
50 31 0:32 / /mnt/with\\040space/memory rw - cgroup cgroup rw,memory
";

    fn hybrid() -> Hierarchies {
        Hierarchies::from_mountinfo(HYBRID, None).expect("hybrid")
    }

    #[test]
    fn hybrid_is_recognised_and_the_usual_place_wins() {
        let h = hybrid();
        assert_eq!(h.mode(), Mode::Hybrid);
        let found: Vec<_> = h.legacy().iter().map(|l| (&l.controllers[..], l.mount.point.as_path())).collect();
        assert_eq!(
            found,
            [
                (&[Controller::Cpu, Controller::Cpuacct][..], Path::new("/sys/fs/cgroup/cpu,cpuacct")),
                (&[Controller::Memory][..], Path::new("/sys/fs/cgroup/memory")),
            ]
        );
        assert_eq!(h.unified_mount(), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn a_process_is_found_by_its_lines() {
        let text = "5:cpu,cpuacct:/a/b\n3:memory:/../outside\n2:name=systemd:/x\n0::/a\n";
        let found: Vec<_> = hybrid().folders_of(text).into_iter().map(|at| (at.controllers, at.path)).collect();
        let cpu = vec!["cpu".to_owned(), "cpuacct".to_owned()];
        assert_eq!(
            found,
            [(cpu, "/sys/fs/cgroup/cpu,cpuacct/a/b".into()), (vec![], "/sys/fs/cgroup/unified/a".into())]
        );
        assert_eq!(hybrid().folders_of("5:cpu,cpuacct:/\n0::/\n"), []);
    }

    #[test]
    fn only_mounts_below_the_given_root_count() {
        let h = Hierarchies::from_mountinfo(HYBRID, Some(Path::new("/mnt/with space"))).expect("memory alone");
        assert_eq!(h.mode(), Mode::V1);
        assert_eq!(h.legacy().len(), 1);
        let none = Hierarchies::from_mountinfo(HYBRID, Some(Path::new("/nowhere")));
        assert!(matches!(none, Err(Error::CgroupsNotMounted)));
    }

    #[test]
    fn a_controller_lives_on_v1_first_then_on_v2() {
        let h = hybrid();
        let available = ["hugetlb".to_owned(), "memory".to_owned()];
        let table = [
            (Controller::Memory, Home::V1),
            (Controller::Hugetlb, Home::V2),
            (Controller::Pids, Home::Nowhere),
            // In hybrid mode the device program would sit on a tree that the process is not in.
            (Controller::Devices, Home::Nowhere),
        ];
        for (controller, home) in table {
            assert_eq!(h.home(controller, &available), home, "{controller:?}");
        }
        let pure = Hierarchies::unified_at("/sys/fs/cgroup".into());
        assert_eq!(pure.home(Controller::Devices, &[]), Home::V2);
        assert_eq!(pure.home(Controller::NetCls, &[]), Home::Nowhere);
        assert_eq!(pure.home(Controller::Blkio, &["io".to_owned()]), Home::V2);
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", "/", ".", "/.", "..", "/a/../b", "a/..", "a\nb", "a\0b"] {
            assert!(matches!(CgroupName::parse(bad), Err(Error::InvalidSpec { .. })), "{bad:?}");
        }
        assert!(CgroupName::parse(&format!("/{}", "x".repeat(256))).is_err());
        let name = CgroupName::parse("//a/./b/").expect("a plain name");
        assert_eq!((name.absolute, name.path.as_path(), name.depth()), (true, Path::new("a/b"), 2));
        assert!(!CgroupName::parse("a/b").expect("relative").absolute);
        // Dots inside a name are no way up.
        assert!(CgroupName::parse("/a/..b").is_ok());
    }

    #[test]
    fn own_paths_are_found_by_controller() {
        let text = "9:name=systemd:/\n4:memory:/process_api/x\n1:cpu,cpuacct:/c:d\n0::/user\n";
        assert_eq!(own_path(text, |c| c == "memory"), Some("/process_api/x".into()));
        assert_eq!(own_path(text, |c| c.split(',').any(|c| c == "cpuacct")), Some("/c:d".into()));
        assert_eq!(own_path(text, str::is_empty), Some("/user".into()));
        assert_eq!(own_path(text, |c| c == "pids"), None);
    }

    #[test]
    fn a_mount_of_a_part_is_addressed_from_its_root() {
        let part = Mounted { point: "/sys/fs/cgroup/memory".into(), root: "/docker/abc".into() };
        let absolute = CgroupName::parse("/x").expect("name");
        assert_eq!(part.folder(&absolute, |_| None).expect("folder"), Path::new("/sys/fs/cgroup/memory/x"));
        let relative = CgroupName::parse("x").expect("name");
        let own = |_: &str| Some(PathBuf::from("/docker/abc/inner"));
        assert_eq!(part.folder(&relative, own).expect("folder"), Path::new("/sys/fs/cgroup/memory/inner/x"));
    }
}
