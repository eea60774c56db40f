//! Mounts that are attached nowhere, and mounts at a path.
//!
//! The crates around this one only *describe* mounts; they are performed here.

mod overlay;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::Mount;

use crate::plan::parse_options;
use crate::resolve::{Links, Resolver};
use crate::sys::mount::{self as sys, Depth};
use crate::sys::{Call, own};
use crate::{Error, Features, Result};

/// A detached mount: a filesystem tree that has no place in any namespace's tree of mounts.
///
/// Dropping it unmounts it, unless a container has been created on it; then it is the container's, and lives at least as long as
/// this value does. It can be the root of one container.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
    features: Features,
}

impl Tree {
    /// Performs the one mount of a snapshot: an `overlay`, or a bind of a folder.
    ///
    /// It takes Linux 5.2 and `CAP_SYS_ADMIN`.
    pub fn new(mounts: &[Mount]) -> Result<Self> {
        Self::with_features(mounts, Features::probe())
    }

    /// The same, with no more of the kernel than `features`.
    pub fn with_features(mounts: &[Mount], features: Features) -> Result<Self> {
        let [mount] = mounts else {
            return Err(invalid(format!("one is wanted, not {}", mounts.len())));
        };
        if !mount.destination().as_os_str().is_empty() && mount.destination() != Path::new("/") {
            return Err(invalid(format!("{} is not the root", mount.destination().display())));
        }
        let options = parse_options(mount.options().as_deref().unwrap_or_default())
            .map_err(|option| invalid(format!("option {option:?} is not supported")))?;
        if options.idmap.is_some() || options.copy_up {
            return Err(invalid("idmap and tmpcopyup are not supported".into()));
        }
        let kind = mount.typ().as_deref().unwrap_or_default();
        let fd = if kind == "overlay" {
            overlay::mount(&options, features)?
        } else if kind == "bind" || options.bind.is_some() {
            let source = mount.source().as_deref().ok_or_else(|| invalid("a bind needs a source".into()))?;
            overlay::bind(source, &options, features)?
        } else {
            return Err(invalid(format!("type {kind:?} is neither overlay nor bind")));
        };
        Ok(Self { fd, features })
    }

    /// Opens a file of the tree, with the flags of [`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html), which must not
    /// create. Absolute links and `..` stay inside the tree.
    pub fn open(&self, path: impl AsRef<Path>, flags: i32) -> Result<File> {
        let path = path.as_ref();
        let text = text(path)?;
        Resolver { openat2: self.features.openat2 }
            .open(self.fd.as_raw_fd(), &text, flags, Links::Follow)
            .map(|fd| File::from(own(fd)))
            .map_err(|errno| Error::Io { operation: "open", path: path.to_owned(), source: error(errno) })
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Performs the one mount of a snapshot at a folder of the host.
pub fn attach(mounts: &[Mount], target: &Path) -> Result<()> {
    let tree = Tree::new(mounts)?;
    sys::attach_at(tree.fd.as_raw_fd(), &text(target)?).map_err(failed(target.display().to_string(), "move_mount"))
}

/// Unmounts what is mounted at a folder, however often. If nothing is, or the folder is absent, that is fine.
pub fn detach(target: &Path) -> Result<()> {
    let path = text(target)?;
    loop {
        match sys::detach(&path, libc::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(libc::EINVAL | libc::ENOENT) => return Ok(()),
            Err(errno) => {
                return Err(Error::Io { operation: "unmount", path: target.to_owned(), source: error(errno) });
            }
        }
    }
}

/// Whether a mount can be made on one that is attached nowhere: Linux 6.15.
pub(crate) fn nests() -> bool {
    let tmpfs = || {
        let context = own(sys::fsopen(c"tmpfs")?);
        sys::fsconfig_create(context.as_raw_fd())?;
        sys::fsmount(context.as_raw_fd(), 0).map(own)
    };
    let attached =
        tmpfs().and_then(|below| tmpfs().and_then(|above| sys::attach(above.as_raw_fd(), below.as_raw_fd())));
    attached.is_ok()
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| invalid(format!("{} contains a zero byte", path.display())))
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn failed(what: String, call: &'static str) -> impl FnOnce(i32) -> Error {
    move |errno| Error::Mount { what, call, source: error(errno) }
}

fn invalid(reason: String) -> Error {
    Error::InvalidSpec { field: "the root's mounts".into(), reason }
}

/// Sets attributes and propagation of a detached tree, in as few calls as there are depths.
pub(crate) fn set_options(tree: i32, options: &crate::plan::Options) -> Call {
    for (depth, attributes) in [(Depth::Top, options.top), (Depth::Recursive, options.recursive)] {
        let propagation = options.propagation.filter(|(_, deep)| *deep == depth).map_or(0, |(kind, _)| kind);
        if !attributes.none() || propagation != 0 {
            sys::set_attributes(tree, depth, attributes.set, attributes.clear, propagation)?;
        }
    }
    Ok(())
}
