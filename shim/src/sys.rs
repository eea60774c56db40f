//! The system calls that have no safe wrapper.

#![expect(unsafe_code, reason = "fork, signal handlers, and ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{ForkResult, Pid};

/// Forks: `None` in the child, the child's pid in the parent.
///
/// Only for a process with one thread: the shim at its start.
pub(crate) fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: the process has one thread, so the child may go on as any program does.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Ends the process without running what libraries registered for its exit.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(status) }
}

/// Closes every descriptor from `first` on: what a program leaked into its shim, it would otherwise hold for ever.
///
/// Only at the start of a process, before anything owns a descriptor.
/// [close_range(2)](https://man7.org/linux/man-pages/man2/close_range.2.html), Linux 5.9, with a fallback.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: nothing in this process owns a descriptor from `first` on yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
    if result != 0 {
        close_listed(first);
    }
}

/// As [`close_from`], for a kernel or a sandbox without `close_range`.
fn close_listed(first: RawFd) {
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: nothing in this process owns a descriptor from `first` on yet; the listing's own is closed already.
        unsafe { libc::close(fd) };
    }
}

/// Gives every signal its default action and an empty mask: what a parent ignored or blocked is none of ours.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: the default action is no handler. Numbers that cannot be changed are refused, which is fine.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Where a signal handler says that something happened.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_: libc::c_int) {
    let one = 1u64;
    let saved = nix::errno::Errno::last_raw();
    // SAFETY: write(2) is async-signal-safe; `one` lives until it returns. A full eventfd is awake already.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), (&raw const one).cast(), 8) };
    nix::errno::Errno::set_raw(saved);
}

extern "C" fn on_nothing(_: libc::c_int) {}

/// Makes SIGCHLD wake the returned descriptor, and SIGTERM, SIGINT, SIGHUP, SIGPIPE and SIGXFSZ do nothing.
///
/// Handlers, unlike an ignored or blocked signal, do not survive an execve: no program that the shim executes inherits them.
pub(crate) fn watch_children() -> nix::Result<EventFd> {
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    WAKE.store(std::os::fd::AsFd::as_fd(&wake).as_raw_fd(), Ordering::Relaxed);
    let action = |handler| SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: the handler does nothing at all.
        unsafe { sigaction(signal, &action(on_nothing)) }?;
    }
    // SAFETY: the handler is async-signal-safe.
    unsafe { sigaction(Signal::SIGCHLD, &action(on_child)) }?;
    Ok(wake)
}

/// Sends a signal to a process.
/// [pidfd_send_signal(2)](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html)
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call reads nothing of ours: without information about the signal the kernel makes it up as for kill(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tells a terminal its size.
/// [TIOCSWINSZ](https://man7.org/linux/man-pages/man2/TIOCSWINSZ.2const.html)
pub(crate) fn resize(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one `winsize`, which lives until it returns.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes the program's own code and constants out of this process's memory, from where the kernel maps again what is used
/// again. They stay in the page cache. Most of a shim's code is there to create a container, and that happens once.
///
/// Only mappings of files that cannot be written and hold nothing of our own, such as relocations, are touched: so
/// [`smaps`](https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html) has to say.
pub(crate) fn forget_code() {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, end) in clean_file_mappings(&smaps) {
        // SAFETY: the range is mapped from a file, cannot be written, and has no page that differs from the file, so that every
        // later access finds what was there before.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

/// The ranges of file mappings without right to write and without pages of our own.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let range = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            let rights = words.next().unwrap_or_default();
            let inode = words.nth(2).unwrap_or("0");
            current = range.filter(|_| matches!(rights, "r-xp" | "r--p") && inode != "0");
        } else if first == "Anonymous:" {
            found.extend(current.take().filter(|_| words.next() == Some("0")));
        }
    }
    found
}

/// Makes reads and writes of this open file return at once.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_mappings_of_files_are_forgotten() {
        let smaps = "\
5000-6000 r--p 00000000 fe:00 1234                       /usr/bin/shim
Rss:                   4 kB
Anonymous:             0 kB
6000-9000 r-xp 00001000 fe:00 1234                       /usr/bin/shim with spaces
Anonymous:             0 kB
VmFlags: rd ex mr mw me
9000-a000 r--p 00004000 fe:00 1234                       /usr/bin/shim
Anonymous:             4 kB
a000-b000 rw-p 00005000 fe:00 1234                       /usr/bin/shim
Anonymous:             0 kB
b000-c000 r--s 00000000 fe:00 1234                       /shared
Anonymous:             0 kB
c000-d000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";
        assert_eq!(clean_file_mappings(smaps), [(0x5000, 0x6000), (0x6000, 0x9000)]);
    }

    #[test]
    fn code_that_was_forgotten_still_runs() {
        let code = clean_file_mappings(&std::fs::read_to_string("/proc/self/smaps").expect("smaps"));
        let here = only_clean_mappings_of_files_are_forgotten as fn() as usize;
        assert!(code.iter().any(|(start, end)| (*start..*end).contains(&here)), "our own code is among them");
        forget_code();
        only_clean_mappings_of_files_are_forgotten();
    }

    #[test]
    fn both_ways_close_every_descriptor_above() {
        for close in [close_from, close_listed] {
            // In a child of its own: the test program needs its descriptors. It may only make system calls before it ends,
            // besides what the closing itself does.
            let (reader, writer) = std::io::pipe().expect("pipe");
            let kept = nix::unistd::dup(&writer).expect("dup");
            // SAFETY: the child closes and ends; it takes no lock that another thread may hold but the allocator's, which
            // glibc and musl make usable after a fork.
            match unsafe { nix::unistd::fork() }.expect("fork") {
                ForkResult::Child => {
                    close(3);
                    let open = [reader.as_raw_fd(), writer.as_raw_fd(), kept.as_raw_fd()]
                        .iter()
                        // SAFETY: F_GETFD of any number is harmless.
                        .any(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1);
                    exit_now(i32::from(open));
                }
                ForkResult::Parent { child } => {
                    let status = nix::sys::wait::waitpid(child, None).expect("waitpid");
                    assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
                }
            }
        }
    }
}
