//! Published ports.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// [tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html)
    #[default]
    Tcp,
    /// [udp(7)](https://man7.org/linux/man-pages/man7/udp.7.html)
    Udp,
    /// [sctp(7)](https://man7.org/linux/man-pages/man7/sctp.7.html)
    Sctp,
}

impl Protocol {
    /// Its number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(Error::Port { text: text.to_owned(), reason: "the protocol is tcp, udp or sctp" }),
        }
    }
}

/// Ports of the host that lead to ports of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// The host's address: `0.0.0.0` and `::` are all of one family, and without an address it is all of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
    /// The first port on the host. Zero asks for free ones, which [`Endpoint::ports`](crate::Endpoint::ports) tells.
    pub host_port: u16,
    /// The first port in the container.
    pub container_port: u16,
    /// How many ports follow one another, from 1.
    #[serde(default = "one")]
    pub count: u16,
    /// Their protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

fn one() -> u16 {
    1
}

impl Default for PortMapping {
    /// One port, of which the container's number is to be filled in.
    fn default() -> Self {
        Self { host_address: None, host_port: 0, container_port: 0, count: 1, protocol: Protocol::Tcp }
    }
}

impl PortMapping {
    /// # Errors
    ///
    /// [`Error::Port`] if it is no port at all, or a range that goes beyond the last one.
    pub fn check(&self) -> Result<()> {
        let beyond = |first: u16| u32::from(first) + u32::from(self.count) > 0x1_0000;
        let reason = if self.container_port == 0 {
            "a container's port is from 1 to 65535"
        } else if self.count == 0 {
            "a range has at least one port"
        } else if beyond(self.container_port) || beyond(self.host_port) {
            "the range goes beyond port 65535"
        } else if matches!(self.host_address, Some(IpAddr::V6(address)) if address.is_loopback()) {
            "the kernel cannot translate ::1: publish it on 127.0.0.1 or another address of the host"
        } else {
            return Ok(());
        };
        Err(Error::Port { text: self.to_string(), reason })
    }
}

impl fmt::Display for PortMapping {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        let last = |first: u16| u32::from(first) + u32::from(self.count.max(1)) - 1;
        let range = |f: &mut fmt::Formatter<'_>, first| {
            if self.count > 1 { write!(f, "{first}-{}", last(first)) } else { write!(f, "{first}") }
        };
        if self.host_port != 0 {
            range(f, self.host_port)?;
            f.write_str(":")?;
        } else if self.host_address.is_some() {
            f.write_str(":")?;
        }
        range(f, self.container_port)?;
        write!(f, "/{}", self.protocol)
    }
}

impl FromStr for PortMapping {
    type Err = Error;

    /// `[[ADDRESS:][PORT[-LAST]]:]PORT[-LAST][/PROTOCOL]`, as Docker's `-p` takes it; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |reason| Error::Port { text: text.to_owned(), reason };
        let (rest, protocol) = match text.split_once('/') {
            Some((rest, protocol)) => (rest, protocol.parse().map_err(|_| wrong("the protocol is tcp, udp or sctp"))?),
            None => (text, Protocol::Tcp),
        };
        let (address, rest) = if let Some(bracketed) = rest.strip_prefix('[') {
            let (address, rest) = bracketed.split_once("]:").ok_or(wrong("a bracket is not closed"))?;
            (Some(address), rest)
        } else if rest.matches(':').count() > 1 {
            let (address, rest) = rest.split_once(':').ok_or(wrong("it has no port"))?;
            (Some(address), rest)
        } else {
            (None, rest)
        };
        let host_address = match address {
            None | Some("") => None,
            Some(address) => Some(address.parse::<IpAddr>().map_err(|_| wrong("the host's address is none"))?),
        };
        let (host, container) = match rest.split_once(':') {
            Some((host, container)) => (host, container),
            None if address.is_some() => return Err(wrong("the container's port is missing")),
            None => ("", rest),
        };
        let (container_port, count) = range(container).map_err(wrong)?;
        let (host_port, host_count) = if host.is_empty() { (0, count) } else { range(host).map_err(wrong)? };
        if host_count != count {
            return Err(wrong("the two ranges have different lengths"));
        }
        if !host.is_empty() && host_port == 0 {
            return Err(wrong("the host's port is from 1 to 65535; leave it out for a free one"));
        }
        let mapping = Self { host_address, host_port, container_port, count, protocol };
        mapping.check().map_err(|error| match error {
            Error::Port { reason, .. } => wrong(reason),
            other => other,
        })?;
        Ok(mapping)
    }
}

/// A port, or two with a hyphen between them: the first, and how many.
fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits).ok_or("a port is a number up to 65535")
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    let count = last.checked_sub(first).and_then(|more| more.checked_add(1));
    count.map(|count| (first, count)).ok_or("a range begins with its lower end")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_takes_them() {
        let of = |text: &str| text.parse::<PortMapping>().expect(text);
        let plain = PortMapping { container_port: 80, ..PortMapping::default() };
        assert_eq!(of("80"), plain);
        assert_eq!(of("8080:80"), PortMapping { host_port: 8080, ..plain.clone() });
        let four = Some(IpAddr::from([0; 4]));
        assert_eq!(of("0.0.0.0:8080:80"), PortMapping { host_address: four, host_port: 8080, ..plain.clone() });
        let local = Some(IpAddr::from([127, 0, 0, 1]));
        assert_eq!(of("127.0.0.1::80"), PortMapping { host_address: local, ..plain.clone() });
        let range = PortMapping { host_port: 8000, count: 11, protocol: Protocol::Udp, ..plain.clone() };
        assert_eq!(of("8000-8010:80-90/udp"), range);
        let six = Some("fd00::1".parse().expect("an address"));
        assert_eq!(
            of("[fd00::1]:5:80/sctp"),
            PortMapping { host_address: six, host_port: 5, protocol: Protocol::Sctp, ..plain }
        );
        for text in ["80/tcp", "8080:80/tcp", "127.0.0.1::80/tcp", "8000-8010:80-90/udp", "[fd00::1]:5:80/sctp"] {
            assert_eq!(of(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_port() {
        for text in [
            "",
            "x",
            "0",
            "65536",
            "+80",
            "80-",
            "90-80",
            "1:2:3:4",
            "8000-8001:80",
            "0:80",
            "80/icmp",
            "[fd00::1:80",
            "1.2.3.4:80",
            "256.1.1.1:1:1",
            "65535-65536:1-2",
            "[::1]:80:80",
            " 80",
            "80:",
            "65535:65535-65535-1",
        ] {
            let error = text.parse::<PortMapping>().expect_err(text);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
