//! The system calls, one thin function each.
//!
//! Everything here can be called in the child between clone and exec: nothing allocates, takes a lock or panics. A failure is the
//! bare errno. Descriptors are plain numbers, because the child names descriptors of a table that is a copy.
//!
//! This is the one place of the crate with `unsafe`.

#![expect(unsafe_code, reason = "system calls")]

pub(crate) mod bpf;
pub(crate) mod file;
pub(crate) mod mount;
pub(crate) mod process;
pub(crate) mod schedule;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod terminal;

use std::ffi::c_long;
use std::os::fd::{FromRawFd, OwnedFd};

/// The result of a system call: what it returned, or errno.
pub(crate) type Call<T = ()> = Result<T, i32>;

/// Reads errno of the calling thread.
fn errno() -> i32 {
    // SAFETY: the function returns a valid pointer to this thread's errno.
    let pointer = unsafe { libc::__errno_location() };
    // SAFETY: as above; nobody else writes to it.
    unsafe { *pointer }
}

/// What a system call returned, or errno.
fn check(returned: c_long) -> Call<i64> {
    if returned < 0 { Err(errno()) } else { Ok(returned) }
}

/// A system call that returns nothing of interest.
fn done(returned: c_long) -> Call {
    check(returned).map(drop)
}

/// A system call that returns a descriptor.
fn fd(returned: c_long) -> Call<i32> {
    check(returned).map(|fd| fd as i32)
}

/// Takes ownership of a descriptor that a call above has just returned.
pub(crate) fn own(fd: i32) -> OwnedFd {
    // SAFETY: the descriptor was opened by the call before and belongs to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
