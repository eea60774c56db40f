//! The program: where it starts, where its user lives, where it is.

use std::ffi::{CStr, CString};

use super::report::{Failure, NAME, Part};
use crate::plan::Target;
use crate::resolve::{Links, Resolver};
use crate::sys::Call;
use crate::sys::file::{self, RESOLVE_NO_MAGICLINKS, close};
use crate::sys::process::Strings;

/// Changes to the working directory, and makes sure that it is where it should be (CVE-2024-21626).
pub(super) fn change_directory(resolver: Resolver, root: i32, target: &Target) -> Result<(), Failure> {
    let fd = resolver.open(root, target.path(), libc::O_PATH | libc::O_DIRECTORY, Links::Follow)?;
    file::fchdir(fd)?;
    close(fd);
    let mut path = [0u8; 4096];
    let length = file::getcwd(&mut path)?;
    if length == 0 || path.first() != Some(&b'/') {
        return Err(Part::Outside.of()(libc::EPERM));
    }
    Ok(())
}

/// Sets `HOME` from the root's `/etc/passwd`, or to `/`.
pub(super) fn home(resolver: Resolver, root: i32, uid: u32, environment: &mut Strings) {
    environment.set_spare(&[b"HOME=/"]);
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(file) = resolver.open(root, c"etc/passwd", flags, Links::Follow) else { return };
    if file::stat(file, c"").is_ok_and(|stat| stat.is(libc::S_IFREG)) {
        let mut lines = Lines { file, buffer: [0; 4096], start: 0, end: 0 };
        while let Ok(Some(line)) = lines.next() {
            let mut fields = line.split(|&byte| byte == b':');
            if fields.nth(2).and_then(decimal) == Some(uid) {
                if let Some(home) = fields.nth(2).filter(|home| home.first() == Some(&b'/')) {
                    environment.set_spare(&[b"HOME=", home]);
                }
                break;
            }
        }
    }
    close(file);
}

fn decimal(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u32, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Reads lines without an allocator.
struct Lines {
    file: i32,
    buffer: [u8; 4096],
    start: usize,
    end: usize,
}

impl Lines {
    /// The next line. One that is longer than the buffer ends the reading.
    fn next(&mut self) -> Call<Option<&[u8]>> {
        loop {
            let ready = self.buffer.get(self.start..self.end).unwrap_or_default();
            if let Some(length) = ready.iter().position(|&byte| byte == b'\n') {
                let line = self.start..self.start + length;
                self.start += length + 1;
                return Ok(self.buffer.get(line));
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            if room.is_empty() {
                return Ok(None);
            }
            let read = file::read(self.file, room)?;
            if read == 0 {
                let rest = 0..self.end;
                self.end = 0;
                return Ok(self.buffer.get(rest).filter(|line| !line.is_empty()));
            }
            self.end += read;
        }
    }
}

/// Finds the program among the candidates, as `execvp` would: the first that can be executed, and if there is none, why.
/// `interpreter` is the path of the interpreter that was looked for last, and zeroes.
pub(super) fn find(
    resolver: Resolver,
    root: i32,
    candidates: &[CString],
    interpreter: &mut [u8; NAME],
) -> Result<usize, Failure> {
    let mut failure = Part::Find.of()(libc::ENOENT);
    for (at, path) in candidates.iter().enumerate() {
        match try_program(resolver, root, path, interpreter) {
            Ok(()) => return Ok(at),
            Err(Failure { part: Part::Find, errno: libc::ENOENT | libc::ENOTDIR }) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn try_program(resolver: Resolver, root: i32, path: &CStr, interpreter: &mut [u8; NAME]) -> Result<(), Failure> {
    let fd = open_program(resolver, root, path).map_err(Part::Find.of())?;
    let result = (|| {
        let stat = file::stat(fd, c"")?;
        if stat.is(libc::S_IFDIR) {
            return Err(libc::EISDIR);
        }
        if !stat.is(libc::S_IFREG) {
            return Err(libc::EACCES);
        }
        match file::may_execute(fd) {
            // Linux 5.8; the attempt to execute will tell.
            Err(libc::ENOSYS) => Ok(()),
            result => result,
        }
    })();
    close(fd);
    result.map_err(Part::Find.of())?;
    check_interpreter(resolver, root, path, interpreter)
}

/// Opens a candidate without going through a link such as `/proc/self/exe`, which would execute the host's program in here
/// (CVE-2019-5736). A relative path starts at the working directory.
fn open_program(resolver: Resolver, root: i32, path: &CStr) -> Call<i32> {
    open_readable(resolver, root, path, libc::O_PATH)
}

fn open_readable(resolver: Resolver, root: i32, path: &CStr, flags: i32) -> Call<i32> {
    if path.to_bytes().first() == Some(&b'/') {
        return resolver.open(root, path, flags, Links::Follow);
    }
    if resolver.openat2 {
        return file::openat2(libc::AT_FDCWD, path, flags, 0, RESOLVE_NO_MAGICLINKS);
    }
    // From the root all the same, so that no link leads out and none is magic.
    let mut whole = [0u8; 4096];
    let length = file::getcwd(&mut whole)?;
    // What it says ends with a zero, or does not fit.
    let start = whole.iter().position(|&byte| byte == 0).unwrap_or(length);
    let space = whole.get_mut(start..).unwrap_or_default();
    if space.len() < path.to_bytes().len() + 2 {
        return Err(libc::ENAMETOOLONG);
    }
    for (place, byte) in space.iter_mut().zip(std::iter::once(&b'/').chain(path.to_bytes())) {
        *place = *byte;
    }
    let whole = CStr::from_bytes_until_nul(&whole).map_err(|_| libc::ENAMETOOLONG)?;
    resolver.open(root, whole, flags, Links::Follow)
}

/// The kernel follows any link to the interpreter of a script, and at that moment `/proc/self/exe` is still the host's program.
///
/// One that is missing is told here, by its name: of the attempt to execute the kernel says no more than that something is.
fn check_interpreter(resolver: Resolver, root: i32, path: &CStr, name: &mut [u8; NAME]) -> Result<(), Failure> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    // The kernel reads the first line of what we may not read, so what it would find there must not stay unknown.
    let mut program = open_readable(resolver, root, path, flags).map_err(Part::Interpreter.of())?;
    // As deep as the kernel goes, and one more.
    for _ in 0..6 {
        let mut start = [0u8; 1024];
        let length = file::read(program, &mut start);
        close(program);
        let start = length.ok().and_then(|length| start.get(..length)).unwrap_or_default();
        let script = script_interpreter(start);
        let Some(found) = script.or_else(|| loader(start)) else { return Ok(()) };
        name.fill(0);
        // The last byte stays zero.
        for (place, byte) in name.iter_mut().take(NAME - 1).zip(found) {
            *place = *byte;
        }
        let Ok(interpreter) = CStr::from_bytes_until_nul(name) else { return Ok(()) };
        match open_readable(resolver, root, interpreter, libc::O_PATH) {
            Ok(fd) => close(fd),
            Err(errno) => return Err(Part::Interpreter.of()(errno)),
        }
        // A loader is loaded by the kernel, and executes nothing of the host's: it is only looked for.
        if script.is_none() {
            return Ok(());
        }
        program = open_readable(resolver, root, interpreter, flags).map_err(Part::Interpreter.of())?;
    }
    close(program);
    Ok(())
}

/// What follows `#!`, as far as the kernel looks.
fn script_interpreter(start: &[u8]) -> Option<&[u8]> {
    let line = start.get(..start.len().min(256)).and_then(|line| line.strip_prefix(b"#!"))?;
    // Only these two are skipped by the kernel; whatever else is white is part of the name.
    let first = line.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(line.len());
    let rest = line.get(first..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0)).unwrap_or(rest.len());
    rest.get(..end)
}

/// The loader that an ELF file of 64 bits asks for, if the file's first bytes tell: mostly they do, and else the kernel will.
fn loader(start: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: [u8; 4] = 3u32.to_ne_bytes();
    let bytes = |at: usize, length: usize| start.get(at..at.checked_add(length)?);
    let long = |at: usize| Some(u64::from_ne_bytes(bytes(at, 8)?.try_into().ok()?));
    let short = |at: usize| Some(usize::from(u16::from_ne_bytes(bytes(at, 2)?.try_into().ok()?)));
    let native = if cfg!(target_endian = "little") { 1 } else { 2 };
    if start.get(..6)? != [0x7f, b'E', b'L', b'F', 2, native] {
        return None;
    }
    let (first, size, count) = (usize::try_from(long(32)?).ok()?, short(54)?, short(56)?);
    for number in 0..count {
        let header = first.checked_add(number.checked_mul(size)?)?;
        if bytes(header, 4)? == PT_INTERP {
            let at = usize::try_from(long(header.checked_add(8)?)?).ok()?;
            let length = usize::try_from(long(header.checked_add(32)?)?).ok()?;
            return bytes(at, length.checked_sub(1)?).filter(|name| name.first() == Some(&b'/') && name.len() < NAME);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_read_as_the_kernel_does() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"#!/bin/sh\necho", Some(b"/bin/sh")),
            (b"#! \t/bin/sh -e\n", Some(b"/bin/sh")),
            (b"#!/bin/sh\r\n", Some(b"/bin/sh\r")),
            (b"#!/bin/sh", Some(b"/bin/sh")),
            (b"#!", Some(b"")),
            (b"#", None),
            (b"", None),
            (b"\x7fELF", None),
        ];
        for (start, expected) in cases {
            assert_eq!(script_interpreter(start), expected, "{start:?}");
        }
    }

    #[test]
    fn loaders_are_found_or_left_to_the_kernel() {
        let mut elf = [0u8; 512];
        elf[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, if cfg!(target_endian = "little") { 1 } else { 2 }]);
        elf[32..40].copy_from_slice(&64u64.to_ne_bytes());
        elf[54..56].copy_from_slice(&56u16.to_ne_bytes());
        elf[56..58].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(loader(&elf), None, "no header asks for one");
        let header = 64 + 56;
        elf[header..header + 4].copy_from_slice(&3u32.to_ne_bytes());
        elf[header + 8..header + 16].copy_from_slice(&300u64.to_ne_bytes());
        elf[header + 32..header + 40].copy_from_slice(&12u64.to_ne_bytes());
        elf[300..312].copy_from_slice(b"/lib/ld.so.1\0".get(..12).expect("12"));
        elf[311] = 0;
        assert_eq!(loader(&elf), Some(b"/lib/ld.so.".as_slice()));
        for length in 0..elf.len() {
            // Cut off or wrong at any place, it is read within its bounds.
            let _ = loader(&elf[..length]);
            let mut wrong = elf;
            wrong[length] = 0xff;
            let _ = loader(&wrong);
        }
    }
}
