//! What is written of a snapshot, in its own folder.

use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::{Error, Name, Result};

/// The file in each snapshot's folder.
pub(crate) const FILE: &str = "record.json";

/// The file beside it that says that all of the snapshot is on disk, though its record says otherwise.
pub(crate) const SYNCED: &str = "synced";

/// Largest record: 500 layers have about 5 KiB.
pub(crate) const MAX: usize = 1 << 20;

/// How the snapshot was made. That it is committed is told by the folder it lies in, so that one rename commits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Made {
    Active,
    /// Active, and its parent is named later.
    Late,
    View,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) made: Made,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<Name>,
    pub(crate) created: SystemTime,
    /// Short links of all ancestors, the parent's first. Committed snapshots never change and parents cannot be
    /// removed, so that the list stays true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lowers: Vec<String>,
    /// In which boot the snapshot was committed without a sync. After that boot it counts for nothing, unless it was synced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsynced: Option<String>,
    /// The short link of this snapshot, chosen when it is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<String>,
}

impl Record {
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|source| Error::DamagedRecord { path: path.to_owned(), source: Box::new(source) })
    }

    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|source| Error::DamagedRecord { path: path.to_owned(), source: Box::new(source) })?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
