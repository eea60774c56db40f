//! A snapshotter that keeps each snapshot as a plain folder and copies the parent with `cp`.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use estiba_storage::oci_spec::runtime::Mount;
use estiba_storage::{Error, Info, Key, Kind, Name, Result, SnapshotId, Snapshotter, Usage};

#[derive(Debug)]
pub struct Folders {
    root: PathBuf,
}

impl Folders {
    pub fn open(root: PathBuf) -> io::Result<Self> {
        for kind in ["active", "view", "committed"] {
            fs::create_dir_all(root.join(kind))?;
        }
        Ok(Self { root })
    }

    fn key(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(key.as_str())
    }

    fn name(&self, name: &Name) -> PathBuf {
        self.root.join("committed").join(name.as_str())
    }

    /// The folder of a snapshot and what it is good for.
    fn find(&self, id: &SnapshotId) -> Result<(PathBuf, Kind)> {
        let places = match id {
            SnapshotId::Key(key) => vec![(self.key("active", key), Kind::Active), (self.key("view", key), Kind::View)],
            SnapshotId::Name(name) => vec![(self.name(name), Kind::Committed)],
        };
        places.into_iter().find(|(path, _)| path.exists()).ok_or_else(|| Error::NotFound { id: id.clone() })
    }

    fn info(&self, id: SnapshotId, path: &Path, kind: Kind) -> Result<Info> {
        let parent = fs::read_to_string(path.join("parent")).map_err(failed("read", path))?;
        let parent = if parent.is_empty() { None } else { Some(parent.parse()?) };
        let created =
            fs::metadata(path.join("parent")).and_then(|file| file.modified()).map_err(failed("look at", path))?;
        Ok(Info { id, kind, parent, created })
    }

    fn make(&self, kind: &'static str, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        if self.find(&SnapshotId::Key(key.clone())).is_ok() {
            return Err(Error::AlreadyExists { id: SnapshotId::Key(key.clone()) });
        }
        if let Some(parent) = parent {
            self.find(&SnapshotId::Name(parent.clone()))?;
        }
        let path = self.key(kind, key);
        let beside = self.root.join(format!("new-{}", key.as_str()));
        let make = || {
            fs::create_dir(&beside)?;
            match parent {
                Some(parent) => copy(&self.name(parent).join("fs"), &beside.join("fs"))?,
                None => fs::create_dir(beside.join("fs"))?,
            }
            fs::write(beside.join("parent"), parent.map_or("", |name| name.as_str()))?;
            fs::rename(&beside, &path)
        };
        make().map_err(failed("make", &path))?;
        Ok(mounts(&path, kind == "view"))
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("cp failed")) }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

fn mounts(path: &Path, read_only: bool) -> Vec<Mount> {
    let mut mount = Mount::default();
    mount.set_destination("/".into()).set_typ(Some("bind".into())).set_source(Some(path.join("fs")));
    mount.set_options(Some(vec!["rbind".into(), if read_only { "ro" } else { "rw" }.into()]));
    vec![mount]
}

impl Snapshotter for Folders {
    fn stat(&self, id: &SnapshotId) -> Result<Info> {
        let (path, kind) = self.find(id)?;
        self.info(id.clone(), &path, kind)
    }

    fn usage(&self, id: &SnapshotId) -> Result<Usage> {
        let (path, _) = self.find(id)?;
        let output =
            Command::new("du").args(["-sk", "--"]).arg(path.join("fs")).output().map_err(failed("measure", &path))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let kilobytes = text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        Ok(Usage { bytes: kilobytes * 1024, inodes: 0 })
    }

    fn mounts(&self, key: &Key) -> Result<Vec<Mount>> {
        let (path, kind) = self.find(&SnapshotId::Key(key.clone()))?;
        Ok(mounts(&path, kind == Kind::View))
    }

    fn look(&self, name: &Name) -> Result<Vec<Mount>> {
        let (path, _) = self.find(&SnapshotId::Name(name.clone()))?;
        Ok(mounts(&path, true))
    }

    fn prepare(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        self.make("active", key, parent)
    }

    fn view(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>> {
        self.make("view", key, parent)
    }

    fn commit(&self, name: &Name, key: &Key) -> Result<()> {
        let (path, kind) = self.find(&SnapshotId::Key(key.clone()))?;
        if kind != Kind::Active {
            return Err(Error::NotActive { id: SnapshotId::Key(key.clone()) });
        }
        if self.name(name).exists() {
            return Err(Error::AlreadyExists { id: SnapshotId::Name(name.clone()) });
        }
        fs::rename(&path, self.name(name)).map_err(failed("commit", &path))
    }

    fn remove(&self, id: &SnapshotId) -> Result<()> {
        let (path, _) = self.find(id)?;
        let mut child = None;
        self.walk(&mut |info| {
            if matches!((id, &info.parent), (SnapshotId::Name(name), Some(parent)) if name == parent) {
                child = Some(info.id.clone());
            }
            ControlFlow::Continue(())
        })?;
        if let Some(child) = child {
            return Err(Error::InUse { id: id.clone(), child });
        }
        fs::remove_dir_all(&path).map_err(failed("remove", &path))
    }

    fn walk(&self, visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()> {
        for (folder, kind) in [("active", Kind::Active), ("view", Kind::View), ("committed", Kind::Committed)] {
            let path = self.root.join(folder);
            for entry in fs::read_dir(&path).map_err(failed("list", &path))?.flatten() {
                let text = entry.file_name().to_string_lossy().into_owned();
                let id = if kind == Kind::Committed {
                    SnapshotId::Name(text.parse()?)
                } else {
                    SnapshotId::Key(text.parse()?)
                };
                if visit(&self.info(id, &entry.path(), kind)?).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
