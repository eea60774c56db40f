//! The program: where it starts, where its user lives, where it is.

use std::ffi::{CStr, CString};

use super::report::{Failure, Part};
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
pub(super) fn find(resolver: Resolver, root: i32, candidates: &[CString]) -> Result<usize, Failure> {
    let mut failure = Part::Find.of()(libc::ENOENT);
    for (at, path) in candidates.iter().enumerate() {
        match try_program(resolver, root, path) {
            Ok(()) => return Ok(at),
            Err(Failure { errno: libc::ENOENT | libc::ENOTDIR, .. }) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn try_program(resolver: Resolver, root: i32, path: &CStr) -> Result<(), Failure> {
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
    check_interpreter(resolver, root, path)
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
    file::openat(libc::AT_FDCWD, path, flags, 0)
}

/// The kernel follows any link to the interpreter of a script, and at that moment `/proc/self/exe` is still the host's program.
fn check_interpreter(resolver: Resolver, root: i32, path: &CStr) -> Result<(), Failure> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut name = [0u8; 257];
    // The kernel reads the first line of what we may not read, so what it would find there must not stay unknown.
    let mut script = open_readable(resolver, root, path, flags).map_err(Part::Interpreter.of())?;
    // As deep as the kernel goes, and one more.
    for _ in 0..6 {
        let mut line = [0u8; 256];
        let length = file::read(script, &mut line);
        close(script);
        let line = length.ok().and_then(|length| line.get(..length)).unwrap_or_default();
        let Some(rest) = line.strip_prefix(b"#!") else { return Ok(()) };
        // Only these two are skipped by the kernel; whatever else is white is part of the name.
        let start = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(rest.len());
        let rest = rest.get(start..).unwrap_or_default();
        let end = rest.iter().position(|byte| matches!(byte, b' ' | b'\t' | b'\n' | 0)).unwrap_or(rest.len());
        name.fill(0);
        for (place, byte) in name.iter_mut().zip(rest.get(..end).unwrap_or_default()) {
            *place = *byte;
        }
        let Ok(interpreter) = CStr::from_bytes_until_nul(&name) else { return Ok(()) };
        match open_readable(resolver, root, interpreter, libc::O_PATH) {
            Ok(fd) => close(fd),
            // The attempt to execute will tell.
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(Part::Interpreter.of()(errno)),
        }
        script = open_readable(resolver, root, interpreter, flags).map_err(Part::Interpreter.of())?;
    }
    close(script);
    Ok(())
}
