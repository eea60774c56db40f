//! What the child does between clone and exec, worked out beforehand.
//!
//! A plan is pure data: a flat list of [`Step`]s with all texts as C strings. What has to be opened on the host is listed as
//! [`Open`]s, and the steps name the descriptors by their place in a table. So a plan can be made and checked without a kernel, and
//! the child that follows it needs no allocator.

mod device;
mod exec;
mod label;
mod mount;
mod option;
mod process;
mod refusal;
mod schedule;
mod step;
mod target;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Spec};

pub(crate) use label::label_warnings;
pub(crate) use mount::id_map;
pub(crate) use option::{Options, parse as parse_options};
use process::{Pause, Program};
pub(crate) use process::{capability_warnings, limits};
pub(crate) use schedule::priorities;
pub(crate) use step::{Filesystem, Late, Step};
pub(crate) use target::Target;

use crate::rights::Common;
use crate::sys::mount::Depth;
use crate::sys::process::{CLONE_NEWTIME, Strings};
use crate::{Error, Features, Keyring, Labels, Result, RootSwitch, seccomp};

/// A place in the child's table of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) usize);

impl Slot {
    /// The socket to the parent.
    pub(crate) const SOCKET: Self = Self(0);
    /// The fifo on which the child waits for `start`.
    pub(crate) const GATE: Self = Self(1);
    /// The detached mount of the root filesystem.
    pub(crate) const ROOT: Self = Self(2);
    /// How many of the above there are: the opens of the plan come next, then the cgroups' `tasks` files.
    pub(crate) const FIXED: usize = 3;
}

/// What the host is like, as far as a plan depends on it.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Host<'a> {
    /// What the kernel offers.
    pub(crate) features: Features,
    /// The bundle's folder.
    pub(crate) bundle: &'a Path,
    /// The container's name.
    pub(crate) id: &'a str,
    /// The capabilities that the calling process itself has.
    pub(crate) permitted: u64,
    /// The container's folder in each cgroup hierarchy, with the name that the hierarchy has below `/sys/fs/cgroup`; empty for the
    /// one folder of a pure version 2.
    pub(crate) cgroups: Vec<(String, PathBuf)>,
    /// How many `tasks` files the child has to write to.
    pub(crate) tasks: usize,
    /// Whether the container gets a terminal.
    pub(crate) terminal: bool,
    /// How many descriptors past the standard streams the process keeps.
    pub(crate) preserved: usize,
    /// Whether it gets a session keyring.
    pub(crate) keyring: Keyring,
    /// How the root is switched.
    pub(crate) root_switch: RootSwitch,
    /// The root's place on the host, where hooks expect to find it.
    pub(crate) root_path: Option<&'a Path>,
    /// Whether there is a seccomp filter to load.
    pub(crate) filter: Option<Filter>,
    /// Whether the calling process has no privileges: then only the child can mount anything, in a user namespace of its own.
    pub(crate) rootless: bool,
    /// Whether the calling process is in a user namespace itself: then it cannot make devices.
    pub(crate) confined: bool,
    /// Whether it may set groups.
    pub(crate) groups: bool,
    /// Whether AppArmor gives profiles to programs.
    pub(crate) apparmor: bool,
    /// Whether `SELinux` gives labels to programs and files.
    pub(crate) selinux: bool,
    /// What becomes of labels that nobody gives.
    pub(crate) labels: Labels,
    /// Whether mounts can be made on mounts that are attached nowhere.
    pub(crate) nested: bool,
    /// Whether the kernel shows its memory as `/proc/kcore`.
    pub(crate) kcore: bool,
}

/// What a seccomp filter does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// It decides.
    Decides,
    /// It asks somebody.
    Asks,
}

impl Filter {
    /// Of a program.
    pub(crate) fn of(program: &seccomp::Program) -> Self {
        if program.asks() { Self::Asks } else { Self::Decides }
    }

    fn step(self) -> Step {
        match self {
            Self::Decides => Step::Filter,
            Self::Asks => Step::AskingFilter,
        }
    }
}

/// What the parent opens before the clone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// A namespace to join.
    Namespace {
        /// Such as `/proc/PID/ns/net`.
        path: PathBuf,
        /// `CLONE_NEW…`.
        kind: u64,
    },
    /// A user namespace whose ids a mount shows.
    Ids(IdMap),
    /// A detached copy of a part of the host's tree.
    Bind {
        /// The file or folder.
        source: PathBuf,
        /// Whether what is mounted below it comes along.
        depth: Depth,
        /// Its attributes and propagation.
        options: Options,
        /// Whose ids its files show, and how deep that goes.
        idmap: Option<(IdMap, Depth)>,
        /// The field that it comes from.
        field: String,
    },
}

/// How the owners of files are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdMap {
    /// By mappings of users and groups, in the form of `/proc/PID/uid_map`.
    Mappings(String, String),
    /// As in this user namespace.
    Namespace(PathBuf),
}

/// What the child does and what it needs for it.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Plan {
    /// The flags of the first clone.
    pub(crate) flags: u64,
    /// What to open; the descriptors go into the table from [`Slot::FIXED`].
    pub(crate) opens: Vec<Open>,
    /// What to do, in order.
    pub(crate) steps: Vec<Step>,
    /// What may be the program, in the order of attempts.
    pub(crate) candidates: Vec<CString>,
    /// The program's arguments.
    pub(crate) arguments: Strings,
    /// The program's environment.
    pub(crate) environment: Strings,
    /// Whether the child waits for its id mappings, as the parent has to write them.
    pub(crate) mappings: bool,
    /// Whether the child makes another that takes its place.
    pub(crate) forks: bool,
    /// Whether it is in a user namespace, where it has no privileges on the host.
    pub(crate) in_user_namespace: bool,
    /// Whether the child asks the parent for something, such as hooks, and waits.
    pub(crate) asks: bool,
    /// What the parent writes to the child's `timens_offsets`.
    pub(crate) clocks: String,
}

/// Collects a plan.
#[derive(Debug)]
struct Planner<'a> {
    spec: &'a Spec,
    host: &'a Host<'a>,
    opens: Vec<Open>,
    steps: Vec<Step>,
    new: u64,
    joined: u64,
    /// Where something is mounted so far.
    mounted: Vec<PathBuf>,
}

const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;

impl Plan {
    /// Works out the plan, or refuses what the configuration asks for.
    pub(crate) fn new(spec: &Spec, host: &Host<'_>) -> Result<Self> {
        Self::check(spec)?;
        let mut planner =
            Planner { spec, host, opens: Vec::new(), steps: Vec::new(), new: 0, joined: 0, mounted: Vec::new() };
        planner.namespaces()?;
        let forks = planner.joined & (NEW_USER | NEW_PID) != 0;
        // What the cgroup namespace shows as its root is where its maker was, so it is made after joining.
        let mut flags = planner.new & !NEW_CGROUP;
        let clocks = planner.clocks()?;
        if !clocks.is_empty() {
            // Its clocks can be set as long as nobody is in it.
            flags &= !CLONE_NEWTIME;
        }
        if host.rootless {
            planner.check_rootless()?;
        } else {
            planner.steps.push(Step::NotDumpable);
        }
        if host.tasks > 0 {
            planner.steps.push(Step::JoinCgroups { count: host.tasks });
        }
        let mut early = if planner.in_user_namespace() { Vec::new() } else { planner.program()?.early()? };
        if planner.joined & NEW_MOUNT != 0 {
            // The files are the host's.
            planner.steps.append(&mut early);
        }
        planner.enter();
        if forks {
            planner.steps.push(Step::Fork { flags });
        }
        let mappings = planner.new & NEW_USER != 0;
        if mappings {
            planner.steps.push(Step::AwaitMappings);
        }
        if host.rootless {
            // Its files in /proc are its user's as long as it is dumpable. Nobody else is in its user namespace yet.
            planner.steps.append(&mut planner.program()?.early()?);
            planner.steps.append(&mut priorities(planner.process()?)?);
        }
        if (planner.new | planner.joined) & NEW_USER != 0 {
            planner.steps.push(Step::BecomeRoot { groups: planner.has_groups() });
        }
        if host.rootless {
            planner.steps.push(Step::NotDumpable);
        }
        if planner.new & NEW_CGROUP != 0 {
            planner.steps.push(Step::UnshareCgroup);
        }
        // In a user namespace the parent does it.
        if !planner.in_user_namespace() {
            planner.steps.append(&mut early);
            planner.steps.append(&mut priorities(planner.process()?)?);
        }
        if !clocks.is_empty() {
            planner.steps.push(Step::Clocks);
        }
        if planner.devices_of_network()? {
            planner.steps.push(Step::Network);
        }
        // Not the first process's, but to be known to be right.
        schedule::affinity(planner.process()?)?;
        planner.names()?;
        planner.sysctls()?;
        planner.root()?;
        let mut late = planner.program()?.late(Pause::UntilStart)?;
        planner.steps.append(&mut late);
        let asks = planner
            .steps
            .iter()
            .any(|step| matches!(step, Step::Hooks | Step::Clocks | Step::Network | Step::AskingFilter));
        let (candidates, arguments, environment) = planner.program()?.texts()?;
        Ok(Self {
            flags: if forks { 0 } else { flags },
            opens: planner.opens,
            steps: planner.steps,
            candidates,
            arguments,
            environment,
            mappings,
            forks,
            in_user_namespace: (planner.new | planner.joined) & NEW_USER != 0,
            asks,
            clocks,
        })
    }

    /// Refuses a configuration that would not have its effect, before anything is made.
    pub(crate) fn check(spec: &Spec) -> Result<()> {
        refusal::check(spec)
    }

    /// A plan without a configuration.
    pub(crate) fn of_steps(steps: Vec<Step>, program: CString, arguments: Strings, environment: Strings) -> Self {
        Self {
            flags: 0,
            opens: Vec::new(),
            steps,
            candidates: vec![program],
            arguments,
            environment,
            mappings: false,
            forks: false,
            in_user_namespace: false,
            asks: false,
            clocks: String::new(),
        }
    }

    /// The cgroup limits of a configuration.
    pub(crate) fn resources(spec: &Spec) -> Option<&LinuxResources> {
        spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())
    }
}

impl Planner<'_> {
    fn namespaces(&mut self) -> Result<()> {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        for (at, namespace) in namespaces.iter().enumerate() {
            let kind = kind(namespace.typ());
            let field = || format!("linux.namespaces[{at}]");
            if (self.new | self.joined) & kind != 0 {
                return Err(invalid(field(), format!("{} is listed twice", namespace.typ())));
            }
            match joined(namespace) {
                None => self.new |= kind,
                Some(path) => {
                    self.joined |= kind;
                    self.opens.push(Open::Namespace { path: path.clone(), kind });
                }
            }
        }
        if self.unattached() {
            if !self.host.nested {
                let purpose = "linux.namespaces: a container without a mount namespace of its own".into();
                return Err(Error::Kernel { feature: "mounts on mounts that are attached nowhere (6.15)", purpose });
            }
            if self.in_user_namespace() || self.host.rootless {
                return Err(unsupported("linux.namespaces", "a user namespace without a mount namespace"));
            }
        }
        if self.new & CLONE_NEWTIME != 0 && !self.host.features.clone3 {
            return Err(Error::Kernel { feature: "clone3 (5.3)", purpose: "linux.namespaces: time".into() });
        }
        Ok(())
    }

    /// Joining: with root's privileges the user namespace comes last, as the others need not be its own; without, it comes first,
    /// since they need its privileges.
    fn enter(&mut self) {
        let mut joins: Vec<_> = self
            .opens
            .iter()
            .enumerate()
            .filter_map(|(at, open)| match open {
                Open::Namespace { path, kind } => {
                    Some(Step::Enter { slot: Slot(Slot::FIXED + at), kind: *kind, path: path.clone() })
                }
                Open::Bind { .. } | Open::Ids(_) => None,
            })
            .collect();
        // With the mount namespace the root changes, and with it what is found at /proc.
        let rootless = self.host.rootless;
        joins.sort_by_key(|step| match step {
            Step::Enter { kind: NEW_USER, .. } => {
                if rootless {
                    0
                } else {
                    3
                }
            }
            Step::Enter { kind: NEW_MOUNT, .. } => 2,
            _ => 1,
        });
        self.steps.append(&mut joins);
    }

    fn process(&self) -> Result<&Process> {
        self.spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))
    }

    fn program(&self) -> Result<Program<'_>> {
        let common = Common::of(self.spec);
        Ok(Program {
            process: self.process()?,
            common,
            host: self.host,
            in_user_namespace: self.in_user_namespace(),
            has_groups: self.has_groups(),
        })
    }

    /// Whether there are devices to move.
    fn devices_of_network(&self) -> Result<bool> {
        let Some(devices) = self.spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref()) else {
            return Ok(false);
        };
        if !devices.is_empty() && !self.own_or_joined(libc::CLONE_NEWNET as u64) {
            return Err(invalid("linux.netDevices", "they need a network namespace"));
        }
        // The kernel's rule, dev_valid_name().
        let valid = |name: &str| {
            let odd = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
            (1..16).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(odd)
        };
        let mut names = Vec::new();
        for (name, device) in devices {
            let field = format!("linux.netDevices.{name}");
            let new = device.name().as_deref().filter(|new| !new.is_empty()).unwrap_or(name);
            if let Some(bad) = [name, new].into_iter().find(|name| !valid(name)) {
                return Err(invalid(field, format!("{bad:?} is no name of a network device")));
            }
            // A pattern, for which the kernel would find a number.
            if new.contains('%') || names.contains(&new) {
                return Err(invalid(field, format!("{new:?} cannot be its name in the container")));
            }
            names.push(new);
        }
        Ok(!devices.is_empty())
    }

    /// What cannot be done without privileges.
    fn check_rootless(&self) -> Result<()> {
        let linux = self.spec.linux().as_ref();
        if self.new & NEW_USER == 0 {
            return Err(invalid("linux.namespaces", "without root, a new user namespace is needed"));
        }
        if self.joined != 0 {
            return Err(unsupported("linux.namespaces", "joining namespaces without root"));
        }
        if linux.is_some_and(|linux| linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())) {
            return Err(unsupported("linux.netDevices", "moving devices takes root"));
        }
        if linux.is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())) {
            return Err(unsupported("linux.timeOffsets", "setting clocks takes root"));
        }
        Ok(())
    }

    /// Whether groups can be set in the user namespace: not where somebody maps only himself.
    fn has_groups(&self) -> bool {
        let list = self.spec.linux().as_ref().and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
        let own = self.new & NEW_USER != 0;
        if own { !(self.host.rootless && alone(list)) } else { self.host.groups }
    }

    /// The lines of `timens_offsets`.
    fn clocks(&self) -> Result<String> {
        let Some(offsets) = self.spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref()) else {
            return Ok(String::new());
        };
        if !offsets.is_empty() && self.new & CLONE_NEWTIME == 0 {
            return Err(invalid("linux.timeOffsets", "they need a new time namespace"));
        }
        let mut offsets: Vec<_> = offsets.iter().collect();
        offsets.sort_by_key(|(clock, _)| *clock);
        let mut text = String::new();
        for (clock, offset) in offsets {
            let field = format!("linux.timeOffsets.{clock}");
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(invalid(field, "is neither monotonic nor boottime"));
            }
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            if nanoseconds > 999_999_999 {
                return Err(invalid(field, "nanosecs are a second or more"));
            }
            let seconds = offset.secs().unwrap_or(0);
            text.extend([clock.as_str(), &format!(" {seconds} {nanoseconds}\n")]);
        }
        Ok(text)
    }

    /// Whether there is no mount namespace: then the root and all mounts in it stay attached nowhere, and nothing of them is on the
    /// host.
    fn unattached(&self) -> bool {
        !self.own_or_joined(NEW_MOUNT)
    }

    fn own_or_joined(&self, kind: u64) -> bool {
        (self.new | self.joined) & kind != 0
    }

    fn in_user_namespace(&self) -> bool {
        self.own_or_joined(NEW_USER)
    }

    fn names(&mut self) -> Result<()> {
        for (field, name) in [("hostname", self.spec.hostname()), ("domainname", self.spec.domainname())] {
            let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
            if !self.own_or_joined(NEW_UTS) {
                return Err(invalid(field, "needs a uts namespace"));
            }
            if name.len() > 64 {
                return Err(invalid(field, "is longer than 64 bytes"));
            }
            let name = name.as_bytes().to_vec();
            self.steps.push(if field == "hostname" { Step::Hostname(name) } else { Step::Domainname(name) });
        }
        Ok(())
    }

    fn sysctls(&mut self) -> Result<()> {
        let Some(sysctls) = self.spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return Ok(()) };
        let mut sysctls: Vec<_> = sysctls.iter().collect();
        sysctls.sort();
        for (key, value) in sysctls {
            let field = format!("linux.sysctl.{key}");
            let path = self.sysctl_path(key, &field)?;
            self.steps
                .push(Step::Sysctl { path: c_string(path.as_bytes(), &field)?, value: value.as_bytes().to_vec() });
        }
        Ok(())
    }

    /// A setting is allowed if it belongs to a namespace that the container does not share with the host.
    fn sysctl_path(&self, key: &str, field: &str) -> Result<String> {
        const IPC: [&str; 9] = [
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
            "kernel.shm_next_id",
        ];
        // With slashes, dots are part of names: net/ipv4/conf/eth0.1/forwarding.
        let path = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(invalid(field, "is no name of a setting"));
        }
        let dotted = path.replace('/', ".");
        let needs = if IPC.contains(&dotted.as_str()) || path.starts_with("fs/mqueue/") {
            ("ipc", libc::CLONE_NEWIPC as u64)
        } else if path.starts_with("net/") {
            ("network", libc::CLONE_NEWNET as u64)
        } else if dotted == "kernel.domainname" || dotted == "kernel.hostname" {
            ("uts", NEW_UTS)
        } else {
            return Err(unsupported(field, "a setting of the whole machine"));
        };
        if self.own_or_joined(needs.1) {
            Ok(path)
        } else {
            Err(invalid(field, format!("needs a {} namespace", needs.0)))
        }
    }

    fn open(&mut self, open: Open) -> Slot {
        self.opens.push(open);
        Slot(Slot::FIXED + self.opens.len() - 1)
    }
}

/// The namespace to join. An empty path is none.
pub(crate) fn joined(namespace: &LinuxNamespace) -> Option<&PathBuf> {
    namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())
}

/// Whether mappings map one id, which anybody may do with his own.
pub(crate) fn alone(mappings: &[LinuxIdMapping]) -> bool {
    matches!(mappings, [one] if one.size() == 1)
}

/// The `CLONE_NEW…` of a namespace.
pub(crate) fn kind(namespace: LinuxNamespaceType) -> u64 {
    match namespace {
        LinuxNamespaceType::Mount => NEW_MOUNT,
        LinuxNamespaceType::Cgroup => NEW_CGROUP,
        LinuxNamespaceType::Uts => NEW_UTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC as u64,
        LinuxNamespaceType::User => NEW_USER,
        LinuxNamespaceType::Pid => NEW_PID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET as u64,
        LinuxNamespaceType::Time => CLONE_NEWTIME,
    }
}

/// A text for a system call.
fn c_string(text: &[u8], field: &str) -> Result<CString> {
    CString::new(text).map_err(|_| invalid(field, "contains a zero byte"))
}

/// A path for a system call.
fn c_path(path: &Path, field: &str) -> Result<CString> {
    c_string(path.as_os_str().as_bytes(), field)
}

fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::InvalidSpec { field: field.into(), reason: reason.into() }
}

fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::UnsupportedField { field: field.into(), reason: reason.into() }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::HashMap;

    use oci_spec::runtime::{Linux, LinuxIdMappingBuilder, LinuxNamespaceType as Kind};

    use super::*;

    pub(super) fn host() -> Host<'static> {
        Host {
            features: Features {
                clone3: true,
                openat2: true,
                mount_setattr: true,
                lowerdir_append: true,
                close_range: true,
            },
            bundle: Path::new("/bundle"),
            id: "test",
            permitted: u64::MAX,
            cgroups: vec![("cpu,cpuacct".into(), "/sys/fs/cgroup/cpu,cpuacct/test".into())],
            tasks: 1,
            terminal: false,
            preserved: 0,
            keyring: Keyring::New,
            root_switch: RootSwitch::Pivot,
            root_path: None,
            filter: Some(Filter::Decides),
            rootless: false,
            confined: false,
            groups: true,
            apparmor: false,
            selinux: false,
            labels: Labels::Required,
            nested: false,
            kcore: false,
        }
    }

    fn spec(kinds: &[(Kind, Option<&str>)]) -> Spec {
        let mut spec = Spec::default();
        let namespaces = kinds.iter().map(|(kind, path)| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(*kind).set_path(path.map(PathBuf::from));
            namespace
        });
        let mut linux = Linux::default();
        linux.set_namespaces(Some(namespaces.collect()));
        spec.set_linux(Some(linux));
        spec
    }

    const USUAL: [(Kind, Option<&str>); 6] = [
        (Kind::Mount, None),
        (Kind::Pid, None),
        (Kind::Ipc, None),
        (Kind::Uts, None),
        (Kind::Network, None),
        (Kind::Cgroup, None),
    ];

    fn place(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> usize {
        plan.steps.iter().position(wanted).expect("the step is in the plan")
    }

    #[test]
    fn the_cgroup_namespace_is_made_after_joining() {
        let plan = Plan::new(&spec(&USUAL), &host()).expect("a plan");
        assert_eq!(plan.flags & NEW_CGROUP, 0);
        assert_ne!(plan.flags & NEW_PID, 0);
        let joined = place(&plan, |step| matches!(step, Step::JoinCgroups { .. }));
        assert!(joined < place(&plan, |step| *step == Step::UnshareCgroup));
        assert!(!plan.forks && !plan.mappings && !plan.asks);
    }

    #[test]
    fn the_filter_comes_last_and_what_it_needs_goes_after_it() {
        for confined in [true, false] {
            let mut spec = spec(&USUAL);
            if let Some(process) = spec.process_mut() {
                process.set_no_new_privileges(Some(confined));
            }
            for (kind, step) in [(Filter::Decides, Step::Filter), (Filter::Asks, Step::AskingFilter)] {
                let mut host = host();
                host.filter = Some(kind);
                let plan = Plan::new(&spec, &host).expect("a plan");
                let filter = place(&plan, |found| *found == step);
                assert_eq!(plan.steps.iter().filter(|found| **found == step).count(), 1);
                assert!(filter > place(&plan, |step| *step == Step::FindExecutable));
                assert_eq!(filter > place(&plan, |step| *step == Step::Gate), kind == Filter::Decides);
                let sets: Vec<_> = (0..)
                    .zip(&plan.steps)
                    .filter_map(|(at, step)| match step {
                        Step::Capabilities(sets) => Some((at > filter, sets.effective & 1 << 21 != 0)),
                        _ => None,
                    })
                    .collect();
                let wanted: &[(bool, bool)] =
                    if confined { &[(false, false)] } else { &[(false, true), (true, false)] };
                assert_eq!(sets, wanted);
            }
        }
    }

    #[test]
    fn a_joined_user_namespace_comes_last_and_forks() {
        let kinds = [(Kind::Network, Some("/n")), (Kind::User, Some("/u")), (Kind::Mount, None), (Kind::Uts, None)];
        let plan = Plan::new(&spec(&kinds), &host()).expect("a plan");
        assert!(plan.forks && !plan.mappings && plan.in_user_namespace);
        assert_eq!(plan.flags, 0);
        let paths: Vec<_> = plan
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Enter { slot, path, .. } => Some((slot.0 - Slot::FIXED, path.to_str())),
                _ => None,
            })
            .collect();
        // The network's owner may be another.
        assert_eq!(paths, [(0, Some("/n")), (1, Some("/u"))]);
        let fork = place(&plan, |step| matches!(step, Step::Fork { flags } if *flags == NEW_MOUNT | NEW_UTS));
        assert!(fork < place(&plan, |step| matches!(step, Step::BecomeRoot { .. })));
    }

    #[test]
    fn a_new_user_namespace_waits_and_gets_the_hosts_devices() {
        let mut kinds = USUAL.to_vec();
        kinds.push((Kind::User, None));
        let mut spec = spec(&kinds);
        let mapping = LinuxIdMappingBuilder::default().host_id(1000u32).size(10u32).build().expect("a mapping");
        if let Some(linux) = spec.linux_mut() {
            linux.set_uid_mappings(Some(vec![mapping])).set_gid_mappings(Some(vec![mapping]));
        }
        let plan = Plan::new(&spec, &host()).expect("a plan");
        assert!(plan.mappings);
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::Device { .. } | Step::Limit { .. })));
        let null = |open: &Open| matches!(open, Open::Bind { source, .. } if source == Path::new("/dev/null"));
        assert_eq!(plan.opens.iter().filter(|open| null(open)).count(), 1);
    }

    #[test]
    fn cgroups_are_shown_as_folders_and_links() {
        let plan = Plan::new(&spec(&USUAL), &host()).expect("a plan");
        let shown: Vec<_> =
            plan.steps.iter().map(ToString::to_string).filter(|text| text.contains("cgroup/")).collect();
        assert_eq!(
            shown,
            [
                "bind at /sys/fs/cgroup/cpu,cpuacct",
                "make the link /sys/fs/cgroup/cpu",
                "make the link /sys/fs/cgroup/cpuacct"
            ]
        );
    }

    #[test]
    fn what_shares_with_the_host_is_refused() {
        let field = |spec: &Spec, host: &Host<'_>| match Plan::new(spec, host) {
            Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) => field,
            Err(Error::Kernel { purpose, .. }) => purpose,
            other => format!("{other:?}"),
        };
        assert_eq!(field(&spec(&[]), &host()), "linux.namespaces: a container without a mount namespace of its own");
        let mut nested = host();
        nested.nested = true;
        assert_eq!(field(&spec(&[]), &nested), "hostname");
        assert_eq!(field(&spec(&[(Kind::User, Some("/u"))]), &nested), "linux.namespaces");
        assert_eq!(field(&spec(&[(Kind::Mount, None)]), &host()), "hostname");
        assert_eq!(field(&spec(&[(Kind::Mount, None), (Kind::Mount, None)]), &host()), "linux.namespaces[1]");
        let mut settings = spec(&USUAL);
        if let Some(linux) = settings.linux_mut() {
            linux.set_sysctl(Some(HashMap::from([("vm.swappiness".to_owned(), "1".to_owned())])));
        }
        assert_eq!(field(&settings, &host()), "linux.sysctl.vm.swappiness");
        let mut old = host();
        old.features.clone3 = false;
        let mut kinds = USUAL.to_vec();
        kinds.push((Kind::Time, None));
        assert_eq!(field(&spec(&kinds), &old), "linux.namespaces: time");
    }

    #[test]
    fn what_the_caller_lacks_is_left_out() {
        let mut host = host();
        // CAP_KILL is 5; CAP_AUDIT_WRITE, 29, and CAP_NET_BIND_SERVICE, 10, are the rest of the default.
        host.permitted = 1 << 5;
        let mut spec = spec(&USUAL);
        let mut capabilities =
            spec.process().as_ref().and_then(|process| process.capabilities().clone()).expect("a default");
        capabilities.set_ambient(None);
        if let Some(process) = spec.process_mut() {
            process.set_capabilities(Some(capabilities));
        }
        let plan = Plan::new(&spec, &host).expect("a plan");
        let sets = plan.steps.iter().find_map(|step| match step {
            Step::Capabilities(sets) => Some(*sets),
            _ => None,
        });
        let some = 1 << 5;
        assert_eq!(
            sets,
            Some(crate::sys::process::CapabilitySets { effective: some, permitted: some, inheritable: some })
        );
        assert!(plan.steps.contains(&Step::Bounding(1 << 5 | 1 << 10 | 1 << 29)));
    }
}
