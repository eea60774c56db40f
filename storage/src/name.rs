//! The names of snapshots.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest key or name in bytes: it is a file name with room for a suffix.
const MAX: usize = 200;

/// The name of an active snapshot or a view: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 200 bytes.
///
/// ```
/// use estiba_storage::Key;
/// assert!("web-1".parse::<Key>().is_ok());
/// assert!("../etc".parse::<Key>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// The name of a committed snapshot: a [`Key`]'s characters and `:`, so that a chain id (`sha256:…`) is one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The name of a volume: a [`Key`]'s characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// Either kind of snapshot. Keys and names are two spaces: a key and a name may be spelled alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotId {
    /// An active snapshot or a view.
    Key(Key),
    /// A committed snapshot.
    Name(Name),
}

fn check(kind: &'static str, value: &str, extra: &[u8]) -> Result<()> {
    let bad = |reason| Error::InvalidId { kind, value: value.chars().take(MAX + 1).collect(), reason };
    match value.as_bytes() {
        [] => Err(bad("it is empty")),
        all if all.len() > MAX => Err(bad("it is longer than 200 bytes")),
        [first, ..] if !first.is_ascii_alphanumeric() => Err(bad("it does not start with a letter or digit")),
        all => match all.iter().find(|b| !b.is_ascii_alphanumeric() && !b"_.-".contains(b) && !extra.contains(b)) {
            Some(_) => Err(bad("it has a character outside A-Z a-z 0-9 _ . -")),
            None => Ok(()),
        },
    }
}

macro_rules! id {
    ($type:ident, $kind:literal, $extra:literal) => {
        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = Error;
            fn from_str(value: &str) -> Result<Self> {
                check($kind, value, $extra)?;
                Ok(Self(value.to_owned()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(value: String) -> Result<Self> {
                check($kind, &value, $extra)?;
                Ok(Self(value))
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
macro_rules! snapshot_id {
    ($type:ident, $kind:literal, $extra:literal) => {
        id!($type, $kind, $extra);
        impl From<$type> for SnapshotId {
            fn from(id: $type) -> Self {
                SnapshotId::$type(id)
            }
        }
        impl From<&$type> for SnapshotId {
            fn from(id: &$type) -> Self {
                SnapshotId::$type(id.clone())
            }
        }
    };
}
snapshot_id!(Key, "snapshot key", b"");
snapshot_id!(Name, "snapshot name", b":");
id!(VolumeName, "volume name", b"");

impl Key {
    pub(crate) fn file_name(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// `:` separates overlay's lower folders, so it becomes `+`, which no name contains.
    pub(crate) fn file_name(&self) -> String {
        self.0.replace(':', "+")
    }

    pub(crate) fn from_file_name(file: &str) -> Option<Self> {
        if file.contains(':') {
            return None;
        }
        file.replace('+', ":").parse().ok()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotId::Key(key) => key.fmt(f),
            SnapshotId::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names() {
        let long = "a".repeat(200);
        let too_long = "a".repeat(201);
        for (value, key, name) in [
            ("a", true, true),
            ("0a.b_c-d", true, true),
            ("sha256:ab", false, true),
            (long.as_str(), true, true),
            (too_long.as_str(), false, false),
            ("", false, false),
            (".", false, false),
            ("..", false, false),
            (".a", false, false),
            (":a", false, false),
            ("a/b", false, false),
            ("a+b", false, false),
            ("a\0", false, false),
            ("a b", false, false),
            ("é", false, false),
        ] {
            assert_eq!(value.parse::<Key>().is_ok(), key, "{value:?}");
            assert_eq!(value.parse::<Name>().is_ok(), name, "{value:?}");
        }
    }

    #[test]
    fn file_names_go_both_ways() {
        let name: Name = "sha256:0123".parse().expect("a name");
        assert_eq!(name.file_name(), "sha256+0123");
        assert_eq!(Name::from_file_name("sha256+0123"), Some(name));
        assert_eq!(Name::from_file_name("sha256:0123"), None);
        assert_eq!(Name::from_file_name("..+"), None);
    }
}
