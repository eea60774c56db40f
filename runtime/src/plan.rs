//! What the child does between clone and exec, worked out beforehand.
//!
//! A plan is pure data: a flat list of [`Step`]s with all texts as C strings. What has to be opened on the host is listed as
//! [`Open`]s, and the steps name the descriptors by their place in a table. So a plan can be made and checked without a kernel, and
//! the child that follows it needs no allocator.

mod device;
mod mount;
mod option;
mod process;
mod refusal;
mod step;
mod target;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};

pub(crate) use option::{Options, parse as parse_options};
pub(crate) use process::limits;
pub(crate) use step::{Filesystem, Late, Step};
pub(crate) use target::Target;

use crate::sys::mount::Depth;
use crate::sys::process::{CLONE_NEWTIME, Strings};
use crate::{Error, Features, Keyring, Result, RootSwitch};

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
    pub(crate) filter: bool,
    /// Whether the kernel shows its memory as `/proc/kcore`.
    pub(crate) kcore: bool,
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
    /// A detached copy of a part of the host's tree.
    Bind {
        /// The file or folder.
        source: PathBuf,
        /// Whether what is mounted below it comes along.
        depth: Depth,
        /// Its attributes and propagation.
        options: Options,
        /// The field that it comes from.
        field: String,
    },
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
    /// Whether hooks run before the root is switched.
    pub(crate) hooked: bool,
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
        let mut planner = Planner { spec, host, opens: Vec::new(), steps: Vec::new(), new: 0, joined: 0 };
        planner.namespaces()?;
        let forks = planner.joined & (NEW_USER | NEW_PID) != 0;
        // What the cgroup namespace shows as its root is where its maker was, so it is made after joining.
        let flags = planner.new & !NEW_CGROUP;
        planner.steps.push(Step::NotDumpable);
        if host.tasks > 0 {
            planner.steps.push(Step::JoinCgroups { count: host.tasks });
        }
        planner.enter();
        if forks {
            planner.steps.push(Step::Fork { flags });
        }
        let mappings = planner.new & NEW_USER != 0;
        if mappings {
            planner.steps.push(Step::AwaitMappings);
        }
        if (planner.new | planner.joined) & NEW_USER != 0 {
            planner.steps.push(Step::BecomeRoot);
        }
        if planner.new & NEW_CGROUP != 0 {
            planner.steps.push(Step::UnshareCgroup);
        }
        planner.early_process()?;
        planner.names()?;
        planner.sysctls()?;
        planner.root()?;
        planner.late_process()?;
        let hooked = planner.steps.contains(&Step::Hooks);
        let (candidates, arguments, environment) = planner.program()?;
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
            hooked,
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
            hooked: false,
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
            match namespace.path() {
                None => self.new |= kind,
                Some(path) => {
                    if kind == NEW_MOUNT {
                        return Err(unsupported(field(), "joining a mount namespace"));
                    }
                    self.joined |= kind;
                    self.opens.push(Open::Namespace { path: path.clone(), kind });
                }
            }
        }
        if self.new & NEW_MOUNT == 0 {
            return Err(unsupported("linux.namespaces", "a container without a mount namespace of its own"));
        }
        if self.new & CLONE_NEWTIME != 0 && !self.host.features.clone3 {
            return Err(Error::Kernel { feature: "clone3 (5.3)", purpose: "linux.namespaces: time".into() });
        }
        Ok(())
    }

    /// Joining: the user namespace comes first, since the others need its privileges.
    fn enter(&mut self) {
        let mut joins: Vec<_> = self
            .opens
            .iter()
            .enumerate()
            .filter_map(|(at, open)| match open {
                Open::Namespace { path, kind } => {
                    Some(Step::Enter { slot: Slot(Slot::FIXED + at), kind: *kind, path: path.clone() })
                }
                Open::Bind { .. } => None,
            })
            .collect();
        joins.sort_by_key(|step| !matches!(step, Step::Enter { kind: NEW_USER, .. }));
        self.steps.append(&mut joins);
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
