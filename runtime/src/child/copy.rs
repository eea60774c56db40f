//! The contents of a folder are copied into the filesystem that will hide it (`tmpcopyup`).

use std::ffi::CStr;

use crate::sys::Call;
use crate::sys::file::{self, close};

/// How deep folders are followed. Each level takes some of the caller's stack.
const DEEPEST: usize = 64;

/// Copies what is in the folder `from` into the folder `to`, which is empty: files, links and nodes with their owners, modes and
/// times, but without extended attributes. What the container's memory has no room for is an error.
pub(super) fn copy_up(from: i32, to: i32) -> Call {
    let source = file::openat(from, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let result = contents(source, to, DEEPEST);
    close(source);
    result
}

fn contents(from: i32, to: i32, left: usize) -> Call {
    let Some(left) = left.checked_sub(1) else { return Err(libc::ELOOP) };
    let mut buffer = file::Entries::new();
    while file::read_folder(from, &mut buffer)? {
        let mut at = 0;
        while let Some((name, next)) = buffer.name(at) {
            at = next;
            if name != c"." && name != c".." {
                entry(from, to, name, left)?;
            }
        }
    }
    Ok(())
}

fn entry(from: i32, to: i32, name: &CStr, left: usize) -> Call {
    let stat = file::stat(from, name)?;
    match stat.mode & libc::S_IFMT {
        libc::S_IFDIR => folder(from, to, name, left)?,
        libc::S_IFREG => regular(from, to, name)?,
        libc::S_IFLNK => {
            link(from, to, name)?;
            // A link has no mode.
            file::chown(to, name, stat.owner.0, stat.owner.1)?;
            return file::set_times(to, name, &stat.times);
        }
        _ => file::mknodat(to, name, stat.mode & libc::S_IFMT | 0o600, stat.rdev)?,
    }
    // The owner first: a change of it takes set-user-id away.
    file::chown(to, name, stat.owner.0, stat.owner.1)?;
    file::chmod(to, name, stat.mode & 0o7777)?;
    file::set_times(to, name, &stat.times)
}

#[inline(never)]
fn folder(from: i32, to: i32, name: &CStr, left: usize) -> Call {
    file::mkdirat(to, name, 0o700)?;
    let source = file::openat(from, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)?;
    let copy = match file::openat(to, name, libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0) {
        Ok(copy) => copy,
        Err(errno) => {
            close(source);
            return Err(errno);
        }
    };
    let result = contents(source, copy, left);
    close(source);
    close(copy);
    result
}

#[inline(never)]
fn regular(from: i32, to: i32, name: &CStr) -> Call {
    let source = file::openat(from, name, libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let copy = match file::openat(to, name, flags, 0o600) {
        Ok(copy) => copy,
        Err(errno) => {
            close(source);
            return Err(errno);
        }
    };
    let result = loop {
        match file::send(source, copy) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(errno) => break Err(errno),
        }
    };
    close(source);
    close(copy);
    result
}

#[inline(never)]
fn link(from: i32, to: i32, name: &CStr) -> Call {
    let mut buffer = [0u8; 4097];
    // One byte stays for the zero.
    let room = buffer.get_mut(..4096).unwrap_or_default();
    file::readlinkat(from, name, room)?;
    let target = CStr::from_bytes_until_nul(&buffer).map_err(|_| libc::ENAMETOOLONG)?;
    file::symlinkat(target, to, name)
}
