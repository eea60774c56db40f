//! The messages of containerd's task API, version 2, and of ttrpc.
//!
//! They are written by hand after the `.proto` files of containerd (`api/runtime/task/v2/shim.proto`, `api/types/`,
//! `api/types/runc/options/oci.proto`) and of ttrpc (`request.proto`): no compiler of protocol buffers is needed to build.
//! Fields that a newer peer adds are skipped on decoding.

mod attachment;
pub mod cgroups_v1;
pub mod cgroups_v2;
pub mod events;
mod options;
mod task;

pub use attachment::*;
pub use options::{ProcessDetails, RuncOptions};
pub use task::*;

use self::events::ForwardRequest;

use prost::Message;

/// The name of the service that a shim serves.
pub const TASK_SERVICE: &str = "containerd.task.v2.Task";

/// The name of the same service in version 3, which differs in nothing but its name.
pub const TASK_SERVICE_V3: &str = "containerd.task.v3.Task";

/// The name of containerd's service that takes events.
pub const EVENTS_SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";

/// The name of the service of our own beside it, which containerd's shims do not have.
pub const SHIM_SERVICE: &str = "estiba.shim.v1.Shim";

/// A request, with the method that takes it and the response that answers it.
pub trait Call: Message {
    /// The service's name, such as [`TASK_SERVICE`].
    const SERVICE: &'static str;
    /// The method's name, such as `Create`.
    const METHOD: &'static str;
    /// The message that answers it.
    type Response: Message + Default;
}

macro_rules! calls {
    ($service:expr, $list:ident, $($request:ident => $method:literal => $response:ident,)*) => {
        $(impl Call for $request {
            const SERVICE: &'static str = $service;
            const METHOD: &'static str = $method;
            type Response = $response;
        })*

        /// The names of all methods of the service.
        pub const $list: &[&str] = &[$($method),*];
    };
}

calls! {
    SHIM_SERVICE, SHIM_METHODS,
    AttachRequest => "Attach" => AttachResponse,
    DetachRequest => "Detach" => Empty,
}

calls! {
    EVENTS_SERVICE, EVENT_METHODS,
    ForwardRequest => "Forward" => Empty,
}

calls! {
    TASK_SERVICE, METHODS,
    StateRequest => "State" => StateResponse,
    CreateTaskRequest => "Create" => CreateTaskResponse,
    StartRequest => "Start" => StartResponse,
    DeleteRequest => "Delete" => DeleteResponse,
    PidsRequest => "Pids" => PidsResponse,
    PauseRequest => "Pause" => Empty,
    ResumeRequest => "Resume" => Empty,
    CheckpointTaskRequest => "Checkpoint" => Empty,
    KillRequest => "Kill" => Empty,
    ExecProcessRequest => "Exec" => Empty,
    ResizePtyRequest => "ResizePty" => Empty,
    CloseIoRequest => "CloseIO" => Empty,
    UpdateTaskRequest => "Update" => Empty,
    WaitRequest => "Wait" => WaitResponse,
    StatsRequest => "Stats" => StatsResponse,
    ConnectRequest => "Connect" => ConnectResponse,
    ShutdownRequest => "Shutdown" => Empty,
}

/// `ttrpc.Request`: what the data of a request frame is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Request {
    /// The service, such as [`TASK_SERVICE`].
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method, such as `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded request message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// For how long the caller will wait, in nanoseconds; 0 is for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// What the caller says about the call, such as containerd's namespace.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// `ttrpc.Response`: what the data of a response frame is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Response {
    /// How the call went; absent or of code 0 if well.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The encoded response message, if it went well.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `ttrpc.KeyValue`: a piece of metadata.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `google.rpc.Status`: why a call was refused.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Status {
    /// A [`Code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// One line for a person.
    #[prost(string, tag = "2")]
    pub message: String,
    /// What a program may want to know besides.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// `google.rpc.Code`: the kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
#[non_exhaustive]
pub enum Code {
    /// No refusal at all.
    Ok = 0,
    /// The call was cancelled.
    Cancelled = 1,
    /// Nothing is known about the reason.
    Unknown = 2,
    /// The request itself is wrong.
    InvalidArgument = 3,
    /// It took too long.
    DeadlineExceeded = 4,
    /// The thing is not there.
    NotFound = 5,
    /// The thing is there already.
    AlreadyExists = 6,
    /// It is not permitted.
    PermissionDenied = 7,
    /// A bound is reached.
    ResourceExhausted = 8,
    /// The thing is not in the state for this.
    FailedPrecondition = 9,
    /// It was given up on the way.
    Aborted = 10,
    /// A number is out of its range.
    OutOfRange = 11,
    /// The method is not known or not built.
    Unimplemented = 12,
    /// Something failed on the way.
    Internal = 13,
    /// The service cannot be reached now.
    Unavailable = 14,
    /// Data is lost.
    DataLoss = 15,
    /// The caller is not known.
    Unauthenticated = 16,
}

/// `google.protobuf.Any`: a message with its type's name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Any {
    /// The type, as containerd writes it (`containerd.runc.v1.Options`) or with a host before it.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// A message that can travel in an [`Any`].
pub trait Named: Message + Default {
    /// Its full name, such as `containerd.runc.v1.Options`.
    const NAME: &'static str;
}

impl Any {
    /// Packs a message as containerd does: the bare name is the type.
    #[must_use]
    pub fn pack<M: Named>(message: &M) -> Self {
        Self { type_url: M::NAME.to_owned(), value: message.encode_to_vec() }
    }

    /// Packs a part of the OCI runtime specification, such as `Process`, as containerd does: as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Message`](crate::Error::Message) if it cannot be written as JSON.
    pub fn pack_spec<T: serde::Serialize>(name: &'static str, part: &T) -> crate::Result<Self> {
        let value = serde_json::to_vec(part)
            .map_err(|source| crate::Error::Message { message: name, source: Box::new(source) })?;
        Ok(Self { type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"), value })
    }

    /// Whether this says to be an `M`.
    #[must_use]
    pub fn is<M: Named>(&self) -> bool {
        self.type_url.rsplit('/').next() == Some(M::NAME)
    }

    /// The message, or `None` if this says to be another type.
    ///
    /// # Errors
    ///
    /// [`Error::Message`](crate::Error::Message) if the bytes are not the message.
    pub fn unpack<M: Named>(&self) -> crate::Result<Option<M>> {
        if self.is::<M>() { crate::codec::decode(M::NAME, &self.value).map(Some) } else { Ok(None) }
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// `google.protobuf.Timestamp`: a moment, counted from 1970 in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Timestamp {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second, 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<std::time::SystemTime> for Timestamp {
    fn from(time: std::time::SystemTime) -> Self {
        // A clock before 1970 is reported as 1970: it is wrong anyway.
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 }
    }
}

/// The exit status that a failed call means for the command that asked: 127 if the program to run is missing, 126 if it
/// cannot be executed, else 125. Our own shim sends it in [`Status::details`]; others' can only be guessed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ExitCode {
    /// 125, 126 or 127.
    #[prost(uint32, tag = "1")]
    pub code: u32,
}

impl Named for ExitCode {
    const NAME: &'static str = "estiba.shim.v1.ExitCode";
}
