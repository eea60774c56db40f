//! Containers by another OCI runtime: runc, which Debian packages.

use std::fs::{self, OpenOptions};
use std::io::Write;

use estiba_shim::proto::{Any, CreateTaskRequest, ExecProcessRequest, Mount, RuncOptions, TaskStatus};

use crate::bundle::{Bundle, blocking, drain, eventually};
use crate::exec::script;
use crate::{Case, Outcome};

/// Debian's.
const RUNC: &str = "/usr/sbin/runc";

pub(crate) const CASES: &[Case] = &[
    ("external_runs_on_a_mounted_root", external_runs_on_a_mounted_root),
    ("external_leaves_the_mounts_to_the_exit_command", external_leaves_the_mounts_to_the_exit_command),
    ("external_has_a_terminal", external_has_a_terminal),
    ("external_misses_a_program_with_127", external_misses_a_program_with_127),
    ("external_that_is_absent_is_named", external_that_is_absent_is_named),
    ("external_adds_processes_and_pauses", external_adds_processes_and_pauses),
];

/// What the machine lacks for these tests.
pub(crate) fn missing() -> Option<&'static str> {
    if fs::exists(RUNC).is_ok_and(|there| there) { None } else { Some("needs runc") }
}

/// A request that names the runtime.
fn request(bundle: &Bundle, stdin: &str, stdout: &str) -> CreateTaskRequest {
    let options = RuncOptions { binary_name: RUNC.to_owned(), ..RuncOptions::default() };
    CreateTaskRequest { options: Some(Any::pack(&options)), ..bundle.request(stdin, stdout, "") }
}

/// A request whose root is a mount, and the folder that is mounted.
fn mounted(bundle: &Bundle, stdout: &str) -> Result<CreateTaskRequest, std::io::Error> {
    let elsewhere = bundle.path("elsewhere");
    fs::rename(bundle.folder().join("rootfs"), &elsewhere)?;
    let mut request = request(bundle, "", stdout);
    request.rootfs = vec![Mount {
        kind: "bind".into(),
        source: elsewhere.to_str().expect("text").to_owned(),
        target: String::new(),
        options: vec!["rbind".into(), "rw".into()],
    }];
    Ok(request)
}

fn external_runs_on_a_mounted_root() -> Outcome {
    let bundle = Bundle::script("echo written > /written; cat /written; sleep 1000 & exit 12");
    let mut client = bundle.spawn();
    let (path, reader) = bundle.fifo("stdout");
    let pid = client.create(mounted(&bundle, &path)?)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(bundle.folder().to_str().expect("text")), "nothing is mounted on the host");
    let output = drain(blocking(reader));
    assert_eq!(client.start()?, pid);
    assert_eq!(client.wait()?.exit_status, 12);
    assert_eq!(output.join().expect("stdout"), b"written\n");
    assert_eq!(bundle.exit_record().expect("a record").status, 12);
    assert!(bundle.path("elsewhere/written").exists());
    bundle.finish(&mut client);
    Ok(())
}

fn external_leaves_the_mounts_to_the_exit_command() -> Outcome {
    let mut bundle = Bundle::script("exit 3");
    let seen = bundle.path("namespace");
    let script = format!("readlink /proc/self/ns/mnt > {0}.new; pwd >> {0}.new; mv {0}.new {0}", seen.display());
    bundle.launch.exit_command = vec!["/bin/sh".into(), "-c".into(), script.into()];
    let mut client = bundle.spawn();
    let (path, _reader) = bundle.fifo("stdout");
    client.create(mounted(&bundle, &path)?)?;
    client.start()?;
    drop(client);
    eventually("the exit command has run", || seen.exists());
    let ours = fs::read_link("/proc/self/ns/mnt")?;
    assert_eq!(fs::read_to_string(&seen)?, format!("{}\n/\n", ours.display()), "it runs where the shim was started");
    assert_eq!(bundle.exit_record().expect("a record").status, 3);
    bundle.assert_gone();
    Ok(())
}

fn external_has_a_terminal() -> Outcome {
    let bundle = Bundle::script("read -r line; stty size; exit 3").with_terminal();
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    let (stdout_path, stdout) = bundle.fifo("stdout");
    client.create(request(&bundle, &stdin_path, &stdout_path))?;
    let output = drain(blocking(stdout));
    client.start()?;
    client.resize(99, 33)?;
    stdin.write_all(b"\n")?;
    assert_eq!(client.wait()?.exit_status, 3);
    let output = String::from_utf8(output.join().expect("stdout"))?;
    assert!(output.contains("33 99\r\n"), "{output:?}");
    bundle.finish(&mut client);
    Ok(())
}

fn external_misses_a_program_with_127() -> Outcome {
    let bundle = Bundle::new(&["nope"]);
    let mut client = bundle.spawn();
    let error = client.create(request(&bundle, "", "")).expect_err("there is no such program");
    assert_eq!(error.exit_code(), 127, "{error}");
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn external_that_is_absent_is_named() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let options = RuncOptions { binary_name: "/nowhere/runc".to_owned(), ..RuncOptions::default() };
    let request = CreateTaskRequest { options: Some(Any::pack(&options)), ..bundle.request("", "", "") };
    let error = client.create(request).expect_err("there is no such runtime");
    assert!(error.to_string().contains("/nowhere/runc"), "{error}");
    assert_eq!(error.exit_code(), 125, "{error}");
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn external_adds_processes_and_pauses() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    client.create(request(&bundle, "", ""))?;
    client.start()?;
    let (path, reader) = bundle.fifo("added");
    let named = |name: &str| ExecProcessRequest { exec_id: name.to_owned(), ..ExecProcessRequest::default() };
    client.exec(ExecProcessRequest { stdout: path, ..named("e1") }, &script("echo added; exit 5"))?;
    let added = drain(blocking(reader));
    client.start_exec("e1")?;
    assert_eq!(client.wait_exec("e1")?.exit_status, 5);
    assert_eq!(added.join().expect("stdout"), b"added\n");
    let mut spec = script("stty size; exit 6");
    spec.set_terminal(Some(true));
    let (path, reader) = bundle.fifo("terminal");
    client.exec(ExecProcessRequest { stdout: path, ..named("e2") }, &spec)?;
    client.start_exec("e2")?;
    let output = drain(blocking(reader));
    assert_eq!(client.wait_exec("e2")?.exit_status, 6);
    assert!(String::from_utf8(output.join().expect("stdout"))?.ends_with("\r\n"));
    client.exec(named("e3"), &script("exec nope"))?;
    client.start_exec("e3")?;
    assert_eq!(client.wait_exec("e3")?.exit_status, 127);
    client.exec(named("e4"), &script("sleep 1000"))?;
    client.start_exec("e4")?;
    client.pause()?;
    assert_eq!(client.state()?.status(), TaskStatus::Paused);
    client.resume()?;
    assert!(client.stats()?.pids.current >= 2);
    client.kill(9)?;
    assert_eq!(client.wait()?.exit_status, 137);
    assert_eq!(client.wait_exec("e4")?.exit_status, 137);
    bundle.finish(&mut client);
    Ok(())
}
