//! The steps of the child.

use std::ffi::{CStr, CString};
use std::fmt;
use std::path::PathBuf;

use super::{Options, Slot, Target};
use crate::sys::mount::Depth;
use crate::sys::process::CapabilitySets;
use crate::sys::schedule::Attributes;

/// One thing that the child does. Its text is what an error says was to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nobody but the host's root may look into the process.
    NotDumpable,
    /// Writes itself into the version 1 cgroups, whose `tasks` files are the last descriptors of the table.
    JoinCgroups { count: usize },
    /// Joins a namespace.
    Enter { slot: Slot, kind: u64, path: PathBuf },
    /// Makes the process that goes on, in the namespaces that were joined, and ends.
    Fork { flags: u64 },
    /// Waits until the parent has written the id mappings.
    AwaitMappings,
    /// Becomes user 0 and group 0, of no other groups if it may leave those that it has.
    BecomeRoot { groups: bool },
    /// A new cgroup namespace.
    UnshareCgroup,
    /// Writes to `/proc/self/oom_score_adj`, which is still the host's.
    OomScore(CString),
    /// Sets a limit.
    Limit { resource: u32, name: String, soft: u64, hard: u64 },
    /// Sets how it is scheduled.
    Scheduler(Attributes),
    /// Sets its priority at block devices.
    IoPriority(u32),
    /// Sets the processors that it runs on.
    Affinity(Vec<u64>),
    /// Sets which nodes its memory comes from.
    MemoryPolicy { mode: u32, nodes: Vec<u64> },
    /// Sets the execution domain.
    Personality(u32),
    /// Makes a time namespace, lets the parent set its clocks, and goes into it.
    Clocks,
    /// Lets the parent move devices into the network namespace.
    Network,
    /// Sets the host name.
    Hostname(Vec<u8>),
    /// Sets the NIS domain name.
    Domainname(Vec<u8>),
    /// Writes a setting through a procfs of its own.
    Sysctl { path: CString, value: Vec<u8> },
    /// Makes a procfs of its own, through which mounts can be changed the old way.
    PrivateProc,
    /// No mount goes from here to the host.
    PrivateMounts,
    /// Leaves the root attached nowhere.
    TakeRoot,
    /// Attaches the root somewhere, so that it can be switched to; the tree at a path, if the parent could not open it.
    AttachRoot { at: CString, from: Option<CString> },
    /// Makes and attaches a filesystem.
    Mount(Filesystem),
    /// Attaches a tree that the parent opened.
    Bind { slot: Slot, target: Target, guarded: bool, late: Option<Late> },
    /// Attaches a copy of a part of the host's tree, if the parent could not open it.
    BindHost { source: CString, depth: Depth, options: Options, target: Target, guarded: bool, late: Option<Late> },
    /// Attaches a copy of a part of the container's own tree.
    BindOwn {
        source: Target,
        depth: Depth,
        options: Options,
        /// The user namespace whose ids are shown, and how deep that goes.
        idmap: Option<(Slot, Depth)>,
        target: Target,
        late: Option<Late>,
    },
    /// Makes a device node.
    Device { target: Target, mode: u32, rdev: u64, uid: u32, gid: u32 },
    /// Makes a symbolic link; `replace` one that is there.
    Link { target: Target, to: CString, replace: bool },
    /// Opens the root of a mount namespace that was joined.
    OpenRoot,
    /// Opens the terminal, hands it to the parent, and shows it at a place if there is one.
    Console { columns: u16, rows: u16, uid: u32, target: Option<Target> },
    /// Lets the parent run hooks, and waits.
    Hooks,
    /// Switches the root by `pivot_root`.
    Pivot,
    /// Switches the root by moving the mount to `/`, if it was attached `elsewhere`.
    Chroot { elsewhere: bool },
    /// The propagation of the root.
    RootPropagation(u64),
    /// Makes a folder, if there is nothing.
    Directory(Target),
    /// Makes a mount read-only: the root, or `/dev` once it is filled.
    Readonly(Target),
    /// Makes a path read-only, if it is there.
    ReadonlyPath(Target),
    /// Hides a path, if it is there.
    MaskPath(Target),
    /// Writes a label that the program gets, through a procfs of its own.
    Label { field: &'static str, file: CString, value: CString },
    /// Joins a new session keyring.
    Keyring(CString),
    /// Starts a session.
    Session,
    /// Makes the terminal the session's.
    ControllingTerminal,
    /// Puts the descriptors that the program gets to their places.
    Descriptors,
    /// Loads the seccomp filter.
    Filter,
    /// Loads the seccomp filter, which asks somebody whom the parent has to tell.
    AskingFilter,
    /// Drops every capability that is not in the set from the bounding set.
    Bounding(u64),
    /// Capabilities survive the change of the user.
    KeepCapabilities,
    /// Changes to the working directory.
    WorkingDirectory(Target),
    /// Sets the supplementary groups.
    Groups(Vec<u32>),
    /// Sets the group.
    Gid(u32),
    /// Sets the user.
    Uid(u32),
    /// Sets the capabilities.
    Capabilities(CapabilitySets),
    /// Sets the ambient capabilities.
    Ambient(u64),
    /// Sets the umask.
    Umask(u32),
    /// No program gains privileges.
    NoNewPrivileges,
    /// Looks up the user's home folder.
    Home { uid: u32 },
    /// Looks for the program.
    FindExecutable,
    /// Says that all is prepared, and waits until that is on record.
    Ready,
    /// Says that all is prepared, and goes on.
    Prepared,
    /// Waits for `start`.
    Gate,
    /// Lets signals through again.
    Signals,
    /// Executes the program.
    Execute,
}

/// A filesystem to be made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filesystem {
    /// Its type.
    pub(crate) kind: CString,
    /// Its parameters.
    pub(crate) parameters: Vec<(CString, Option<CString>)>,
    /// The attributes of its mount.
    pub(crate) attributes: u64,
    /// Where it goes.
    pub(crate) target: Target,
    /// Whether no part of the way there may be a link.
    pub(crate) no_links: bool,
    /// Whether it starts with the mode of the folder that it hides.
    pub(crate) same_mode: bool,
    /// Whether it starts with the contents of the folder that it hides.
    pub(crate) copy_up: bool,
    /// Its propagation, if it is not to be private.
    pub(crate) propagation: Option<u64>,
}

/// What is done to a mount once it is attached, by a kernel that cannot do it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Late {
    /// Flags of `mount(2)` to set.
    pub(crate) set: u64,
    /// Flags of `mount(2)` to clear.
    pub(crate) clear: u64,
    /// The propagation.
    pub(crate) propagation: Option<u64>,
}

impl Step {
    /// What makes a place read-only by a mount over it.
    pub(super) fn laid_over(self) -> Self {
        match self {
            Self::Readonly(target) => Self::ReadonlyPath(target),
            step => step,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &CStr| bytes.to_string_lossy().into_owned();
        match self {
            Self::NotDumpable => f.write_str("make the process not dumpable"),
            Self::JoinCgroups { .. } => f.write_str("join the cgroups"),
            Self::Enter { path, .. } => write!(f, "join the namespace {}", path.display()),
            Self::Fork { .. } => f.write_str("make the process in the joined namespaces"),
            Self::AwaitMappings => f.write_str("wait for the id mappings"),
            Self::BecomeRoot { .. } => f.write_str("become root of the user namespace"),
            Self::UnshareCgroup => f.write_str("make the cgroup namespace"),
            Self::OomScore(value) => write!(f, "process.oomScoreAdj: set to {}", text(value)),
            Self::Limit { name, soft, hard, .. } => write!(f, "process.rlimits: set {name} to {soft}:{hard}"),
            Self::Scheduler(_) => f.write_str("process.scheduler: set"),
            Self::IoPriority(_) => f.write_str("process.ioPriority: set"),
            Self::Affinity(_) => f.write_str("process.execCPUAffinity: set"),
            Self::MemoryPolicy { .. } => f.write_str("linux.memoryPolicy: set"),
            Self::Personality(_) => f.write_str("linux.personality: set"),
            Self::Clocks => f.write_str("linux.timeOffsets: make the time namespace"),
            Self::Network => f.write_str("linux.netDevices: open the network"),
            Self::Hostname(_) => f.write_str("hostname: set"),
            Self::Domainname(_) => f.write_str("domainname: set"),
            Self::Sysctl { path, .. } => write!(f, "linux.sysctl: write {}", text(path)),
            Self::PrivateProc => f.write_str("make a procfs of its own"),
            Self::PrivateMounts => f.write_str("make the mounts private"),
            Self::TakeRoot => f.write_str("take the root"),
            Self::AttachRoot { at, .. } => write!(f, "mount the root at {}", text(at)),
            Self::Mount(filesystem) => write!(f, "mount {} at {}", text(&filesystem.kind), filesystem.target.show()),
            Self::Bind { target, .. } => write!(f, "bind at {}", target.show()),
            Self::BindHost { source, target, .. } => write!(f, "bind {} at {}", text(source), target.show()),
            Self::BindOwn { source, target, .. } => write!(f, "bind {} at {}", source.show(), target.show()),
            Self::Device { target, .. } => write!(f, "make the device {}", target.show()),
            Self::Link { target, .. } => write!(f, "make the link {}", target.show()),
            Self::OpenRoot => f.write_str("open the root"),
            Self::Console { .. } => f.write_str("make the terminal"),
            Self::Hooks => f.write_str("wait for the hooks"),
            Self::Pivot | Self::Chroot { .. } => f.write_str("switch to the root"),
            Self::RootPropagation(_) => f.write_str("linux.rootfsPropagation: set"),
            Self::Directory(target) => write!(f, "make the folder {}", target.show()),
            Self::Readonly(target) => write!(f, "make {} read-only", target.show()),
            Self::ReadonlyPath(target) => write!(f, "linux.readonlyPaths: make {} read-only", target.show()),
            Self::MaskPath(target) => write!(f, "linux.maskedPaths: hide {}", target.show()),
            Self::Label { field, value, .. } => write!(f, "{field}: set {:?}", text(value)),
            Self::Keyring(_) => f.write_str("join a new session keyring"),
            Self::Session => f.write_str("start a session"),
            Self::ControllingTerminal => f.write_str("take the terminal"),
            Self::Descriptors => f.write_str("place the descriptors"),
            Self::Filter | Self::AskingFilter => f.write_str("linux.seccomp: load the filter"),
            Self::Bounding(_) => f.write_str("process.capabilities.bounding: set"),
            Self::KeepCapabilities => f.write_str("keep the capabilities"),
            Self::WorkingDirectory(target) => write!(f, "process.cwd: change to {}", target.show()),
            Self::Groups(_) => f.write_str("process.user.additionalGids: set"),
            Self::Gid(gid) => write!(f, "process.user.gid: set {gid}"),
            Self::Uid(uid) => write!(f, "process.user.uid: set {uid}"),
            Self::Capabilities(_) => f.write_str("process.capabilities: set"),
            Self::Ambient(_) => f.write_str("process.capabilities.ambient: set"),
            Self::Umask(_) => f.write_str("process.user.umask: set"),
            Self::NoNewPrivileges => f.write_str("process.noNewPrivileges: set"),
            Self::Home { .. } => f.write_str("find the user's home"),
            Self::FindExecutable => f.write_str("find the program"),
            Self::Ready | Self::Prepared => f.write_str("report to the parent"),
            Self::Gate => f.write_str("wait for the start"),
            Self::Signals => f.write_str("unblock the signals"),
            Self::Execute => f.write_str("execute the program"),
        }
    }
}
