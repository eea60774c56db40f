//! What ADD gave, kept for CHECK, DEL and GC, in the place and form of libcni (`cniCacheV1`), so that each can undo what
//! the other has done.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::Network;
use super::runner::Attachment;
use super::success::{Success, or_default};
use crate::error::{Error, Result};

const KIND: &str = "cniCacheV1";
/// Far more than a result and its configuration have.
const FILE_MAX: u64 = 16 << 20;

/// An attachment that is on record.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// The network's name.
    pub network: String,
    /// With what it was made.
    pub attachment: Attachment,
    /// The network's configuration at that time.
    pub config: Vec<u8>,
    /// What the last plugin of the chain gave, as it was.
    pub result: Value,
}

impl Cached {
    /// The result in the form of the newest version.
    ///
    /// # Errors
    ///
    /// [`Error::CacheContent`] if it is none.
    pub fn success(&self) -> Result<Success> {
        Success::from_json(self.result.clone(), super::Version::LATEST)
            .map_err(|reason| Error::CacheContent { path: PathBuf::from(&self.network), reason })
    }
}

/// libcni's `cachedInfo`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    kind: String,
    container_id: String,
    /// Base64, as Go writes bytes.
    #[serde(default, deserialize_with = "or_default")]
    config: String,
    if_name: String,
    network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    cni_args: Vec<(String, String)>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Map::is_empty")]
    capability_args: Map<String, Value>,
    #[serde(default)]
    result: Value,
}

/// The folder `results` of a cache.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(super) fn new(cache: &Path) -> Self {
        Self { folder: cache.join("results") }
    }

    /// Locks the folder, making it if need be: shared for work on an attachment, alone for a collection. The lock goes with the file.
    pub(super) fn lock(&self, lock: FlockArg) -> Result<Flock<File>> {
        let failed = |source| Error::CacheFile { operation: "lock", path: self.folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let mut folder = File::open(&self.folder).map_err(failed)?;
        loop {
            match Flock::lock(folder, lock) {
                Ok(locked) => return Ok(locked),
                Err((back, Errno::EINTR)) => folder = back,
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    fn path(&self, network: &str, attachment: &Attachment) -> PathBuf {
        self.folder.join(format!("{network}-{}-{}", attachment.container_id, attachment.interface))
    }

    pub(super) fn write(&self, network: &Network, attachment: &Attachment, result: &Value) -> Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let entry = Entry {
            kind: KIND.to_owned(),
            container_id: attachment.container_id.clone(),
            config: base64(&network.bytes),
            if_name: attachment.interface.clone(),
            network_name: network.name.clone(),
            netns: attachment.netns.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            cni_args: attachment.args.clone(),
            capability_args: attachment.capabilities.clone(),
            result: result.clone(),
        };
        let path = self.path(&network.name, attachment);
        // Its name has no network's first character, so it is nobody's entry.
        let unique = format!(".{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let beside = self.folder.join(unique);
        let written = || -> io::Result<()> {
            let bytes = serde_json::to_vec(&entry)?;
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(&bytes)?;
            fs::rename(&beside, &path)
        };
        written().map_err(|source| {
            let _ = fs::remove_file(&beside);
            Error::CacheFile { operation: "write", path, source }
        })
    }

    /// The entry of an attachment, if there is one.
    pub(super) fn read(&self, network: &str, attachment: &Attachment) -> Result<Option<Cached>> {
        read(&self.path(network, attachment))
    }

    pub(super) fn remove(&self, network: &str, attachment: &Attachment) -> Result<()> {
        let path = self.path(network, attachment);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::CacheFile { operation: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// All entries in the order of their names, without those that are none.
    pub(super) fn all(&self) -> Result<Vec<Cached>> {
        let failed = |source| Error::CacheFile { operation: "list", path: self.folder.clone(), source };
        let listing = match fs::read_dir(&self.folder) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut paths = Vec::new();
        for entry in listing {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.sort();
        let hidden = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        Ok(paths.iter().filter(|path| !hidden(path)).filter_map(|path| read(path).ok().flatten()).collect())
    }

    /// Removes what writers have left that were killed. Only for who has the lock alone.
    pub(super) fn sweep(&self) {
        let Ok(listing) = fs::read_dir(&self.folder) else { return };
        for entry in listing.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn read(path: &Path) -> Result<Option<Cached>> {
    let failed = |source| Error::CacheFile { operation: "read", path: path.to_owned(), source };
    let wrong = |reason: String| Error::CacheContent { path: path.to_owned(), reason };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let entry: Entry = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    if entry.kind != KIND {
        return Err(wrong(format!("its kind is {:?}, not {KIND:?}", entry.kind)));
    }
    let config = unbase64(&entry.config).ok_or_else(|| wrong("its config is not base64".to_owned()))?;
    let attachment = Attachment {
        container_id: entry.container_id,
        netns: Some(entry.netns).filter(|path| !path.is_empty()).map(PathBuf::from),
        interface: entry.if_name,
        args: entry.cni_args,
        capabilities: entry.capability_args,
    };
    Ok(Some(Cached { network: entry.network_name, attachment, config, result: entry.result }))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0, |all, (index, byte)| all | u32::from(*byte) << (16 - 8 * index));
        for index in 0..4 {
            let letter = ALPHABET[(group >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let letters = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    let (mut bytes, mut group, mut bits) = (Vec::with_capacity(letters.len()), 0_u32, 0);
    for letter in letters {
        let value = ALPHABET.iter().position(|known| known == letter)?;
        group = group << 6 | value as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((group >> bits & 255) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_go_s() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("{\"a\":1}\n", "eyJhIjoxfQo=")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
            assert_eq!(unbase64(text).as_deref(), Some(bytes.as_bytes()));
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unbase64(&base64(&all)), Some(all));
        for wrong in ["Z", "Zg=", "Z===", "Z*==", "Zg==Zg=="] {
            assert_eq!(unbase64(wrong), None, "{wrong}");
        }
    }
}
