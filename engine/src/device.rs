//! The host's devices, as a container's configuration names them.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::error::{Error, Result};
use crate::request::{Device, DeviceKind, DeviceRule};
use crate::spec::{HostFiles, built};

/// What every container has of its own.
const OWN: [&str; 7] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/fd", "/dev/ptmx", "/dev/tty"];

/// A device that was asked for, or all below a folder, and that the container may use them.
pub(crate) fn add(device: &Device, files: &mut HostFiles) -> Result<()> {
    let access = device.access;
    let refused = |reason| Error::Request { field: "the device", value: device.source.display().to_string(), reason };
    if !device.destination.is_absolute() {
        return Err(refused("its path in the container must be absolute"));
    }
    let metadata = fs::metadata(&device.source).map_err(Error::io("use the device", &device.source))?;
    let first = files.devices.len();
    if metadata.is_dir() {
        below(&device.source, &device.destination, &mut files.devices)?;
    } else {
        let one = of(&device.destination, &metadata)?.ok_or_else(|| refused("it is a file and no device"))?;
        files.devices.push(one);
    }
    for one in files.devices.get(first..).unwrap_or_default() {
        let number = |number: i64| u32::try_from(number).ok();
        let kind = if one.typ() == LinuxDeviceType::B { DeviceKind::Block } else { DeviceKind::Char };
        let (major, minor) = (number(one.major()), number(one.minor()));
        files.device_rules.push(DeviceRule { kind: Some(kind), major, minor, access });
    }
    Ok(())
}

/// The devices below a folder of the host, but for terminals and what every container has of its own, at another place.
pub(crate) fn below(folder: &Path, place: &Path, found: &mut Vec<LinuxDevice>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        let path = entry.path();
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        // What goes away meanwhile is not there.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let inside = place.join(entry.file_name());
        if metadata.is_dir() {
            below(&path, &inside, found)?;
        } else {
            found.extend(of(&inside, &metadata)?);
        }
    }
    Ok(())
}

/// A block device's number.
pub(crate) fn number(path: &Path) -> Result<(u32, u32)> {
    let metadata = fs::metadata(path).map_err(Error::io("use the device", path))?;
    if !metadata.file_type().is_block_device() {
        let reason = "it is no block device";
        return Err(Error::Request { field: "the device", value: path.display().to_string(), reason });
    }
    let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
    Ok((u32::try_from(major).unwrap_or_default(), u32::try_from(minor).unwrap_or_default()))
}

fn of(place: &Path, metadata: &Metadata) -> Result<Option<LinuxDevice>> {
    let kind = metadata.file_type();
    let typ = match () {
        () if kind.is_char_device() => LinuxDeviceType::C,
        () if kind.is_block_device() => LinuxDeviceType::B,
        () => return Ok(None),
    };
    let device = LinuxDeviceBuilder::default()
        .path(place)
        .typ(typ)
        .major(i64::try_from(nix::sys::stat::major(metadata.rdev())).unwrap_or_default())
        .minor(i64::try_from(nix::sys::stat::minor(metadata.rdev())).unwrap_or_default())
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid());
    built("linux.devices", device.build()).map(Some)
}
