//! What is kept between runs: kernels and disks, each under a name that says what it was made from.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::Result;

#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self> {
        let of_the_user = || {
            let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let parent = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
            parent.map(|parent| parent.join("estiba-guests"))
        };
        let folder =
            folder.map(Path::to_owned).or_else(of_the_user).ok_or("there is no home folder: say --cache DIR")?;
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        Ok(Self { folder: fs::canonicalize(folder)? })
    }

    /// The path that `name` has, made by `make` at another path if it is not there yet. One process makes, others wait.
    pub(crate) fn get(&self, name: &str, make: impl FnOnce(&Path) -> Result) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        let lock = File::create(self.folder.join("lock"))?;
        let _alone = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        if path.exists() {
            return Ok(path);
        }
        let beside = tempfile::Builder::new().prefix(".making-").tempdir_in(&self.folder)?;
        let new = beside.path().join("new");
        make(&new)?;
        fs::rename(new, &path)?;
        Ok(path)
    }
}

/// The hexadecimal beginning of the SHA-256 of some texts.
pub(crate) fn fingerprint(of: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in of {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
