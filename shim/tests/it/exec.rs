//! Processes that are added to a container, and what else is done to a container that runs.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::time::Duration;

use estiba_runtime::oci_spec::runtime::{LinuxResources, Process};
use estiba_shim::proto::{Any, AttachRequest, Code, ExecProcessRequest, ProcessDetails, RuncOptions, TaskStatus};
use estiba_shim::{Client, LogOptions};

use crate::bundle::{Bundle, blocking, drain, eventually, process_state};
use crate::{Case, Outcome, logs};

pub(crate) const CASES: &[Case] = &[
    ("an_added_process_has_streams_and_a_status", an_added_process_has_streams_and_a_status),
    ("an_added_process_has_a_terminal", an_added_process_has_a_terminal),
    ("an_added_process_is_killed_alone", an_added_process_is_killed_alone),
    ("added_processes_end_with_the_container", added_processes_end_with_the_container),
    (
        "added_processes_end_with_the_container_without_own_pids",
        added_processes_end_with_the_container_without_own_pids,
    ),
    ("an_added_process_has_a_log_and_clients_that_attach", an_added_process_has_a_log_and_clients_that_attach),
    ("a_process_that_is_not_started_goes_with_its_client", a_process_that_is_not_started_goes_with_its_client),
    ("adding_wrongly_is_refused", adding_wrongly_is_refused),
    ("many_are_added_at_once", many_are_added_at_once),
    ("a_container_is_paused_and_resumed", a_container_is_paused_and_resumed),
    ("limits_change_and_use_is_measured", limits_change_and_use_is_measured),
];

/// For a shim that is the test program itself.
pub(crate) const REGISTERED_CASES: &[Case] = &[("a_registered_runtime_is_used", a_registered_runtime_is_used)];

/// The name of a runtime that the test program registers, and what it says when it is asked for one that fails.
pub(crate) const REGISTERED: &str = "estiba-test-runtime";

fn process(arguments: &[&str]) -> Process {
    let text = serde_json::json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": arguments,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
        "noNewPrivileges": true,
    });
    serde_json::from_value(text).expect("a process")
}

pub(crate) fn script(text: &str) -> Process {
    process(&["sh", "-c", text])
}

fn named(name: &str) -> ExecProcessRequest {
    ExecProcessRequest { exec_id: name.to_owned(), ..ExecProcessRequest::default() }
}

/// A container that sleeps.
fn sleeper() -> Result<(Bundle, Client), estiba_shim::Error> {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    client.create(bundle.request("", "", ""))?;
    client.start()?;
    Ok((bundle, client))
}

fn finish(bundle: &Bundle, client: &mut Client) -> Outcome {
    client.kill(9)?;
    assert_eq!(client.wait()?.exit_status, 137);
    bundle.finish(client);
    Ok(())
}

fn an_added_process_has_streams_and_a_status() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let (stdin, stdin_reader) = bundle.fifo("stdin");
    let mut writer = OpenOptions::new().write(true).open(&stdin)?;
    let (stdout, out) = bundle.fifo("stdout");
    let (stderr, err) = bundle.fifo("stderr");
    let request = ExecProcessRequest { stdin, stdout, stderr, ..named("e1") };
    client.exec(request, &script("read -r line; echo out $line; echo err >&2; cat; exit 42"))?;
    drop(stdin_reader);
    let state = client.state_exec("e1")?;
    assert_eq!((state.status(), state.exec_id.as_str(), state.pid), (TaskStatus::Created, "e1", 0));
    let pid = client.start_exec("e1")?;
    let (out, err) = (drain(blocking(out)), drain(blocking(err)));
    let state = client.state_exec("e1")?;
    assert_eq!((state.status(), state.pid, state.id.as_str()), (TaskStatus::Running, pid, bundle.id()));
    assert!(client.pids()?.contains(&pid));
    let list = client.call(&estiba_shim::proto::PidsRequest::default())?.processes;
    let info = list.iter().find(|process| process.pid == pid).and_then(|process| process.info.clone());
    let details = info.expect("it is told which").unpack::<ProcessDetails>()?.expect("of that type");
    assert_eq!(details.exec_id, "e1");
    assert!(list.iter().any(|process| process.info.is_none()), "the first has no name");
    assert_eq!(client.delete_exec("e1").expect_err("it runs").code(), Some(Code::FailedPrecondition));
    writer.write_all(b"word\nrest")?;
    let mut waiting = bundle.connect();
    let waiting = std::thread::spawn(move || waiting.wait_exec("e1"));
    client.close_exec_stdin("e1")?;
    assert_eq!(client.wait_exec("e1")?.exit_status, 42);
    let end = waiting.join().expect("thread")?;
    assert!(end.exit_status == 42 && end.exited_at.is_some());
    assert_eq!(out.join().expect("stdout"), b"out word\nrest");
    assert_eq!(err.join().expect("stderr"), b"err\n");
    let state = client.state_exec("e1")?;
    assert_eq!((state.status(), state.exit_status), (TaskStatus::Stopped, 42));
    assert_eq!(process_state(pid), None, "it is reaped");
    let deleted = client.delete_exec("e1")?;
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 42));
    for error in [
        client.state_exec("e1").expect_err("deleted"),
        client.wait_exec("e1").expect_err("deleted"),
        client.start_exec("e1").expect_err("deleted"),
    ] {
        assert_eq!(error.code(), Some(Code::NotFound), "{error}");
    }
    assert_eq!(client.state()?.status(), TaskStatus::Running, "the container does not mind");
    assert_eq!(bundle.exit_record(), None);
    finish(&bundle, &mut client)
}

fn an_added_process_has_a_terminal() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let (stdout, out) = bundle.fifo("stdout");
    let mut spec = script("read -r line; stty size; test -t 0 && test -t 1 && test -t 2 && exit 3");
    spec.set_terminal(Some(true));
    client.exec(ExecProcessRequest { stdin: "attach:".into(), stdout, ..named("tty") }, &spec)?;
    client.start_exec("tty")?;
    let out = drain(blocking(out));
    client.resize_exec("tty", 111, 44)?;
    let (stdin, _reader) = bundle.fifo("stdin");
    let mut writer = OpenOptions::new().write(true).open(&stdin)?;
    client.attach(AttachRequest { exec_id: "tty".into(), stdin, ..Default::default() })?;
    writer.write_all(b"\n")?;
    assert_eq!(client.wait_exec("tty")?.exit_status, 3);
    let out = String::from_utf8(out.join().expect("stdout"))?;
    assert!(out.contains("44 111\r\n"), "{out:?}");
    assert!(client.resize(1, 1).is_err(), "the container has none");
    client.delete_exec("tty")?;
    finish(&bundle, &mut client)
}

fn an_added_process_is_killed_alone() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    for (name, signal, spec) in
        [("a", 9, process(&["sleep", "1000"])), ("b", 15, script("trap 'exit 8' TERM; while :; do sleep 0.05; done"))]
    {
        client.exec(named(name), &spec)?;
        assert_eq!(client.kill_exec(name, 9).expect_err("not started").code(), Some(Code::FailedPrecondition));
        client.start_exec(name)?;
        std::thread::sleep(Duration::from_millis(200));
        client.kill_exec(name, signal)?;
        let expected = if signal == 9 { 137 } else { 8 };
        assert_eq!(client.wait_exec(name)?.exit_status, expected);
        assert_eq!(client.kill_exec(name, 9).expect_err("it has ended").code(), Some(Code::NotFound));
    }
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    assert_eq!(client.pids()?.len(), 1);
    // Deleting the container takes what was not deleted.
    finish(&bundle, &mut client)
}

fn added_processes_end_with_the_container() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let (stdout, out) = bundle.fifo("stdout");
    client.exec(ExecProcessRequest { stdout, ..named("e") }, &script("echo here; exec sleep 1000"))?;
    let pid = client.start_exec("e")?;
    let mut out = blocking(out);
    out.read_exact(&mut [0; 5])?;
    client.exec(named("waits"), &process(&["true"]))?;
    let mut other = bundle.connect();
    let waiting = std::thread::spawn(move || other.wait_exec("e"));
    let mut other = bundle.connect();
    let orphaned = std::thread::spawn(move || other.wait_exec("waits"));
    std::thread::sleep(Duration::from_millis(100));
    client.kill(9)?;
    assert_eq!(client.wait()?.exit_status, 137);
    assert_eq!(waiting.join().expect("thread")?.exit_status, 137);
    assert_eq!(out.read(&mut [0; 5])?, 0);
    assert_eq!(process_state(pid), None);
    let error = orphaned.join().expect("thread").expect_err("it never ran");
    assert_eq!(error.code(), Some(Code::NotFound), "{error}");
    assert_eq!(client.start_exec("waits").expect_err("too late").code(), Some(Code::NotFound));
    let late = client.exec(named("late"), &process(&["true"])).expect_err("too late");
    assert_eq!(late.code(), Some(Code::FailedPrecondition), "{late}");
    bundle.finish(&mut client);
    Ok(())
}

fn added_processes_end_with_the_container_without_own_pids() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]).with_host_pids();
    let mut client = bundle.spawn();
    client.create(bundle.request("", "", ""))?;
    client.start()?;
    client.exec(named("e"), &script("sleep 1000 & wait"))?;
    client.start_exec("e")?;
    eventually("it has a child", || client.pids().is_ok_and(|pids| pids.len() == 3));
    client.kill(9)?;
    client.wait()?;
    assert_eq!(client.wait_exec("e")?.exit_status, 137);
    bundle.finish(&mut client);
    Ok(())
}

fn an_added_process_has_a_log_and_clients_that_attach() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let log = bundle.path("log");
    let place = format!("json-file://{}", log.display());
    let request = ExecProcessRequest { stdin: "attach:".into(), stdout: place.clone(), stderr: place, ..named("e") };
    client.exec(request, &script("echo first; cat; echo last; exit 1"))?;
    let (stdout, out) = bundle.fifo("stdout");
    let (stdin, _reader) = bundle.fifo("stdin");
    let mut writer = OpenOptions::new().write(true).open(&stdin)?;
    let exec_id = "e".to_owned();
    client.attach(AttachRequest { exec_id, stdin, stdout, stdin_once: true, ..Default::default() })?;
    client.start_exec("e")?;
    writer.write_all(b"between\n")?;
    drop(writer);
    assert_eq!(drain(blocking(out)).join().expect("stdout"), b"first\nbetween\nlast\n");
    assert_eq!(client.wait_exec("e")?.exit_status, 1);
    let logged = logs::read(&log, LogOptions::default()).into_iter().flat_map(|entry| entry.bytes);
    assert!(logged.eq(*b"first\nbetween\nlast\n"));
    finish(&bundle, &mut client)
}

fn a_process_that_is_not_started_goes_with_its_client() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let mut other = bundle.connect();
    other.exec(named("waits"), &process(&["true"]))?;
    other.exec(named("runs"), &script("sleep 0.5; exit 9"))?;
    other.start_exec("runs")?;
    assert_eq!(client.state_exec("waits")?.status(), TaskStatus::Created);
    drop(other);
    eventually("it is forgotten", || client.state_exec("waits").is_err());
    assert_eq!(client.wait_exec("runs")?.exit_status, 9, "what runs is not");
    // Of those whose client has left only the last few are remembered.
    let shim = client.who()?.shim_pid;
    let open = || std::fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count);
    let before = open();
    for number in 0..40 {
        let mut other = bundle.connect();
        let name = number.to_string();
        other.exec(named(&name), &process(&["true"]))?;
        other.start_exec(&name)?;
        assert_eq!(other.wait_exec(&name)?.exit_status, 0);
    }
    eventually("the older are forgotten", || client.state_exec("20").is_err());
    assert_eq!(client.state_exec("39")?.status(), TaskStatus::Stopped);
    assert!(open() < before + 20, "{} {before}", open());
    finish(&bundle, &mut client)
}

fn adding_wrongly_is_refused() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    client.create(bundle.request("", "", ""))?;
    let early = client.exec(named("e"), &process(&["true"])).expect_err("not started");
    assert_eq!(early.code(), Some(Code::FailedPrecondition), "{early}");
    client.start()?;
    let wrong_type = Some(Any { type_url: "kata.Process".into(), value: b"{}".to_vec() });
    let wrong_json = Some(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: b"{\"args\":3}".to_vec(),
    });
    for (spec, terminal, text) in
        [(None, false, "Process"), (wrong_type, false, "kata.Process"), (wrong_json, false, "Process")]
    {
        let error = client.call(&ExecProcessRequest { spec, terminal, ..named("e") }).expect_err("refused");
        assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let spec = Some(Any::pack_spec("Process", &process(&["true"]))?);
    let error = client.call(&ExecProcessRequest { spec, terminal: true, ..named("e") }).expect_err("refused");
    assert!(error.to_string().contains("terminal"), "{error}");
    assert_eq!(client.exec(named(""), &process(&["true"])).expect_err("unnamed").code(), Some(Code::InvalidArgument));
    client.exec(named("e"), &process(&["true"]))?;
    assert_eq!(client.exec(named("e"), &process(&["true"])).expect_err("twice").code(), Some(Code::AlreadyExists));
    client.delete_exec("e")?;
    for (program, code) in [("nope", 127), ("/bin/nope", 127), ("/etc/plain", 126), ("/etc", 126)] {
        client.exec(named("e"), &process(&[program]))?;
        let error = client.start_exec("e").expect_err("it cannot run");
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(program), "{error}");
        assert_eq!(client.state_exec("e").expect_err("forgotten").code(), Some(Code::NotFound));
    }
    assert_eq!(client.pids()?.len(), 1, "nothing is left");
    finish(&bundle, &mut client)
}

fn many_are_added_at_once() -> Outcome {
    let (bundle, mut client) = sleeper()?;
    let run = |mut client: Client, number: u32| -> Result<u32, estiba_shim::Error> {
        for round in 0..10 {
            let name = format!("{number}-{round}");
            client.exec(named(&name), &script(&format!("exit {number}")))?;
            client.start_exec(&name)?;
            assert_eq!(client.wait_exec(&name)?.exit_status, number);
            client.delete_exec(&name)?;
        }
        Ok(number)
    };
    let threads: Vec<_> = (1..=8)
        .map(|number| {
            let client = bundle.connect();
            std::thread::spawn(move || run(client, number))
        })
        .collect();
    for thread in threads {
        thread.join().expect("thread")?;
    }
    assert_eq!(client.pids()?.len(), 1);
    finish(&bundle, &mut client)
}

fn a_container_is_paused_and_resumed() -> Outcome {
    let bundle = Bundle::script("while :; do echo tick; sleep 0.01; done");
    let log = bundle.path("log");
    let mut client = bundle.spawn();
    client.create(bundle.request("", &format!("json-file://{}", log.display()), ""))?;
    assert_eq!(client.pause().expect_err("not started").code(), Some(Code::FailedPrecondition));
    client.start()?;
    assert_eq!(client.resume().expect_err("not paused").code(), Some(Code::FailedPrecondition));
    let size = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    eventually("it ticks", || size() > 500);
    client.pause()?;
    assert_eq!(client.state()?.status(), TaskStatus::Paused);
    assert_eq!(client.pause().expect_err("twice").code(), Some(Code::FailedPrecondition));
    assert_eq!(
        client.exec(named("e"), &process(&["true"])).expect_err("it is paused").code(),
        Some(Code::FailedPrecondition)
    );
    std::thread::sleep(Duration::from_millis(100));
    let before = size();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(size(), before, "it stands still");
    client.resume()?;
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    eventually("it ticks again", || size() > before);
    client.pause()?;
    client.kill(9)?;
    // Killing reaches it where it stands, or when it goes on.
    let _ = client.resume();
    assert_eq!(client.wait()?.exit_status, 137);
    assert_eq!(client.state()?.status(), TaskStatus::Stopped);
    bundle.finish(&mut client);
    Ok(())
}

fn limits_change_and_use_is_measured() -> Outcome {
    let mut bundle = Bundle::script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000");
    bundle.config["linux"]["resources"] =
        serde_json::json!({ "pids": { "limit": 50 }, "memory": { "limit": 64 << 20 } });
    let mut client = bundle.spawn();
    let mut stdout = bundle.create(&mut client);
    client.start()?;
    stdout.read_exact(&mut [0; 5])?;
    let stats = client.stats()?;
    assert!(stats.cpu.usage > 1_000_000, "{stats:?}");
    assert!(stats.memory.usage > 0, "{stats:?}");
    assert_eq!((stats.memory.limit, stats.pids.limit, stats.pids.current), (Some(64 << 20), Some(50), 1));
    let resources: LinuxResources =
        serde_json::from_value(serde_json::json!({ "pids": { "limit": 20 }, "memory": { "limit": 48 << 20 } }))?;
    client.update(&resources)?;
    let stats = client.stats()?;
    assert_eq!((stats.memory.limit, stats.pids.limit), (Some(48 << 20), Some(20)));
    let error = client.call(&estiba_shim::proto::UpdateTaskRequest::default()).expect_err("nothing to change");
    assert_eq!(error.code(), Some(Code::InvalidArgument), "{error}");
    finish(&bundle, &mut client)
}

fn a_registered_runtime_is_used() -> Outcome {
    let bundle = Bundle::script("exit 11");
    let mut client = bundle.spawn();
    let options = RuncOptions { binary_name: REGISTERED.to_owned(), ..RuncOptions::default() };
    let mut request = bundle.request("", "", "");
    request.options = Some(Any::pack(&options));
    client.create(request)?;
    let place = bundle.folder().join("runtime").join(REGISTERED);
    assert!(place.exists(), "its factory was given the folder");
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 11);
    client.delete()?;
    client.shutdown()?;
    std::fs::remove_dir_all(place)?;
    bundle.assert_gone();
    Ok(())
}
