//! Handing descriptors over to whoever asked for them.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::Result;

/// Sends a terminal over a unix socket, with the name that runc gives it.
pub(crate) fn send(socket: &Path, console: &OwnedFd) -> Result<()> {
    send_named(socket, console, "/dev/ptmx")
}

/// Sends a pidfd over a unix socket, with the word that runc says with it: `standard` for a container's first process, `setns` for
/// one that is added.
pub(crate) fn send_pidfd(socket: &Path, pidfd: &OwnedFd, kind: &str) -> Result<()> {
    send_named(socket, pidfd, kind)
}

fn send_named(socket: &Path, descriptor: &OwnedFd, name: &str) -> Result<()> {
    let stream =
        UnixStream::connect(socket).map_err(|error| format!("cannot connect to {}: {error}", socket.display()))?;
    let fds = [descriptor.as_fd().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(name.as_bytes())], &message, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(|error| format!("cannot send a descriptor to {}: {error}", socket.display()))?;
    Ok(())
}
