//! `linux.seccomp` becomes a classic BPF program for [`seccomp(2)`](https://man7.org/linux/man-pages/man2/seccomp.2.html).
//!
//! The compiler is this crate's own, and means by a profile what runc with libseccomp means by it:
//!
//! - the native architecture is always covered; a call of an architecture that is not listed kills the thread;
//! - a system call that the architecture does not have, or that is not known here, is skipped;
//! - a rule without conditions beats all rules with conditions for that call, and the first such rule counts;
//! - the conditions of a rule have all to hold, but if two of them are about the same argument each is a rule of its own;
//! - arguments are compared in 64 bits, in 32 on 32 bit architectures (x32 among them);
//! - on x86 a rule for a socket or System V IPC call also holds for `socketcall` and `ipc`;
//! - a call with a higher number than every call that the profile names is newer than the profile: it gets `ENOSYS`, so that programs
//!   fall back to what they did before, unless the default action lets it through or is `ENOSYS` anyway.
//!
//! Where several rules with conditions match one call, the first in the profile decides.

mod architecture;
mod assemble;
mod default;
mod rules;
mod syscalls;

use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use self::architecture::Architecture;
pub use self::default::default_profile;
use self::rules::Profile;
use crate::error::{Error, Result};

/// The kernel's limit, `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: usize = 4096;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
const WAIT_KILLABLE_RECV: u32 = 1 << 5;
/// How many compiled profiles are kept: nearly every program uses one or two.
const CACHED: usize = 8;

/// A compiled filter.
#[derive(Clone)]
pub struct Program {
    /// The instructions, 4096 at most.
    pub instructions: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` for `SECCOMP_SET_MODE_FILTER`.
    pub flags: u32,
}

impl Program {
    /// Whether it asks a listener (`SCMP_ACT_NOTIFY`), whose descriptor its loading returns.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0
    }

    /// The program as a file of this machine: the flags, then the instructions.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + self.instructions.len() * 8);
        bytes.extend(self.flags.to_ne_bytes());
        for instruction in &self.instructions {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jt, instruction.jf]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
        bytes
    }

    /// Undoes [`Program::to_bytes`]; `None` for what cannot be a program.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first_chunk()?;
        let (instructions, rest) = rest.as_chunks::<8>();
        if instructions.is_empty() || instructions.len() > MOST_INSTRUCTIONS || !rest.is_empty() {
            return None;
        }
        let instruction = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| libc::sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        };
        Some(Self { instructions: instructions.iter().map(instruction).collect(), flags: u32::from_ne_bytes(*flags) })
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program {{ {} instructions, flags: {:#x} }}", self.instructions.len(), self.flags)
    }
}

/// Compiles a profile for this machine's architecture.
///
/// The last few programs are kept, so that a profile is compiled once however many containers use it.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program> {
    static CACHE: Mutex<Vec<(LinuxSeccomp, Program)>> = Mutex::new(Vec::new());
    // What is behind the lock is whole at every moment.
    let known = |cache: &Vec<(LinuxSeccomp, Program)>| cache.iter().find(|(p, _)| p == profile).map(|(_, p)| p.clone());
    if let Some(program) = known(&CACHE.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(program);
    }
    let program = compile_uncached(profile)?;
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() == CACHED {
        cache.remove(0);
    }
    cache.push((profile.clone(), program.clone()));
    Ok(program)
}

/// As [`compile`], always from the beginning.
pub fn compile_uncached(profile: &LinuxSeccomp) -> Result<Program> {
    let native = Architecture::native().ok_or_else(|| Error::UnsupportedField {
        field: "linux.seccomp".to_owned(),
        reason: format!("no table of system calls for {}", std::env::consts::ARCH),
    })?;
    let mut architectures = vec![native];
    for listed in profile.architectures().iter().flatten() {
        // The kernel never reports any but its own and that of its 32 bit mode: a filter for others would be dead code.
        if let Some(known) = Architecture::of(*listed)
            && native.runs(known)
            && !architectures.contains(&known)
        {
            architectures.push(known);
        }
    }
    let rules = Profile::new(profile)?;
    let instructions = assemble::program(&rules, &architectures);
    if instructions.len() > MOST_INSTRUCTIONS {
        return Err(Error::InvalidSpec {
            field: "linux.seccomp.syscalls".to_owned(),
            reason: format!("they need {} instructions, and the kernel takes {MOST_INSTRUCTIONS}", instructions.len()),
        });
    }
    Ok(Program { instructions, flags: flags(profile, rules.asks) })
}

fn flags(profile: &LinuxSeccomp, asks: bool) -> u32 {
    let listener = if asks { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let Some(flags) = profile.flags() else {
        // As runc: whoever says nothing about flags is spared the cost of speculation barriers.
        return listener | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    };
    flags.iter().fold(listener, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
            // About how a process waits for an answer. Linux 5.19, and only with a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if asks => WAIT_KILLABLE_RECV,
            // The process has one thread when the filter is loaded.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_survive_a_file() {
        let program = compile_uncached(&default_profile(&[])).expect("a program");
        let bytes = program.to_bytes();
        let again = Program::from_bytes(&bytes).expect("the same");
        assert_eq!((again.flags, again.to_bytes()), (program.flags, bytes.clone()));
        for bad in [&bytes[..bytes.len() - 1], &bytes[..4], &[], &vec![0; 4 + 8 * 4097]] {
            assert!(Program::from_bytes(bad).is_none(), "{} bytes", bad.len());
        }
    }
}
