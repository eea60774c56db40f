//! `portmap`: ports of the host that lead to the container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Failure, Success};
use estiba_network::firewall::Published;
use estiba_network::{Netlink, Protocol};
use serde::Deserialize;

use crate::firewall::{self, Asker, Held, Lead};
use crate::record::Key;
use crate::{about, config, sysctl};

#[derive(Debug)]
pub(crate) struct Portmap;

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default)]
    backend: Option<String>,
    #[serde(default, rename = "markMasqBit")]
    mark: Option<i64>,
    #[serde(default, rename = "externalSetMarkChain")]
    chain: Option<String>,
    #[serde(default, rename = "runtimeConfig", alias = "RuntimeConfig")]
    runtime: Option<Runtime>,
}

#[derive(Debug, Default, Deserialize)]
struct Runtime {
    #[serde(default, rename = "portMappings")]
    mappings: Option<Vec<Mapping>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(default)]
    host_port: i64,
    #[serde(default)]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_address: String,
}

fn load(request: &Request) -> Result<Config, Failure> {
    let config: Config = request.config()?;
    if config.mark.is_some() && config.chain.is_some() {
        return Err(Failure::config("Cannot specify externalSetMarkChain and markMasqBit"));
    }
    if config.mark.is_some_and(|bit| !(0..=31).contains(&bit)) {
        return Err(Failure::config("MasqMarkBit must be between 0 and 31"));
    }
    match config.backend.as_deref() {
        None | Some("" | "iptables" | "nftables") => Ok(config),
        Some(other) => Err(Failure::config(format!("unrecognized backend {other:?}"))),
    }
}

impl Config {
    fn mappings(&self) -> &[Mapping] {
        self.runtime.as_ref().and_then(|runtime| runtime.mappings.as_deref()).unwrap_or_default()
    }

    /// What is to be published, for the addresses of the container: the first one of each family.
    fn published(&self, addresses: &[IpAddr]) -> Result<Vec<Published>, Failure> {
        let mut all = Vec::new();
        for mapping in self.mappings() {
            let port = |number: i64, whose: &str| {
                u16::try_from(number)
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| Failure::config(format!("Invalid {whose} port number: {number}")))
            };
            let (container_port, host_port) =
                (port(mapping.container_port, "container")?, port(mapping.host_port, "host")?);
            let protocol: Protocol = match mapping.protocol.as_str() {
                "" => Protocol::Tcp,
                text => text.parse().map_err(|_| Failure::config(format!("invalid protocol {text:?}")))?,
            };
            let wanted: Option<IpAddr> = match mapping.host_address.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| Failure::config(format!("invalid hostIP {text:?}")))?),
            };
            for container in addresses {
                let any = if container.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                let host = wanted.unwrap_or(any);
                // ::1 cannot be translated; the reference plugin lets it alone as well.
                if host.is_ipv4() == container.is_ipv4() && !(host.is_ipv6() && host.is_loopback()) {
                    all.push(Published { protocol, host, host_port, container: *container, container_port });
                }
            }
        }
        Ok(all)
    }
}

/// The container's addresses: the first one of each family that is on this request's interface, or on none in particular.
fn addresses(request: &Request) -> Result<Vec<IpAddr>, Failure> {
    let success = request.previous()?;
    let mut found: Vec<IpAddr> = Vec::new();
    for ip in &success.ips {
        let on = ip.interface.and_then(|index| success.interfaces.get(index));
        let is_its = on.is_none_or(|interface| interface.name == request.interface && !interface.sandbox.is_empty());
        let address = ip.address.addr();
        if is_its && !found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            found.push(address);
        }
    }
    Ok(found)
}

impl Plugin for Portmap {
    fn about(&self) -> String {
        about("portmap")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let config = load(request)?;
        let success = request.previous()?.clone();
        if config.mappings().is_empty() {
            return Ok(success);
        }
        for field in ["conditionsV4", "conditionsV6", "externalSetMarkChain"] {
            config::unsupported(request, field)?;
        }
        let addresses = addresses(request)?;
        let published = config.published(&addresses)?;
        let Some(first) = addresses.first().filter(|_| !published.is_empty()) else { return Ok(success) };
        let way = firewall::way_to(&mut Netlink::open()?, *first)?;
        // The host's own programs reach 127.0.0.1 through that interface. Nobody else gets that far: the packet filter keeps 127.0.0.0/8 to
        // the host (CVE-2020-8558).
        let local =
            |port: &Published| matches!(port.host, IpAddr::V4(host) if host.is_unspecified() || host.is_loopback());
        let ports = published.iter().copied().map(Lead::from).collect();
        let subnets = if way.kind == "bridge" {
            firewall::subnets(&success.ips)
        } else {
            addresses.iter().map(|a| (*a).into()).collect()
        };
        let held = Held { interface: way.name.clone(), subnets, ports, ..Held::default() };
        firewall::hold(Asker::Portmap, &Key::of(request), &held)?;
        if config.snat.unwrap_or(true) && published.iter().any(local) {
            let setting = format!("net/ipv4/conf/{}/route_localnet", way.name);
            if let Err(error) = sysctl::set(&setting, "1") {
                let _ = firewall::release(Asker::Portmap, &Key::of(request));
                return Err(Failure::io("unable to enable route_localnet", &error));
            }
        }
        Ok(success)
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        firewall::release(Asker::Portmap, &Key::of(request))
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let config = load(request)?;
        let wanted: Vec<Lead> = config.published(&addresses(request)?)?.into_iter().map(Lead::from).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        match firewall::verify(Asker::Portmap, &Key::of(request))? {
            Some(held) if held.ports == wanted => Ok(()),
            _ => Err(Failure::internal("the ports are not published")),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        firewall::collect(Asker::Portmap, request)
    }
}
