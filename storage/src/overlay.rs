//! Snapshots by the kernel's overlay file system.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::unistd::geteuid;
use oci_spec::runtime::Mount;
use rustix::fs::{Gid, Mode, Timestamps, Uid};

use crate::record::{Made, Record};
use crate::store::{Links, Parent, Store, lowers};
use crate::{Durability, Error, Info, Key, LateParent, Name, Repaired, Result, SnapshotId, Snapshotter, Usage, sys};

/// How the kernel is to treat writes to an active snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Writes {
    /// `fsync` in the container does what it says.
    #[default]
    Synced,
    /// `volatile`: nothing is ever synced, and after a crash of the machine (or of the kernel) the snapshot cannot be
    /// mounted again. For containers that are removed when they end. Needs Linux 5.10.
    Volatile,
}

/// How [`Overlay`] makes its mounts and keeps its promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct OverlayOptions {
    /// What a power cut may cost.
    pub durability: Durability,
    /// What `fsync` in a container costs. Layers are unpacked without the mount and are not concerned.
    pub writes: Writes,
}

/// Snapshots as folders that the kernel's overlay file system stacks.
///
/// Needs Linux 5.10, or 5.11 where the process is not root of the machine (`userxattr`).
#[derive(Debug)]
pub struct Overlay {
    store: Store,
    /// Mount options that are the same for all.
    options: Vec<String>,
}

impl Overlay {
    /// Opens the store in the folder `root` (`ROOT/snapshots`), which is made if it is missing. Cheap.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::with_options(root, OverlayOptions::default())
    }

    /// [`open`](Self::open) with options.
    pub fn with_options(root: impl AsRef<Path>, options: OverlayOptions) -> Result<Self> {
        let store = Store::open(root.as_ref(), "overlay 1", Links::Short, options.durability)?;
        let path = store.root();
        // overlay knows an escape for ':', but the new mount API and the old one differ in it.
        if path.as_os_str().as_bytes().iter().any(|b| b":,\\".contains(b)) || path.to_str().is_none() {
            return Err(Error::UnmountablePath { path: path.to_owned() });
        }
        Ok(Overlay { options: mount_options(options), store })
    }

    /// Finds and removes what killed processes and power cuts left behind. Other processes may go on meanwhile.
    pub fn repair(&self) -> Result<Repaired> {
        self.store.repair()
    }

    fn describe(&self, key: &Key, record: &Record) -> Vec<Mount> {
        let own = |folder: &str| format!("{}/{folder}", self.store.key_path(key).display());
        match (record.made, record.parent.as_ref()) {
            (Made::Active, None) => bind(&own("fs"), "rw"),
            (Made::View, None) => bind(&own("fs"), "ro"),
            (Made::View, Some(parent)) => self.committed(parent, &record.lowers),
            (Made::Active, Some(_)) => {
                let stack = self.stack(&record.lowers);
                let folders = [stack, format!("upperdir={}", own("fs")), format!("workdir={}", own("work"))];
                overlay(self.options.iter().cloned().chain(folders).collect())
            }
            (Made::Late, _) => {
                let folders = [format!("upperdir={}", own("fs")), format!("workdir={}", own("work"))];
                overlay(self.options.iter().cloned().chain(folders).collect())
            }
        }
    }

    /// A committed snapshot with all that it stands on, to be read.
    fn committed(&self, name: &Name, lowers: &[String]) -> Vec<Mount> {
        if lowers.len() == 1 {
            return bind(&format!("{}/fs", self.store.name_path(name).display()), "ro");
        }
        let fixed = self.options.iter().filter(|option| *option != "volatile").cloned();
        overlay(fixed.chain([self.stack(lowers), "ro".into()]).collect())
    }

    fn stack(&self, lowers: &[String]) -> String {
        let paths = lowers.iter().map(|link| self.store.link_path(link).display().to_string());
        format!("lowerdir={}", paths.collect::<Vec<_>>().join(":"))
    }
}

/// A bind mount as snapshotters describe it.
pub(crate) fn bind(source: &str, access: &str) -> Vec<Mount> {
    describe("bind", source, vec!["bind".into(), access.into()])
}

fn overlay(options: Vec<String>) -> Vec<Mount> {
    describe("overlay", "overlay", options)
}

fn describe(kind: &str, source: &str, options: Vec<String>) -> Vec<Mount> {
    let mut mount = Mount::default();
    mount
        .set_destination("/".into())
        .set_typ(Some(kind.into()))
        .set_source(Some(source.into()))
        .set_options(Some(options));
    vec![mount]
}

fn mount_options(options: OverlayOptions) -> Vec<String> {
    // An index would tie the upper folder to one set of lower folders by file handles: they move, and are shared.
    let mut list = vec!["index=off".to_owned()];
    if is_root() {
        for feature in ["metacopy", "redirect_dir"] {
            // Where the kernel turns them on by itself the upper folder would hold less than the layer's files.
            let on = fs::read(Path::new("/sys/module/overlay/parameters").join(feature));
            if on.is_ok_and(|value| value.starts_with(b"Y")) {
                list.push(format!("{feature}=off"));
            }
        }
    } else {
        list.push("userxattr".into());
    }
    if options.writes == Writes::Volatile {
        list.push("volatile".into());
    }
    list
}

/// Whether this process is root of the machine, so that `trusted.*` attributes are open to it.
fn is_root() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    geteuid().is_root() && fs::read_to_string("/proc/self/uid_map").is_ok_and(whole)
}

/// Makes the folder of a snapshot's own files. The root of a container is this folder: its owner, mode and attributes
/// are those of the parent's root.
pub(crate) fn create_root(folder: BorrowedFd<'_>, path: &Path, parent: Option<&Parent>) -> Result<()> {
    let create = || -> rustix::io::Result<()> {
        rustix::fs::mkdirat(folder, c"fs", Mode::from_raw_mode(0o755))?;
        let new = rustix::fs::openat(folder, c"fs", sys::DIR, Mode::empty())?;
        let Some(parent) = parent else {
            return rustix::fs::fchmod(&new, Mode::from_raw_mode(0o755));
        };
        let old = rustix::fs::openat(&parent.folder, c"fs", sys::DIR, Mode::empty())?;
        copy_folder_metadata(old.as_fd(), new.as_fd())
    };
    create().map_err(Error::io("create root folder in", path))
}

/// Gives the folder `new` what `old` has: attributes, owner, mode, times.
pub(crate) fn copy_folder_metadata(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(old)?;
    sys::copy_xattrs(old, new)?;
    rustix::fs::fchown(new, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(new, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(new, &times(&stat))
}

/// The times of an inode, to give them to another.
pub(crate) fn times(stat: &rustix::fs::Stat) -> Timestamps {
    use rustix::fs::Timespec;
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec.cast_signed() },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() },
    }
}

impl Snapshotter for Overlay {
    fn stat(&self, id: &SnapshotId) -> Result<Info> {
        self.store.info(id)
    }

    fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        self.store.usage(id)
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        Ok(self.describe(key, &self.store.record(&key.into())?))
    }

    fn look(&self, name: &Name) -> Result<Vec<Mount>> {
        Ok(self.committed(name, &lowers(&self.store.record(&name.into())?)))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        let record = self.store.create(Made::Active, key, parent, |folder, path, parent| {
            create_root(folder, path, parent)?;
            if parent.is_some() {
                rustix::fs::mkdirat(folder, OsStr::new("work"), Mode::RWXU)
                    .map_err(Error::io("create work folder in", path))?;
            }
            Ok(())
        })?;
        Ok(self.describe(key, &record))
    }

    fn view(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        let record = self.store.create(Made::View, key, parent, |folder, path, parent| match parent {
            Some(_) => Ok(()),
            None => create_root(folder, path, None),
        })?;
        Ok(self.describe(key, &record))
    }

    fn commit(&self, name: &Name, key: &Key) -> Result<()> {
        self.store.commit(name, key)
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        self.store.remove(id)
    }

    fn sync(&self, name: &Name) -> Result<()> {
        self.store.sync(name)
    }

    fn repair(&self) -> Result<Repaired> {
        self.store.repair()
    }

    fn walk(&self, visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()> {
        self.store.walk(visit)
    }

    fn late_parent(&self) -> Option<&dyn LateParent> {
        Some(self)
    }
}

impl LateParent for Overlay {
    fn prepare_late(&self, key: &Key) -> Result<Vec<Mount>> {
        let record = self.store.create(Made::Late, key, None, |folder, path, _| create_root(folder, path, None))?;
        Ok(self.describe(key, &record))
    }

    fn set_parent(&self, key: &Key, parent: &Name) -> Result<Vec<Mount>> {
        let record = self.store.set_parent(key, parent, |folder, path| {
            match rustix::fs::mkdirat(folder, OsStr::new("work"), Mode::RWXU) {
                // A process that was killed in between has left it.
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(errno) => Err(Error::io("create work folder in", path)(errno)),
            }
        })?;
        Ok(self.describe(key, &record))
    }
}
