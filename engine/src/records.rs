//! Where records lie: one folder a container, readable files, no database.
//!
//! `ROOT/containers/ID/record.json` is written before anything else of a container is made and removed after all else
//! is gone. `exit.json` beside it is the shim's. `ROOT/names/NAME` is a symbolic link to the folder, made by exclusive
//! creation.
//!
//! Whoever changes more than the record of a container first makes `RUN/ID` and removes it last: what a killed command has
//! left is found there, without a look at every record. A reboot may take `RUN`: then every record is looked at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use estiba_runtime::{Cgroup, Hierarchies};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::health::Health;
use crate::identity::{ContainerName, Id};
use crate::record::{Exit, Record, Stage, Status, VERSION, boot_id};

/// What the folder in `RUN` that says that a container is paused for a commit is called, after its id.
const COMMIT: &str = ".commit";

/// What `RUN` says of containers.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    /// Those that run, or that a command is or was at work on.
    pub(crate) ids: Vec<Id>,
    /// Those that were paused for a commit.
    pub(crate) commits: Vec<Id>,
}

/// What every version of a record has.
#[derive(Deserialize)]
struct Format {
    version: u32,
}

/// The file beside the record that holds what the checks have found.
const HEALTH: &str = "health.json";

/// The file in `RUN` that holds the boot id in which all records were looked at.
const BOOT: &str = "boot";

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

    /// The file in which the container's output is kept.
    pub(crate) fn log(&self, id: &Id) -> PathBuf {
        self.folder(id).join("log")
    }

    /// What the checks of the container's health have found in its last run.
    pub(crate) fn health(&self, record: &Record) -> Option<Health> {
        record.health.as_ref()?;
        let known = fs::read(self.folder(&record.id).join(HEALTH)).ok();
        let health = known.and_then(|bytes| serde_json::from_slice::<Health>(&bytes).ok());
        // Nobody has come to a check of this run yet.
        Some(health.filter(|health| health.run == record.starts).unwrap_or_else(|| Health::starting(record.starts)))
    }

    /// Stores what the checks have found.
    pub(crate) fn write_health(&self, id: &Id, health: &Health) -> Result<()> {
        let folder = self.folder(id);
        let bytes = serde_json::to_vec(health)
            .map_err(|source| Error::Damaged { path: folder.join(HEALTH), source: source.into() })?;
        folder::replace(&folder, HEALTH, &bytes, Durability::Lazy)
    }

    /// The name that leads to the container, if it has one.
    pub(crate) fn name_of(&self, id: &Id) -> Result<Option<ContainerName>> {
        let entries = fs::read_dir(&self.names).map_err(Error::io("list", &self.names))?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<ContainerName>().ok());
        Ok(names.into_iter().find(|name| self.owner(name).as_ref() == Some(id)))
    }

    /// Makes the folders, the record and the name, in this order, and returns the lock on the folder.
    pub(crate) fn insert(&self, record: &Record) -> Result<FolderLock> {
        let path = self.folder(&record.id);
        let lock = {
            // Shared with other inserts: nobody takes the new folders for rubbish before they are locked.
            let _fresh = FolderLock::shared(&self.containers)?;
            self.mark(&record.id)?;
            fs::create_dir(&path).map_err(Error::io("make the folder", &path))?;
            FolderLock::wait(&path)?
        };
        match self.insert_into(record) {
            Ok(()) => Ok(lock),
            Err(error) => {
                // The name's owner or a full disk said no: nothing of this container exists but its folders.
                self.remove_folder(&record.id)?;
                Err(error)
            }
        }
    }

    /// Makes `RUN/ID`: from now on a crash leaves something that is looked for.
    pub(crate) fn mark(&self, id: &Id) -> Result<()> {
        folder::make(&self.bundle(id))
    }

    /// Removes `RUN/ID`: nothing is left half done.
    pub(crate) fn unmark(&self, id: &Id) -> Result<()> {
        folder::remove(&self.bundle(id))
    }

    /// Takes another name: the link first, then the record, and the old link last. A crash in between is mended by
    /// [`mend_names`](Self::mend_names).
    pub(crate) fn rename(&self, record: &mut Record, name: ContainerName) -> Result<()> {
        self.mark(&record.id)?;
        let old = std::mem::replace(&mut record.name, name);
        let renamed = self.link(record).and_then(|()| self.write(record)).and_then(|()| self.unlink(&old, &record.id));
        if renamed.is_err() {
            let _ = self.unlink(&record.name, &record.id);
            record.name = old;
        }
        renamed
    }

    fn insert_into(&self, record: &Record) -> Result<()> {
        self.write(record)?;
        self.link(record)
    }

    fn link(&self, record: &Record) -> Result<()> {
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
        // Nor does one that is not made yet, or is not any more.
        let passing = record.request.auto_remove || matches!(record.stage, Stage::Creating | Stage::Removing);
        let durability = if passing { Durability::Lazy } else { Durability::Synced };
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

    /// Removes the name and then the folders: the last step of a removal.
    pub(crate) fn remove(&self, record: &Record) -> Result<()> {
        self.unlink(&record.name, &record.id)?;
        self.remove_folder(&record.id)
    }

    /// Removes a name, if it is that container's.
    fn unlink(&self, name: &ContainerName, id: &Id) -> Result<()> {
        if self.owner(name).as_ref() != Some(id) {
            return Ok(());
        }
        let link = self.names.join(name.as_str());
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", link)(error)),
            _ => Ok(()),
        }
    }

    /// Removes the folder, and what says that something is left last, so that a crash in between is found.
    pub(crate) fn remove_folder(&self, id: &Id) -> Result<()> {
        folder::remove(&self.folder(id))?;
        self.unmark(id)
    }

    /// Removes the names that lead to the container and are not its name: of a rename that was killed.
    pub(crate) fn mend_names(&self, record: &Record) -> Result<()> {
        self.remove_names(|owner, name| owner == Some(&record.id) && *name != record.name)?;
        if self.owner(&record.name).is_none() { self.link(record) } else { Ok(()) }
    }

    /// Removes folders that have no record: of an insert or a removal that was killed.
    pub(crate) fn remove_recordless(&self, ids: &[Id]) -> Result<()> {
        let recordless = |id: &&Id| !self.folder(id).join("record.json").exists();
        if !ids.iter().any(|id| recordless(&id)) {
            return Ok(());
        }
        let _alone = FolderLock::wait(&self.containers)?;
        for id in ids.iter().filter(recordless) {
            let folder = self.folder(id);
            if !folder.exists() || FolderLock::try_now(&folder)?.is_some() {
                // Its name may be left, of a container whose record went first.
                self.remove_names(|owner, _| owner == Some(id))?;
                self.remove_folder(id)?;
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
        list_ids(&self.containers)
    }

    /// The container that has the name.
    pub(crate) fn owner(&self, name: &ContainerName) -> Option<Id> {
        let target = fs::read_link(self.names.join(name.as_str())).ok()?;
        target.file_name()?.to_str()?.parse().ok()
    }

    /// Removes names whose container's folder is gone. (A folder is made before its name and removed after it.)
    pub(crate) fn remove_stale_names(&self) -> Result<()> {
        self.remove_names(|_, name| {
            let link = self.names.join(name.as_str());
            fs::metadata(link).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        })
    }

    fn remove_names(&self, which: impl Fn(Option<&Id>, &ContainerName) -> bool) -> Result<()> {
        let entries = fs::read_dir(&self.names).map_err(Error::io("list", &self.names))?;
        for entry in entries.flatten() {
            let Some(Ok(name)) = entry.file_name().to_str().map(str::parse::<ContainerName>) else { continue };
            if which(self.owner(&name).as_ref(), &name) {
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

    /// What is in `RUN`: of what runs, and of what a command is at work on or has left.
    pub(crate) fn marked(&self) -> Result<Marked> {
        let entries = fs::read_dir(&self.run).map_err(Error::io("list", &self.run))?;
        let mut marked = Marked::default();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            match name.strip_suffix(COMMIT) {
                Some(id) => marked.commits.extend(id.parse::<Id>().ok()),
                None => marked.ids.extend(name.parse::<Id>().ok()),
            }
        }
        Ok(marked)
    }

    /// Says that a container is paused for a commit, for as long as the lock is held. `None` if it is for another one's already.
    pub(crate) fn begin_commit(&self, id: &Id) -> Result<Option<FolderLock>> {
        let mark = self.commit(id);
        loop {
            folder::make(&mark)?;
            match FolderLock::try_now(&mark) {
                Ok(None) => return Ok(None),
                Ok(Some(lock)) if mark.exists() => return Ok(Some(lock)),
                // Another commit has come to its end meanwhile, and has removed it.
                Ok(Some(_)) => {}
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What [`begin_commit`](Self::begin_commit) has said is over.
    pub(crate) fn end_commit(&self, id: &Id, lock: FolderLock) -> Result<()> {
        folder::remove(&self.commit(id))?;
        drop(lock);
        Ok(())
    }

    /// The lock of a commit whose command is gone.
    pub(crate) fn abandoned_commit(&self, id: &Id) -> Result<Option<FolderLock>> {
        match FolderLock::try_now(&self.commit(id)) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            lock => lock,
        }
    }

    fn commit(&self, id: &Id) -> PathBuf {
        self.run.join(format!("{id}{COMMIT}"))
    }

    /// Whether all records were looked at since the machine was started.
    pub(crate) fn is_known_boot(&self) -> bool {
        fs::read_to_string(self.run.join(BOOT)).is_ok_and(|text| Some(text) == boot_id().ok())
    }

    /// Says that all records were looked at since the machine was started.
    pub(crate) fn know_boot(&self) -> Result<()> {
        // Several may be the first.
        let _alone = FolderLock::wait(&self.run)?;
        folder::replace(&self.run, BOOT, boot_id()?.as_bytes(), Durability::Lazy)
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
        if record.stage == Stage::Removing {
            return Ok(Status::Removing);
        }
        if self.has_shim(&record.id)? {
            return Ok(match record.stage {
                // Its command has not come to the start, or a shim is about to end.
                Stage::Creating | Stage::Created => Status::Created,
                _ if record.paused && is_frozen(record) => Status::Paused,
                _ => Status::Running,
            });
        }
        let exit = || record.ended.as_ref().and_then(|ended| ended.exit.clone());
        Ok(match record.stage {
            Stage::Creating => Status::Dead,
            Stage::Created => Status::Created,
            Stage::Started => Status::Exited(self.exit(record)?),
            Stage::Ended if record.restarting => Status::Restarting(exit()),
            Stage::Ended => Status::Exited(exit()),
            Stage::Removing => Status::Removing,
        })
    }
}

/// Whether a container that is on record as paused is: whoever was to freeze or thaw it may have been killed beside the record.
fn is_frozen(record: &Record) -> bool {
    if record.cgroup.is_empty() {
        return false;
    }
    let cgroup = Hierarchies::detect().and_then(|hierarchies| Cgroup::open(&hierarchies, &record.cgroup));
    // The record is believed where the kernel does not say.
    cgroup.and_then(|cgroup| cgroup.is_frozen()).unwrap_or(true)
}

fn list_ids(folder: &Path) -> Result<Vec<Id>> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
