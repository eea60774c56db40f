//! Pseudo-terminals.

use std::ffi::c_ulong;

use super::{Call, done, fd};

const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTPEER: c_ulong = 0x5441;

fn ioctl_pointer<T>(fd: i32, request: c_ulong, value: &T) -> Call {
    // SAFETY: the requests below read a value of that type.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, std::ptr::from_ref(value)) };
    done(returned)
}

/// Unlocks the other side.
pub(crate) fn unlock(master: i32) -> Call {
    ioctl_pointer(master, TIOCSPTLCK, &0i32)
}

/// Opens the other side, through no path
/// ([`TIOCGPTPEER`](https://man7.org/linux/man-pages/man2/TIOCGPTPEER.2const.html)).
pub(crate) fn peer(master: i32) -> Call<i32> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes plain flags.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, master, TIOCGPTPEER, flags) };
    fd(returned)
}

/// Sets the size in characters.
pub(crate) fn resize(terminal: i32, columns: u16, rows: u16) -> Call {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    ioctl_pointer(terminal, libc::TIOCSWINSZ as c_ulong, &size)
}

/// Makes it the controlling terminal of the calling session.
pub(crate) fn control(terminal: i32) -> Call {
    // SAFETY: the request takes a plain number.
    let returned = unsafe { libc::syscall(libc::SYS_ioctl, terminal, libc::TIOCSCTTY as c_ulong, 0) };
    done(returned)
}
