//! The container's network namespace, by its path.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;

use estiba_network::Sandbox;
use estiba_network::cni::{Failure, code};
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC`: what files of namespaces lie on.
const NSFS: FsType = FsType(0x6e73_6673);

/// Opens the namespace of a container that is there.
pub(crate) fn open(path: &Path) -> Result<Sandbox, Failure> {
    find(path)?.ok_or_else(|| {
        Failure::new(code::UNKNOWN_CONTAINER, format!("failed to open netns {}: there is no such file", path.display()))
    })
}

/// Opens the namespace for DEL: it may be gone, and so may have been taken all that was in it.
pub(crate) fn find(path: &Path) -> Result<Option<Sandbox>, Failure> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let failed = |error: &dyn std::error::Error| Failure::io(format!("failed to open netns {}", path.display()), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    // A file that a namespace was mounted on is still there when the mount is gone.
    let kind = fstatfs(&file).map_err(|errno| failed(&errno))?.filesystem_type();
    if kind != NSFS {
        return Err(Failure::new(code::INVALID_NETNS, format!("{} is no network namespace", path.display())));
    }
    Ok(Some(Sandbox::from(OwnedFd::from(file))))
}
