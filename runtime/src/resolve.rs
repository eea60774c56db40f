//! Opening paths that must not leave a root, in the child and in the parent.

use std::ffi::CStr;

use crate::sys::Call;
use crate::sys::file::{
    self, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat, openat2, readlinkat, stat,
};

/// What is done with symbolic links on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// They are followed, inside the root.
    Follow,
    /// There must be none.
    Refuse,
}

/// Opens paths inside a root: by `openat2`, or where the kernel does not let us, by a walk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resolver {
    /// Whether `openat2` may be used.
    pub(crate) openat2: bool,
}

const DEEPEST: usize = 64;
const LONGEST: usize = 4096;
const MOST_LINKS: usize = 40;
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

impl Resolver {
    /// Opens `path` below the folder `root`, which absolute links and `..` do not leave. Magic links such as `/proc/self/exe` do
    /// not lead anywhere. `flags` must not create.
    pub(crate) fn open(self, root: i32, path: &CStr, flags: i32, links: Links) -> Call<i32> {
        if self.openat2 {
            let refuse = if links == Links::Refuse { RESOLVE_NO_SYMLINKS } else { 0 };
            return openat2(root, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | refuse);
        }
        let mut walk = Walk { root, open: [-1; DEEPEST], depth: 0 };
        let result = walk.run(path.to_bytes(), flags, links);
        walk.back_to_root();
        result
    }
}

/// A walk along a path, one component at a time, each opened without following links. `..` goes back to the folder that the walk
/// came through, so that a folder moved meanwhile leads nowhere else, and links are followed as text.
struct Walk {
    root: i32,
    open: [i32; DEEPEST],
    depth: usize,
}

impl Walk {
    fn here(&self) -> i32 {
        self.depth.checked_sub(1).and_then(|at| self.open.get(at)).copied().unwrap_or(self.root)
    }

    fn enter(&mut self, fd: i32) -> Call {
        let Some(slot) = self.open.get_mut(self.depth) else {
            file::close(fd);
            return Err(libc::ENAMETOOLONG);
        };
        *slot = fd;
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) {
        if self.depth > 0 {
            file::close(self.here());
            self.depth -= 1;
        }
    }

    fn back_to_root(&mut self) {
        while self.depth > 0 {
            self.leave();
        }
    }

    fn run(&mut self, path: &[u8], flags: i32, links: Links) -> Call<i32> {
        let mut pending = Text::new(path)?;
        let mut followed = 0;
        loop {
            let mut name = [0u8; 256];
            let Some(last) = pending.next(&mut name)? else {
                return openat(self.here(), c".", flags, 0);
            };
            let name = CStr::from_bytes_until_nul(&name).map_err(|_| libc::ENAMETOOLONG)?;
            match name.to_bytes() {
                b"." => continue,
                b".." => {
                    self.leave();
                    continue;
                }
                _ => {}
            }
            let fd = openat(self.here(), name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
            let link = match stat(fd, c"") {
                Ok(stat) => stat.is(libc::S_IFLNK),
                Err(errno) => {
                    file::close(fd);
                    return Err(errno);
                }
            };
            if link && last && flags & libc::O_NOFOLLOW != 0 && flags & libc::O_PATH != 0 {
                return Ok(fd);
            }
            if link {
                followed += 1;
                let mut target = [0u8; LONGEST];
                let length = readlinkat(fd, c"", &mut target);
                let filesystem = file::filesystem(fd);
                file::close(fd);
                if links == Links::Refuse || followed > MOST_LINKS || last && flags & libc::O_NOFOLLOW != 0 {
                    return Err(libc::ELOOP);
                }
                let target = target.get(..length?).ok_or(libc::ENAMETOOLONG)?;
                if filesystem? == PROC_SUPER_MAGIC && is_magic(target) {
                    // As text it may lead nowhere, but whoever has the kernel follow it comes to what it stands for.
                    return Err(libc::ELOOP);
                }
                if target.first() == Some(&b'/') {
                    self.back_to_root();
                }
                pending.prepend(target)?;
            } else if last {
                file::close(fd);
                return openat(self.here(), name, flags | libc::O_NOFOLLOW, 0);
            } else {
                self.enter(fd)?;
            }
        }
    }
}

/// Whether a link of procfs with this text is a magic one: those that are not (`self`, `thread-self`, `mounts`, `net`) have
/// short relative paths.
fn is_magic(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b':' | b'(')) || text.first() == Some(&b'/')
}

/// What is left of a path.
struct Text {
    bytes: [u8; LONGEST],
    at: usize,
}

impl Text {
    /// The path is kept at the end of the buffer, so that what a link says fits before it.
    fn new(path: &[u8]) -> Call<Self> {
        let mut text = Self { bytes: [0; LONGEST], at: LONGEST };
        text.push(path)?;
        Ok(text)
    }

    fn push(&mut self, part: &[u8]) -> Call {
        let start = self.at.checked_sub(part.len()).ok_or(libc::ENAMETOOLONG)?;
        self.bytes.get_mut(start..self.at).ok_or(libc::ENAMETOOLONG)?.copy_from_slice(part);
        self.at = start;
        Ok(())
    }

    fn prepend(&mut self, part: &[u8]) -> Call {
        self.push(b"/")?;
        self.push(part)
    }

    /// The next component and whether it is the last one; `None` at the end.
    fn next(&mut self, name: &mut [u8; 256]) -> Call<Option<bool>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let skipped = rest.iter().take_while(|&&byte| byte == b'/').count();
        let rest = rest.get(skipped..).unwrap_or_default();
        let length = rest.iter().take_while(|&&byte| byte != b'/').count();
        if length == 0 {
            return Ok(None);
        }
        let component = rest.get(..length).unwrap_or_default();
        // One byte stays for the zero.
        name.get_mut(..length).filter(|_| length < 256).ok_or(libc::ENAMETOOLONG)?.copy_from_slice(component);
        let last = rest.iter().skip(length).all(|&byte| byte == b'/');
        self.at += skipped + length;
        Ok(Some(last))
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::sys::own;

    /// Magic links are refused by both ways, also where what they say is not there.
    #[test]
    fn magic_links_lead_nowhere() {
        let proc = std::fs::File::open("/proc").expect("/proc");
        for openat2 in [true, false] {
            let resolver = Resolver { openat2 };
            let open = |path| resolver.open(proc.as_raw_fd(), path, libc::O_PATH, Links::Follow);
            for path in [c"self/exe", c"self/cwd", c"self/ns/net", c"thread-self/root"] {
                assert_eq!(open(path), Err(libc::ELOOP), "{path:?} with openat2 {openat2}");
            }
            for path in [c"self/status", c"mounts", c"net/dev"] {
                let fd = open(path).unwrap_or_else(|errno| panic!("{path:?} with openat2 {openat2}: {errno}"));
                drop(own(fd));
            }
        }
    }

    /// Both ways answer alike, and neither leaves the root.
    #[test]
    fn paths_stay_inside() {
        let outer = tempfile::tempdir().expect("a folder");
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("a/b/c")).expect("folders");
        fs::write(outer.path().join("secret"), "x").expect("a file");
        fs::write(root.join("a/file"), "x").expect("a file");
        for (target, link) in [
            ("../../secret", "up"),
            ("/a/b", "absolute"),
            ("a/../a/b", "relative"),
            ("loop", "loop"),
            ("/../../..", "top"),
            ("up", "dangling"),
            ("b/c", "a/inner"),
        ] {
            symlink(target, root.join(link)).expect("a link");
        }
        let inode = |path: &str| fs::metadata(root.join(path)).expect("metadata").ino();
        let folder = fs::File::open(&root).expect("the root");
        let cases: [(&str, Links, Result<u64, i32>); 16] = [
            ("a/file", Links::Follow, Ok(inode("a/file"))),
            ("/a//./b/", Links::Follow, Ok(inode("a/b"))),
            (".", Links::Follow, Ok(inode("."))),
            ("../../..", Links::Follow, Ok(inode("."))),
            ("../secret", Links::Follow, Err(libc::ENOENT)),
            ("up", Links::Follow, Err(libc::ENOENT)),
            ("dangling", Links::Follow, Err(libc::ENOENT)),
            ("absolute/c", Links::Follow, Ok(inode("a/b/c"))),
            ("relative/../file", Links::Follow, Ok(inode("a/file"))),
            ("a/inner", Links::Follow, Ok(inode("a/b/c"))),
            ("top/a/b", Links::Follow, Ok(inode("a/b"))),
            ("loop", Links::Follow, Err(libc::ELOOP)),
            ("absolute/c", Links::Refuse, Err(libc::ELOOP)),
            ("a/b", Links::Refuse, Ok(inode("a/b"))),
            ("a/file/x", Links::Follow, Err(libc::ENOTDIR)),
            ("none", Links::Follow, Err(libc::ENOENT)),
        ];
        for openat2 in [true, false] {
            for (path, links, expected) in &cases {
                let name = CString::new(*path).expect("a path");
                let found = Resolver { openat2 }
                    .open(folder.as_raw_fd(), &name, libc::O_PATH, *links)
                    .map(|fd| fs::File::from(own(fd)).metadata().expect("metadata").ino());
                assert_eq!(&found, expected, "{path} with openat2 {openat2}");
            }
        }
        // Nothing stays open: the next descriptor is what it was.
        let before = fs::File::open(&root).expect("the root").as_raw_fd();
        let deep = CString::new(std::ffi::OsStr::new("a/b/c/../../file").as_bytes()).expect("a path");
        let fd = Resolver { openat2: false }.open(folder.as_raw_fd(), &deep, libc::O_PATH, Links::Follow);
        drop(own(fd.expect("a file")));
        assert_eq!(fs::File::open(&root).expect("the root").as_raw_fd(), before);
    }
}
