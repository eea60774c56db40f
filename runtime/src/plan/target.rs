//! A path inside the container's root.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::{c_string, invalid};
use crate::Result;

/// A path inside the root, with all that is needed to make what is missing of it: its components, and the path up to each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// `dev/pts` is `dev`, then `dev/pts`. Empty for the root itself.
    prefixes: Vec<CString>,
    /// `dev/pts` is `dev`, then `pts`.
    names: Vec<CString>,
}

impl Target {
    /// Cleans a path. `..` is taken back in the text, as everybody does with the paths of a configuration; what links make of it is
    /// the kernel's business later.
    pub(crate) fn new(path: &Path, field: &str) -> Result<Self> {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(c_string(name.as_bytes(), field)?),
                Component::ParentDir => {
                    names.pop();
                }
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        let mut text: Vec<u8> = Vec::new();
        let mut prefixes = Vec::with_capacity(names.len());
        for name in &names {
            if !text.is_empty() {
                text.push(b'/');
            }
            text.extend_from_slice(name.to_bytes());
            if text.len() >= 4096 {
                return Err(invalid(field, "is longer than 4095 bytes"));
            }
            prefixes.push(c_string(&text, field)?);
        }
        Ok(Self { prefixes, names })
    }

    /// The whole path, relative to the root.
    pub(crate) fn path(&self) -> &CStr {
        self.prefixes.last().map_or(c".", CString::as_c_str)
    }

    /// The path up to the last component, relative to the root.
    pub(crate) fn parent(&self) -> &CStr {
        let before = self.prefixes.len().checked_sub(2).and_then(|at| self.prefixes.get(at));
        before.map_or(c".", CString::as_c_str)
    }

    /// The last component.
    pub(crate) fn name(&self) -> &CStr {
        self.names.last().map_or(c".", CString::as_c_str)
    }

    /// How many components there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The path as the container sees it.
    pub(crate) fn show(&self) -> String {
        if self.prefixes.is_empty() { "/".to_owned() } else { format!("/{}", self.path().to_string_lossy()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (given, path, parent, name) in [
            ("/dev/pts", c"dev/pts", c"dev", c"pts"),
            ("dev", c"dev", c".", c"dev"),
            ("/", c".", c".", c"."),
            ("/a/./b//../c/", c"a/c", c"a", c"c"),
            ("../../x", c"x", c".", c"x"),
        ] {
            let target = Target::new(Path::new(given), "f").expect("a target");
            assert_eq!((target.path(), target.parent(), target.name()), (path, parent, name), "{given}");
        }
    }
}
