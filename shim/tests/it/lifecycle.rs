//! From create to delete, as it should be.

use std::fs;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant, SystemTime};

use estiba_shim::proto::{Code, Mount, TaskStatus};
use estiba_shim::{Error, Program};
use libtest_mimic::Failed;

use crate::bundle::{Bundle, SOON, blocking, children, drain, eventually, process_state};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("output_and_status_arrive", output_and_status_arrive),
    ("a_killed_container_has_its_signal", a_killed_container_has_its_signal),
    ("a_created_container_can_be_deleted", a_created_container_can_be_deleted),
    ("a_missing_program_is_127", a_missing_program_is_127),
    ("a_file_that_is_no_program_is_126", a_file_that_is_no_program_is_126),
    ("wait_is_answered_to_all", wait_is_answered_to_all),
    ("state_follows_the_life", state_follows_the_life),
    ("kill_all_reaches_every_process", kill_all_reaches_every_process),
    ("pids_are_those_of_the_container", pids_are_those_of_the_container),
    ("a_root_is_mounted_from_the_request", a_root_is_mounted_from_the_request),
    ("nothing_outlives_init_without_own_pids", nothing_outlives_init_without_own_pids),
    ("orphans_are_reaped", orphans_are_reaped),
    ("memory_that_ran_out_is_recorded", memory_that_ran_out_is_recorded),
    ("the_shim_is_protected_and_the_container_is_not", the_shim_is_protected_and_the_container_is_not),
    ("the_shim_is_small", the_shim_is_small),
    ("the_shim_is_nobodys_child", the_shim_is_nobodys_child),
    ("twenty_at_once_keep_apart", twenty_at_once_keep_apart),
    ("one_shim_a_folder", one_shim_a_folder),
    ("a_shim_that_does_not_start_is_explained", a_shim_that_does_not_start_is_explained),
];

fn output_and_status_arrive() -> Outcome {
    let bundle = Bundle::script("echo to stdout; echo to stderr >&2; exit 7").with_exit_command();
    let mut client = bundle.spawn();
    let (stdout_path, stdout) = bundle.fifo("stdout");
    let (stderr_path, stderr) = bundle.fifo("stderr");
    let before = SystemTime::now();
    let pid = client.create(bundle.request("", &stdout_path, &stderr_path))?;
    assert!(pid > 1);
    let (stdout, stderr) = (drain(blocking(stdout)), drain(blocking(stderr)));
    assert_eq!(client.start()?, pid);
    let end = client.wait()?;
    assert_eq!(end.exit_status, 7);
    let at = end.exited_at.expect("a time");
    let since = before.duration_since(SystemTime::UNIX_EPOCH)?.as_secs() as i64;
    assert!((since..since + 60).contains(&at.seconds), "{at:?}");

    // All of it was on disk and in the pipes before the answer.
    let record = bundle.exit_record().expect("a record");
    assert_eq!((record.pid, record.status, record.signal, record.oom_killed), (pid as i32, 7, None, false));
    assert!(record.start_time > 0);
    assert_eq!(record.boot_id, fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim());
    assert_eq!(stdout.join().expect("stdout"), b"to stdout\n");
    assert_eq!(stderr.join().expect("stderr"), b"to stderr\n");

    let deleted = client.delete()?;
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
    assert_eq!(client.wait()?.exit_status, 7, "also after it is deleted");
    assert_eq!(client.state().expect_err("gone").code(), Some(Code::NotFound));
    client.shutdown()?;
    bundle.assert_gone();
    assert_eq!(bundle.mark(), "", "after a shutdown there is no exit command");
    assert_eq!(bundle.log(), "");
    Ok(())
}

fn a_killed_container_has_its_signal() -> Outcome {
    for (signal, all) in [(9, false), (15, false), (9, true)] {
        let bundle = Bundle::new(&["sleep", "1000"]);
        let mut client = bundle.spawn();
        let _stdout = bundle.create(&mut client);
        client.start()?;
        if signal == 15 {
            // The first process of a namespace ignores what it has no handler for.
            client.kill(15)?;
            assert_eq!(client.state()?.status, TaskStatus::Running as i32);
            client.kill(9)?;
        } else if all {
            client.kill_all(9)?;
        } else {
            client.kill(9)?;
        }
        assert_eq!(client.wait()?.exit_status, 137);
        let record = bundle.exit_record().expect("a record");
        assert_eq!((record.status, record.signal), (137, Some(9)));
        let error = client.kill(9).expect_err("it is gone");
        assert_eq!(error.code(), Some(Code::NotFound), "{error}");
        bundle.finish(&mut client);
    }
    Ok(())
}

fn a_created_container_can_be_deleted() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    let stdout = bundle.create(&mut client);
    let pid = client.state()?.pid;
    bundle.finish(&mut client);
    assert_eq!(process_state(pid), None);
    assert_eq!(drain(stdout).join().expect("stdout"), b"");
    assert_eq!(bundle.exit_record(), None, "it never ran");
    Ok(())
}

/// Starts what cannot be started, and returns the error of `Create` or `Start`.
fn failure(bundle: &Bundle) -> Result<Error, Failed> {
    let mut client = bundle.spawn();
    let error = if let Err(error) = client.create(bundle.request("", "", "")) {
        error
    } else {
        let error = client.start().expect_err("it cannot start");
        client.wait()?;
        assert_eq!(bundle.exit_record(), None, "it never ran");
        client.delete()?;
        error
    };
    client.shutdown()?;
    bundle.assert_gone();
    Ok(error)
}

fn a_missing_program_is_127() -> Outcome {
    for program in ["nope", "/bin/nope", "/nope/nope", "/etc/orphan"] {
        let error = failure(&Bundle::new(&[program]))?;
        assert_eq!(error.exit_code(), 127, "{error}");
        assert!(error.to_string().contains(program), "{error}");
    }
    Ok(())
}

fn a_file_that_is_no_program_is_126() -> Outcome {
    for program in ["/etc/plain", "/etc", "/etc/garbage"] {
        let error = failure(&Bundle::new(&[program]))?;
        assert_eq!(error.exit_code(), 126, "{error}");
        assert!(error.to_string().contains(program), "{error}");
    }
    Ok(())
}

fn wait_is_answered_to_all() -> Outcome {
    let bundle = Bundle::script("sleep 0.3; exit 3");
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let mut other = bundle.connect();
            std::thread::spawn(move || other.wait().map(|end| end.exit_status))
        })
        .collect();
    // One that leaves while it waits does no harm.
    let leaving = bundle.connect();
    leaving.set_timeout(Some(Duration::from_millis(50)))?;
    let mut leaving = leaving;
    assert!(matches!(leaving.wait(), Err(Error::Disconnected { .. })));
    drop(leaving);
    client.start()?;
    // The shim answers others meanwhile.
    assert_eq!(client.state()?.status, TaskStatus::Running as i32);
    for thread in waiting {
        assert_eq!(thread.join().expect("thread")?, 3);
    }
    bundle.finish(&mut client);
    Ok(())
}

fn state_follows_the_life() -> Outcome {
    let bundle = Bundle::script("read -r line; exit 4");
    let mut client = bundle.spawn();
    let absent = client.state().expect_err("nothing yet");
    assert_eq!(absent.code(), Some(Code::NotFound));
    let (stdin, _reader) = bundle.fifo("stdin");
    let pid = client.create(bundle.request(&stdin, "", ""))?;
    let again = client.create(bundle.request("", "", "")).expect_err("one container a shim");
    assert_eq!(again.code(), Some(Code::AlreadyExists));
    let state = client.state()?;
    assert_eq!((state.id.as_str(), state.pid, state.status()), (bundle.id(), pid, TaskStatus::Created));
    assert_eq!(
        (state.stdin.as_str(), state.bundle.as_str()),
        (stdin.as_str(), bundle.folder().to_str().expect("text"))
    );
    client.start()?;
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    assert_eq!(client.start().expect_err("twice").code(), Some(Code::FailedPrecondition));
    assert_eq!(client.delete().expect_err("it runs").code(), Some(Code::FailedPrecondition));
    client.shutdown()?;
    assert_eq!(client.who()?.task_pid, pid, "a shim with a container does not end");
    fs::write(&stdin, "line\n")?;
    assert_eq!(client.wait()?.exit_status, 4);
    let state = client.state()?;
    assert_eq!((state.status(), state.exit_status), (TaskStatus::Stopped, 4));
    assert!(state.exited_at.is_some());
    bundle.finish(&mut client);
    Ok(())
}

fn kill_all_reaches_every_process() -> Outcome {
    let bundle = Bundle::script(
        "trap 'exit 9' USR1; sh -c 'trap \"echo child\" USR1; while :; do sleep 0.05; done' & \
         echo ready; wait; while :; do sleep 0.05; done",
    );
    let mut client = bundle.spawn();
    let stdout = bundle.create(&mut client);
    client.start()?;
    let output = drain(stdout);
    eventually("both run", || client.pids().is_ok_and(|pids| pids.len() >= 2));
    std::thread::sleep(Duration::from_millis(200));
    client.kill_all(10)?;
    client.wait()?;
    let output = String::from_utf8(output.join().expect("stdout"))?;
    assert!(output.contains("ready"), "{output}");
    bundle.finish(&mut client);
    Ok(())
}

fn pids_are_those_of_the_container() -> Outcome {
    let bundle = Bundle::script("sleep 1000 & sleep 1000 & wait");
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    let pid = client.start()?;
    eventually("three processes", || client.pids().is_ok_and(|pids| pids.len() == 3));
    assert!(client.pids()?.contains(&pid));
    client.kill(9)?;
    client.wait()?;
    assert!(client.pids()?.is_empty());
    bundle.finish(&mut client);
    Ok(())
}

fn a_root_is_mounted_from_the_request() -> Outcome {
    let bundle = Bundle::script("echo written > /written; cat /written");
    let elsewhere = bundle.path("elsewhere");
    fs::rename(bundle.folder().join("rootfs"), &elsewhere)?;
    fs::create_dir(bundle.folder().join("rootfs"))?;
    let mut client = bundle.spawn();
    let (path, reader) = bundle.fifo("stdout");
    let mut request = bundle.request("", &path, "");
    request.rootfs = vec![Mount {
        kind: "bind".into(),
        source: elsewhere.to_str().expect("text").to_owned(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    }];
    client.create(request)?;
    let output = drain(blocking(reader));
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 0);
    assert_eq!(output.join().expect("stdout"), b"written\n");
    assert!(elsewhere.join("written").exists());
    bundle.finish(&mut client);
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(bundle.folder().to_str().expect("text")), "nothing is mounted on the host");
    Ok(())
}

fn nothing_outlives_init_without_own_pids() -> Outcome {
    let bundle = Bundle::script("sleep 1000 & echo $!; exit 6").with_host_pids();
    let mut client = bundle.spawn();
    let stdout = bundle.create(&mut client);
    let output = drain(stdout);
    let start = Instant::now();
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 6);
    assert!(start.elapsed() < SOON / 2);
    let pid: u32 = String::from_utf8(output.join().expect("stdout"))?.trim().parse()?;
    eventually("the other process is killed and reaped", || process_state(pid).is_none());
    bundle.finish(&mut client);
    Ok(())
}

fn orphans_are_reaped() -> Outcome {
    // Without a process namespace they come to the shim.
    let bundle =
        Bundle::script("for i in 1 2 3 4 5 6 7 8; do (sleep 0.3 & echo $!); done; exec sleep 1000").with_host_pids();
    let mut client = bundle.spawn();
    let mut stdout = BufReader::new(bundle.create(&mut client));
    let shim = client.who()?.shim_pid;
    let init = client.start()?;
    let mut orphans = Vec::new();
    for _ in 0..8 {
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        orphans.push(line.trim().parse()?);
    }
    assert!(orphans.iter().any(|orphan| children(shim).contains(orphan)), "they are the shim's to reap");
    eventually("they are reaped", || orphans.iter().all(|orphan| process_state(*orphan).is_none()));
    assert_eq!(children(shim), [init]);
    client.kill_all(9)?;
    assert_eq!(client.wait()?.exit_status, 137);
    assert!(children(shim).is_empty());
    bundle.finish(&mut client);
    Ok(())
}

fn memory_that_ran_out_is_recorded() -> Outcome {
    // Where the child is killed the shell lives on and exits with 4; the kernel may choose the shell, too.
    let scripts: [(&str, &[u32]); 2] = [
        ("head -c 60000000 /dev/zero | tail -n 1 > /dev/null; exit 4", &[4, 137]),
        ("exec tail -n 1 /dev/zero", &[137]),
    ];
    for (script, statuses) in scripts {
        let mut bundle = Bundle::script(script);
        bundle.config["linux"]["resources"] = serde_json::json!({ "memory": { "limit": 20 << 20, "swap": 20 << 20 } });
        let mut client = bundle.spawn();
        let _stdout = bundle.create(&mut client);
        client.start()?;
        let status = client.wait()?.exit_status;
        assert!(statuses.contains(&status), "{status}");
        assert!(bundle.exit_record().expect("a record").oom_killed);
        bundle.finish(&mut client);
    }
    let mut bundle = Bundle::script("kill -9 $$; exit 1").with_host_pids();
    bundle.config["linux"]["resources"] = serde_json::json!({ "memory": { "limit": 20 << 20 } });
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 137);
    assert!(!bundle.exit_record().expect("a record").oom_killed, "not every kill is for want of memory");
    bundle.finish(&mut client);
    Ok(())
}

fn the_shim_is_protected_and_the_container_is_not() -> Outcome {
    let mut bundle = Bundle::script("cat /proc/self/oom_score_adj");
    bundle.config["process"]["oomScoreAdj"] = 500.into();
    let mut client = bundle.spawn();
    let output = drain(bundle.create(&mut client));
    let shim = client.who()?.shim_pid;
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    let may = u64::from_str_radix(effective.trim(), 16)? & 1 << 24 != 0;
    assert_eq!(score(shim), if may { "-999\n".to_owned() } else { score(std::process::id()) });
    client.start()?;
    client.wait()?;
    assert_eq!(output.join().expect("stdout"), b"500\n");
    bundle.finish(&mut client);
    Ok(())
}

/// A shim whose container runs holds less than a megabyte of its own; a debug build's code is another matter.
fn the_shim_is_small() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    let shim = client.who()?.shim_pid;
    let resident = |name: &str| -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{shim}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
    };
    let before = resident("RssFile:").expect("a number");
    eventually("its code is given back", || resident("RssFile:").is_some_and(|now| now < before / 2));
    // What is not a mapping of a file: a program's relocated constants are as many as it has code.
    let smaps = fs::read_to_string(format!("/proc/{shim}/smaps"))?;
    let (mut ours, mut anonymous) = (false, 0);
    for line in smaps.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["Anonymous:", size, _] if ours => anonymous += size.parse::<u64>()?,
            [range, _, _, _, inode, ..] if range.contains('-') => ours = *inode == "0",
            _ => {}
        }
    }
    assert!(anonymous > 0 && anonymous < 512, "{anonymous} kB");
    // It still does all it did.
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    client.kill(9)?;
    assert_eq!(client.wait()?.exit_status, 137);
    bundle.finish(&mut client);
    Ok(())
}

fn the_shim_is_nobodys_child() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let shim = client.who()?.shim_pid;
    assert!(!children(std::process::id()).contains(&shim));
    // CVE-2019-5736: its program lies on a read-only mount, so nobody can write to it through a process that executes it,
    // not even when it is not busy any more.
    let place = nix::sys::statvfs::statvfs(format!("/proc/{shim}/exe").as_str())?;
    assert!(place.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(shim as i32)))?;
    assert_eq!(session.as_raw(), shim as i32);
    let environment = fs::read(format!("/proc/{shim}/environ"))?;
    for variable in environment.split(|byte| *byte == 0).filter(|variable| !variable.is_empty()) {
        assert!(
            variable.starts_with(b"PATH=") || variable.starts_with(b"XDG_RUNTIME_DIR="),
            "{}",
            String::from_utf8_lossy(variable)
        );
    }
    let open = fs::read_dir(format!("/proc/{shim}/fd"))?.count();
    assert!(open <= 8, "{open} descriptors are open");
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn twenty_at_once_keep_apart() -> Outcome {
    let run = |number: u32| -> Result<(), Error> {
        let bundle = Bundle::script(&format!("echo number {number}; exit {}", number + 1));
        let mut client = bundle.spawn();
        let output = drain(bundle.create(&mut client));
        client.start()?;
        assert_eq!(client.wait()?.exit_status, number + 1);
        assert_eq!(output.join().expect("stdout"), format!("number {number}\n").into_bytes());
        assert_eq!(bundle.exit_record().expect("a record").status, number as i32 + 1);
        bundle.finish(&mut client);
        Ok(())
    };
    let threads: Vec<_> = (0..20).map(|number| std::thread::spawn(move || run(number))).collect();
    let ends: Vec<_> = threads.into_iter().map(std::thread::JoinHandle::join).collect();
    for end in ends {
        end.expect("thread")?;
    }
    Ok(())
}

fn one_shim_a_folder() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    // Once it has answered it surely has the lock.
    client.who()?;
    let error = bundle.launch.spawn().expect_err("the second");
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    client.who()?;
    client.shutdown()?;
    bundle.wait_for_lock();
    let mut next = bundle.spawn();
    next.who()?;
    next.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn a_shim_that_does_not_start_is_explained() -> Outcome {
    let mut bundle = Bundle::new(&["true"]);
    bundle.launch.program = Program::Path("/nonexistent/shim".into());
    assert!(matches!(bundle.launch.spawn(), Err(Error::Spawn { .. })));

    let script = bundle.path("false-shim");
    fs::write(&script, "#!/bin/sh\necho the reason >&2\nexit 1\n")?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    bundle.launch.program = Program::Path(script);
    let error = bundle.launch.spawn().expect_err("it fails").to_string();
    assert!(error.contains("the reason"), "{error}");

    // One that leaves well and serves nothing shows at the first call.
    bundle.launch.program = Program::Path("/bin/true".into());
    let error = bundle.launch.spawn()?.who().expect_err("nobody serves");
    assert!(matches!(&error, Error::Disconnected { log, .. } if log.contains("the reason")), "{error}");

    bundle.launch.bundle_dir = bundle.path("nowhere");
    assert!(matches!(bundle.launch.spawn(), Err(Error::File { .. })));
    Ok(())
}
