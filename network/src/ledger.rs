//! What is attached to a network, on disk: written before anything is made, removed after all of it is gone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Attachment, Endpoint};
use crate::error::{Error, Result};

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) attachment: Attachment,
    /// What it has; while it is in the making, what it may have.
    pub(crate) endpoint: Endpoint,
    /// Whether all of it was made.
    pub(crate) ready: bool,
}

/// The folder of a network's records, in which each is a file named `CONTAINER@INTERFACE`.
///
/// Who attaches or detaches has it locked shared; who makes room for the network to go has it alone.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    folder: PathBuf,
}

/// A lock of the folder, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _folder: Flock<File>,
}

impl Ledger {
    /// The records of the network with that id.
    pub(crate) fn of(state: &Path, id: &str) -> Self {
        Self { folder: state.join(id) }
    }

    pub(crate) fn lock_shared(&self) -> Result<Lock> {
        self.lock(FlockArg::LockShared)
    }

    pub(crate) fn lock_alone(&self) -> Result<Lock> {
        self.lock(FlockArg::LockExclusive)
    }

    /// Makes the folder if it is not there.
    fn lock(&self, kind: FlockArg) -> Result<Lock> {
        loop {
            let folder = match File::open(&self.folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
                    made.map_err(failed("make the folder", &self.folder))?;
                    continue;
                }
                other => other.map_err(failed("open", &self.folder))?,
            };
            let folder = Flock::lock(folder, kind).map_err(|(_, errno)| failed("lock", &self.folder)(errno.into()))?;
            // Whoever had it alone may have removed it in the meantime.
            if fstat(&*folder).map_err(|errno| failed("look at", &self.folder)(errno.into()))?.st_nlink > 0 {
                return Ok(Lock { _folder: folder });
            }
        }
    }

    pub(crate) fn read(&self, container: &str, interface: &str) -> Result<Option<Record>> {
        let path = self.path(container, interface);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
            // It was renamed into place: what cannot be read is of another version, or damaged. Its key still tells
            // enough for it to be undone.
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|_| Record {
                attachment: Attachment {
                    container: container.to_owned(),
                    interface: interface.to_owned(),
                    ..Attachment::default()
                },
                endpoint: Endpoint::default(),
                ready: false,
            }))),
        }
    }

    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let Attachment { container, interface, .. } = &record.attachment;
        let path = self.path(container, interface);
        let beside = self.beside(container, interface);
        let bytes = serde_json::to_vec(record).map_err(|error| failed("write", &path)(error.into()))?;
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
        file.and_then(|mut file| file.write_all(&bytes)).map_err(failed("write", &beside))?;
        fs::rename(&beside, &path).map_err(failed("write", &path))
    }

    /// Removes a record, and what a writer that was killed has left beside it.
    pub(crate) fn remove(&self, container: &str, interface: &str) -> Result<()> {
        for path in [self.beside(container, interface), self.path(container, interface)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn beside(&self, container: &str, interface: &str) -> PathBuf {
        self.folder.join(format!(".{container}@{interface}"))
    }

    /// All records, in the order of their names.
    pub(crate) fn list(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for name in self.names()? {
            if let Some((container, interface)) = name.split_once('@')
                && let Some(record) = self.read(container, interface)?
            {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Whether there is no record. It looks no further than to the first one.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        let mut entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            other => other.map_err(failed("read the folder", &self.folder))?,
        };
        let is_record = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().first() != Some(&b'.');
        Ok(!entries.any(|entry| entry.as_ref().is_ok_and(is_record)))
    }

    /// Removes the folder, and what was written beside a record and never became one. The caller has it alone, and no
    /// record is left.
    pub(crate) fn remove_folder(&self) -> Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("read the folder", &self.folder))?,
        };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().first() == Some(&b'.') {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        fs::remove_dir(&self.folder).map_err(failed("remove the folder", &self.folder))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read the folder", &self.folder))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("read the folder", &self.folder))?.file_name();
            names.extend(name.into_string().ok().filter(|name| !name.starts_with('.')));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn path(&self, container: &str, interface: &str) -> PathBuf {
        self.folder.join(format!("{container}@{interface}"))
    }
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::State { operation, path, source }
}
