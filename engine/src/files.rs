//! The files of a container: copied in and out, exported.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use estiba_runtime::mount::Tree;
use estiba_storage::archive::{self, Link, Mounts, PackOptions, Packed, Root, Stat, UnpackOptions, Unpacked};
use estiba_storage::mounts;

use crate::container::Container;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::exec;
use crate::identity::Id;
use crate::record::Record;

/// Whether the files are to be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

impl Container {
    /// What a path in it is.
    pub async fn stat_path(&self, path: impl Into<PathBuf>, link: Link) -> Result<Stat> {
        let path = path.into();
        self.with(move |inner, id| {
            inner.with_root(id, Access::Read, |root| archive::stat(root, &path, link).map_err(files(id, "look at")))
        })
        .await
    }

    /// Writes a file or folder of it as a tar archive, as it is now. Works whether it runs or not.
    pub async fn copy_out(
        &self,
        path: impl Into<PathBuf>,
        options: PackOptions,
        out: impl Write + Send + 'static,
    ) -> Result<Packed> {
        let path = path.into();
        self.with(move |inner, id| {
            inner.with_root(id, Access::Read, |root| {
                archive::pack(root, &path, out, &options).map_err(files(id, "copy from"))
            })
        })
        .await
    }

    /// Unpacks a tar archive into a folder of it. Works whether it runs or not.
    pub async fn copy_in(
        &self,
        folder: impl Into<PathBuf>,
        options: UnpackOptions,
        input: impl Read + Send + 'static,
    ) -> Result<Unpacked> {
        let folder = folder.into();
        self.with(move |inner, id| {
            if inner.record(id)?.request.read_only {
                return Err(Error::ReadOnly { id: id.clone() });
            }
            inner.with_root(id, Access::Write, |root| {
                archive::unpack(root, &folder, input, &options).map_err(files(id, "copy into"))
            })
        })
        .await
    }

    /// Writes its whole root file system as a tar archive, without what is mounted in it.
    pub async fn export(&self, out: impl Write + Send + 'static) -> Result<Packed> {
        let options = PackOptions { root: Root::Contents, mounts: Mounts::Stay, ..PackOptions::default() };
        let packed = self.copy_out("/", options, out).await?;
        self.with(move |inner, id| {
            inner.tell(&[inner.record(id)?.event("export")]);
            Ok(packed)
        })
        .await
    }
}

pub(crate) fn files(id: &Id, operation: &'static str) -> impl Fn(estiba_storage::Error) -> Error {
    let id = id.clone();
    move |source| Error::Files { operation, id: id.clone(), source: Box::new(source) }
}

impl Inner {
    /// Lets `work` see the root of a container: as its first process sees it, or as it would find it.
    fn with_root<T>(&self, id: &Id, access: Access, work: impl FnOnce(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        let (lock, record) = self.lock(id)?;
        if self.records.status(&record)?.is_running() {
            let root = exec::Root::open(&record)?;
            // A copy may take long, and the container is not changed by it.
            drop(lock);
            return work(root.folder().as_fd());
        }
        let tree = self.mount_root(&record, access)?;
        work(tree.as_fd())
    }

    fn mount_root(&self, record: &Record, access: Access) -> Result<Tree> {
        let id = &record.id;
        let key = id.snapshot_key()?;
        let mounts = self.snapshotter_of(record)?.mounts(&key).map_err(|source| Error::Snapshot {
            operation: "find",
            snapshot: key.to_string(),
            source: Box::new(source),
        })?;
        let mounts = if access == Access::Read { mounts::read_only(mounts) } else { mounts };
        Tree::new(&mounts).map_err(|source| Error::Root { id: id.clone(), source: Box::new(source) })
    }
}
