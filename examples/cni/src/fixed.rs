//! `static`: addresses that the configuration names.

use std::net::IpAddr;

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Dns, Failure, IpConfig, Route, Success, Version, code};
use estiba_network::ipnet::IpNet;
use serde::Deserialize;

use crate::about;

#[derive(Debug)]
pub(crate) struct Static;

#[derive(Debug, Deserialize)]
struct Config {
    ipam: Option<Ipam>,
    #[serde(default, rename = "runtimeConfig", alias = "RuntimeConfig")]
    runtime: Option<Asked>,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Debug, Deserialize)]
struct Ipam {
    #[serde(default)]
    addresses: Option<Vec<Address>>,
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    dns: Option<Dns>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    address: String,
    #[serde(default)]
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    #[serde(default)]
    ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<Asked>,
}

/// The addresses: those asked for at run time are in the place of the configuration's.
fn load(request: &Request) -> Result<(Vec<IpConfig>, Ipam), Failure> {
    let config: Config = request.config()?;
    let ipam = config.ipam.ok_or_else(|| Failure::config("IPAM config missing 'ipam' key"))?;
    let mut ips = Vec::new();
    for entry in ipam.addresses.iter().flatten() {
        let gateway = match entry.gateway.as_deref() {
            None | Some("") => None,
            Some(text) => Some(gateway(text)?),
        };
        ips.push(IpConfig::new(cidr(&entry.address, "address")?, gateway));
    }
    let arguments = request.arguments(&["IP", "GATEWAY"])?;
    for (_, value) in arguments.iter().filter(|(key, _)| *key == "IP") {
        for text in value.split(',').map(str::trim) {
            ips.push(IpConfig::new(cidr(text, "ip")?, None));
        }
    }
    for (_, value) in arguments.iter().filter(|(key, _)| *key == "GATEWAY") {
        for text in value.split(',').map(str::trim) {
            let gateway = gateway(text)?;
            for ip in ips.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
                ip.gateway = Some(gateway);
            }
        }
    }
    // Later ones are in the place of earlier ones.
    let asked = [config.args.and_then(|args| args.cni), config.runtime];
    for texts in asked.into_iter().flatten().filter_map(|asked| asked.ips).filter(|texts| !texts.is_empty()) {
        let parsed = texts.iter().map(|text| Ok(IpConfig::new(asked_cidr(text)?, None)));
        ips = parsed.collect::<Result<_, Failure>>()?;
    }
    let count = |is_four: bool| ips.iter().filter(|ip| ip.address.addr().is_ipv4() == is_four).count();
    if request.version <= Version::V0_2_0 && (count(true) > 1 || count(false) > 1) {
        let message = format!("CNI version {} does not support more than 1 address per family", request.version);
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, message));
    }
    Ok((ips, ipam))
}

fn cidr(text: &str, field: &str) -> Result<IpNet, Failure> {
    text.parse()
        .map_err(|_| Failure::config(format!("the '{field}' field is expected to be in CIDR notation, got: '{text}'")))
}

fn asked_cidr(text: &str) -> Result<IpNet, Failure> {
    text.parse()
        .map_err(|_| Failure::config(format!("an entry in the 'ips' field is NOT in CIDR notation, got: '{text}'")))
}

fn gateway(text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| Failure::config(format!("invalid gateway address: {text}")))
}

impl Plugin for Static {
    fn about(&self) -> String {
        about("static")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let (ips, ipam) = load(request)?;
        let (routes, dns) = (ipam.routes.unwrap_or_default(), ipam.dns.unwrap_or_default());
        Ok(Success { ips, routes, dns, ..Success::default() })
    }

    fn del(&self, _: &Request) -> Result<(), Failure> {
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let (ips, _) = load(request)?;
        let there = &request.previous()?.ips;
        for ip in &ips {
            let found = there.iter().find(|found| found.address.addr() == ip.address.addr());
            if found.is_none_or(|found| ip.gateway.is_some() && ip.gateway != found.gateway) {
                let message = format!("static: failed to match addr {} on interface {}", ip.address, request.interface);
                return Err(Failure::internal(message));
            }
        }
        Ok(())
    }
}
