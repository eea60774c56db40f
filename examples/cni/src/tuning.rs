//! `tuning`: kernel settings, and what an interface is like.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use estiba_network::cni::plugin::{Plugin, Request};
use estiba_network::cni::{Failure, Success};
use estiba_network::{Batch, Netlink};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::config::{mac_text, parse_mac, wanted_mac};
use crate::device::{self, Device};
use crate::{about, namespace};

/// The settings that may be changed: a regular expression a line. Without the file, all of the network's.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";
/// Where is kept what an interface was like before.
const BEFORE: &str = "/run/cni/tuning";

#[derive(Debug)]
pub(crate) struct Tuning;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    data_dir: String,
    #[serde(flatten)]
    wanted: Wanted,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Option<Wanted>,
}

#[derive(Debug, Default, Deserialize)]
struct Wanted {
    #[serde(default)]
    sysctl: Option<BTreeMap<String, String>>,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    promisc: Option<bool>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen")]
    queue: Option<u32>,
}

/// What an interface is to be like, or was.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Like {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

struct Loaded {
    settings: BTreeMap<String, String>,
    like: Like,
    before: PathBuf,
}

fn load(request: &Request) -> Result<Loaded, Failure> {
    let config: Config = request.config()?;
    let mut settings = config.wanted.sysctl.unwrap_or_default();
    let given = config.args.and_then(|args| args.cni).unwrap_or_default();
    settings.extend(given.sysctl.unwrap_or_default());
    let mac = wanted_mac(request, config.wanted.mac.as_deref().unwrap_or_default())?;
    let mac = match given.mac.as_deref().filter(|mac| !mac.is_empty()) {
        Some(text) => Some(parse_mac(text)?),
        None => mac,
    };
    let like = Like {
        mac: mac.map(|mac| mac_text(&mac)).unwrap_or_default(),
        promisc: Some(given.promisc.or(config.wanted.promisc).unwrap_or_default()).filter(|on| *on),
        mtu: given.mtu.or(config.wanted.mtu).unwrap_or_default(),
        allmulti: given.allmulti.or(config.wanted.allmulti),
        queue: given.queue.or(config.wanted.queue),
    };
    let folder = if config.data_dir.is_empty() { BEFORE.to_owned() } else { config.data_dir };
    let before = Path::new(&folder).join(format!("{}_{}.json", request.container_id, request.interface));
    Ok(Loaded { settings, like, before })
}

/// Where a setting is, or why it must not be changed. In the name of an interface may be dots: it is put in last.
fn setting(key: &str, interface: &str) -> Result<PathBuf, Failure> {
    let wrong = || Failure::config(format!("invalid net sysctl key: {key:?}"));
    let relative = key.replace('.', "/").replacen("IFNAME", interface, 1);
    let relative = Path::new(relative.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain || !relative.starts_with("net") {
        return Err(wrong());
    }
    Ok(Path::new("/proc/sys").join(relative))
}

/// That the host's owner allows these settings.
fn check_allowed(settings: &BTreeMap<String, String>, list: Option<&str>) -> Result<(), Failure> {
    let Some(list) = list else { return Ok(()) };
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty());
    let patterns: Vec<Regex> = lines
        .map(|line| Regex::new(line).map_err(|error| Failure::config(format!("{ALLOWED}: {line:?}: {error}"))))
        .collect::<Result<_, _>>()?;
    match settings.keys().find(|key| !patterns.iter().any(|pattern| pattern.is_match(key))) {
        Some(key) => {
            let known: Vec<_> = patterns.iter().map(Regex::as_str).collect();
            let message = format!("Sysctl {key} is not allowed. Only the following sysctls are allowed: {known:?}");
            Err(Failure::config(message))
        }
        None => Ok(()),
    }
}

fn allowed() -> Result<Option<String>, Failure> {
    match fs::read_to_string(ALLOWED) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::io(format!("failed to read {ALLOWED}"), &error)),
    }
}

impl Like {
    /// What the interface is like now, in what is to be changed.
    fn now(&self, device: &Device) -> Self {
        Self {
            mac: if self.mac.is_empty() { String::new() } else { mac_text(&device.mac) },
            promisc: self.promisc.map(|_| device.promiscuous),
            mtu: if self.mtu == 0 { 0 } else { device.mtu },
            allmulti: self.allmulti.map(|_| device.all_multicast),
            queue: self.queue.map(|_| device.queue),
        }
    }

    fn apply(&self, netlink: &mut Netlink, device: &Device) -> Result<(), Failure> {
        let name = &device.name;
        let mut batch = Batch::new();
        let mut set = |what: &str, attribute| {
            batch.change(format!("set the {what} of {name}"), device::change(device.index, vec![attribute]));
        };
        if self.mtu != 0 {
            set("MTU", LinkAttribute::Mtu(self.mtu));
        }
        if !self.mac.is_empty() {
            set("hardware address", LinkAttribute::Address(parse_mac(&self.mac)?.to_vec()));
        }
        if let Some(length) = self.queue {
            set("length of the transmit queue", LinkAttribute::TxQueueLen(length));
        }
        for (flag, on) in [(LinkFlags::Promisc, self.promisc), (LinkFlags::Allmulti, self.allmulti)] {
            if let Some(on) = on {
                batch.change(format!("set {flag:?} of {name}"), device::set_flag(device.index, flag, on));
            }
        }
        Ok(netlink.commit(&batch)?)
    }
}

impl Plugin for Tuning {
    fn about(&self) -> String {
        about("tuning")
    }

    fn add(&self, request: &Request) -> Result<Success, Failure> {
        let Loaded { settings, like, before } = load(request)?;
        let mut success = request.previous()?.clone();
        check_allowed(&settings, allowed()?.as_deref())?;
        let paths: Vec<_> = settings
            .iter()
            .map(|(key, value)| Ok((setting(key, &request.interface)?, value)))
            .collect::<Result<_, Failure>>()?;
        namespace::open(&request.netns)?.run(|| -> Result<(), Failure> {
            for (path, value) in paths {
                let written =
                    OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
                written.map_err(|error| Failure::io(format!("failed to write {}", path.display()), &error))?;
            }
            if like == Like::default() {
                return Ok(());
            }
            let mut netlink = Netlink::open()?;
            let device = Device::get(&mut netlink, &request.interface)?;
            save(&before, &like.now(&device))?;
            like.apply(&mut netlink, &device)
        })??;
        if !like.mac.is_empty() {
            for interface in success.interfaces.iter_mut().filter(|interface| interface.name == request.interface) {
                interface.mac.clone_from(&like.mac);
            }
        }
        Ok(success)
    }

    fn del(&self, request: &Request) -> Result<(), Failure> {
        let Loaded { before, .. } = load(request)?;
        // Without it nothing was changed, or it was undone.
        let Ok(bytes) = fs::read(&before) else { return Ok(()) };
        if let (Ok(like), Some(sandbox)) = (serde_json::from_slice::<Like>(&bytes), namespace::find(&request.netns)?) {
            let mut netlink = sandbox.netlink()?;
            if let Some(device) = Device::find(&mut netlink, &request.interface)? {
                // The interface goes with the next plugin, so that this may fail.
                let _ = like.apply(&mut netlink, &device);
            }
        }
        match fs::remove_file(&before) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Failure::io(format!("failed to remove {}", before.display()), &error))
            }
            _ => Ok(()),
        }
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let Loaded { settings, like, .. } = load(request)?;
        request.previous()?;
        namespace::open(&request.netns)?.run(|| -> Result<(), Failure> {
            for (key, value) in &settings {
                let path = setting(key, &request.interface)?;
                let now = fs::read_to_string(&path)
                    .map_err(|error| Failure::io(format!("failed to read {}", path.display()), &error))?;
                // The kernel separates several values by tabs.
                if !now.split_whitespace().eq(value.split_whitespace()) {
                    let message = format!("{} is {:?}, and was set to {value:?}", path.display(), now.trim());
                    return Err(Failure::internal(message));
                }
            }
            let mut netlink = Netlink::open()?;
            let device = Device::get(&mut netlink, &request.interface)?;
            let now = like.now(&device);
            if now != like || (like.promisc.is_none() && device.promiscuous) {
                let message = format!("the interface {} is {now:?}, and was set to {like:?}", device.name);
                return Err(Failure::internal(message));
            }
            Ok(())
        })?
    }
}

fn save(path: &Path, like: &Like) -> Result<(), Failure> {
    let written = || -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec(like)?)
    };
    written().map_err(|error| Failure::io(format!("failed to write {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_network_alone() {
        let path = |key| setting(key, "eth0.5").map(|path| path.display().to_string());
        assert_eq!(path("net.core.somaxconn").expect("one"), "/proc/sys/net/core/somaxconn");
        assert_eq!(path("net/ipv4/conf/IFNAME/arp_filter").expect("one"), "/proc/sys/net/ipv4/conf/eth0.5/arp_filter");
        for wrong in ["kernel.panic", "/kernel/panic", "", "..", "network.x"] {
            assert_eq!(path(wrong).expect_err(wrong).code, 7, "{wrong}");
        }
        // Dots are slashes, so that no path climbs.
        assert_eq!(path("net/../kernel/panic").expect("one"), "/proc/sys/net////kernel/panic");
    }

    #[test]
    fn the_host_s_owner_decides() {
        let settings = BTreeMap::from([("net.ipv4.conf.all.log_martians".to_owned(), "1".to_owned())]);
        assert!(check_allowed(&settings, None).is_ok());
        assert!(check_allowed(&settings, Some("\n^net\\.ipv4\\.conf\\..*\n")).is_ok());
        assert_eq!(check_allowed(&settings, Some("^net\\.core\\.")).expect_err("not allowed").code, 7);
        assert!(check_allowed(&settings, Some("")).is_err());
        assert!(check_allowed(&settings, Some("(")).is_err());
    }
}
