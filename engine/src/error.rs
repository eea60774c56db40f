//! What can go wrong, in the words of the one who has to mend it.

use std::io;
use std::path::PathBuf;

use crate::identity::Id;
use crate::record::Record;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the engine. `Display` says this level only; what lies beneath is in
/// [`source`](std::error::Error::source). [`Error::exit_code`] gives the status that `docker run` would end with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder of the engine's state could not be handled.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried (`write`, `lock` …).
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A record on disk is not what this program writes.
    #[error("{} is damaged; remove the folder that it is in if the container is not needed", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state was written by a newer version.
    #[error("{} has format {found}, and this program knows {known}: use a newer one, or another root", path.display())]
    Version {
        /// The version file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What this program writes.
        known: u32,
    },
    /// The file that says the state's format is empty.
    #[error("{} is empty, and should say which format the state has: if it is this program's, write {known} into it", path.display())]
    NoVersion {
        /// The version file.
        path: PathBuf,
        /// What this program writes.
        known: u32,
    },
    /// No random numbers could be had.
    #[error("cannot get random numbers for an id")]
    Random {
        /// The system's answer.
        source: io::Error,
    },
    /// Not root, of the host or of a user namespace.
    #[error("running containers takes root, or a call of rootless::enter() at the beginning of the program")]
    NotRoot,
    /// A limit was asked for, and containers have no cgroup.
    #[error(
        "limits and pauses take a cgroup, and none was delegated to this user: try again below \
         systemd-run --user --scope -p Delegate=yes"
    )]
    NoCgroup,
    /// Not a container id.
    #[error("{id:?} is not a container id (64 hexadecimal digits)")]
    Id {
        /// The text.
        id: String,
    },
    /// Not a container name.
    #[error("{name:?} is not a container name: two or more of [a-zA-Z0-9_.-], the first a letter or digit")]
    Name {
        /// The text.
        name: String,
    },
    /// The name is in use.
    #[error("the name {name:?} is taken by container {owner}: choose another, or remove that container")]
    NameTaken {
        /// The name.
        name: String,
        /// Id of the container that has it.
        owner: String,
    },
    /// There is no such container.
    #[error("there is no container {name:?}")]
    NoContainer {
        /// Name or id as it was asked for.
        name: String,
    },
    /// An abbreviated id fits several containers.
    #[error("{name:?} is the beginning of more than one container's id: give more of it")]
    Ambiguous {
        /// The prefix.
        name: String,
    },
    /// The container runs, and what was asked needs it to be stopped.
    #[error("container {} is running: stop it first, or force the removal", id.short())]
    StillRunning {
        /// The container.
        id: Id,
    },
    /// A volume could not be made, found or removed.
    #[error("cannot {operation} the volume {name}")]
    Volume {
        /// What was tried.
        operation: &'static str,
        /// The volume.
        name: String,
        /// Why.
        source: Box<estiba_storage::Error>,
    },
    /// A container has the volume.
    #[error("the volume {name} is in use by container {}: remove that first", id.short())]
    VolumeInUse {
        /// The volume.
        name: String,
        /// The container.
        id: Id,
    },
    /// There is no such image.
    #[error("there is no image {image:?}")]
    NoImage {
        /// The image as asked for.
        image: String,
    },
    /// The image cannot be removed.
    #[error("the image {image} is not removed: {reason}")]
    ImageInUse {
        /// The image as asked for.
        image: String,
        /// What speaks against it.
        reason: String,
    },
    /// The files of a container could not be read or written.
    #[error("cannot {operation} container {}", id.short())]
    Files {
        /// What was tried.
        operation: &'static str,
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_storage::Error>,
    },
    /// The root file system of the container is read-only.
    #[error("the root file system of container {} is read-only", id.short())]
    ReadOnly {
        /// The container.
        id: Id,
    },
    /// The container is frozen, and what was asked for needs it to be stopped.
    #[error("container {} is paused: unpause and stop it first, or force the removal", id.short())]
    StillPaused {
        /// The container.
        id: Id,
    },
    /// The container is frozen already.
    #[error("container {} is already paused", id.short())]
    Paused {
        /// The container.
        id: Id,
    },
    /// The container is not frozen.
    #[error("container {} is not paused", id.short())]
    NotPaused {
        /// The container.
        id: Id,
    },
    /// The container has that name.
    #[error("the container is called {name:?} already: choose another name")]
    SameName {
        /// The name.
        name: String,
    },
    /// The container's processes did not end though they were killed.
    #[error("container {} does not end though it was killed: a process of it may wait for a device", id.short())]
    DoesNotEnd {
        /// The container.
        id: Id,
    },
    /// The monitor could not be started.
    #[error("cannot start the monitor, which restarts containers and checks their health")]
    Monitor {
        /// Why.
        source: io::Error,
    },
    /// The container's log could not be read.
    #[error("cannot read the log of container {}", id.short())]
    Log {
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_shim::Error>,
    },
    /// The container keeps no log.
    #[error("container {} keeps no log: it was made with the log driver none", id.short())]
    NoLog {
        /// The container.
        id: Id,
    },
    /// The container is not running.
    #[error("container {} is not running", id.short())]
    NotRunning {
        /// The container.
        id: Id,
    },
    /// Another command is at work on the container.
    #[error("container {} is in use by another command: try again when it has ended", id.short())]
    Busy {
        /// The container.
        id: Id,
    },
    /// A container whose namespaces another one is to be put into does not run, or not any more.
    #[error("container {} does not run, and has no namespaces to share: start it first", id.short())]
    NothingToShare {
        /// The container.
        id: Id,
    },
    /// Not a network mode.
    #[error("network {mode:?} is none: use none, host, bridge, a network's name or container:NAME")]
    NetworkMode {
        /// The text.
        mode: String,
    },
    /// There is no such network.
    #[error("there is no network {name:?}: 'network ls' shows those that there are")]
    NoNetwork {
        /// The name or id.
        name: String,
    },
    /// The beginning of several networks' ids.
    #[error("{name:?} is the beginning of the ids of {count} networks: give more of it")]
    AmbiguousNetwork {
        /// The text.
        name: String,
        /// How many.
        count: usize,
    },
    /// The name is taken.
    #[error("there is a network {name:?} already")]
    NetworkExists {
        /// The name.
        name: String,
    },
    /// A container is connected to it.
    #[error("network {name:?} is in use by container {}: disconnect it or remove it first", id.short())]
    NetworkInUse {
        /// The network.
        name: String,
        /// One of its containers.
        id: Id,
    },
    /// Nobody drives such networks.
    #[error("network {network:?} wants the driver {driver:?}: there are {known}")]
    NetworkDriver {
        /// The network.
        network: String,
        /// The driver's name.
        driver: String,
        /// Those that there are.
        known: String,
    },
    /// A network cannot be made or removed as it is.
    #[error("network {name:?} is refused")]
    NetworkDefinition {
        /// The network.
        name: String,
        /// Why.
        source: Box<estiba_network::Error>,
    },
    /// The container is in the network already.
    #[error("container {} is connected to network {network:?} already", id.short())]
    Connected {
        /// The container.
        id: Id,
        /// The network.
        network: String,
    },
    /// The container is not in the network.
    #[error("container {} is not connected to network {network:?}", id.short())]
    NotConnected {
        /// The container.
        id: Id,
        /// The network.
        network: String,
    },
    /// A container of `none` or `host` is in no network.
    #[error("container {} was made with --network none or host, and cannot be connected to others", id.short())]
    Unconnectable {
        /// The container.
        id: Id,
    },
    /// Not a bind mount.
    #[error("the volume {bind:?} is refused: {reason}")]
    Bind {
        /// The text.
        bind: String,
        /// Why.
        reason: &'static str,
    },
    /// A value of the request cannot be used.
    #[error("{field} {value:?} is refused: {reason}")]
    Request {
        /// Which.
        field: &'static str,
        /// What it was.
        value: String,
        /// Why.
        reason: &'static str,
    },
    /// Neither the image nor the request says what to run.
    #[error("the image {image} names no command: give one after the image")]
    NoCommand {
        /// The image.
        image: String,
    },
    /// The user is not in the image.
    #[error("there is no user {user:?} in the image's /etc/passwd: name one that is there, or give its number")]
    NoUser {
        /// As given.
        user: String,
    },
    /// The group is not in the image.
    #[error("there is no group {group:?} in the image's /etc/group: name one that is there, or give its number")]
    NoGroup {
        /// As given.
        group: String,
    },
    /// The number is no user's or group's.
    #[error("the user or group id {id} is out of range: the greatest is 4294967294")]
    IdRange {
        /// As given.
        id: String,
    },
    /// The program is in no folder of the image's `PATH`.
    #[error("cannot run {program}: it is not found in $PATH of the image")]
    NoProgram {
        /// Its name.
        program: String,
    },
    /// The program cannot be executed.
    #[error("cannot run the program")]
    Program {
        /// Why.
        source: Box<estiba_shim::Error>,
    },
    /// What was given as a shim does not serve.
    #[error("{} does not serve as a shim: is it one? Give the path of containerd-shim-estiba-v2", program.display())]
    NotAShim {
        /// The program.
        program: PathBuf,
        /// What came of it.
        source: Box<estiba_shim::Error>,
    },
    /// A new container could not be started, and nothing of it is left: to name it would say nothing.
    #[error("cannot {operation} the container")]
    Unmade {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel has refused something, and this process lacks the privilege for it.
    #[error("running containers needs {capability}, which this process does not have")]
    Capability {
        /// Its name, as in [capabilities(7)](https://man7.org/linux/man-pages/man7/capabilities.7.html).
        capability: &'static str,
        /// What was refused.
        source: Box<Error>,
    },
    /// The image names a volume or option that is not supported.
    #[error("the OCI configuration for the container could not be built: {field}")]
    Spec {
        /// The field.
        field: &'static str,
        /// What the builder said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image's tar of a layer is not the one that the configuration names.
    #[error(
        "layer {layer} of {image} has content {found}, and the image's configuration says {expected}: get the image again"
    )]
    DiffId {
        /// The image.
        image: String,
        /// The layer's digest.
        layer: String,
        /// What was unpacked.
        found: String,
        /// What should have been.
        expected: String,
    },
    /// A blob was damaged after the content store had verified it.
    #[error(
        "layer {layer} of {image} was damaged in the content store and has been removed from it: run again from where the image came from"
    )]
    DamagedBlob {
        /// The image.
        image: String,
        /// The layer's digest.
        layer: String,
        /// What does not match.
        source: io::Error,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {layer} of {image}")]
    Unpack {
        /// The image.
        image: String,
        /// The layer's digest.
        layer: String,
        /// Why.
        source: Box<estiba_storage::Error>,
    },
    /// The image could not be read.
    #[error("cannot use the image {image}")]
    Image {
        /// The image as asked for.
        image: String,
        /// Why.
        source: Box<estiba_image::Error>,
    },
    /// An archive holds no image.
    #[error("there is no image in the archive for {image}")]
    EmptyArchive {
        /// The name that its image was to get.
        image: String,
    },
    /// The content store could not be used.
    #[error("the content store does not work")]
    Content {
        /// Why.
        source: Box<estiba_image::Error>,
    },
    /// A snapshot could not be made, found or removed.
    #[error("cannot {operation} the snapshot {snapshot}")]
    Snapshot {
        /// What was tried.
        operation: &'static str,
        /// Which snapshot.
        snapshot: String,
        /// Why.
        source: Box<estiba_storage::Error>,
    },
    /// Work ended because something that it needs has failed; that says why.
    #[error("given up because something else failed")]
    GivenUp,
    /// The container's root is in a snapshotter that this engine does not have.
    #[error("container {} is held by the snapshotter {snapshotter:?}, which this engine does not have", id.short())]
    OtherSnapshotter {
        /// The container.
        id: Id,
        /// The name in its record.
        snapshotter: String,
    },
    /// The root file system could not be looked into.
    #[error("cannot look into the root of container {}", id.short())]
    Root {
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_runtime::Error>,
    },
    /// The container's processes or cgroup could not be removed.
    #[error("cannot remove the processes of container {}", id.short())]
    Runtime {
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_runtime::Error>,
    },
    /// A user could not become root of a user namespace.
    #[error("cannot run containers without root")]
    Rootless {
        /// Why.
        source: Box<estiba_runtime::Error>,
    },
    /// The network could not be attached.
    #[error("cannot give container {} its network", id.short())]
    Network {
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_network::Error>,
    },
    /// The shim could not be started, or did not do what it was asked.
    #[error("cannot {operation} container {}", id.short())]
    Shim {
        /// What was asked (`create`, `start`, `kill` …).
        operation: &'static str,
        /// The container.
        id: Id,
        /// Why.
        source: Box<estiba_shim::Error>,
    },
    /// The shim died while the container ran.
    #[error("the shim of container {} has died; the container was ended with it, its exit status is lost", id.short())]
    ShimLost {
        /// The container.
        id: Id,
    },
    /// The blocking part of an operation panicked.
    #[error("a thread of the engine panicked")]
    Panicked {
        /// The thread's report.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Several steps of a clean-up failed; every step was tried.
    #[error("{} steps of the clean-up of container {} failed; the first", 1 + rest.len(), id.short())]
    CleanUp {
        /// The container.
        id: Id,
        /// The first failure.
        source: Box<Error>,
        /// The others.
        rest: Vec<Error>,
    },
}

impl Error {
    /// The exit status of a `run` that ended with this error, as Docker has it: 127 if the executable was not found,
    /// 126 if it could not be executed, 125 for all else.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoProgram { .. } => 127,
            Self::Shim { source, .. } | Self::Program { source } => u8::try_from(source.exit_code()).unwrap_or(125),
            Self::CleanUp { source, .. } | Self::Capability { source, .. } => source.exit_code(),
            _ => 125,
        }
    }

    /// The failure of a start at a container's shim: of its program, if it is that.
    pub(crate) fn of_start(operation: &'static str, record: &Record, source: estiba_shim::Error) -> Self {
        let program = record.command.first().filter(|program| !program.contains('/'));
        match (source.exit_code(), program) {
            (127, Some(program)) if source.to_string().contains("not found in $PATH") => {
                Self::NoProgram { program: program.clone() }
            }
            (126 | 127, _) => Self::Program { source: Box::new(source) },
            _ => Self::Shim { operation, id: record.id.clone(), source: Box::new(source) },
        }
    }

    /// The same without the id of a container that does not exist any more.
    #[must_use]
    pub(crate) fn without_id(self) -> Self {
        match self {
            Self::Shim { operation, source, .. } => Self::Unmade { operation, source },
            Self::Root { source, .. } => Self::Unmade { operation: "look into the root of", source },
            Self::Network { source, .. } => Self::Unmade { operation: "give a network to", source },
            Self::Runtime { source, .. } => Self::Unmade { operation: "remove the processes of", source },
            other => other,
        }
    }

    /// Says which privilege is missing, where the kernel has refused something for want of one. That is looked at when something
    /// was refused, and not before: all that a container does not need may be missing.
    #[must_use]
    pub(crate) fn explained(self) -> Self {
        const NEEDED: [(u32, &str); 2] = [(21, "CAP_SYS_ADMIN"), (27, "CAP_MKNOD")];
        // A shim's and a runtime's errors have come as words.
        if !chain(&self).contains(nix::errno::Errno::EPERM.desc()) {
            return self;
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let Some(held) = held.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()) else { return self };
        match NEEDED.iter().find(|(bit, _)| held & 1 << bit == 0) {
            Some((_, capability)) => Self::Capability { capability, source: Box::new(self) },
            None => self,
        }
    }

    /// For `map_err` on an operation on a file.
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// For `map_err` on an operation of nix on a file.
    pub(crate) fn errno(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let path = path.into();
        move |errno| Self::Io { operation, path, source: errno.into() }
    }

    /// Collects the failures of a clean-up in which every step is tried.
    pub(crate) fn all(id: &Id, failures: Vec<Self>) -> Result<()> {
        let mut failures = failures.into_iter();
        match (failures.next(), failures.len()) {
            (None, _) => Ok(()),
            (Some(only), 0) => Err(only),
            (Some(first), _) => {
                Err(Self::CleanUp { id: id.clone(), source: Box::new(first), rest: failures.collect() })
            }
        }
    }
}

/// An error and all of its causes, as a person is told: `cannot write /x/y: No space left on device`.
///
/// A level that only repeats the one below it is said once, and the numbers that Rust puts behind the system's words
/// (`(os error 28)`) are left away, also where they are part of a shim's or runtime's message.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut levels = vec![without_numbers(&error.to_string())];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = without_numbers(&cause.to_string());
        if !levels.last().is_some_and(|level| level.ends_with(&text)) {
            levels.push(text);
        }
        next = cause.source();
    }
    levels.join(": ")
}

fn without_numbers(text: &str) -> String {
    const BEFORE: &str = " (os error ";
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEFORE) {
        kept.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        rest = match after.get(digits..).and_then(|behind| behind.strip_prefix(')')) {
            Some(behind) if digits > 0 => behind,
            _ => {
                kept.push_str(BEFORE);
                after
            }
        };
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_stand_alone() {
        let full = || io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let error = Error::Io { operation: "write", path: "/x/y".into(), source: full() };
        assert_eq!(chain(&error), "cannot write /x/y: No space left on device");
        // A message that was made elsewhere, and whose last level is the cause itself.
        let message = format!("{}; and {}", full(), full());
        let error = Error::Io { operation: "write", path: "/x".into(), source: io::Error::other(message) };
        assert_eq!(chain(&error), "cannot write /x: No space left on device; and No space left on device");
        for kept in ["a (os error) b", "a (os error x)", "(os error 2)", "", " (os error "] {
            assert_eq!(without_numbers(kept), kept);
        }
        assert_eq!(without_numbers("a (os error 1 (os error 2)"), "a (os error 1");
    }
}
