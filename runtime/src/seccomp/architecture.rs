//! The architectures that a filter can tell apart.

use oci_spec::runtime::Arch;

use super::syscalls::{Syscall, Table};

/// An ABI of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

/// The bit in the number of every system call of x32, which otherwise looks like x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// What this program was compiled for; `None` if there is no table for it.
    pub(super) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "x86" => Some(Self::X86),
            "aarch64" => Some(Self::Aarch64),
            "arm" => Some(Self::Arm),
            _ => None,
        }
    }

    pub(super) fn of(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Self::native(),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// Whether a kernel whose programs are compiled for `self` may run programs for `other`. A 32 bit program may be on a 64 bit kernel.
    pub(super) fn runs(self, other: Self) -> bool {
        let family = |a| matches!(a, Self::Aarch64 | Self::Arm);
        family(self) == family(other)
    }

    /// `AUDIT_ARCH_*` of `linux/audit.h`, as the kernel reports it.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared in 64 bits.
    pub(super) fn is_wide(self) -> bool {
        matches!(self, Self::X86_64 | Self::Aarch64)
    }

    /// The number that the kernel reports for a system call.
    pub(super) fn number(self, call: Syscall) -> Option<u32> {
        match self {
            Self::X86_64 => call.number(Table::X86_64),
            Self::X86 => call.number(Table::X86),
            Self::X32 => call.number(Table::X32).map(|n| n | X32_BIT),
            Self::Aarch64 => call.number(Table::Aarch64),
            Self::Arm => call.number(Table::Arm),
        }
    }

    /// On x86, the call through which this one goes as well or only, and the first argument that says so.
    pub(super) fn multiplexed(self, call: Syscall) -> Option<(u32, u64)> {
        if self != Self::X86 {
            return None;
        }
        let (through, first) = match call.name() {
            "socket" => ("socketcall", 1),
            "bind" => ("socketcall", 2),
            "connect" => ("socketcall", 3),
            "listen" => ("socketcall", 4),
            "accept" => ("socketcall", 5),
            "getsockname" => ("socketcall", 6),
            "getpeername" => ("socketcall", 7),
            "socketpair" => ("socketcall", 8),
            "send" => ("socketcall", 9),
            "recv" => ("socketcall", 10),
            "sendto" => ("socketcall", 11),
            "recvfrom" => ("socketcall", 12),
            "shutdown" => ("socketcall", 13),
            "setsockopt" => ("socketcall", 14),
            "getsockopt" => ("socketcall", 15),
            "sendmsg" => ("socketcall", 16),
            "recvmsg" => ("socketcall", 17),
            "accept4" => ("socketcall", 18),
            "semop" => ("ipc", 1),
            "semget" => ("ipc", 2),
            "semctl" => ("ipc", 3),
            "semtimedop" => ("ipc", 4),
            "msgsnd" => ("ipc", 11),
            "msgrcv" => ("ipc", 12),
            "msgget" => ("ipc", 13),
            "msgctl" => ("ipc", 14),
            "shmat" => ("ipc", 21),
            "shmdt" => ("ipc", 22),
            "shmget" => ("ipc", 23),
            "shmctl" => ("ipc", 24),
            _ => return None,
        };
        Some((self.number(Syscall::find(through)?)?, first))
    }
}
