//! `linux.resources` in the files of cgroup version 1 (the kernel's `Documentation/admin-guide/cgroup-v1`).
//!
//! As with the other runtimes, 0 means "not set" for the limits of memory and processor.

use std::collections::HashMap;
use std::fmt::Write as _;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxRdma, LinuxThrottleDevice,
};

use super::hierarchies::Controller;
use super::limits::Setting;
use crate::error::{Error, Result};

pub(super) fn memory(memory: &LinuxMemory) -> Result<Vec<Setting>> {
    let put = |field, file: &'static str, value: i64| Setting::new(field, Controller::Memory, file, value);
    check_swap(memory)?;
    refuse_kernel_memory(memory)?;
    let mut settings = Vec::new();
    let limit = set(memory.limit());
    if let Some(limit) = limit {
        settings.push(put("linux.resources.memory.limit", "memory.limit_in_bytes", limit));
    }
    // Memory and swap together; without a limit on memory there is none on both.
    let swap = set(memory.swap()).or(limit.filter(|l| *l == -1));
    if let Some(swap) = swap {
        let setting = put("linux.resources.memory.swap", "memory.memsw.limit_in_bytes", swap);
        // Without swap accounting there is no limit to lift.
        settings.push(if swap == -1 { setting.accept_absent() } else { setting });
    }
    if let Some(reservation) = set(memory.reservation()) {
        settings.push(put("linux.resources.memory.reservation", "memory.soft_limit_in_bytes", reservation));
    }
    if let Some(tcp) = set(memory.kernel_tcp()) {
        settings.push(put("linux.resources.memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", tcp));
    }
    if let Some(swappiness) = memory.swappiness() {
        let field = "linux.resources.memory.swappiness";
        settings.push(Setting::new(field, Controller::Memory, "memory.swappiness", swappiness));
    }
    if let Some(disabled) = memory.disable_oom_killer() {
        let field = "linux.resources.memory.disableOOMKiller";
        settings.push(Setting::new(field, Controller::Memory, "memory.oom_control", u8::from(disabled)));
    }
    if let Some(hierarchy) = memory.use_hierarchy() {
        let field = "linux.resources.memory.useHierarchy";
        settings.push(Setting::new(field, Controller::Memory, "memory.use_hierarchy", u8::from(hierarchy)));
    }
    // checkBeforeUpdate: the kernel itself refuses a limit below the usage (EBUSY).
    Ok(settings)
}

/// Swap counts memory and swap together, so it cannot be below the limit of memory alone.
pub(super) fn check_swap(memory: &LinuxMemory) -> Result<()> {
    match (set(memory.limit()), set(memory.swap())) {
        (Some(limit), Some(swap)) if swap >= 0 && (limit == -1 || swap < limit) => Err(Error::InvalidSpec {
            field: "linux.resources.memory.swap".to_owned(),
            reason: format!("{swap} is below memory.limit, {limit}; it counts memory and swap together"),
        }),
        _ => Ok(()),
    }
}

pub(super) fn refuse_kernel_memory(memory: &LinuxMemory) -> Result<()> {
    match memory.kernel() {
        None | Some(-1 | 0) => Ok(()),
        Some(_) => Err(Error::UnsupportedField {
            field: "linux.resources.memory.kernel".to_owned(),
            reason: "Linux 5.16 took limits on kernel memory away; memory.limit counts it, too".to_owned(),
        }),
    }
}

pub(super) fn cpu(cpu: &LinuxCpu) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut put = |field: &'static str, file: &'static str, value: Option<String>| {
        settings.extend(value.map(|value| Setting::new(field, Controller::Cpu, file, value)));
    };
    put("linux.resources.cpu.shares", "cpu.shares", shares(cpu)?.map(|s| s.to_string()));
    put("linux.resources.cpu.period", "cpu.cfs_period_us", text(cpu.period()));
    put("linux.resources.cpu.quota", "cpu.cfs_quota_us", text(cpu.quota()));
    put("linux.resources.cpu.burst", "cpu.cfs_burst_us", cpu.burst().map(|v| v.to_string()));
    put("linux.resources.cpu.idle", "cpu.idle", cpu.idle().map(|v| v.to_string()));
    put("linux.resources.cpu.realtimePeriod", "cpu.rt_period_us", text(cpu.realtime_period()));
    put("linux.resources.cpu.realtimeRuntime", "cpu.rt_runtime_us", text(cpu.realtime_runtime()));
    Ok(settings)
}

/// The shares, if they are what the kernel takes as it is: others it changes without a word.
pub(super) fn shares(cpu: &LinuxCpu) -> Result<Option<u64>> {
    match set(cpu.shares()) {
        Some(shares) if !(2..=262_144).contains(&shares) => Err(Error::InvalidSpec {
            field: "linux.resources.cpu.shares".to_owned(),
            reason: format!("{shares} is not from 2 to 262144"),
        }),
        shares => Ok(shares),
    }
}

pub(super) fn cpuset(cpu: &LinuxCpu) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut put = |field: &'static str, file: &'static str, list: &Option<String>| {
        if let Some(list) = list.as_ref().filter(|l| !l.is_empty()) {
            settings.push(Setting::new(field, Controller::Cpuset, file, list));
        }
    };
    put("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus());
    put("linux.resources.cpu.mems", "cpuset.mems", cpu.mems());
    settings
}

/// The file is the same in both versions. 0 and less are no limit.
pub(super) fn pids(pids: LinuxPids) -> Vec<Setting> {
    let limit = pids.limit();
    let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
    vec![Setting::new("linux.resources.pids.limit", Controller::Pids, "pids.max", value)]
}

pub(super) fn block_io(io: &LinuxBlockIo) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    refuse_leaf_weight(io)?;
    if let Some(weight) = set(io.weight()) {
        let setting = Setting::new("linux.resources.blockIO.weight", Controller::Blkio, "blkio.weight", weight);
        settings.push(setting.or_file("blkio.bfq.weight"));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let field = "linux.resources.blockIO.weightDevice";
            let setting = Setting::new(field, Controller::Blkio, "blkio.weight_device", value);
            settings.push(setting.or_file("blkio.bfq.weight_device"));
        }
    }
    for (field, file, _, devices) in throttles(io) {
        for device in devices {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            settings.push(Setting::new(field, Controller::Blkio, file, value));
        }
    }
    Ok(settings)
}

/// Field, file of version 1, key of version 2's `io.max`, and the devices, of the four throttles.
pub(super) fn throttles(io: &LinuxBlockIo) -> [(&'static str, &'static str, &'static str, &[LinuxThrottleDevice]); 4] {
    let devices = |list: &'static str, file, key, devices| (list, file, key, devices);
    [
        devices(
            "linux.resources.blockIO.throttleReadBpsDevice",
            "blkio.throttle.read_bps_device",
            "rbps",
            io.throttle_read_bps_device().as_deref().unwrap_or_default(),
        ),
        devices(
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "blkio.throttle.write_bps_device",
            "wbps",
            io.throttle_write_bps_device().as_deref().unwrap_or_default(),
        ),
        devices(
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "blkio.throttle.read_iops_device",
            "riops",
            io.throttle_read_iops_device().as_deref().unwrap_or_default(),
        ),
        devices(
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "blkio.throttle.write_iops_device",
            "wiops",
            io.throttle_write_iops_device().as_deref().unwrap_or_default(),
        ),
    ]
}

pub(super) fn refuse_leaf_weight(io: &LinuxBlockIo) -> Result<()> {
    let refuse = |field: &str| {
        Err(Error::UnsupportedField {
            field: field.to_owned(),
            reason: "it belonged to the CFQ scheduler, which Linux 5.0 removed".to_owned(),
        })
    };
    if set(io.leaf_weight()).is_some() {
        return refuse("linux.resources.blockIO.leafWeight");
    }
    if io.weight_device().iter().flatten().any(|d| set(d.leaf_weight()).is_some()) {
        return refuse("linux.resources.blockIO.weightDevice.leafWeight");
    }
    Ok(())
}

pub(super) fn hugetlb(limits: &[LinuxHugepageLimit]) -> Result<Vec<Setting>> {
    limits
        .iter()
        .map(|limit| {
            let file = format!("hugetlb.{}.limit_in_bytes", page_size(limit)?);
            Ok(Setting::new("linux.resources.hugepageLimits", Controller::Hugetlb, file, limit.limit()))
        })
        .collect()
}

/// The page size, which becomes a part of a file's name: `2MB`, `1GB`.
pub(super) fn page_size(limit: &LinuxHugepageLimit) -> Result<&str> {
    let size = limit.page_size();
    let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    if !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(&size[digits.len()..], "KB" | "MB" | "GB")
    {
        return Ok(size);
    }
    Err(Error::InvalidSpec {
        field: "linux.resources.hugepageLimits.pageSize".to_owned(),
        reason: format!("{size:?} is not a number and KB, MB or GB"),
    })
}

pub(super) fn net_cls(network: &LinuxNetwork) -> Vec<Setting> {
    let class = set(network.class_id());
    let put = |id| Setting::new("linux.resources.network.classID", Controller::NetCls, "net_cls.classid", id);
    class.map(put).into_iter().collect()
}

pub(super) fn net_prio(network: &LinuxNetwork) -> Vec<Setting> {
    let priorities = network.priorities().iter().flatten();
    let put = |p: &oci_spec::runtime::LinuxInterfacePriority| {
        let value = format!("{} {}", p.name(), p.priority());
        Setting::new("linux.resources.network.priorities", Controller::NetPrio, "net_prio.ifpriomap", value)
    };
    priorities.map(put).collect()
}

/// The file is the same in both versions.
pub(super) fn rdma(devices: &HashMap<String, LinuxRdma>) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (device, limits) in devices {
        let mut value = device.clone();
        for (key, limit) in [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())] {
            if let Some(limit) = limit {
                let _ = write!(value, " {key}={limit}");
            }
        }
        if value.len() > device.len() {
            settings.push(Setting::new("linux.resources.rdma", Controller::Rdma, "rdma.max", value));
        }
    }
    settings
}

/// A value that is there and is not 0.
pub(super) fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|v| *v != T::default())
}

fn text<T: Default + PartialEq + ToString>(value: Option<T>) -> Option<String> {
    set(value).map(|v| v.to_string())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxResources;
    use serde_json::json;

    use super::super::hierarchies::Home;
    use super::super::limits;

    #[test]
    fn files_and_values() {
        let table = [
            (
                json!({ "memory": { "limit": 100, "swap": 150, "reservation": 50, "kernelTCP": 7 } }),
                &[
                    ("memory.limit_in_bytes", "100"),
                    ("memory.memsw.limit_in_bytes", "150"),
                    ("memory.soft_limit_in_bytes", "50"),
                    ("memory.kmem.tcp.limit_in_bytes", "7"),
                ][..],
            ),
            (
                json!({ "memory": { "limit": -1 } }),
                &[("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")],
            ),
            (
                json!({ "memory": { "swappiness": 5, "disableOOMKiller": true, "useHierarchy": true } }),
                &[("memory.swappiness", "5"), ("memory.oom_control", "1"), ("memory.use_hierarchy", "1")],
            ),
            (
                json!({ "cpu": { "shares": 2, "quota": 5, "period": 6, "realtimeRuntime": 7, "realtimePeriod": 8 } }),
                &[
                    ("cpu.shares", "2"),
                    ("cpu.cfs_period_us", "6"),
                    ("cpu.cfs_quota_us", "5"),
                    ("cpu.rt_period_us", "8"),
                    ("cpu.rt_runtime_us", "7"),
                ],
            ),
            (json!({ "blockIO": { "weight": 500 } }), &[("blkio.weight", "500")]),
            (
                json!({ "blockIO": { "throttleWriteBpsDevice": [{ "major": 8, "minor": 0, "rate": 5 }] } }),
                &[("blkio.throttle.write_bps_device", "8:0 5")],
            ),
            (json!({ "hugepageLimits": [{ "pageSize": "1GB", "limit": 0 }] }), &[("hugetlb.1GB.limit_in_bytes", "0")]),
            (
                json!({ "network": { "classID": 5, "priorities": [{ "name": "eth0", "priority": 3 }] } }),
                &[("net_cls.classid", "5"), ("net_prio.ifpriomap", "eth0 3")],
            ),
        ];
        for (value, want) in table {
            let resources: LinuxResources = serde_json::from_value(value.clone()).expect("resources");
            let none = |_: &str| Err(std::io::ErrorKind::NotFound.into());
            let plan = limits::plan(&resources, &|_| Home::V1, &none).unwrap_or_else(|e| panic!("{value}: {e}"));
            let got: Vec<(&str, &str)> = plan.v1.iter().map(|s| (&*s.file, s.value.as_str())).collect();
            assert_eq!(got, want, "{value}");
            // Where the controller is nowhere, the same is refused, unless it is no limit.
            let nowhere = limits::plan(&resources, &|_| Home::Nowhere, &none);
            assert_eq!(nowhere.is_err(), want.iter().any(|(_, v)| *v != "-1"), "{value}");
        }
    }
}
