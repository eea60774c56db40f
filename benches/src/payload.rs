//! The smallest program that there is: an ELF file of one segment that calls `exit(0)`. No compiler is needed to make
//! it, no library is loaded by it, and so what is measured is the runtime.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `mov edi, 0; mov eax, 60; syscall` and `mov x0, 0; mov x8, 93; svc 0`.
#[cfg(target_arch = "x86_64")]
const EXIT: (u16, &[u8]) = (62, &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]);
#[cfg(target_arch = "aarch64")]
const EXIT: (u16, &[u8]) = (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4]);

const ADDRESS: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;

/// The program's bytes.
pub(crate) fn exit_zero() -> Vec<u8> {
    let (machine, code) = EXIT;
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // The file header: 64 bits, little endian, an executable for Linux.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    elf.extend((ADDRESS + HEADERS).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // The one segment: the whole file, readable and executable.
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Writes an executable file.
pub(crate) fn write_program(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(path)?;
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_runs_and_exits_with_zero() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("true");
        write_program(&path, &exit_zero())?;
        let status = std::process::Command::new(&path).status()?;
        assert!(status.success(), "{status}");
        Ok(())
    }
}
