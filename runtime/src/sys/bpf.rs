//! [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html): programs that filter a cgroup's devices.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Call, check, done, fd, own};

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Other programs may be attached to the same cgroup, and all have to agree.
const ALLOW_MULTI: u32 = 2;

/// One instruction of an eBPF program, `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The source register in the upper half, the destination in the lower.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) number: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` needs.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part that `BPF_PROG_ATTACH` and `BPF_PROG_DETACH` need.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replace: u32,
}

/// The part that `BPF_PROG_QUERY` needs.
#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    how: u32,
    flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

fn bpf<T>(command: u32, attributes: &mut T) -> Call<i64> {
    loop {
        // SAFETY: every structure above is a prefix of union bpf_attr with its pointers valid for the call; the kernel takes what is
        // missing as zero.
        let returned = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
        match check(returned) {
            // The verifier gives up when a signal comes.
            Err(libc::EAGAIN) => {}
            result => return result,
        }
    }
}

/// Loads a program that filters devices; `BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15.
pub(crate) fn load_device_filter(program: &[Instruction]) -> Call<OwnedFd> {
    let mut name = [0; 16];
    name[..14].copy_from_slice(b"estiba_devices");
    let mut load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    bpf(PROG_LOAD, &mut load).and_then(fd).map(own)
}

/// Attaches a device filter to a cgroup of version 2, beside those that are there.
pub(crate) fn attach_device_filter(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Call {
    attach(PROG_ATTACH, cgroup, program, ALLOW_MULTI)
}

/// Detaches a device filter.
pub(crate) fn detach_device_filter(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Call {
    attach(PROG_DETACH, cgroup, program, 0)
}

fn attach(command: u32, cgroup: BorrowedFd<'_>, program: &OwnedFd, flags: u32) -> Call {
    let mut attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags,
        replace: 0,
    };
    bpf(command, &mut attach).and_then(done)
}

/// The device filters that are attached to a cgroup itself.
pub(crate) fn device_filters(cgroup: BorrowedFd<'_>) -> Call<Vec<OwnedFd>> {
    // The kernel attaches at most 64 to one cgroup.
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        how: 0,
        flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let ids = ids.iter().take(query.count as usize);
    ids.map(|id| {
        let mut by_id = [*id, 0, 0, 0];
        bpf(PROG_GET_FD_BY_ID, &mut by_id).and_then(fd).map(own)
    })
    .collect()
}
