//! `macvlan`: an interface with an address of its own on one of the host's.

use std::net::IpAddr;
use std::os::fd::AsFd;

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Command, Failure, Success};
use estiba_network::{Batch, Netlink, Sandbox};
use netlink_packet_route::link::{LinkAttribute, MacVlanMode};
use serde::Deserialize;

use crate::address::{self, Detection};
use crate::config::{self, Common};
use crate::device::{self, Device, New};
use crate::{about, namespace};

#[derive(Debug)]
pub(crate) struct Macvlan;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(flatten)]
    common: Common,
    #[serde(default)]
    master: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    mtu: i64,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    link_in_container: bool,
    #[serde(default, rename = "bcqueuelen")]
    broadcast_queue: u32,
}

fn mode(text: &str) -> Result<MacVlanMode, Failure> {
    match text {
        "" | "bridge" => Ok(MacVlanMode::Bridge),
        "private" => Ok(MacVlanMode::Private),
        "vepa" => Ok(MacVlanMode::Vepa),
        "passthru" => Ok(MacVlanMode::Passthrough),
        _ => Err(Failure::config(format!("unknown macvlan mode: {text:?}"))),
    }
}

/// What the interface lies on: the one of the default route, if none is named.
fn parent(netlink: &mut Netlink, name: &str) -> Result<Device, Failure> {
    if !name.is_empty() {
        return Device::find(netlink, name)?
            .ok_or_else(|| Failure::config(format!("failed to lookup master {name:?}: there is no such interface")));
    }
    let is_default = |to| to == address::any(IpAddr::from([0; 4])) || to == address::any(IpAddr::from([0; 16]));
    let routes = address::routes(netlink)?;
    let index = routes.iter().find(|route| is_default(route.to)).and_then(|route| route.interface);
    let device = index.map(|index| Device::numbered(netlink, index)).transpose()?.flatten();
    device.ok_or_else(|| Failure::config("no default route interface found: name a master"))
}

impl Plugin for Macvlan {
    fn about(&self) -> String {
        about("macvlan")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let config: Config = request.config()?;
        let mac = config::wanted_mac(request, &config.mac)?;
        let kind = mode(&config.mode)?;
        let sandbox = namespace::open(&request.netns)?;
        let mut netlink = if config.link_in_container { sandbox.netlink()? } else { Netlink::open()? };
        let parent = parent(&mut netlink, &config.master)?;
        let mtu = u32::try_from(config.mtu).ok().filter(|mtu| *mtu <= parent.mtu).ok_or_else(|| {
            Failure::config(format!("invalid MTU {}, must be [0, master MTU({})]", config.mtu, parent.mtu))
        })?;
        // Under its own name it would be looked for on the host first (before Linux 5.15).
        let name = device::unique_name()?;
        let new = New { mac, mtu, namespace: Some(sandbox.as_fd()), ..New::named(&name) };
        let mut batch = Batch::new();
        let message = device::macvlan(&new, parent.index, kind, config.broadcast_queue);
        batch.create(format!("make a macvlan on {}", parent.name), message);
        netlink.commit(&batch)?;
        let made = connect(request, &config, &sandbox, &name);
        if made.is_err() {
            let mut inside = sandbox.netlink()?;
            let _ = device::remove(&mut inside, &name).and_then(|()| device::remove(&mut inside, &request.interface));
        }
        made
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        if let Some(sandbox) = namespace::find(&request.netns)? {
            device::remove(&mut sandbox.netlink()?, &request.interface)?;
        }
        config.common.delegate(request, Command::Del)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        let sandbox = namespace::open(&request.netns)?;
        config.common.delegate(request, Command::Check)?;
        let own = address::verify_own(&sandbox, request, &["macvlan"])?;
        let mut netlink = if config.link_in_container { sandbox.netlink()? } else { Netlink::open()? };
        let parent = parent(&mut netlink, &config.master)?;
        if own.below != Some(parent.index) {
            let message = format!("interface {} does not lie on {}", own.name, parent.name);
            return Err(Failure::internal(message));
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        request.config::<Config>()?.common.delegate(request, Command::Gc)
    }

    fn status(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        if !config.link_in_container {
            parent(&mut Netlink::open()?, &config.master)?;
        }
        config.common.delegate(request, Command::Status)
    }
}

fn connect(request: &Request, config: &Config, sandbox: &Sandbox, temporary: &str) -> Result<Success, Failure> {
    let mut inside = sandbox.netlink()?;
    let made = Device::get(&mut inside, temporary)?;
    let mut batch = Batch::new();
    let name = LinkAttribute::IfName(request.interface.clone());
    batch.change(format!("name the macvlan {}", request.interface), device::change(made.index, vec![name]));
    inside.commit(&batch)?;
    let interface = Device::get(&mut inside, &request.interface)?.interface(&request.netns.to_string_lossy());
    let mut success = config.common.reserve(request)?.unwrap_or_default();
    success.interfaces = vec![interface];
    for ip in &mut success.ips {
        ip.interface = Some(0);
    }
    let configured = address::configure(sandbox, &request.interface, &success, Detection::Off);
    if configured.is_err() {
        let _ = config.common.delegate(request, Command::Del);
    }
    configured?;
    config.common.resolve(&mut success);
    Ok(success)
}
