//! Places in the root that something goes to, made where they are missing.

use std::ffi::CStr;

use super::report::{Failure, Part};
use crate::plan::Target;
use crate::resolve::{Links, Resolver};
use crate::sys::Call;
use crate::sys::file::{self, close};

/// How many links to what is not there may lead from one to the next.
const MOST_LINKS: usize = 8;

const LONGEST: usize = 4096;
const FOLDER: i32 = libc::O_PATH | libc::O_DIRECTORY;

/// Makes a folder and what is missing of the way to it, and opens it.
pub(super) fn directory(resolver: Resolver, root: i32, target: &Target) -> Result<i32, Failure> {
    make(resolver, root, target, true, Links::Follow).map_err(Part::Target.of())
}

/// Makes the folder that `target` lies in and opens it.
pub(super) fn parent(resolver: Resolver, root: i32, target: &Target) -> Result<i32, Failure> {
    let path = target.parent();
    match resolver.open(root, path, FOLDER, Links::Follow) {
        Err(libc::ENOENT) => {}
        result => return result.map_err(Part::Target.of()),
    }
    let make = Maker { resolver, root, links: Links::Follow };
    make.way(path.to_bytes(), MOST_LINKS).map_err(Part::Target.of())?;
    resolver.open(root, path, FOLDER, Links::Follow).map_err(Part::Target.of())
}

/// Opens a target; if it is missing it is made, as a folder or an empty file.
pub(super) fn make(resolver: Resolver, root: i32, target: &Target, folder: bool, links: Links) -> Call<i32> {
    match resolver.open(root, target.path(), libc::O_PATH, links) {
        Err(libc::ENOENT) => {}
        result => return result,
    }
    let maker = Maker { resolver, root, links };
    if folder {
        maker.way(target.path().to_bytes(), MOST_LINKS)?;
    } else {
        maker.file(target.path().to_bytes(), MOST_LINKS)?;
    }
    resolver.open(root, target.path(), libc::O_PATH, links)
}

/// Makes what is missing below a root.
#[derive(Clone, Copy)]
struct Maker {
    resolver: Resolver,
    root: i32,
    links: Links,
}

impl Maker {
    /// Makes every folder of a path. A link on it to what is not there has that made, inside the root.
    fn way(self, path: &[u8], links: usize) -> Call {
        // Mostly it is only the last one that is missing.
        if let Some((parent, _)) = split(path)
            && self.exists(parent)?
        {
            return self.folder(path, links);
        }
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let Some(prefix) = path.get(..end).filter(|prefix| !prefix.is_empty()) else { continue };
            if !self.exists(prefix)? {
                self.folder(prefix, links)?;
            }
        }
        Ok(())
    }

    /// Makes a folder in one that is there.
    fn folder(self, path: &[u8], links: usize) -> Call {
        let Some((parent, name)) = split(path) else { return Ok(()) };
        let parent = self.open(parent)?;
        let made = file::mkdirat(parent, Text::of(name)?.as_c_str()?, 0o755);
        let result = match made {
            Err(libc::EEXIST) => self.behind(parent, path, links).and_then(|target| match target {
                Some(target) => self.way(target.as_c_str()?.to_bytes(), links - 1),
                None => Ok(()),
            }),
            result => result,
        };
        close(parent);
        result
    }

    /// Makes a file and the way to it.
    fn file(self, path: &[u8], links: usize) -> Call {
        let Some((before, name)) = split(path) else { return Err(libc::EISDIR) };
        if !self.exists(before)? {
            self.way(before, links)?;
        }
        let parent = self.open(before)?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
        let made = file::openat(parent, Text::of(name)?.as_c_str()?, flags, 0o644).map(close);
        let result = match made {
            Err(libc::EEXIST) => self.behind(parent, path, links).and_then(|target| match target {
                Some(target) => self.file(target.as_c_str()?.to_bytes(), links - 1),
                None => Ok(()),
            }),
            result => result,
        };
        close(parent);
        result
    }

    /// Where the last part of a path leads if it is a link to what is not there, as a path from the root.
    fn behind(self, parent: i32, path: &[u8], links: usize) -> Call<Option<Text>> {
        let Some((before, name)) = split(path) else { return Ok(None) };
        let mut link = [0u8; LONGEST];
        let length = match file::readlinkat(parent, Text::of(name)?.as_c_str()?, &mut link) {
            // It is something else, made by somebody meanwhile.
            Err(libc::EINVAL) => return Ok(None),
            length => length?,
        };
        if links == 0 || self.links == Links::Refuse {
            return Err(libc::ELOOP);
        }
        let link = link.get(..length).filter(|link| link.len() < LONGEST).ok_or(libc::ENAMETOOLONG)?;
        let mut target = Text::default();
        if link.first() != Some(&b'/') && before != b"." {
            target.push(before)?;
            target.push(b"/")?;
        }
        let slashes = link.iter().take_while(|byte| **byte == b'/').count();
        target.push(link.get(slashes..).unwrap_or_default())?;
        Ok(Some(target))
    }

    fn exists(self, path: &[u8]) -> Call<bool> {
        match self.open(path) {
            Ok(fd) => {
                close(fd);
                Ok(true)
            }
            Err(libc::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn open(self, path: &[u8]) -> Call<i32> {
        self.resolver.open(self.root, Text::of(path)?.as_c_str()?, FOLDER, self.links)
    }
}

/// The folder and the name; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path.is_empty() || path == b"." {
        return None;
    }
    let Some(at) = path.iter().rposition(|byte| *byte == b'/') else { return Some((b".", path)) };
    let parent = path.get(..at).filter(|parent| !parent.is_empty()).unwrap_or(b".");
    Some((parent, path.get(at + 1..)?))
}

/// A path on the stack.
struct Text {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; LONGEST], length: 0 }
    }
}

impl Text {
    fn of(bytes: &[u8]) -> Call<Self> {
        let mut text = Self::default();
        text.push(bytes)?;
        Ok(text)
    }

    /// The last byte stays 0.
    fn push(&mut self, bytes: &[u8]) -> Call {
        let end = self.length + bytes.len();
        let room = self.bytes.get_mut(self.length..end).filter(|_| end < LONGEST).ok_or(libc::ENAMETOOLONG)?;
        room.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    fn as_c_str(&self) -> Call<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).map_err(|_| libc::ENAMETOOLONG)
    }
}
