//! Hardware addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address of six bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Mac`] for a group address (an odd first byte) and for all zeros: no interface can have them.
    pub fn new(bytes: [u8; 6]) -> Result<Self> {
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(Error::Mac { text: Self(bytes).to_string() });
        }
        Ok(Self(bytes))
    }

    /// The locally administered address that belongs to an IP address. Whoever is given the same IP address later has
    /// the same hardware address, so that no neighbour remembers a wrong one.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        let tail = match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(address) => {
                let bytes = address.octets();
                std::array::from_fn(|i| (0..4).fold(0, |sum: u8, part| sum.rotate_left(3) ^ bytes[i + 4 * part]))
            }
        };
        let family = if address.is_ipv4() { 0x42 } else { 0x46 };
        Self([0x02, family, tail[0], tail[1], tail[2], tail[3]])
    }

    /// Its bytes in the order in which they are sent.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    /// Six hexadecimal bytes with colons or hyphens between them.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Mac { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Self::new(bytes)
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for MacAddress {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: MacAddress = "02:42:0a:58:00:02".parse().expect("an address");
        assert_eq!(mac.octets(), [2, 0x42, 10, 88, 0, 2]);
        assert_eq!(mac.to_string(), "02:42:0a:58:00:02");
        assert_eq!("02-42-0A-58-00-02".parse::<MacAddress>().expect("an address"), mac);
        for wrong in
            ["", "02:42:0a:58:00", "02:42:0a:58:00:02:03", "2:42:0a:58:00:02", "+2:42:0a:58:00:02", "01:00:00:00:00:00"]
        {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_same_for_the_same_address() {
        assert_eq!(MacAddress::of("10.88.0.2".parse().expect("an address")).to_string(), "02:42:0a:58:00:02");
        let of = |text: &str| MacAddress::of(text.parse().expect("an address"));
        assert_ne!(of("fd00::2"), of("fd00::3"));
        assert_eq!(of("fd00::2"), of("fd00::2"));
    }
}
