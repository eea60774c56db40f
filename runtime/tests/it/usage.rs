//! What containers may use and do use, while they run.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use estiba_runtime::oci_spec::runtime::LinuxResources;
use estiba_runtime::{Cgroup, Error, ExitStatus, Hierarchies, KillTarget, Runtime, Status, wait};
use libtest_mimic::{Failed, Trial};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::sandbox::{Outcome, Sandbox, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("update_changes_what_it_names", named),
        privileged("update_raises_and_lowers_memory_with_swap", swap),
        privileged("update_that_fails_changes_nothing", undone),
        privileged("update_needs_a_container_that_is_there", stopped),
        privileged("update_denies_no_devices_by_the_way", devices),
        privileged("stats_are_the_containers", stats),
        privileged("processes_are_those_of_all_cgroups_below", processes),
        privileged("oom_kills_are_told", oom),
    ]
}

const MIB: u64 = 1 << 20;

/// A control file of the container by its names in version 1 and 2.
fn control(sandbox: &Sandbox, v1: &str, v2: &str) -> Result<PathBuf, Failed> {
    let find = |name: &str| sandbox.cgroups().into_iter().map(|folder| folder.join(name)).find(|path| path.exists());
    find(v1).or_else(|| find(v2)).ok_or_else(|| format!("there is no {v1} and no {v2}").into())
}

fn read(sandbox: &Sandbox, v1: &str, v2: &str) -> Result<String, Failed> {
    Ok(fs::read_to_string(control(sandbox, v1, v2)?)?.trim().to_owned())
}

fn memory(sandbox: &Sandbox) -> Result<String, Failed> {
    read(sandbox, "memory.limit_in_bytes", "memory.max")
}

fn update(sandbox: &Sandbox, resources: Value) -> Result<(), Error> {
    let resources: LinuxResources = serde_json::from_value(resources).expect("resources");
    sandbox.native.update(&sandbox.id, &resources)
}

fn named() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] =
        json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"quota": 50_000, "period": 100_000}});
    let first = sandbox.running()?;
    update(&sandbox, json!({"pids": {"limit": 60}}))?;
    let look = |sandbox: &Sandbox| -> Result<_, Failed> {
        Ok((memory(sandbox)?, read(sandbox, "pids.max", "pids.max")?, read(sandbox, "cpu.cfs_quota_us", "cpu.max")?))
    };
    let quota = |quota: u32| {
        if control(&sandbox, "cpu.cfs_quota_us", "-").is_ok() { quota.to_string() } else { format!("{quota} 100000") }
    };
    same(look(&sandbox)?, ((64 * MIB).to_string(), "60".to_owned(), quota(50_000)))?;
    update(&sandbox, json!({"memory": {"limit": 80 * MIB}, "cpu": {"quota": 70_000, "shares": 512}}))?;
    same(look(&sandbox)?, ((80 * MIB).to_string(), "60".to_owned(), quota(70_000)))?;
    same(read(&sandbox, "cpu.shares", "cpu.weight")? != "1024", true)?;
    update(&sandbox, json!({"memory": {"reservation": 10 * MIB}, "pids": {"limit": -1}}))?;
    same(read(&sandbox, "memory.soft_limit_in_bytes", "memory.low")?, (10 * MIB).to_string())?;
    same(look(&sandbox)?, ((80 * MIB).to_string(), "max".to_owned(), quota(70_000)))?;
    update(&sandbox, json!({}))?;
    // A paused one, too.
    sandbox.native.pause(&sandbox.id)?;
    update(&sandbox, json!({"pids": {"limit": 30}}))?;
    same(look(&sandbox)?.1.as_str(), "30")?;
    sandbox.stop(&first)?;
    Ok(())
}

/// On version 1 the limit of memory cannot be above that of both: one has to be raised first, and the other lowered first.
fn swap() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] = json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}});
    let first = sandbox.running()?;
    let both = |sandbox: &Sandbox, limit: u64, swap: u64| -> Outcome {
        same(memory(sandbox)?, limit.to_string())?;
        let version1 = control(sandbox, "memory.memsw.limit_in_bytes", "-").is_ok();
        let wanted = if version1 { swap } else { swap - limit };
        same(read(sandbox, "memory.memsw.limit_in_bytes", "memory.swap.max")?, wanted.to_string())
    };
    both(&sandbox, 64 * MIB, 64 * MIB)?;
    for (limit, swap) in [(256, 256), (32, 32), (128, 200), (100, 100), (40, 300), (200, 300)] {
        update(&sandbox, json!({"memory": {"limit": limit * MIB, "swap": swap * MIB}}))?;
        both(&sandbox, limit * MIB, swap * MIB)?;
    }
    update(&sandbox, json!({"memory": {"swap": 280 * MIB}}))?;
    both(&sandbox, 200 * MIB, 280 * MIB)?;
    match update(&sandbox, json!({"memory": {"swap": 20 * MIB}})) {
        Err(Error::Limit { field, .. } | Error::InvalidSpec { field, .. }) => {
            same(field.as_str(), "linux.resources.memory.swap")?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    both(&sandbox, 200 * MIB, 280 * MIB)?;
    sandbox.stop(&first)?;
    Ok(())
}

fn undone() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] =
        json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"shares": 300}});
    let first = sandbox.running()?;
    let look = |sandbox: &Sandbox| -> Result<_, Failed> {
        Ok((
            memory(sandbox)?,
            read(sandbox, "memory.memsw.limit_in_bytes", "memory.swap.max")?,
            read(sandbox, "pids.max", "pids.max")?,
            read(sandbox, "cpu.shares", "cpu.weight")?,
            read(sandbox, "cpu.cfs_quota_us", "cpu.max")?,
        ))
    };
    let before = look(&sandbox)?;
    for (resources, field) in [
        // Both memory limits and the shares are changed by then.
        (
            json!({"memory": {"limit": 128 * MIB, "swap": 128 * MIB}, "cpu": {"shares": 400, "quota": 5}}),
            "linux.resources.cpu.quota",
        ),
        (json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}, "cpu": {"quota": 5}}), "linux.resources.cpu.quota"),
        (json!({"pids": {"limit": 9}, "memory": {"limit": 5}, "cpu": {"shares": 1}}), "linux.resources.cpu.shares"),
        (json!({"memory": {"limit": 128 * MIB, "swap": 64 * MIB}}), "linux.resources.memory.swap"),
        (json!({"cpu": {"shares": 700, "cpus": "999999"}}), "linux.resources.cpu.cpus"),
    ] {
        match update(&sandbox, resources.clone()) {
            Err(
                Error::Limit { field: found, .. }
                | Error::InvalidSpec { field: found, .. }
                | Error::UnsupportedField { field: found, .. },
            ) => {
                same(found.as_str(), field)?;
            }
            other => return Err(format!("{resources}: {other:?}").into()),
        }
        same(look(&sandbox)?, before.clone()).map_err(|failed| format!("{resources}: {failed:?}"))?;
    }
    sandbox.stop(&first)?;
    Ok(())
}

fn stopped() -> Outcome {
    let mut sandbox = Sandbox::new();
    same(matches!(update(&sandbox, json!({})), Err(Error::NotFound { .. })), true)?;
    sandbox.script("true");
    let (created, _out, _err) = sandbox.create()?;
    update(&sandbox, json!({"pids": {"limit": 40}}))?;
    same(read(&sandbox, "pids.max", "pids.max")?.as_str(), "40")?;
    sandbox.native.start(&sandbox.id)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    match update(&sandbox, json!({"pids": {"limit": 41}})) {
        Err(Error::WrongStatus { status: Status::Stopped, operation: "update", .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

/// A list of rules that is there and empty is no rule that denies all.
fn devices() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let process = Sandbox::process("echo x > /dev/null && head -c 3 /dev/zero | cat | grep -c .");
    std::os::unix::fs::symlink("busybox", sandbox.rootfs().join("bin/head"))?;
    same(sandbox.exec_output(&process)?.as_str(), "1\n")?;
    update(&sandbox, json!({"devices": [], "pids": {"limit": 100}}))?;
    same(sandbox.exec_output(&process)?.as_str(), "1\n")?;
    sandbox.stop(&first)?;
    Ok(())
}

fn stats() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] = json!({
        "memory": {"limit": 64 * MIB}, "pids": {"limit": 50}, "cpu": {"quota": 20_000, "period": 100_000}
    });
    same(matches!(sandbox.native.stats(&sandbox.id), Err(Error::NotFound { .. })), true)?;
    // Memory that is used, processor time that is, and more than the quota of it.
    sandbox.script("busybox dd if=/dev/zero of=/dev/shm/x bs=1024 count=60 2>/dev/null; sleep 1000 & i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo ready; wait");
    let (created, mut stdout, _err) = sandbox.create()?;
    sandbox.native.start(&sandbox.id)?;
    let mut ready = [0u8; 6];
    stdout.read_exact(&mut ready)?;
    same(&ready, b"ready\n")?;
    let stats = sandbox.native.stats(&sandbox.id)?;
    let seen = format!("{stats:?}");
    same((stats.pids.current, stats.pids.limit), (2, Some(50))).map_err(|_| seen.clone())?;
    same(stats.memory.limit, Some(64 * MIB))?;
    let usage = stats.memory.usage;
    same((60 * 1024..64 * MIB).contains(&usage) && stats.memory.max_usage >= usage, true).map_err(|_| seen.clone())?;
    same(stats.memory.anon > 0 && stats.memory.anon < usage && stats.memory.oom_kills == 0, true)
        .map_err(|_| seen.clone())?;
    let cpu = stats.cpu;
    same(cpu.usage > 20_000_000 && cpu.usage < 30_000_000_000 && cpu.user <= cpu.usage * 2, true)
        .map_err(|_| seen.clone())?;
    same(cpu.periods > 0 && cpu.throttled_periods > 0 && cpu.throttled > 0, true).map_err(|_| seen.clone())?;
    // What was added counts, too.
    sandbox.exec_output(&Sandbox::process("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"))?;
    same(sandbox.native.stats(&sandbox.id)?.cpu.usage > cpu.usage, true)?;
    sandbox.stop(&created)?;
    Ok(())
}

fn processes() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let (added, _out, _err) = sandbox.add(&Sandbox::process("exec sleep 1000"))?;
    let mut both = vec![first.pid, added.pid];
    both.sort_unstable();
    same(sandbox.native.processes(&sandbox.id)?, both.clone())?;
    // In cgroups below it, as a container makes for itself.
    for folder in sandbox.cgroups() {
        let below = folder.join("below");
        fs::create_dir(&below)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if below.join(file).exists() {
                fs::write(below.join(file), fs::read(folder.join(file))?)?;
            }
        }
        fs::write(below.join("cgroup.procs"), added.pid.to_string())?;
    }
    same(sandbox.native.processes(&sandbox.id)?, both)?;
    // The first of the namespace cannot end before the other is reaped, and that holds up no kill.
    let start = Instant::now();
    sandbox.native.kill(&sandbox.id, libc::SIGKILL, KillTarget::All)?;
    same(start.elapsed() < Duration::from_secs(5), true)?;
    same(wait(added.pidfd.as_fd(), added.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
    sandbox.stop(&first)?;
    same(sandbox.cgroups().len(), 0)
}

fn oom() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] = json!({"memory": {"limit": 16 * MIB, "swap": 16 * MIB}});
    let first = sandbox.running()?;
    let cgroup = Cgroup::open(&Hierarchies::detect()?, &format!("/{}", sandbox.id))?;
    let fds = fs::read_dir("/proc/self/fd")?.count();
    let mut events = cgroup.oom_events()?.ok_or("there is no memory controller")?;
    let wait_for = |events: &estiba_runtime::cgroup::OomEvents, limit: u16| -> Result<bool, Failed> {
        Ok(poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::from(limit))? > 0)
    };
    same((events.kills()?, wait_for(&events, 20)?), (0, false))?;
    let greedy = Sandbox::process("x=x; while :; do x=$x$x; done");
    for _ in 0..2 {
        let status = sandbox.exec(&greedy)?.status;
        same(status, ExitStatus::Signaled(libc::SIGKILL))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut kills = 0;
        while kills == 0 && Instant::now() < deadline {
            same(wait_for(&events, 5000)?, true)?;
            kills = events.kills()?;
        }
        same(kills, 1)?;
    }
    same(sandbox.native.stats(&sandbox.id)?.memory.oom_kills, 2)?;
    drop(events);
    same(fs::read_dir("/proc/self/fd")?.count(), fds)?;
    sandbox.stop(&first)?;
    // The cgroup's end is no error.
    same(Path::new("/sys/fs/cgroup/memory").join(sandbox.id.as_str()).exists(), false)
}
