//! What the tests do to their own process.
#![expect(unsafe_code, reason = "a child gets a controlling terminal between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use estiba_engine::network::Sandbox;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Makes the process the parent of every orphan below it, and gives it mounts and a network of its own: the trials' host has
/// the loopback interface alone.
pub(crate) fn stand_apart() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    if nix::unistd::geteuid().is_root() {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let sandbox = Sandbox::open(Path::new("/proc/self/ns/net")).map_err(io::Error::other)?;
        sandbox.netlink().and_then(|mut netlink| netlink.set_loopback_up()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// The child leads a session of its own, whose terminal is its standard input.
pub(crate) fn lead_session(command: &mut Command) {
    let become_leader = || {
        nix::unistd::setsid()?;
        // SAFETY: TIOCSCTTY takes an integer, and descriptor 0 is a terminal here or the call fails.
        match unsafe { nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(become_leader) };
}

/// Sets the size of a terminal, which tells its session by SIGWINCH.
pub(crate) fn resize(terminal: &impl std::os::fd::AsRawFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a winsize that lives for the call.
    match unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
