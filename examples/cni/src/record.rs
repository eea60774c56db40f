//! What an attachment has on the host that only its plugin knows of, so that DEL and GC find it without a result: small files below
//! `/run/cni/estiba`, which go when the machine is started again, as what they tell of does.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use estiba_network::cni::Failure;
use estiba_network::cni::plugin::Request;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

const ROOT: &str = "/run/cni/estiba";

/// Whose record it is. No name has an `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) network: String,
    pub(crate) container: String,
    pub(crate) interface: String,
}

impl Key {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            network: request.network.clone(),
            container: request.container_id.clone(),
            interface: request.interface.clone(),
        }
    }

    fn file(&self) -> String {
        format!("{}@{}@{}", self.network, self.container, self.interface)
    }

    fn parse(file: &str) -> Option<Self> {
        let mut parts = file.splitn(3, '@').map(str::to_owned);
        Some(Self { network: parts.next()?, container: parts.next()?, interface: parts.next()? })
    }
}

/// The records of one kind on this host, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    _lock: Flock<File>,
}

/// Where the records of a kind are. A host is its network namespace.
fn folder(kind: &str) -> io::Result<PathBuf> {
    let host = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new(ROOT).join(format!("{host}-{kind}")))
}

impl Records {
    /// Whether there is any record of that kind.
    pub(crate) fn exist(kind: &str) -> bool {
        folder(kind).is_ok_and(|folder| folder.exists())
    }

    /// The records of that kind.
    pub(crate) fn open(kind: &str) -> Result<Self, Failure> {
        let folder =
            folder(kind).map_err(|error| Failure::io("failed to look at the host's network namespace", &error))?;
        let failed = |error: &dyn std::error::Error| Failure::io(format!("failed to lock {}", folder.display()), error);
        loop {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|error| failed(&error))?;
            let mut file = match File::open(&folder) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(&error)),
            };
            let lock = loop {
                match Flock::lock(file, FlockArg::LockExclusive) {
                    Ok(lock) => break lock,
                    Err((back, Errno::EINTR)) => file = back,
                    Err((_, errno)) => return Err(failed(&errno)),
                }
            };
            // Whoever had it before may have removed it.
            if lock.metadata().map_err(|error| failed(&error))?.nlink() > 0 {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    pub(crate) fn write<T: Serialize>(&self, key: &Key, value: &T) -> Result<(), Failure> {
        let (path, beside) = (self.folder.join(key.file()), self.folder.join(".new"));
        let written = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(&serde_json::to_vec(value)?)?;
            fs::rename(&beside, &path)
        };
        written().map_err(|error| Failure::io(format!("failed to write {}", path.display()), &error))
    }

    /// What is on record of that attachment. One that makes no sense is none.
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &Key) -> Option<T> {
        serde_json::from_slice(&fs::read(self.folder.join(key.file())).ok()?).ok()
    }

    pub(crate) fn remove(&self, key: &Key) -> Result<(), Failure> {
        let path = self.folder.join(key.file());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Failure::io(format!("failed to remove {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Who has one.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        names.filter_map(|entry| Key::parse(entry.file_name().to_str()?)).collect()
    }

    /// Those of a request's network that a collection finds nobody to want any more.
    pub(crate) fn stale(&self, request: &Request) -> Vec<Key> {
        let mut keys = self.keys();
        keys.retain(|key| {
            let is = |valid: &estiba_network::cni::Valid| {
                valid.container_id == key.container && valid.interface == key.interface
            };
            key.network == request.network && !request.valid.iter().any(is)
        });
        keys
    }
}

impl Drop for Records {
    /// An empty folder goes with its last record.
    fn drop(&mut self) {
        let _ = fs::remove_file(self.folder.join(".new"));
        let _ = fs::remove_dir(&self.folder);
    }
}
