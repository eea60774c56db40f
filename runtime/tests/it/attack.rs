//! Roots and configurations that mean harm, by the numbers under which others became known for them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use estiba_runtime::{Error, Features, Runtime};
use libtest_mimic::Trial;
use serde_json::json;

use crate::sandbox::{Outcome, Sandbox, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("cve_2019_5736_host_program_is_not_executed", host_program),
        privileged("cve_2019_5736_a_program_that_changes_during_the_wait", changed_program),
        privileged("cve_2019_19921_proc_and_sys_are_no_links", linked_proc),
        privileged("cve_2019_16884_nothing_is_mounted_over_proc", over_proc),
        privileged("cve_2021_30465_racing_links_stay_inside", racing_target),
        privileged("cve_2022_29162_nothing_is_inherited_unasked", inheritable),
        privileged("cve_2024_21626_no_descriptor_leads_out", leaked_descriptors),
        privileged("cve_2024_45310_missing_folders_are_made_inside", made_inside),
        privileged("cve_2025_31133_dev_null_is_checked", false_null),
        privileged("cve_2025_52565_console_is_the_containers_own", false_console),
        privileged("cve_2025_52881_settings_go_where_they_should", false_sysctl),
        privileged("cve_2026_41579_dev_may_be_a_link", linked_dev),
        privileged("a_device_that_is_another_is_refused", false_device),
    ]
}

/// Neither as the program, nor as the interpreter of a script.
fn host_program() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        let script = sandbox.rootfs().join("bin/script");
        fs::write(&script, "#!/proc/self/exe\n")?;
        let nested = sandbox.rootfs().join("bin/nested");
        fs::write(&nested, "#! /bin/script x\n")?;
        symlink("/proc/self/exe", sandbox.rootfs().join("bin/link"))?;
        // The kernel skips blanks and tabs only: this interpreter's path is relative, and begins with a form feed.
        let feed = sandbox.rootfs().join("bin/feed");
        fs::write(&feed, "#!\x0c/bin/busybox\n")?;
        fs::create_dir_all(sandbox.rootfs().join("\x0c/bin"))?;
        symlink("/proc/self/exe", sandbox.rootfs().join("\x0c/bin/busybox"))?;
        for file in [&script, &nested, &feed] {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
        }
        for program in ["/proc/self/exe", "link", "script", "nested", "feed", "/proc/1/exe"] {
            sandbox.spec["process"]["args"] = json!([program]);
            match sandbox.run() {
                Err(error) if matches!(error.exit_code(), 126 | 127) => {}
                other => return Err(format!("{program} with openat2 {openat2}: {other:?}").into()),
            }
        }
    }
    // The kernel reads the first line of a script that its user may only execute.
    let mut sandbox = Sandbox::new();
    let script = sandbox.rootfs().join("bin/unreadable");
    fs::write(&script, "#!/proc/self/exe\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o711))?;
    sandbox.spec["process"]["args"] = json!(["unreadable"]);
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    match sandbox.run() {
        Err(Error::NotExecutable { .. }) => {}
        other => return Err(format!("an unreadable script: {other:?}").into()),
    }
    // While it waits, nobody in the container could look at it, either.
    let mut sandbox = Sandbox::new();
    sandbox.script("true");
    let (created, _out, _err) = sandbox.create()?;
    let owner = fs::symlink_metadata(format!("/proc/{}/exe", created.pid)).is_ok();
    let status = fs::read_to_string(format!("/proc/{}/status", created.pid))?;
    same((owner, status.contains("CoreDumping:\t0")), (true, true))?;
    // A process that is not dumpable belongs to root in /proc, whoever it runs as.
    sandbox.native.delete(&sandbox.id, estiba_runtime::DeleteMode::Force)?;
    estiba_runtime::wait(std::os::fd::AsFd::as_fd(&created.pidfd), created.pid)?;
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let (created, _out, _err) = sandbox.create()?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{}/environ", created.pid))?);
    same(owner, 0)?;
    sandbox.native.delete(&sandbox.id, estiba_runtime::DeleteMode::Force)?;
    estiba_runtime::wait(std::os::fd::AsFd::as_fd(&created.pidfd), created.pid)?;
    Ok(())
}

/// Another container writes to the same folder while this one waits for its start.
fn changed_program() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        let program = sandbox.rootfs().join("bin/program");
        let script = "#!/bin/sh\nexit 5\n";
        let change = |to: &str| -> std::io::Result<()> {
            fs::remove_file(&program)?;
            if to.starts_with('#') {
                fs::write(&program, to)?;
                return fs::set_permissions(&program, fs::Permissions::from_mode(0o755));
            }
            symlink(to, &program)
        };
        sandbox.spec["process"]["args"] = json!(["program", "--version"]);
        for to in ["/proc/self/exe", "/proc/1/exe", "#!/proc/self/exe\n", script] {
            if program.symlink_metadata().is_ok() {
                fs::remove_file(&program)?;
            }
            fs::write(&program, script)?;
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            let (created, _out, _err) = sandbox.create()?;
            change(to)?;
            let started = sandbox.native.start(&sandbox.id);
            let status = estiba_runtime::wait(std::os::fd::AsFd::as_fd(&created.pidfd), created.pid)?;
            sandbox.native.delete(&sandbox.id, estiba_runtime::DeleteMode::Force)?;
            if to == script {
                same((started.is_ok(), status), (true, estiba_runtime::ExitStatus::Exited(5)))?;
            } else {
                let refused = started.is_err_and(|error| matches!(error.exit_code(), 126 | 127));
                same((to, refused), (to, true))?;
            }
        }
    }
    Ok(())
}

fn linked_proc() -> Outcome {
    for openat2 in [true, false] {
        for name in ["proc", "sys"] {
            let sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
            fs::create_dir(sandbox.rootfs().join("elsewhere"))?;
            symlink("/elsewhere", sandbox.rootfs().join(name))?;
            match sandbox.create() {
                Err(Error::Setup { step, source, .. }) => {
                    same(step.contains(&format!("/{name}")), true)?;
                    same(source.raw_os_error(), Some(libc::ELOOP))?;
                }
                other => return Err(format!("{name}: {other:?}").into()),
            }
        }
    }
    Ok(())
}

fn over_proc() -> Outcome {
    let mut sandbox = Sandbox::new();
    let good = sandbox.spec.clone();
    fs::create_dir(sandbox.outside().join("false"))?;
    let source = sandbox.outside().join("false");
    for place in ["/proc", "/proc/self/attr", "/x/../proc/sys", "/proc/1"] {
        sandbox.spec = good.clone();
        let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
        list.push(json!({"destination": place, "type": "bind", "source": source, "options": ["bind"]}));
        same((place, matches!(sandbox.create(), Err(Error::InvalidSpec { .. }))), (place, true))?;
    }
    // By a link that leads there.
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        symlink("/proc/sys", sandbox.rootfs().join("link"))?;
        let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
        list.push(json!({"destination": "/link", "type": "bind", "source": source, "options": ["bind"]}));
        same(matches!(sandbox.create(), Err(Error::Setup { call: "the target lies in a proc filesystem", .. })), true)?;
    }
    // What lxcfs does is fine.
    let mut sandbox = Sandbox::new();
    fs::write(source.join("meminfo"), "false\n")?;
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(
        json!({"destination": "/proc/meminfo", "type": "bind", "source": source.join("meminfo"), "options": ["bind"]}),
    );
    sandbox.spec["process"]["args"] = json!(["cat", "/proc/meminfo"]);
    same(sandbox.output()?.as_str(), "false\n")
}

/// Somebody else changes the root while it is being mounted in: now a folder, now a link to the host's.
fn racing_target() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        let victim = sandbox.outside().join("victim");
        fs::create_dir(&victim)?;
        let source = sandbox.outside().join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("mark"), "")?;
        let place = sandbox.rootfs().join("place");
        fs::create_dir(&place)?;
        let link = sandbox.rootfs().join("link");
        symlink(&victim, &link)?;
        sandbox.spec["mounts"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"destination": "/place/inner", "type": "bind", "source": source, "options": ["bind"]}));
        sandbox.spec["process"]["args"] = json!(["true"]);
        let stop = AtomicBool::new(false);
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let aside = sandbox.rootfs().join("aside");
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let _ = fs::rename(&place, &aside);
                    let _ = fs::rename(&link, &place);
                    let _ = fs::rename(&place, &link);
                    let _ = fs::rename(&aside, &place);
                }
            });
            for _ in 0..40 {
                // Some fail, as the folder is away for a moment.
                let _ = sandbox.run();
            }
            stop.store(true, Ordering::Relaxed);
        });
        same(fs::read_dir(&victim)?.count(), 0)?;
        same(fs::read_to_string("/proc/self/mountinfo")? == mounts, true)?;
    }
    Ok(())
}

fn inheritable() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["args"] = json!(["grep", "-E", "CapInh|CapAmb", "/proc/self/status"]);
    let zero = "0000000000000000";
    same(sandbox.output()?, format!("CapInh:\t{zero}\nCapAmb:\t{zero}\n"))
}

/// Whatever number a descriptor of the host has, it is no way out.
fn leaked_descriptors() -> Outcome {
    let mut sandbox = Sandbox::new();
    let host = fs::File::open("/")?;
    for fd in 0..40 {
        sandbox.spec["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        sandbox.spec["process"]["args"] = json!(["ls", "."]);
        match sandbox.run() {
            Err(Error::Setup { .. }) => {}
            other => return Err(format!("{fd}: {other:?}").into()),
        }
    }
    // Nor by a link in the root.
    symlink("/proc/self/fd/7", sandbox.rootfs().join("out"))?;
    sandbox.spec["process"]["cwd"] = json!("/out");
    same(matches!(sandbox.run(), Err(Error::Setup { .. })), true)?;
    sandbox.spec["process"]["cwd"] = json!("/");
    sandbox.spec["process"]["args"] = json!(["ls", "/proc/self/fd"]);
    same(sandbox.output()?.as_str(), "0\n1\n2\n3\n")?;
    drop(host);
    Ok(())
}

fn made_inside() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        let victim = sandbox.outside().join("victim");
        fs::create_dir(&victim)?;
        symlink(&victim, sandbox.rootfs().join("absolute"))?;
        symlink("../../victim", sandbox.rootfs().join("relative"))?;
        for link in ["absolute", "relative"] {
            let made = format!("/{link}/made/here");
            sandbox.spec["process"]["cwd"] = json!(made);
            let _ = sandbox.run();
            sandbox.spec["process"]["cwd"] = json!("/");
            sandbox.spec["mounts"]
                .as_array_mut()
                .expect("a list")
                .push(json!({"destination": made, "type": "tmpfs", "source": "x"}));
            let _ = sandbox.run();
            sandbox.spec["mounts"].as_array_mut().expect("a list").pop();
        }
        same(fs::read_dir(&victim)?.count(), 0)?;
    }
    Ok(())
}

/// The root is the container's own `/dev` here, with something else in the place of the null device.
fn false_null() -> Outcome {
    for link in [true, false] {
        let mut sandbox = Sandbox::new();
        let victim = sandbox.outside().join("victim");
        fs::write(&victim, "secret")?;
        let dev = sandbox.outside().join("dev");
        fs::create_dir(&dev)?;
        if link {
            symlink("/proc/self/status", dev.join("null"))?;
        } else {
            fs::write(dev.join("null"), "x")?;
        }
        // A /dev of the host's is left as it is, so nothing puts a device there.
        sandbox.spec["mounts"][1] = json!({"destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"]});
        sandbox.spec["mounts"].as_array_mut().expect("a list").drain(2..5);
        match sandbox.create() {
            Err(Error::Setup { step, call, .. }) => {
                same((step.contains("maskedPaths"), call), (true, "/dev/null is not the null device"))?;
            }
            other => return Err(format!("{other:?}").into()),
        }
    }
    Ok(())
}

/// The terminal is not looked up where the container can put something else.
fn false_console() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["terminal"] = json!(true);
    // A devpts that is none.
    sandbox.spec["mounts"][2] = json!({"destination": "/dev/pts", "type": "tmpfs", "source": "x"});
    let options = estiba_runtime::CreateOptions::new(estiba_runtime::Stdio::Terminal);
    let error = sandbox.native.create(&sandbox.id, &sandbox.bundle(), &options);
    same(matches!(error, Err(Error::Setup { step, .. }) if step.contains("terminal")), true)
}

/// What lies at the container's `/proc/sys` has no part in it.
fn false_sysctl() -> Outcome {
    let mut sandbox = Sandbox::new();
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    // No proc in the container at all, and a folder that feigns one.
    list.remove(0);
    sandbox.spec["linux"]["maskedPaths"] = json!([]);
    sandbox.spec["linux"]["readonlyPaths"] = json!([]);
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "9"});
    let feigned = sandbox.rootfs().join("proc/sys/net/ipv4");
    fs::create_dir_all(&feigned)?;
    symlink("/bin/true", feigned.join("ip_unprivileged_port_start"))?;
    let before = fs::metadata(sandbox.rootfs().join("bin/busybox"))?.len();
    sandbox.script("mount -t proc x /proc; cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    let all = json!(["CAP_SYS_ADMIN"]);
    sandbox.spec["process"]["capabilities"] = json!({"bounding": all, "permitted": all, "effective": all});
    same(sandbox.output()?.as_str(), "9\n")?;
    same(fs::metadata(sandbox.rootfs().join("bin/busybox"))?.len(), before)
}

fn linked_dev() -> Outcome {
    for openat2 in [true, false] {
        for target in ["../../victim", "/victim", "/proc/self/fd/5"] {
            let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
            let victim = sandbox.outside().join("victim");
            fs::create_dir(&victim)?;
            symlink(target, sandbox.rootfs().join("dev"))?;
            let path = victim.to_str().expect("text").to_owned();
            symlink(&path, sandbox.rootfs().join("absolute"))?;
            // Nothing is mounted at /dev, so that devices go into the root itself.
            sandbox.spec["mounts"].as_array_mut().expect("a list").drain(1..5);
            sandbox.spec["linux"]["devices"] = json!([{"path": "/absolute/x", "type": "c", "major": 1, "minor": 3}]);
            let _ = sandbox.run();
            same((target, fs::read_dir(&victim)?.count()), (target, 0))?;
        }
    }
    Ok(())
}

fn false_device() -> Outcome {
    let sandbox = Sandbox::new();
    let dev = sandbox.rootfs().join("dev");
    fs::create_dir(&dev)?;
    fs::write(dev.join("null"), "x")?;
    let mut sandbox = sandbox;
    sandbox.spec["mounts"].as_array_mut().expect("a list").drain(1..5);
    same(matches!(sandbox.create(), Err(Error::Setup { call: "something else is there", .. })), true)
}
