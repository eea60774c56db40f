//! What the configurations of several plugins have in common.

use estiba_network::cni::plugin::Request;
use estiba_network::cni::{Command, Dns, Failure, Success, code};
use serde::Deserialize;

/// `ipam` and `dns` of a plugin that makes interfaces.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Common {
    #[serde(default)]
    ipam: Option<Delegate>,
    #[serde(default)]
    dns: Option<Resolver>,
}

/// `dns`, of which it counts whether a list is there, and empty, or is not.
#[derive(Debug, Default, Deserialize)]
struct Resolver {
    #[serde(default)]
    nameservers: Option<Vec<String>>,
    #[serde(default)]
    domain: Option<String>,
    #[serde(default)]
    search: Option<Vec<String>>,
    #[serde(default)]
    options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct Delegate {
    #[serde(default, rename = "type")]
    plugin: String,
}

impl Common {
    /// The plugin that keeps the addresses, if the interface is to have some.
    pub(crate) fn ipam(&self) -> Option<&str> {
        self.ipam.as_ref().map(|ipam| ipam.plugin.as_str()).filter(|plugin| !plugin.is_empty())
    }

    /// Has the IPAM plugin do what this plugin is asked; nothing without one.
    pub(crate) fn delegate(&self, request: &Request, command: Command) -> Result<(), Failure> {
        self.ipam().map_or(Ok(()), |plugin| request.delegate(plugin, command).map(drop))
    }

    /// Gets addresses from the IPAM plugin.
    pub(crate) fn reserve(&self, request: &Request) -> Result<Option<Success>, Failure> {
        let Some(plugin) = self.ipam() else { return Ok(None) };
        match request.delegate(plugin, Command::Add)? {
            Some(success) if !success.ips.is_empty() => Ok(Some(success)),
            _ => {
                let _ = request.delegate(plugin, Command::Del);
                Err(Failure::internal("IPAM plugin returned missing IP config"))
            }
        }
    }

    /// The configuration's own word on resolvers, where it has one, goes before the IPAM plugin's.
    pub(crate) fn resolve(&self, success: &mut Success) {
        let Some(own) = &self.dns else { return };
        let domain = own.domain.clone().unwrap_or_default();
        let lists = [&own.nameservers, &own.search, &own.options];
        if !domain.is_empty() || lists.iter().any(|list| list.is_some()) {
            let [nameservers, search, options] = lists.map(|list| list.clone().unwrap_or_default());
            success.dns = Dns { nameservers, domain, search, options };
        }
    }
}

/// A field that is set and that this plugin cannot do (specification, code 2).
pub(crate) fn unsupported(request: &Request, field: &str) -> Result<(), Failure> {
    use serde_json::Value;
    match request.fields.get(field) {
        None | Some(Value::Null | Value::Bool(false)) => Ok(()),
        Some(Value::Number(number)) if number.as_u64() == Some(0) => Ok(()),
        Some(value) => {
            Err(Failure::new(code::UNSUPPORTED_FIELD, format!("unsupported field {field:?} with the value {value}")))
        }
    }
}

/// The hardware address that is wanted: `runtimeConfig`, then `args.cni`, then `CNI_ARGS`, then `configured`.
pub(crate) fn wanted_mac(request: &Request, configured: &str) -> Result<Option<[u8; 6]>, Failure> {
    let field = |path: &[&str]| {
        let first = request.fields.get(path[0]);
        let found = path[1..].iter().fold(first, |value, key| value.and_then(|value| value.get(key)));
        found.and_then(serde_json::Value::as_str).filter(|text| !text.is_empty())
    };
    let arguments = request.arguments(&["MAC"])?;
    let text = field(&["runtimeConfig", "mac"])
        .or_else(|| field(&["RuntimeConfig", "mac"]))
        .or_else(|| field(&["args", "cni", "mac"]))
        .or_else(|| arguments.first().map(|(_, value)| *value))
        .unwrap_or(configured);
    if text.is_empty() { Ok(None) } else { parse_mac(text).map(Some) }
}

/// Six hexadecimal bytes with colons or hyphens between them.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Failure> {
    let wrong = || Failure::config(format!("invalid MAC address {text:?}"));
    let bytes: Vec<_> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2 && !part.starts_with('+')))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    bytes.try_into().map_err(|_| wrong())
}

/// As it stands in results.
pub(crate) fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(parse_mac("02:42:0A:58:00:02").expect("one"), [2, 0x42, 10, 88, 0, 2]);
        assert_eq!(mac_text(&[2, 0x42, 10, 88, 0, 2]), "02:42:0a:58:00:02");
        for wrong in
            ["", "02:42:0a:58:00", "02:42:0a:58:00:02:03", "2:42:0a:58:00:02", "+2:42:0a:58:00:02", "xx:42:0a:58:00:02"]
        {
            assert_eq!(parse_mac(wrong).expect_err(wrong).code, 7);
        }
    }
}
