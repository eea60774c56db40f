//! The name of a container.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The name of a container: `[A-Za-z0-9_+-][A-Za-z0-9_+.-]*`, at most 1024 bytes.
///
/// It becomes a folder's name, so nothing that a path gives a meaning to is let in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId(String);

const LONGEST: usize = 1024;

impl ContainerId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-');
        let valid = text.len() <= LONGEST
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || byte == b'.');
        if valid { Ok(Self(text.to_owned())) } else { Err(Error::InvalidId { id: text.chars().take(64).collect() }) }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for ContainerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "A9", "_x", "+", "-x", "a.b", "a..b", &"x".repeat(1024)] {
            assert!(good.parse::<ContainerId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "a/b", "a b", "a\0", "ä", "a:b", &"x".repeat(1025)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
