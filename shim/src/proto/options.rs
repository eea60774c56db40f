//! The options of the runtime, which travel in `CreateTaskRequest.options`.

use prost::Message;

use super::Named;

/// `containerd.runc.v1.Options`: which OCI runtime to use, and how.
///
/// Number 8, `criu_path`, is gone since containerd 2.0.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RuncOptions {
    /// Do not pivot the root.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// Do not make a keyring for the container.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The cgroup that the shim itself joins.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Owner of the standard streams' pipes.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Group of the standard streams' pipes.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The OCI runtime binary: a path or a name; empty for the shim's own runtime.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// Where the runtime keeps its state.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Make cgroups through systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    /// Where CRIU finds an image.
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
    /// Where CRIU works.
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
    /// Where the task API of a sandbox is served.
    #[prost(string, tag = "12")]
    pub task_api_address: String,
    /// The version of that API.
    #[prost(uint32, tag = "13")]
    pub task_api_version: u32,
}

impl Named for RuncOptions {
    const NAME: &'static str = "containerd.runc.v1.Options";
}

/// `containerd.runc.v1.ProcessDetails`: what [`ProcessInfo`](super::ProcessInfo) says about a process that was added.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessDetails {
    /// Its name.
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

impl Named for ProcessDetails {
    const NAME: &'static str = "containerd.runc.v1.ProcessDetails";
}
