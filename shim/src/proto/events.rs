//! The events that a shim tells containerd of, `containerd.events`, and the service that takes them.

use prost::Message;

use super::{Any, Mount, Named, Timestamp};

/// Tells containerd of an event.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ForwardRequest {
    /// The event.
    #[prost(message, optional, tag = "1")]
    pub envelope: Option<Envelope>,
}

/// An event with where and when it happened.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Envelope {
    /// When.
    #[prost(message, optional, tag = "1")]
    pub timestamp: Option<Timestamp>,
    /// containerd's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Such as `/tasks/exit`.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// The event itself.
    #[prost(message, optional, tag = "4")]
    pub event: Option<Any>,
}

/// An event of a task.
pub trait TaskEvent: Named {
    /// The topic under which it is published.
    const TOPIC: &'static str;
}

macro_rules! events {
    ($($event:ident => $topic:literal,)*) => {
        $(impl Named for $event {
            const NAME: &'static str = concat!("containerd.events.", stringify!($event));
        }

        impl TaskEvent for $event {
            const TOPIC: &'static str = $topic;
        })*
    };
}

events! {
    TaskCreate => "/tasks/create",
    TaskStart => "/tasks/start",
    TaskExit => "/tasks/exit",
    TaskDelete => "/tasks/delete",
    TaskOOM => "/tasks/oom",
    TaskExecAdded => "/tasks/exec-added",
    TaskExecStarted => "/tasks/exec-started",
    TaskPaused => "/tasks/paused",
    TaskResumed => "/tasks/resumed",
}

/// A container was created.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskCreate {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its bundle.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// What makes its root.
    #[prost(message, repeated, tag = "3")]
    pub rootfs: Vec<Mount>,
    /// Its streams.
    #[prost(message, optional, tag = "4")]
    pub io: Option<TaskIo>,
    /// Its first process.
    #[prost(uint32, tag = "6")]
    pub pid: u32,
}

/// The streams of a container.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskIo {
    /// Where standard input comes from.
    #[prost(string, tag = "1")]
    pub stdin: String,
    /// Where standard output goes.
    #[prost(string, tag = "2")]
    pub stdout: String,
    /// Where standard error goes.
    #[prost(string, tag = "3")]
    pub stderr: String,
    /// It has a terminal.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
}

/// A container was started.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskStart {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Its first process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// A process has ended.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExit {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The added process, or the container for its first.
    #[prost(string, tag = "2")]
    pub id: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// Its exit status, 128 + n for a signal.
    #[prost(uint32, tag = "4")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "5")]
    pub exited_at: Option<Timestamp>,
}

/// A container, or a process that was added, was deleted.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskDelete {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Its exit status, 128 + n for a signal.
    #[prost(uint32, tag = "3")]
    pub exit_status: u32,
    /// When it ended.
    #[prost(message, optional, tag = "4")]
    pub exited_at: Option<Timestamp>,
    /// The added process; empty for the container.
    #[prost(string, tag = "5")]
    pub id: String,
}

/// The kernel killed a process because the memory's limit was reached.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskOOM {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A process is to be added.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExecAdded {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process's name.
    #[prost(string, tag = "2")]
    pub exec_id: String,
}

/// A process was added and runs.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskExecStarted {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The process's name.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// The process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
}

/// A container was paused.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskPaused {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// A container was resumed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TaskResumed {
    /// The container.
    #[prost(string, tag = "1")]
    pub container_id: String,
}
