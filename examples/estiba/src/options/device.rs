//! The host's devices: which a container may use, and how much.

use std::path::PathBuf;

use clap::Args;
use estiba_engine::{Device, DeviceLimit, DeviceLimitKind, DeviceRule};

use crate::quantity;

/// Devices.
#[derive(Debug, Args)]
pub(super) struct Devices {
    /// Weight of its I/O with a block device (/dev/sda:200)
    #[arg(long, value_name = "DEVICE:WEIGHT", value_parser = number)]
    blkio_weight_device: Vec<(PathBuf, u64)>,
    /// Give it a device of the host, or all in a folder (/dev/fuse, /dev/sda:/dev/disk:r)
    #[arg(long, value_name = "SRC[:DST[:rwm]]", value_parser = device)]
    device: Vec<Device>,
    /// Let it use devices by their numbers ('c 42:* rwm')
    #[arg(long, value_name = "RULE", value_parser = rule)]
    device_cgroup_rule: Vec<DeviceRule>,
    /// Bytes that it reads from a block device in a second (/dev/sda:1m)
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = bytes)]
    device_read_bps: Vec<(PathBuf, u64)>,
    /// Reads from a block device in a second (/dev/sda:1000)
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = number)]
    device_read_iops: Vec<(PathBuf, u64)>,
    /// Bytes that it writes to a block device in a second
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = bytes)]
    device_write_bps: Vec<(PathBuf, u64)>,
    /// Writes to a block device in a second
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = number)]
    device_write_iops: Vec<(PathBuf, u64)>,
}

impl Devices {
    pub(super) fn into_parts(self) -> (Vec<Device>, Vec<DeviceRule>, Vec<DeviceLimit>) {
        let limits = [
            (DeviceLimitKind::Weight, self.blkio_weight_device),
            (DeviceLimitKind::ReadBps, self.device_read_bps),
            (DeviceLimitKind::ReadIops, self.device_read_iops),
            (DeviceLimitKind::WriteBps, self.device_write_bps),
            (DeviceLimitKind::WriteIops, self.device_write_iops),
        ];
        let limit = |(kind, list): (_, Vec<(PathBuf, u64)>)| {
            list.into_iter().map(move |(device, value)| DeviceLimit { device, kind, value })
        };
        (self.device, self.device_cgroup_rule, limits.into_iter().flat_map(limit).collect())
    }
}

/// `SRC`, `SRC:ACCESS`, `SRC:DST` or `SRC:DST:ACCESS`.
fn device(text: &str) -> Result<Device, String> {
    let invalid = || "it must be SRC[:DST[:ACCESS]], such as /dev/fuse or /dev/sda:/dev/disk:r".to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, access) = match *parts.as_slice() {
        [source] => (source, source, "rwm"),
        [source, second] if second.starts_with('/') => (source, second, "rwm"),
        [source, second] => (source, source, second),
        [source, destination, access] => (source, destination, access),
        _ => return Err(invalid()),
    };
    if !source.starts_with('/') || !destination.starts_with('/') {
        return Err(invalid());
    }
    let access = access.parse().map_err(|_| format!("{access:?} is no access: it must be of r, w and m"))?;
    Ok(Device { source: source.into(), destination: destination.into(), access })
}

fn rule(text: &str) -> Result<DeviceRule, String> {
    text.parse().map_err(|_| "it must be TYPE MAJOR:MINOR ACCESS, such as 'c 42:* rwm'".to_owned())
}

fn limit(text: &str, parse: impl Fn(&str) -> Result<u64, String>) -> Result<(PathBuf, u64), String> {
    let invalid = || "it must be a device and a number, such as /dev/sda:1000".to_owned();
    let (device, value) = text.rsplit_once(':').ok_or_else(invalid)?;
    if !device.starts_with("/dev/") {
        return Err(invalid());
    }
    Ok((device.into(), parse(value)?))
}

fn bytes(text: &str) -> Result<(PathBuf, u64), String> {
    limit(text, quantity::bytes)
}

fn number(text: &str) -> Result<(PathBuf, u64), String> {
    limit(text, |value| value.parse().map_err(|_| format!("{value:?} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, expected) in [
            ("/dev/fuse", Some("/dev/fuse /dev/fuse rwm")),
            ("/dev/fuse:r", Some("/dev/fuse /dev/fuse r")),
            ("/dev/a:/dev/b", Some("/dev/a /dev/b rwm")),
            ("/dev/a:/dev/b:wm", Some("/dev/a /dev/b wm")),
            ("/dev/a:/dev/b:q", None),
            ("/dev/a:b:r", None),
            ("vendor.com/gpu=all", None),
            ("", None),
            ("/dev/a:/dev/b:r:x", None),
        ] {
            let shown = |one: Device| format!("{} {} {}", one.source.display(), one.destination.display(), one.access);
            assert_eq!(device(text).ok().map(shown).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(bytes("/dev/sda:1m"), Ok(("/dev/sda".into(), 1 << 20)));
        assert_eq!(number("/dev/sda:5"), Ok(("/dev/sda".into(), 5)));
        for refused in ["/dev/sda", "/dev/sda:x", "sda:5", ":5", "5"] {
            assert!(number(refused).is_err() && bytes(refused).is_err(), "{refused}");
        }
    }
}
