//! `bandwidth`: limits on what a container sends and gets.

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Failure, Success, Version};
use estiba_network::{Batch, Netlink, Sandbox};
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::device::{self, Device, New};
use crate::qdisc::{self, Bucket};
use crate::record::{Key, Records};
use crate::{about, namespace};

const KIND: &str = "bandwidth";

#[derive(Debug)]
pub(crate) struct Bandwidth;

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(flatten)]
    own: Limits,
    #[serde(default, rename = "runtimeConfig", alias = "RuntimeConfig")]
    runtime: Option<Runtime>,
}

#[derive(Debug, Default, Deserialize)]
struct Runtime {
    #[serde(default, alias = "bandWidth")]
    bandwidth: Option<Limits>,
}

/// In bits, and bits a second. `ingress` is what the container gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limits {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

fn load(request: &Request) -> Result<Limits, Failure> {
    let config: Config = request.config()?;
    let has_own = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    let limits = match config.runtime.and_then(|runtime| runtime.bandwidth) {
        Some(limits) if !has_own.iter().any(|key| request.fields.contains_key(*key)) => limits,
        _ => config.own,
    };
    for (rate, burst) in [(limits.ingress_rate, limits.ingress_burst), (limits.egress_rate, limits.egress_burst)] {
        let wrong = match (rate, burst) {
            (1.., 0) => "if rate is set, burst must also be set",
            (0, 1..) => "if burst is set, rate must also be set",
            (1..8, _) | (_, 1..8) => "rate and burst are at least 8 bits",
            (_, burst) if burst / 8 >= u64::from(u32::MAX) => "burst cannot be more than 4GB",
            _ => continue,
        };
        return Err(Failure::config(wrong));
    }
    Ok(limits)
}

/// The reference plugin's name for the interface that holds back what the container sends.
fn ifb_name(network: &str, container: &str) -> String {
    let hash = Sha512::digest(format!("{network}{container}"));
    let number = hash.iter().take(6).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    format!("bwp{number:012x}")
}

/// The host's end of the container's cable.
fn host_end(host: &mut Netlink, sandbox: &Sandbox, request: &Request) -> Result<Device, Failure> {
    let success = request.previous()?;
    let inside = Device::get(&mut sandbox.netlink()?, &request.interface)?;
    let peer = inside.below.filter(|_| inside.kind == "veth");
    let near = peer.map(|index| Device::numbered(host, index)).transpose()?.flatten();
    let listed = |name: &str| success.interfaces.iter().any(|entry| entry.sandbox.is_empty() && entry.name == name);
    near.filter(|near| listed(&near.name)).ok_or_else(|| {
        let message = format!("container interface {} has no veth peer in the host's namespace", request.interface);
        Failure::config(message)
    })
}

impl Plugin for Bandwidth {
    fn about(&self) -> String {
        about("bandwidth")
    }

    fn versions(&self) -> &[Version] {
        &Version::ALL[2..]
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let limits = load(request)?;
        let mut success = request.previous()?.clone();
        if limits == Limits::default() {
            return Ok(success);
        }
        let sandbox = namespace::open(&request.netns)?;
        let mut host = Netlink::open()?;
        let near = host_end(&mut host, &sandbox, request)?;
        let name = ifb_name(&request.network, &request.container_id);
        let limited = limit(&mut host, limits, &near, &name, request);
        match limited {
            Ok(Some(ifb)) => success.interfaces.push(ifb.interface("")),
            Ok(None) => {}
            Err(failure) => {
                let _ = self.del(request);
                return Err(failure);
            }
        }
        Ok(success)
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        // What hangs on the cable goes with it.
        device::remove(&mut Netlink::open()?, &ifb_name(&request.network, &request.container_id))?;
        Records::open(KIND)?.remove(&Key::of(request))
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let limits = load(request)?;
        if limits == Limits::default() {
            return Ok(());
        }
        let sandbox = namespace::open(&request.netns)?;
        let mut host = Netlink::open()?;
        let near = host_end(&mut host, &sandbox, request)?;
        let ifb = ifb_name(&request.network, &request.container_id);
        for (name, rate, burst) in
            [(near.name, limits.ingress_rate, limits.ingress_burst), (ifb, limits.egress_rate, limits.egress_burst)]
        {
            if rate == 0 {
                continue;
            }
            let device = Device::get(&mut host, &name)?;
            let (found, wanted) = (qdisc::bucket_of(&mut host, device.index)?, Bucket::new(rate, burst));
            let same = |found: Bucket| {
                let near = |a: u32, b: u32| a.abs_diff(b) <= a / 1000 + 1;
                found.rate == wanted.rate && found.limit == wanted.limit && near(found.buffer, wanted.buffer)
            };
            if !found.is_some_and(same) {
                let message = format!("interface {name} is limited to {found:?}, and not to {wanted:?}");
                return Err(Failure::internal(message));
            }
        }
        Ok(())
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        let records = Records::open(KIND)?;
        let mut host = Netlink::open()?;
        for key in records.stale(request) {
            device::remove(&mut host, &ifb_name(&key.network, &key.container))?;
            records.remove(&key)?;
        }
        Ok(())
    }
}

/// Limits both directions; the interface that what the container sends is led through, if that is limited.
fn limit(
    host: &mut Netlink,
    limits: Limits,
    near: &Device,
    name: &str,
    request: &Request,
) -> Result<Option<Device>, Failure> {
    let mut batch = Batch::new();
    if limits.ingress_rate > 0 {
        let bucket = Bucket::new(limits.ingress_rate, limits.ingress_burst);
        batch.create(format!("limit what {} sends", near.name), qdisc::token_bucket(near.index, bucket));
    }
    if limits.egress_rate == 0 {
        host.commit(&batch)?;
        return Ok(None);
    }
    Records::open(KIND)?.write(&Key::of(request), &name)?;
    let new = New { mtu: near.mtu, up: true, ..New::named(name) };
    batch.create(format!("make the interface {name}"), device::ifb(&new));
    host.commit(&batch)?;
    let ifb = Device::get(host, name)?;
    let bucket = Bucket::new(limits.egress_rate, limits.egress_burst);
    let mut batch = Batch::new();
    batch
        .create(format!("limit what {name} sends"), qdisc::token_bucket(ifb.index, bucket))
        .create(format!("watch what comes in by {}", near.name), qdisc::ingress(near.index))
        .create(format!("redirect what comes in by {} to {name}", near.name), qdisc::redirect(near.index, ifb.index));
    host.commit(&batch)?;
    Ok(Some(ifb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_reference_plugin_s() {
        assert_eq!(ifb_name("net", "c1").len(), 15);
        assert_ne!(ifb_name("net", "c1"), ifb_name("net", "c2"));
    }
}
