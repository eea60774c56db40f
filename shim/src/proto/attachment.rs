//! The messages of the service of our own, `estiba.shim.v1.Shim`.

use prost::Message;

/// Connects a client to the standard streams of a process, before it is started or while it runs.
///
/// The streams are named pipes, or empty. The client has them open already, those of outputs for reading and that of the input for
/// writing, and may remove them from the folder when it has the answer. It gets what is written from then on, and the end of each
/// output when the process has ended and all was handed on; before `Wait` is answered.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AttachRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// What the client sends.
    #[prost(string, tag = "3")]
    pub stdin: String,
    /// What the client reads: standard output, or the terminal.
    #[prost(string, tag = "4")]
    pub stdout: String,
    /// What the client reads: standard error.
    #[prost(string, tag = "5")]
    pub stderr: String,
    /// When the client closes its end of `stdin`, the process's standard input is closed; else it stays open for others.
    #[prost(bool, tag = "6")]
    pub stdin_once: bool,
}

/// The client is connected.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct AttachResponse {
    /// The attachment's number, for [`DetachRequest`].
    #[prost(uint64, tag = "1")]
    pub attachment: u64,
}

/// Disconnects a client. What it sent is still handed on, and the standard input is not closed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DetachRequest {
    /// The container.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The added process; empty for the first one.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// Which attachment. One that is gone already is no error.
    #[prost(uint64, tag = "3")]
    pub attachment: u64,
}
