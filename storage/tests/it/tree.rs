//! Trees as text, to compare them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// What to leave out of a listing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    All,
    /// Those of folders depend on who wrote to them when.
    NotOfFolders,
}

/// Everything that can be seen of a tree, a line for each path.
pub(crate) fn list(root: &Path, which: Times) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut seen: BTreeMap<(u64, u64), String> = BTreeMap::new();
    visit(root, root, which, &mut lines, &mut seen);
    lines
}

fn visit(
    root: &Path,
    path: &Path,
    which: Times,
    lines: &mut BTreeMap<String, String>,
    seen: &mut BTreeMap<(u64, u64), String>,
) {
    let stat = fs::symlink_metadata(path).expect("stat");
    let kind = stat.file_type();
    let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
    let mut line = format!("{:o} {}:{}", stat.mode(), stat.uid(), stat.gid());
    if !kind.is_dir() || which == Times::All {
        write!(line, " {}.{:09}", stat.mtime(), stat.mtime_nsec()).expect("text");
    }
    if kind.is_char_device() || kind.is_block_device() {
        write!(line, " dev {:x}", stat.rdev()).expect("text");
    }
    if kind.is_symlink() {
        write!(line, " -> {}", fs::read_link(path).expect("a link").display()).expect("text");
    }
    if kind.is_file() {
        write!(line, " {} bytes {:016x}", stat.len(), sum(&fs::read(path).expect("read"))).expect("text");
    }
    for (attribute, value) in xattrs(path) {
        write!(line, " {attribute}={value:?}").expect("text");
    }
    if !kind.is_dir() && stat.nlink() > 1 {
        let first = seen.entry((stat.dev(), stat.ino())).or_insert_with(|| name.clone());
        write!(line, " same as {first}").expect("text");
    }
    lines.insert(name, line);
    if kind.is_dir() {
        let mut below: Vec<_> = fs::read_dir(path).expect("read folder").map(|e| e.expect("entry").path()).collect();
        below.sort();
        for path in below {
            visit(root, &path, which, lines, seen);
        }
    }
}

pub(crate) fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).expect("an attribute");
        value.truncate(length);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    found
}

fn sum(content: &[u8]) -> u64 {
    content.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Fails with the lines that differ.
pub(crate) fn assert_same(left: &BTreeMap<String, String>, right: &BTreeMap<String, String>, what: &str) {
    let mut report = String::new();
    for name in left.keys().chain(right.keys().filter(|name| !left.contains_key(*name))) {
        let (l, r) = (left.get(name), right.get(name));
        if l != r {
            write!(report, "\n{name}:\n  {}\n  {}", l.map_or("-", |l| l), r.map_or("-", |r| r)).expect("text");
        }
    }
    assert!(report.is_empty(), "{what}:{report}");
}
