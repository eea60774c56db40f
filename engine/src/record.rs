//! Container records: one folder a container, readable files, no database.
//!
//! `ROOT/containers/ID/record.json` is written before anything else of a container is made and removed after all else
//! is gone, so that whatever a crash leaves is found from here. `exit.json` beside it is the shim's. `ROOT/names/NAME`
//! is a symbolic link to the folder, made by exclusive creation.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::identity::{ContainerName, Id};
use crate::request::CreateRequest;

/// The format of a record that this version writes.
const VERSION: u32 = 1;

/// What is known of a container for as long as it exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The container's id.
    pub id: Id,
    /// Its name.
    pub name: ContainerName,
    /// When it was made.
    pub created: SystemTime,
    /// How far its making came.
    pub stage: Stage,
    /// The kernel's boot id when `stage` was written: after a reboot nothing of it runs.
    pub boot_id: String,
    /// The snapshotter that holds its root file system.
    pub snapshotter: String,
    /// Its cgroup, from the root of the hierarchies.
    pub cgroup: String,
    /// What was asked for.
    pub request: CreateRequest,
}

/// How far the making of a container came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The command that makes it is at work, or has died: without its lock it is rubbish.
    Creating,
    /// Made, not started.
    Created,
    /// It was started. Whether it still runs, the shim's lock and `exit.json` say.
    Started,
}

/// How a container ended (`exit.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status; 128 + n if signal n ended it.
    pub status: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer was at work in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Created,
    /// A shim holds it.
    Running,
    /// It has ended. `None`: its shim died, the status is lost.
    Exited(Option<Exit>),
    /// Half made or half removed: the next ordinary command removes it.
    Dead,
}

/// A line of a listing.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The record.
    pub record: Record,
    /// What it is doing.
    pub status: Status,
}

impl Record {
    pub(crate) fn new(
        id: Id,
        name: ContainerName,
        stage: Stage,
        snapshotter: &str,
        cgroup_parent: &str,
        request: CreateRequest,
    ) -> Result<Self> {
        let cgroup = format!("{}/{id}", cgroup_parent.trim_end_matches('/'));
        Ok(Self {
            version: VERSION,
            id,
            name,
            created: SystemTime::now(),
            stage,
            boot_id: boot_id()?,
            snapshotter: snapshotter.to_owned(),
            cgroup,
            request,
        })
    }
}

/// What every version of a record has.
#[derive(Deserialize)]
struct Format {
    version: u32,
}

/// The kernel's boot id: another one after each boot.
pub(crate) fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(PATH).map_err(Error::io("read", PATH))?.trim().to_owned())
}

/// The folders of records and names below an engine's root, and of what vanishes with a reboot.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    containers: PathBuf,
    names: PathBuf,
    run: PathBuf,
}

impl Records {
    pub(crate) fn open(root: &Path, run: &Path) -> Result<Self> {
        let records = Self { containers: root.join("containers"), names: root.join("names"), run: run.to_owned() };
        for path in [&records.containers, &records.names, &records.run] {
            folder::make(path)?;
        }
        Ok(records)
    }

    /// The container's folder of lasting state.
    pub(crate) fn folder(&self, id: &Id) -> PathBuf {
        self.containers.join(id.as_str())
    }

    /// The container's bundle: what a reboot may take.
    pub(crate) fn bundle(&self, id: &Id) -> PathBuf {
        self.run.join(id.as_str())
    }

    /// The file that the shim writes when the container has ended.
    ///
    /// Of a container that is removed at its end nothing is told after a reboot: there it lies with what a reboot takes.
    pub(crate) fn exit_file(&self, record: &Record) -> PathBuf {
        let id = &record.id;
        let folder = if record.request.auto_remove { self.bundle(id) } else { self.folder(id) };
        folder.join("exit.json")
    }

    /// Makes the folder, the record and the name, in this order, and returns the lock on the folder.
    pub(crate) fn insert(&self, record: &Record) -> Result<FolderLock> {
        let path = self.folder(&record.id);
        let lock = {
            // Shared with other inserts: nobody takes the new folder for rubbish before it is locked.
            let _fresh = FolderLock::shared(&self.containers)?;
            fs::create_dir(&path).map_err(Error::io("make the folder", &path))?;
            FolderLock::wait(&path)?
        };
        match self.insert_into(record) {
            Ok(()) => Ok(lock),
            Err(error) => {
                // The name's owner or a full disk said no: nothing of this container exists but its folder.
                folder::remove(&path)?;
                Err(error)
            }
        }
    }

    fn insert_into(&self, record: &Record) -> Result<()> {
        self.write(record)?;
        let link = self.names.join(record.name.as_str());
        match std::os::unix::fs::symlink(Path::new("../containers").join(record.id.as_str()), &link) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::NameTaken {
                name: record.name.to_string(),
                owner: self.owner(&record.name).map_or_else(|| "that is being removed".to_owned(), |id| id.to_string()),
            }),
            Err(source) => Err(Error::io("link the name", link)(source)),
        }
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let path = self.folder(&record.id);
        let bytes = serde_json::to_vec(record)
            .map_err(|source| Error::Damaged { path: path.join("record.json"), source: source.into() })?;
        // A `--rm` container means nothing after a reboot: its snapshot and folder are removed whatever they hold.
        let durability = if record.request.auto_remove { Durability::Lazy } else { Durability::Synced };
        folder::replace(&path, "record.json", &bytes, durability)
    }

    /// Reads a record: `None` if there is none (yet, or any more).
    pub(crate) fn read(&self, id: &Id) -> Result<Option<Record>> {
        let path = self.folder(id).join("record.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(Error::io("read", path)(source)),
        };
        let damaged = |source: serde_json::Error| Error::Damaged { path: path.clone(), source: source.into() };
        let Format { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            return Err(Error::Version { path, found: version.to_string(), known: VERSION });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// How the container ended, if the shim has written it.
    pub(crate) fn exit(&self, record: &Record) -> Result<Option<Exit>> {
        let path = self.exit_file(record);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| Error::Damaged { path, source: source.into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read", path)(source)),
        }
    }

    /// Removes the name and then the folder: the last step of a removal.
    pub(crate) fn remove(&self, record: &Record) -> Result<()> {
        if self.owner(&record.name).as_ref() == Some(&record.id) {
            let link = self.names.join(record.name.as_str());
            match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", link)(error)),
                _ => {}
            }
        }
        self.remove_folder(&record.id)
    }

    /// Removes the folder. The record goes last, so that a crash in between leaves it to be found.
    pub(crate) fn remove_folder(&self, id: &Id) -> Result<()> {
        folder::remove(&self.folder(id))
    }

    /// Removes folders that have no record: of an insert or a removal that was killed.
    pub(crate) fn remove_recordless(&self) -> Result<()> {
        let recordless = |id: &Id| !self.folder(id).join("record.json").exists();
        if !self.ids()?.iter().any(recordless) {
            return Ok(());
        }
        let _alone = FolderLock::wait(&self.containers)?;
        for id in self.ids()?.into_iter().filter(recordless) {
            let folder = self.folder(&id);
            if folder.exists() && FolderLock::try_now(&folder)?.is_some() {
                folder::remove(&folder)?;
            }
        }
        Ok(())
    }

    /// Whether the container's shim lives: it holds a lock for as long as it does.
    pub(crate) fn has_shim(&self, id: &Id) -> Result<bool> {
        folder::is_held(&self.bundle(id).join("shim.lock"))
    }

    /// The ids of all folders.
    pub(crate) fn ids(&self) -> Result<Vec<Id>> {
        let entries = fs::read_dir(&self.containers).map_err(Error::io("list", &self.containers))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }

    /// The container that has the name.
    pub(crate) fn owner(&self, name: &ContainerName) -> Option<Id> {
        let target = fs::read_link(self.names.join(name.as_str())).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    /// Removes names whose container's folder is gone. (A folder is made before its name and removed after it.)
    pub(crate) fn remove_stale_names(&self) -> Result<()> {
        let entries = fs::read_dir(&self.names).map_err(Error::io("list", &self.names))?;
        for entry in entries.flatten() {
            if fs::metadata(entry.path()).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", entry.path())(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The container of that name, id, or beginning of an id.
    pub(crate) fn find(&self, text: &str) -> Result<Id> {
        // A whole id is what it says, whatever name somebody has given.
        if let Ok(id) = text.parse::<Id>()
            && self.folder(&id).exists()
        {
            return Ok(id);
        }
        if let Ok(name) = text.parse::<ContainerName>()
            && let Some(id) = self.owner(&name)
        {
            return Ok(id);
        }
        let mut fitting = self.ids()?.into_iter().filter(|id| !text.is_empty() && id.as_str().starts_with(text));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(Error::Ambiguous { name: text.to_owned() }),
            (None, _) => Err(Error::NoContainer { name: text.to_owned() }),
        }
    }

    /// What the container is doing. Asked without its lock, the answer may be old at once.
    pub(crate) fn status(&self, record: &Record) -> Result<Status> {
        if self.has_shim(&record.id)? {
            return Ok(Status::Running);
        }
        Ok(match record.stage {
            Stage::Creating => Status::Dead,
            Stage::Created => Status::Created,
            Stage::Started => Status::Exited(self.exit(record)?),
        })
    }
}
