//! Handing the descriptor of a seccomp filter that asks somebody to whoever that is
//! ([`config-linux.md`](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#the-container-process-state)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::launch::{Started, system};
use crate::sys::{process, socket};
use crate::{Error, Result, State};

/// How long a filter may take to be loaded.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Listener {
    /// Its socket.
    path: PathBuf,
    /// What it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
}

/// `ContainerProcessState` of the specification.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a State,
}

impl Listener {
    /// The one of a configuration.
    pub(super) fn of(spec: &Spec) -> Option<Self> {
        let profile = spec.linux().as_ref()?.seccomp().as_ref()?;
        let path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty())?;
        Some(Self { path, metadata: profile.listener_metadata().clone() })
    }

    /// Takes the descriptor that the child is about to have as `number`, and hands it over.
    ///
    /// The child could not send it: the filter may be about sending.
    pub(super) fn inform(&self, talk: &OwnedFd, started: &Started, number: i32, state: &State) -> Result<()> {
        let Some(descriptor) = take(talk, started, number)? else { return Ok(()) };
        let error = |source| Error::Io { operation: "hand the seccomp listener to", path: self.path.clone(), source };
        let state = ProcessState {
            oci_version: &state.oci_version,
            fds: ["seccompFd"],
            pid: started.pid,
            metadata: self.metadata.as_deref(),
            state,
        };
        let text = serde_json::to_vec(&state).map_err(io::Error::from).map_err(error)?;
        let stream = UnixStream::connect(&self.path).map_err(error)?;
        socket::send(stream.as_raw_fd(), &text, Some(descriptor.as_raw_fd()))
            .map_err(|errno| error(io::Error::from_raw_os_error(errno)))
    }
}

/// `None` if the child has something else to say, which is that it failed.
fn take(talk: &OwnedFd, started: &Started, number: i32) -> Result<Option<OwnedFd>> {
    let begin = Instant::now();
    loop {
        match process::take_descriptor(started.pidfd.as_fd(), number) {
            Ok(descriptor) => return Ok(Some(descriptor)),
            // The filter is not loaded yet.
            Err(libc::EBADF) if begin.elapsed() < PATIENCE => {}
            Err(errno) => return Err(system("take the seccomp listener from the container's process")(errno)),
        }
        if socket::readable(talk.as_fd(), 1).map_err(system("hear from the child"))? {
            return Ok(None);
        }
    }
}
