//! System calls that neither the standard library nor nix offers in the shape that measuring needs.
#![expect(unsafe_code, reason = "posix_spawn, wait4 and clone3 have no safe wrapper that returns resource usage")]

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// `CLOCK_MONOTONIC`, since an unspecified start.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the duration of the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "CLOCK_MONOTONIC is always there");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A program with its arguments and environment, in the form that `exec` wants.
#[derive(Debug)]
pub(crate) struct Program {
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// The first argument is the program's absolute path.
    pub(crate) fn new(argv: &[String]) -> io::Result<Self> {
        let argv = argv.iter().map(|argument| CString::new(argument.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        if argv.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty command line"));
        }
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                let mut pair = name.into_encoded_bytes();
                pair.push(b'=');
                pair.extend(value.into_encoded_bytes());
                CString::new(pair)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { argv, environment })
    }

    fn argv(&self) -> Vec<*mut c_char> {
        pointers(&self.argv)
    }

    fn environment(&self) -> Vec<*mut c_char> {
        pointers(&self.environment)
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect()
}

/// What [`wait4`] tells of a process that has ended. Peak memory and times include the children that it waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) status: c_int,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) peak_kib: u32,
}

/// [posix_spawn(3)](https://man7.org/linux/man-pages/man3/posix_spawn.3.html) with the three standard streams.
///
/// The C library implements it with `CLONE_VFORK | CLONE_VM`, which costs the same whatever the size of the caller.
pub(crate) fn spawn(program: &Program, streams: [BorrowedFd<'_>; 3]) -> io::Result<i32> {
    let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    // SAFETY: `actions` is writable memory of the right type; the call initialises it.
    check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
    let mut pid = 0;
    let mut result = Ok(());
    for (target, fd) in (0..).zip(streams) {
        // SAFETY: `actions` was initialised above and lives until it is destroyed below.
        let code = unsafe { libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), fd.as_raw_fd(), target) };
        result = result.and_then(|()| check(code));
    }
    if result.is_ok() {
        let (argv, environment) = (program.argv(), program.environment());
        // SAFETY: both arrays end with a null pointer, and `program` owns the strings for longer than the call.
        let code = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                argv[0],
                actions.as_ptr(),
                std::ptr::null(),
                argv.as_ptr(),
                environment.as_ptr(),
            )
        };
        result = check(code);
    }
    // SAFETY: initialised above, and not used after this.
    unsafe { libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr()) };
    result.map(|()| pid)
}

/// Fork and exec, with the three standard streams.
///
/// `ru_maxrss` of a process that was started by [`spawn`] is at least as large as the caller was, since until `exec` it
/// runs in the caller's memory; a forked child starts with a count of its own. Peak memory is therefore measured this way.
pub(crate) fn fork(program: &Program, streams: [BorrowedFd<'_>; 3]) -> io::Result<i32> {
    let (argv, environment) = (program.argv(), program.environment());
    let streams = streams.map(|fd| fd.as_raw_fd());
    // SAFETY: the program is single-threaded here, and the child only makes the system calls below.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            for (target, fd) in (0..).zip(streams) {
                // SAFETY: plain integers; a failure shows as a stream that stays closed.
                unsafe { libc::dup2(fd, target) };
            }
            // SAFETY: both arrays end with a null pointer, and the child has its own copy of all of it.
            unsafe { libc::execve(argv[0], argv.as_ptr().cast(), environment.as_ptr().cast()) };
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(pid),
    }
}

/// [wait4(2)](https://man7.org/linux/man-pages/man2/wait4.2.html) for one child, to its end.
pub(crate) fn wait4(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to writable memory of the right type.
        let result = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if result == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: zeroed memory is a valid rusage, and the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    Ok(Ended { status, user: time(usage.ru_utime), system: time(usage.ru_stime), peak_kib: usage.ru_maxrss as u32 })
}

/// One step that the floor's child makes; the strings and descriptors are prepared by the parent.
#[derive(Debug)]
pub(crate) enum Step {
    /// Writes `0` to a version 1 `tasks` file.
    Join(OwnedFd),
    /// `mount(2)`.
    Mount { source: CString, target: CString, kind: CString, flags: libc::c_ulong },
    /// `chdir(2)`.
    Enter(CString),
    /// `pivot_root(".", ".")` and the detached unmount of the old root.
    Pivot,
    /// `execve(2)` without arguments or environment.
    Execute(CString),
}

impl Step {
    /// Makes the step. Runs in the cloned child: system calls only.
    fn make(&self) -> bool {
        match self {
            Self::Join(tasks) => {
                // SAFETY: one byte of a static string to an open descriptor.
                unsafe { libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1 }
            }
            Self::Mount { source, target, kind, flags } => {
                // SAFETY: the strings end with a zero byte and outlive the call; no data.
                unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), *flags, std::ptr::null()) == 0 }
            }
            Self::Enter(path) => {
                // SAFETY: the string ends with a zero byte and outlives the call.
                unsafe { libc::chdir(path.as_ptr()) == 0 }
            }
            Self::Pivot => {
                let here = c".".as_ptr();
                // SAFETY: two pointers to a static string.
                let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, here, here) == 0 };
                // SAFETY: a pointer to a static string.
                pivoted && unsafe { libc::umount2(here, libc::MNT_DETACH) == 0 }
            }
            Self::Execute(program) => {
                let argv = [program.as_ptr(), std::ptr::null()];
                // SAFETY: both arrays end with a null pointer; returns only on failure.
                unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), argv[1..].as_ptr()) == 0 }
            }
        }
    }
}

/// [clone3(2)](https://man7.org/linux/man-pages/man2/clone3.2.html) with a pidfd and no exit signal; the child makes the
/// steps and, where one fails, exits with 100 and its index.
pub(crate) fn clone_and_make(flags: u64, cgroup: Option<RawFd>, steps: &[Step]) -> io::Result<OwnedFd> {
    let mut pidfd: c_int = -1;
    let mut arguments = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: 0,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup as u64;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: `arguments` is valid for `size` bytes; without CLONE_VM the child runs on a copy of this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            for (code, step) in (100..).zip(steps) {
                if !step.make() {
                    // SAFETY: ends the child at once, without the parent's exit handlers.
                    unsafe { libc::_exit(code) };
                }
            }
            // SAFETY: as above; reached only where the list has no `Execute`.
            unsafe { libc::_exit(99) }
        }
        // SAFETY: the kernel has stored a new descriptor that nothing else owns.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(pidfd) }),
    }
}

/// Linux 5.7. (The libc crate's constant does not fit its own type.)
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Waits for a child without an exit signal by its pidfd, and returns its exit status.
pub(crate) fn wait_pidfd(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut information = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the pointer is to writable memory of the right type.
    let result = unsafe {
        libc::waitid(
            libc::P_PIDFD,
            pidfd.as_raw_fd() as libc::id_t,
            information.as_mut_ptr(),
            libc::WEXITED | libc::__WALL,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid siginfo, and the kernel has filled it.
    let information = unsafe { information.assume_init() };
    // SAFETY: waitid fills the SIGCHLD form, which has a status.
    Ok(unsafe { information.si_status() })
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
