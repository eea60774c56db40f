//! The driver `cni`: a chain of plugins attaches sandboxes.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::config::Network as Chain;
use super::runner::{Attachment as Place, Runner};
use super::success::Success;
use crate::driver::Driver;
use crate::endpoint::{Attachment, Endpoint, Interface};
use crate::error::{Error, Result};
use crate::network::Network;
use crate::sandbox::Sandbox;

/// The driver `cni`: a network is the CNI configuration of its name, whatever plugins that has.
///
/// What is asked of an attachment (ports, addresses, hardware address, names) is handed to the plugins that say that they can be given
/// it, as `portMappings`, `ips`, `mac` and `aliases`. Whether there is a default route is theirs to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cni {
    /// Where configurations are: `/etc/cni/net.d` for instance.
    pub folder: PathBuf,
    /// How plugins are executed. Its cache is this driver's alone: [`Driver::repair`] takes everything on record there for its own.
    pub runner: Runner,
}

impl Cni {
    fn chain(&self, network: &Network) -> Result<Chain> {
        Chain::load(&self.folder, &network.name)
    }
}

impl Driver for Cni {
    /// Looks whether all plugins are there and speak the configuration's version. Subnets are the configuration's to
    /// name.
    fn create(&self, network: Network, _others: &[Network]) -> Result<Network> {
        network.check()?;
        self.runner.validate(&self.chain(&network)?)?;
        Ok(network)
    }

    fn delete(&self, network: &Network) -> Result<()> {
        let attached: Vec<_> =
            self.runner.all_cached()?.into_iter().filter(|cached| cached.network == network.name).collect();
        match attached.first() {
            Some(first) => {
                let first = first.attachment.container_id.clone();
                Err(Error::InUse { network: network.name.clone(), first, containers: attached.len() })
            }
            None => Ok(()),
        }
    }

    fn attach(&self, network: &Network, sandbox: &Sandbox, attachment: &Attachment) -> Result<Endpoint> {
        attachment.check()?;
        let chain = self.chain(network)?;
        let place = place(Some(sandbox), attachment)?;
        if let Some(cached) = self.runner.cached(&chain.name, &place)? {
            let endpoint = endpoint(&cached.success()?, sandbox, attachment)?;
            if endpoint.stands(sandbox)? {
                return Ok(endpoint);
            }
            // Of a namespace that is gone, or somebody has taken it away.
            self.runner.del(&chain, &place)?;
        }
        sandbox.netlink()?.set_loopback_up()?;
        let success = self.runner.add(&chain, &place)?;
        endpoint(&success, sandbox, attachment).inspect_err(|_| {
            let _ = self.runner.del(&chain, &place);
        })
    }

    fn repair(&self, network: &Network, alive: &dyn Fn(&str) -> bool) -> Result<()> {
        let chain = self.chain(network)?;
        let mut errors = Vec::new();
        for cached in self.runner.all_cached()? {
            if cached.network == network.name && !alive(&cached.attachment.container_id) {
                errors.extend(self.runner.del(&chain, &Place { netns: None, ..cached.attachment }).err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Several { errors }) }
    }

    fn detach(&self, network: &Network, sandbox: Option<&Sandbox>, attachment: &Attachment) -> Result<()> {
        let chain = self.chain(network)?;
        let mut place = place(sandbox, attachment)?;
        // With the arguments that it was made with, for only the key has to be right.
        if let Some(cached) = self.runner.cached(&chain.name, &place).ok().flatten() {
            place = Place { netns: place.netns, ..cached.attachment };
        }
        self.runner.del(&chain, &place)
    }
}

/// The attachment as plugins are told of it. The namespace's path leads through this process, which waits for them.
fn place(sandbox: Option<&Sandbox>, attachment: &Attachment) -> Result<Place> {
    let path =
        |sandbox: &Sandbox| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), sandbox.as_fd().as_raw_fd()));
    let mut place = Place {
        container_id: attachment.container.clone(),
        netns: sandbox.map(path),
        interface: attachment.interface.clone(),
        // Plugins that want to know other arguments are not to be disturbed by none.
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        ..Place::default()
    };
    let mut mappings = Vec::new();
    for mapping in &attachment.ports {
        if mapping.host_port == 0 {
            let reason = "CNI plugins choose no port by themselves: name the host's";
            return Err(Error::Publish { mapping: Box::new(mapping.clone()), reason });
        }
        for offset in 0..mapping.count {
            let mut entry = json!({
                "hostPort": mapping.host_port + offset,
                "containerPort": mapping.container_port + offset,
                "protocol": mapping.protocol.to_string(),
            });
            if let Some(address) = mapping.host_address.filter(|address| !address.is_unspecified()) {
                entry["hostIP"] = json!(address);
            }
            mappings.push(entry);
        }
    }
    let wanted: [(&str, Option<Value>); 4] = [
        ("portMappings", (!mappings.is_empty()).then(|| mappings.into())),
        ("ips", (!attachment.addresses.is_empty()).then(|| json!(attachment.addresses))),
        ("mac", attachment.mac.map(|mac| mac.to_string().into())),
        ("aliases", (!attachment.names.is_empty()).then(|| json!(attachment.names))),
    ];
    place.capabilities.extend(wanted.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    Ok(place)
}

/// What plugins have made, as this crate tells of it.
fn endpoint(success: &Success, sandbox: &Sandbox, attachment: &Attachment) -> Result<Endpoint> {
    let own = success.interfaces.iter().find(|one| one.name == attachment.interface && !one.sandbox.is_empty());
    let there = sandbox.netlink()?.interfaces()?;
    let interfaces: Vec<Interface> = there.into_iter().filter(|real| real.name == attachment.interface).collect();
    let is_own =
        |index: Option<usize>| index.and_then(|index| success.interfaces.get(index)).is_none_or(|one| Some(one) == own);
    let ips = || success.ips.iter().filter(|ip| is_own(ip.interface));
    let gateway =
        |like: IpAddr| ips().find(|ip| ip.address.addr().is_ipv4() == like.is_ipv4()).and_then(|ip| ip.gateway);
    let defaults = success.routes.iter().filter(|route| route.dst.prefix_len() == 0);
    let mut gateways = Vec::new();
    for found in defaults.filter_map(|route| route.gw.or_else(|| gateway(route.dst.addr()))) {
        if !gateways.contains(&found) {
            gateways.push(found);
        }
    }
    Ok(Endpoint {
        interfaces,
        addresses: ips().map(|ip| ip.address).collect(),
        gateways,
        mac: own.and_then(|one| one.mac.parse().ok()),
        host_interface: success.interfaces.iter().rfind(|one| one.sandbox.is_empty()).map(|one| one.name.clone()),
        ports: attachment.ports.clone(),
    })
}
