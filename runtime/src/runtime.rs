//! What an OCI runtime does, whoever does it.

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxResources, Process};

use crate::sys::{self, file};
use crate::{Bundle, ContainerId, Error, Result, State, Stats};

/// The operations of the
/// [runtime specification](https://github.com/opencontainers/runtime-spec/blob/main/runtime.md).
///
/// Every call blocks. All methods take `&self`; calls for different containers may run at the same time.
pub trait Runtime: Debug + Send + Sync {
    /// Makes the container. Its process exists and waits for [`Runtime::start`].
    ///
    /// On failure nothing is left behind.
    fn create(&self, id: &ContainerId, bundle: &Bundle, options: &CreateOptions<'_>) -> Result<Created>;

    /// Lets the container's process execute its program.
    fn start(&self, id: &ContainerId) -> Result<()>;

    /// What the specification calls the state of a container.
    fn state(&self, id: &ContainerId) -> Result<State>;

    /// Sends a signal.
    fn kill(&self, id: &ContainerId, signal: i32, target: KillTarget) -> Result<()>;

    /// Removes what [`Runtime::create`] made: the process, the cgroup, the state.
    fn delete(&self, id: &ContainerId, mode: DeleteMode) -> Result<()>;

    /// Stops every process of the container where it stands.
    fn pause(&self, id: &ContainerId) -> Result<()> {
        Err(Error::Unsupported { operation: "pause", id: id.clone() })
    }

    /// Undoes [`Runtime::pause`].
    fn resume(&self, id: &ContainerId) -> Result<()> {
        Err(Error::Unsupported { operation: "resume", id: id.clone() })
    }

    /// Adds a process to a container that runs or waits for its start, and lets it run: in its namespaces, cgroup and root, with the streams, user and
    /// rights that `process` says. It returns once the program is executed, or says why that failed.
    ///
    /// The process is no part of the state; who added it waits for it. It has to be reaped ([`crate::wait`]) whenever it ends,
    /// independently of all other calls: as long as it is not, the kernel keeps the first process of its pid namespace, which is
    /// ending, too. [`Runtime::delete`] waits a moment for that, and then [`crate::Native`] reaps it itself, so that how it ended is lost.
    ///
    /// Capabilities, limits, `noNewPrivileges` and `oomScoreAdj` that `process` does not name are those of the container's
    /// configuration. A container that is paused or has ended is an [`Error::WrongStatus`].
    fn exec(&self, id: &ContainerId, process: &Process, options: &ExecOptions<'_>) -> Result<Created> {
        let _ = (process, options);
        Err(Error::Unsupported { operation: "add a process to", id: id.clone() })
    }

    /// Changes the limits of a container. What `resources` does not name stays as it is. If one cannot be changed, the error names
    /// its field, and those before it are put back.
    fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        let _ = resources;
        Err(Error::Unsupported { operation: "update", id: id.clone() })
    }

    /// What the container uses.
    fn stats(&self, id: &ContainerId) -> Result<Stats> {
        Err(Error::Unsupported { operation: "measure", id: id.clone() })
    }

    /// The processes in the container's cgroup and below it, numbered as the caller sees them.
    fn processes(&self, id: &ContainerId) -> Result<Vec<i32>> {
        Err(Error::Unsupported { operation: "list the processes of", id: id.clone() })
    }
}

/// How a container is to be made, beside what its configuration says.
#[derive(Debug)]
pub struct CreateOptions<'a> {
    /// The standard streams of the container's process.
    pub stdio: Stdio<'a>,
    /// Where the cgroup hierarchies are mounted; `None` finds them.
    pub cgroup_root: Option<PathBuf>,
    /// Further descriptors for the container's process, which gets them as 3, 4, 5 and so on.
    pub preserve_fds: &'a [BorrowedFd<'a>],
    /// Whether the process gets a session keyring of its own.
    pub keyring: Keyring,
    /// How the root is switched.
    pub root_switch: RootSwitch,
    /// What becomes of labels where nothing gives them an effect.
    pub labels: Labels,
}

impl<'a> CreateOptions<'a> {
    /// The usual choices, with these standard streams.
    #[must_use]
    pub fn new(stdio: Stdio<'a>) -> Self {
        Self {
            stdio,
            cgroup_root: None,
            preserve_fds: &[],
            keyring: Keyring::default(),
            root_switch: RootSwitch::default(),
            labels: Labels::default(),
        }
    }
}

/// How a process is to be added to a container, beside what its configuration says.
#[derive(Debug)]
pub struct ExecOptions<'a> {
    /// The standard streams of the process.
    pub stdio: Stdio<'a>,
    /// Further descriptors for the process, which gets them as 3, 4, 5 and so on.
    pub preserve_fds: &'a [BorrowedFd<'a>],
    /// What becomes of labels where nothing gives them an effect.
    pub labels: Labels,
    /// The cgroups below the container's that the process joins instead of the container's own.
    pub cgroups: &'a [SubCgroup],
    /// What is done about a container that is paused.
    pub paused: Paused,
}

impl<'a> ExecOptions<'a> {
    /// The usual choices, with these standard streams.
    #[must_use]
    pub fn new(stdio: Stdio<'a>) -> Self {
        Self { stdio, preserve_fds: &[], labels: Labels::default(), cgroups: &[], paused: Paused::default() }
    }
}

/// The standard streams of a container's process.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// These three descriptors.
    Fds {
        /// Becomes descriptor 0.
        stdin: BorrowedFd<'a>,
        /// Becomes descriptor 1.
        stdout: BorrowedFd<'a>,
        /// Becomes descriptor 2.
        stderr: BorrowedFd<'a>,
    },
    /// A pseudo-terminal of the container's own. To be given if and only if `process.terminal` is true.
    Terminal,
}

/// A session keyring for the container's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keyring {
    /// A new one, named after the container, so that the host's keys are out of reach.
    #[default]
    New,
    /// That of the calling process.
    Inherit,
}

/// How the container's root takes the place of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RootSwitch {
    /// [`pivot_root(2)`](https://man7.org/linux/man-pages/man2/pivot_root.2.html).
    #[default]
    Pivot,
    /// A moved mount and `chroot(2)`: weaker, for a host that itself runs from a ramdisk.
    Chroot,
}

/// What becomes of `process.apparmorProfile`, `process.selinuxLabel` and `linux.mountLabel` on a host whose kernel has no such
/// security module enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Labels {
    /// They are an error: who confines a program wants it confined.
    #[default]
    Required,
    /// They are left out, as other runtimes do; [`Bundle::warnings`] tells which.
    WherePossible,
}

/// What adding a process to a paused container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Paused {
    /// It is an [`Error::WrongStatus`].
    #[default]
    Refused,
    /// It goes on when the container does, and the call with it.
    Awaited,
}

/// A cgroup below a container's, such as one that the container has made itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubCgroup {
    /// The version 1 controllers that it is for, as in `/proc/self/cgroup`; empty for all that no other entry names.
    pub controllers: Vec<String>,
    /// Its path from the container's cgroup, such as `/` or `workers/1`. It has no `..` and passes no link.
    pub path: PathBuf,
}

/// What [`Runtime::create`] made.
#[derive(Debug)]
pub struct Created {
    /// The process, numbered as the caller sees it.
    pub pid: i32,
    /// The same process; see [`crate::wait`].
    pub pidfd: OwnedFd,
    /// The controlling side of the terminal, with [`Stdio::Terminal`].
    pub console: Option<OwnedFd>,
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillTarget {
    /// The container's first process.
    Init,
    /// Every process in the container's cgroup.
    All,
}

/// What [`Runtime::delete`] does with a container that still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteMode {
    /// Refuse. One that was created and never started is killed.
    Stopped,
    /// Kill it. A container that does not exist is fine, too, and what a crashed `create` left is removed.
    Force,
}

/// Copies of the descriptors 3, 4 and so on, `count` of them, that this process got from whoever started it, for
/// [`CreateOptions::preserve_fds`].
pub fn inherited_fds(count: u32) -> Result<Vec<OwnedFd>> {
    (3..3 + i32::try_from(count).unwrap_or(i32::MAX - 3))
        .map(|fd| {
            // Out of the way of those that follow.
            file::dup_above(fd, 3 + count.cast_signed()).map(sys::own).map_err(|errno| Error::System {
                operation: "hand on a descriptor that is not open",
                source: io::Error::from_raw_os_error(errno),
            })
        })
        .collect()
}
