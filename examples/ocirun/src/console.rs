//! Handing a terminal over to whoever asked for it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::Result;

/// Sends the descriptor over a unix socket, with the name that runc gives it.
pub(crate) fn send(socket: &Path, console: &OwnedFd) -> Result<()> {
    let stream =
        UnixStream::connect(socket).map_err(|error| format!("cannot connect to {}: {error}", socket.display()))?;
    let fds = [console.as_fd().as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &[IoSlice::new(b"/dev/ptmx")], &message, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(|error| format!("cannot send the terminal to {}: {error}", socket.display()))?;
    Ok(())
}
