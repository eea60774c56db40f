//! The three things that the standard library has no call for.

#![expect(unsafe_code, reason = "system calls of a program that has no dependencies")]

use std::ffi::{c_int, c_long, c_ulong, c_void};

/// Both C libraries for Linux (glibc, musl) hold 1,024 signals in a set.
#[repr(C)]
struct SignalSet([u64; 16]);

#[repr(C)]
struct TimeSpec {
    seconds: c_long,
    nanoseconds: c_long,
}

#[repr(C)]
#[derive(Default)]
struct WindowSize {
    rows: u16,
    columns: u16,
    width: u16,
    height: u16,
}

const CLOCK_MONOTONIC: c_int = 1;
const SIG_BLOCK: c_int = 0;
const TIOCGWINSZ: c_ulong = 0x5413;

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut TimeSpec) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut c_void) -> c_int;
    fn sigwait(set: *const SignalSet, signal: *mut c_int) -> c_int;
}

/// Nanoseconds of CLOCK_MONOTONIC, which the whole machine shares ([clock_gettime(2)]).
///
/// [clock_gettime(2)]: https://man7.org/linux/man-pages/man2/clock_gettime.2.html
pub(crate) fn monotonic_nanoseconds() -> u64 {
    let mut time = TimeSpec { seconds: 0, nanoseconds: 0 };
    // SAFETY: `time` is a valid `struct timespec` to write to; a failure leaves it zero.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    time.seconds as u64 * 1_000_000_000 + time.nanoseconds as u64
}

/// Columns and rows of the terminal on stdin.
pub(crate) fn window_size() -> Option<(u16, u16)> {
    let mut size = WindowSize::default();
    // SAFETY: TIOCGWINSZ writes one `struct winsize`, which `size` is; fd 0 need not be a terminal.
    let result = unsafe { ioctl(0, TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some((size.columns, size.rows))
}

/// The set of all signals, blocked from here on: they wait for [`Signals::next`] instead of acting.
pub(crate) struct Signals(SignalSet);

impl Signals {
    pub(crate) fn block() -> Self {
        let mut set = SignalSet([0; 16]);
        // SAFETY: `set` is as large as `sigset_t` of glibc and of musl.
        unsafe { sigfillset(&raw mut set) };
        // SAFETY: `set` was filled above, and no old set is asked for.
        unsafe { sigprocmask(SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        Self(set)
    }

    /// Waits for a signal and returns its number.
    pub(crate) fn next(&self) -> i32 {
        let mut signal: c_int = 0;
        // SAFETY: the set was filled in `block`, and `signal` is a valid int to write to.
        unsafe { sigwait(&raw const self.0, &raw mut signal) };
        signal
    }
}
