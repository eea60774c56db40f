//! The command line, as engines and people use it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use libtest_mimic::{Arguments, Failed, Trial, run};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use serde_json::{Value, json};

type Outcome = Result<(), Failed>;
type Case = (&'static str, fn() -> Outcome);

const BUSYBOX: &str = "/bin/busybox";

fn main() {
    let mut trials = vec![
        Trial::test("version_is_what_docker_reads", version),
        Trial::test("features_are_json", features),
        Trial::test("spec_writes_a_configuration_once", spec),
        Trial::test("errors_go_to_the_log", log),
    ];
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new(BUSYBOX).exists() {
        Some("needs busybox-static")
    } else {
        None
    };
    let privileged: [Case; 15] = [
        ("a_pidfd_goes_to_a_socket", pidfd_socket),
        ("sockets_of_systemd_are_the_containers", activation),
        ("run_passes_streams_and_status", streams),
        ("create_start_state_kill_delete", life),
        ("run_tells_what_cannot_be_executed", executables),
        ("run_forwards_signals", signals),
        ("run_bridges_a_terminal", terminal),
        ("run_hands_descriptors_on", descriptors),
        ("cve_2019_5736_the_program_is_on_a_read_only_mount", sealed),
        ("exec_passes_streams_and_status", exec),
        ("exec_takes_a_process_json", exec_process),
        ("exec_bridges_a_terminal", exec_terminal),
        ("exec_detaches", exec_detached),
        ("update_events_and_ps", update),
        ("state_and_list_have_the_fields_of_runc", fields),
    ];
    trials.extend(privileged.into_iter().map(|(name, run)| {
        let trial = Trial::test(format!("privileged_{name}"), run);
        match missing {
            Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
            None => trial,
        }
    }));
    run(&Arguments::from_args(), trials).exit();
}

struct Bundle {
    folder: tempfile::TempDir,
    id: String,
}

impl Bundle {
    fn new(terminal: bool, script: &str) -> Result<Self, Failed> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("ocirun-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let bundle = Self { folder: tempfile::tempdir()?, id };
        let bin = bundle.folder.path().join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy(BUSYBOX, bin.join("busybox"))?;
        for applet in ["sh", "cat", "echo", "sleep", "stty", "true", "id", "grep"] {
            symlink("busybox", bin.join(applet))?;
        }
        bundle.ocirun(&["spec", "--bundle", &bundle.path("")])?;
        let mut config: Value = serde_json::from_slice(&fs::read(bundle.path("config.json"))?)?;
        config["process"]["terminal"] = json!(terminal);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        fs::write(bundle.path("config.json"), serde_json::to_vec(&config)?)?;
        Ok(bundle)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocirun"));
        command.arg("--root").arg(self.folder.path().join("state")).stdin(Stdio::null());
        command
    }

    fn ocirun(&self, arguments: &[&str]) -> Result<Output, Failed> {
        Ok(self.command().args(arguments).output()?)
    }

    fn run(&self) -> Result<Output, Failed> {
        self.ocirun(&["run", "-b", &self.path(""), &self.id])
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.ocirun(&["delete", "--force", &self.id]);
    }
}

fn same<T: PartialEq + std::fmt::Debug>(found: &T, wanted: &T) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("found {found:?}, wanted {wanted:?}").into()) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn version() -> Outcome {
    let output = text(&Command::new(env!("CARGO_BIN_EXE_ocirun")).arg("--version").output()?.stdout);
    let mut lines = output.lines();
    same(&lines.next(), &Some(concat!("ocirun version ", env!("CARGO_PKG_VERSION"))))?;
    same(&lines.next().is_some_and(|line| line.starts_with("spec: 1.")), &true)
}

fn features() -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_ocirun")).arg("features").output()?;
    let features: Value = serde_json::from_slice(&output.stdout)?;
    same(&features["ociVersionMin"], &json!("1.0.0"))?;
    same(&features["mountOptions"].as_array().is_some_and(|list| list.contains(&json!("rro"))), &true)
}

fn spec() -> Outcome {
    let folder = tempfile::tempdir()?;
    let write = || Command::new(env!("CARGO_BIN_EXE_ocirun")).args(["spec", "-b"]).arg(folder.path()).output();
    same(&write()?.status.success(), &true)?;
    let again = write()?;
    same(&again.status.code(), &Some(1))?;
    same(&text(&again.stderr).contains("config.json"), &true)
}

fn log() -> Outcome {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let output = Command::new(env!("CARGO_BIN_EXE_ocirun"))
        .arg("--root")
        .arg(folder.path().join("state"))
        .arg("--log")
        .arg(&log)
        .args(["--log-format", "json", "start", "nobody"])
        .output()?;
    same(&output.status.code(), &Some(1))?;
    same(&text(&output.stderr).trim().to_owned(), &"ocirun: container nobody does not exist".to_owned())?;
    let line: Value = serde_json::from_slice(&fs::read(&log)?)?;
    same(&line["level"], &json!("error"))?;
    same(&line["msg"], &json!("container nobody does not exist"))?;
    same(&line["time"].as_str().is_some_and(|time| time.ends_with('Z')), &true)
}

fn streams() -> Outcome {
    let bundle = Bundle::new(false, "cat; echo err >&2; exit 5")?;
    let mut child = bundle
        .command()
        .args(["run", "-b", &bundle.path(""), &bundle.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(b"in\n")?;
    let output = child.wait_with_output()?;
    same(&(text(&output.stdout), text(&output.stderr)), &("in\n".to_owned(), "err\n".to_owned()))?;
    same(&output.status.code(), &Some(5))?;
    same(&fs::read_dir(bundle.path("state"))?.count(), &0)
}

fn life() -> Outcome {
    let bundle = Bundle::new(false, "sleep 1000")?;
    let id = bundle.id.as_str();
    let good = |arguments: &[&str]| -> Result<String, Failed> {
        // The container's process keeps the streams, so they are not pipes to be read to their end.
        let out = bundle.path("out");
        let file = fs::File::create(&out)?;
        let status = bundle.command().args(arguments).stdout(file.try_clone()?).stderr(file).status()?;
        let output = fs::read_to_string(out)?;
        if status.success() { Ok(output) } else { Err(format!("{arguments:?}: {output}").into()) }
    };
    let status = || -> Result<Value, Failed> { Ok(serde_json::from_str(&good(&["state", id])?)?) };
    good(&["create", "--bundle", &bundle.path(""), "--pid-file", &bundle.path("pid"), id])?;
    let state = status()?;
    same(&state["status"], &json!("created"))?;
    same(&fs::read_to_string(bundle.path("pid"))?, &state["pid"].to_string())?;
    good(&["start", id])?;
    same(&status()?["status"], &json!("running"))?;
    let list = good(&["list"])?;
    same(&(list.starts_with("ID"), list.contains(id), list.contains("running")), &(true, true, true))?;
    same(&good(&["list", "-q"])?, &format!("{id}\n"))?;
    same(&bundle.ocirun(&["delete", id])?.status.code(), &Some(1))?;
    good(&["kill", id, "KILL"])?;
    for _ in 0..200 {
        if status()?["status"] == "stopped" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let killed = bundle.ocirun(&["kill", id])?;
    same(&text(&killed.stderr), &"ocirun: container not running\n".to_owned())?;
    good(&["delete", id])?;
    same(&bundle.ocirun(&["state", id])?.status.code(), &Some(1))?;
    good(&["delete", "--force", id]).map(drop)
}

fn executables() -> Outcome {
    let bundle = Bundle::new(false, "")?;
    let mut config: Value = serde_json::from_slice(&fs::read(bundle.path("config.json"))?)?;
    for (program, code, words) in
        [("nothing", 127, "executable file not found in $path"), ("/bin", 126, "exec /bin: is a directory")]
    {
        config["process"]["args"] = json!([program]);
        fs::write(bundle.path("config.json"), serde_json::to_vec(&config)?)?;
        let output = bundle.run()?;
        same(&output.status.code(), &Some(code))?;
        let errors = text(&output.stderr).to_lowercase();
        same(&(errors.contains(program), errors.contains(words), errors.lines().count()), &(true, true, 1))?;
        same(&fs::read_dir(bundle.path("state"))?.count(), &0)?;
    }
    Ok(())
}

fn signals() -> Outcome {
    let bundle = Bundle::new(false, "trap 'echo got; exit 8' TERM; echo ready; while :; do sleep 0.01; done")?;
    let mut child =
        bundle.command().args(["run", "-b", &bundle.path(""), &bundle.id]).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    stdout.read_exact(&mut [0u8; 6])?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    same(&child.wait()?.code(), &Some(8))?;
    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    same(&rest, &"got\n".to_owned())
}

fn terminal() -> Outcome {
    let bundle = Bundle::new(true, "stty size; read line; echo \"<$line>\"; exit 6")?;
    let size = nix::pty::Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    let before = nix::sys::termios::tcgetattr(&pty.slave)?;
    let mut child = bundle
        .command()
        .args(["run", "-b", &bundle.path(""), &bundle.id])
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave.try_clone()?)
        .spawn()?;
    let mut master = fs::File::from(pty.master);
    let mut output = String::new();
    until(&mut master, &mut output, "21 43")?;
    master.write_all(b"typed\r")?;
    until(&mut master, &mut output, "<typed>")?;
    same(&child.wait()?.code(), &Some(6))?;
    // Our terminal is as it was.
    same(&(nix::sys::termios::tcgetattr(&pty.slave)? == before), &true)
}

/// Reads until a text has come; five seconds of silence are a failure.
fn until(master: &mut fs::File, output: &mut String, wanted: &str) -> Outcome {
    let mut buffer = [0u8; 256];
    while !output.contains(wanted) {
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(5000u16))? == 0 {
            return Err(format!("{wanted:?} does not come after {output:?}").into());
        }
        let length = master.read(&mut buffer)?;
        output.push_str(&text(&buffer[..length]));
    }
    Ok(())
}

fn descriptors() -> Outcome {
    let bundle = Bundle::new(false, "cat <&3")?;
    fs::write(bundle.path("handed"), "through\n")?;
    let script = format!(
        "exec {} --root {} run -b {} --preserve-fds 1 {} 3<{}",
        env!("CARGO_BIN_EXE_ocirun"),
        bundle.path("state"),
        bundle.path(""),
        bundle.id,
        bundle.path("handed")
    );
    let output = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).output()?;
    same(&(text(&output.stdout), text(&output.stderr)), &("through\n".to_owned(), String::new()))
}

/// A container that runs, its process being nobody's child here.
fn running() -> Result<Bundle, Failed> {
    let bundle = Bundle::new(false, "exec sleep 1000")?;
    let status = bundle
        .command()
        .args(["run", "--detach", "-b", &bundle.path(""), &bundle.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    same(&status.code(), &Some(0))?;
    Ok(bundle)
}

/// What a container could reach of this program through `/proc` cannot be written to, not even when it has ended.
fn sealed() -> Outcome {
    let bundle = running()?;
    let mut exec = bundle.command();
    let mut exec =
        exec.args(["exec", &bundle.id, "sh", "-c", "echo ready; exec sleep 1000"]).stdout(Stdio::piped()).spawn()?;
    exec.stdout.take().ok_or("no stdout")?.read_exact(&mut [0u8; 6])?;
    let other = Bundle::new(false, "echo ready; exec sleep 1000")?;
    let mut config: Value = serde_json::from_slice(&fs::read(other.path("config.json"))?)?;
    let namespaces = config["linux"]["namespaces"].as_array_mut().ok_or("no namespaces")?;
    namespaces.retain(|namespace| namespace["type"] != "pid");
    config["linux"]["maskedPaths"] = json!([]);
    config["linux"]["readonlyPaths"] = json!([]);
    config["mounts"][0] = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
    fs::write(other.path("config.json"), config.to_string())?;
    let mut run = other.command();
    let mut run = run.args(["run", "-b", &other.path(""), &other.id]).stdout(Stdio::piped()).spawn()?;
    run.stdout.take().ok_or("no stdout")?.read_exact(&mut [0u8; 6])?;
    // Held as a process of the container could, until the program runs no more.
    let mut held = Vec::new();
    for child in [&exec, &run] {
        let exe = format!("/proc/{}/exe", child.id());
        held.push(rustix::fs::open(&exe, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?);
    }
    for bundle in [&bundle, &other] {
        same(&bundle.ocirun(&["kill", &bundle.id, "KILL"])?.status.code(), &Some(0))?;
    }
    same(&(exec.wait()?.code(), run.wait()?.code()), &(Some(137), Some(137)))?;
    for exe in held {
        let mount = rustix::fs::fstatvfs(&exe)?;
        same(&mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), &true)?;
    }
    Ok(())
}

fn exec() -> Outcome {
    let bundle = running()?;
    let mut child = bundle
        .command()
        .args(["exec", "--env", "A=b", "--cwd", "/bin", "-u", "5:6", &bundle.id])
        .args(["sh", "-c", "cat; echo $A $PWD; id -u; id -g; echo err >&2; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(b"in\n")?;
    let output = child.wait_with_output()?;
    same(&(text(&output.stdout), text(&output.stderr)), &("in\nb /bin\n5\n6\n".to_owned(), "err\n".to_owned()))?;
    same(&output.status.code(), &Some(7))?;
    let caps = bundle.ocirun(&[
        "exec",
        "--cap",
        "CAP_NET_RAW",
        &bundle.id,
        "grep",
        "-E",
        "Cap(Eff|Inh|Amb)",
        "/proc/self/status",
    ])?;
    // CAP_NET_RAW is 13; 29, 10 and 5 are the container's.
    let zero = "0000000000000000";
    same(&text(&caps.stdout), &format!("CapInh:\t{zero}\nCapEff:\t0000000020002420\nCapAmb:\t{zero}\n"))?;
    for (arguments, code, words) in [
        (&["exec", &bundle.id, "nothing"][..], 255, "not found in $PATH"),
        (&["exec", &bundle.id, "/bin"], 255, "exec /bin: is a directory"),
        (&["exec", "nobody", "true"], 255, "container nobody does not exist"),
        (&["exec", &bundle.id], 255, "no program"),
        (&["exec", "--user", "root", &bundle.id, "true"], 255, "no user"),
    ] {
        let output = bundle.ocirun(arguments)?;
        same(&(output.status.code(), text(&output.stderr).contains(words)), &(Some(code), true))
            .map_err(|_| format!("{arguments:?}: {output:?}"))?;
    }
    same(&bundle.ocirun(&["pause", &bundle.id])?.status.code(), &Some(0))?;
    let paused = bundle.ocirun(&["exec", &bundle.id, "true"])?;
    same(
        &(paused.status.code(), text(&paused.stderr).contains("cannot exec in a paused container")),
        &(Some(255), true),
    )?;
    same(&bundle.ocirun(&["resume", &bundle.id])?.status.code(), &Some(0))?;
    // A signal is for the program.
    let script = "trap 'echo got; exit 8' TERM; echo ready; while :; do sleep 0.01; done";
    let mut child = bundle.command().args(["exec", &bundle.id, "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    stdout.read_exact(&mut [0u8; 6])?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id())?), nix::sys::signal::Signal::SIGTERM)?;
    same(&child.wait()?.code(), &Some(8))
}

fn exec_process() -> Outcome {
    let bundle = running()?;
    let process = json!({
        "user": {"uid": 9, "gid": 9}, "args": ["sh", "-c", "id -u; cat <&3; grep -E 'CapEff|NoNew' /proc/self/status"],
        "env": ["PATH=/bin"], "cwd": "/"
    });
    fs::write(bundle.path("process.json"), process.to_string())?;
    fs::write(bundle.path("handed"), "through\n")?;
    let script = format!(
        "exec {} --root {} exec -p {} --preserve-fds 1 {} 3<{}",
        env!("CARGO_BIN_EXE_ocirun"),
        bundle.path("state"),
        bundle.path("process.json"),
        bundle.id,
        bundle.path("handed")
    );
    let output = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).output()?;
    let wanted = "9\nthrough\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
    same(&(text(&output.stdout), text(&output.stderr)), &(wanted.to_owned(), String::new()))
}

fn exec_terminal() -> Outcome {
    let bundle = running()?;
    let size = nix::pty::Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    let mut child = bundle
        .command()
        .args(["exec", "-t", &bundle.id, "sh", "-c", "stty size; read line; echo \"<$line>\"; exit 6"])
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave.try_clone()?)
        .spawn()?;
    let mut master = fs::File::from(pty.master);
    let mut output = String::new();
    until(&mut master, &mut output, "21 43")?;
    master.write_all(b"typed\r")?;
    until(&mut master, &mut output, "<typed>")?;
    same(&child.wait()?.code(), &Some(6))
}

fn exec_detached() -> Outcome {
    let bundle = running()?;
    let pid = bundle.path("exec.pid");
    let status = bundle
        .command()
        .args(["exec", "-d", "--pid-file", &pid, &bundle.id, "sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    same(&status.code(), &Some(0))?;
    let pid: i32 = fs::read_to_string(&pid)?.parse()?;
    let pids: Vec<i32> = serde_json::from_slice(&bundle.ocirun(&["ps", "--format", "json", &bundle.id])?.stdout)?;
    same(&(pids.len(), pids.contains(&pid)), &(2, true))?;
    // A terminal that is left alone needs somebody to take it.
    let refused = bundle.ocirun(&["exec", "-t", "-d", &bundle.id, "true"])?;
    same(&(refused.status.code(), text(&refused.stderr).contains("--console-socket")), &(Some(255), true))
}

fn update() -> Outcome {
    let bundle = running()?;
    let id = bundle.id.as_str();
    let stats = || -> Result<Value, Failed> {
        let output = bundle.ocirun(&["events", "--stats", id])?;
        same(&text(&output.stderr), &String::new())?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let before = stats()?;
    same(
        &(&before["type"], &before["id"], &before["data"]["pids"]["current"]),
        &(&json!("stats"), &json!(id), &json!(1)),
    )?;
    same(&before["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|time| time > 0), &true)?;
    let update = |arguments: &[&str]| -> Result<Output, Failed> {
        Ok(bundle.command().arg("update").args(arguments).arg(id).output()?)
    };
    same(&update(&["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "20"])?.status.code(), &Some(0))?;
    let limits = |data: &Value| (data["memory"]["usage"]["limit"].clone(), data["pids"]["limit"].clone());
    same(&limits(&stats()?["data"]), &(json!(64 << 20), json!(20)))?;
    fs::write(bundle.path("resources.json"), r#"{"pids": {"limit": 30}}"#)?;
    same(&update(&["-r", &bundle.path("resources.json")])?.status.code(), &Some(0))?;
    same(&limits(&stats()?["data"]), &(json!(64 << 20), json!(30)))?;
    for (arguments, words) in [
        (&["--cpu-quota", "5"][..], "linux.resources.cpu.quota"),
        (&["--memory", "5x"], "is no size"),
        (&[], "nothing to update"),
    ] {
        let refused = update(arguments)?;
        same(&(refused.status.code(), text(&refused.stderr).contains(words)), &(Some(1), true))
            .map_err(|_| format!("{arguments:?}: {refused:?}"))?;
    }
    let listed = text(&bundle.ocirun(&["ps", id])?.stdout);
    same(&(listed.lines().count(), listed.contains("PID"), listed.contains("sleep 1000")), &(2, true, true))?;
    // Until the container ends, with what is killed for want of memory on the way.
    let mut child = bundle.command().args(["events", "--interval", "50ms", id]).stdout(Stdio::piped()).spawn()?;
    let mut lines = String::new();
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut byte = [0u8; 1];
    while !lines.contains("stats") {
        stdout.read_exact(&mut byte)?;
        lines.push(char::from(byte[0]));
    }
    let greedy = bundle.ocirun(&["exec", id, "sh", "-c", "x=x; while :; do x=$x$x; done"])?;
    same(&greedy.status.code(), &Some(137))?;
    bundle.ocirun(&["kill", id, "KILL"])?;
    stdout.read_to_string(&mut lines)?;
    same(&(child.wait()?.code(), lines.contains(&format!("{{\"type\":\"oom\",\"id\":\"{id}\"}}"))), &(Some(0), true))
        .map_err(|_| lines.into())
}

fn fields() -> Outcome {
    let bundle = running()?;
    let state: Value = serde_json::from_slice(&bundle.ocirun(&["state", &bundle.id])?.stdout)?;
    let list: Value = serde_json::from_slice(&bundle.ocirun(&["list", "--format", "json"])?.stdout)?;
    let mut listed = list[0].clone();
    same(&listed["owner"], &json!("root"))?;
    listed["owner"] = json!("");
    same(&listed, &state)?;
    let bundled = fs::canonicalize(bundle.folder.path())?;
    same(&state["bundle"], &json!(bundled))?;
    same(&state["rootfs"], &json!(bundled.join("rootfs")))?;
    same(&state["status"], &json!("running"))?;
    let created = state["created"].as_str().unwrap_or_default();
    same(&(created.len(), created.ends_with('Z')), &("2026-11-26T23:22:41.526106158Z".len(), true))
}

fn pidfd_socket() -> Outcome {
    let bundle = Bundle::new(false, "exec sleep 1000")?;
    let path = bundle.path("pidfd");
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    for (arguments, word) in [
        (vec!["run", "-d", "-b", &bundle.path(""), "--pidfd-socket", &path, &bundle.id], "standard"),
        (vec!["exec", "-d", "--pidfd-socket", &path, &bundle.id, "sleep", "1000"], "setns"),
    ] {
        let mut command = bundle.command();
        let status = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        same(&status.code(), &Some(0))?;
        let (stream, _) = listener.accept()?;
        let mut buffer = [0; 64];
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(i32);
        let flags = nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&stream);
        let message = nix::sys::socket::recvmsg::<()>(fd, &mut parts, Some(&mut control), flags)?;
        let mut descriptors = 0;
        for part in message.cmsgs()? {
            if let nix::sys::socket::ControlMessageOwned::ScmRights(fds) = part {
                for fd in fds {
                    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
                    descriptors +=
                        usize::from(info.lines().any(|line| line.starts_with("Pid:") && !line.ends_with("-1")));
                }
            }
        }
        let length = message.bytes;
        same(&(descriptors, text(&buffer[..length])), &(1, word.to_owned()))?;
    }
    Ok(())
}

/// Two descriptors of systemd's, without an option, and one more with it.
fn activation() -> Outcome {
    let bundle = Bundle::new(false, "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4; cat <&5")?;
    for (name, content) in [("one", "1\n"), ("two", "2\n"), ("three", "3\n")] {
        fs::write(bundle.path(name), content)?;
    }
    let script = format!(
        "export LISTEN_FDS=2 LISTEN_PID=$$; exec {} --root {} run -b {} --preserve-fds 1 {} 3<{} 4<{} 5<{}",
        env!("CARGO_BIN_EXE_ocirun"),
        bundle.path("state"),
        bundle.path(""),
        bundle.id,
        bundle.path("one"),
        bundle.path("two"),
        bundle.path("three"),
    );
    let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output()?;
    same(&text(&output.stdout), &"2 1\n1\n2\n3\n".to_owned())
}
