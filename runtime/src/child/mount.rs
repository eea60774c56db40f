//! Mounts, done by the child.

use std::ffi::CStr;

use super::copy::copy_up;
use super::report::{Failure, Part};
use super::target::make;
use crate::Features;
use crate::mount::set_options;
use crate::plan::{Filesystem, Late, Options, Target};
use crate::resolve::{Links, Resolver};
use crate::sys::Call;
use crate::sys::file::{self, close};
use crate::sys::mount::{self as sys, Depth, attribute};

const PROC_SUPER_MAGIC: i64 = 0x9fa0;
const NULL_DEVICE: u64 = libc::makedev(1, 3);

/// Nothing that is mounted here from now on appears on the host.
pub(super) fn private() -> Call {
    sys::mount(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None)
}

/// Gives the root a place, so that it can be switched to.
pub(super) fn attach_root(tree: i32, at: &CStr) -> Result<i32, Failure> {
    sys::attach_at(tree, at).map_err(Part::Attach.of())?;
    // A copy of a shared mount is its peer until it is told otherwise.
    propagate(tree, libc::MS_SLAVE | libc::MS_REC)?;
    Ok(tree)
}

/// Sets the propagation of the mount that `fd` is open on.
pub(super) fn propagate(fd: i32, kind: u64) -> Result<(), Failure> {
    file::fchdir(fd).map_err(Part::Propagation.of())?;
    sys::mount(None, c".", None, kind, None).map_err(Part::Propagation.of())
}

/// Makes a filesystem that is attached nowhere.
fn detached(kind: &CStr, parameters: &[(&CStr, Option<&CStr>)], attributes: u64) -> Result<i32, Failure> {
    let context = sys::fsopen(kind).map_err(Part::OpenFilesystem.of())?;
    let result = (|| {
        for (key, value) in parameters {
            sys::fsconfig(context, key, *value).map_err(Part::Parameter.of())?;
        }
        sys::fsconfig_create(context).map_err(Part::Make.of())?;
        sys::fsmount(context, attributes).map_err(Part::Make.of())
    })();
    close(context);
    result
}

/// Makes and attaches a filesystem.
pub(super) fn filesystem(resolver: Resolver, root: i32, filesystem: &Filesystem) -> Result<(), Failure> {
    let links = if filesystem.no_links { Links::Refuse } else { Links::Follow };
    let context = sys::fsopen(&filesystem.kind).map_err(Part::OpenFilesystem.of())?;
    if filesystem.same_mode
        && let Ok(hidden) = resolver.open(root, filesystem.target.path(), libc::O_PATH, links)
    {
        let mode = octal(file::stat(hidden, c"")?.mode & 0o7777);
        close(hidden);
        let mode = CStr::from_bytes_until_nul(&mode).map_err(|_| libc::EINVAL)?;
        sys::fsconfig(context, c"mode", Some(mode)).map_err(Part::Parameter.of())?;
    }
    for (key, value) in &filesystem.parameters {
        sys::fsconfig(context, key, value.as_deref()).map_err(Part::Parameter.of())?;
    }
    sys::fsconfig_create(context).map_err(Part::Make.of())?;
    let tree = sys::fsmount(context, filesystem.attributes).map_err(Part::Make.of())?;
    close(context);
    let target = make(resolver, root, &filesystem.target, true, links).map_err(|errno| match errno {
        libc::ELOOP | libc::ENOTDIR if filesystem.no_links => Part::Ordinary.of()(errno),
        errno => Part::Target.of()(errno),
    })?;
    if filesystem.kind.as_c_str() != c"proc" && file::filesystem(target)? == PROC_SUPER_MAGIC {
        return Err(Part::InsideProc.of()(libc::EPERM));
    }
    if filesystem.copy_up {
        copy_up(target, tree).map_err(Part::CopyUp.of())?;
    }
    sys::attach(tree, target).map_err(Part::Attach.of())?;
    close(target);
    if let Some(kind) = filesystem.propagation {
        propagate(tree, kind)?;
    }
    close(tree);
    Ok(())
}

/// A mode as text.
fn octal(mode: u32) -> [u8; 6] {
    let digit = |shift: u32| b'0' + (mode >> shift & 7) as u8;
    [b'0', digit(9), digit(6), digit(3), digit(0), 0]
}

/// A detached copy of a part of the host's tree.
pub(super) fn host_tree(path: &CStr, depth: Depth) -> Result<i32, Failure> {
    sys::clone_tree(libc::AT_FDCWD, path, depth).map_err(Part::Source.of())
}

/// A detached copy of a part of the container's tree.
pub(super) fn own_tree(
    resolver: Resolver,
    root: i32,
    source: &Target,
    depth: Depth,
    options: &Options,
    features: Features,
) -> Result<i32, Failure> {
    let place = resolver.open(root, source.path(), libc::O_PATH, Links::Follow).map_err(Part::Source.of())?;
    let tree = sys::clone_tree(place, c"", depth).map_err(Part::Copy.of())?;
    close(place);
    if features.mount_setattr {
        set_options(tree, options).map_err(Part::Attributes.of())?;
    }
    Ok(tree)
}

/// Attaches a tree of the parent's. If `guarded`, not inside a procfs, where it could feign what security depends on.
pub(super) fn bind(
    resolver: Resolver,
    root: i32,
    tree: i32,
    target: &Target,
    guarded: bool,
    late: Option<(i32, Late)>,
) -> Result<(), Failure> {
    let folder = file::stat(tree, c"")?.is(libc::S_IFDIR);
    let place = make(resolver, root, target, folder, Links::Follow).map_err(Part::Target.of())?;
    if guarded && file::filesystem(place)? == PROC_SUPER_MAGIC {
        return Err(Part::InsideProc.of()(libc::EPERM));
    }
    // The nodes and links of /dev would be made in what is bound here, a folder of the host.
    if guarded && folder && target.path() != c"dev" && is_dev(resolver, root, place)? {
        return Err(Part::OverDev.of()(libc::EPERM));
    }
    sys::attach(tree, place).map_err(|errno| {
        let onto_folder = file::stat(place, c"").map(|stat| stat.is(libc::S_IFDIR));
        let part = match (folder, onto_folder) {
            (true, Ok(false)) => Part::FolderOntoFile,
            (false, Ok(true)) => Part::FileOntoFolder,
            _ => Part::Attach,
        };
        part.of()(errno)
    })?;
    close(place);
    if let Some((proc, late)) = late {
        if late.set | late.clear != 0 {
            remount(proc, tree, late.set, late.clear)?;
        }
        if let Some(kind) = late.propagation {
            change(proc, tree, kind).map_err(Part::Propagation.of())?;
        }
    }
    close(tree);
    Ok(())
}

/// Whether an open folder is the container's /dev.
fn is_dev(resolver: Resolver, root: i32, folder: i32) -> Result<bool, Failure> {
    let dev = match resolver.open(root, c"dev", libc::O_PATH | libc::O_DIRECTORY, Links::Follow) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(false),
        result => result.map_err(Part::Target.of())?,
    };
    let (this, that) = (file::stat(folder, c"")?, file::stat(dev, c"")?);
    close(dev);
    Ok(this.is_same(&that))
}

/// Makes the procfs that nothing else can reach.
pub(super) fn private_proc(proc: &mut i32) -> Result<(), Failure> {
    if *proc < 0 {
        *proc = detached(c"proc", &[], attribute::NOSUID | attribute::NODEV | attribute::NOEXEC)?;
    }
    Ok(())
}

/// Changes the mount that `fd` is open on by `mount(2)`, which wants a path: that of a descriptor in a procfs of our own.
fn change(proc: i32, fd: i32, flags: u64) -> Call {
    const NAME: &[u8] = b"self/fd/";
    let mut path = [0u8; 24];
    let digits = fd.checked_ilog10().unwrap_or(0) as usize + 1;
    let end = NAME.len() + digits;
    for (place, byte) in path.iter_mut().zip(NAME) {
        *place = *byte;
    }
    let mut rest = fd;
    for place in path.get_mut(NAME.len()..end).unwrap_or_default().iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| libc::EBADF)?;
    file::fchdir(proc)?;
    sys::mount(None, path, None, flags, None)
}

/// Changes the flags of an attached mount the old way, which wants all of them.
fn remount(proc: i32, fd: i32, set: u64, clear: u64) -> Result<(), Failure> {
    // What fstatvfs says has the values of mount(2), but for relatime.
    const SAME: u64 =
        libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME | libc::MS_NODIRATIME;
    let flags = file::mount_flags(fd).map_err(Part::Attributes.of())? & SAME & !clear | set;
    change(proc, fd, libc::MS_REMOUNT | libc::MS_BIND | flags).map_err(Part::Attributes.of())
}

/// How a mount is made read-only.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// By `mount_setattr`.
    New,
    /// By a remount, through this procfs.
    Old(i32),
}

impl Way {
    pub(super) fn new(features: Features, proc: i32) -> Self {
        if features.mount_setattr { Self::New } else { Self::Old(proc) }
    }

    fn make_readonly(self, fd: i32, depth: Depth) -> Result<(), Failure> {
        match self {
            Self::New => sys::set_attributes(fd, depth, attribute::RDONLY, 0, 0).map_err(Part::Attributes.of()),
            Self::Old(proc) => remount(proc, fd, libc::MS_RDONLY, 0),
        }
    }
}

/// Makes a mount of the container read-only.
pub(super) fn readonly(way: Way, resolver: Resolver, root: i32, target: &Target) -> Result<(), Failure> {
    let fd = resolver.open(root, target.path(), libc::O_PATH, Links::Follow).map_err(Part::Target.of())?;
    way.make_readonly(fd, Depth::Top)?;
    close(fd);
    Ok(())
}

/// Makes a path read-only by a mount of its own. A path that is not there needs none.
pub(super) fn readonly_path(way: Way, resolver: Resolver, root: i32, target: &Target) -> Result<(), Failure> {
    let place = match resolver.open(root, target.path(), libc::O_PATH, Links::Follow) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
        result => result.map_err(Part::Target.of())?,
    };
    let copy = sys::clone_tree(place, c"", Depth::Recursive).map_err(Part::Copy.of())?;
    match way {
        Way::New => {
            way.make_readonly(copy, Depth::Recursive)?;
            sys::attach(copy, place).map_err(Part::Attach.of())?;
        }
        Way::Old(_) => {
            sys::attach(copy, place).map_err(Part::Attach.of())?;
            way.make_readonly(copy, Depth::Top)?;
        }
    }
    close(copy);
    close(place);
    Ok(())
}

/// Hides a path: a folder under an empty one, a file under the null device. One tmpfs serves all folders.
pub(super) fn mask(
    resolver: Resolver,
    root: i32,
    target: &Target,
    empty: &mut i32,
    null: &mut i32,
) -> Result<(), Failure> {
    let place = match resolver.open(root, target.path(), libc::O_PATH, Links::Follow) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
        result => result.map_err(Part::Target.of())?,
    };
    if file::stat(place, c"")?.is(libc::S_IFDIR) {
        if *empty < 0 {
            let parameters: [(&CStr, Option<&CStr>); 4] = [
                (c"source", Some(c"tmpfs")),
                (c"nr_blocks", Some(c"1")),
                (c"nr_inodes", Some(c"1")),
                (c"mode", Some(c"755")),
            ];
            let attributes = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
            *empty = detached(c"tmpfs", &parameters, attributes)?;
            sys::attach(*empty, place).map_err(Part::Attach.of())?;
        } else {
            let copy = sys::clone_tree(*empty, c"", Depth::Top).map_err(Part::Copy.of())?;
            sys::attach(copy, place).map_err(Part::Attach.of())?;
            close(copy);
        }
    } else {
        if *null < 0 {
            // Whoever made the root decides what lies at /dev/null: a link to a file of the host would open it (CVE-2025-31133).
            let found = resolver.open(root, c"dev/null", libc::O_PATH, Links::Refuse).map_err(Part::Null.of())?;
            let stat = file::stat(found, c"").map_err(Part::Null.of())?;
            if !stat.is(libc::S_IFCHR) || stat.rdev != NULL_DEVICE {
                return Err(Part::Null.of()(libc::ENODEV));
            }
            *null = found;
        }
        let copy = sys::clone_tree(*null, c"", Depth::Top).map_err(Part::Copy.of())?;
        sys::attach(copy, place).map_err(Part::Attach.of())?;
        close(copy);
    }
    close(place);
    Ok(())
}

/// Makes `root` the root, and lets go of the host's.
pub(super) fn pivot(root: i32) -> Result<(), Failure> {
    file::fchdir(root)?;
    sys::pivot_here()?;
    // The old root lies on the new one now, and is what "." means to umount.
    sys::detach(c".", 0).map_err(Part::Detach.of())?;
    file::fchdir(root)?;
    Ok(())
}

/// The same where the host runs from a ramdisk that cannot be pivoted.
pub(super) fn chroot(root: i32, elsewhere: bool) -> Result<(), Failure> {
    file::fchdir(root)?;
    if elsewhere {
        sys::mount(Some(c"."), c"/", None, libc::MS_MOVE, None).map_err(Part::Attach.of())?;
        file::fchdir(root)?;
    }
    file::chroot(c".")?;
    file::fchdir(root)?;
    Ok(())
}

/// Writes an attribute of this process, through a procfs that nothing else can reach (CVE-2025-52881).
pub(super) fn label(resolver: Resolver, proc: &mut i32, path: &CStr, value: &[u8]) -> Result<(), Failure> {
    private_proc(proc)?;
    // `self` is a link inside.
    let file = resolver.open(*proc, path, libc::O_WRONLY, Links::Follow)?;
    let written = file::write(file, value);
    close(file);
    written?;
    Ok(())
}

/// Writes a setting, through a procfs that nothing else can reach (CVE-2025-52881).
pub(super) fn sysctl(resolver: Resolver, proc: &mut i32, path: &CStr, value: &[u8]) -> Result<(), Failure> {
    private_proc(proc)?;
    let settings = resolver.open(*proc, c"sys", libc::O_PATH | libc::O_DIRECTORY, Links::Refuse)?;
    let file = resolver.open(settings, path, libc::O_WRONLY, Links::Refuse);
    close(settings);
    let file = file?;
    let written = file::write(file, value);
    close(file);
    written?;
    Ok(())
}
