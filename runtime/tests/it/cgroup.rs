//! Cgroups on the machine's own hierarchies, in folders of the tests' own: limits and device rules have their effect.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use estiba_runtime::cgroup::{KillWay, Mode};
use estiba_runtime::oci_spec::runtime::LinuxResources;
use estiba_runtime::{Cgroup, Error, Hierarchies};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::sandbox::{Outcome, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        privileged("cgroup_paths_are_checked", names),
        privileged("cgroup_is_made_and_removed", made),
        privileged("cgroup_in_use_is_refused_and_a_leftover_replaced", existing),
        privileged("cgroup_of_others_is_not_emptied", foreign),
        privileged("cgroup_failing_limit_leaves_nothing", failing),
        privileged("cgroup_refuses_what_has_no_effect", refused),
        privileged("cgroup_is_reopened_from_its_paths", reopened),
        privileged("cgroup_removes_what_the_container_made", nested),
        privileged("cgroup_below_the_callers_own", relative),
    ];
    let here = Hierarchies::detect();
    let has = |controller: &str| {
        let path = here.as_ref().ok().and_then(|h| Cgroup::open(h, "/estiba-test-none").ok());
        path.is_some_and(|c| c.paths().iter().any(|p| p.controllers.iter().any(|n| n == controller)))
    };
    for (controller, name, run) in [
        ("memory", "cgroup_v1_memory_limit_kills", (|| memory(&detect()?)) as fn() -> Outcome),
        ("memory", "cgroup_v1_memory_limits_go_up_and_down", update),
        ("pids", "cgroup_v1_pids_limit_stops_a_fork_loop", || pids(&detect()?)),
        ("devices", "cgroup_v1_devices", || devices(&detect()?)),
        ("cpuset", "cgroup_v1_cpuset_is_inherited", cpuset),
        ("freezer", "cgroup_v1_freezes_and_kills", || freeze(&detect()?, KillWay::Kernel)),
        ("cpu", "cgroup_v1_values", values),
    ] {
        trials.push(only(
            privileged(name, run),
            has(controller),
            &format!("needs the {controller} controller of version 1"),
        ));
    }
    let v2 = unified();
    let available = controllers();
    let has = |controller: &str| available.split_whitespace().any(|a| a == controller);
    for (controller, name, run) in [
        ("memory", "cgroup_v2_memory_limit_kills", (|| memory(&unified().ok_or("no version 2")?)) as fn() -> Outcome),
        ("pids", "cgroup_v2_pids_limit_stops_a_fork_loop", || pids(&unified().ok_or("no version 2")?)),
        ("cpu", "cgroup_v2_values", v2_values),
        ("memory", "cgroup_v2_limits_change", v2_update),
        ("cpu", "cgroup_v2_occupied_parent_is_named", v2_occupied),
    ] {
        trials.push(only(
            privileged(name, run),
            has(controller),
            &format!("needs the {controller} controller in version 2"),
        ));
    }
    let v2 = v2.is_some();
    for (name, run) in [
        ("cgroup_v2_is_made_and_removed", (|| simple(&unified().ok_or("no version 2")?)) as fn() -> Outcome),
        ("cgroup_v2_devices", || devices(&unified().ok_or("no version 2")?)),
        ("cgroup_v2_freezes_and_is_killed_by_the_kernel", || {
            freeze(&unified().ok_or("no version 2")?, KillWay::Kernel)
        }),
        ("cgroup_v2_freezes_and_is_killed_by_signals", || freeze(&unified().ok_or("no version 2")?, KillWay::Signals)),
        ("cgroup_v2_missing_controller_is_refused", v2_refused),
    ] {
        trials.push(only(privileged(name, run), v2, "needs a cgroup2 file system"));
    }
    trials
}

pub(crate) fn only(trial: Trial, can: bool, reason: &str) -> Trial {
    if can || trial.has_ignored_flag() { trial } else { trial.with_ignored_flag(true).with_kind(reason) }
}

fn detect() -> Result<Hierarchies, Failed> {
    Ok(Hierarchies::detect()?)
}

/// The version 2 tree of this machine by itself, as a pure version 2 host shows it.
pub(crate) fn unified() -> Option<Hierarchies> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    roots.into_iter().filter_map(|root| Hierarchies::at(Path::new(root)).ok()).find(|h| h.mode() == Mode::V2)
}

/// The controllers of that tree.
pub(crate) fn controllers() -> String {
    let none = unified().and_then(|hierarchies| Cgroup::open(&hierarchies, "/estiba-test-none").ok());
    let file = none.map(|none| none.paths()[0].path.with_file_name("cgroup.controllers"));
    file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default()
}

/// A cgroup that is killed and removed with the test.
pub(crate) struct Made(Cgroup);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.remove();
    }
}

impl std::ops::Deref for Made {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("/estiba-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn resources(value: Value) -> Result<LinuxResources, Failed> {
    Ok(serde_json::from_value(value)?)
}

pub(crate) fn make(hierarchies: &Hierarchies, value: Value) -> Result<Made, Failed> {
    Ok(Made(Cgroup::create(hierarchies, &name(), Some(&resources(value)?))?))
}

/// A shell that joins the cgroup and then does `script`.
pub(crate) fn spawn(cgroup: &Cgroup, script: &str) -> Result<Child, Failed> {
    let files = cgroup.paths().iter().map(|p| {
        let file = p.path.join(if p.controllers.is_empty() { "cgroup.procs" } else { "tasks" });
        format!("echo 0 > {}", file.display())
    });
    let join: Vec<String> = files.collect();
    let script = format!("{} || exit 99; {script}", join.join(" && "));
    Ok(Command::new("/bin/busybox").args(["sh", "-c", &script]).stdin(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

pub(crate) fn run(cgroup: &Cgroup, script: &str) -> Result<ExitStatus, Failed> {
    let status = spawn(cgroup, script)?.wait()?;
    if status.code() == Some(99) { Err("it could not join".into()) } else { Ok(status) }
}

pub(crate) fn demand(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        demand(Instant::now() < deadline, || format!("not in 20 s: {what}"))?;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The folder of the version 1 hierarchy with this controller, else that of version 2.
fn folder(cgroup: &Cgroup, controller: &str) -> Result<PathBuf, Failed> {
    let with = |p: &&estiba_runtime::cgroup::CgroupPath| p.controllers.iter().any(|c| c == controller);
    let found = cgroup.paths().iter().find(with).or_else(|| cgroup.paths().iter().find(|p| p.controllers.is_empty()));
    found.map(|p| p.path.clone()).ok_or_else(|| format!("no folder with {controller:?}").into())
}

pub(crate) fn read(cgroup: &Cgroup, controller: &str, file: &str) -> Result<String, Failed> {
    Ok(fs::read_to_string(folder(cgroup, controller)?.join(file))?.trim().to_owned())
}

fn there(cgroup: &Cgroup) -> Vec<&Path> {
    cgroup.paths().iter().map(|p| p.path.as_path()).filter(|p| p.exists()).collect()
}

fn names() -> Outcome {
    let hierarchies = detect()?;
    for bad in ["/estiba-test/../x", "..", "/", ""] {
        let made = Cgroup::create(&hierarchies, bad, None);
        demand(matches!(&made, Err(Error::InvalidSpec { field, .. }) if field == "linux.cgroupsPath"), || {
            format!("{bad:?}: {made:?}")
        })?;
    }
    Ok(())
}

fn simple(hierarchies: &Hierarchies) -> Outcome {
    let path = format!("{}/a/b", name());
    let cgroup = Made(Cgroup::create(hierarchies, &path, None)?);
    let places = cgroup.paths().len();
    demand(places > 0 && there(&cgroup).len() == places, || format!("{cgroup:?}", cgroup = *cgroup))?;
    let legacy = cgroup.paths().iter().filter(|p| !p.controllers.is_empty()).count();
    demand(cgroup.tasks()?.len() == legacy, || "tasks".to_owned())?;
    demand(cgroup.dir()?.is_some() == (legacy < places), || "dir".to_owned())?;
    demand(cgroup.pids()?.is_empty() && cgroup.oom_kills()? == 0, || "it is not empty".to_owned())?;
    cgroup.remove()?;
    demand(there(&cgroup).is_empty(), || format!("left: {:?}", there(&cgroup)))?;
    // Absent is fine, for every operation that ends something.
    cgroup.remove()?;
    cgroup.kill()?;
    demand(cgroup.pids()?.is_empty() && cgroup.oom_kills()? == 0, || "it is not gone".to_owned())?;
    let parents = Cgroup::open(hierarchies, path.trim_end_matches("/a/b"))?;
    parents.remove()?;
    demand(there(&parents).is_empty(), || format!("left: {:?}", there(&parents)))
}

fn made() -> Outcome {
    simple(&detect()?)
}

fn existing() -> Outcome {
    let hierarchies = detect()?;
    let path = name();
    let first = Made(Cgroup::create(&hierarchies, &path, Some(&resources(json!({ "pids": { "limit": 7 } }))?))?);
    let mut child = spawn(&first, "exec sleep 100")?;
    until("it has joined", || first.pids().is_ok_and(|p| p == [child.id() as i32]))?;
    match Cgroup::create(&hierarchies, &path, None) {
        Err(Error::CgroupInUse { pids, .. }) if pids == [child.id() as i32] => {}
        other => return Err(format!("{other:?}").into()),
    }
    demand(there(&first).len() == first.paths().len(), || "the refused one took folders away".to_owned())?;
    match first.remove() {
        Err(Error::CgroupInUse { .. }) => {}
        other => return Err(format!("removed with a process in it: {other:?}").into()),
    }
    first.kill()?;
    child.wait()?;
    // Now it is what a crash leaves: the next one gets it without the old limit.
    let second = Made(Cgroup::create(&hierarchies, &path, None)?);
    if second.paths().iter().any(|p| p.controllers.iter().any(|c| c == "pids")) {
        let limit = read(&second, "pids", "pids.max")?;
        demand(limit == "max", || format!("pids.max is {limit}"))?;
    }
    Ok(())
}

/// A path that others use has folders below it, which may be empty at the moment.
fn foreign() -> Outcome {
    let hierarchies = detect()?;
    let path = name();
    let outer = Made(Cgroup::create(&hierarchies, &path, None)?);
    let inner = Made(Cgroup::create(&hierarchies, &format!("{path}/theirs"), None)?);
    match Cgroup::create(&hierarchies, &path, Some(&resources(json!({ "pids": { "limit": 5 } }))?)) {
        Err(Error::CgroupNotEmpty { path: found }) => {
            demand(outer.paths().iter().any(|place| place.path == found), || format!("{}", found.display()))?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    demand(there(&outer).len() == outer.paths().len(), || "its folders are gone".to_owned())?;
    demand(there(&inner).len() == inner.paths().len(), || "folders of others are gone".to_owned())
}

fn failing() -> Outcome {
    let hierarchies = detect()?;
    // The first is refused by the kernel when all folders are there, the second before there are any.
    let table = [
        (json!({ "cpu": { "quota": 5 } }), "linux.resources.cpu.quota"),
        (json!({ "memory": { "limit": 1 << 30, "swap": 1 << 20 } }), "linux.resources.memory.swap"),
        (json!({ "cpu": { "cpus": "4000" } }), "linux.resources.cpu.cpus"),
        (json!({ "devices": [{ "allow": true, "type": "p", "access": "r" }] }), "linux.resources.devices"),
    ];
    for (value, want) in table {
        let path = format!("{}/a", name());
        let field = match Cgroup::create(&hierarchies, &path, Some(&resources(value.clone())?)) {
            Err(
                Error::Limit { field, .. } | Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. },
            ) => field,
            other => return Err(format!("{value}: {other:?}").into()),
        };
        demand(field == want, || format!("{value}: the error names {field}"))?;
        for path in [path.as_str(), path.trim_end_matches("/a")] {
            let left = Cgroup::open(&hierarchies, path)?;
            demand(there(&left).is_empty(), || format!("{value}: left {:?}", there(&left)))?;
        }
    }
    Ok(())
}

fn refused() -> Outcome {
    let hierarchies = detect()?;
    let mut table = vec![
        (json!({ "memory": { "kernel": 1 << 30 } }), "linux.resources.memory.kernel"),
        (json!({ "blockIO": { "leafWeight": 300 } }), "linux.resources.blockIO.leafWeight"),
        (json!({ "cpu": { "shares": 1 } }), "linux.resources.cpu.shares"),
        (
            json!({ "hugepageLimits": [{ "pageSize": "../2MB", "limit": 0 }] }),
            "linux.resources.hugepageLimits.pageSize",
        ),
        (json!({ "unified": { "cgroup.procs": "1" } }), "linux.resources.unified.cgroup.procs"),
        (json!({ "unified": { "../memory.max": "1" } }), "linux.resources.unified.../memory.max"),
    ];
    if hierarchies.mode() != Mode::V2 {
        table.push((json!({ "unified": { "memory.high": "1000000" } }), "linux.resources.unified.memory.high"));
    }
    for (value, want) in table {
        match Cgroup::create(&hierarchies, &name(), Some(&resources(value.clone())?)) {
            Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) if field == want => {}
            other => return Err(format!("{value}: {other:?}").into()),
        }
    }
    Ok(())
}

fn reopened() -> Outcome {
    let hierarchies = detect()?;
    let cgroup = make(&hierarchies, json!({}))?;
    let text = serde_json::to_string(cgroup.paths())?;
    let again = Cgroup::from_paths(serde_json::from_str(&text)?);
    let mut child = spawn(&cgroup, "exec sleep 100")?;
    until("it has joined", || again.pids().is_ok_and(|p| p.len() == 1))?;
    again.kill()?;
    demand(child.wait()?.signal() == Some(9), || "it was not killed".to_owned())?;
    again.remove()?;
    demand(there(&cgroup).is_empty(), || format!("left: {:?}", there(&cgroup)))
}

fn nested() -> Outcome {
    let cgroup = make(&detect()?, json!({}))?;
    for place in cgroup.paths() {
        fs::create_dir_all(place.path.join("inner/most"))?;
    }
    let inner = cgroup.paths().iter().cloned().map(|mut p| {
        p.path.push("inner/most");
        p
    });
    let inner = Cgroup::from_paths(inner.collect());
    let mut child = spawn(&inner, "exec sleep 100")?;
    let pid = child.id() as i32;
    until("it has joined", || cgroup.pids().is_ok_and(|p| p == [pid]))?;
    cgroup.kill()?;
    child.wait()?;
    cgroup.remove()?;
    demand(there(&cgroup).is_empty(), || format!("left: {:?}", there(&cgroup)))
}

fn relative() -> Outcome {
    let hierarchies = detect()?;
    let name = name();
    let cgroup = Made(Cgroup::create(&hierarchies, name.trim_start_matches('/'), None)?);
    let own = fs::read_to_string("/proc/self/cgroup")?;
    for place in cgroup.paths().iter().filter(|p| !p.controllers.is_empty()) {
        let mut lines = own.lines().filter_map(|l| l.split_once(':')?.1.split_once(':'));
        let line = lines.find(|(names, _)| names.split(',').any(|n| n == place.controllers[0]));
        let (_, own) = line.ok_or("no line")?;
        let end = format!("{}{name}", own.trim_end_matches('/'));
        demand(place.path.ends_with(&end[1..]), || format!("{} is not below {own}", place.path.display()))?;
    }
    Ok(())
}

fn memory(hierarchies: &Hierarchies) -> Outcome {
    let limit = 16 << 20;
    let cgroup = make(hierarchies, json!({ "memory": { "limit": limit } }))?;
    // A buffer of 8 MiB fits, one of 64 does not.
    let write = |size: &str| run(&cgroup, &format!("exec dd if=/dev/zero of=/dev/null bs={size} count=1"));
    demand(write("8M")?.success(), || "what fits does not run".to_owned())?;
    demand(cgroup.oom_kills()? == 0, || "something was killed".to_owned())?;
    let status = write("64M")?;
    demand(status.signal() == Some(9), || format!("it was not killed: {status:?}"))?;
    demand(cgroup.oom_kills()? == 1, || "no kill was counted".to_owned())
}

fn update() -> Outcome {
    let cgroup = make(&detect()?, json!({ "memory": { "limit": 64 << 20, "swap": 128 << 20 } }))?;
    let swap = folder(&cgroup, "memory")?.join("memory.memsw.limit_in_bytes").exists();
    for (limit, both) in [(256_i64 << 20, 512_i64 << 20), (32 << 20, 32 << 20), (-1, -1), (16 << 20, 64 << 20)] {
        let value = if swap {
            json!({ "memory": { "limit": limit, "swap": both } })
        } else {
            json!({ "memory": { "limit": limit } })
        };
        cgroup.set(&resources(value)?)?;
        let check = |file: &str, want: i64| -> Outcome {
            let got: i64 = read(&cgroup, "memory", file)?.parse()?;
            // No limit reads as the largest multiple of a page.
            demand(if want < 0 { got > 1 << 60 } else { got == want }, || {
                format!("{file} is {got}, and should be {want}")
            })
        };
        check("memory.limit_in_bytes", limit)?;
        if swap {
            check("memory.memsw.limit_in_bytes", both)?;
        }
    }
    // What is not named stays.
    cgroup.set(&resources(json!({ "pids": { "limit": 12 } }))?)?;
    demand(read(&cgroup, "memory", "memory.limit_in_bytes")? == (16 << 20).to_string(), || {
        "the limit is gone".to_owned()
    })?;
    // What this cgroup was made without cannot be limited later.
    match cgroup.set(&resources(json!({ "cpu": { "cpus": "0" } }))?) {
        Err(Error::UnsupportedField { field, .. }) if field == "linux.resources.cpu.cpus" => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn pids(hierarchies: &Hierarchies) -> Outcome {
    let cgroup = make(hierarchies, json!({ "pids": { "limit": 8 } }))?;
    let mut child = spawn(&cgroup, "while :; do sleep 100 & done; wait")?;
    // The shell gives up when it cannot fork; its children stay.
    until("the limit is reached", || cgroup.pids().is_ok_and(|p| p.len() >= 7))?;
    thread::sleep(Duration::from_millis(100));
    let count = cgroup.pids()?.len();
    demand(count <= 8, || format!("{count} processes"))?;
    let refused = read(&cgroup, "pids", "pids.events")?;
    demand(refused.starts_with("max ") && refused != "max 0", || format!("pids.events: {refused}"))?;
    cgroup.kill()?;
    child.wait()?;
    demand(cgroup.pids()?.is_empty(), || "some are left".to_owned())?;
    cgroup.remove()?;
    Ok(())
}

/// Whether a process of the cgroup may open a new node of the kernel's log for reading, and `/dev/zero`.
fn devices(hierarchies: &Hierarchies) -> Outcome {
    let log = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" });
    let deny = json!({ "allow": false, "access": "rwm" });
    let everything = json!({ "allow": true, "access": "rwm" });
    let scratch = tempfile::tempdir()?;
    let node = scratch.path().join("kmsg");
    let table = [
        (json!({}), false),
        (json!({ "devices": [] }), false),
        (json!({ "devices": [deny] }), false),
        (json!({ "devices": [deny, log] }), true),
        (json!({ "devices": [log, deny] }), false),
        (json!({ "devices": [everything] }), true),
        (
            json!({ "devices": [everything, { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "w" }] }),
            true,
        ),
        (
            json!({ "devices": [everything, { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "rw" }] }),
            false,
        ),
    ];
    let script =
        format!("mknod {0} c 1 11 || exit 98; head -c 1 /dev/zero > /dev/null || exit 97; : < {0}", node.display());
    let opens = |cgroup: &Cgroup| -> Result<bool, Failed> {
        let status = run(cgroup, &script)?;
        let _ = fs::remove_file(&node);
        match status.code() {
            Some(0) => Ok(true),
            Some(1 | 2) => Ok(false),
            _ => Err(format!("a device that is always allowed is not: {status:?}").into()),
        }
    };
    for (value, want) in &table {
        let cgroup = make(hierarchies, value.clone())?;
        demand(opens(&cgroup)? == *want, || format!("made with {value}: opening is {}", !want))?;
    }
    // The same one after the other on one cgroup.
    let cgroup = make(hierarchies, json!({}))?;
    for (value, want) in table.iter().skip(1).chain(table.iter().skip(2).rev()) {
        cgroup.set(&resources(value.clone())?)?;
        demand(opens(&cgroup)? == *want, || format!("changed to {value}: opening is {}", !want))?;
    }
    Ok(())
}

fn cpuset() -> Outcome {
    let hierarchies = detect()?;
    let path = name();
    let cgroup = Made(Cgroup::create(
        &hierarchies,
        &format!("{path}/a/b"),
        Some(&resources(json!({ "cpu": { "cpus": "0" } }))?),
    )?);
    let (cpus, mems) = (read(&cgroup, "cpuset", "cpuset.cpus")?, read(&cgroup, "cpuset", "cpuset.mems")?);
    demand(cpus == "0" && !mems.is_empty(), || format!("cpus {cpus:?}, mems {mems:?}"))?;
    demand(run(&cgroup, "exit 0")?.success(), || "nothing runs in it".to_owned())?;
    cgroup.remove()?;
    for above in [format!("{path}/a"), path] {
        Cgroup::open(&hierarchies, &above)?.remove()?;
    }
    Ok(())
}

fn freeze(hierarchies: &Hierarchies, way: KillWay) -> Outcome {
    let cgroup = make(hierarchies, json!({}))?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("ticks");
    fs::write(&file, "")?;
    // Two of them, that start others all the time.
    let mut children = Vec::new();
    for _ in 0..2 {
        children.push(spawn(&cgroup, &format!("while :; do echo tick >> {}; sleep 0.005; done", file.display()))?);
    }
    let size = || fs::metadata(&file).map_or(0, |m| m.len());
    let grows = |from: u64| until("it goes on", || size() > from);
    grows(20)?;
    cgroup.freeze()?;
    let frozen = size();
    thread::sleep(Duration::from_millis(100));
    demand(size() == frozen, || "it goes on while it is frozen".to_owned())?;
    cgroup.thaw()?;
    grows(frozen)?;
    // A signal that the shells survive reaches both, and they go on.
    cgroup.signal(libc::SIGWINCH)?;
    grows(size())?;
    cgroup.freeze()?;
    cgroup.kill_by(way)?;
    demand(cgroup.pids()?.is_empty(), || "some are left".to_owned())?;
    for mut child in children {
        demand(child.wait()?.signal() == Some(9), || "it was not killed".to_owned())?;
    }
    cgroup.remove()?;
    Ok(())
}

fn values() -> Outcome {
    let hierarchies = detect()?;
    let table = [
        (json!({ "cpu": { "shares": 512 } }), "cpu", "cpu.shares", "512"),
        (json!({ "cpu": { "quota": 50000, "period": 200_000 } }), "cpu", "cpu.cfs_quota_us", "50000"),
        (json!({ "cpu": { "quota": 50000, "period": 200_000 } }), "cpu", "cpu.cfs_period_us", "200000"),
        (json!({ "cpu": { "quota": -1 } }), "cpu", "cpu.cfs_quota_us", "-1"),
        (json!({ "cpu": { "quota": 50000, "burst": 20000 } }), "cpu", "cpu.cfs_burst_us", "20000"),
        (json!({ "cpu": { "shares": 0, "quota": 0, "period": 0 } }), "cpu", "cpu.shares", "1024"),
        (
            json!({ "memory": { "limit": 1 << 26, "reservation": 1 << 25 } }),
            "memory",
            "memory.soft_limit_in_bytes",
            "33554432",
        ),
        (json!({ "memory": { "swappiness": 7 } }), "memory", "memory.swappiness", "7"),
        (json!({ "pids": { "limit": 33 } }), "pids", "pids.max", "33"),
        (json!({ "pids": { "limit": -1 } }), "pids", "pids.max", "max"),
        (json!({ "pids": { "limit": 0 } }), "pids", "pids.max", "max"),
    ];
    for (value, controller, file, want) in table {
        let cgroup = make(&hierarchies, value.clone())?;
        let got = read(&cgroup, controller, file)?;
        demand(got == want, || format!("{value}: {file} is {got}"))?;
    }
    Ok(())
}

fn v2_refused() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let root = Cgroup::open(&hierarchies, "/estiba-test-none")?;
    let root = root.paths()[0].path.parent().ok_or("no parent")?.to_owned();
    let available = fs::read_to_string(root.join("cgroup.controllers"))?;
    let missing = |name: &str| !available.split_whitespace().any(|a| a == name);
    let mut table = vec![(json!({ "network": { "classID": 7 } }), "linux.resources.network.classID")];
    if missing("memory") {
        table.push((json!({ "memory": { "limit": 1 << 30 } }), "linux.resources.memory.limit"));
        table.push((json!({ "unified": { "memory.high": "1000000" } }), "linux.resources.unified.memory.high"));
    } else {
        table.push((json!({ "memory": { "swappiness": 7 } }), "linux.resources.memory.swappiness"));
    }
    if missing("pids") {
        table.push((json!({ "pids": { "limit": 5 } }), "linux.resources.pids.limit"));
    }
    for (value, want) in table {
        match Cgroup::create(&hierarchies, &name(), Some(&resources(value.clone())?)) {
            Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) if field == want => {}
            other => return Err(format!("{value}: {other:?}").into()),
        }
    }
    // No limit is no demand.
    make(&hierarchies, json!({ "pids": { "limit": -1 }, "memory": { "limit": -1 } })).map(drop)
}

fn v2_values() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let table = [
        (json!({ "cpu": { "shares": 1024 } }), "cpu.weight", "100"),
        (json!({ "cpu": { "shares": 262_144 } }), "cpu.weight", "10000"),
        (json!({ "cpu": { "quota": 50000, "period": 200_000 } }), "cpu.max", "50000 200000"),
        (json!({ "cpu": { "quota": 50000 } }), "cpu.max", "50000 100000"),
        (json!({ "cpu": { "period": 50000 } }), "cpu.max", "max 50000"),
        (json!({ "cpu": { "quota": 50000, "burst": 20000 } }), "cpu.max.burst", "20000"),
        (json!({ "cpu": { "idle": 1 } }), "cpu.idle", "1"),
        (json!({ "cpu": { "cpus": "0", "mems": "0" } }), "cpuset.cpus", "0"),
        (json!({ "memory": { "limit": 1 << 26, "swap": 1 << 26, "reservation": 1 << 25 } }), "memory.max", "67108864"),
        (json!({ "memory": { "limit": 1 << 26, "reservation": 1 << 25 } }), "memory.low", "33554432"),
        (json!({ "pids": { "limit": 33 } }), "pids.max", "33"),
        (json!({ "unified": { "memory.high": "1048576", "cgroup.max.depth": "3" } }), "memory.high", "1048576"),
        (json!({ "unified": { "cgroup.max.depth": "3" } }), "cgroup.max.depth", "3"),
    ];
    for (value, file, want) in table {
        let cgroup = make(&hierarchies, value.clone())?;
        let got = read(&cgroup, "", file)?;
        demand(got == want, || format!("{value}: {file} is {got}"))?;
    }
    Ok(())
}

fn v2_update() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    // Nothing was limited, yet everything usual can be limited later.
    let cgroup = make(&hierarchies, json!({}))?;
    cgroup.set(&resources(
        json!({ "memory": { "limit": 1 << 26 }, "cpu": { "quota": 30000 }, "pids": { "limit": 5 } }),
    )?)?;
    cgroup.set(&resources(json!({ "cpu": { "period": 50000 } }))?)?;
    for (file, want) in [("memory.max", "67108864"), ("cpu.max", "30000 50000"), ("pids.max", "5")] {
        let got = read(&cgroup, "", file)?;
        demand(got == want, || format!("{file} is {got}"))?;
    }
    let mut child = spawn(&cgroup, "exec sleep 100")?;
    until("it has joined", || cgroup.pids().is_ok_and(|p| p.len() == 1))?;
    match cgroup.set(&resources(json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } }))?) {
        Err(Error::MemoryInUse { limit: 4096, .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    cgroup.kill()?;
    child.wait()?;
    Ok(())
}

fn v2_occupied() -> Outcome {
    let hierarchies = unified().ok_or("no version 2")?;
    let path = name();
    let parent = Made(Cgroup::create(&hierarchies, &path, None)?);
    let mut child = spawn(&parent, "exec sleep 100")?;
    until("it has joined", || parent.pids().is_ok_and(|p| p.len() == 1))?;
    let below = format!("{path}/below");
    // A limit needs a controller that the parent cannot hand down; without one the container runs.
    let limited = Cgroup::create(&hierarchies, &below, Some(&resources(json!({ "pids": { "limit": 5 } }))?));
    let refused = matches!(&limited, Err(Error::CgroupControllers { occupied: true, .. }));
    let free = Cgroup::create(&hierarchies, &below, None).map(Made);
    drop(free?);
    parent.kill()?;
    child.wait()?;
    demand(refused, || format!("{limited:?}"))
}
