//! What the suites of runc and of runtime-tools ask for beyond the specification's letter.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use estiba_runtime::{
    CreateOptions, DeleteMode, Error, ExecOptions, ExitStatus, Features, Labels, Paused, Runtime, Stdio, SubCgroup,
    wait,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::sandbox::{Outcome, Sandbox, chain, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    let v1 = Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists();
    let only_v1 = |trial: Trial| {
        if v1 { trial } else { trial.with_ignored_flag(true).with_kind("needs cgroup version 1") }
    };
    vec![
        privileged("no_namespace_at_all", no_namespaces),
        privileged("links_to_what_is_missing_are_followed_inside", dangling),
        privileged("a_destination_may_name_the_root_on_the_host", host_destination),
        privileged("an_own_source_may_have_an_idmap", own_idmap),
        privileged("hooks_in_the_container_are_under_its_filter", filtered_hook),
        privileged("a_frozen_cgroup_is_not_taken_over", frozen),
        privileged("labels_that_nobody_gives", labels),
        privileged("exec_waits_for_a_paused_container", awaited),
        only_v1(privileged("exec_in_a_cgroup_below", sub_cgroups)),
        only_v1(privileged("update_of_what_the_cgroup_was_made_without", grown)),
        only_v1(privileged("device_rules_keep_their_order", device_order)),
    ]
}

/// The root and its mounts are nowhere on the host, though the mount namespace is the host's.
fn no_namespaces() -> Outcome {
    let mut sandbox = Sandbox::new();
    fs::write(sandbox.rootfs().join("mark"), "here\n")?;
    sandbox.spec["linux"]["namespaces"] = json!([]);
    sandbox.spec.as_object_mut().expect("an object").remove("hostname");
    sandbox.spec["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
    sandbox.spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/sys/firmware"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    sandbox.script(
        "cat /mark; readlink /proc/self/ns/mnt; test -c /dev/null && echo null; ls /host 2>/dev/null; exec sleep 1000",
    );
    let (created, mut stdout, _err) = match sandbox.create() {
        Err(Error::Kernel { feature, .. }) => return same(feature.contains("6.15"), true),
        created => created.map_err(|error| chain(&error))?,
    };
    sandbox.native.start(&sandbox.id)?;
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let wanted = format!("here\n{}\nnull\n", own.display());
    let mut text = vec![0; wanted.len()];
    io::Read::read_exact(&mut stdout, &mut text)?;
    same(String::from_utf8_lossy(&text), wanted)?;
    same(fs::read_to_string("/proc/self/mountinfo")?, mounts.clone())?;
    same(
        sandbox.exec_output(&Sandbox::process("cat /mark; echo x > /proc/sys/kernel/domainname || echo ro"))?.as_str(),
        "here\nro\n",
    )?;
    sandbox.stop(&created)?;
    same(fs::read_to_string("/proc/self/mountinfo")?, mounts)?;
    // No user namespace could mount anything there.
    sandbox.spec["linux"]["namespaces"] = json!([{"type": "user"}]);
    for kind in ["uidMappings", "gidMappings"] {
        sandbox.spec["linux"][kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    }
    match sandbox.create() {
        Err(Error::UnsupportedField { field, .. }) => same(field.as_str(), "linux.namespaces"),
        other => Err(format!("{other:?}").into()),
    }
}

fn dangling() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        let root = sandbox.rootfs();
        fs::create_dir(root.join("etc"))?;
        symlink("/deep/inside/hosts", root.join("etc/hosts"))?;
        symlink("../other", root.join("etc/folder"))?;
        // However high it points, it stays inside.
        symlink("../../../../up/name", root.join("etc/up"))?;
        for (one, two) in [("a", "b"), ("b", "a")] {
            symlink(two, root.join("etc").join(one))?;
        }
        let file = sandbox.outside().join("file");
        fs::write(&file, "x")?;
        let good = sandbox.spec.clone();
        let bind = |destination: &str| json!({"destination": destination, "type": "bind", "source": file, "options": ["bind"]});
        let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
        list.extend([bind("/etc/hosts"), bind("/etc/up")]);
        list.push(json!({"destination": "/etc/folder/below", "type": "tmpfs", "source": "tmpfs"}));
        sandbox.script("cat /deep/inside/hosts /up/name; grep -c ' /other/below ' /proc/self/mountinfo");
        same(sandbox.output()?.as_str(), "xx1\n")?;
        same(sandbox.outside().join("up").exists(), false)?;
        sandbox.spec = good;
        sandbox.spec["mounts"].as_array_mut().expect("a list").push(bind("/etc/a"));
        match sandbox.create() {
            Err(Error::Setup { source, .. }) => same(source.raw_os_error(), Some(libc::ELOOP))?,
            other => return Err(format!("{other:?}").into()),
        }
    }
    Ok(())
}

fn host_destination() -> Outcome {
    let mut sandbox = Sandbox::new();
    let file = sandbox.outside().join("file");
    fs::write(&file, "x")?;
    let place = sandbox.rootfs().join("some/where");
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(
        json!({"destination": place, "type": "bind", "source": file, "options": ["bind", "mode=755", "size=1k"]}),
    );
    sandbox.script("cat /some/where");
    same(sandbox.output()?.as_str(), "x")
}

fn own_idmap() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = sandbox.outside().join("folder");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "x")?;
    let inside = sandbox.rootfs().join("data");
    let map = json!([{"containerID": 0, "hostID": 1234, "size": 10}]);
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(json!({"destination": "/data", "type": "bind", "source": folder, "options": ["bind"]}));
    list.push(json!({"destination": "/again", "type": "bind", "source": inside, "options": ["rbind", "idmap"], "uidMappings": map, "gidMappings": map}));
    sandbox.script("stat -c %u:%g /data/file /again/file");
    same(sandbox.output()?.as_str(), "0:0\n1234:1234\n")
}

fn filtered_hook() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]});
    sandbox.spec["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
    let hook = |script: &str| json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    sandbox.spec["hooks"] = hook("test $ONE = two");
    sandbox.script("echo $ONE");
    same(sandbox.output()?.as_str(), "two\n")?;
    sandbox.spec["hooks"] = hook("exec busybox mkdir /x");
    match sandbox.run() {
        Err(error @ Error::HookFailed { kind: "startContainer", number: 0, .. }) => {
            same(
                error.to_string().contains("error running startContainer hook #0: /bin/sh was killed by signal 31"),
                true,
            )?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    same(sandbox.rootfs().join("x").exists(), false)?;
    // Those outside are not.
    sandbox.spec["hooks"] =
        json!({"createRuntime": [{"path": "/bin/busybox", "args": ["busybox", "mkdir", sandbox.outside().join("y")]}]});
    same(sandbox.output()?.as_str(), "two\n")?;
    same(sandbox.outside().join("y").exists(), true)
}

fn frozen() -> Outcome {
    let sandbox = Sandbox::new();
    let (folder, file, on, off) = if Path::new("/sys/fs/cgroup/freezer").exists() {
        ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED")
    } else {
        ("/sys/fs/cgroup", "cgroup.freeze", "1", "0")
    };
    let folder = Path::new(folder).join(sandbox.id.as_str());
    fs::create_dir(&folder)?;
    fs::write(folder.join(file), on)?;
    let found = sandbox.create();
    let refused = matches!(&found, Err(Error::CgroupFrozen { path }) if *path == folder);
    let left = sandbox.cgroups();
    fs::write(folder.join(file), off)?;
    fs::remove_dir(&folder)?;
    same((refused, left), (true, vec![folder]))
}

fn labels() -> Outcome {
    if Path::new("/sys/fs/selinux/enforce").exists() || Path::new("/sys/module/apparmor/parameters/enabled").exists() {
        return Ok(());
    }
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["apparmorProfile"] = json!("some-profile");
    sandbox.spec["process"]["selinuxLabel"] = json!("u:r:t:s0");
    sandbox.spec["linux"]["mountLabel"] = json!("u:o:t:s0");
    same(matches!(sandbox.create(), Err(Error::UnsupportedField { .. })), true)?;
    let bundle = sandbox.bundle();
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let options = CreateOptions { labels: Labels::WherePossible, ..CreateOptions::new(stdio) };
    let created = sandbox.native.create(&sandbox.id, &bundle, &options)?;
    sandbox.native.delete(&sandbox.id, DeleteMode::Force)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    let warnings = bundle.warnings();
    for field in ["process.apparmorProfile", "process.selinuxLabel", "linux.mountLabel"] {
        same((field, warnings.iter().any(|text| text.starts_with(field))), (field, true))?;
    }
    sandbox.spec["process"]["capabilities"] =
        json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    let warned =
        sandbox.bundle().warnings().iter().any(|text| text.contains("can't raise ambient capability CAP_KILL"));
    same(warned, true)
}

fn awaited() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    sandbox.native.pause(&sandbox.id)?;
    let process = serde_json::from_value(Sandbox::process("true"))?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let options = ExecOptions { paused: Paused::Awaited, ..ExecOptions::new(stdio) };
    let begin = Instant::now();
    let status = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            sandbox.native.resume(&sandbox.id)
        });
        let added = sandbox.native.exec(&sandbox.id, &process, &options)?;
        wait(added.pidfd.as_fd(), added.pid)
    })?;
    same((status, begin.elapsed() >= Duration::from_millis(300)), (ExitStatus::Exited(0), true))?;
    sandbox.stop(&first)?;
    Ok(())
}

fn sub_cgroups() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let own = Path::new("/sys/fs/cgroup/memory").join(sandbox.id.as_str());
    fs::create_dir(own.join("below"))?;
    let add = |cgroups: &[SubCgroup]| -> Result<String, String> {
        let process: Value = Sandbox::process("cat /proc/self/cgroup");
        let process = serde_json::from_value(process).map_err(|error| error.to_string())?;
        let null = fs::File::open("/dev/null").map_err(|error| error.to_string())?;
        let (stdout, inner) = io::pipe().map_err(|error| error.to_string())?;
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: inner.as_fd(), stderr: null.as_fd() };
        let options = ExecOptions { cgroups, ..ExecOptions::new(stdio) };
        let added = sandbox.native.exec(&sandbox.id, &process, &options).map_err(|error| chain(&error))?;
        drop(inner);
        let text = io::read_to_string(stdout).map_err(|error| error.to_string())?;
        wait(added.pidfd.as_fd(), added.pid).map_err(|error| chain(&error))?;
        Ok(text)
    };
    let sub = |controller: &str, path: &str| SubCgroup {
        controllers: if controller.is_empty() { Vec::new() } else { vec![controller.to_owned()] },
        path: path.into(),
    };
    let text = add(&[sub("memory", "below")])?;
    same(text.lines().any(|line| line.contains(":memory:") && line.ends_with("/below")), true)?;
    same(text.lines().any(|line| line.contains(":pids:") && line.ends_with("/below")), false)?;
    same(add(&[sub("", "/")])?.contains("/below"), false)?;
    for (wanted, complaint) in [
        (sub("", ".."), "bad sub cgroup path"),
        (sub("", "below"), "No such file"),
        (sub("memory", "nothing"), "No such file"),
        (sub("whatever", "/"), "unknown controller whatever"),
    ] {
        let error = add(std::slice::from_ref(&wanted)).err().unwrap_or_default();
        same((&wanted, error.contains(complaint)), (&wanted, true))?;
    }
    sandbox.stop(&first)?;
    same(sandbox.cgroups().len(), 0)
}

fn grown() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let resources = serde_json::from_value(json!({"cpu": {"cpus": "0"}}))?;
    sandbox.native.update(&sandbox.id, &resources)?;
    let status = fs::read_to_string(format!("/proc/{}/status", first.pid))?;
    same(status.contains("Cpus_allowed_list:\t0\n"), true)?;
    // What comes later is there, too, and all of it goes at the end.
    same(
        sandbox.exec_output(&Sandbox::process("grep Cpus_allowed_list /proc/self/status"))?.as_str(),
        "Cpus_allowed_list:\t0\n",
    )?;
    sandbox.stop(&first)?;
    same(sandbox.cgroups().len(), 0)
}

fn device_order() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
        {"allow": true, "type": "b", "major": 8, "minor": 20, "access": "rw"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "rwa"},
    ]});
    let first = sandbox.running()?;
    let list = fs::read_to_string(Path::new("/sys/fs/cgroup/devices").join(sandbox.id.as_str()).join("devices.list"))?;
    sandbox.stop(&first)?;
    same(list.lines().take(2).collect::<Vec<_>>(), vec!["c 10:229 rwm", "b 8:20 rw"])
}
