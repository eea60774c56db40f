//! Processes that are added to a container.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use estiba_runtime::{
    CreateOptions, Error, ExecOptions, ExitStatus, Features, Keyring, KillTarget, Native, Runtime, Status, Stdio, wait,
};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::sandbox::{Outcome, Sandbox, chain, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("exec_is_where_the_container_is", inside),
        privileged("exec_is_a_child_of_the_caller", child),
        privileged("exec_is_as_asked", process),
        privileged("exec_has_the_containers_rights_if_it_names_none", defaults),
        privileged("exec_passes_exit_statuses", statuses),
        privileged("exec_tells_apart_what_cannot_be_executed", executables),
        privileged("exec_needs_a_running_container", stopped),
        privileged("exec_into_a_paused_container_is_an_error", paused),
        privileged("exec_has_a_terminal_of_its_own", terminal),
        privileged("exec_is_under_the_containers_filter", seccomp),
        privileged("exec_in_a_user_namespace", user_namespace),
        privileged("exec_in_a_time_namespace", time_namespace),
        privileged("exec_in_the_hosts_pid_namespace", host_pids),
        privileged("exec_hands_descriptors_on", preserved),
        privileged("exec_by_another_process", other_process),
        privileged("exec_the_old_ways", fallbacks),
        version2(privileged("exec_on_cgroup_version_2", unified)),
        privileged("exec_leaves_nothing_behind", nothing_left),
        privileged("exec_that_nobody_waits_for_holds_up_no_delete", unwaited),
        privileged("exec_many_at_once", concurrent),
        privileged("exec_takes_no_time_to_speak_of", speed),
        privileged("cve_2016_9962_exec_is_closed_to_the_container", closed),
        privileged("cve_2019_5736_exec_does_not_execute_the_host_program", host_program),
        privileged("cve_2022_29162_exec_inherits_nothing_unasked", inheritable),
        privileged("cve_2024_21626_exec_starts_inside", leaked_descriptors),
    ]
}

/// Where a version 2 tree is: all there is, or beside version 1.
fn version2_root() -> Option<&'static str> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find(|root| Path::new(root).join("cgroup.procs").exists())
}

fn version2(trial: Trial) -> Trial {
    match version2_root() {
        Some(_) => trial,
        None => trial.with_ignored_flag(true).with_kind("needs cgroup version 2"),
    }
}

const KINDS: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Namespaces, root and cgroups are those of the first process.
fn inside() -> Outcome {
    let mut sandbox = Sandbox::new();
    fs::write(sandbox.rootfs().join("mark"), "here\n")?;
    let first = sandbox.running()?;
    let script = format!(
        "cat /mark; hostname; for kind in {}; do readlink /proc/self/ns/$kind; done; cat /proc/self/cgroup; echo -; cat /proc/1/cgroup; \
         echo -; cat /proc/self/status | grep Seccomp:",
        KINDS.join(" ")
    );
    let output = sandbox.exec_output(&Sandbox::process(&script))?;
    let namespaces: String = KINDS
        .iter()
        .map(|kind| fs::read_link(format!("/proc/{}/ns/{kind}", first.pid)).map(|at| format!("{}\n", at.display())))
        .collect::<Result<_, _>>()?;
    let (places, cgroups) = output.split_at(output.find("\n9:").or(output.find("\n0:")).ok_or("no cgroup")? + 1);
    same(places, format!("here\ninside\n{namespaces}"))?;
    let mut cgroups = cgroups.split("-\n");
    let own = cgroups.next();
    same((own, own.is_some_and(|own| own.contains('/'))), (cgroups.next(), true))?;
    sandbox.stop(&first)?;
    Ok(())
}

/// In its pid namespace it has no parent, outside it is ours, and its end is known through the pidfd.
fn child() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let (created, mut stdout, _err) = sandbox.add(&Sandbox::process("echo $PPID; exec sleep 1000"))?;
    let mut line = [0u8; 2];
    stdout.read_exact(&mut line)?;
    same(&line, b"0\n")?;
    let status = fs::read_to_string(format!("/proc/{}/status", created.pid))?;
    same(status.contains(&format!("\nPPid:\t{}\n", std::process::id())), true)?;
    same(sandbox.native.processes(&sandbox.id)?, {
        let mut both = vec![first.pid, created.pid];
        both.sort_unstable();
        both
    })?;
    // It is no part of the state.
    same(sandbox.native.state(&sandbox.id)?.pid, first.pid)?;
    // The end of the first process is its end, too.
    sandbox.native.kill(&sandbox.id, libc::SIGKILL, KillTarget::Init)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
    wait(first.pidfd.as_fd(), first.pid)?;
    Ok(())
}

fn process() -> Outcome {
    let mut sandbox = Sandbox::new();
    let etc = sandbox.rootfs().join("etc");
    fs::create_dir(&etc)?;
    fs::write(etc.join("passwd"), "me:x:1000:1000:,,:/home/me:/bin/sh\n")?;
    fs::create_dir_all(sandbox.rootfs().join("some/where"))?;
    let first = sandbox.running()?;
    let mut process = Sandbox::process(
        "id -u; id -g; grep Groups /proc/self/status; umask; pwd; echo $A $HOME; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
         grep -E 'CapPrm|CapBnd|CapAmb|NoNew' /proc/self/status; test -t 0 || echo no terminal",
    );
    process["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 6]});
    process["cwd"] = json!("/some/where");
    process["env"] = json!(["PATH=/bin", "A=b c"]);
    process["oomScoreAdj"] = json!(77);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 90, "soft": 80}]);
    process["noNewPrivileges"] = json!(false);
    let some = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    process["capabilities"] =
        json!({"bounding": some, "permitted": some, "effective": some, "inheritable": some, "ambient": ["CAP_KILL"]});
    same(
        sandbox.exec_output(&process)?.as_str(),
        "1000\n1001\nGroups:\t5 6 \n0027\n/some/where\nb c /home/me\n77\n80\n90\n\
         CapPrm:\t0000000000000020\nCapBnd:\t0000000000000420\nCapAmb:\t0000000000000020\nNoNewPrivs:\t0\nno terminal\n",
    )?;
    let mut process = Sandbox::process("");
    process["args"] = json!(["grep", "-E", "SigBlk|SigIgn|SigCgt", "/proc/self/status"]);
    let none = "0000000000000000";
    same(sandbox.exec_output(&process)?, format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n"))?;
    sandbox.stop(&first)?;
    Ok(())
}

/// The rights of the container are what holds unless others are asked for.
fn defaults() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["oomScoreAdj"] = json!(55);
    let first = sandbox.running()?;
    let script = "grep -E 'CapEff|CapBnd|NoNew' /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj; grep -c _ses. /proc/keys; true";
    let output = sandbox.exec_output(&Sandbox::process(script))?;
    same(output.as_str(), "CapEff:\t00000000000004eb\nCapBnd:\t00000000000004eb\nNoNewPrivs:\t1\n256\n55\n0\n")?;
    sandbox.stop(&first)?;
    Ok(())
}

fn statuses() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    for (script, status) in [
        ("exit 0", ExitStatus::Exited(0)),
        ("exit 77", ExitStatus::Exited(77)),
        ("kill -9 $$", ExitStatus::Signaled(9)),
        ("kill -15 $$", ExitStatus::Signaled(15)),
    ] {
        same(sandbox.exec(&Sandbox::process(script))?.status, status)?;
    }
    let ended = sandbox.exec(&Sandbox::process("echo out; echo err >&2"))?;
    same((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"))?;
    sandbox.stop(&first)?;
    Ok(())
}

fn executables() -> Outcome {
    let mut sandbox = Sandbox::new();
    let root = sandbox.rootfs();
    fs::write(root.join("bin/plain"), "#!/bin/sh\n")?;
    for (name, text) in [("garbage", "\x7fELF is not all"), ("orphan", "#!/bin/missing\n")] {
        fs::write(root.join("bin").join(name), text)?;
        fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(0o755))?;
    }
    let first = sandbox.running()?;
    let children = zombies()?;
    for (program, code) in [
        ("nothing", 127),
        ("/nothing", 127),
        ("/bin/true/x", 127),
        ("orphan", 127),
        ("plain", 126),
        ("/bin", 126),
        ("garbage", 126),
    ] {
        for _ in 0..5 {
            let mut process = Sandbox::process("");
            process["args"] = json!([program]);
            match sandbox.exec(&process) {
                Ok(ended) => return Err(format!("{program}: {ended:?}").into()),
                Err(error) => same((program, error.exit_code()), (program, code)).map_err(|_| chain(&error))?,
            }
        }
    }
    // Whoever failed was reaped.
    same(zombies()?, children)?;
    same(sandbox.native.processes(&sandbox.id)?, [first.pid])?;
    let mut process = Sandbox::process("");
    process["cwd"] = json!("/none");
    match sandbox.exec(&process) {
        Err(Error::Setup { step, source, .. }) => {
            same((step.as_str(), source.raw_os_error()), ("process.cwd: change to /none", Some(libc::ENOENT)))?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    sandbox.stop(&first)?;
    Ok(())
}

/// How many children this process has, dead ones among them.
fn zombies() -> Result<usize, std::io::Error> {
    let mut children = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let list = fs::read_to_string(task?.path().join("children"))?;
        children += list.split_whitespace().count();
    }
    Ok(children)
}

fn stopped() -> Outcome {
    let sandbox = Sandbox::new();
    let process = Sandbox::process("true");
    same(matches!(sandbox.exec(&process), Err(Error::NotFound { .. })), true)?;
    let (created, _out, _err) = sandbox.create()?;
    // It waits for its start, and has all that a process needs.
    same(
        sandbox.exec_output(&Sandbox::process("echo here; test $$ = 1 || echo not first"))?.as_str(),
        "here\nnot first\n",
    )?;
    sandbox.native.kill(&sandbox.id, libc::SIGKILL, KillTarget::Init)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    match sandbox.exec(&process) {
        Err(error @ Error::WrongStatus { status: Status::Stopped, .. }) => {
            same(error.to_string(), format!("cannot add a process to container {}: it is stopped", sandbox.id))
        }
        other => Err(format!("{other:?}").into()),
    }
}

fn paused() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let process = Sandbox::process("true");
    let refused = || match sandbox.exec(&process) {
        Err(Error::WrongStatus { status: Status::Paused, .. }) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    sandbox.native.pause(&sandbox.id)?;
    refused()?;
    sandbox.native.resume(&sandbox.id)?;
    same(sandbox.exec(&process)?.status, ExitStatus::Exited(0))?;
    // By somebody else, whom the record knows nothing of.
    let state = |text: &str| -> Outcome {
        for folder in sandbox.cgroups() {
            for (file, value) in [("freezer.state", text), ("cgroup.freeze", if text == "FROZEN" { "1" } else { "0" })]
            {
                if folder.join(file).exists() && (file == "freezer.state" || sandbox.cgroups().len() == 1) {
                    fs::write(folder.join(file), value)?;
                }
            }
        }
        Ok(())
    };
    state("FROZEN")?;
    let outcome = refused();
    state("THAWED")?;
    outcome?;
    sandbox.stop(&first)?;
    Ok(())
}

fn terminal() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let mut process = Sandbox::process(
        "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; read line; echo got $line; echo x > /dev/tty; ls -l /dev/console 2>/dev/null; stat -c %u /dev/pts/0",
    );
    process["terminal"] = json!(true);
    process["user"] = json!({"uid": 12, "gid": 12});
    process["consoleSize"] = json!({"width": 77, "height": 33});
    match sandbox.exec(&process) {
        Err(Error::InvalidSpec { field, .. }) => same(field.as_str(), "process.terminal")?,
        other => return Err(format!("{other:?}").into()),
    }
    let process = serde_json::from_value(process)?;
    let created = sandbox.native.exec(&sandbox.id, &process, &ExecOptions::new(Stdio::Terminal))?;
    let mut console = fs::File::from(created.console.ok_or("no terminal")?);
    console.write_all(b"hello\n")?;
    let mut output = Vec::new();
    let mut buffer = [0u8; 1024];
    // The end of a terminal is EIO.
    while let Ok(length @ 1..) = console.read(&mut buffer) {
        output.extend_from_slice(&buffer[..length]);
    }
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Exited(0))?;
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    let lines: Vec<&str> = output.lines().filter(|line| *line != "hello").collect();
    same(lines, ["/dev/pts/0", "33 77", "all", "got hello", "x", "12"])?;
    sandbox.stop(&first)?;
    Ok(())
}

fn seccomp() -> Outcome {
    for confined in [true, false] {
        let mut sandbox = Sandbox::new();
        sandbox.spec["process"]["noNewPrivileges"] = json!(confined);
        sandbox.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]
        });
        let first = sandbox.running()?;
        let process =
            Sandbox::process("grep -E 'NoNew|Seccomp:' /proc/self/status; busybox mkdir /dev/shm/x 2>&1; true");
        let output = sandbox.exec_output(&process)?;
        same(output.starts_with(&format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", u8::from(confined))), true)
            .map_err(|_| output.clone())?;
        same(output.contains("Protocol error"), true).map_err(|_| output)?;
        // Without its filter nothing gets in.
        let file = sandbox.outside().join("state").join(sandbox.id.as_str()).join("seccomp.bpf");
        fs::write(&file, "odd")?;
        same(sandbox.exec(&process).is_err(), true)?;
        fs::remove_file(&file)?;
        same(sandbox.exec(&process).is_err(), true)?;
        sandbox.stop(&first)?;
    }
    Ok(())
}

fn user_namespace() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    sandbox.spec["linux"]["uidMappings"] = mapping.clone();
    sandbox.spec["linux"]["gidMappings"] = mapping;
    for name in ["dev", "proc", "sys"] {
        fs::create_dir(sandbox.rootfs().join(name))?;
    }
    let first = sandbox.running()?;
    let mut process = Sandbox::process(
        "id -u; id -g; grep -E 'CapEff|Groups' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; f=/dev/shm/$(id -u); touch $f && stat -c %u $f; readlink /proc/self/ns/user",
    );
    process["oomScoreAdj"] = json!(12);
    let user = fs::read_link(format!("/proc/{}/ns/user", first.pid))?;
    same(user == fs::read_link("/proc/self/ns/user")?, false)?;
    let wanted = |id, capabilities| {
        format!("{id}\n{id}\nGroups:\t \nCapEff:\t{capabilities}\n12\n256\n{id}\n{}\n", user.display())
            .replace("\t \n", "\t\n")
    };
    same(sandbox.exec_output(&process)?.replace("\t \n", "\t\n"), wanted(0, "00000000000004eb"))?;
    process["user"] = json!({"uid": 9, "gid": 9});
    same(sandbox.exec_output(&process)?.replace("\t \n", "\t\n"), wanted(9, "0000000000000000"))?;
    process["user"] = json!({"uid": 70000, "gid": 0});
    match sandbox.exec(&process) {
        Err(Error::Setup { step, .. }) => same(step.as_str(), "process.user.uid: set 70000")?,
        other => return Err(format!("{other:?}").into()),
    }
    sandbox.stop(&first)?;
    Ok(())
}

fn time_namespace() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "time"}));
    let first = sandbox.running()?;
    let time = fs::read_link(format!("/proc/{}/ns/time", first.pid))?;
    same(time == fs::read_link("/proc/self/ns/time")?, false)?;
    let output = sandbox.exec_output(&Sandbox::process("readlink /proc/self/ns/time"))?;
    same(output, format!("{}\n", time.display()))?;
    sandbox.stop(&first)?;
    Ok(())
}

fn host_pids() -> Outcome {
    let mut sandbox = Sandbox::new();
    let namespaces = sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "pid" && namespace["type"] != "network");
    sandbox.spec["mounts"][0] =
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    sandbox.spec["mounts"]
        .as_array_mut()
        .expect("a list")
        .retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
    sandbox.spec["linux"]["maskedPaths"] = json!([]);
    sandbox.spec["linux"]["readonlyPaths"] = json!([]);
    let first = sandbox.running()?;
    let (created, stdout, _err) = sandbox.add(&Sandbox::process("echo $$ $PPID; readlink /proc/self/ns/net"))?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Exited(0))?;
    let net = fs::read_link("/proc/self/ns/net")?;
    same(std::io::read_to_string(stdout)?, format!("{} {}\n{}\n", created.pid, std::process::id(), net.display()))?;
    sandbox.stop(&first)?;
    Ok(())
}

fn preserved() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let file = sandbox.outside().join("handed");
    fs::write(&file, "one")?;
    let (one, two) = (fs::File::open(&file)?, fs::File::open("/dev/null")?);
    // More descriptors of the host program, which nobody asked for.
    let _leak: Vec<_> = (0..5).map(|_| fs::File::open("/etc")).collect();
    let (out, inner) = std::io::pipe()?;
    let fds = [one.as_fd(), two.as_fd()];
    let stdio = Stdio::Fds { stdin: two.as_fd(), stdout: inner.as_fd(), stderr: inner.as_fd() };
    let process = serde_json::from_value(Sandbox::process("cat <&3; echo; exec ls /proc/self/fd"))?;
    let options = ExecOptions { preserve_fds: &fds, ..ExecOptions::new(stdio) };
    let created = sandbox.native.exec(&sandbox.id, &process, &options)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    drop(inner);
    // 5 is the listing's own.
    same(std::io::read_to_string(out)?.as_str(), "one\n0\n1\n2\n3\n4\n5\n")?;
    sandbox.stop(&first)?;
    Ok(())
}

/// Nothing but the state's folder is needed.
fn other_process() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let first = sandbox.running()?;
    sandbox.native = Native::new(sandbox.outside().join("state"));
    same(
        sandbox.exec_output(&Sandbox::process("hostname; grep Seccomp: /proc/self/status"))?.as_str(),
        "inside\nSeccomp:\t2\n",
    )?;
    sandbox.stop(&first)?;
    Ok(())
}

fn fallbacks() -> Outcome {
    let without: [fn(&mut Features); 4] = [
        |features| features.clone3 = false,
        |features| features.openat2 = false,
        |features| features.close_range = false,
        |features| features.mount_setattr = false,
    ];
    for without in without {
        let mut features = Features::probe();
        without(&mut features);
        let mut sandbox = Sandbox::with_features(features);
        let first = sandbox.running()?;
        let output = sandbox.exec_output(&Sandbox::process(
            "cat /proc/self/cgroup; echo -; cat /proc/1/cgroup; echo -; ls /proc/self/fd",
        ))?;
        let parts: Vec<&str> = output.split("-\n").collect();
        same((parts[0] == parts[1], parts[2]), (true, "0\n1\n2\n3\n"))?;
        let mut missing = Sandbox::process("");
        missing["args"] = json!(["nothing"]);
        same(sandbox.exec(&missing).map(|_| ()).map_err(|error| error.exit_code()), Err(127))?;
        sandbox.stop(&first)?;
    }
    Ok(())
}

/// Born in the cgroup, going there by itself where nobody is born elsewhere, and where the container has put its first process if
/// nobody may be in the cgroup above that.
fn unified() -> Outcome {
    let root = Path::new(version2_root().ok_or("no version 2")?);
    for clone3 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { clone3, ..Features::probe() });
        sandbox.script("exec sleep 1000");
        let null = fs::File::options().read(true).write(true).open("/dev/null")?;
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
        let options = CreateOptions { cgroup_root: Some(root.to_owned()), ..CreateOptions::new(stdio) };
        let first = sandbox.native.create(&sandbox.id, &sandbox.bundle(), &options)?;
        sandbox.native.start(&sandbox.id)?;
        let folder = root.join(sandbox.id.as_str());
        let place = |pid: i32| -> Result<String, std::io::Error> {
            let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            Ok(text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned())
        };
        let (added, _out, _err) = sandbox.add(&Sandbox::process("exec sleep 1000"))?;
        let home = format!("/{}", sandbox.id);
        same((place(first.pid)?, place(added.pid)?), (home.clone(), home.clone()))?;
        same(sandbox.native.stats(&sandbox.id)?.cpu.usage > 0, true)?;
        let kill = |created: &estiba_runtime::Created| -> Outcome {
            rustix::process::pidfd_send_signal(&created.pidfd, rustix::process::Signal::KILL)?;
            same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Signaled(libc::SIGKILL))
        };
        kill(&added)?;
        let below = folder.join("below");
        fs::create_dir(&below)?;
        fs::write(below.join("cgroup.procs"), first.pid.to_string())?;
        let controllers = fs::read_to_string(folder.join("cgroup.controllers"))?;
        if let Some(controller) = controllers.split_whitespace().next()
            && clone3
        {
            fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"))?;
            let (added, _out, _err) = sandbox.add(&Sandbox::process("exec sleep 1000"))?;
            same(place(added.pid)?, format!("{home}/below"))?;
            kill(&added)?;
        }
        sandbox.native.pause(&sandbox.id)?;
        same(matches!(sandbox.exec(&Sandbox::process("true")), Err(Error::WrongStatus { .. })), true)?;
        sandbox.native.resume(&sandbox.id)?;
        sandbox.stop(&first)?;
        same(folder.exists(), false)?;
    }
    Ok(())
}

fn nothing_left() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let fds = fs::read_dir("/proc/self/fd")?.count();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let children = zombies()?;
    for script in ["true", "exit 3", "sleep 0.01"] {
        sandbox.exec(&Sandbox::process(script))?;
    }
    let mut bad: Vec<Value> = Vec::new();
    for (field, value) in [
        ("args", json!(["nothing"])),
        ("cwd", json!("/none")),
        ("user", json!({"uid": 0, "gid": 0, "additionalGids": vec![7; 70_000]})),
        ("rlimits", json!([{"type": "RLIMIT_NOFILE", "hard": 1_u64 << 40, "soft": 10}])),
    ] {
        let mut process = Sandbox::process("");
        process[field] = value;
        bad.push(process);
    }
    for process in &bad {
        same(sandbox.exec(process).is_err(), true)?;
    }
    same(fs::read_dir("/proc/self/fd")?.count(), fds)?;
    same(fs::read_to_string("/proc/self/mountinfo")? == mounts, true)?;
    same(zombies()?, children)?;
    same(sandbox.native.processes(&sandbox.id)?, [first.pid])?;
    sandbox.stop(&first)?;
    same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))
}

fn unwaited() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let (added, _out, _err) = sandbox.add(&Sandbox::process("exec sleep 1000"))?;
    let start = Instant::now();
    sandbox.native.delete(&sandbox.id, estiba_runtime::DeleteMode::Force)?;
    same(start.elapsed() < Duration::from_secs(5), true)?;
    same(wait(first.pidfd.as_fd(), first.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
    same(matches!(wait(added.pidfd.as_fd(), added.pid), Err(Error::Wait { .. })), true)?;
    same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))
}

/// From several threads, while others allocate without pause.
fn concurrent() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let stop = AtomicBool::new(false);
    let ran = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(std::hint::black_box((1..64usize).map(|size| vec![0u8; size * 37]).collect::<Vec<_>>()));
                }
            });
        }
        let workers: Vec<_> = (0..4)
            .map(|worker: i32| {
                let (sandbox, ran) = (&sandbox, &ran);
                scope.spawn(move || -> Result<(), String> {
                    for round in 0..25 {
                        let script = format!("echo {worker} {round}; exit {worker}");
                        let ended = sandbox.exec(&Sandbox::process(&script)).map_err(|error| chain(&error))?;
                        if ended.stdout != format!("{worker} {round}\n") || ended.status != ExitStatus::Exited(worker) {
                            return Err(format!("{ended:?}"));
                        }
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        for result in results {
            result.map_err(|_| "a thread panicked")??;
        }
        Ok::<(), String>(())
    })?;
    sandbox.stop(&first)?;
    same(ran.into_inner(), 100)
}

/// Prints how long it takes. What is asserted is only that nothing waits for a timeout.
fn speed() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let mut process = Sandbox::process("");
    process["args"] = json!(["true"]);
    let process = serde_json::from_value(process)?;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let (mut executed, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        let created = sandbox.native.exec(&sandbox.id, &process, &ExecOptions::new(stdio))?;
        executed.push(start.elapsed());
        wait(created.pidfd.as_fd(), created.pid)?;
        ended.push(start.elapsed());
    }
    sandbox.stop(&first)?;
    executed.sort_unstable();
    ended.sort_unstable();
    println!(
        "exec true: {:?} until it is executed, {:?} until it has ended (medians of 200)",
        executed[100], ended[100]
    );
    same(ended[100] < Duration::from_millis(100), true)
}

/// CVE-2016-9962: a process of the container that may do all that root may do there looks for descriptors and memory of the host's
/// program in what is added.
fn closed() -> Outcome {
    let mut sandbox = Sandbox::new();
    let all = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID"
    ]);
    sandbox.spec["process"]["capabilities"] = json!({"bounding": all, "permitted": all, "effective": all});
    // It looks at every process that comes, and says what it could see of one that is not the container's own program.
    sandbox.script(
        "echo ready; while :; do for dir in /proc/[0-9]*; do case $dir in /proc/1|/proc/self) continue;; esac; \
         exe=$(readlink $dir/exe) && case $exe in /bin/busybox) ;; *) echo \"saw $exe\";; esac; \
         for fd in $dir/fd/*; do to=$(readlink $fd) && case $to in /dev/null|pipe:*|/proc/*|/bin/*|/) ;; *) echo \"saw $to\";; esac; done; \
         done; done 2>/dev/null",
    );
    let (created, mut stdout, _err) = sandbox.create()?;
    sandbox.native.start(&sandbox.id)?;
    stdout.read_exact(&mut [0u8; 6])?;
    let secret = fs::File::open("/etc/passwd")?;
    let until = Instant::now() + Duration::from_millis(700);
    let mut rounds = 0;
    while Instant::now() < until || rounds < 20 {
        sandbox.exec(&Sandbox::process("true"))?;
        rounds += 1;
    }
    drop(secret);
    sandbox.native.kill(&sandbox.id, libc::SIGKILL, KillTarget::Init)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    let mut seen = String::new();
    stdout.read_to_string(&mut seen)?;
    same(seen.as_str(), "")
}

/// CVE-2019-5736: neither as the program, nor as the interpreter of a script, nor through a library path.
fn host_program() -> Outcome {
    for openat2 in [true, false] {
        let mut sandbox = Sandbox::with_features(Features { openat2, ..Features::probe() });
        for (name, text) in [("script", "#!/proc/self/exe\n"), ("nested", "#! /bin/script x\n")] {
            fs::write(sandbox.rootfs().join("bin").join(name), text)?;
            fs::set_permissions(sandbox.rootfs().join("bin").join(name), fs::Permissions::from_mode(0o755))?;
        }
        symlink("/proc/self/exe", sandbox.rootfs().join("bin/link"))?;
        let first = sandbox.running()?;
        for program in ["/proc/self/exe", "link", "script", "nested", "/proc/thread-self/exe", "/proc/1/exe"] {
            if program == "/proc/1/exe" && !openat2 {
                // The walk takes the link for text, and the container's own program is what that names.
                continue;
            }
            let mut process = Sandbox::process("");
            process["args"] = json!([program, "true"]);
            match sandbox.exec(&process) {
                Err(error) if matches!(error.exit_code(), 126 | 127) => {}
                other => return Err(format!("{program} with openat2 {openat2}: {other:?}").into()),
            }
        }
        sandbox.stop(&first)?;
    }
    Ok(())
}

fn inheritable() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let mut process = Sandbox::process("grep -E 'CapInh|CapAmb' /proc/self/status");
    let some = json!(["CAP_KILL", "CAP_NET_ADMIN"]);
    process["capabilities"] = json!({"bounding": some, "permitted": some, "effective": some});
    let zero = "0000000000000000";
    same(sandbox.exec_output(&process)?, format!("CapInh:\t{zero}\nCapAmb:\t{zero}\n"))?;
    sandbox.stop(&first)?;
    Ok(())
}

/// CVE-2024-21626: whatever number a descriptor of the host has, it is no way out, nor is a link to it, nor a folder that is outside.
fn leaked_descriptors() -> Outcome {
    let mut sandbox = Sandbox::new();
    let first = sandbox.running()?;
    let host = fs::File::open("/")?;
    let highest = host.as_raw_fd() + 20;
    for place in ["/proc/self/fd", "/proc/thread-self/fd", "/proc/1/fd"] {
        for fd in 0..highest {
            let mut process = Sandbox::process("ls .");
            process["cwd"] = json!(format!("{place}/{fd}"));
            match sandbox.exec(&process) {
                Err(Error::Setup { .. }) => {}
                other => return Err(format!("{place}/{fd}: {other:?}").into()),
            }
        }
    }
    symlink(format!("/proc/self/fd/{}", host.as_raw_fd()), sandbox.rootfs().join("out"))?;
    symlink("/proc/1/root", sandbox.rootfs().join("root"))?;
    for cwd in ["/out", "/root", "/proc/1/cwd", "/proc/self/cwd"] {
        let mut process = Sandbox::process("ls .");
        process["cwd"] = json!(cwd);
        same((cwd, matches!(sandbox.exec(&process), Err(Error::Setup { .. }))), (cwd, true))?;
    }
    same(sandbox.exec_output(&Sandbox::process("exec ls /proc/self/fd"))?.as_str(), "0\n1\n2\n3\n")?;
    sandbox.stop(&first)?;
    // The same holds for a container that inherits the caller's keyring and has another root switch.
    let mut sandbox = Sandbox::new();
    sandbox.script("exec sleep 1000");
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let options = CreateOptions {
        keyring: Keyring::Inherit,
        root_switch: estiba_runtime::RootSwitch::Chroot,
        ..CreateOptions::new(stdio)
    };
    let first = sandbox.native.create(&sandbox.id, &sandbox.bundle(), &options)?;
    sandbox.native.start(&sandbox.id)?;
    same(
        sandbox.exec_output(&Sandbox::process("ls /; cd ../../..; ls"))?.as_str(),
        "bin\ndev\nproc\nsys\nbin\ndev\nproc\nsys\n",
    )?;
    sandbox.stop(&first)?;
    Ok(())
}
