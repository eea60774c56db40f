//! `firewall`: who may reach the container.

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Failure, Success, Version, code};
use estiba_network::{Batch, Netlink};
use netlink_packet_route::link::InfoBridgePort;
use serde::Deserialize;

use crate::about;
use crate::device::{self, Device};
use crate::firewall::{self, Asker, Held};
use crate::record::Key;

#[derive(Debug)]
pub(crate) struct Walls;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    ingress_policy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Everybody.
    Open,
    /// The containers of the same bridge.
    SameBridge,
    /// Nobody.
    Isolated,
}

fn load(request: &Request) -> Result<Policy, Failure> {
    let config: Config = request.config()?;
    match config.backend.as_str() {
        "" | "iptables" | "nftables" => {}
        other => {
            let message = format!("unsupported field \"backend\" with the value {other:?}");
            return Err(Failure::new(code::UNSUPPORTED_FIELD, message));
        }
    }
    match config.ingress_policy.as_str() {
        "" | "open" => Ok(Policy::Open),
        "same-bridge" => Ok(Policy::SameBridge),
        "isolated" => Ok(Policy::Isolated),
        other => Err(Failure::config(format!("unknown ingress policy: {other:?}"))),
    }
}

/// The bridge that the result begins with.
fn bridge(success: &Success) -> Result<&str, Failure> {
    let first = success.interfaces.first().filter(|first| first.sandbox.is_empty() && !first.name.is_empty());
    first
        .map(|first| first.name.as_str())
        .ok_or_else(|| Failure::config("the ingress policy needs a bridge: chain \"firewall\" with \"bridge\""))
}

impl Plugin for Walls {
    fn about(&self) -> String {
        about("firewall")
    }

    fn versions(&self) -> &[Version] {
        &Version::ALL[4..]
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let policy = load(request)?;
        let success = request.previous()?.clone();
        if policy == Policy::Open {
            return Ok(success);
        }
        let bridge = bridge(&success)?;
        if policy == Policy::Isolated {
            isolate(&success, bridge)?;
        }
        let held = Held { interface: bridge.to_owned(), walls: true, ..Held::default() };
        firewall::hold(Asker::Firewall, &Key::of(request), &held)?;
        Ok(success)
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        firewall::release(Asker::Firewall, &Key::of(request))
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        request.previous()?;
        if load(request)? == Policy::Open {
            return Ok(());
        }
        match firewall::verify(Asker::Firewall, &Key::of(request))? {
            Some(_) => Ok(()),
            None => Err(Failure::internal("the ingress policy is not set up")),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        firewall::collect(Asker::Firewall, request)
    }
}

/// Keeps the container's port apart from the bridge's other isolated ports.
fn isolate(success: &Success, bridge: &str) -> Result<(), Failure> {
    let mut host = Netlink::open()?;
    let master = Device::get(&mut host, bridge)?;
    let mut batch = Batch::new();
    for interface in success.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        if let Some(port) = Device::find(&mut host, &interface.name)?.filter(|port| port.master == Some(master.index)) {
            let message = device::port(port.index, vec![InfoBridgePort::Isolated(true)]);
            batch.change(format!("isolate the port {}", port.name), message);
        }
    }
    Ok(host.commit(&batch)?)
}
