//! Folders of the target, as the stacked layers show them.
//!
//! A path of the archive is resolved inside the root: symbolic links of the image are followed by hand, an absolute
//! one starts at the root again, and `..` never leads above it. Each step is relative to an open folder and follows
//! nothing by itself, so that no path leaves the tree.

use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Stat, Uid};
use rustix::io::{Errno, Result};

use super::target::{Target, Whiteouts};
use crate::archive::Replace;
use crate::overlay::times;
use crate::sys;

/// Symbolic links followed on one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// A folder in the layers that show it. None at all is a folder that is not there.
#[derive(Default)]
struct Stack {
    upper: Option<OwnedFd>,
    lowers: Vec<OwnedFd>,
}

/// What a name in a [`Stack`] is.
enum Found {
    Nothing,
    Folder(Stack),
    Symlink(Vec<u8>),
    /// Anything else, in the upper folder or in this lower one.
    Other(Option<OwnedFd>, Stat),
}

/// A folder of the upper tree in which entries are made.
pub(crate) struct Place {
    /// Its path from the root, without symbolic links.
    pub(crate) path: CString,
    pub(crate) upper: OwnedFd,
    /// For books that are kept by it; 0 where none are.
    pub(crate) inode: u64,
    /// The lower folders that it shows, if anybody has asked.
    lowers: Option<Vec<OwnedFd>>,
}

/// Where a path leads.
pub(crate) struct Resolved {
    /// The components from the root, without symbolic links.
    parts: Vec<CString>,
    stack: Stack,
}

impl Resolved {
    pub(crate) fn exists(&self) -> bool {
        self.stack.upper.is_some() || !self.stack.lowers.is_empty()
    }

    pub(crate) fn upper(&self) -> Option<&OwnedFd> {
        self.stack.upper.as_ref()
    }
}

/// A folder that was made, for who keeps books on it.
pub(crate) struct Made {
    pub(crate) folder: OwnedFd,
    /// There was no folder of that name before in the upper tree.
    pub(crate) fresh: bool,
}

/// A folder that came into being because something in it was wanted.
pub(crate) struct Implied {
    pub(crate) inode: u64,
    /// Where it is, and the times of the lower folder that it covers.
    pub(crate) times: Option<(CString, rustix::fs::Timestamps)>,
}

pub(crate) struct Places<'a> {
    target: &'a Target,
    /// The last folder, and the archive's path to it, if that has no symbolic link: then no entry made in the folder
    /// can change where the path leads.
    last: Option<(Vec<u8>, Rc<Place>)>,
    /// Steps from folder to folder so far, and how many there may be.
    pub(crate) steps: u64,
    pub(crate) budget: u64,
    pub(crate) implied: Vec<Implied>,
    /// Whether a folder may take the place of something else.
    replace: Replace,
}

/// Splits a path of the archive into names. `..` is taken by the letter, as all unpackers do, and never leads above
/// the root.
pub(crate) fn parts(path: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Errno::INVAL)
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    sys::file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

impl<'a> Places<'a> {
    pub(crate) fn new(target: &'a Target, replace: Replace) -> Self {
        Places { target, last: None, steps: 0, budget: u64::MAX, implied: Vec::new(), replace }
    }

    /// The folder at `parts`, which is made if it is not there. What lies below must be known.
    pub(crate) fn place(&mut self, parts: &[&[u8]]) -> Result<Rc<Place>> {
        if let Some(place) = self.own_place(parts)? {
            return Ok(place);
        }
        let resolved = self.resolve(parts)?;
        let place = self.ensure(&resolved)?;
        self.remember(parts.join(&b'/'), parts, &resolved, &place);
        Ok(place)
    }

    /// The folder at `parts` if the layer has the whole path already, without a symbolic link on it: one call, and
    /// whatever lies below does not matter.
    pub(crate) fn own_place(&mut self, parts: &[&[u8]]) -> Result<Option<Rc<Place>>> {
        let path = parts.join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == path
        {
            return Ok(Some(Rc::clone(place)));
        }
        let c_path = c_string(if path.is_empty() { b"." } else { &path })?;
        match self.target.open_below(self.target.upper.as_fd(), &c_path, sys::DIR) {
            Ok(upper) => {
                let place = self.new_place(upper, c_path)?;
                self.last = Some((path, Rc::clone(&place)));
                Ok(Some(place))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remember(&mut self, raw: Vec<u8>, parts: &[&[u8]], resolved: &Resolved, place: &Rc<Place>) {
        let direct = resolved.parts.len() == parts.len()
            && resolved.parts.iter().zip(parts).all(|(part, wanted)| part.as_bytes() == *wanted);
        if direct {
            self.last = Some((raw, Rc::clone(place)));
        }
    }

    /// Remembers a folder that was just made, since its entries come next.
    pub(crate) fn went_into(&mut self, parts: &[&[u8]], upper: OwnedFd, parent: &Place, name: &CStr) -> Result<()> {
        let raw = parts.join(&b'/');
        // Only if the parent was reached without symbolic links.
        if self.last.as_ref().is_some_and(|(_, last)| std::ptr::eq(last.as_ref(), parent)) {
            let place = self.new_place(upper, join(&parent.path, name)?)?;
            self.last = Some((raw, place));
        }
        Ok(())
    }

    /// Forgets the last folder, because what it shows has changed.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    fn new_place(&self, upper: OwnedFd, path: CString) -> Result<Rc<Place>> {
        // The number is only asked for where books are kept by it.
        let inode = match self.target.whiteouts {
            Whiteouts::Remove => rustix::fs::fstat(&upper)?.st_ino,
            Whiteouts::Overlay { .. } | Whiteouts::Literal => 0,
        };
        Ok(Rc::new(Place { path, upper, inode, lowers: None }))
    }

    fn root(&mut self) -> Result<Stack> {
        self.steps += 1;
        let open = |fd: &OwnedFd| rustix::fs::openat(fd, c".", sys::PLACE, Mode::empty());
        Ok(Stack {
            upper: Some(open(&self.target.upper)?),
            lowers: self.target.lowers().iter().map(open).collect::<Result<_>>()?,
        })
    }

    /// Follows a path as far as it leads; what is not there is taken by the letter.
    pub(crate) fn resolve(&mut self, parts: &[&[u8]]) -> Result<Resolved> {
        let mut todo: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut done: Vec<CString> = Vec::new();
        let mut stack = self.root()?;
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    done.pop();
                    stack = self.descend(&done)?;
                    continue;
                }
                _ => {}
            }
            let name = c_string(&part)?;
            match self.step(&stack, &name)? {
                Found::Nothing => {
                    stack = Stack::default();
                    done.push(name);
                }
                Found::Folder(next) => {
                    stack = next;
                    done.push(name);
                }
                Found::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                        stack = self.root()?;
                    }
                    for part in target.split(|b| *b == b'/').rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                Found::Other(..) => return Err(Errno::NOTDIR),
            }
        }
        Ok(Resolved { parts: done, stack })
    }

    /// Goes down a path that has no symbolic links.
    fn descend(&mut self, parts: &[CString]) -> Result<Stack> {
        let mut stack = self.root()?;
        for part in parts {
            stack = match self.step(&stack, part)? {
                Found::Folder(next) => next,
                _ => Stack::default(),
            };
        }
        Ok(stack)
    }

    /// What `name` is in a folder, seen through the layers.
    fn step(&mut self, stack: &Stack, name: &CStr) -> Result<Found> {
        self.steps += 1;
        if self.steps > self.budget {
            return Err(Errno::TOOBIG);
        }
        let mut found = Stack::default();
        let layers = stack.upper.iter().map(|fd| (true, fd)).chain(stack.lowers.iter().map(|fd| (false, fd)));
        for (is_upper, layer) in layers {
            match self.target.open_below(layer.as_fd(), name, sys::PLACE) {
                Ok(folder) => {
                    let opaque = self.target.is_opaque(folder.as_fd())?;
                    if is_upper {
                        found.upper = Some(folder);
                    } else {
                        found.lowers.push(folder);
                    }
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    if found.upper.is_some() || !found.lowers.is_empty() {
                        break;
                    }
                    let stat = sys::stat(layer.as_fd(), name)?.ok_or(Errno::NOENT)?;
                    if self.target.is_whiteout(&stat) {
                        return Ok(Found::Nothing);
                    }
                    if sys::file_type(&stat) == FileType::Symlink {
                        return Ok(Found::Symlink(rustix::fs::readlinkat(layer, name, Vec::new())?.into_bytes()));
                    }
                    let lower = if is_upper { None } else { Some(layer.try_clone().map_err(|_| Errno::MFILE)?) };
                    return Ok(Found::Other(lower, stat));
                }
                Err(error) => return Err(error),
            }
        }
        if found.upper.is_none() && found.lowers.is_empty() { Ok(Found::Nothing) } else { Ok(Found::Folder(found)) }
    }

    /// Makes a resolved folder, and those above it, in the upper tree: as copies of the lower folders that they will
    /// cover, or as plain ones.
    pub(crate) fn ensure(&mut self, resolved: &Resolved) -> Result<Rc<Place>> {
        let mut path = c".".to_owned();
        let mut stack = self.root()?;
        for part in &resolved.parts {
            let next = match self.step(&stack, part)? {
                Found::Folder(next) => next,
                Found::Nothing => Stack::default(),
                _ => return Err(Errno::NOTDIR),
            };
            path = join(&path, part)?;
            let parent = stack.upper.as_ref().ok_or(Errno::NOENT)?;
            let upper = match next.upper {
                Some(upper) => upper,
                None => self.imply(parent.as_fd(), part, &next.lowers, &path)?,
            };
            stack = Stack { upper: Some(upper), lowers: next.lowers };
        }
        let upper = stack.upper.ok_or(Errno::NOENT)?;
        let upper = rustix::fs::openat(upper, c".", sys::DIR, Mode::empty())?;
        let inode = rustix::fs::fstat(&upper)?.st_ino;
        Ok(Rc::new(Place { path, upper, inode, lowers: Some(stack.lowers) }))
    }

    /// Makes a folder that no entry has named (yet).
    fn imply(&mut self, parent: BorrowedFd<'_>, name: &CStr, lowers: &[OwnedFd], path: &CStr) -> Result<OwnedFd> {
        let made = self.make_folder(parent, name)?;
        let inode = rustix::fs::fstat(&made.folder)?.st_ino;
        let mut implied = Implied { inode, times: None };
        match lowers.first() {
            Some(lower) => {
                let stat = rustix::fs::fstat(lower)?;
                sys::copy_xattrs(lower.as_fd(), made.folder.as_fd())?;
                rustix::fs::fchown(&made.folder, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
                rustix::fs::fchmod(&made.folder, Mode::from_raw_mode(stat.st_mode))?;
                implied.times = Some((path.to_owned(), times(&stat)));
            }
            None => rustix::fs::fchmod(&made.folder, Mode::from_raw_mode(0o755))?,
        }
        self.implied.push(implied);
        Ok(made.folder)
    }

    /// Makes a folder in the upper tree, in the place of whatever has its name and is none.
    pub(crate) fn make_folder(&self, parent: BorrowedFd<'_>, name: &CStr) -> Result<Made> {
        let open = || self.target.open_below(parent, name, sys::DIR);
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => return Ok(Made { folder: open()?, fresh: true }),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        match open() {
            Ok(folder) => return Ok(Made { folder, fresh: false }),
            Err(Errno::NOTDIR | Errno::LOOP) if self.replace == Replace::Any => {}
            Err(Errno::LOOP) => return Err(Errno::NOTDIR),
            Err(error) => return Err(error),
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
        let folder = open()?;
        // What was here hid everything below, and the folder must go on hiding it.
        if self.target.has_below()
            && let Whiteouts::Overlay { opaque } = self.target.whiteouts
        {
            sys::set_xattr(folder.as_fd(), OsStr::new(opaque), b"y")?;
        }
        Ok(Made { folder, fresh: true })
    }

    /// A folder with all layers that show it, for whiteouts; `None` if no layer does.
    pub(crate) fn stacked(&mut self, parts: &[&[u8]]) -> Result<Option<Rc<Place>>> {
        let raw = parts.join(&b'/');
        if let Some((last, place)) = &self.last
            && *last == raw
            && (!self.target.has_below() || place.lowers.is_some())
        {
            return Ok(Some(Rc::clone(place)));
        }
        let resolved = match self.resolve(parts) {
            Ok(resolved) if resolved.exists() => resolved,
            Ok(_) | Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
        let place = self.ensure(&resolved)?;
        self.remember(raw, parts, &resolved, &place);
        Ok(Some(place))
    }

    /// Whether a lower folder of the place shows `name`.
    pub(crate) fn is_below(&mut self, place: &Place, name: &CStr) -> Result<bool> {
        self.steps += 1;
        for lower in place.lowers.iter().flatten() {
            if let Some(stat) = sys::stat(lower.as_fd(), name)? {
                return Ok(!is_whiteout(&stat));
            }
        }
        Ok(false)
    }

    /// The names that the lower folders of a place show. Each lower folder is read once.
    pub(crate) fn names_below(&mut self, place: &Place) -> Result<Vec<CString>> {
        let mut names = BTreeMap::new();
        for lower in place.lowers.iter().flatten() {
            let lower = rustix::fs::openat(lower, c".", sys::DIR, Mode::empty())?;
            for name in sys::names(lower.as_fd())? {
                self.steps += 1;
                if let Entry::Vacant(vacant) = names.entry(name) {
                    let stat = sys::stat(lower.as_fd(), vacant.key())?;
                    vacant.insert(stat.is_some_and(|stat| !is_whiteout(&stat)));
                }
            }
        }
        Ok(names.into_iter().filter_map(|(name, shown)| shown.then_some(name)).collect())
    }

    /// Whether the place shows anything of lower folders.
    pub(crate) fn has_below(place: &Place) -> bool {
        place.lowers.as_ref().is_some_and(|lowers| !lowers.is_empty())
    }

    /// The file `name` in a resolved folder: in the upper tree (`None`), or in which lower folder.
    pub(crate) fn file(&mut self, folder: &Resolved, name: &CStr) -> Result<Option<(Option<OwnedFd>, Stat)>> {
        match self.step(&folder.stack, name)? {
            Found::Nothing => Ok(None),
            Found::Folder(_) => Err(Errno::ISDIR),
            Found::Other(lower, stat) => Ok(Some((lower, stat))),
            Found::Symlink(_) => {
                // The link itself is meant.
                let layers = folder.stack.upper.iter().map(|fd| (true, fd));
                for (is_upper, layer) in layers.chain(folder.stack.lowers.iter().map(|fd| (false, fd))) {
                    if let Some(stat) = sys::stat(layer.as_fd(), name)? {
                        let lower = if is_upper { None } else { Some(layer.try_clone().map_err(|_| Errno::MFILE)?) };
                        return Ok(Some((lower, stat)));
                    }
                }
                Ok(None)
            }
        }
    }
}

pub(crate) fn join(path: &CStr, name: &CStr) -> Result<CString> {
    if path == c"." { Ok(name.to_owned()) } else { c_string(&[path.to_bytes(), b"/", name.to_bytes()].concat()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, expected) in [
            (&b""[..], &[][..]),
            (b".", &[]),
            (b"/", &[]),
            (b"..", &[]),
            (b"../../a", &[&b"a"[..]]),
            (b"/a//b/./c/", &[b"a", b"b", b"c"]),
            (b"a/../b", &[b"b"]),
            (b"a/b/../../../c", &[b"c"]),
        ] {
            assert_eq!(parts(path), expected, "{path:?}");
        }
    }
}
