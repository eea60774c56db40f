//! Files and descriptors.

use std::ffi::{CStr, c_long, c_uint};
use std::mem::MaybeUninit;

use super::{Call, check, done, fd};

/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html): absolute and `..` stay below the directory.
pub(crate) const RESOLVE_IN_ROOT: u64 = 0x10;
/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html): no link such as `/proc/self/exe`.
pub(crate) const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html): no symbolic link anywhere.
pub(crate) const RESOLVE_NO_SYMLINKS: u64 = 0x04;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html), close-on-exec.
pub(crate) fn openat2(dir: i32, path: &CStr, flags: i32, mode: u32, resolve: u64) -> Call<i32> {
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    loop {
        // SAFETY: path is a C string and how a valid structure of that size; both outlive the call.
        let returned =
            unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<OpenHow>()) };
        // A rename elsewhere while `..` is resolved makes the kernel ask for another attempt.
        match fd(returned) {
            Err(libc::EAGAIN) => {}
            result => return result,
        }
    }
}

/// Whether the kernel has `openat2`.
pub(crate) fn has_openat2() -> bool {
    let none: *const OpenHow = std::ptr::null();
    // SAFETY: a size of 0 is refused before anything is read.
    let returned = unsafe { libc::syscall(libc::SYS_openat2, -1, c"".as_ptr(), none, 0usize) };
    done(returned) == Err(libc::EINVAL)
}

/// [`openat(2)`](https://man7.org/linux/man-pages/man2/openat.2.html), close-on-exec.
pub(crate) fn openat(dir: i32, path: &CStr, flags: i32, mode: u32) -> Call<i32> {
    // SAFETY: path is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_openat, dir, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
    fd(returned)
}

/// [`close(2)`](https://man7.org/linux/man-pages/man2/close.2.html); errors have no remedy.
pub(crate) fn close(fd: i32) {
    // SAFETY: a plain number; the caller owns the descriptor.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// [`close_range(2)`](https://man7.org/linux/man-pages/man2/close_range.2.html).
pub(crate) fn close_range(first: u32, last: u32) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first as c_uint, last as c_uint, 0) };
    done(returned)
}

/// Whether the kernel has `close_range`.
pub(crate) fn has_close_range() -> bool {
    // Last before first is invalid.
    close_range(1, 0) == Err(libc::EINVAL)
}

/// What the child needs to know of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stat {
    /// Type and permission bits.
    pub(crate) mode: u32,
    /// The device that a device node stands for.
    pub(crate) rdev: u64,
    /// The user and the group that it belongs to.
    pub(crate) owner: (u32, u32),
    /// Seconds and nanoseconds of the last access and the last change.
    pub(crate) times: [i64; 4],
    /// The filesystem, and the inode in it.
    pub(crate) identity: (u64, u64),
}

impl Stat {
    /// Whether both are one file.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether it is of this type (`S_IFDIR` and so on).
    pub(crate) fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }
}

/// [`fstatat(2)`](https://man7.org/linux/man-pages/man2/fstatat.2.html), links not followed; an empty path means `dir` itself.
pub(crate) fn stat(dir: i32, path: &CStr) -> Call<Stat> {
    let mut buffer = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: path is a C string and the buffer has the structure's size.
    let returned = unsafe { libc::fstatat(dir, path.as_ptr(), buffer.as_mut_ptr(), flags) };
    done(c_long::from(returned))?;
    // SAFETY: the call succeeded and has filled the structure.
    let stat = unsafe { buffer.assume_init() };
    Ok(Stat {
        mode: stat.st_mode,
        rdev: stat.st_rdev,
        owner: (stat.st_uid, stat.st_gid),
        times: [stat.st_atime, stat.st_atime_nsec, stat.st_mtime, stat.st_mtime_nsec],
        identity: (stat.st_dev, stat.st_ino),
    })
}

/// The type of the filesystem, from [`fstatfs(2)`](https://man7.org/linux/man-pages/man2/fstatfs.2.html).
pub(crate) fn filesystem(fd: i32) -> Call<i64> {
    let mut buffer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the buffer has the structure's size.
    let returned = unsafe { libc::fstatfs(fd, buffer.as_mut_ptr()) };
    done(c_long::from(returned))?;
    // SAFETY: the call succeeded and has filled the structure.
    let statfs = unsafe { buffer.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs between C libraries")]
    Ok(statfs.f_type as i64)
}

/// The flags of the mount, from [`fstatvfs(3)`](https://man7.org/linux/man-pages/man3/fstatvfs.3.html).
pub(crate) fn mount_flags(fd: i32) -> Call<u64> {
    let mut buffer = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the buffer has the structure's size.
    let returned = unsafe { libc::fstatvfs(fd, buffer.as_mut_ptr()) };
    done(c_long::from(returned))?;
    // SAFETY: the call succeeded and has filled the structure.
    let statvfs = unsafe { buffer.assume_init() };
    Ok(statvfs.f_flag)
}

/// [`mkdirat(2)`](https://man7.org/linux/man-pages/man2/mkdirat.2.html).
pub(crate) fn mkdirat(dir: i32, name: &CStr, mode: u32) -> Call {
    // SAFETY: name is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_mkdirat, dir, name.as_ptr(), mode) };
    done(returned)
}

/// [`mknodat(2)`](https://man7.org/linux/man-pages/man2/mknodat.2.html).
pub(crate) fn mknodat(dir: i32, name: &CStr, mode: u32, device: u64) -> Call {
    // SAFETY: name is a C string.
    let returned = unsafe { libc::mknodat(dir, name.as_ptr(), mode, device) };
    done(c_long::from(returned))
}

/// [`symlinkat(2)`](https://man7.org/linux/man-pages/man2/symlinkat.2.html).
pub(crate) fn symlinkat(target: &CStr, dir: i32, name: &CStr) -> Call {
    // SAFETY: both are C strings.
    let returned = unsafe { libc::syscall(libc::SYS_symlinkat, target.as_ptr(), dir, name.as_ptr()) };
    done(returned)
}

/// [`unlinkat(2)`](https://man7.org/linux/man-pages/man2/unlinkat.2.html).
pub(crate) fn unlinkat(dir: i32, name: &CStr) -> Call {
    // SAFETY: name is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_unlinkat, dir, name.as_ptr(), 0) };
    done(returned)
}

/// [`fchownat(2)`](https://man7.org/linux/man-pages/man2/fchownat.2.html), links not followed; an empty path means `dir` itself.
pub(crate) fn chown(dir: i32, name: &CStr, uid: u32, gid: u32) -> Call {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: name is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_fchownat, dir, name.as_ptr(), uid, gid, flags) };
    done(returned)
}

/// [`readlinkat(2)`](https://man7.org/linux/man-pages/man2/readlinkat.2.html): how many bytes were written.
pub(crate) fn readlinkat(dir: i32, name: &CStr, buffer: &mut [u8]) -> Call<usize> {
    // SAFETY: name is a C string; the buffer may be written up to its length.
    let returned =
        unsafe { libc::syscall(libc::SYS_readlinkat, dir, name.as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
    check(returned).map(|length| length as usize)
}

/// Whether the calling process may execute the file, by
/// [`faccessat2(2)`](https://man7.org/linux/man-pages/man2/faccessat2.2.html) with the effective ids.
pub(crate) fn may_execute(fd: i32) -> Call {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    // SAFETY: the path is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_faccessat2, fd, c"".as_ptr(), libc::X_OK, flags) };
    done(returned)
}

/// [`fchdir(2)`](https://man7.org/linux/man-pages/man2/fchdir.2.html).
pub(crate) fn fchdir(fd: i32) -> Call {
    // SAFETY: a plain number.
    let returned = unsafe { libc::syscall(libc::SYS_fchdir, fd) };
    done(returned)
}

/// [`chroot(2)`](https://man7.org/linux/man-pages/man2/chroot.2.html).
pub(crate) fn chroot(path: &CStr) -> Call {
    // SAFETY: path is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_chroot, path.as_ptr()) };
    done(returned)
}

/// [`getcwd(2)`](https://man7.org/linux/man-pages/man2/getcwd.2.html) of the kernel, which writes `(unreachable)` before a path
/// outside the root.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Call<usize> {
    // SAFETY: the buffer may be written up to its length.
    let returned = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    check(returned).map(|length| length as usize)
}

/// [`read(2)`](https://man7.org/linux/man-pages/man2/read.2.html), tried again after a signal.
pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> Call<usize> {
    loop {
        // SAFETY: the buffer may be written up to its length.
        let returned = unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) };
        match check(returned) {
            Err(libc::EINTR) => {}
            result => return result.map(|length| length as usize),
        }
    }
}

/// [`write(2)`](https://man7.org/linux/man-pages/man2/write.2.html), tried again after a signal.
pub(crate) fn write(fd: i32, bytes: &[u8]) -> Call<usize> {
    loop {
        // SAFETY: the bytes may be read up to their length.
        let returned = unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) };
        match check(returned) {
            Err(libc::EINTR) => {}
            result => return result.map(|length| length as usize),
        }
    }
}

/// [`dup3(2)`](https://man7.org/linux/man-pages/man2/dup3.2.html), without close-on-exec.
pub(crate) fn dup_to(from: i32, to: i32) -> Call {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_dup3, from, to, 0) };
    done(returned)
}

/// A close-on-exec duplicate whose number is `least` or more, by `F_DUPFD_CLOEXEC` of
/// [`fcntl(2)`](https://man7.org/linux/man-pages/man2/fcntl.2.html).
pub(crate) fn dup_above(from: i32, least: i32) -> Call<i32> {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::syscall(libc::SYS_fcntl, from, libc::F_DUPFD_CLOEXEC, least) };
    fd(returned)
}

/// [`umask(2)`](https://man7.org/linux/man-pages/man2/umask.2.html).
pub(crate) fn umask(mask: u32) {
    // SAFETY: a plain number.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
}

/// [`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html), exclusive; waits.
pub(crate) fn lock(fd: i32) -> Call {
    loop {
        // SAFETY: plain numbers.
        let returned = unsafe { libc::flock(fd, libc::LOCK_EX) };
        match done(c_long::from(returned)) {
            Err(libc::EINTR) => {}
            result => return result,
        }
    }
}

/// Whether the lock could be had right now. It is given back at once.
pub(crate) fn try_lock_briefly(fd: i32) -> bool {
    // SAFETY: plain numbers.
    let returned = unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) };
    if returned != 0 {
        return false;
    }
    // SAFETY: plain numbers.
    unsafe { libc::flock(fd, libc::LOCK_UN) };
    true
}

/// A file in memory, by [`memfd_create(2)`](https://man7.org/linux/man-pages/man2/memfd_create.2.html).
pub(crate) fn memory(name: &CStr) -> Call<i32> {
    // SAFETY: name is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), libc::MFD_CLOEXEC) };
    fd(returned)
}

/// The entries of a folder, as many as fit.
#[derive(Debug)]
#[repr(C, align(8))]
pub(crate) struct Entries {
    bytes: [u8; 1024],
    length: usize,
}

impl Entries {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 1024], length: 0 }
    }

    /// The name of the entry at a place, and the place of the next one. `struct linux_dirent64`: inode, offset, length, type, name.
    pub(crate) fn name(&self, at: usize) -> Option<(&CStr, usize)> {
        let entry = self.bytes.get(at..self.length)?;
        let &[low, high] = entry.get(16..18)? else { return None };
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let name = CStr::from_bytes_until_nul(entry.get(19..length)?).ok()?;
        Some((name, at + length))
    }
}

/// [`getdents64(2)`](https://man7.org/linux/man-pages/man2/getdents64.2.html): `false` at the end.
#[doc(alias = "getdents64")]
pub(crate) fn read_folder(fd: i32, entries: &mut Entries) -> Call<bool> {
    let buffer = &mut entries.bytes;
    // SAFETY: the buffer may be written up to its length, and is aligned for the structure.
    let returned = unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) };
    entries.length = check(returned)? as usize;
    Ok(entries.length > 0)
}

/// [`fchmodat(2)`](https://man7.org/linux/man-pages/man2/fchmodat.2.html), which follows a link.
pub(crate) fn chmod(dir: i32, name: &CStr, mode: u32) -> Call {
    // SAFETY: name is a C string.
    let returned = unsafe { libc::syscall(libc::SYS_fchmodat, dir, name.as_ptr(), mode) };
    done(returned)
}

/// [`utimensat(2)`](https://man7.org/linux/man-pages/man2/utimensat.2.html): seconds and nanoseconds of the last access and the
/// last change; links not followed.
#[doc(alias = "utimensat")]
pub(crate) fn set_times(dir: i32, name: &CStr, times: &[i64; 4]) -> Call {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: name is a C string; the kernel's structure is twice two words of 64 bits.
    let returned = unsafe { libc::syscall(libc::SYS_utimensat, dir, name.as_ptr(), times.as_ptr(), flags) };
    done(returned)
}

/// [`sendfile(2)`](https://man7.org/linux/man-pages/man2/sendfile.2.html), as much as goes at once: 0 at the end.
#[doc(alias = "sendfile")]
pub(crate) fn send(from: i32, to: i32) -> Call<usize> {
    let none: *mut i64 = std::ptr::null_mut();
    // SAFETY: without an offset the descriptors' own are used.
    let returned = unsafe { libc::syscall(libc::SYS_sendfile, to, from, none, 1usize << 30) };
    check(returned).map(|length| length as usize)
}
