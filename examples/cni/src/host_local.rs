//! `host-local`: addresses of ranges, given out once each on this host.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Dns, Failure, IpConfig, Route, Success, Version, code};
use estiba_network::ipam::{HostLocal as Leases, Owner};
use estiba_network::ipnet::IpNet;
use estiba_network::{Error, Ipam as _, Subnet};
use serde::Deserialize;

use crate::about;

/// Where leases are, a folder for each network.
const LEASES: &str = "/var/lib/cni/networks";

#[derive(Debug)]
pub(crate) struct HostLocal;

#[derive(Debug, Deserialize)]
struct Config {
    ipam: Option<Ipam>,
    #[serde(default, rename = "runtimeConfig", alias = "RuntimeConfig")]
    runtime: Option<Runtime>,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(flatten)]
    range: Range,
    #[serde(default)]
    routes: Option<Vec<Route>>,
    #[serde(default)]
    data_dir: Option<String>,
    #[serde(default)]
    resolv_conf: Option<String>,
    #[serde(default)]
    ranges: Option<Vec<Vec<Range>>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Range {
    #[serde(default)]
    subnet: Option<String>,
    #[serde(default, rename = "rangeStart")]
    first: Option<String>,
    #[serde(default, rename = "rangeEnd")]
    last: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    #[serde(default)]
    ip_ranges: Option<Vec<Vec<Range>>>,
    #[serde(default)]
    ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<Runtime>,
}

impl Range {
    fn subnet(&self) -> Result<Subnet, Failure> {
        let text = self.subnet.as_deref().unwrap_or_default();
        let wrong = |reason: &str| Failure::config(format!("invalid range {text:?}: {reason}"));
        let subnet: IpNet = text.parse().map_err(|_| wrong("it is no subnet, such as 10.1.0.0/16"))?;
        if subnet != subnet.trunc() {
            let network = subnet.trunc();
            return Err(wrong(&format!("Network has host bits set, the network address is {}", network.addr())));
        }
        let address = |field: &Option<String>, name: &str| match field.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => match text.parse::<IpAddr>() {
                Ok(address) => Ok(Some(address.to_canonical())),
                Err(_) => Err(wrong(&format!("{name} {text:?} is no address"))),
            },
        };
        let subnet = Subnet {
            gateway: address(&self.gateway, "gateway")?,
            first: address(&self.first, "rangeStart")?,
            last: address(&self.last, "rangeEnd")?,
            ..Subnet::new(subnet)
        };
        subnet.check().map_err(|error| wrong(&error.to_string()))?;
        Ok(subnet)
    }
}

/// The pools with their leases, and the addresses that are asked for.
struct Loaded {
    leases: Leases,
    wanted: Vec<IpAddr>,
    routes: Vec<Route>,
    dns: Dns,
}

fn load(request: &Request) -> Result<Loaded, Failure> {
    let config: Config = request.config()?;
    let ipam = config.ipam.ok_or_else(|| Failure::config("IPAM config missing 'ipam' key"))?;
    let runtime = config.runtime.unwrap_or_default();
    let given = config.args.and_then(|args| args.cni).and_then(|given| given.ips);
    let arguments = request.arguments(&["IP"])?;
    let texts = arguments.iter().map(|(_, value)| *value).chain(given.iter().flatten().map(String::as_str));
    let mut wanted = Vec::new();
    for text in texts.chain(runtime.ips.iter().flatten().map(String::as_str)) {
        // A prefix is no matter: the range has one.
        let address = text.split('/').next().unwrap_or_default().parse::<IpAddr>();
        let address = address.map_err(|_| Failure::config(format!("cannot understand ip: {text:?}")))?.to_canonical();
        if !wanted.contains(&address) {
            wanted.push(address);
        }
    }
    let mut pools = runtime.ip_ranges.unwrap_or_default();
    if ipam.range.subnet.as_deref().is_some_and(|subnet| !subnet.is_empty()) {
        pools.push(vec![ipam.range]);
    }
    pools.extend(ipam.ranges.unwrap_or_default());
    let pools: Vec<Vec<Subnet>> =
        pools.iter().map(|pool| pool.iter().map(Range::subnet).collect()).collect::<Result<_, _>>()?;
    check(&pools, request.version)?;
    let folder = ipam.data_dir.filter(|folder| !folder.is_empty()).unwrap_or_else(|| LEASES.to_owned());
    let dns = match ipam.resolv_conf.filter(|path| !path.is_empty()) {
        Some(path) => resolv_conf(Path::new(&path))?,
        None => Dns::default(),
    };
    let leases = Leases { folder: PathBuf::from(folder).join(&request.network), pools };
    Ok(Loaded { leases, wanted, routes: ipam.routes.unwrap_or_default(), dns })
}

fn check(pools: &[Vec<Subnet>], version: Version) -> Result<(), Failure> {
    if pools.is_empty() {
        return Err(Failure::config("no IP ranges specified"));
    }
    let is_four = |subnet: &Subnet| subnet.subnet.addr().is_ipv4();
    for (number, pool) in pools.iter().enumerate() {
        let Some(first) = pool.first() else {
            return Err(Failure::config(format!("invalid range set {number}: it is empty")));
        };
        if pool.iter().any(|subnet| is_four(subnet) != is_four(first)) {
            return Err(Failure::config(format!("invalid range set {number}: mixed address families")));
        }
    }
    let count = |four: bool| pools.iter().filter(|pool| pool.first().is_some_and(is_four) == four).count();
    if version <= Version::V0_2_0 && (count(true) > 1 || count(false) > 1) {
        let message = format!("CNI version {version} does not support more than 1 address per family");
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, message));
    }
    let all: Vec<_> = pools.iter().enumerate().flat_map(|(n, pool)| pool.iter().map(move |range| (n, range))).collect();
    for (at, (number, range)) in all.iter().enumerate() {
        let overlap = |(_, other): &&(usize, &Subnet)| {
            range.subnet.addr().is_ipv4() == other.subnet.addr().is_ipv4()
                && range.first() <= other.last()
                && other.first() <= range.last()
        };
        if let Some((other, _)) = all[..at].iter().find(overlap) {
            return Err(Failure::config(format!("range set {other} overlaps with {number}")));
        }
    }
    Ok(())
}

/// What a file in the form of resolv.conf(5) says.
fn resolv_conf(path: &Path) -> Result<Dns, Failure> {
    let text =
        fs::read_to_string(path).map_err(|error| Failure::io(format!("failed to read {}", path.display()), &error))?;
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    Ok(dns)
}

fn owner(request: &Request) -> Owner {
    Owner { container: request.container_id.clone(), interface: request.interface.clone() }
}

impl Plugin for HostLocal {
    fn about(&self) -> String {
        about("host-local")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let Loaded { leases, wanted, routes, dns } = load(request)?;
        let mut used = BTreeSet::new();
        for address in &wanted {
            let inside = |range: &&Subnet| (range.first()..=range.last()).contains(address);
            let found = leases.pools.iter().enumerate().find_map(|(n, pool)| Some((n, pool.iter().find(inside)?)));
            // Each pool gives one.
            let Some((_, range)) = found.filter(|(number, _)| used.insert(*number)) else {
                return Err(Failure::config(format!("failed to allocate all requested IPs: {address}")));
            };
            if range.gateway() == *address {
                return Err(Failure::config(format!("requested ip {address} is subnet's gateway")));
            }
        }
        let owner = owner(request);
        if let Some(lease) = leases.owned_by(&owner)?.first().filter(|_| wanted.is_empty()) {
            let address = lease.address.addr();
            let message =
                format!("{address} has been allocated to {}, duplicate allocation is not allowed", owner.container);
            return Err(Failure::internal(message));
        }
        let given = leases.reserve(&owner, &wanted).map_err(|error| match error {
            Error::Exhausted { .. } => {
                let pools = leases.pools.iter().flatten();
                let ranges: Vec<_> = pools.map(|range| format!("{}-{}", range.first(), range.last())).collect();
                let message = format!("no IP addresses available in range set: {}", ranges.join(","));
                Failure::new(code::TRY_AGAIN, message)
            }
            error => error.into(),
        })?;
        let ips = given.into_iter().map(|lease| IpConfig::new(lease.address, lease.gateway)).collect();
        Ok(Success { ips, routes, dns, ..Success::default() })
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        Ok(load(request)?.leases.release(&owner(request), &[])?)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        if load(request)?.leases.owned_by(&owner(request))?.is_empty() {
            let message = format!("host-local: Failed to find address added by container {}", request.container_id);
            return Err(Failure::internal(message));
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        let is_valid = |owner: &Owner| {
            // Files of plugins before 0.8.2 have the container alone.
            let same = |interface: &str| owner.interface.is_empty() || owner.interface == interface;
            request.valid.iter().any(|valid| valid.container_id == owner.container && same(&valid.interface))
        };
        load(request)?.leases.release_dead(&is_valid)?;
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), Failure> {
        let leases = load(request)?.leases;
        let taken = leases.leases()?;
        for (number, pool) in leases.pools.iter().enumerate() {
            let within = |range: &Subnet, address: IpAddr| (range.first()..=range.last()).contains(&address);
            let size = pool.iter().fold(0, |sum: u128, range| {
                let gateway = u128::from(within(range, range.gateway()));
                sum.saturating_add(distance(range.first(), range.last()).saturating_add(1) - gateway)
            });
            let count =
                taken.iter().filter(|lease| pool.iter().any(|range| within(range, lease.address.addr()))).count();
            if count as u128 >= size {
                let message = format!("no IP addresses available in range set {number}");
                return Err(Failure::new(code::NOT_AVAILABLE, message));
            }
        }
        Ok(())
    }
}

fn distance(first: IpAddr, last: IpAddr) -> u128 {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(last.to_bits() - first.to_bits()),
        (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits() - first.to_bits(),
        _ => 0,
    }
}
