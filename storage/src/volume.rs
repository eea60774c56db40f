//! Volumes: named folders that outlive the containers that mount them.
//!
//! ```text
//! NAME/volume.json   the record
//! NAME/data/         what containers see
//! .tmp/RANDOM/       being made, filled or removed
//! ```
//!
//! A volume appears and disappears by one rename, and its record is on disk before its name appears. Whether a container uses it
//! is not known here; the data of a volume that is removed while it is mounted goes away under its users.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::DirBuilder;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FileType, FlockOperation, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::archive::{self, Link};
use crate::overlay::copy_folder_metadata;
use crate::staging::Staging;
use crate::store::open_or_create;
use crate::{Error, Result, Usage, VolumeName, copy, record, sys, tree};

const RECORD: &str = "volume.json";
const DATA: &CStr = c"data";
const TMP: &str = ".tmp";

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Whatever its maker wrote on it.
    pub labels: BTreeMap<String, String>,
    /// Whatever whoever mounts it must know. Means nothing here.
    pub options: BTreeMap<String, String>,
    /// When it was made.
    pub created: SystemTime,
    /// The folder that containers see.
    pub path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Record {
    created: SystemTime,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, String>,
}

/// The volumes in one folder. Any number of processes may use it at once.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    dir: OwnedFd,
    staging: Staging,
}

impl Volumes {
    /// Opens the store in the folder `root` (`ROOT/volumes`), which is made if it is missing. Cheap.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let root = root.as_ref();
        let failed = |source| Error::Io { operation: "create folder", path: root.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        let dir = rustix::fs::open(&root, sys::DIR, Mode::empty()).map_err(Error::io("open folder", &root))?;
        let path = root.join(TMP);
        let staging = Staging::new(open_or_create(dir.as_fd(), &sys::c_name(TMP), &path)?, path);
        Ok(Volumes { root, dir, staging })
    }

    fn path(&self, name: &VolumeName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Makes an empty volume; its folder belongs to root, with mode 0755. [`Error::VolumeExists`].
    pub fn create(
        &self,
        name: &VolumeName,
        labels: BTreeMap<String, String>,
        options: BTreeMap<String, String>,
    ) -> Result<Volume> {
        let record = Record { created: SystemTime::now(), labels, options };
        let staged = self.staging.create()?;
        let path = staged.path.join(RECORD);
        let bytes = serde_json::to_vec(&record)
            .map_err(|source| Error::DamagedRecord { path: path.clone(), source: Box::new(source) })?;
        let make = || {
            sys::write_new_file(staged.folder.as_fd(), &sys::c_name(RECORD), &bytes)?;
            rustix::fs::mkdirat(&staged.folder, DATA, Mode::RWXU)?;
            let data = rustix::fs::openat(&staged.folder, DATA, sys::DIR, Mode::empty())?;
            rustix::fs::fchmod(&data, Mode::from_raw_mode(0o755))?;
            rustix::fs::fsync(rustix::fs::openat(
                &staged.folder,
                RECORD,
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC,
                Mode::empty(),
            )?)?;
            rustix::fs::fsync(&staged.folder)
        };
        make().map_err(Error::io("create volume in", &staged.path))?;
        match staged.move_to(self.dir.as_fd(), &sys::c_name(name.as_str())) {
            Ok(()) => {}
            // A volume's folder is never empty, and only an empty folder is replaced.
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Err(Error::VolumeExists { name: name.clone() }),
            Err(errno) => return Err(Error::io("create volume", self.path(name))(errno)),
        }
        rustix::fs::fsync(&self.dir).map_err(Error::io("sync", &self.root))?;
        Ok(self.volume(name, record))
    }

    fn volume(&self, name: &VolumeName, record: Record) -> Volume {
        let path = self.path(name).join("data");
        let Record { created, labels, options } = record;
        Volume { name: name.clone(), labels, options, created, path }
    }

    /// What is known of a volume. [`Error::VolumeNotFound`], [`Error::DamagedRecord`].
    pub fn get(&self, name: &VolumeName) -> Result<Volume> {
        let path = self.path(name).join(RECORD);
        let bytes = match sys::read_file(self.dir.as_fd(), &Path::new(name.as_str()).join(RECORD), record::MAX) {
            Ok(bytes) => bytes,
            Err(Errno::NOENT) => return Err(Error::VolumeNotFound { name: name.clone() }),
            Err(errno) => return Err(Error::io("read volume record", path)(errno)),
        };
        let record =
            serde_json::from_slice(&bytes).map_err(|source| Error::DamagedRecord { path, source: Box::new(source) })?;
        Ok(self.volume(name, record))
    }

    /// Calls `visit` with every volume, in the order of their names, until it breaks.
    pub fn walk(&self, visit: &mut dyn FnMut(&VolumeName, Result<Volume>) -> ControlFlow<()>) -> Result<()> {
        let failed = || Error::io("read folder", &self.root);
        let dir = rustix::fs::openat(&self.dir, c".", sys::DIR, Mode::empty()).map_err(failed())?;
        let mut names = sys::names(dir.as_fd()).map_err(failed())?;
        names.sort_unstable();
        for name in names.into_iter().filter_map(|name| name.into_string().ok()?.parse::<VolumeName>().ok()) {
            let volume = self.get(&name);
            if matches!(volume, Err(Error::VolumeNotFound { .. })) {
                continue;
            }
            if visit(&name, volume).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lock(&self, name: &VolumeName) -> Result<sys::Locked> {
        let file = sys::c_name(name.as_str());
        match sys::open_locked(self.dir.as_fd(), &file, FlockOperation::LockExclusive) {
            Ok(Some(folder)) => Ok(folder),
            Ok(None) => Err(Error::VolumeNotFound { name: name.clone() }),
            Err(errno) => Err(Error::io("lock volume folder", self.path(name))(errno)),
        }
    }

    /// Removes a volume with its data, and whatever killed processes left. [`Error::VolumeNotFound`].
    pub fn remove(&self, name: &VolumeName) -> Result<()> {
        let folder = self.lock(name)?;
        let taken = self.staging.take(self.dir.as_fd(), &sys::c_name(name.as_str()))?;
        let removed = taken.map_err(Error::io("remove volume", self.path(name)))?.delete();
        drop(folder);
        self.staging.sweep()?;
        removed
    }

    /// What the data of a volume occupies; reads the whole tree. [`Error::VolumeNotFound`].
    pub fn usage(&self, name: &VolumeName) -> Result<Usage> {
        self.get(name)?;
        let path = self.path(name).join("data");
        let data = rustix::fs::open(&path, sys::DIR, Mode::empty()).map_err(Error::io("open folder", &path))?;
        tree::usage(data.as_fd()).map_err(Error::io("measure", path))
    }

    /// Fills an empty volume, when it is first used, with what the image has in the folder `path` of a container's
    /// `root`, whose owner, mode and attributes the volume's folder gets. Returns whether it was empty and there is such a folder.
    ///
    /// The root is [resolved in](archive) and not trusted, and must not change meanwhile. The content is copied to another place
    /// first: what is interrupted then leaves the volume empty.
    pub fn fill(&self, name: &VolumeName, root: BorrowedFd<'_>, path: impl AsRef<Path>) -> Result<bool> {
        let lock = self.lock(name)?;
        let from = match archive::root::open(root, path.as_ref(), Link::Followed) {
            Ok(from) => from,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(errno) => return Err(Error::io("open", path)(errno)),
        };
        if sys::file_type(&rustix::fs::fstat(&from).map_err(Error::io("look at", &path))?) != FileType::Directory {
            return Ok(false);
        }
        let staged = self.staging.create()?;
        let open = |dir: BorrowedFd<'_>, name: &CStr| rustix::fs::openat(dir, name, sys::DIR, Mode::empty());
        let copy = || -> rustix::io::Result<bool> {
            let data = open(lock.as_fd(), DATA)?;
            if !sys::names(data.as_fd())?.is_empty() {
                return Ok(false);
            }
            for folder in [c"copy", c"links"] {
                rustix::fs::mkdirat(&staged.folder, folder, Mode::RWXU)?;
            }
            let (from, to) = (open(from.as_fd(), c".")?, open(staged.folder.as_fd(), c"copy")?);
            copy::tree(from.as_fd(), to.as_fd(), open(staged.folder.as_fd(), c"links")?.as_fd())?;
            for name in sys::names(to.as_fd())? {
                rustix::fs::renameat(&to, &name, &data, &name)?;
            }
            copy_folder_metadata(from.as_fd(), data.as_fd())?;
            Ok(true)
        };
        copy().map_err(Error::io("copy image content to volume", self.path(name)))
    }

    /// Finds and removes what killed processes left behind; returns how much that was. Others may go on meanwhile.
    pub fn repair(&self) -> Result<usize> {
        self.staging.sweep()
    }
}
