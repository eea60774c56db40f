//! Where and when a process runs: scheduling, processors, memory nodes.

use super::{Call, done};

/// `struct sched_attr` of [`sched_setattr(2)`](https://man7.org/linux/man-pages/man2/sched_setattr.2.html).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub(crate) struct Attributes {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// [`sched_setattr(2)`](https://man7.org/linux/man-pages/man2/sched_setattr.2.html); 0 is the calling process.
#[doc(alias = "sched_setattr")]
pub(crate) fn set_attributes(pid: i32, attributes: &Attributes) -> Call {
    let attributes = Attributes { size: size_of::<Attributes>() as u32, ..*attributes };
    // SAFETY: the structure has the size that it names.
    let returned = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) };
    done(returned)
}

/// [`ioprio_set(2)`](https://man7.org/linux/man-pages/man2/ioprio_set.2.html) of one process; 0 is the calling one.
#[doc(alias = "ioprio_set")]
pub(crate) fn set_io_priority(pid: i32, value: u32) -> Call {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, pid, value) };
    done(returned)
}

/// [`sched_setaffinity(2)`](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html) of the calling process, a bit per
/// processor.
#[doc(alias = "sched_setaffinity")]
pub(crate) fn set_affinity(processors: &[u64]) -> Call {
    // SAFETY: the set may be read up to its size.
    let returned =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(processors), processors.as_ptr()) };
    done(returned)
}

/// [`set_mempolicy(2)`](https://man7.org/linux/man-pages/man2/set_mempolicy.2.html), a bit per node.
#[doc(alias = "set_mempolicy")]
pub(crate) fn set_memory_policy(mode: u32, nodes: &[u64]) -> Call {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let nodes = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads as many bits as there are, in whole words.
    let returned = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as i32, nodes, bits) };
    done(returned)
}

/// [`personality(2)`](https://man7.org/linux/man-pages/man2/personality.2.html).
pub(crate) fn set_personality(domain: u32) -> Call {
    // SAFETY: a plain number.
    let returned = unsafe { libc::syscall(libc::SYS_personality, domain) };
    done(returned)
}
