//! Limits that version 2 alone has, or that few machines offer: on a cgroup2 file system with these controllers.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::json;

use crate::cgroup::{controllers, demand, make, only, read, resources, run, spawn, unified, until};
use crate::sandbox::{Outcome, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    let available = controllers();
    let has = |controller: &str| available.split_whitespace().any(|a| a == controller);
    let huge = fs::metadata("/sys/kernel/mm/hugepages/hugepages-2048kB").is_ok();
    let disk = disk();
    let needs = |names: &[&str]| names.iter().all(|name| has(name));
    vec![
        only(
            privileged("cgroup_v2_memory_oom_group_kills_all", group),
            needs(&["memory"]),
            "needs the memory controller in version 2",
        ),
        only(
            privileged("cgroup_v2_io_limits_are_the_disks", io),
            needs(&["io"]) && disk.is_some(),
            "needs the io controller in version 2, and a disk",
        ),
        only(
            privileged("cgroup_v2_huge_pages_are_limited", huge_pages),
            needs(&["hugetlb"]) && huge,
            "needs the hugetlb controller in version 2, and huge pages of 2 MiB",
        ),
        only(
            privileged("cgroup_v2_cpu_limit_slows_down", cpu),
            needs(&["cpu"]),
            "needs the cpu controller in version 2",
        ),
    ]
}

/// With `memory.oom.group` one that takes too much takes the others with it.
fn group() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    for (group, left) in [("0", 1), ("1", 0)] {
        let limits = json!({ "memory": { "limit": 16 << 20 }, "unified": { "memory.oom.group": group } });
        let cgroup = make(&hierarchies, limits)?;
        let mut bystander = spawn(&cgroup, "exec sleep 1000")?;
        until("it has joined", || cgroup.pids().is_ok_and(|pids| pids.len() == 1))?;
        let _ = run(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=64M count=1")?;
        demand(cgroup.oom_kills()? > 0, || "nothing was killed".to_owned())?;
        if left == 0 {
            until("all have been killed", || matches!(bystander.try_wait(), Ok(Some(_))))?;
        } else {
            std::thread::sleep(Duration::from_millis(200));
        }
        let pids = cgroup.pids()?;
        demand(pids.len() == left, || format!("with memory.oom.group {group} there are {pids:?}"))?;
        cgroup.kill()?;
        let _ = bystander.wait();
    }
    Ok(())
}

/// The numbers of a disk.
fn disk() -> Option<(u32, u32)> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
    let mut numbers = disks.filter(|path| path.join("device").exists()).filter_map(|path| {
        let text = fs::read_to_string(path.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    numbers.next()
}

fn io() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let (major, minor) = disk().ok_or("no disk")?;
    let device = |rate: u32| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let cgroup = make(
        &hierarchies,
        json!({ "blockIO": { "throttleReadBpsDevice": device(1_048_576), "throttleWriteIOPSDevice": device(50) } }),
    )?;
    let found = read(&cgroup, "", "io.max")?;
    let wanted = format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=50");
    demand(found == wanted, || format!("io.max is {found:?}, and should be {wanted:?}"))?;
    cgroup.set(&resources(json!({ "blockIO": { "throttleReadBpsDevice": device(2_097_152) } }))?)?;
    let found = read(&cgroup, "", "io.max")?;
    demand(found.contains("rbps=2097152") && found.contains("wiops=50"), || format!("changed, io.max is {found:?}"))
}

fn huge_pages() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let cgroup = make(&hierarchies, json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }] }))?;
    let found = read(&cgroup, "", "hugetlb.2MB.max")?;
    demand(found == "4194304", || format!("hugetlb.2MB.max is {found}"))
}

/// A tenth of a processor: who wants a whole one is held up.
fn cpu() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let cgroup = make(&hierarchies, json!({ "cpu": { "quota": 10_000, "period": 100_000 } }))?;
    let mut busy = spawn(&cgroup, "while :; do :; done")?;
    let held_up = || {
        let stat = read(&cgroup, "", "cpu.stat").unwrap_or_default();
        let times = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse::<u32>().ok());
        times.is_some_and(|times| times >= 3)
    };
    let slowed = until("it is held up", held_up);
    cgroup.kill()?;
    busy.wait()?;
    slowed
}
