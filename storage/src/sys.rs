//! System calls as this crate needs them: relative to a folder's descriptor, never through a symbolic link.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, RawDir, ResolveFlags, Stat, StatxAttributes, StatxFlags,
    XattrFlags,
};
use rustix::io::{Errno, Result};

/// Flags with which a folder is opened for reading.
pub(crate) const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags with which a folder is opened as a mere place.
pub(crate) const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether [`openat2(2)`] has been found missing: before Linux 5.6, or forbidden by a seccomp filter that does not
/// know it.
///
/// [`openat2(2)`]: https://man7.org/linux/man-pages/man2/openat2.2.html
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// What a walk or a path does where another file system is mounted inside the tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mounts {
    /// It stays on the mount where it began.
    #[default]
    Stay,
    /// It goes on into what is mounted there.
    Cross,
}

/// Opens `path` below `dir` if no component of it is a symbolic link or a mount point.
///
/// `path` is relative and has no `..`. Errors: `ELOOP` for a symbolic link, `EXDEV` for a mount point, `ENOTDIR`.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    open_below(dir, path, flags, Mounts::Stay)
}

/// [`open_beneath`], which may go through mount points. With `O_PATH` and `O_NOFOLLOW` the last component may be a
/// symbolic link: it is opened itself.
pub(crate) fn open_below(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags, mounts: Mounts) -> Result<OwnedFd> {
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_XDEV, mounts == Mounts::Stay);
    match open_resolved(dir, path, flags, resolve)? {
        Some(fd) => Ok(fd),
        None => walk_beneath(dir, path, flags, mounts),
    }
}

/// [`openat2(2)`], again after a signal. `None` if there is no such call, or if renames elsewhere kept it from an answer.
///
/// [`openat2(2)`]: https://man7.org/linux/man-pages/man2/openat2.2.html
pub(crate) fn open_resolved(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<Option<OwnedFd>> {
    if NO_OPENAT2.load(Ordering::Relaxed) {
        return Ok(None);
    }
    for _ in 0..64 {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            // EPERM is what older container seccomp profiles answer to a call that they do not know.
            Err(Errno::NOSYS | Errno::PERM) => {
                NO_OPENAT2.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            // EAGAIN: something was renamed or mounted while a `..` was followed.
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// [`open_below`] without `openat2`: one component at a time.
fn walk_beneath(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags, mounts: Mounts) -> Result<OwnedFd> {
    let mut parts = path.to_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
    let Some(mut part) = parts.next() else {
        return rustix::fs::openat(dir, c".", flags | OFlags::NOFOLLOW, Mode::empty());
    };
    let mut place: Option<OwnedFd> = None;
    loop {
        if part == b".." {
            return Err(Errno::XDEV);
        }
        let here = place.as_ref().map_or(dir, AsFd::as_fd);
        let last = parts.peek().is_none();
        let fd = rustix::fs::openat(here, part, if last { flags | OFlags::NOFOLLOW } else { PLACE }, Mode::empty())?;
        if mounts == Mounts::Stay && is_mount_point(fd.as_fd())? {
            return Err(Errno::XDEV);
        }
        match parts.next() {
            None => return Ok(fd),
            Some(next) => (part, place) = (next, Some(fd)),
        }
    }
}

fn is_mount_point(fd: BorrowedFd<'_>) -> Result<bool> {
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
    // Since Linux 5.8; an older kernel leaves it out of the mask, and then it is not known.
    Ok(found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The state of `name` in `dir`, not followed; `None` if there is nothing.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Stat>> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The file type in a `Stat`.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What names an inode while it lives.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Takes a [`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html), again after a signal.
fn lock(fd: BorrowedFd<'_>, operation: FlockOperation) -> Result<()> {
    loop {
        match rustix::fs::flock(fd, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// A folder with a [`flock(2)`](https://man7.org/linux/man-pages/man2/flock.2.html) on it, which ends with the value.
///
/// It is given up and not only closed: a child that another thread is about to execute has the descriptor until then, and a lock
/// lasts as long as any copy of its descriptor.
#[derive(Debug)]
pub(crate) struct Locked(OwnedFd);

impl Locked {
    /// Locks an open folder, again after a signal.
    pub(crate) fn new(folder: OwnedFd, operation: FlockOperation) -> Result<Self> {
        lock(folder.as_fd(), operation)?;
        Ok(Self(folder))
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // It can only fail for a descriptor that is none.
        let _ = lock(self.0.as_fd(), FlockOperation::Unlock);
    }
}

/// Opens and locks the folder `name` of `parent`, which may be renamed or removed while the lock is waited for.
/// `None` if it is not (or no longer) there. `WOULDBLOCK` for a non-blocking operation.
pub(crate) fn open_locked(parent: BorrowedFd<'_>, name: &CStr, operation: FlockOperation) -> Result<Option<Locked>> {
    loop {
        let fd = match rustix::fs::openat(parent, name, DIR, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let locked = Locked::new(fd, operation)?;
        let Some(now) = stat(parent, name)? else { return Ok(None) };
        if identity(&now) == identity(&rustix::fs::fstat(&locked)?) {
            return Ok(Some(locked));
        }
    }
}

/// Calls `visit` with each name in the open folder, without `.` and `..`. The folder's own position is used.
pub(crate) fn for_each_entry(
    dir: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    mut visit: impl FnMut(&CStr, FileType) -> Result<()>,
) -> Result<()> {
    buffer.clear();
    buffer.reserve(32 << 10);
    let space: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(dir, space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            visit(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// The names in the open folder.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for_each_entry(dir, &mut Vec::new(), |name, _| {
        names.push(name.to_owned());
        Ok(())
    })?;
    Ok(names)
}

/// A path to the very inode that `fd` is, for the calls that refuse an `O_PATH` descriptor. The last step is a magic
/// link, so that nothing is resolved anew.
pub(crate) fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens `name` of `dir`, of whatever type, for [`magic`].
pub(crate) fn open_inode(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, INODE, Mode::empty())
}

/// Flags with which whatever has a name is opened without touching it.
pub(crate) const INODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens the regular file behind an `O_PATH` descriptor for reading. It has been looked at before, so that no device or
/// pipe is opened whoever puts one in its place.
pub(crate) fn reopen(file: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::open(magic(file), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

/// Sets the mode of the inode behind any descriptor.
pub(crate) fn chmod(fd: BorrowedFd<'_>, mode: Mode) -> Result<()> {
    rustix::fs::chmod(magic(fd), mode)
}

/// Sets an extended attribute of the inode behind any descriptor.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> Result<()> {
    match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
        Err(Errno::BADF) => rustix::fs::setxattr(magic(fd), name, value, XattrFlags::empty()),
        other => other,
    }
}

/// The value of an extended attribute of the inode behind any descriptor; `None` if it has none of that name.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    let path = magic(fd);
    let mut value = vec![0; 128];
    loop {
        match rustix::fs::getxattr(&path, name, value.as_mut_slice()) {
            Ok(size) => {
                value.truncate(size);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            // Values have 64 KiB at most.
            Err(Errno::RANGE) if value.len() < 64 << 10 => value.resize(64 << 10, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The names of the extended attributes of the inode behind any descriptor.
pub(crate) fn xattr_names(fd: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let path = magic(fd);
    let mut list = vec![0_u8; 1024];
    loop {
        match rustix::fs::listxattr(&path, list.as_mut_slice()) {
            Ok(size) => {
                list.truncate(size);
                return Ok(list.split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect());
            }
            Err(Errno::RANGE) if list.len() < 64 << 10 => list.resize(64 << 10, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
}

/// Whether overlay gives the attribute a meaning of its own, which no layer and no copy may bring in.
pub(crate) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// Copies all extended attributes but overlay's.
pub(crate) fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    for name in xattr_names(from)? {
        if !is_overlay_xattr(&name) {
            let name = OsStr::from_bytes(&name);
            if let Some(value) = get_xattr(from, name)? {
                set_xattr(to, name, &value)?;
            }
        }
    }
    Ok(())
}

/// Removes all extended attributes but those to keep, overlay's, and the label that a security module gives by itself.
pub(crate) fn remove_xattrs(fd: BorrowedFd<'_>, keep: impl Fn(&[u8]) -> bool) -> Result<()> {
    for name in xattr_names(fd)? {
        if !is_overlay_xattr(&name) && name != b"security.selinux" && !keep(&name) {
            match rustix::fs::removexattr(magic(fd), OsStr::from_bytes(&name)) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Copies content from one regular file to another empty one: by sharing blocks where the file system can, else
/// data by data, holes staying holes. Returns the bytes of the file's length.
pub(crate) fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>, length: u64) -> Result<()> {
    use rustix::fs::SeekFrom;
    if length == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(to, length)?;
    let mut position = 0;
    while position < length {
        let start = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => position,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(length).min(length);
        copy_range(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut start: u64, end: u64) -> Result<()> {
    while start < end {
        let (mut source, mut target) = (start, start);
        let length = usize::try_from(end - start).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => return Ok(()),
            Ok(copied) => start += copied as u64,
            Err(Errno::INTR) => {}
            // Between file systems before 5.19, or a file system without it.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                let mut buffer = vec![0; 128 << 10];
                while start < end {
                    let want = usize::try_from(end - start).unwrap_or(usize::MAX).min(buffer.len());
                    let got = rustix::io::pread(from, &mut buffer[..want], start)?;
                    if got == 0 {
                        return Ok(());
                    }
                    write_all_at(to, &buffer[..got], start)?;
                    start += got as u64;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_all_at(to: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> Result<()> {
    while !data.is_empty() {
        match rustix::io::pwrite(to, data, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                data = &data[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends. Returns the bytes read.
pub(crate) fn read_full_at(from: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::pread(from, &mut buffer[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Reads a small file whole.
pub(crate) fn read_file(dir: BorrowedFd<'_>, path: &Path, max: usize) -> Result<Vec<u8>> {
    let fd = rustix::fs::openat(dir, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 1024];
    let mut length = 0;
    loop {
        if length == content.len() {
            if length >= max {
                return Err(Errno::FBIG);
            }
            content.resize(length * 2, 0);
        }
        match rustix::io::read(&fd, &mut content[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    content.truncate(length);
    Ok(content)
}

/// Makes a new file with the content.
pub(crate) fn write_new_file(dir: BorrowedFd<'_>, name: &CStr, content: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    write_all_at(fd.as_fd(), content, 0)
}

/// A name that nobody else uses.
pub(crate) fn random_name(length: usize) -> Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; 32];
    let bytes = &mut bytes[..length];
    getrandom::fill(bytes).map_err(|_| Errno::IO)?;
    Ok(bytes.iter().map(|b| char::from(LETTERS[usize::from(b % 32)])).collect())
}

/// A file name that this crate made, which never has a NUL.
pub(crate) fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_any_length_are_copied() {
        let root = tempfile::tempdir().expect("a folder");
        let dir = rustix::fs::open(root.path(), DIR, Mode::empty()).expect("the folder");
        for name in [c"from", c"to"] {
            write_new_file(dir.as_fd(), name, b"").expect("a file");
        }
        let (from, to) = (open_inode(dir.as_fd(), c"from").expect("it"), open_inode(dir.as_fd(), c"to").expect("it"));
        for (name, length) in [("user.empty", 0), ("user.short", 1), ("user.long", 1000)] {
            set_xattr(from.as_fd(), OsStr::new(name), &vec![7; length]).expect("set");
        }
        set_xattr(from.as_fd(), OsStr::new("user.overlay.opaque"), b"y").expect("set");
        copy_xattrs(from.as_fd(), to.as_fd()).expect("copied");
        for (name, length) in [("user.empty", 0), ("user.short", 1), ("user.long", 1000)] {
            assert_eq!(get_xattr(to.as_fd(), OsStr::new(name)), Ok(Some(vec![7; length])));
        }
        assert_eq!(get_xattr(to.as_fd(), OsStr::new("user.overlay.opaque")), Ok(None));
    }

    type Open = fn(BorrowedFd<'_>, &CStr, OFlags) -> Result<OwnedFd>;

    fn walk_staying(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
        walk_beneath(dir, path, flags, Mounts::Stay)
    }

    #[test]
    fn both_ways_to_open_beneath_agree() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("a/b")).expect("folders");
        std::fs::write(root.path().join("a/file"), "x").expect("a file");
        std::os::unix::fs::symlink("a", root.path().join("link")).expect("a link");
        std::os::unix::fs::symlink("/etc", root.path().join("a/out")).expect("a link");
        let dir = rustix::fs::open(root.path(), DIR, Mode::empty()).expect("the folder");
        for (path, expected) in [
            (c"a", None),
            (c"a/b", None),
            (c".", None),
            (c"a/none", Some(Errno::NOENT)),
            (c"a/file", Some(Errno::NOTDIR)),
            (c"a/file/x", Some(Errno::NOTDIR)),
            (c"..", Some(Errno::XDEV)),
        ] {
            for open in [open_beneath as Open, walk_staying] {
                assert_eq!(open(dir.as_fd(), path, DIR).err(), expected, "{path:?}");
            }
        }
        for path in [c"link", c"link/b", c"a/out", c"a/out/passwd"] {
            for open in [open_beneath as Open, walk_staying] {
                let error = open(dir.as_fd(), path, DIR).err();
                assert!(matches!(error, Some(Errno::LOOP | Errno::NOTDIR)), "{path:?}: {error:?}");
            }
        }
        // /proc of this process is a mount point wherever tests run.
        let root = rustix::fs::open("/", PLACE, Mode::empty()).expect("the root");
        for open in [open_beneath as Open, walk_staying] {
            assert_eq!(open(root.as_fd(), c"proc/self", PLACE).err(), Some(Errno::XDEV));
        }
    }
}
