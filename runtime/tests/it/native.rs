//! Containers seen from inside and outside.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use estiba_runtime::{
    CreateOptions, DeleteMode, Error, ExitStatus, KillTarget, Native, Root, Runtime, Status, Stdio, mount, wait,
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::sandbox::{Outcome, Sandbox, chain, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("a_container_is_isolated", isolated),
        privileged("mounts_are_as_asked", mounts),
        privileged("paths_are_masked_and_read_only", masked),
        privileged("dev_has_the_default_devices", devices),
        privileged("the_process_is_as_asked", process),
        privileged("capabilities_are_as_asked", capabilities),
        privileged("limits_are_as_asked", limits),
        privileged("raising_a_limit_without_the_right_is_an_error", raised_limit),
        privileged("home_comes_from_passwd", home),
        privileged("exit_statuses_pass_through", statuses),
        privileged("what_cannot_be_executed_is_told_apart", executables),
        privileged("what_is_not_an_executable_format_is_told_by_start", exec_format),
        privileged("states_follow_each_other", states),
        privileged("signals_reach_the_container", signals),
        privileged("delete_leaves_nothing", nothing_left),
        privileged("a_failed_create_leaves_nothing", failed_create),
        privileged("another_process_may_start_it", other_process),
        privileged("a_user_namespace_is_mapped", user_namespace),
        privileged("namespaces_are_joined", joined),
        privileged("a_terminal_is_the_containers_own", terminal),
        privileged("settings_are_written", sysctl),
        privileged("settings_of_the_machine_are_refused", sysctl_refused),
        privileged("hooks_run_in_order", hooks),
        privileged("a_failing_hook_stops_the_creation", failing_hook),
        privileged("a_hook_that_hangs_is_killed", hanging_hook),
        privileged("descriptors_are_handed_on", preserved),
        privileged("binds_are_as_asked", binds),
        privileged("a_detached_overlay_is_a_root", overlay),
        privileged("a_read_only_root_is_one", readonly_root),
        privileged("cgroup_limits_hold", cgroup_limits),
        privileged("seccomp_is_in_force", seccomp),
        privileged("seccomp_without_no_new_privileges", seccomp_privileged),
        privileged("what_is_not_supported_is_refused_by_name", refusals),
        privileged("pause_and_resume", pause),
        privileged("time_namespace", time_namespace),
    ]
}

fn isolated() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("echo $$; hostname; ps | grep -c sh; ls /; for link in /proc/self/ns/pid /proc/self/ns/net; do readlink $link; done; cat /proc/1/cgroup | grep -vc ':/$'; true");
    let output = sandbox.output()?;
    let lines: Vec<&str> = output.lines().collect();
    same(lines.get(..2), Some(&["1", "inside"][..]))?;
    let root: Vec<&str> = lines[3..].iter().copied().take_while(|line| !line.contains(':')).collect();
    same(root, ["bin", "dev", "proc", "sys"])?;
    for (line, kind) in lines[7..9].iter().zip(["pid", "net"]) {
        let host = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        if host.to_str() == Some(line) || !line.starts_with(kind) {
            return Err(format!("{line} is the host's").into());
        }
    }
    same(lines.last().copied(), Some("0"))
}

fn mounts() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("cat /proc/self/mountinfo");
    let output = sandbox.output()?;
    for (place, options, rest) in [
        ("/proc", "rw,nosuid,nodev,noexec,relatime", "proc proc rw"),
        ("/dev", "rw,nosuid", "tmpfs tmpfs rw,size=65536k,mode=755"),
        ("/dev/pts", "rw,nosuid,noexec,relatime", "devpts devpts rw,gid=5,mode=620,ptmxmode=666"),
        ("/dev/shm", "rw,nosuid,nodev,noexec,relatime", "tmpfs shm rw,size=64k"),
        ("/dev/mqueue", "rw,nosuid,nodev,noexec,relatime", "mqueue mqueue rw"),
        ("/sys", "ro,nosuid,nodev,noexec,relatime", "sysfs sysfs ro"),
    ] {
        let found = output.lines().find(|line| line.split(' ').nth(4) == Some(place));
        let found = found.ok_or_else(|| format!("{place} is not mounted:\n{output}"))?;
        let fields: Vec<&str> = found.split(' ').collect();
        same(fields[5], options)?;
        let after = found.split(" - ").nth(1).unwrap_or_default();
        if !after.starts_with(rest) {
            return Err(format!("{place}: found {after:?}, wanted {rest:?}").into());
        }
    }
    // Nothing of the host's tree is left, and nothing is shared with it.
    same(output.contains("shared:"), false)?;
    let roots = output.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count();
    same(roots, 1)
}

fn masked() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script(
        "cat /proc/keys | grep -c .; ls /sys/firmware | grep -c .; cat /proc/kcore | grep -c .; \
         echo 1 > /proc/sysrq-trigger 2>/dev/null && echo written; echo x > /proc/sys/kernel/domainname && echo written; \
         touch /sys/firmware/x 2>/dev/null && echo made; grep -c ' /sys/firmware .* tmpfs ' /proc/self/mountinfo; \
         test -d /proc/sys/kernel && echo there",
    );
    let ended = sandbox.run()?;
    same(ended.stdout.as_str(), "0\n0\n0\n1\nthere\n")
}

fn devices() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["devices"] = json!([
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 7, "gid": 8},
        {"path": "/dev/queue", "type": "p", "fileMode": 0o622}
    ]);
    sandbox.script(
        "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty; for link in fd stdin stdout stderr ptmx; do readlink $link; done; \
         stat -c '%t:%T %a %u %g' net/tun; stat -c '%F %a' queue; test -e console || echo none; echo x > null && cat null zero | :",
    );
    same(
        sandbox.output()?.as_str(),
        "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
         a:c8 600 7 8\nfifo 622\nnone\n",
    )
}

fn process() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 6]});
    sandbox.spec["process"]["cwd"] = json!("/made/for/me");
    sandbox.spec["process"]["env"] = json!(["PATH=/bin", "A=b c", "HOME=/x"]);
    sandbox.spec["process"]["oomScoreAdj"] = json!(321);
    sandbox.spec["domainname"] = json!("example");
    sandbox.script(
        "id -u; id -g; grep Groups /proc/self/status; umask; env | sort | grep -v SHLVL; cat /proc/self/oom_score_adj; \
         cat /proc/sys/kernel/domainname",
    );
    same(
        sandbox.output()?.as_str(),
        "1000\n1001\nGroups:\t5 6 \n0027\nA=b c\nHOME=/x\nPATH=/bin\nPWD=/made/for/me\n321\nexample\n",
    )?;
    // What the host program blocks and ignores is its own business: Rust's ignores SIGPIPE.
    sandbox.spec["process"]["args"] = json!(["grep", "-E", "SigBlk|SigIgn|SigCgt", "/proc/self/status"]);
    let none = "0000000000000000";
    same(sandbox.output()?, format!("SigBlk:\t{none}\nSigIgn:\t{none}\nSigCgt:\t{none}\n"))?;
    // 3 is the listing's own.
    sandbox.spec["process"]["args"] = json!(["ls", "/proc/self/fd"]);
    same(sandbox.output()?.as_str(), "0\n1\n2\n3\n")
}

fn capabilities() -> Outcome {
    let mut sandbox = Sandbox::new();
    // CAP_KILL is 5, CAP_SETUID 7, CAP_NET_BIND_SERVICE 10.
    sandbox.spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_SETUID", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "inheritable": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"]
    });
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    sandbox.script("grep -E 'Cap|NoNew' /proc/self/status");
    same(
        sandbox.output()?.as_str(),
        "CapInh:\t0000000000000400\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\n\
         CapBnd:\t00000000000004a0\nCapAmb:\t0000000000000400\nNoNewPrivs:\t1\n",
    )?;
    // Without the object there are none.
    sandbox.spec["process"].as_object_mut().expect("an object").remove("capabilities");
    sandbox.spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    sandbox.spec["process"]["noNewPrivileges"] = json!(false);
    let zero = "0000000000000000";
    same(
        sandbox.output()?,
        format!(
            "CapInh:\t{zero}\nCapPrm:\t{zero}\nCapEff:\t{zero}\nCapBnd:\t{zero}\nCapAmb:\t{zero}\nNoNewPrivs:\t0\n"
        ),
    )
}

fn limits() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "hard": 200, "soft": 100}, {"type": "RLIMIT_CORE", "hard": 0, "soft": 0}
    ]);
    sandbox.script("ulimit -n; ulimit -Hn; ulimit -c");
    same(sandbox.output()?.as_str(), "100\n200\n0\n")
}

/// This is about processes that lack `CAP_SYS_RESOURCE`; one that has it may.
fn raised_limit() -> Outcome {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("CapEff")).and_then(|line| line.split('\t').nth(1));
    let may = u64::from_str_radix(line.unwrap_or_default(), 16)? & 1 << 24 != 0;
    let mut sandbox = Sandbox::new();
    // More than any kernel has as its maximum, so that nobody may.
    sandbox.spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 1_u64 << 40, "soft": 10}]);
    match sandbox.run() {
        Err(Error::Setup { step, source, .. }) => {
            same(step.contains("RLIMIT_NOFILE"), true)?;
            same(source.raw_os_error(), Some(libc::EPERM))?;
        }
        other => return Err(format!("found {other:?} (CAP_SYS_RESOURCE: {may})").into()),
    }
    same(sandbox.cgroups().len(), 0)
}

fn home() -> Outcome {
    let mut sandbox = Sandbox::new();
    let etc = sandbox.rootfs().join("etc");
    fs::create_dir(&etc)?;
    let filler = "x:x:99:99::/:/\n".repeat(2000);
    fs::write(
        etc.join("passwd"),
        format!("root:x:0:0:root:/root:/bin/sh\n{filler}me:x:1000:1000:,,:/home/me:/bin/sh"),
    )?;
    sandbox.script("echo $HOME");
    same(sandbox.output()?.as_str(), "/root\n")?;
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    same(sandbox.output()?.as_str(), "/home/me\n")?;
    sandbox.spec["process"]["user"] = json!({"uid": 1234, "gid": 1000});
    same(sandbox.output()?.as_str(), "/\n")
}

fn statuses() -> Outcome {
    let mut sandbox = Sandbox::new();
    for (script, status) in
        [("exit 0", ExitStatus::Exited(0)), ("exit 77", ExitStatus::Exited(77)), ("exit 255", ExitStatus::Exited(255))]
    {
        same(sandbox.script(script).run()?.status, status)?;
    }
    let ended = sandbox.script("echo out; echo err >&2").run()?;
    same((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"))
}

fn executables() -> Outcome {
    let mut sandbox = Sandbox::new();
    let root = sandbox.rootfs();
    fs::write(root.join("bin/plain"), "#!/bin/sh\n")?;
    fs::create_dir(root.join("bin/folder"))?;
    for (program, code) in [
        ("nothing", 127),
        ("/nothing", 127),
        ("/bin/true/x", 127),
        ("plain", 126),
        ("/bin/plain", 126),
        ("/bin", 126),
        ("folder", 126),
    ] {
        sandbox.spec["process"]["args"] = json!([program]);
        match sandbox.create() {
            Ok(_) => return Err(format!("{program} was created").into()),
            Err(error) => same((program, error.exit_code()), (program, code)).map_err(|_| chain(&error))?,
        }
        same(sandbox.native.list()?.len(), 0)?;
    }
    // The second folder has it, though the first has one that cannot be executed.
    fs::create_dir(root.join("first"))?;
    fs::write(root.join("first/true"), "")?;
    sandbox.spec["process"]["args"] = json!(["true"]);
    sandbox.spec["process"]["env"] = json!(["PATH=/first:/none:/bin"]);
    same(sandbox.run()?.status, ExitStatus::Exited(0))?;
    // A user who may not execute it.
    fs::copy(root.join("bin/busybox"), root.join("bin/mine"))?;
    fs::set_permissions(root.join("bin/mine"), fs::Permissions::from_mode(0o700))?;
    sandbox.spec["process"]["args"] = json!(["/bin/mine", "true"]);
    sandbox.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    sandbox.spec["process"].as_object_mut().expect("an object").remove("capabilities");
    same(sandbox.run().map_err(|error| error.exit_code()).map(|_| ()), Err::<(), _>(126))
}

fn exec_format() -> Outcome {
    let mut sandbox = Sandbox::new();
    let program = sandbox.rootfs().join("bin/garbage");
    fs::write(&program, "\x7fELF is not all it takes")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    sandbox.spec["process"]["args"] = json!(["garbage"]);
    let (created, _, _) = sandbox.create()?;
    let error = sandbox.native.start(&sandbox.id).err().ok_or("it started")?;
    same(error.exit_code(), 126)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Exited(126))?;
    fs::write(&program, "#!/bin/missing\n")?;
    sandbox.native.delete(&sandbox.id, DeleteMode::Stopped)?;
    // That is seen before.
    same(sandbox.create().map(drop).map_err(|error| error.exit_code()), Err(127))?;
    same(sandbox.native.list()?.len(), 0)
}

fn states() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["annotations"] = json!({"a": "b"});
    sandbox.script("sleep 100");
    let Sandbox { native, id, .. } = &sandbox;
    same(matches!(native.state(id), Err(Error::NotFound { .. })), true)?;
    let (created, _out, _err) = sandbox.create()?;
    let state = native.state(id)?;
    same((state.status, state.pid, state.bundle), (Status::Created, created.pid, sandbox.bundle_path()))?;
    same(state.annotations.get("a").map(String::as_str), Some("b"))?;
    same(matches!(sandbox.create(), Err(Error::AlreadyExists { .. })), true)?;
    native.start(id)?;
    same(native.state(id)?.status, Status::Running)?;
    same(matches!(native.start(id), Err(Error::WrongStatus { status: Status::Running, .. })), true)?;
    same(matches!(native.delete(id, DeleteMode::Stopped), Err(Error::WrongStatus { .. })), true)?;
    native.kill(id, libc::SIGKILL, KillTarget::Init)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
    let state = native.state(id)?;
    same((state.status, state.pid), (Status::Stopped, 0))?;
    same(matches!(native.kill(id, libc::SIGKILL, KillTarget::Init), Err(Error::WrongStatus { .. })), true)?;
    native.delete(id, DeleteMode::Stopped)?;
    same(matches!(native.delete(id, DeleteMode::Stopped), Err(Error::NotFound { .. })), true)?;
    native.delete(id, DeleteMode::Force)?;
    Ok(())
}

fn signals() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.01; done");
    let (created, mut stdout, _err) = sandbox.create()?;
    sandbox.native.start(&sandbox.id)?;
    let mut ready = [0u8; 6];
    stdout.read_exact(&mut ready)?;
    sandbox.native.kill(&sandbox.id, libc::SIGUSR1, KillTarget::Init)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Exited(9))?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    same(rest.as_str(), "caught\n")
}

fn nothing_left() -> Outcome {
    let mut sandbox = Sandbox::new();
    // Processes that outlive the first one, in the host's pid namespace.
    let namespaces = sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "pid");
    sandbox.spec["mounts"][0] =
        json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    sandbox.spec["linux"]["maskedPaths"] = json!([]);
    sandbox.spec["linux"]["readonlyPaths"] = json!([]);
    sandbox.script("sleep 1000 & sleep 1000 & exit 0");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let fds = fs::read_dir("/proc/self/fd")?.count();
    {
        let (created, _out, _err) = sandbox.create()?;
        sandbox.native.start(&sandbox.id)?;
        wait(created.pidfd.as_fd(), created.pid)?;
        same(sandbox.cgroups().is_empty(), false)?;
        sandbox.native.delete(&sandbox.id, DeleteMode::Stopped)?;
    }
    same(sandbox.cgroups().len(), 0)?;
    same(sandbox.native.list()?.len(), 0)?;
    same(fs::read_to_string("/proc/self/mountinfo")? == mounts, true)?;
    same(fs::read_dir("/proc/self/fd")?.count(), fds)?;
    // A created one, and a running one by force.
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "pid"}));
    sandbox.spec["mounts"][0] = json!({"destination": "/proc", "type": "proc", "source": "proc"});
    for (start, mode) in [(false, DeleteMode::Stopped), (true, DeleteMode::Force)] {
        sandbox.script("sleep 1000");
        let (created, _out, _err) = sandbox.create()?;
        if start {
            sandbox.native.start(&sandbox.id)?;
        }
        sandbox.native.delete(&sandbox.id, mode)?;
        same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
        same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))?;
    }
    Ok(())
}

fn failed_create() -> Outcome {
    let mut sandbox = Sandbox::new();
    let fds = fs::read_dir("/proc/self/fd")?.count();
    let good = sandbox.spec.clone();
    for (pointer, value) in [
        ("/process/args", json!(["nothing"])),
        ("/mounts/2/options", json!(["no-such-option"])),
        ("/mounts/0/destination", json!("/bin/true/x")),
        ("/linux/namespaces/0/path", json!("/proc/self/ns/none")),
        ("/linux/resources", json!({"pids": {"limit": 10}, "cpu": {"quota": 5, "period": 100_000}})),
    ] {
        sandbox.spec = good.clone();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        sandbox.spec.pointer_mut(parent).expect("a place")[name] = value;
        let Err(error) = sandbox.create() else { return Err(format!("{pointer}: created").into()) };
        same((pointer, sandbox.cgroups().len(), sandbox.native.list()?.len()), (pointer, 0, 0))
            .map_err(|failed| format!("{failed:?} after {error}"))?;
        same((pointer, fs::read_dir("/proc/self/fd")?.count()), (pointer, fds))?;
    }
    Ok(())
}

fn other_process() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("exit 3");
    let (created, _out, _err) = sandbox.create()?;
    // Another value has nothing but the state's folder, as another process would.
    let other = Native::new(sandbox.outside().join("state"));
    same(other.state(&sandbox.id)?.status, Status::Created)?;
    other.start(&sandbox.id)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Exited(3))?;
    other.delete(&sandbox.id, DeleteMode::Stopped)?;
    Ok(())
}

fn user_namespace() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    sandbox.spec["linux"]["uidMappings"] = mapping.clone();
    sandbox.spec["linux"]["gidMappings"] = mapping;
    sandbox.spec["process"]["oomScoreAdj"] = json!(11);
    for name in ["dev", "proc", "sys"] {
        fs::create_dir(sandbox.rootfs().join(name))?;
    }
    sandbox.script(
        "id -u; id -g; grep CapEff /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; stat -c %u /dev /proc; \
         stat -c '%t:%T %u' /dev/null; echo x > /dev/null && touch /dev/shm/x && stat -c %u /dev/shm/x; cat /proc/self/uid_map",
    );
    let output = sandbox.output()?;
    let lines: Vec<&str> = output.lines().collect();
    same(lines[..9].to_vec(), ["0", "0", "CapEff:\t00000000000004eb", "11", "256", "0", "65534", "1:3 65534", "0"])?;
    let map: Vec<&str> = lines[9].split_whitespace().collect();
    same(map, ["0", "100000", "65536"])
}

fn joined() -> Outcome {
    let mut first = Sandbox::new();
    first.script("hostname first; echo ready; while :; do sleep 1; done");
    first.spec["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
    first.spec["process"]["capabilities"]["permitted"] = json!(["CAP_SYS_ADMIN"]);
    first.spec["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
    let (created, mut stdout, _err) = first.create()?;
    first.native.start(&first.id)?;
    stdout.read_exact(&mut [0u8; 6])?;
    let mut second = Sandbox::new();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", created.pid);
    second.spec["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"},
        {"type": "pid", "path": path("pid")}, {"type": "network", "path": path("net")},
        {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")}
    ]);
    second.spec.as_object_mut().expect("an object").remove("hostname");
    second.script("hostname; for link in /proc/self/ns/pid /proc/self/ns/net /proc/self/ns/ipc; do readlink $link; done; test $$ = 1 || echo not first; true");
    let output = second.output()?;
    let mut wanted = String::from("first\n");
    for kind in ["pid", "net", "ipc"] {
        wanted.push_str(&fs::read_link(path(kind))?.to_string_lossy());
        wanted.push('\n');
    }
    same(output.starts_with(&format!("{wanted}not first\n")), true).map_err(|_| output)?;
    first.native.delete(&first.id, DeleteMode::Force)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    Ok(())
}

fn terminal() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["terminal"] = json!(true);
    sandbox.spec["process"]["consoleSize"] = json!({"width": 77, "height": 33});
    sandbox.script("tty; stty size; stat -c '%t' /dev/console; test -t 0 && test -t 1 && test -t 2 && echo all; read line; echo got $line; echo x > /dev/tty");
    same(matches!(sandbox.create(), Err(Error::InvalidSpec { .. })), true)?;
    let created = sandbox.native.create(&sandbox.id, &sandbox.bundle(), &CreateOptions::new(Stdio::Terminal))?;
    let mut console = fs::File::from(created.console.ok_or("no terminal")?);
    sandbox.native.start(&sandbox.id)?;
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
    same(lines, ["/dev/pts/0", "33 77", "88", "all", "got hello", "x"])
}

fn sysctl() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "7", "net/ipv4/conf/lo/forwarding": "1", "kernel.shmmax": "12345"});
    sandbox.script("cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/conf/lo/forwarding kernel/shmmax");
    same(sandbox.output()?.as_str(), "7\n1\n12345\n")
}

fn sysctl_refused() -> Outcome {
    let mut sandbox = Sandbox::new();
    for key in ["vm.swappiness", "kernel.core_pattern", "net/../kernel/core_pattern", "net//ipv4", "fs.file-max"] {
        sandbox.spec["linux"]["sysctl"] = json!({key: "1"});
        match sandbox.create() {
            Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) => {
                same(field, format!("linux.sysctl.{key}"))?;
            }
            other => return Err(format!("{key}: {other:?}").into()),
        }
    }
    // The host's settings are not the container's.
    sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    sandbox.spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("a list")
        .retain(|namespace| namespace["type"] != "network");
    same(matches!(sandbox.create(), Err(Error::InvalidSpec { .. })), true)
}

fn hooks() -> Outcome {
    let mut sandbox = Sandbox::new();
    let log = sandbox.outside().join("log");
    let hook = |name: &str| {
        let script = format!(
            "state=$(cat); echo {name} $(echo $state | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') \
             $(hostname) $(readlink /proc/self/ns/uts) >> {}",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 10}])
    };
    // In the container there is no log, but there is a root.
    let inside = json!([{"path": "/bin/sh", "args": ["sh", "-c", "read state; echo $state | grep -c created > /inside; hostname >> /inside; echo $$ >> /inside"],
        "env": ["PATH=/bin"]}]);
    sandbox.spec["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "startContainer": inside, "poststart": hook("poststart"), "poststop": hook("poststop")
    });
    sandbox.script("cat /inside");
    let output = sandbox.output()?;
    let lines: Vec<&str> = output.lines().collect();
    same(lines[..2].to_vec(), ["1", "inside"])?;
    let host = fs::read_to_string("/proc/sys/kernel/hostname")?;
    let uts = fs::read_link("/proc/self/ns/uts")?;
    let log = fs::read_to_string(&log)?;
    let ran: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    for (line, (name, status, in_host)) in ran.iter().zip([
        ("prestart", "created", true),
        ("createRuntime", "creating", true),
        ("createContainer", "creating", false),
        ("poststart", "running", true),
        ("poststop", "stopped", true),
    ]) {
        same((line[0], line[1]), (name, status))?;
        same((line[2] == host.trim(), line[3] == uts.to_string_lossy()), (in_host, in_host))?;
    }
    same(ran.len(), 5)
}

fn failing_hook() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["hooks"] =
        json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no good >&2; exit 4"]}]});
    match sandbox.create() {
        Err(Error::HookFailed { kind: "createRuntime", outcome, .. }) => {
            same(outcome.as_str(), "ended with status 4: no good")?;
        }
        other => return Err(format!("{other:?}").into()),
    }
    sandbox.spec["hooks"] = json!({"createRuntime": [{"path": "/none"}]});
    same(matches!(sandbox.create(), Err(Error::Hook { .. })), true)?;
    same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))
}

fn hanging_hook() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["hooks"] = json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]});
    let before = Instant::now();
    same(matches!(sandbox.create(), Err(Error::HookFailed { .. })), true)?;
    same(before.elapsed() < Duration::from_secs(5), true)
}

fn preserved() -> Outcome {
    let mut sandbox = Sandbox::new();
    let file = sandbox.outside().join("handed");
    fs::write(&file, "one")?;
    let (one, two) = (fs::File::open(&file)?, fs::File::open("/dev/null")?);
    // More descriptors of the host program, which nobody asked for.
    let _leak: Vec<_> = (0..5).map(|_| fs::File::open("/etc")).collect();
    sandbox.script("cat <&3; echo; exec ls /proc/self/fd");
    let (out, inner) = std::io::pipe()?;
    let null = fs::File::open("/dev/null")?;
    let fds = [one.as_fd(), two.as_fd()];
    let options = CreateOptions {
        preserve_fds: &fds,
        ..CreateOptions::new(Stdio::Fds { stdin: null.as_fd(), stdout: inner.as_fd(), stderr: inner.as_fd() })
    };
    let created = sandbox.native.create(&sandbox.id, &sandbox.bundle(), &options)?;
    sandbox.native.start(&sandbox.id)?;
    wait(created.pidfd.as_fd(), created.pid)?;
    drop(inner);
    same(std::io::read_to_string(out)?.as_str(), "one\n0\n1\n2\n3\n4\n5\n")
        .map_err(|failed| format!("5 is the listing's own: {failed:?}").into())
}

fn binds() -> Outcome {
    let mut sandbox = Sandbox::new();
    let source = sandbox.outside().join("source");
    fs::create_dir_all(source.join("sub"))?;
    fs::write(source.join("file"), "from outside\n")?;
    let bind = |to: &str, from: &std::path::Path, options: &[&str]| json!({"destination": to, "type": "bind", "source": from, "options": options});
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(bind("/data/rw", &source, &["rbind", "rprivate"]));
    list.push(bind("/data/ro", &source, &["bind", "ro", "nosuid", "noexec"]));
    list.push(bind("/etc/file", &source.join("file"), &["rbind", "rro"]));
    sandbox.script(
        "cat /etc/file; touch /data/rw/new; touch /data/ro/x 2>/dev/null || echo ro; echo x 2>/dev/null >> /etc/file || echo rro; \
         grep ' /data/ro ' /proc/self/mountinfo | grep -c ro,nosuid,noexec",
    );
    same(sandbox.output()?.as_str(), "from outside\nro\nrro\n1\n")?;
    same(source.join("new").exists(), true)
}

fn overlay() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = sandbox.outside();
    for name in ["lower", "upper", "work"] {
        fs::create_dir(folder.join(name))?;
    }
    fs::write(folder.join("lower/below"), "below\n")?;
    let options = [
        format!("lowerdir={}:{}", folder.join("lower").display(), sandbox.rootfs().display()),
        format!("upperdir={}", folder.join("upper").display()),
        format!("workdir={}", folder.join("work").display()),
    ];
    let mounts = serde_json::from_value::<Vec<_>>(json!([
        {"destination": "/", "type": "overlay", "source": "overlay", "options": options}
    ]))?;
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    let tree = mount::Tree::new(&mounts)?;
    let mut text = String::new();
    tree.open("below", libc::O_RDONLY)?.read_to_string(&mut text)?;
    same(text.as_str(), "below\n")?;
    same(fs::read_to_string("/proc/self/mountinfo")? == before, true)?;
    sandbox.script("cat /below; echo new > /new; grep ' / / ' /proc/self/mountinfo | grep -c overlay");
    let mut bundle = sandbox.bundle();
    bundle.root = Root::Detached(tree);
    let ended = sandbox.run_from(&bundle)?;
    same(ended.stdout.as_str(), "below\n1\n").map_err(|_| format!("{ended:?}"))?;
    same(fs::read_to_string(sandbox.outside().join("upper/new"))?.as_str(), "new\n")?;
    drop(bundle);
    // At a path, as other runtimes need it.
    let target = sandbox.outside().join("target");
    fs::create_dir(&target)?;
    mount::attach(&mounts, &target)?;
    let there = target.join("below").exists();
    mount::detach(&target)?;
    mount::detach(&target)?;
    same((there, target.join("below").exists()), (true, false))?;
    mount::detach(&sandbox.outside().join("absent"))?;
    Ok(())
}

fn readonly_root() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["root"]["readonly"] = json!(true);
    sandbox.spec["process"]["cwd"] = json!("/made");
    sandbox.script("touch /x 2>/dev/null || echo ro; touch /dev/shm/x && echo rw; grep ' / / ' /proc/self/mountinfo | grep -c ' ro'; pwd");
    let output = sandbox.output()?;
    same((output.contains("ro\n"), output.contains("rw\n"), output.contains("/made")), (true, true, true))
}

fn cgroup_limits() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["resources"] = json!({"pids": {"limit": 5}, "memory": {"limit": 64 << 20}});
    sandbox.script(
        "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; \
         cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; \
         for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done 2>&1 | grep -c fork; wait; true",
    );
    let ended = sandbox.run()?;
    same(ended.stdout.starts_with(&format!("5\n{}\n", 64 << 20)), true).map_err(|_| format!("{ended:?}"))?;
    same(ended.stdout.contains("fork") || ended.stderr.contains("fork") || ended.stdout.lines().count() > 2, true)
}

fn seccomp() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}]
    });
    sandbox.script("grep Seccomp: /proc/self/status; busybox mkdir /dev/shm/x 2>&1");
    let ended = sandbox.run()?;
    same(ended.stdout.starts_with("Seccomp:\t2\n"), true)?;
    same(ended.stdout.contains("Protocol error"), true).map_err(|_| format!("{ended:?}").into())
}

/// The filter is loaded while the capability is still there, and nothing later needs what it forbids.
fn seccomp_privileged() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["noNewPrivileges"] = json!(false);
    sandbox.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount", "fsopen", "move_mount", "pivot_root", "unshare", "setns", "openat2", "fchdir", "setresuid", "sendmsg"], "action": "SCMP_ACT_KILL_PROCESS"}]
    });
    sandbox.script("grep -E 'Seccomp:|NoNew|CapEff' /proc/self/status");
    same(sandbox.output()?.as_str(), "CapEff:\t00000000000004eb\nNoNewPrivs:\t0\nSeccomp:\t2\n")
}

fn refusals() -> Outcome {
    let mut sandbox = Sandbox::new();
    let good = sandbox.spec.clone();
    for (pointer, value, field) in [
        ("/process/apparmorProfile", json!("x"), "process.apparmorProfile"),
        ("/process/selinuxLabel", json!("x"), "process.selinuxLabel"),
        ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "linux.uidMappings"),
        ("/mounts/1/destination", json!("/proc/self/attr"), "mounts[1]"),
        ("/mounts/1/destination", json!("/"), "mounts[1]"),
        ("/linux/maskedPaths", json!(["relative"]), "linux.maskedPaths[0]"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/args", json!([]), "process.args"),
        ("/linux/namespaces/1/type", json!("pid"), "linux.namespaces[1]"),
        ("/linux/rootfsPropagation", json!("odd"), "linux.rootfsPropagation"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
    ] {
        sandbox.spec = good.clone();
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        let place = sandbox.spec.pointer_mut(parent).expect("a place");
        match name.parse::<usize>() {
            Ok(at) => place[at] = value,
            Err(_) => place[name] = value,
        }
        match sandbox.create() {
            Err(Error::InvalidSpec { field: found, .. } | Error::UnsupportedField { field: found, .. }) => {
                same(found.as_str(), field)?;
            }
            other => return Err(format!("{pointer}: {other:?}").into()),
        }
    }
    Ok(())
}

fn pause() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("sleep 1000");
    let (created, _out, _err) = sandbox.create()?;
    let Sandbox { native, id, .. } = &sandbox;
    native.start(id)?;
    native.pause(id)?;
    same(native.state(id)?.status, Status::Paused)?;
    native.resume(id)?;
    same(native.state(id)?.status, Status::Running)?;
    native.pause(id)?;
    // A frozen one can be killed all the same.
    native.delete(id, DeleteMode::Force)?;
    same(wait(created.pidfd.as_fd(), created.pid)?, ExitStatus::Signaled(libc::SIGKILL))?;
    same(sandbox.cgroups().len(), 0)
}

fn time_namespace() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "time"}));
    sandbox.script("readlink /proc/self/ns/time");
    let output = sandbox.output()?;
    same(output.starts_with("time:"), true)?;
    same(output.trim() == fs::read_link("/proc/self/ns/time")?.to_string_lossy(), false)
}
