//! `host-device`: an interface of the host is the container's for as long as it lives.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Command, Failure, Interface, Success};
use estiba_network::{Batch, Netlink, Sandbox};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use serde::Deserialize;

use crate::address::{self, Detection};
use crate::config::{self, Common};
use crate::device::{self, Device};
use crate::{about, namespace};

#[derive(Debug)]
pub(crate) struct HostDevice;

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    common: Common,
    #[serde(default)]
    device: String,
    #[serde(default, rename = "hwaddr")]
    mac: String,
    #[serde(default, rename = "kernelpath")]
    kernel_path: String,
    #[serde(default, rename = "pciBusID")]
    pci: String,
    #[serde(default, rename = "runtimeConfig", alias = "RuntimeConfig")]
    runtime: Option<Runtime>,
}

#[derive(Debug, Default, Deserialize)]
struct Runtime {
    #[serde(default, rename = "deviceID")]
    device: String,
}

/// Drivers that take a device from the kernel's network, for programs that drive it themselves.
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// How the device is told.
enum Told {
    Name(String),
    Mac([u8; 6]),
    /// The folder that has its name.
    Folder(PathBuf),
    /// It has no interface: there is nothing to be moved.
    Userspace,
}

fn told(config: &Config) -> Result<Told, Failure> {
    let (mut pci, mut auxiliary) = (config.pci.as_str(), "");
    if let Some(id) = config.runtime.as_ref().map(|runtime| runtime.device.as_str()).filter(|id| !id.is_empty()) {
        (pci, auxiliary) = if bus("pci", id)?.exists() {
            (id, "")
        } else if bus("auxiliary", id)?.exists() {
            ("", id)
        } else {
            return Err(Failure::config(format!("runtime config DeviceID {id} not found or unsupported")));
        };
    }
    if !config.device.is_empty() {
        Ok(Told::Name(config.device.clone()))
    } else if !config.mac.is_empty() {
        config::parse_mac(&config.mac).map(Told::Mac)
    } else if !config.kernel_path.is_empty() {
        let path = Path::new(&config.kernel_path);
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        if !path.starts_with("/sys/devices") || climbs {
            let message =
                format!("kernel device path {} must be absolute and begin with /sys/devices/", path.display());
            return Err(Failure::config(message));
        }
        Ok(Told::Folder(path.join("net")))
    } else if !pci.is_empty() {
        let path = bus("pci", pci)?;
        let driver = fs::canonicalize(path.join("driver")).ok();
        let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        if driver.is_some_and(|driver| USERSPACE.contains(&driver)) {
            return Ok(Told::Userspace);
        }
        if path.join("net").exists() {
            return Ok(Told::Folder(path.join("net")));
        }
        // A virtio device has another one below it.
        let below = fs::read_dir(&path).into_iter().flatten().flatten().find(|entry| {
            entry.file_name().as_encoded_bytes().starts_with(b"virtio") && entry.path().join("net").exists()
        });
        let below = below.ok_or_else(|| Failure::config(format!("no net directory under pci device {pci}")))?;
        Ok(Told::Folder(below.path().join("net")))
    } else if !auxiliary.is_empty() {
        Ok(Told::Folder(bus("auxiliary", auxiliary)?.join("net")))
    } else {
        Err(Failure::config(r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#))
    }
}

fn bus(bus: &str, id: &str) -> Result<PathBuf, Failure> {
    if id.contains('/') || id.starts_with('.') {
        return Err(Failure::config(format!("{id:?} is no device's id")));
    }
    Ok(Path::new("/sys/bus").join(bus).join("devices").join(id))
}

/// The host's interface; none if it has none.
fn find(host: &mut Netlink, config: &Config) -> Result<Option<Device>, Failure> {
    let missing = |what: String| Failure::config(format!("failed to find host device: {what}"));
    match told(config)? {
        Told::Userspace => Ok(None),
        Told::Name(name) => {
            let device = Device::find(host, &name)?;
            device.map(Some).ok_or_else(|| missing(format!("there is no interface {name:?}")))
        }
        Told::Mac(mac) => {
            let device = Device::all(host)?.into_iter().find(|device| device.mac == mac);
            device.map(Some).ok_or_else(|| missing(format!("no interface has the address {}", config.mac)))
        }
        Told::Folder(folder) => {
            let names = fs::read_dir(&folder)
                .map_err(|error| Failure::io(format!("failed to read {}", folder.display()), &error))?;
            let name = names.flatten().next().map(|entry| entry.file_name().to_string_lossy().into_owned());
            let name = name.ok_or_else(|| missing(format!("{} has no network device", folder.display())))?;
            Device::get(host, &name).map(Some)
        }
    }
}

impl Plugin for HostDevice {
    fn about(&self) -> String {
        about("host-device")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let config: Config = request.config()?;
        let sandbox = namespace::open(&request.netns)?;
        let mut host = Netlink::open()?;
        let device = find(&mut host, &config)?;
        let moved = match &device {
            Some(device) => Some(move_in(&mut host, &sandbox, device, &request.interface)?),
            None => None,
        };
        let given = give(request, &config, &sandbox, moved.as_ref());
        if let (Err(_), Some(device)) = (&given, &device) {
            let _ = move_out(&sandbox, &request.interface);
            if device.up {
                let _ = set_up(&mut host, &device.name);
            }
        }
        given
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        let is_userspace = matches!(told(&config), Ok(Told::Userspace));
        if let Some(sandbox) = namespace::find(&request.netns)?.filter(|_| !is_userspace) {
            move_out(&sandbox, &request.interface)?;
        }
        config.common.delegate(request, Command::Del)
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let config: Config = request.config()?;
        let sandbox = namespace::open(&request.netns)?;
        config.common.delegate(request, Command::Check)?;
        if matches!(told(&config), Ok(Told::Userspace)) {
            return Ok(());
        }
        address::verify_own(&sandbox, request, &[]).map(drop)
    }

    fn gc(&self, request: &Request) -> Result<(), Failure> {
        request.config::<Config>()?.common.delegate(request, Command::Gc)
    }

    fn status(&self, request: &Request) -> Result<(), Failure> {
        request.config::<Config>()?.common.delegate(request, Command::Status)
    }
}

fn give(request: &Request, config: &Config, sandbox: &Sandbox, moved: Option<&Device>) -> Result<Success, Failure> {
    let netns = request.netns.to_string_lossy();
    let interface = match moved {
        Some(device) => device.interface(&netns),
        None => Interface { name: request.interface.clone(), sandbox: netns.into_owned(), ..Interface::default() },
    };
    let mut success = config.common.reserve(request)?.unwrap_or_default();
    success.interfaces = vec![interface];
    for ip in &mut success.ips {
        ip.interface = Some(0);
    }
    if moved.is_some() && !success.ips.is_empty() {
        let configured = address::configure(sandbox, &request.interface, &success, Detection::Off);
        if configured.is_err() {
            let _ = config.common.delegate(request, Command::Del);
        }
        configured?;
    }
    config.common.resolve(&mut success);
    Ok(success)
}

/// Moves an interface of the host into the container, names it and sets it up there: in one message, so that whoever is killed
/// has done all of it or nothing. Its old name is its alias.
fn move_in(host: &mut Netlink, sandbox: &Sandbox, device: &Device, name: &str) -> Result<Device, Failure> {
    let mut inside = sandbox.netlink()?;
    if Device::find(&mut inside, name)?.is_some() {
        return Err(Failure::internal(format!("the interface {name:?} is in the container already")));
    }
    let moved = relocate(host, device.index, sandbox, name, &device.name, true);
    if moved.is_err() {
        // The kernel may have refused a part after the move itself.
        let stranded = Device::all(&mut inside)?.into_iter().find(|found| found.alias == device.name);
        if let Some(stranded) = stranded {
            let _ = relocate(&mut inside, stranded.index, &host_namespace()?, &device.name, "", device.up);
        }
    }
    moved?;
    Device::get(&mut inside, name)
}

/// Moves the interface back under its old name. It stays down: how it was before, nobody knows any more. One that did not come
/// from the host is let alone.
fn move_out(sandbox: &Sandbox, name: &str) -> Result<(), Failure> {
    let mut inside = sandbox.netlink()?;
    let Some(device) = Device::find(&mut inside, name)?.filter(|device| !device.alias.is_empty()) else {
        return Ok(());
    };
    if Device::find(&mut Netlink::open()?, &device.alias)?.is_some() {
        let message = format!("the interface {name} cannot go back: the host has another {:?}", device.alias);
        return Err(Failure::internal(message));
    }
    relocate(&mut inside, device.index, &host_namespace()?, &device.alias, "", false)
}

fn host_namespace() -> Result<Sandbox, Failure> {
    Ok(Sandbox::open(Path::new("/proc/thread-self/ns/net"))?)
}

/// Moves an interface into another namespace, where it has that name and alias.
fn relocate(netlink: &mut Netlink, index: u32, to: &Sandbox, name: &str, alias: &str, up: bool) -> Result<(), Failure> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    if up {
        message.header.flags = LinkFlags::Up;
    }
    message.attributes = vec![
        LinkAttribute::NetNsFd(to.as_fd().as_raw_fd()),
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(alias.to_owned()),
    ];
    let mut batch = Batch::new();
    batch.change(format!("move an interface, as {name}"), RouteNetlinkMessage::SetLink(message));
    Ok(netlink.commit(&batch)?)
}

fn set_up(netlink: &mut Netlink, name: &str) -> Result<(), Failure> {
    let device = Device::get(netlink, name)?;
    let mut batch = Batch::new();
    batch.change(format!("set the interface {name} up"), device::up(device.index));
    Ok(netlink.commit(&batch)?)
}
