//! What is in `/dev`, made by the child.

use std::ffi::CStr;

use super::report::{Failure, Part};
use super::target::parent;
use crate::plan::Target;
use crate::resolve::{Links, Resolver};
use crate::sys::file::{self, close};
use crate::sys::mount::{self as sys, Depth};
use crate::sys::terminal;

const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Makes a device node. One that is there already must be the same device.
pub(super) fn node(
    resolver: Resolver,
    root: i32,
    target: &Target,
    mode: u32,
    rdev: u64,
    owner: (u32, u32),
) -> Result<(), Failure> {
    let folder = parent(resolver, root, target)?;
    match file::mknodat(folder, target.name(), mode, rdev) {
        Ok(()) => {}
        Err(libc::EEXIST) => {
            let stat = file::stat(folder, target.name())?;
            if !stat.is(mode & libc::S_IFMT) || stat.rdev != rdev {
                return Err(Part::Existing.of()(libc::EEXIST));
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    if owner != (0, 0) {
        file::chown(folder, target.name(), owner.0, owner.1)?;
    }
    close(folder);
    Ok(())
}

/// Makes a symbolic link. What is there already stays, unless it is to be replaced.
pub(super) fn link(resolver: Resolver, root: i32, target: &Target, to: &CStr, replace: bool) -> Result<(), Failure> {
    let folder = parent(resolver, root, target)?;
    match file::symlinkat(to, folder, target.name()) {
        Err(libc::EEXIST) if replace => {
            file::unlinkat(folder, target.name())?;
            file::symlinkat(to, folder, target.name())?;
        }
        Ok(()) | Err(libc::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    close(folder);
    Ok(())
}

/// Opens a terminal of the container's own devpts, and shows it at `target`, which is `/dev/console`, if there is one. Returns both sides.
///
/// No path leads to the terminal: what lies at `/dev/pts/0` is the container's business (CVE-2025-52565).
pub(super) fn console(
    resolver: Resolver,
    root: i32,
    (columns, rows): (u16, u16),
    uid: u32,
    target: Option<&Target>,
) -> Result<(i32, i32), Failure> {
    let master = resolver.open(root, c"dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, Links::Refuse)?;
    if file::filesystem(master)? != DEVPTS_SUPER_MAGIC {
        return Err(libc::ENOTTY.into());
    }
    terminal::unlock(master)?;
    let peer = terminal::peer(master)?;
    if columns > 0 && rows > 0 {
        terminal::resize(peer, columns, rows)?;
    }
    if uid != 0 {
        file::chown(peer, c"", uid, u32::MAX)?;
    }
    let Some(target) = target else { return Ok((master, peer)) };
    let folder = parent(resolver, root, target)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    match file::openat(folder, target.name(), flags, 0o666) {
        Ok(fd) => close(fd),
        Err(libc::EEXIST) => {}
        Err(errno) => return Err(Part::Target.of()(errno)),
    }
    close(folder);
    let place = resolver.open(root, target.path(), libc::O_PATH, Links::Refuse).map_err(Part::Target.of())?;
    let copy = sys::clone_tree(peer, c"", Depth::Top).map_err(Part::Copy.of())?;
    sys::attach(copy, place).map_err(Part::Attach.of())?;
    close(copy);
    close(place);
    Ok((master, peer))
}
