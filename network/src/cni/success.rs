//! What ADD gives, in each version's JSON (specification, section 5).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::version::Version;

/// What ADD made of an attachment: the specification's *Success*, in the form of version 1.1.0. Fields that this crate
/// does not know are kept in `other` and handed on.
#[doc(alias = "Result")]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Success {
    /// The interfaces that were made, those on the host among them.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// The routes.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What a resolver needs to know.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Fields that are not known.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its hardware address; empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; 0 if not told. Since 1.1.0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The path of its namespace; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Fields that are not known, or that this crate makes nothing of (`socketPath`, `pciID`).
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Which of [`Success::interfaces`] has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address, with the length of its network's prefix.
    pub address: IpNet,
    /// The router of its network.
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl IpConfig {
    /// An address of no interface yet.
    #[must_use]
    pub fn new(address: IpNet, gateway: Option<IpAddr>) -> Self {
        Self { interface: None, address, gateway, other: Map::new() }
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// The next hop; without one, the gateway of an address of the same family.
    #[serde(default, deserialize_with = "optional_address", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU of the way there, in bytes; 0 if not told. Since 1.1.0, as all that follow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The segment size to advertise, in bytes; 0 if not told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// The metric: lower comes first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// The routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// How far the destination is: 0 anywhere, 253 on the link, 254 this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
    /// Fields that are not known.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Route {
    /// A route without anything special.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None, other: Map::new() }
    }
}

/// What a resolver needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of servers, the first one first.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Success {
    /// As a plugin of that version prints it.
    ///
    /// # Errors
    ///
    /// The reason why that version cannot say it: 0.2.0 and older need an address.
    pub fn to_json(&self, version: Version) -> Result<Value, String> {
        if version <= Version::V0_2_0 {
            return self.to_020(version);
        }
        let mut value = serde_json::to_value(self).map_err(|error| error.to_string())?;
        value["cniVersion"] = version.as_str().into();
        if version <= Version::V0_4_0 {
            for interface in elements(&mut value, "interfaces") {
                for newer in ["mtu", "socketPath", "pciID"] {
                    interface.remove(newer);
                }
            }
            for (entry, ip) in elements(&mut value, "ips").zip(&self.ips) {
                entry.insert("version".to_owned(), if ip.address.addr().is_ipv4() { "4" } else { "6" }.into());
            }
        }
        Ok(value)
    }

    fn to_020(&self, version: Version) -> Result<Value, String> {
        let mut value = json!({ "cniVersion": version.as_str() });
        for (key, v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4) else { continue };
            let mut entry = json!({ "ip": ip.address });
            if let Some(gateway) = ip.gateway {
                entry["gateway"] = json!(gateway);
            }
            let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == v4);
            let routes: Vec<_> = routes.map(|route| json!(Route::new(route.dst, route.gw))).collect();
            if !routes.is_empty() {
                entry["routes"] = routes.into();
            }
            value[key] = entry;
        }
        if value.get("ip4").or(value.get("ip6")).is_none() {
            return Err("cannot convert: no valid IP addresses".to_owned());
        }
        // Version 0.2.0 has it always.
        value["dns"] = json!(self.dns);
        Ok(value)
    }

    /// What a plugin of `version` has printed; a `cniVersion` of its own in it is the one that counts.
    ///
    /// # Errors
    ///
    /// The reason why it is no result.
    pub fn from_json(mut value: Value, version: Version) -> Result<Self, String> {
        let Some(object) = value.as_object_mut() else { return Err("it is no JSON object".to_owned()) };
        let version = match object.remove("cniVersion") {
            None | Some(Value::Null) => version,
            Some(Value::String(text)) if text.is_empty() => version,
            Some(Value::String(text)) => {
                text.parse().map_err(|error: super::version::UnknownVersion| error.to_string())?
            }
            Some(_) => return Err("its cniVersion is no text".to_owned()),
        };
        if version <= Version::V0_2_0 {
            return Self::from_020(object);
        }
        if version <= Version::V0_4_0 {
            for ip in elements(&mut value, "ips") {
                ip.remove("version");
            }
        }
        let success: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let count = success.interfaces.len();
        match success.ips.iter().find(|ip| ip.interface.is_some_and(|index| index >= count)) {
            Some(ip) => Err(format!("its address {} is on an interface that it does not list", ip.address)),
            None => Ok(success),
        }
    }

    fn from_020(object: &mut Map<String, Value>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Family {
            ip: IpNet,
            #[serde(default, deserialize_with = "optional_address")]
            gateway: Option<IpAddr>,
            #[serde(default, deserialize_with = "or_default")]
            routes: Vec<Route>,
        }
        let mut success = Self::default();
        for key in ["ip4", "ip6"] {
            let Some(family) = object.remove(key).filter(|value| !value.is_null()) else { continue };
            let family: Family = serde_json::from_value(family).map_err(|error| format!("{key}: {error}"))?;
            success.ips.push(IpConfig::new(family.ip, family.gateway));
            success.routes.extend(family.routes);
        }
        if let Some(dns) = object.remove("dns").filter(|value| !value.is_null()) {
            success.dns = serde_json::from_value(dns).map_err(|error| format!("dns: {error}"))?;
        }
        Ok(success)
    }
}

/// The objects of an array in an object.
fn elements<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// `null` is as good as absent: Go programs write it for empty lists.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// The empty text is as good as absent.
pub(crate) fn optional_address<'de, D: Deserializer<'de>>(input: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(input)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match text.parse::<IpAddr>() {
            Ok(address) => Ok(Some(address.to_canonical())),
            Err(_) => Err(D::Error::custom(format!("{text:?} is no IP address"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "cni0", "mac": "00:11:22:33:44:55" },
                { "name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1400, "sandbox": "/run/netns/blue", "pciID": "x" }
            ],
            "ips": [
                { "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1 },
                { "address": "fd00::5/64", "interface": 1 }
            ],
            "routes": [
                { "dst": "0.0.0.0/0", "priority": 5, "table": 100, "scope": 0 },
                { "dst": "::/0", "gw": "fd00::1" }
            ],
            "dns": { "nameservers": ["10.1.0.1"] },
            "vendor.example": { "kept": [1, 2.5, null] }
        })
    }

    #[test]
    fn nothing_is_lost_within_1_1() {
        let success = Success::from_json(example(), Version::V1_1_0).expect("it is one");
        assert_eq!(success.interfaces[1].mtu, 1400);
        assert_eq!(success.to_json(Version::V1_1_0).expect("it is one"), example());
    }

    #[test]
    fn older_versions_say_the_same_in_their_words() {
        let success = Success::from_json(example(), Version::V1_1_0).expect("it is one");
        let old = success.to_json(Version::V0_4_0).expect("it can be said");
        assert_eq!(old["cniVersion"], "0.4.0");
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        assert_eq!(old["interfaces"][1].get("mtu"), None);
        assert_eq!(old["interfaces"][1].get("pciID"), None);
        let back = Success::from_json(old, Version::V1_1_0).expect("its own version counts");
        assert_eq!(back.ips, success.ips);
        assert_eq!(back.routes, success.routes);

        let oldest = success.to_json(Version::V0_2_0).expect("it can be said");
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip4": { "ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }] },
            "ip6": { "ip": "fd00::5/64", "routes": [{ "dst": "::/0", "gw": "fd00::1" }] },
            "dns": { "nameservers": ["10.1.0.1"] }
        });
        assert_eq!(oldest, expected);
        let back = Success::from_json(oldest, Version::V0_2_0).expect("it is one");
        assert_eq!(back.ips.len(), 2);
        assert_eq!(back.routes[1].gw, Some("fd00::1".parse().expect("an address")));
        assert!(Success::default().to_json(Version::V0_2_0).is_err());
        assert!(Success::default().to_json(Version::V0_3_1).is_ok());
    }

    #[test]
    fn what_go_writes_for_nothing_is_nothing() {
        let value = json!({ "interfaces": null, "ips": [{ "address": "10.0.0.1/8", "gateway": "" }], "dns": {} });
        let success = Success::from_json(value, Version::V1_0_0).expect("it is one");
        assert_eq!(success.ips[0].gateway, None);
        assert!(success.interfaces.is_empty());
        assert_eq!(success.to_json(Version::V1_0_0).expect("it is one").get("dns"), None);
    }

    #[test]
    fn wrong_results_are_refused() {
        for wrong in [
            json!([]),
            json!({ "cniVersion": "9.9.9" }),
            json!({ "cniVersion": 1 }),
            json!({ "ips": [{ "address": "10.0.0.1" }] }),
            json!({ "ips": [{ "address": "10.0.0.1/33" }] }),
            json!({ "ips": [{ "address": "10.0.0.1/+8" }] }),
            json!({ "ips": [{ "address": "10.0.0.1/8", "interface": 0 }] }),
            json!({ "ips": [{ "address": "10.0.0.1/8", "interface": -1 }] }),
            json!({ "routes": [{ "dst": "::/129" }] }),
            json!({ "routes": [{ "dst": "::/0", "gw": "nowhere" }] }),
            json!({ "interfaces": 5 }),
        ] {
            assert!(Success::from_json(wrong.clone(), Version::V1_1_0).is_err(), "{wrong}");
        }
    }
}
