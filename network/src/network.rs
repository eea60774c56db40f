//! What a network is: data, made once, written down by its owner.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The definition of a network. A [`Driver`](crate::Driver) completes it when it is created; nothing changes it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is an independent choice that its user makes by name")]
pub struct Network {
    /// What people call it: letters, digits, `_`, `.` and `-`, beginning with a letter or digit.
    pub name: String,
    /// What programs call it; the same rules. The driver names files and interfaces after it.
    pub id: String,
    /// The driver's name: `bridge`, `macvlan`, `none`, `host`, or another's.
    pub driver: String,
    /// The interface on the host: the bridge's name, or what a macvlan lies on. A bridge without one gets one of its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where addresses come from: an endpoint gets one of each address family.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// The largest packet, in bytes; without it, the host's usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// No way out and no way in: no default route, no address translation, no published ports.
    #[serde(default)]
    pub internal: bool,
    /// Whether containers of other networks are kept out, except from published ports.
    #[serde(default = "yes")]
    pub isolate: bool,
    /// Whether containers of the network reach one another.
    #[serde(default = "yes")]
    pub switch: bool,
    /// Whether what leaves through the host carries the host's address.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// The driver's own options, by name.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The owner's notes.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

impl Default for Network {
    /// A bridge network, isolated, with translation to the outside, without name and subnets.
    fn default() -> Self {
        Self {
            name: String::new(),
            id: String::new(),
            driver: "bridge".to_owned(),
            interface: None,
            subnets: Vec::new(),
            mtu: None,
            internal: false,
            isolate: true,
            switch: true,
            masquerade: true,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }
}

impl Network {
    /// The network of that name, with the driver of the same name: `none` and `host` need no more.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), id: name.to_owned(), driver: name.to_owned(), ..Self::default() }
    }

    /// # Errors
    ///
    /// [`Error::Definition`] or [`Error::Subnet`]: what in it can never be.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason| Error::Definition { network: self.name.clone(), reason };
        if !is_name(&self.name) || !is_name(&self.id) {
            return Err(wrong(
                "names have letters, digits, '_', '.' and '-', begin with a letter or digit, and have 128 at most",
            ));
        }
        if self.interface.as_deref().is_some_and(|name| !is_interface_name(name)) {
            return Err(wrong("an interface's name has 15 bytes at most, without '/', ':', '%' and spaces"));
        }
        // 68 and 1280 are the least that IPv4 (RFC 791) and IPv6 (RFC 8200) work with.
        let least = if self.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv6()) { 1280 } else { 68 };
        if self.mtu.is_some_and(|mtu| !(least..=65535).contains(&mtu)) {
            return Err(wrong("the MTU is from 68 (1280 with IPv6) to 65535"));
        }
        for (at, subnet) in self.subnets.iter().enumerate() {
            subnet.check()?;
            if let Some(other) = self.subnets[..at].iter().find(|other| other.overlaps(subnet)) {
                return Err(Error::Overlap { subnet: subnet.subnet, other: other.subnet, network: self.name.clone() });
            }
        }
        Ok(())
    }

    /// Whether it has addresses of that family.
    pub(crate) fn has(&self, family: Family) -> bool {
        self.subnets.iter().any(|subnet| Family::of(subnet.subnet.addr()) == family)
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Addresses that are given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// All of them.
    pub subnet: IpNet,
    /// The host's, or the router's; a bridge network's gets the first one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The first one that is given out; without it, the first of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<IpAddr>,
    /// The last one that is given out; without it, the last of the subnet (before the broadcast address).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<IpAddr>,
    /// Never given out unless somebody asks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved: Vec<IpAddr>,
}

impl Subnet {
    /// All addresses of a subnet.
    #[must_use]
    pub fn new(subnet: IpNet) -> Self {
        Self { subnet: subnet.trunc(), gateway: None, first: None, last: None, reserved: Vec::new() }
    }

    /// # Errors
    ///
    /// [`Error::Subnet`] if it is too small, or an address lies outside.
    pub fn check(&self) -> Result<()> {
        let wrong = |reason| Error::Subnet { subnet: self.subnet, reason };
        if self.subnet.max_prefix_len() - self.subnet.prefix_len() < 2 {
            return Err(wrong("it has no room for a gateway and a container: /30 and /126 are the smallest"));
        }
        if self.subnet != self.subnet.trunc() {
            return Err(wrong("it has bits set behind the prefix"));
        }
        if self.subnet.addr().is_multicast() || self.subnet.addr().is_loopback() {
            return Err(wrong("it is no range for hosts"));
        }
        let inside = |address: &IpAddr| self.usable(*address);
        if !self.gateway.iter().chain(&self.first).chain(&self.last).chain(&self.reserved).all(inside) {
            return Err(wrong("an address that goes with it lies outside, or is the network's own"));
        }
        if self.first() > self.last() {
            return Err(wrong("the first address comes after the last"));
        }
        Ok(())
    }

    /// Whether a container can have that address.
    #[must_use]
    pub fn usable(&self, address: IpAddr) -> bool {
        let broadcast = self.subnet.addr().is_ipv4() && address == self.subnet.broadcast();
        self.subnet.contains(&address) && address != self.subnet.network() && !broadcast
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.subnet.contains(&other.subnet) || other.subnet.contains(&self.subnet)
    }

    /// The first address that is given out.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first.unwrap_or_else(|| add(self.subnet.network(), 1))
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let end = self.subnet.broadcast();
        self.last.unwrap_or_else(|| if end.is_ipv4() { add(end, u128::MAX) } else { end })
    }
}

/// `address` plus `offset`, around the end of its family.
pub(crate) fn add(address: IpAddr, offset: u128) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(address.to_bits().wrapping_add(offset as u32).into()),
        IpAddr::V6(address) => IpAddr::V6(address.to_bits().wrapping_add(offset).into()),
    }
}

/// What files and records are named after: no path can be built of it.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 128
        && text.bytes().all(allowed)
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// What the kernel (`dev_valid_name`) takes, and no shell or tool stumbles over.
pub(crate) fn is_interface_name(text: &str) -> bool {
    (1..16).contains(&text.len())
        && text != "."
        && text != ".."
        && text != "all"
        && text != "default"
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::new(text.parse().expect("a subnet"))
    }

    #[test]
    fn the_addresses_of_a_subnet() {
        let four = subnet("10.1.2.0/24");
        assert_eq!((four.first().to_string(), four.last().to_string()), ("10.1.2.1".into(), "10.1.2.254".into()));
        let six = subnet("fd00:1::/64");
        assert_eq!(six.first().to_string(), "fd00:1::1");
        assert_eq!(six.last().to_string(), "fd00:1::ffff:ffff:ffff:ffff");
        assert!(!four.usable("10.1.2.255".parse().expect("an address")));
        assert!(!four.usable("10.1.3.1".parse().expect("an address")));
    }

    #[test]
    fn what_can_never_be() {
        let with = |subnets: &[&str]| Network {
            subnets: subnets.iter().map(|text| subnet(text)).collect(),
            ..Network::named("n")
        };
        assert!(with(&["10.1.2.0/24", "fd00::/64", "10.1.3.0/24"]).check().is_ok());
        assert!(matches!(with(&["10.1.0.0/16", "10.1.3.0/24"]).check(), Err(Error::Overlap { .. })));
        assert!(matches!(with(&["10.1.0.0/31"]).check(), Err(Error::Subnet { .. })));
        assert!(matches!(with(&["224.0.0.0/24"]).check(), Err(Error::Subnet { .. })));
        let outside = Subnet { gateway: Some("10.9.9.9".parse().expect("an address")), ..subnet("10.1.0.0/24") };
        assert!(matches!(outside.check(), Err(Error::Subnet { .. })));
        let untruncated = Subnet { subnet: "10.1.0.7/24".parse().expect("a subnet"), ..subnet("10.1.0.0/24") };
        assert!(matches!(untruncated.check(), Err(Error::Subnet { .. })));
        for name in ["", "..", "a/b", "-x", "a b", "ü"] {
            assert!(matches!(Network::named(name).check(), Err(Error::Definition { .. })), "{name}");
        }
        for interface in ["", "sixteen-letters-", "a/b", "..", "all"] {
            let network = Network { interface: Some(interface.to_owned()), ..Network::named("n") };
            assert!(network.check().is_err(), "{interface}");
        }
    }

    #[test]
    fn a_definition_is_read_as_written() {
        let network = Network { subnets: vec![subnet("10.1.2.0/24")], mtu: Some(1400), ..Network::named("n") };
        let text = serde_json::to_string(&network).expect("written");
        assert_eq!(serde_json::from_str::<Network>(&text).expect("read"), network);
        let short: Network = serde_json::from_str(r#"{"name":"n","id":"n","driver":"bridge"}"#).expect("read");
        assert!(short.isolate && short.switch && short.masquerade && !short.internal);
        assert!(serde_json::from_str::<Network>(r#"{"name":"n","id":"n","driver":"b","typo":1}"#).is_err());
    }
}
