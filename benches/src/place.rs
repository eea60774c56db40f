//! Where a measured program runs. Every place is a mount namespace of its own: what is mounted there, by the harness or by
//! a peer that leaves mounts behind, is not seen outside and goes with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

/// A view of the machine's file systems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// As the machine is.
    Plain,
    /// With version 1 cgroups alone: some runtimes refuse to work while `/sys/fs/cgroup/unified` is mounted beside them.
    V1,
    /// A folder with a system of its own as the root, the cgroups as in [`Place::V1`].
    Folder(PathBuf),
}

impl Place {
    /// As the tables name it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::V1 => "v1",
            Self::Folder(_) => "folder",
        }
    }

    /// Moves the calling process there. `work` is seen at the same path in all places.
    pub(crate) fn enter(&self, work: &Path) -> io::Result<()> {
        separate()?;
        match self {
            Self::Plain => Ok(()),
            Self::V1 => hide_unified("/sys/fs/cgroup/unified"),
            Self::Folder(root) => enter_folder(root, work),
        }
    }
}

fn separate() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(())
}

fn hide_unified(path: impl AsRef<Path>) -> io::Result<()> {
    match umount2(path.as_ref(), MntFlags::MNT_DETACH) {
        // Not a hybrid machine: there is nothing to hide.
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn enter_folder(root: &Path, work: &Path) -> io::Result<()> {
    let bind = |from: &Path, to: &Path, flags: MsFlags| -> io::Result<()> {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)?;
        Ok(())
    };
    let fresh = |kind: &str, to: &Path| -> io::Result<()> {
        mount(Some(kind), to, Some(kind), MsFlags::empty(), None::<&str>)?;
        Ok(())
    };
    bind(root, root, MsFlags::empty())?;
    fresh("proc", &root.join("proc"))?;
    bind(Path::new("/sys"), &root.join("sys"), MsFlags::MS_REC)?;
    hide_unified(root.join("sys/fs/cgroup/unified"))?;
    bind(Path::new("/dev"), &root.join("dev"), MsFlags::MS_REC)?;
    fresh("tmpfs", &root.join("run"))?;
    fresh("tmpfs", &root.join("tmp"))?;
    let inside = root.join(work.strip_prefix("/").unwrap_or(work));
    fs::create_dir_all(&inside)?;
    bind(work, &inside, MsFlags::empty())?;
    nix::unistd::chdir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}
