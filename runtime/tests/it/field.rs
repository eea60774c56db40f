//! Fields of config.json, each seen to have its effect from inside.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use estiba_runtime::{Error, Runtime};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::sandbox::{Outcome, Sandbox, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("field_the_scheduler_is_as_asked", scheduler),
        privileged("field_the_io_priority_is_as_asked", io_priority),
        privileged("field_added_processes_run_where_they_are_asked_to", affinity),
        privileged("field_memory_comes_from_the_nodes_that_are_asked_for", memory_policy),
        privileged("field_the_personality_is_as_asked", personality),
        privileged("field_owners_of_files_are_mapped", idmap),
        privileged("field_owners_below_are_mapped", ridmap),
        privileged("field_a_tmpfs_starts_with_what_it_hides", copy_up),
        privileged("field_a_tmpfs_has_the_mode_of_what_it_hides", tmpfs_mode),
        privileged("field_attributes_hold_below_a_mount", recursive),
        privileged("field_a_mount_namespace_is_joined", joined_mounts),
        privileged("field_without_a_process_there_is_no_start", programless),
        privileged("field_a_path_is_masked_once", masked_once),
        privileged("field_ambient_needs_inheritable", ambient),
        privileged("field_what_was_mounted_before_can_be_bound", own_source),
        privileged("field_without_root_somebody_maps_himself", rootless),
        with(
            "/usr/bin/newuidmap",
            "needs uidmap",
            "field_without_root_others_are_mapped_by_newuidmap",
            subordinate_ids,
        ),
        with_ip("field_devices_of_the_network_move", net_devices),
        privileged("field_calls_are_asked_about", notification),
        privileged("field_added_processes_ask_too", added_notification),
        privileged("field_clocks_have_their_offsets", clocks),
    ]
}

/// One that makes devices with `ip`.
fn with_ip(name: &str, run: fn() -> Outcome) -> Trial {
    with("/usr/sbin/ip", "needs iproute2", name, run)
}

fn with(program: &str, reason: &str, name: &str, run: fn() -> Outcome) -> Trial {
    let trial = privileged(name, run);
    if Path::new(program).exists() { trial } else { trial.with_ignored_flag(true).with_kind(reason) }
}

/// Adds a user namespace.
fn map_users(sandbox: &mut Sandbox) {
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    sandbox.spec["linux"]["uidMappings"] = mapping.clone();
    sandbox.spec["linux"]["gidMappings"] = mapping;
    for name in ["dev", "proc", "sys"] {
        fs::create_dir_all(sandbox.rootfs().join(name)).expect("a folder");
    }
}

/// The field that a creation is refused for.
fn refused(sandbox: &Sandbox) -> Result<String, Failed> {
    match sandbox.create() {
        Err(Error::InvalidSpec { field, .. } | Error::UnsupportedField { field, .. }) => Ok(field),
        other => Err(format!("{other:?}").into()),
    }
}

/// Also for what is added, which has it from the configuration or says otherwise.
fn scheduler() -> Outcome {
    const LOOK: &str = "busybox awk '{print $19, $41}' /proc/self/stat";
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
    same(sandbox.script(LOOK).output()?.as_str(), "7 3\n")?;
    let created = sandbox.running()?;
    let mut process = Sandbox::process(LOOK);
    let inherited = sandbox.exec_output(&process)?;
    process["scheduler"] = json!({"policy": "SCHED_IDLE"});
    let own = sandbox.exec_output(&process)?;
    sandbox.stop(&created)?;
    same((inherited.as_str(), own.as_str()), ("7 3\n", "0 5\n"))?;
    // The host's privileges are needed, and the host has them.
    map_users(&mut sandbox);
    sandbox.spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": -5});
    same(sandbox.script(LOOK).output()?.as_str(), "-5 0\n")?;
    sandbox.spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "priority": 5});
    same(refused(&sandbox)?.as_str(), "process.scheduler.priority")
}

fn io_priority() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.script("busybox ionice");
    sandbox.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    same(sandbox.output()?.as_str(), "best-effort: prio 6\n")?;
    sandbox.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    same(sandbox.output()?.starts_with("idle"), true)?;
    sandbox.spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
    same(refused(&sandbox)?.as_str(), "process.ioPriority.priority")
}

fn affinity() -> Outcome {
    const LOOK: &str = "grep Cpus_allowed_list /proc/self/status | busybox cut -f 2";
    let mut sandbox = Sandbox::new();
    sandbox.spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    sandbox.spec["process"]["args"] = json!(["sh", "-c", format!("{LOOK}; exec sleep 1000")]);
    let first = sandbox.script(LOOK).output()?;
    let created = sandbox.running()?;
    let mut process = Sandbox::process(LOOK);
    let one = sandbox.exec_output(&process)?;
    process["execCPUAffinity"] = json!({"initial": "0"});
    let kernels = sandbox.exec_output(&process);
    process["execCPUAffinity"] = json!({"final": "9000"});
    let wrong = sandbox.exec(&process);
    sandbox.stop(&created)?;
    // It is not the first process's.
    same((first == "0\n", one.as_str()), (std::thread::available_parallelism()?.get() == 1, "0\n"))?;
    same(kernels.is_ok(), true)?;
    match wrong {
        Err(Error::InvalidSpec { field, .. }) => same(field.as_str(), "process.execCPUAffinity.final"),
        other => Err(format!("{other:?}").into()),
    }
}

fn memory_policy() -> Outcome {
    let look = |sandbox: &mut Sandbox, policy: Value| -> Result<bool, Failed> {
        sandbox.spec["linux"]["memoryPolicy"] = policy;
        Ok(sandbox.script("cat /proc/self/numa_maps").output()?.contains(" bind=static:0 "))
    };
    let mut sandbox = Sandbox::new();
    same(look(&mut sandbox, json!({"mode": "MPOL_DEFAULT"}))?, false)?;
    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    same(look(&mut sandbox, policy)?, true)?;
    let created = sandbox.running()?;
    let added = sandbox.exec_output(&Sandbox::process("cat /proc/self/numa_maps"));
    sandbox.stop(&created)?;
    same(added?.contains(" bind=static:0 "), true)?;
    sandbox.spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND"});
    same(refused(&sandbox)?.as_str(), "linux.memoryPolicy.nodes")
}

fn personality() -> Outcome {
    let mut sandbox = Sandbox::new();
    // An empty path is no namespace to join.
    sandbox.spec["linux"]["namespaces"][0]["path"] = json!("");
    sandbox.spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let first = sandbox.script("busybox uname -m; cat /proc/self/personality").output()?;
    let created = sandbox.running()?;
    let added = sandbox.exec_output(&Sandbox::process("busybox uname -m"));
    sandbox.stop(&created)?;
    let machine = if cfg!(target_arch = "x86_64") { "i686\n" } else { "armv8l\n" };
    same((first.starts_with(machine), added?.as_str()), (true, machine))?;
    sandbox.spec["linux"]["personality"] = json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
    same(refused(&sandbox)?.as_str(), "linux.personality.flags")
}

fn clocks() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}});
    same(refused(&sandbox)?.as_str(), "linux.timeOffsets")?;
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "time"}));
    sandbox.spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 500_000_000, "nanosecs": 3}, "monotonic": {"secs": 7, "nanosecs": 5}});
    for mapped in [false, true] {
        if mapped {
            map_users(&mut sandbox);
        }
        let look = "busybox awk '{print ($1 > 500000000)}' /proc/uptime; busybox awk '{print $1, $2, $3}' /proc/self/timens_offsets";
        same(sandbox.script(look).output()?.as_str(), "1\nmonotonic 7 5\nboottime 500000000 3\n")?;
    }
    let created = sandbox.running()?;
    let added = sandbox.exec_output(&Sandbox::process("busybox awk '{print ($1 > 500000000)}' /proc/uptime"));
    sandbox.stop(&created)?;
    same(added?.as_str(), "1\n")?;
    sandbox.spec["linux"]["timeOffsets"] = json!({"realtime": {"secs": 7}});
    same(refused(&sandbox)?.as_str(), "linux.timeOffsets.realtime")
}

/// A folder of the host's with a file of user 1000 and group 1001.
fn owned(sandbox: &Sandbox) -> std::io::Result<std::path::PathBuf> {
    let folder = sandbox.outside().join("owned");
    fs::create_dir(&folder)?;
    fs::write(folder.join("file"), "x")?;
    std::os::unix::fs::chown(folder.join("file"), Some(1000), Some(1001))?;
    Ok(folder)
}

fn idmap() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = owned(&sandbox)?;
    let mounts = sandbox.spec["mounts"].clone();
    let add = |sandbox: &mut Sandbox, options: Value, mappings: Option<Value>| {
        let mut mount = json!({"destination": "/owned", "type": "bind", "source": folder, "options": options});
        if let Some(mappings) = mappings {
            mount["uidMappings"] = mappings.clone();
            mount["gidMappings"] = mappings;
        }
        sandbox.spec["mounts"] = mounts.clone();
        sandbox.spec["mounts"].as_array_mut().expect("a list").push(mount);
    };
    let mappings = json!([{"containerID": 1000, "hostID": 2000, "size": 10}]);
    sandbox.script("stat -c '%u %g' /owned/file; touch /owned/new && stat -c %u /owned/new");
    // Without a mapping of root's, root makes no files there.
    for options in [json!(["rbind", "idmap"]), json!(["rbind"])] {
        add(&mut sandbox, options, Some(mappings.clone()));
        let ended = sandbox.run()?;
        same(ended.stdout.as_str(), "2000 2001\n")?;
    }
    add(&mut sandbox, json!(["rbind", "idmap"]), None);
    same(refused(&sandbox)?.as_str(), "mounts[7]")?;
    // The container's own ids: what is 1000 on the disk is 1000 inside.
    map_users(&mut sandbox);
    same(sandbox.output()?.as_str(), "1000 1001\n0\n")?;
    same(std::os::unix::fs::MetadataExt::uid(&fs::metadata(folder.join("new"))?), 0)?;
    fs::remove_file(folder.join("new"))?;
    add(&mut sandbox, json!(["rbind"]), None);
    same(sandbox.run()?.stdout.as_str(), "65534 65534\n")?;
    let mut lopsided = sandbox.spec["mounts"][7].clone();
    lopsided["uidMappings"] = mappings;
    sandbox.spec["mounts"][7] = lopsided;
    same(refused(&sandbox)?.as_str(), "mounts[7]")?;
    sandbox.spec["mounts"][7] = json!({"destination": "/t", "type": "tmpfs", "options": ["idmap"]});
    same(refused(&sandbox)?.as_str(), "mounts[7]")
}

/// Something is mounted below what is bound.
fn ridmap() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = owned(&sandbox)?;
    let below = folder.join("below");
    fs::create_dir(&below)?;
    let mounts = serde_json::from_value::<Vec<_>>(
        json!([{"destination": "/", "type": "bind", "source": folder, "options": ["bind"]}]),
    )?;
    estiba_runtime::mount::attach(&mounts, &below)?;
    let mappings = json!([{"containerID": 1000, "hostID": 2000, "size": 10}]);
    sandbox.spec["mounts"].as_array_mut().expect("a list").push(json!({
        "destination": "/owned", "type": "bind", "source": folder, "options": ["rbind", "ridmap"],
        "uidMappings": mappings, "gidMappings": mappings
    }));
    sandbox.script("stat -c %u /owned/file /owned/below/file");
    let all = sandbox.output();
    sandbox.spec["mounts"][7]["options"] = json!(["rbind", "idmap"]);
    let one = sandbox.output();
    estiba_runtime::mount::detach(&below)?;
    same((all?.as_str(), one?.as_str()), ("2000\n2000\n", "2000\n1000\n"))
}

fn copy_up() -> Outcome {
    let mut sandbox = Sandbox::new();
    let root = sandbox.rootfs();
    fs::create_dir_all(root.join("var/deep/er"))?;
    fs::write(root.join("var/deep/er/file"), vec![b'x'; 100_000])?;
    fs::write(root.join("var/tool"), "tool")?;
    std::os::unix::fs::chown(root.join("var/tool"), Some(7), Some(8))?;
    std::os::unix::fs::symlink("deep/er", root.join("var/link"))?;
    for at in 0..200 {
        fs::write(root.join(format!("var/{at:0200}")), "")?;
    }
    fs::set_permissions(root.join("var/tool"), fs::Permissions::from_mode(0o4750))?;
    sandbox.spec["mounts"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=8m"]}));
    let look = "stat -c '%a %u %g' /var/tool; readlink /var/link; busybox wc -c < /var/link/file; ls /var | busybox wc -l; \
        grep -c ' /var .*tmpfs' /proc/self/mountinfo; touch /var/new && echo written";
    same(sandbox.script(look).output()?.as_str(), "4750 7 8\ndeep/er\n100000\n203\n1\nwritten\n")?;
    same(root.join("var/new").exists(), false)?;
    sandbox.spec["mounts"][7]["options"] = json!(["tmpcopyup", "ro"]);
    let ended = sandbox.run()?;
    same(ended.stdout.as_str(), "4750 7 8\ndeep/er\n100000\n203\n1\n")?;
    sandbox.spec["mounts"][7]["options"] = json!(["tmpcopyup", "size=32k"]);
    match sandbox.run() {
        Err(Error::Setup { source, .. }) => same(source.raw_os_error(), Some(libc::ENOSPC))?,
        other => return Err(format!("{other:?}").into()),
    }
    sandbox.spec["mounts"][7]["type"] = json!("proc");
    same(refused(&sandbox)?.as_str(), "mounts[7]")
}

fn tmpfs_mode() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = sandbox.rootfs().join("var");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o2751))?;
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(json!({"destination": "/var", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}));
    list.push(json!({"destination": "/new", "type": "tmpfs", "source": "tmpfs"}));
    same(sandbox.script("stat -c %a /var /new").output()?.as_str(), "2751\n1777\n")
}

/// Something is mounted below what is bound.
fn recursive() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = owned(&sandbox)?;
    let below = folder.join("below");
    fs::create_dir(&below)?;
    fs::copy("/bin/busybox", folder.join("busybox"))?;
    let mounts = serde_json::from_value::<Vec<_>>(
        json!([{"destination": "/", "type": "bind", "source": folder, "options": ["bind"]}]),
    )?;
    estiba_runtime::mount::attach(&mounts, &below)?;
    sandbox.script("grep ' /owned' /proc/self/mountinfo | busybox awk '{print $6}'");
    let mut seen = Vec::new();
    for options in [
        json!(["rbind", "ro", "nosuid"]),
        json!(["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnosymfollow", "rnoatime", "rnodiratime"]),
        json!(["rbind", "rro", "rnoexec", "rrw"]),
        json!(["rbind", "rstrictatime"]),
    ] {
        sandbox.spec["mounts"].as_array_mut().expect("a list").truncate(7);
        sandbox.spec["mounts"].as_array_mut().expect("a list").push(json!({
            "destination": "/owned", "type": "bind", "source": folder, "options": options
        }));
        seen.push(sandbox.output());
    }
    estiba_runtime::mount::detach(&below)?;
    let seen = seen.into_iter().collect::<Result<Vec<_>, _>>()?;
    same(
        seen,
        [
            "ro,nosuid,relatime\nrw,relatime\n",
            "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow\nro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow\n",
            "rw,noexec,relatime\nrw,noexec,relatime\n",
            "rw\nrw\n",
        ],
    )
}

/// In a network namespace of a thread's own, which stands for the host's.
fn net_devices() -> Outcome {
    let thread = thread::spawn(|| -> Outcome {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        let ip = |arguments: &str| -> Outcome {
            let status = Command::new("ip").args(arguments.split(' ')).status()?;
            if status.success() { Ok(()) } else { Err(format!("ip {arguments}: {status}").into()) }
        };
        let mut sandbox = Sandbox::new();
        sandbox.script("busybox ip -o addr show; busybox ip -o link show");
        for mapped in [false, true] {
            if mapped {
                map_users(&mut sandbox);
            }
            ip("link add one type veth peer name two")?;
            ip("addr add 10.9.8.7/24 dev one")?;
            ip("addr add fd00::7/64 dev one nodad")?;
            ip("link set one up")?;
            sandbox.spec["linux"]["netDevices"] = json!({"one": {"name": "moved"}, "two": {}});
            // Settings of the devices are for the devices.
            sandbox.spec["linux"]["sysctl"] = json!({"net.ipv4.conf.moved.forwarding": "1"});
            let output = sandbox.output()?;
            for wanted in [
                " moved    inet 10.9.8.7/24 ",
                " moved    inet6 fd00::7/64 ",
                ": moved@two: <BROADCAST,MULTICAST,UP",
                ": two@moved: ",
            ] {
                same((wanted, output.contains(wanted)), (wanted, true))
                    .map_err(|_| format!("{wanted:?} is not in\n{output}"))?;
            }
            // They have gone with the namespace.
            for name in ["one", "two", "moved"] {
                same(Path::new("/proc/thread-self/net/dev_snmp6").join(name).exists(), false)?;
            }
        }
        sandbox.spec["linux"]["sysctl"] = json!({});
        sandbox.spec["linux"]["netDevices"] = json!({"none": {}});
        match sandbox.create() {
            Err(Error::Setup { step, source, .. }) => {
                same((step.contains("netDevices.none"), source.raw_os_error()), (true, Some(libc::ENODEV)))?;
            }
            other => return Err(format!("{other:?}").into()),
        }
        same(sandbox.native.list()?.len(), 0)?;
        for devices in
            [json!({"a/b": {}}), json!({"one": {"name": "eth%d"}}), json!({"one": {"name": "sixteen_letters_"}})]
        {
            sandbox.spec["linux"]["netDevices"] = devices;
            same(refused(&sandbox)?.starts_with("linux.netDevices."), true)?;
        }
        sandbox.spec["linux"]["netDevices"] = json!({"one": {}});
        sandbox.spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("a list")
            .retain(|namespace| namespace["type"] != "network");
        same(refused(&sandbox)?.as_str(), "linux.netDevices")
    });
    thread.join().map_err(|_| "the thread panicked")?
}

/// Whoever is asked about calls: answers every one with the error 71, `EPROTO`.
struct Agent {
    thread: thread::JoinHandle<Result<Vec<Value>, Failed>>,
}

impl Agent {
    /// Takes as many listeners as there are, and answers one call of each.
    fn new(path: &Path, listeners: usize) -> std::io::Result<Self> {
        let socket = UnixListener::bind(path)?;
        let thread = thread::spawn(move || {
            let mut states = Vec::new();
            for _ in 0..listeners {
                let (stream, _) = socket.accept()?;
                let mut text = vec![0; 1 << 16];
                let (length, descriptor) = receive(&stream, &mut text)?;
                let mut text = text[..length].to_vec();
                (&stream).read_to_end(&mut text)?;
                states.push(serde_json::from_slice(&text)?);
                answer(&descriptor)?;
            }
            Ok(states)
        });
        Ok(Self { thread })
    }

    fn states(self) -> Result<Vec<Value>, Failed> {
        self.thread.join().map_err(|_| "the agent panicked")?
    }
}

fn receive(stream: &std::os::unix::net::UnixStream, text: &mut [u8]) -> Result<(usize, OwnedFd), Failed> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [std::io::IoSliceMut::new(text)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            let fd = *fds.first().ok_or("no descriptor")?;
            // SAFETY: it was received just now, and belongs to nobody else.
            return Ok((message.bytes, unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Err("no descriptor".into())
}

/// `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND`.
#[allow(clippy::cast_lossless, reason = "the number of an ioctl is signed with musl, and longer with glibc")]
fn answer(listener: &OwnedFd) -> Outcome {
    // struct seccomp_notif: id, pid, flags, and the call.
    let mut question = [0u64; 10];
    // SAFETY: the structure has 80 bytes.
    let returned = unsafe { libc::ioctl(listener.as_raw_fd(), 0xc050_2100_u32 as libc::Ioctl, question.as_mut_ptr()) };
    same(returned, 0)?;
    // struct seccomp_notif_resp: id, value, error, flags.
    let mut answer = [question[0], 0, u64::from((-71_i32).cast_unsigned())];
    // SAFETY: the structure has 24 bytes.
    let returned = unsafe { libc::ioctl(listener.as_raw_fd(), 0xc018_2101_u32 as libc::Ioctl, answer.as_mut_ptr()) };
    same(returned, 0)
}

fn asking(sandbox: &mut Sandbox) -> std::path::PathBuf {
    let path = sandbox.outside().join("agent");
    sandbox.spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "of mine",
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]
    });
    path
}

/// With and without the privilege to load a filter.
fn notification() -> Outcome {
    for confined in [true, false] {
        let mut sandbox = Sandbox::new();
        let path = asking(&mut sandbox);
        sandbox.spec["process"]["noNewPrivileges"] = json!(confined);
        sandbox.spec["annotations"] = json!({"a": "b"});
        let agent = Agent::new(&path, 1)?;
        let (created, stdout, _err) = sandbox.script("busybox mkdir /dev/shm/x 2>&1; echo done").create()?;
        sandbox.native.start(&sandbox.id)?;
        let output = std::io::read_to_string(stdout)?;
        estiba_runtime::wait(std::os::fd::AsFd::as_fd(&created.pidfd), created.pid)?;
        sandbox.native.delete(&sandbox.id, estiba_runtime::DeleteMode::Stopped)?;
        same((output.contains("Protocol error"), output.ends_with("done\n")), (true, true)).map_err(|_| output)?;
        let states = agent.states()?;
        let state = &states[0];
        same((&state["pid"], &state["fds"]), (&json!(created.pid), &json!(["seccompFd"])))?;
        same((&state["metadata"], &state["ociVersion"]), (&json!("of mine"), &json!("1.2.0")))?;
        same(&state["state"]["id"], &json!(sandbox.id.as_str()))?;
        same((&state["state"]["status"], &state["state"]["annotations"]), (&json!("creating"), &json!({"a": "b"})))?;
    }
    // Nobody is there.
    let mut sandbox = Sandbox::new();
    let path = asking(&mut sandbox);
    match sandbox.create() {
        Err(Error::Io { path: found, .. }) => same(found, path)?,
        other => return Err(format!("{other:?}").into()),
    }
    same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))
}

fn added_notification() -> Outcome {
    let mut sandbox = Sandbox::new();
    let path = asking(&mut sandbox);
    sandbox.spec["process"]["args"] = json!(["sh", "-c", "busybox mkdir /dev/shm/x; exec sleep 1000"]);
    let agent = Agent::new(&path, 2)?;
    let (created, _out, _err) = sandbox.create()?;
    sandbox.native.start(&sandbox.id)?;
    let added = sandbox.exec(&Sandbox::process("busybox mkdir /dev/shm/y 2>&1"));
    sandbox.stop(&created)?;
    same(added?.stdout.contains("Protocol error"), true)?;
    let states = agent.states()?;
    same((&states[0]["pid"], &states[1]["state"]["status"]), (&json!(created.pid), &json!("running")))?;
    same(states[0]["pid"] == states[1]["pid"], false)
}

/// Whoever is in it sees the container's mounts.
fn joined_mounts() -> Outcome {
    let mut holder = Command::new("unshare").args(["--mount", "sleep", "1000"]).spawn()?;
    let path = format!("/proc/{}/ns/mnt", holder.id());
    let host = fs::read_link("/proc/self/ns/mnt")?;
    let before = fs::read_to_string("/proc/self/mountinfo")?;
    for _ in 0..1000 {
        if fs::read_link(&path)? != host {
            break;
        }
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut sandbox = Sandbox::new();
    let namespaces = sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list");
    namespaces.retain(|namespace| namespace["type"] != "mount");
    namespaces.push(json!({"type": "mount", "path": path}));
    sandbox.spec["process"]["oomScoreAdj"] = json!(77);
    sandbox.script("readlink /proc/self/ns/mnt; cat /proc/self/oom_score_adj; ls /; test -c /dev/null && echo filled");
    let output = sandbox.output();
    let joined = fs::read_link(&path)?;
    holder.kill()?;
    holder.wait()?;
    same(output?, format!("{}\n77\nbin\ndev\nproc\nsys\nfilled\n", joined.display()))?;
    same(fs::read_to_string("/proc/self/mountinfo")? == before, true)
}

fn programless() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec.as_object_mut().expect("an object").remove("process");
    let (created, _out, _err) = sandbox.create()?;
    same(sandbox.native.state(&sandbox.id)?.status, estiba_runtime::Status::Created)?;
    match sandbox.native.start(&sandbox.id) {
        Err(Error::InvalidSpec { field, .. }) => same(field.as_str(), "process")?,
        other => return Err(format!("{other:?}").into()),
    }
    // It still can have guests.
    let mut process = Sandbox::process("hostname; grep CapBnd /proc/1/status");
    process["noNewPrivileges"] = json!(true);
    same(sandbox.exec_output(&process)?.as_str(), "inside\nCapBnd:\t0000000000000000\n")?;
    sandbox.stop(&created)?;
    same((sandbox.cgroups().len(), sandbox.native.list()?.len()), (0, 0))
}

fn masked_once() -> Outcome {
    let mut sandbox = Sandbox::new();
    sandbox.spec["linux"]["maskedPaths"] = json!(["/sys/firmware", "/proc/keys", "/sys/firmware/", "/proc/keys"]);
    sandbox.spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc//sys"]);
    sandbox.script("for path in /sys/firmware /proc/keys /proc/sys; do grep -c \" $path \" /proc/self/mountinfo; done");
    same(sandbox.output()?.as_str(), "1\n1\n1\n")
}

/// The specification wants a configuration to be run whose capabilities cannot be given.
fn ambient() -> Outcome {
    let mut sandbox = Sandbox::new();
    let some = json!(["CAP_CHOWN", "CAP_KILL"]);
    sandbox.spec["process"]["capabilities"] =
        json!({"bounding": some, "permitted": some, "effective": some, "inheritable": ["CAP_KILL"], "ambient": some});
    same(sandbox.script("grep CapAmb /proc/self/status").output()?.as_str(), "CapAmb:\t0000000000000020\n")
}

fn own_source() -> Outcome {
    let mut sandbox = Sandbox::new();
    let folder = owned(&sandbox)?;
    let inside = sandbox.rootfs().join("data");
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(json!({"destination": "/data", "type": "bind", "source": folder, "options": ["bind"]}));
    list.push(json!({"destination": "/again", "type": "bind", "source": inside.join("file"), "options": ["bind", "ro", "nosuid"]}));
    sandbox.script("cat /again; echo; grep ' /again ' /proc/self/mountinfo | busybox awk '{print $6}'; echo y > /again || echo refused");
    let ended = sandbox.run()?;
    same(ended.stdout.as_str(), "x\nro,nosuid,relatime\nrefused\n")?;
    // What is a link inside is one of the container's.
    std::os::unix::fs::symlink("/etc/hostname", folder.join("link"))?;
    sandbox.spec["mounts"][8]["source"] = json!(inside.join("link"));
    match sandbox.create() {
        Err(Error::Setup { source, .. }) => same(source.raw_os_error(), Some(libc::ENOENT)),
        other => Err(format!("{other:?}").into()),
    }
}

/// An unprivileged user with a range in /etc/subuid, of a mount namespace of its own: `newuidmap` and `newgidmap` map it.
fn subordinate_ids() -> Outcome {
    let mut sandbox = Sandbox::new();
    let own = Command::new("chown").arg("-R").arg("1000:1000").arg(sandbox.outside()).status()?;
    same(own.success(), true)?;
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    for kind in ["uidMappings", "gidMappings"] {
        sandbox.spec["linux"][kind] = json!([
            {"containerID": 0, "hostID": 1000, "size": 1},
            {"containerID": 1, "hostID": 200_000, "size": 500},
        ]);
    }
    let mounts = sandbox.spec["mounts"].as_array_mut().expect("a list");
    mounts.pop();
    sandbox.script("busybox awk '{print $1, $2, $3}' /proc/self/uid_map; touch /new && busybox chown 5:6 /new && stat -c %u:%g /new");
    let etc = tempfile::tempdir()?;
    let thread = thread::spawn(move || -> Outcome {
        use nix::mount::{MsFlags, mount};
        // SAFETY: about this thread alone, which ends.
        same(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) }, 0)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let (upper, work) = (etc.path().join("upper"), etc.path().join("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
        mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        let name = "estiba-test";
        for (file, line) in [
            ("passwd", format!("{name}:x:1000:1000::/:/bin/sh\n")),
            ("group", format!("{name}:x:1000:\n")),
            ("subuid", format!("{name}:200000:500\n")),
            ("subgid", format!("{name}:200000:500\n")),
        ] {
            let file = Path::new("/etc").join(file);
            let text = fs::read_to_string(&file).unwrap_or_default();
            fs::write(file, line + &text)?;
        }
        for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
            // SAFETY: plain numbers, about this thread alone.
            same(unsafe { libc::syscall(call, 1000, 1000, 1000) }, 0)?;
        }
        // SAFETY: plain numbers. It was taken away with the user.
        same(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0)?;
        same(sandbox.output()?.as_str(), "0 1000 1\n1 200000 500\n5:6\n")?;
        let new = fs::metadata(sandbox.rootfs().join("new"))?;
        same((new.uid(), new.gid()), (200_004, 200_005))?;
        // One more than was given.
        sandbox.spec["linux"]["uidMappings"][1]["size"] = json!(501);
        match sandbox.create() {
            Err(Error::InvalidSpec { field, reason }) => {
                same((field.as_str(), reason.contains("newuidmap")), ("linux.uidMappings", true))?;
            }
            other => return Err(format!("{other:?}").into()),
        }
        same(sandbox.native.list()?.len(), 0)
    });
    thread.join().map_err(|_| "the thread panicked")?
}

/// A thread that becomes user 1000 for good: the kernel's calls, unlike those of the C library, are about one thread.
fn rootless() -> Outcome {
    let mut sandbox = Sandbox::new();
    let own = Command::new("chown").arg("-R").arg("1000:1000").arg(sandbox.outside()).status()?;
    same(own.success(), true)?;
    sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    for kind in ["uidMappings", "gidMappings"] {
        sandbox.spec["linux"][kind] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    }
    let mounts = sandbox.spec["mounts"].as_array_mut().expect("a list");
    // The group of terminals is not mapped, and there is no cgroup.
    mounts[2]["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
    mounts.pop();
    mounts.push(json!({"destination": "/e", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}));
    sandbox.spec["process"]["oomScoreAdj"] = json!(500);
    sandbox.script("id -u; id -g; busybox awk '{print $1, $2, $3}' /proc/self/uid_map; cat /proc/self/oom_score_adj; ulimit -n; \
        test -c /dev/null && echo x > /dev/null && echo null; touch /e/x 2>/dev/null || echo ro; hostname; touch /new && stat -c %u /new");
    let thread = thread::spawn(move || -> Outcome {
        for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
            // SAFETY: plain numbers, about this thread alone.
            same(unsafe { libc::syscall(call, 1000, 1000, 1000) }, 0)?;
        }
        // SAFETY: plain numbers. It was taken away with the user.
        same(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0)?;
        same(sandbox.output()?.as_str(), "0\n0\n0 1000 1\n500\n256\nnull\nro\ninside\n0\n")?;
        let created = sandbox.running()?;
        let added = sandbox.exec_output(&Sandbox::process("id -u; hostname; echo $$ | grep -vx 1 | grep -c ."));
        sandbox.stop(&created)?;
        same(added?.as_str(), "0\ninside\n1\n")?;
        sandbox.spec["linux"]["resources"] = json!({"pids": {"limit": 10}});
        same(matches!(sandbox.create(), Err(Error::Io { .. })), true)?;
        sandbox.spec["linux"].as_object_mut().expect("an object").remove("resources");
        sandbox.spec["process"]["user"]["additionalGids"] = json!([5]);
        same(refused(&sandbox)?.as_str(), "process.user.additionalGids")?;
        sandbox.spec["linux"]["namespaces"].as_array_mut().expect("a list").pop();
        for kind in ["uidMappings", "gidMappings"] {
            sandbox.spec["linux"].as_object_mut().expect("an object").remove(kind);
        }
        same(refused(&sandbox)?.as_str(), "linux.namespaces")?;
        same(sandbox.native.list()?.len(), 0)
    });
    thread.join().map_err(|_| "the thread panicked")?
}
