//! The requests and responses of `containerd.task.v2.Task`.

use std::collections::HashMap;

use prost::Message;

use super::{Any, Timestamp};

/// `containerd.v1.types.Status`: where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TaskStatus {
    /// Not said.
    Unknown = 0,
    /// It waits for `Start`.
    Created = 1,
    /// It runs.
    Running = 2,
    /// It has ended.
    Stopped = 3,
    /// It is frozen.
    Paused = 4,
    /// It is being frozen.
    Pausing = 5,
}

/// `containerd.types.Mount`: one mount, as mount(2) takes it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    /// The file system's type, or `bind`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where, inside the root; empty is the root.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Options in the manner of fstab.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.v1.types.ProcessInfo`: one process of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessInfo {
    /// Its pid, as the shim sees it.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// More about it, if the runtime says so.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Any>,
}

/// Creates the container: all is set up, and its first process waits for `Start`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The OCI bundle's folder.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// What makes the root; none if the bundle has it.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// The process gets a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// Where standard input comes from: a path of a fifo, or empty for none.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// Where standard output goes.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// Where standard error goes; unused with a terminal.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// A checkpoint to restore.
    #[prost(string, tag = "8")]
    pub checkpoint: String,
    /// The checkpoint's parent.
    #[prost(string, tag = "9")]
    pub parent_checkpoint: String,
    /// The runtime's options, [`RuncOptions`](super::RuncOptions).
    #[prost(message, optional, tag = "10")]
    pub options: Option<Any>,
    /// Unused by any known shim.
    #[prost(string, tag = "11")]
    pub oom_path: String,
}

/// The container is created.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CreateTaskResponse {
    /// Its first process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Deletes a stopped container, or a process added to one.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DeleteRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the container itself.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// It is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DeleteResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// Its exit status, 128 + n for a signal.
    #[prost(uint32, tag = "2")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "3")]
    pub exited_at: Option<Timestamp>,
}

/// Adds a process to a running container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ExecProcessRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The new process's name.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// It gets a terminal.
    #[prost(bool, tag = "3")]
    pub terminal: bool,
    /// Where standard input comes from.
    #[prost(string, tag = "4")]
    pub stdin: String,
    /// Where standard output goes.
    #[prost(string, tag = "5")]
    pub stdout: String,
    /// Where standard error goes.
    #[prost(string, tag = "6")]
    pub stderr: String,
    /// The process, in the words of the OCI runtime specification.
    #[prost(message, optional, tag = "7")]
    pub spec: Option<Any>,
}

/// Tells a terminal its size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResizePtyRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Columns.
    #[prost(uint32, tag = "3")]
    pub width: u32,
    /// Rows.
    #[prost(uint32, tag = "4")]
    pub height: u32,
}

/// Asks for the state of a process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// The state of a process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StateResponse {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// A [`TaskStatus`].
    #[prost(enumeration = "TaskStatus", tag = "4")]
    pub status: i32,
    /// Where standard input comes from.
    #[prost(string, tag = "5")]
    pub stdin: String,
    /// Where standard output goes.
    #[prost(string, tag = "6")]
    pub stdout: String,
    /// Where standard error goes.
    #[prost(string, tag = "7")]
    pub stderr: String,
    /// It has a terminal.
    #[prost(bool, tag = "8")]
    pub terminal: bool,
    /// Its exit status once stopped, 128 + n for a signal.
    #[prost(uint32, tag = "9")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "10")]
    pub exited_at: Option<Timestamp>,
    /// The added process; empty for the first one.
    #[prost(string, tag = "11")]
    pub exec_id: String,
}

/// Sends a signal.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KillRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The signal's number.
    #[prost(uint32, tag = "3")]
    pub signal: u32,
    /// To every process of the container.
    #[prost(bool, tag = "4")]
    pub all: bool,
}

/// Closes standard streams.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CloseIoRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Standard input: the process reads what was sent, then the end.
    #[prost(bool, tag = "3")]
    pub stdin: bool,
}

/// Asks for the processes of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The processes of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PidsResponse {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<ProcessInfo>,
}

/// Writes a checkpoint.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckpointTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Where to.
    #[prost(string, tag = "2")]
    pub path: String,
    /// How.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
}

/// Changes limits.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UpdateTaskRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The new limits, in the words of the OCI runtime specification.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<Any>,
    /// What the runtime may want to know besides.
    #[prost(map = "string, string", tag = "3")]
    pub annotations: HashMap<String, String>,
}

/// Lets a created process run.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StartRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// It runs.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StartResponse {
    /// The process.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// Waits for the end of a process.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WaitRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// The process has ended, its output is written, and its status is on disk.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WaitResponse {
    /// Its exit status, 128 + n for a signal.
    #[prost(uint32, tag = "1")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "2")]
    pub exited_at: Option<Timestamp>,
}

/// Asks for measurements.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatsRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Measurements.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StatsResponse {
    /// As the shim has them.
    #[prost(message, optional, tag = "1")]
    pub stats: Option<Any>,
}

/// Asks who serves.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConnectRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Who serves.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConnectResponse {
    /// The shim.
    #[prost(uint32, tag = "1")]
    pub shim_pid: u32,
    /// The container's first process; 0 if there is none.
    #[prost(uint32, tag = "2")]
    pub task_pid: u32,
    /// The shim's version.
    #[prost(string, tag = "3")]
    pub version: String,
}

/// Ends the shim, unless it still has a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ShutdownRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Without waiting.
    #[prost(bool, tag = "2")]
    pub now: bool,
}

/// Freezes all processes.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PauseRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// Lets frozen processes go on.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ResumeRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
}
