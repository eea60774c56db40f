//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::{ContainerId, Status};

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of another crate, kept as a source and never named.
type Opaque = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, on this level; [`std::error::Error::source`] leads to the level below.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name breaks the rules of [`ContainerId`].
    #[error("invalid container id {id:?}: want [A-Za-z0-9_+-][A-Za-z0-9_+.-]*, at most 1024 bytes")]
    InvalidId {
        /// The name, shortened.
        id: String,
    },
    /// An operation on a file of the host failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call that is about no file failed.
    #[error("cannot {operation}")]
    System {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The configuration is not the JSON that it should be.
    #[error("cannot parse {}", path.display())]
    ParseSpec {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        source: Opaque,
    },
    /// The configuration contradicts the specification or itself.
    #[error("invalid configuration: {field}: {reason}")]
    InvalidSpec {
        /// The field, by its path in `config.json`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration asks for what this runtime does not do.
    #[error("not supported: {field}: {reason}")]
    UnsupportedField {
        /// The field, by its path in `config.json`.
        field: String,
        /// What is not supported.
        reason: String,
    },
    /// This runtime does not have the operation.
    #[error("cannot {operation} container {id}: this runtime does not support it")]
    Unsupported {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// The container.
        id: ContainerId,
    },
    /// The kernel lacks what is needed.
    #[error("the kernel lacks {feature}, needed for {purpose}")]
    Kernel {
        /// The missing feature, with the version that has it.
        feature: &'static str,
        /// What needs it.
        purpose: String,
    },
    /// A container of that name exists.
    #[error("container {id} already exists")]
    AlreadyExists {
        /// The container.
        id: ContainerId,
    },
    /// There is no such container.
    #[error("container {id} does not exist")]
    NotFound {
        /// The container.
        id: ContainerId,
    },
    /// The container is not in a state for that.
    #[error("cannot {operation} container {id}: it is {status}")]
    WrongStatus {
        /// The container.
        id: ContainerId,
        /// What was to be done, as a verb.
        operation: &'static str,
        /// How far the container is.
        status: Status,
    },
    /// The container's state file cannot be understood.
    #[error("cannot parse the state file {}", path.display())]
    ParseState {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        source: Opaque,
    },
    /// A mount on the host, or of a tree that is attached nowhere, failed.
    #[error("cannot mount {what}: {call} failed")]
    Mount {
        /// The mount: its type and source or its target.
        what: String,
        /// The system call.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A step of the container's process failed before it executed its program.
    #[error("cannot set up the container: {step}{}{call}", if call.is_empty() { "" } else { ": " })]
    Setup {
        /// What was to be done and with what.
        step: String,
        /// The system call or the part of the step that failed, if there are several.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No cgroup hierarchy is mounted, or none below the given folder.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    CgroupsNotMounted,
    /// The cgroup that a container was to get has processes in it, or they did not end.
    #[error("the container's cgroup is not empty: {} has processes: {}", path.display(), first(pids))]
    CgroupInUse {
        /// Its folder in one of the hierarchies.
        path: PathBuf,
        /// The processes.
        pids: Vec<i32>,
    },
    /// The cgroup that a container was to get is there, and somebody has frozen it.
    #[error("the container's cgroup unexpectedly frozen: {}: remove it, or choose another linux.cgroupsPath", path.display())]
    CgroupFrozen {
        /// Its folder in one of the hierarchies.
        path: PathBuf,
    },
    /// The cgroup that a process was to join is none of the container's.
    #[error("bad sub cgroup path {}: {reason}", path.display())]
    SubCgroup {
        /// The path, as it was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The cgroup that a container was to get is there, and has others below it.
    #[error("the cgroup {} has others below it: remove them, or choose another linux.cgroupsPath", path.display())]
    CgroupNotEmpty {
        /// Its folder in one of the hierarchies.
        path: PathBuf,
    },
    /// Controllers of cgroup version 2 cannot be enabled for the folders below a cgroup.
    #[error("cannot enable the controllers {controllers:?} below {}{}", path.display(), if *occupied { ", which has processes itself" } else { "" })]
    CgroupControllers {
        /// The cgroup.
        path: PathBuf,
        /// What was written to its `cgroup.subtree_control`.
        controllers: String,
        /// Whether the cause is the rule that only leaves have processes.
        occupied: bool,
        /// Why it failed.
        source: io::Error,
    },
    /// A limit could not be set.
    #[error("cannot set {field}: write {value:?} to {}", path.display())]
    Limit {
        /// The field, by its path in `config.json`.
        field: String,
        /// What was written.
        value: String,
        /// The control file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A memory limit was to be lowered below what is in use, and `memory.checkBeforeUpdate` forbids that.
    #[error("cannot set linux.resources.memory.limit to {limit}: {usage} bytes are in use")]
    MemoryInUse {
        /// The limit.
        limit: i64,
        /// What is in use.
        usage: i64,
    },
    /// The kernel did not freeze or thaw a cgroup in time.
    #[error("cannot {operation} {}: not done within {} ms", path.display(), limit.as_millis())]
    CgroupTimeout {
        /// What was to be done, as a verb.
        operation: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The container's process ended before it was set up.
    #[error("the container's process ended before it was set up, with status {status}")]
    SetupDied {
        /// The status as a shell would report it.
        status: i32,
    },
    /// The program to execute was not found.
    #[error("{executable}: executable {}", if executable.contains('/') { "not found" } else { "file not found in $PATH" })]
    ExecutableNotFound {
        /// The program, as the configuration names it.
        executable: String,
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// The program is there, but not what its first line (`#!`) or its ELF header names as what executes it.
    #[error("{executable}: {}", if interpreter.is_empty() { "the interpreter that it names is not there".to_owned() } else { format!("its interpreter {interpreter} is not there") })]
    InterpreterNotFound {
        /// The program, as the configuration names it.
        executable: String,
        /// What it names; empty if only the kernel knows.
        interpreter: String,
    },
    /// The program to execute is there but cannot be executed.
    #[error("{executable}: not executable")]
    NotExecutable {
        /// The program, as the configuration names it.
        executable: String,
        /// Why it cannot.
        source: io::Error,
    },
    /// A hook could not be run.
    #[error("error running {kind} hook #{number}: cannot execute {}", path.display())]
    Hook {
        /// Which hooks.
        kind: &'static str,
        /// Which of them, from 0.
        number: usize,
        /// Its program.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A hook ended with a status that is not 0, or did not end in time.
    #[error("error running {kind} hook #{number}: {} {outcome}", path.display())]
    HookFailed {
        /// Which hooks.
        kind: &'static str,
        /// Which of them, from 0.
        number: usize,
        /// Its program.
        path: PathBuf,
        /// What became of it.
        outcome: String,
    },
    /// A runtime binary failed, for a reason that has no variant of its own.
    #[error("{} {operation}: {}", program.display(), words(message, *status))]
    External {
        /// The binary.
        program: PathBuf,
        /// Its subcommand.
        operation: &'static str,
        /// What it logged, on one line.
        message: String,
        /// Its exit status.
        status: i32,
    },
    /// A runtime binary did not end, and was killed.
    #[error("{} {operation}: did not end within {} s", program.display(), limit.as_secs())]
    ExternalTimeout {
        /// The binary.
        program: PathBuf,
        /// Its subcommand.
        operation: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Waiting for a process failed.
    #[error("cannot wait for process {pid}")]
    Wait {
        /// The process.
        pid: i32,
        /// Why it failed.
        source: io::Error,
    },
    /// Some of what a container consisted of could not be removed; everything else was.
    #[error("cannot remove all of container {id}: {}", list(failures))]
    Teardown {
        /// The container.
        id: ContainerId,
        /// Every failure.
        failures: Vec<Error>,
    },
}

impl Error {
    /// The exit status that a command should end with, as Docker chooses it: 127 for a program that was not found, 126 for one that
    /// cannot be executed, else 125.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::ExecutableNotFound { .. } | Self::InterpreterNotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 125,
        }
    }
}

/// A runtime binary's message, or that it has none: whatever fails without a word may be no runtime at all.
fn words(message: &str, status: i32) -> String {
    if message.is_empty() {
        format!("ended with status {status} and logged nothing, as an OCI runtime would: is it one?")
    } else {
        message.to_owned()
    }
}

/// The first few of them: a fork bomb has thousands.
fn first(pids: &[i32]) -> String {
    let mut text: Vec<String> = pids.iter().take(8).map(i32::to_string).collect();
    if pids.len() > text.len() {
        text.push(format!("and {} more", pids.len() - text.len()));
    }
    text.join(", ")
}

/// The failures with their sources, on one line: [`Error::Teardown`] has many and `source()` can give one.
fn list(failures: &[Error]) -> String {
    let mut text = String::new();
    for failure in failures {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&failure.to_string());
        let mut source = std::error::Error::source(failure);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
    }
    text
}
