//! `linux.resources` in the files of cgroup version 2 (the kernel's `Documentation/admin-guide/cgroup-v2.rst`).

use std::collections::HashMap;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory};

use super::hierarchies::Controller;
use super::limits::{Current, Setting};
use super::v1::{self, set};
use crate::error::{Error, Result};

pub(super) fn memory(memory: &LinuxMemory, current: Current<'_>) -> Result<Vec<Setting>> {
    v1::check_swap(memory)?;
    v1::refuse_kernel_memory(memory)?;
    if set(memory.kernel_tcp()).is_some_and(|v| v != -1) {
        return Err(only_v1("linux.resources.memory.kernelTCP"));
    }
    if memory.swappiness().is_some() {
        return Err(only_v1("linux.resources.memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(only_v1("linux.resources.memory.disableOOMKiller"));
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(only_v1("linux.resources.memory.useHierarchy"));
    }
    let mut settings = Vec::new();
    let limit = set(memory.limit());
    if let Some(limit) = limit {
        settings.push(put("linux.resources.memory.limit", "memory.max", amount(limit)));
    }
    // The specification counts memory and swap together; version 2 counts swap alone.
    let swap = match (set(memory.swap()), limit) {
        (Some(-1), _) | (None, Some(-1)) => Some("max".to_owned()),
        (Some(swap), Some(limit)) => Some((swap - limit).to_string()),
        (Some(swap), None) => {
            let invalid =
                |reason: String| Error::InvalidSpec { field: "linux.resources.memory.swap".to_owned(), reason };
            let limit = current("memory.max").ok().and_then(|text| text.trim().parse::<i64>().ok());
            let limit = limit
                .ok_or_else(|| invalid("it needs memory.limit, since version 2 limits swap by itself".to_owned()))?;
            if swap < limit {
                return Err(invalid(format!(
                    "{swap} is below memory.limit, {limit}; it counts memory and swap together"
                )));
            }
            Some((swap - limit).to_string())
        }
        (None, _) => None,
    };
    if let Some(swap) = swap {
        let idle = swap == "max" || swap == "0";
        let setting = put("linux.resources.memory.swap", "memory.swap.max", swap);
        // The file is missing where swap is: none can be used, so there is nothing to lift or to forbid.
        settings.push(if idle { setting.accept_absent() } else { setting });
    }
    if let Some(reservation) = set(memory.reservation()) {
        settings.push(put("linux.resources.memory.reservation", "memory.low", amount(reservation)));
    }
    Ok(settings)
}

fn put(field: &'static str, file: &'static str, value: String) -> Setting {
    Setting::new(field, Controller::Memory, file, value)
}

fn amount(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

pub(super) fn cpu(cpu: &LinuxCpu, current: Current<'_>) -> Result<Vec<Setting>> {
    for (field, is_set) in [
        ("linux.resources.cpu.realtimePeriod", set(cpu.realtime_period()).is_some()),
        ("linux.resources.cpu.realtimeRuntime", set(cpu.realtime_runtime()).is_some()),
    ] {
        if is_set {
            return Err(only_v1(field));
        }
    }
    let mut settings = Vec::new();
    let mut put = |field: &'static str, file: &'static str, value: String| {
        settings.push(Setting::new(field, Controller::Cpu, file, value));
    };
    if let Some(shares) = v1::shares(cpu)? {
        put("linux.resources.cpu.shares", "cpu.weight", weight(shares).to_string());
    }
    let period = set(cpu.period());
    match (set(cpu.quota()), period) {
        (Some(quota), period) => {
            let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
            let value = period.map_or(quota.clone(), |p| format!("{quota} {p}"));
            put("linux.resources.cpu.quota", "cpu.max", value);
        }
        (None, Some(period)) => {
            // The file holds both, and a period alone cannot be written.
            let now = current("cpu.max").unwrap_or_default();
            let quota = now.split_whitespace().next().unwrap_or("max");
            put("linux.resources.cpu.period", "cpu.max", format!("{quota} {period}"));
        }
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst() {
        put("linux.resources.cpu.burst", "cpu.max.burst", burst.to_string());
    }
    if let Some(idle) = cpu.idle() {
        put("linux.resources.cpu.idle", "cpu.idle", idle.to_string());
    }
    Ok(settings)
}

/// The weight (1 to 10000, 100 by default) for a number of shares (2 to 262144, 1024 by default).
///
/// The curve that runc 1.4 and crun 1.23 agreed on: smallest, default and largest become smallest, default and largest, which the
/// straight line that was used before did not do.
fn weight(shares: u64) -> u64 {
    // From 2 to 262144, checked before.
    let log = f64::from(shares as u32).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10_f64.powf(exponent);
    // The ends are exact but for rounding, which must not carry them to the next number.
    ((weight - 1e-9).ceil() as u64).clamp(1, 10_000)
}

pub(super) fn cpuset(cpu: &LinuxCpu) -> Vec<Setting> {
    // The files have the same names; each is optional in version 2, where the parent's set is the default.
    v1::cpuset(cpu)
}

pub(super) fn block_io(io: &LinuxBlockIo) -> Result<Vec<Setting>> {
    v1::refuse_leaf_weight(io)?;
    let mut settings = Vec::new();
    let mut put = |field, file: &'static str, value| settings.push(Setting::new(field, Controller::Blkio, file, value));
    if let Some(weight) = set(io.weight()) {
        put("linux.resources.blockIO.weight", "io.weight", format!("default {}", io_weight(weight)));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = set(device.weight()) {
            let value = format!("{}:{} {}", device.major(), device.minor(), io_weight(weight));
            put("linux.resources.blockIO.weightDevice", "io.weight", value);
        }
    }
    for (field, _, key, devices) in v1::throttles(io) {
        for device in devices {
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            put(field, "io.max", format!("{}:{} {key}={rate}", device.major(), device.minor()));
        }
    }
    Ok(settings)
}

/// From 10 to 1000 to 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

pub(super) fn hugetlb(limits: &[LinuxHugepageLimit]) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for limit in limits {
        let size = v1::page_size(limit)?;
        let field = "linux.resources.hugepageLimits";
        let value = amount(limit.limit());
        settings.push(Setting::new(field, Controller::Hugetlb, format!("hugetlb.{size}.max"), &value));
        // Reservations are counted since Linux 5.7, where a process is refused its mmap instead of being killed.
        let reserved = Setting::new(field, Controller::Hugetlb, format!("hugetlb.{size}.rsvd.max"), &value);
        settings.push(reserved.accept_absent());
    }
    Ok(settings)
}

/// `linux.resources.unified`: files of version 2 by name. A value of several lines is written line by line.
pub(super) fn unified(files: &HashMap<String, String>) -> Result<Vec<Setting>> {
    let mut names: Vec<&String> = files.keys().collect();
    names.sort_unstable();
    let mut settings = Vec::new();
    for name in names {
        let field = format!("linux.resources.unified.{name}");
        let refuse = |reason: &str| Err(Error::InvalidSpec { field: field.clone(), reason: reason.to_owned() });
        if name.contains(['/', '\0']) || !name.contains('.') || name.starts_with('.') {
            return refuse("it is not the name of a control file");
        }
        let controller = match name.split('.').next().unwrap_or_default() {
            "cgroup" if matches!(name.as_str(), "cgroup.max.depth" | "cgroup.max.descendants") => Controller::Freezer,
            // Processes, freezing, killing and controllers are the runtime's own business.
            "cgroup" => return refuse("it does not set a resource"),
            "cpu" => Controller::Cpu,
            "cpuset" => Controller::Cpuset,
            "memory" => Controller::Memory,
            "io" => Controller::Blkio,
            "pids" => Controller::Pids,
            "hugetlb" => Controller::Hugetlb,
            "rdma" => Controller::Rdma,
            "misc" => Controller::Misc,
            _ => return refuse("its controller is not known"),
        };
        let lines = files[name].lines().filter(|l| !l.is_empty());
        settings.extend(lines.map(|line| Setting::new(field.clone(), controller, name.clone(), line)));
    }
    Ok(settings)
}

fn only_v1(field: &str) -> Error {
    Error::UnsupportedField {
        field: field.to_owned(),
        reason: "cgroup version 2, which this host uses, has no such control".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxResources;
    use serde_json::{Value, json};

    use super::super::hierarchies::{Controller, Home};
    use super::super::limits::{self, Absent};
    use super::*;

    fn plan(value: &Value) -> Result<Vec<Setting>> {
        let resources: LinuxResources = serde_json::from_value(value.clone()).expect("resources");
        let home = |c: Controller| if c.v2_name().is_some() { Home::V2 } else { Home::Nowhere };
        let plan = limits::plan(&resources, &home, &|file| {
            Ok(if file == "memory.max" { "300\n".to_owned() } else { "12345 100000\n".to_owned() })
        })?;
        assert_eq!(plan.v1, []);
        Ok(plan.v2)
    }

    #[test]
    fn files_and_values() {
        let table = [
            (json!({ "memory": { "limit": 100 } }), &[("memory.max", "100")][..]),
            (json!({ "memory": { "limit": -1 } }), &[("memory.max", "max"), ("memory.swap.max", "max")]),
            (json!({ "memory": { "limit": 100, "swap": 150 } }), &[("memory.max", "100"), ("memory.swap.max", "50")]),
            (json!({ "memory": { "limit": 100, "swap": 100 } }), &[("memory.max", "100"), ("memory.swap.max", "0")]),
            (json!({ "memory": { "limit": 100, "swap": -1 } }), &[("memory.max", "100"), ("memory.swap.max", "max")]),
            (json!({ "memory": { "limit": 0, "reservation": 7 } }), &[("memory.low", "7")]),
            // Swap alone starts from the limit that is there.
            (json!({ "memory": { "swap": 500 } }), &[("memory.swap.max", "200")]),
            (json!({ "memory": { "disableOOMKiller": false, "useHierarchy": true, "kernelTCP": -1 } }), &[]),
            (json!({ "cpu": { "shares": 1024 } }), &[("cpu.weight", "100")]),
            (json!({ "cpu": { "quota": 50000, "period": 100_000 } }), &[("cpu.max", "50000 100000")]),
            (json!({ "cpu": { "quota": 50000 } }), &[("cpu.max", "50000")]),
            (json!({ "cpu": { "quota": -1, "period": 7000 } }), &[("cpu.max", "max 7000")]),
            // A period alone keeps the quota that is there.
            (json!({ "cpu": { "period": 7000 } }), &[("cpu.max", "12345 7000")]),
            (json!({ "cpu": { "burst": 5, "idle": 1 } }), &[("cpu.max.burst", "5"), ("cpu.idle", "1")]),
            (json!({ "cpu": { "cpus": "0-1", "mems": "0" } }), &[("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
            (json!({ "pids": { "limit": 9 } }), &[("pids.max", "9")]),
            (json!({ "blockIO": { "weight": 500 } }), &[("io.weight", "default 4950")]),
            (
                json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": 10 }] } }),
                &[("io.weight", "8:0 1")],
            ),
            (
                json!({ "blockIO": {
                    "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 5 }],
                    "throttleWriteIOPSDevice": [{ "major": 8, "minor": 1, "rate": 0 }],
                } }),
                &[("io.max", "8:0 rbps=5"), ("io.max", "8:1 wiops=max")],
            ),
            (
                json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
                &[("hugetlb.2MB.max", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")],
            ),
            (json!({ "rdma": { "mlx": { "hcaHandles": 3 } } }), &[("rdma.max", "mlx hca_handle=3")]),
            (
                json!({ "unified": { "io.max": "8:0 rbps=1\n8:1 rbps=2", "memory.high": "5" } }),
                &[("io.max", "8:0 rbps=1"), ("io.max", "8:1 rbps=2"), ("memory.high", "5")],
            ),
        ];
        for (value, want) in table {
            let got = plan(&value).unwrap_or_else(|e| panic!("{value}: {e}"));
            let got: Vec<(&str, &str)> = got.iter().map(|s| (&*s.file, s.value.as_str())).collect();
            assert_eq!(got, want, "{value}");
        }
    }

    #[test]
    fn what_version_2_has_not_is_refused_by_name() {
        let table = [
            (json!({ "memory": { "swap": 100 } }), "linux.resources.memory.swap"),
            (json!({ "memory": { "limit": 100, "swap": 50 } }), "linux.resources.memory.swap"),
            (json!({ "memory": { "swappiness": 0 } }), "linux.resources.memory.swappiness"),
            (json!({ "memory": { "disableOOMKiller": true } }), "linux.resources.memory.disableOOMKiller"),
            (json!({ "memory": { "useHierarchy": false } }), "linux.resources.memory.useHierarchy"),
            (json!({ "memory": { "kernelTCP": 5 } }), "linux.resources.memory.kernelTCP"),
            (json!({ "cpu": { "realtimeRuntime": 5 } }), "linux.resources.cpu.realtimeRuntime"),
            (json!({ "cpu": { "realtimePeriod": 5 } }), "linux.resources.cpu.realtimePeriod"),
            (json!({ "network": { "classID": 5 } }), "linux.resources.network.classID"),
            (
                json!({ "network": { "priorities": [{ "name": "eth0", "priority": 5 }] } }),
                "linux.resources.network.priorities",
            ),
            (
                json!({ "unified": { "cgroup.subtree_control": "+cpu" } }),
                "linux.resources.unified.cgroup.subtree_control",
            ),
            (json!({ "unified": { "nothing.max": "5" } }), "linux.resources.unified.nothing.max"),
        ];
        for (value, want) in table {
            match plan(&value) {
                Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) if field == want => {}
                other => panic!("{value}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_ends_and_the_middle_of_shares_are_those_of_weights() {
        for (shares, want) in [(2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }

    #[test]
    fn swap_that_is_not_there_is_needed_only_for_a_limit() {
        let absent = |value: Value| {
            plan(&value).expect("plan").into_iter().find(|s| s.file == "memory.swap.max").map(|s| s.absent)
        };
        assert_eq!(absent(json!({ "memory": { "limit": 100, "swap": 150 } })), Some(Absent::Refuse));
        assert_eq!(absent(json!({ "memory": { "limit": 100, "swap": 100 } })), Some(Absent::Accept));
        assert_eq!(absent(json!({ "memory": { "limit": 100, "swap": -1 } })), Some(Absent::Accept));
    }
}
