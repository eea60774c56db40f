//! Processes: making, changing, signalling and waiting for them.

use std::ffi::{CStr, CString, c_char, c_long, c_ulong};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{Call, check, done, errno, fd, own};
use crate::ExitStatus;

/// The child goes into the cgroup of a descriptor.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// A new time namespace; for `clone3` and `unshare` only.
pub(crate) const CLONE_NEWTIME: u64 = 0x80;
/// The child becomes its parent's sibling.
pub(crate) const CLONE_PARENT: u64 = 0x8000;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// How a child is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CloneRequest {
    /// `CLONE_NEW…`.
    pub(crate) flags: u64,
    /// A folder of the cgroup2 tree.
    pub(crate) cgroup: Option<i32>,
    /// Whether `clone3` may be used.
    pub(crate) clone3: bool,
}

/// A set of signals as the kernel has it.
type SignalSet = u64;

/// Clones the calling process. The child has a copy of its memory and runs `entry`, which never returns; it has all signals
/// blocked. The child's end raises no signal.
///
/// `entry` must keep the rule of this module: nothing that allocates, takes a lock or panics, since other threads of the calling
/// process, which the child does not have, may hold any lock.
#[doc(alias = "clone3")]
pub(crate) fn spawn<T>(request: CloneRequest, context: &mut T, entry: fn(&mut T) -> !) -> Call<(i32, OwnedFd)> {
    let all = SignalSet::MAX;
    let mut before: SignalSet = 0;
    set_mask(all, Some(&mut before))?;
    let mut pidfd = -1i32;
    let result = raw_clone(request, Some(&mut pidfd));
    if result == Ok(0) {
        entry(context);
    }
    // The mask was valid before, so it is now.
    let _ = set_mask(before, None);
    Ok((result?, own(pidfd)))
}

/// Clones in the child itself: 0 in the new process. The new process is a child of the caller's parent.
pub(crate) fn sibling(flags: u64, clone3: bool) -> Call<i32> {
    raw_clone(CloneRequest { flags: flags | CLONE_PARENT, cgroup: None, clone3 }, None)
}

fn raw_clone(request: CloneRequest, pidfd: Option<&mut i32>) -> Call<i32> {
    let mut flags = request.flags;
    let pidfd = pidfd.map_or(ptr::null_mut(), |pidfd| {
        flags |= libc::CLONE_PIDFD as u64;
        ptr::from_mut(pidfd)
    });
    if request.clone3 {
        let mut args = CloneArgs { flags, pidfd: pidfd as u64, ..CloneArgs::default() };
        if let Some(cgroup) = request.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup as u64;
        }
        // SAFETY: the structure has that size; without CLONE_VM and a stack this is a fork. Only async-signal-safe code runs in
        // the child, as `spawn` demands.
        let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
        return fd(returned);
    }
    let none: *mut i32 = ptr::null_mut();
    // SAFETY: as above. The third argument receives the pidfd; the order of the last two differs between machines and both are null.
    let returned = unsafe { libc::syscall(libc::SYS_clone, flags as c_ulong, none, pidfd, none, none) };
    fd(returned)
}

/// Whether the kernel has `clone3`.
pub(crate) fn has_clone3() -> bool {
    let none: *const CloneArgs = ptr::null();
    // SAFETY: a size of 0 is refused before anything is read.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, none, 0usize) };
    done(returned) == Err(libc::EINVAL)
}

fn set_mask(mask: SignalSet, before: Option<&mut SignalSet>) -> Call {
    let before = before.map_or(ptr::null_mut(), ptr::from_mut);
    // SAFETY: both sets have the kernel's size of 8 bytes.
    let returned = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, before, size_of::<SignalSet>())
    };
    done(returned)
}

/// Lets all signals through.
pub(crate) fn unblock_signals() -> Call {
    set_mask(0, None)
}

/// Gives every signal its default effect: the handlers are the host program's, and what it ignores would stay ignored after exec.
pub(crate) fn reset_signals() {
    // The kernel's structure: handler, flags, restorer, mask; all zeroes is SIG_DFL.
    let default = [0u64; 4];
    let none: *mut u64 = ptr::null_mut();
    for signal in 1..=64 {
        // SAFETY: the structure is at least as large as the kernel's; SIGKILL and SIGSTOP are refused, harmlessly.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<SignalSet>()) };
    }
}

/// [`_exit(2)`](https://man7.org/linux/man-pages/man2/_exit.2.html): no destructor, no `atexit`.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        // SAFETY: a plain number; it does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, status) };
    }
}

/// Texts for `execve`: the list of pointers that it wants, and what they point to.
#[derive(Debug)]
pub(crate) struct Strings {
    owned: Vec<CString>,
    spare: Option<Vec<u8>>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    /// The list. Its last text is in `spare`, if there is one, which the child may still write.
    pub(crate) fn new(owned: Vec<CString>, spare: Option<Vec<u8>>) -> Self {
        let mut pointers: Vec<_> = owned.iter().map(|text| text.as_ptr()).collect();
        pointers.extend(spare.iter().map(|buffer| buffer.as_ptr().cast::<c_char>()));
        pointers.push(ptr::null());
        Self { owned, spare, pointers }
    }

    /// Writes the text of the spare place from these parts. What does not fit is left out.
    pub(crate) fn set_spare(&mut self, parts: &[&[u8]]) {
        let Some(buffer) = self.spare.as_deref_mut() else { return };
        // One byte stays for the zero.
        let bytes = parts.iter().copied().flatten().copied().chain([0]);
        let room = buffer.len().saturating_sub(1);
        for (place, byte) in buffer.iter_mut().take(room).zip(bytes) {
            *place = byte;
        }
    }

    /// The texts, but for the spare one.
    pub(crate) fn texts(&self) -> &[CString] {
        &self.owned
    }
}

/// [`execve(2)`](https://man7.org/linux/man-pages/man2/execve.2.html): returns errno, if it returns.
pub(crate) fn execve(path: &CStr, arguments: &Strings, environment: &Strings) -> i32 {
    // SAFETY: path is a C string; both lists hold C strings that live as long as they, and end with null.
    unsafe {
        libc::syscall(libc::SYS_execve, path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    errno()
}

/// [`setns(2)`](https://man7.org/linux/man-pages/man2/setns.2.html).
pub(crate) fn setns(fd: i32, kind: u64) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_setns, fd, kind as c_long) };
    done(returned)
}

/// [`unshare(2)`](https://man7.org/linux/man-pages/man2/unshare.2.html).
pub(crate) fn unshare(flags: u64) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_unshare, flags as c_ulong) };
    done(returned)
}

/// [`prctl(2)`](https://man7.org/linux/man-pages/man2/prctl.2.html) with numbers only.
fn prctl(operation: i32, two: u64, three: u64) -> Call<i64> {
    // SAFETY: the operations used below take numbers.
    let returned = unsafe { libc::syscall(libc::SYS_prctl, operation, two as c_ulong, three as c_ulong, 0, 0) };
    check(returned)
}

/// Nobody but the host's root may look into the process, until it executes something.
pub(crate) fn not_dumpable() -> Call {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

/// Whether capabilities survive a change of the user.
pub(crate) fn keep_capabilities(keep: bool) -> Call {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).map(drop)
}

/// Takes a capability out of the bounding set. One that the kernel does not have is none to take.
pub(crate) fn drop_bounding(capability: u8) -> Call {
    match prctl(libc::PR_CAPBSET_DROP, capability.into(), 0) {
        Ok(_) | Err(libc::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> Call {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Puts a capability into the ambient set.
pub(crate) fn raise_ambient(capability: u8) -> Call {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into()).map(drop)
}

/// No program that the process executes gains privileges.
pub(crate) fn no_new_privileges() -> Call {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

/// The three sets that `capset` changes, a bit per capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// [`capset(2)`](https://man7.org/linux/man-pages/man2/capset.2.html).
pub(crate) fn set_capabilities(sets: &CapabilitySets) -> Call {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| [sets.effective, sets.permitted, sets.inheritable].map(|set| (set >> shift) as u32);
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes two blocks of three words.
    let returned = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    done(returned)
}

/// [`capget(2)`](https://man7.org/linux/man-pages/man2/capget.2.html) of the calling thread.
pub(crate) fn capabilities() -> Call<CapabilitySets> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [[0u32; 3]; 2];
    // SAFETY: version 3 gives two blocks of three words.
    let returned = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    done(returned)?;
    let whole = |at: usize| u64::from(data[0][at]) | u64::from(data[1][at]) << 32;
    Ok(CapabilitySets { effective: whole(0), permitted: whole(1), inheritable: whole(2) })
}

/// [`setgroups(2)`](https://man7.org/linux/man-pages/man2/setgroups.2.html) of this thread alone.
pub(crate) fn setgroups(groups: &[u32]) -> Call {
    // SAFETY: the list may be read up to its length.
    let returned = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    done(returned)
}

/// [`setresgid(2)`](https://man7.org/linux/man-pages/man2/setresgid.2.html) of this thread alone.
pub(crate) fn setgid(gid: u32) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    done(returned)
}

/// [`setresuid(2)`](https://man7.org/linux/man-pages/man2/setresuid.2.html) of this thread alone.
pub(crate) fn setuid(uid: u32) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    done(returned)
}

/// [`prlimit(2)`](https://man7.org/linux/man-pages/man2/prlimit.2.html); 0 is the calling process.
pub(crate) fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> Call {
    let limit = [soft, hard];
    let none: *mut u64 = ptr::null_mut();
    // SAFETY: the kernel's structure is two words of 64 bits.
    let returned = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, limit.as_ptr(), none) };
    done(returned)
}

/// [`sethostname(2)`](https://man7.org/linux/man-pages/man2/sethostname.2.html).
pub(crate) fn set_hostname(name: &[u8]) -> Call {
    // SAFETY: the bytes may be read up to their length.
    let returned = unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) };
    done(returned)
}

/// [`setdomainname(2)`](https://man7.org/linux/man-pages/man2/setdomainname.2.html).
pub(crate) fn set_domainname(name: &[u8]) -> Call {
    // SAFETY: the bytes may be read up to their length.
    let returned = unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) };
    done(returned)
}

/// [`setsid(2)`](https://man7.org/linux/man-pages/man2/setsid.2.html).
pub(crate) fn setsid() -> Call {
    // SAFETY: takes nothing.
    let returned = unsafe { libc::syscall(libc::SYS_setsid) };
    done(returned)
}

/// [`KEYCTL_JOIN_SESSION_KEYRING`](https://man7.org/linux/man-pages/man3/keyctl_join_session_keyring.3.html).
pub(crate) fn join_session_keyring(name: &CStr) -> Call {
    // SAFETY: 1 is the operation, which takes a C string.
    let returned = unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr()) };
    done(returned)
}

/// [`seccomp(2)`](https://man7.org/linux/man-pages/man2/seccomp.2.html): loads a filter for the calling thread.
/// With `SECCOMP_FILTER_FLAG_NEW_LISTENER` it returns a descriptor.
pub(crate) fn load_filter(program: &[libc::sock_filter], flags: u64) -> Call<i32> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program is read only, up to its length.
    let returned = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags as c_ulong, &raw const program)
    };
    fd(returned)
}

/// [`pidfd_open(2)`](https://man7.org/linux/man-pages/man2/pidfd_open.2.html).
pub(crate) fn pidfd_open(pid: i32) -> Call<OwnedFd> {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    fd(returned).map(own)
}

/// [`pidfd_getfd(2)`](https://man7.org/linux/man-pages/man2/pidfd_getfd.2.html): a copy of another process's descriptor. Linux 5.6.
#[doc(alias = "pidfd_getfd")]
pub(crate) fn take_descriptor(pidfd: BorrowedFd<'_>, number: i32) -> Call<OwnedFd> {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    fd(returned).map(own)
}

/// [`pidfd_send_signal(2)`](https://man7.org/linux/man-pages/man2/pidfd_send_signal.2.html).
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Call {
    let none: *const libc::siginfo_t = ptr::null();
    // SAFETY: without a siginfo the kernel makes one.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    done(returned)
}

/// [`waitid(2)`](https://man7.org/linux/man-pages/man2/waitid.2.html) on a pidfd: waits for the end and reaps.
pub(crate) fn wait(pidfd: BorrowedFd<'_>) -> Call<ExitStatus> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let none: *mut libc::rusage = ptr::null_mut();
    // SAFETY: the buffer has the structure's size; 3 is P_PIDFD.
    let returned = unsafe {
        libc::syscall(libc::SYS_waitid, 3, pidfd.as_raw_fd(), info.as_mut_ptr(), libc::WEXITED | libc::__WALL, none)
    };
    done(returned)?;
    // SAFETY: the call succeeded and has filled the structure.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the fields of SIGCHLD.
    let status = unsafe { info.si_status() };
    Ok(if info.si_code == libc::CLD_EXITED { ExitStatus::Exited(status) } else { ExitStatus::Signaled(status) })
}

/// Waits until the process has ended, without reaping it; `false` after `milliseconds`.
pub(crate) fn ended(pidfd: BorrowedFd<'_>, milliseconds: i32) -> Call<bool> {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one valid structure.
        let returned = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match check(returned.into()) {
            Err(libc::EINTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}
