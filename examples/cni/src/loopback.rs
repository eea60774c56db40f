//! `loopback`: sets `lo` up.

use estiba_network::Netlink;
use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Failure, IpConfig, Success};
use estiba_network::ipnet::IpNet;

use crate::device::{self, Device};
use crate::{about, address, namespace};

const NAME: &str = "lo";

#[derive(Debug)]
pub(crate) struct Loopback;

impl Plugin for Loopback {
    fn about(&self) -> String {
        about("loopback")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let sandbox = namespace::open(&request.netns)?;
        let mut netlink = sandbox.netlink()?;
        netlink.set_loopback_up()?;
        if let Some(previous) = &request.previous {
            return Ok(previous.clone());
        }
        let device = Device::get(&mut netlink, NAME)?;
        let addresses = address::addresses(&mut netlink, device.index)?;
        if let Some(other) = addresses.iter().find(|address| !address.addr().is_loopback()) {
            return Err(Failure::internal(format!("loopback interface found with non-loopback address {other}")));
        }
        let first = |is_four: bool| addresses.iter().find(|address| address.addr().is_ipv4() == is_four);
        let ip = |address: &IpNet| IpConfig { interface: Some(0), ..IpConfig::new(*address, None) };
        Ok(Success {
            interfaces: vec![device.interface(&request.netns.to_string_lossy())],
            ips: first(true).into_iter().chain(first(false)).map(ip).collect(),
            ..Success::default()
        })
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let Some(sandbox) = namespace::find(&request.netns)? else { return Ok(()) };
        let mut netlink = sandbox.netlink()?;
        let device = Device::get(&mut netlink, NAME)?;
        let mut batch = estiba_network::Batch::new();
        let down = device::set_flag(device.index, netlink_packet_route::link::LinkFlags::Up, false);
        batch.change("set the interface lo down", down);
        Ok(netlink.commit(&batch)?)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let mut netlink: Netlink = namespace::open(&request.netns)?.netlink()?;
        if Device::get(&mut netlink, NAME)?.up { Ok(()) } else { Err(Failure::internal("loopback interface is down")) }
    }
}
