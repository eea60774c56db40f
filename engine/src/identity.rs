//! Ids and names of containers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A container's id: 64 lower-case hexadecimal digits, random.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// A new random id.
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes)
            .map_err(|source| Error::Random { source: std::io::Error::other(source.to_string()) })?;
        Ok(Self(bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit).collect()))
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the runtime and the shim know it.
    pub(crate) fn runtime_id(&self) -> Result<estiba_runtime::ContainerId> {
        self.0.parse().map_err(|source| Error::Runtime { id: self.clone(), source: Box::new(source) })
    }

    /// The key of its root file system's snapshot.
    pub(crate) fn snapshot_key(&self) -> Result<estiba_storage::Key> {
        self.0.parse().map_err(|source| Error::Snapshot {
            operation: "name",
            snapshot: self.to_string(),
            source: Box::new(source),
        })
    }

    /// The first 12 digits, as listings and the default host name show them.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 })
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Id { id: text.to_owned() })
        }
    }
}

impl TryFrom<String> for Id {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

/// A container's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

impl ContainerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name for a container that was given none: two words that the id chooses, and four of its digits.
    pub(crate) fn from_id(id: &Id) -> Self {
        let bytes = id.as_str().as_bytes();
        let pick = |at: usize, words: &[&'static str]| {
            words[(usize::from(bytes[at]) * 256 + usize::from(bytes[at + 1])) % words.len()]
        };
        Self(format!("{}-{}-{}", pick(60, &ADJECTIVES), pick(62, &NOUNS), &id.as_str()[..4]))
    }
}

const ADJECTIVES: [&str; 23] = [
    "able", "blue", "bold", "calm", "clear", "deep", "dry", "fast", "fine", "firm", "free", "full", "green", "keen",
    "light", "long", "north", "quick", "quiet", "red", "sound", "spare", "tight",
];
const NOUNS: [&str; 23] = [
    "anchor", "bale", "barge", "barrel", "beam", "berth", "bow", "cargo", "chest", "crane", "deck", "dock", "hatch",
    "hold", "hull", "jib", "keel", "locker", "mast", "pallet", "quay", "rope", "sling",
];

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if first && rest && (2..=128).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Name { name: text.to_owned() })
        }
    }
}

impl TryFrom<String> for ContainerName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_and_checked() {
        let (one, two) = (Id::random().expect("random"), Id::random().expect("random"));
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse::<Id>().expect("its own text"), one);
        for bad in ["", "abc", "../../../../etc", &"A".repeat(64), &"a".repeat(65)] {
            assert!(bad.parse::<Id>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["ab", "a_b.c-d", "0x"] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good} was refused");
        }
        for bad in ["", "a", "-ab", ".ab", "a/b", "a b", "..", &"a".repeat(129)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad} was taken");
        }
        let id = Id::random().expect("random");
        assert!(ContainerName::from_id(&id).as_str().parse::<ContainerName>().is_ok());
    }
}
