//! What a container reports of itself.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The [state](https://github.com/opencontainers/runtime-spec/blob/main/runtime.md#state) of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The version of the specification that the state follows.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// How far the container is.
    pub status: Status,
    /// The first process, as the host numbers it; 0 once it is gone.
    #[serde(default)]
    pub pid: i32,
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The annotations of the configuration.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// Its process waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Stopped,
    /// Its processes are frozen.
    Paused,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Paused => "paused",
        })
    }
}
