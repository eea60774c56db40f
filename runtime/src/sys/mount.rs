//! Mounts.

use std::ffi::{CStr, c_ulong};
use std::ptr;

use super::{Call, done, fd};

/// Attributes of a mount, for `fsmount` and `mount_setattr`.
pub(crate) mod attribute {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    /// The mask over the three kinds of access time.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const NOSYMFOLLOW: u64 = 0x0020_0000;
}

const AT_RECURSIVE: i32 = 0x8000;
const OPEN_TREE_CLONE: i32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// Whether something is about one mount or about all below it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Depth {
    /// The one mount.
    #[default]
    Top,
    /// The mount and all mounts below it.
    Recursive,
}

impl Depth {
    fn flag(self) -> i32 {
        match self {
            Self::Top => 0,
            Self::Recursive => AT_RECURSIVE,
        }
    }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// [`fsopen(2)`](https://man7.org/linux/man-pages/man2/fsopen.2.html).
pub(crate) fn fsopen(kind: &CStr) -> Call<i32> {
    // SAFETY: kind is a C string; 1 is FSOPEN_CLOEXEC.
    let returned = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) };
    fd(returned)
}

/// [`fsconfig(2)`](https://man7.org/linux/man-pages/man2/fsconfig.2.html): a key with or without a value.
pub(crate) fn fsconfig(context: i32, key: &CStr, value: Option<&CStr>) -> Call {
    let (command, value) = match value {
        Some(value) => (FSCONFIG_SET_STRING, value.as_ptr()),
        None => (FSCONFIG_SET_FLAG, ptr::null()),
    };
    // SAFETY: key is a C string and value one or null, as the command wants it.
    let returned = unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key.as_ptr(), value, 0) };
    done(returned)
}

/// [`fsconfig(2)`](https://man7.org/linux/man-pages/man2/fsconfig.2.html): the filesystem is made.
pub(crate) fn fsconfig_create(context: i32) -> Call {
    let none: *const i8 = ptr::null();
    // SAFETY: the command takes neither key nor value.
    let returned = unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, none, none, 0) };
    done(returned)
}

/// [`fsmount(2)`](https://man7.org/linux/man-pages/man2/fsmount.2.html).
pub(crate) fn fsmount(context: i32, attributes: u64) -> Call<i32> {
    // SAFETY: plain numbers; 1 is FSMOUNT_CLOEXEC.
    let returned = unsafe { libc::syscall(libc::SYS_fsmount, context, 1, attributes as u32) };
    fd(returned)
}

/// [`open_tree(2)`](https://man7.org/linux/man-pages/man2/open_tree.2.html) with `OPEN_TREE_CLONE`; an empty path means `dir`
/// itself.
#[doc(alias = "open_tree")]
pub(crate) fn clone_tree(dir: i32, path: &CStr, depth: Depth) -> Call<i32> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | depth.flag();
    // SAFETY: path is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) };
    fd(returned)
}

/// [`move_mount(2)`](https://man7.org/linux/man-pages/man2/move_mount.2.html): onto the file that `target` is open on.
#[doc(alias = "move_mount")]
pub(crate) fn attach(tree: i32, target: i32) -> Call {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: the paths are C strings.
    let returned = unsafe { libc::syscall(libc::SYS_move_mount, tree, c"".as_ptr(), target, c"".as_ptr(), flags) };
    done(returned)
}

/// [`move_mount(2)`](https://man7.org/linux/man-pages/man2/move_mount.2.html): onto a path.
pub(crate) fn attach_at(tree: i32, target: &CStr) -> Call {
    // SAFETY: the paths are C strings.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    done(returned)
}

/// [`mount_setattr(2)`](https://man7.org/linux/man-pages/man2/mount_setattr.2.html) on the mount that `fd` is open on.
#[doc(alias = "mount_setattr")]
pub(crate) fn set_attributes(fd: i32, depth: Depth, set: u64, clear: u64, propagation: u64) -> Call {
    let attr = MountAttr { set, clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | depth.flag();
    // SAFETY: the path is a C string and the structure has that size.
    let returned = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    };
    done(returned)
}

/// [`mount_setattr(2)`](https://man7.org/linux/man-pages/man2/mount_setattr.2.html) with `MOUNT_ATTR_IDMAP`: files show the owners
/// that the user namespace `users` maps theirs to. Linux 5.12.
#[doc(alias = "mount_setattr")]
pub(crate) fn set_idmap(fd: i32, depth: Depth, users: i32) -> Call {
    const IDMAP: u64 = 0x0010_0000;
    let attr = MountAttr { set: IDMAP, clear: 0, propagation: 0, userns_fd: users as u64 };
    let flags = libc::AT_EMPTY_PATH | depth.flag();
    // SAFETY: the path is a C string and the structure has that size.
    let returned = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    };
    done(returned)
}

/// Whether the kernel has `mount_setattr`.
pub(crate) fn has_set_attributes() -> bool {
    let none: *const MountAttr = ptr::null();
    // SAFETY: a size of 0 is refused before anything is read.
    let returned = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, none, 0usize) };
    done(returned) == Err(libc::EINVAL)
}

/// [`mount(2)`](https://man7.org/linux/man-pages/man2/mount.2.html).
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Call {
    let or_null = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is a C string or null.
    let returned = unsafe {
        libc::syscall(libc::SYS_mount, or_null(source), target.as_ptr(), or_null(kind), flags as c_ulong, or_null(data))
    };
    done(returned)
}

/// [`umount2(2)`](https://man7.org/linux/man-pages/man2/umount2.2.html) with `MNT_DETACH`.
pub(crate) fn detach(target: &CStr, flags: i32) -> Call {
    // SAFETY: target is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_umount2, target.as_ptr(), libc::MNT_DETACH | flags) };
    done(returned)
}

/// [`pivot_root(2)`](https://man7.org/linux/man-pages/man2/pivot_root.2.html), the old root stacked onto the new one.
pub(crate) fn pivot_here() -> Call {
    // SAFETY: the paths are C strings.
    let returned = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    done(returned)
}
