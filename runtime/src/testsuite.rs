//! What every [`Runtime`] must do: a suite for implementations of the trait, this crate's and others.
//!
//! ```no_run
//! use estiba_runtime::External;
//! use estiba_runtime::testsuite::{CASES, Subject};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = External::new("runc", "/run/suite");
//! let subject = Subject::new(&runtime, "/bin/busybox".as_ref(), "/tmp/suite".as_ref())?;
//! for case in CASES {
//!     (case.run)(&subject).map_err(|failure| format!("{}: {failure}", case.name))?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The caller is root, and a subreaper
//! ([`PR_SET_CHILD_SUBREAPER`](https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html)), since the processes of an
//! external runtime are its grandchildren. Each case makes containers of its own and removes them; cases may run at the same time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use serde_json::{Value, json};

use crate::{
    Bundle, ContainerId, CreateOptions, Created, DeleteMode, Error, ExecOptions, ExitStatus, KillTarget, Runtime,
    Status, Stdio, wait,
};

/// What a case found wrong.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T = ()> = Result<T, Failure>;

/// One demand on a runtime.
#[derive(Debug)]
pub struct Case {
    /// What is demanded, as an identifier.
    pub name: &'static str,
    /// Tries it.
    pub run: fn(&Subject<'_>) -> Result<(), Failure>,
}

/// All cases.
pub const CASES: &[Case] = &[
    Case { name: "runs_and_reports_the_exit_status", run: exit_status },
    Case { name: "waits_for_start", run: waits_for_start },
    Case { name: "goes_through_its_states", run: states },
    Case { name: "passes_signals_to_the_first_process", run: signal },
    Case { name: "kills_all_processes", run: kill_all },
    Case { name: "knows_a_missing_executable", run: missing_executable },
    Case { name: "knows_what_is_not_executable", run: not_executable },
    Case { name: "refuses_a_name_that_is_taken", run: duplicate },
    Case { name: "starts_once", run: start_twice },
    Case { name: "does_not_delete_what_runs", run: delete_running },
    Case { name: "deletes_what_was_never_started", run: delete_created },
    Case { name: "deletes_again_by_force", run: delete_again },
    Case { name: "signals_nothing_that_has_ended", run: kill_stopped },
    Case { name: "does_not_know_unknown_containers", run: unknown },
    Case { name: "gives_a_terminal", run: terminal },
    Case { name: "pauses_and_resumes", run: pause },
    Case { name: "adds_a_process", run: exec },
    Case { name: "adds_a_process_with_rights_of_its_own", run: exec_rights },
    Case { name: "adds_a_process_with_a_terminal", run: exec_terminal },
    Case { name: "knows_what_cannot_be_executed_of_what_is_added", run: exec_executables },
    Case { name: "adds_nothing_to_what_does_not_run", run: exec_stopped },
    Case { name: "ends_what_was_added_with_the_container", run: exec_ends },
    Case { name: "updates_limits", run: update },
    Case { name: "refuses_limits_that_cannot_be", run: update_refused },
    Case { name: "measures", run: stats },
    Case { name: "lists_processes", run: processes },
];

/// A container has a name of its own on the host: the suite may run on several runtimes at once.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime, and what its containers are made of.
#[derive(Debug)]
pub struct Subject<'a> {
    runtime: &'a dyn Runtime,
    scratch: PathBuf,
    rootfs: PathBuf,
}

impl<'a> Subject<'a> {
    /// Prepares a root filesystem in the folder `scratch` from a static `busybox`.
    pub fn new(runtime: &'a dyn Runtime, busybox: &Path, scratch: &Path) -> io::Result<Self> {
        let rootfs = scratch.join("rootfs");
        for folder in ["bin", "proc", "dev", "etc", "sys"] {
            fs::create_dir_all(rootfs.join(folder))?;
        }
        let program = rootfs.join("bin/busybox");
        fs::copy(busybox, &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        for name in ["sh", "sleep", "echo"] {
            symlink("busybox", rootfs.join("bin").join(name))?;
        }
        fs::write(rootfs.join("etc/plain"), "not a program\n")?;
        Ok(Self { runtime, scratch: scratch.to_owned(), rootfs })
    }

    fn container(&self, case: &str, arguments: &[&str]) -> Outcome<Container<'_>> {
        self.container_with(case, arguments, &|_| {})
    }

    fn container_with(&self, case: &str, arguments: &[&str], change: &dyn Fn(&mut Value)) -> Outcome<Container<'_>> {
        let name = format!("estiba-suite-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = self.scratch.join(case);
        fs::create_dir_all(&folder)?;
        let mut spec = spec(&self.rootfs, &name, arguments);
        change(&mut spec);
        fs::write(folder.join("config.json"), serde_json::to_vec(&spec)?)?;
        let bundle = Bundle::load(&folder)?;
        let output = folder.join("output");
        File::create(&output)?;
        Ok(Container { runtime: self.runtime, id: name.parse()?, bundle, output })
    }
}

fn spec(rootfs: &Path, name: &str, arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": true },
        "hostname": "suite",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{name}"),
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
        },
    })
}

/// A container of a case; removed by force when the case is over, however it ends.
struct Container<'a> {
    runtime: &'a dyn Runtime,
    id: ContainerId,
    bundle: Bundle,
    output: PathBuf,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // The case has said what is wrong.
        let _ = self.runtime.delete(&self.id, DeleteMode::Force);
    }
}

impl Container<'_> {
    fn create(&self) -> crate::Result<Created> {
        let open = |path: &Path, writing: bool| {
            let file = File::options().read(!writing).append(writing).open(path);
            file.map_err(|source| Error::Io { operation: "open", path: path.to_owned(), source })
        };
        let (null, output) = (open("/dev/null".as_ref(), false)?, open(&self.output, true)?);
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: output.as_fd(), stderr: output.as_fd() };
        self.runtime.create(&self.id, &self.bundle, &CreateOptions::new(stdio))
    }

    fn start(&self) -> crate::Result<()> {
        self.runtime.start(&self.id)
    }

    fn status(&self) -> crate::Result<Status> {
        self.runtime.state(&self.id).map(|state| state.status)
    }

    fn expect(&self, want: Status) -> Outcome {
        let got = self.status()?;
        demand(got == want, || format!("it is {got}, and should be {want}"))
    }

    fn gone(&self) -> Outcome {
        match self.runtime.state(&self.id) {
            Err(Error::NotFound { .. }) => Ok(()),
            other => Err(format!("it should not exist: {other:?}").into()),
        }
    }

    fn delete(&self, mode: DeleteMode) -> crate::Result<()> {
        self.runtime.delete(&self.id, mode)
    }

    fn kill(&self, signal: i32, target: KillTarget) -> crate::Result<()> {
        self.runtime.kill(&self.id, signal, target)
    }

    /// Creates and starts.
    fn running(&self) -> Outcome<Created> {
        let created = self.create()?;
        self.start()?;
        Ok(created)
    }

    /// Adds a process that writes to the container's output.
    fn exec(&self, process: &Value) -> Outcome<crate::Result<Created>> {
        let process = serde_json::from_value(process.clone())?;
        let null = File::open("/dev/null")?;
        let output = File::options().append(true).open(&self.output)?;
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: output.as_fd(), stderr: output.as_fd() };
        Ok(self.runtime.exec(&self.id, &process, &ExecOptions::new(stdio)))
    }

    fn update(&self, resources: &Value) -> Outcome<crate::Result<()>> {
        let resources = serde_json::from_value(resources.clone())?;
        Ok(self.runtime.update(&self.id, &resources))
    }

    fn written(&self) -> Outcome<String> {
        Ok(fs::read_to_string(&self.output)?)
    }

    /// Waits until the container has written `text`.
    fn wrote(&self, text: &str) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !self.written()?.contains(text) {
            demand(Instant::now() < deadline, || format!("it did not write {text:?}"))?;
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

fn demand(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

/// Waits for the end, but not for ever.
fn end(created: &Created) -> Outcome<ExitStatus> {
    let mut poll = [PollFd::new(created.pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE)?;
    demand(nix::poll::poll(&mut poll, timeout)? == 1, || "its process does not end".to_owned())?;
    Ok(wait(created.pidfd.as_fd(), created.pid)?)
}

fn exit_status(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exit-status", &["sh", "-c", "echo $$; exit 7"])?;
    let created = container.create()?;
    container.start()?;
    let status = end(&created)?;
    demand(status == ExitStatus::Exited(7), || format!("it ended with {status:?}"))?;
    container.delete(DeleteMode::Stopped)?;
    let written = container.written()?;
    demand(written.trim() == "1", || format!("it wrote {written:?}: not the first process of its namespace"))
}

fn waits_for_start(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("waits", &["echo", "started"])?;
    let created = container.create()?;
    std::thread::sleep(Duration::from_millis(50));
    demand(container.written()?.is_empty(), || "it ran before it was started".to_owned())?;
    container.start()?;
    let status = end(&created)?;
    demand(status.code() == 0, || format!("it ended with {status:?}"))?;
    container.wrote("started")
}

fn states(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("states", &["sleep", "100"])?;
    container.gone()?;
    let created = container.create()?;
    let state = container.runtime.state(&container.id)?;
    demand(state.id == container.id.to_string(), || format!("its name is {}", state.id))?;
    demand(state.status == Status::Created, || format!("it is {}, and should be created", state.status))?;
    demand(state.pid == created.pid, || format!("its pid is {}, and {} was made", state.pid, created.pid))?;
    demand(state.bundle == container.bundle.path, || format!("its bundle is {}", state.bundle.display()))?;
    container.start()?;
    container.expect(Status::Running)?;
    container.kill(libc::SIGKILL, KillTarget::Init)?;
    let status = end(&created)?;
    demand(status == ExitStatus::Signaled(libc::SIGKILL), || format!("it ended with {status:?}"))?;
    container.expect(Status::Stopped)?;
    container.delete(DeleteMode::Stopped)?;
    container.gone()
}

fn signal(subject: &Subject<'_>) -> Outcome {
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let container = subject.container("signal", &["sh", "-c", script])?;
    let created = container.create()?;
    container.start()?;
    container.wrote("ready")?;
    container.kill(libc::SIGTERM, KillTarget::Init)?;
    let status = end(&created)?;
    demand(status == ExitStatus::Exited(5), || format!("it ended with {status:?}"))
}

fn kill_all(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("kill-all", &["sh", "-c", "sleep 100 & sleep 100 & echo ready; wait"])?;
    let created = container.create()?;
    container.start()?;
    container.wrote("ready")?;
    container.kill(libc::SIGKILL, KillTarget::All)?;
    let status = end(&created)?;
    demand(status == ExitStatus::Signaled(libc::SIGKILL), || format!("it ended with {status:?}"))?;
    container.delete(DeleteMode::Stopped)?;
    container.gone()
}

/// Creates and starts; either may find out.
fn run(container: &Container<'_>) -> Outcome<Error> {
    let failed = match container.create() {
        Err(e) => Some(e),
        Ok(created) => {
            let failed = container.start().err();
            if failed.is_some() {
                end(&created)?;
                container.delete(DeleteMode::Force)?;
            }
            failed
        }
    };
    container.gone()?;
    failed.ok_or_else(|| "nothing failed".into())
}

fn missing_executable(subject: &Subject<'_>) -> Outcome {
    for (case, name) in [("missing", "no-such-program"), ("missing-path", "/no/such/program")] {
        let failed = run(&subject.container(case, &[name])?)?;
        let known = matches!(failed, Error::ExecutableNotFound { .. }) && failed.exit_code() == 127;
        demand(known, || format!("{name}: {failed:?}"))?;
    }
    Ok(())
}

fn not_executable(subject: &Subject<'_>) -> Outcome {
    let failed = run(&subject.container("not-executable", &["/etc/plain"])?)?;
    let known = matches!(failed, Error::NotExecutable { .. }) && failed.exit_code() == 126;
    demand(known, || format!("{failed:?}"))
}

fn duplicate(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("duplicate", &["sleep", "100"])?;
    let created = container.create()?;
    container.start()?;
    match container.create() {
        Err(Error::AlreadyExists { .. }) => {}
        other => return Err(format!("the second of that name: {other:?}").into()),
    }
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn start_twice(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("start-twice", &["sleep", "100"])?;
    let created = container.create()?;
    container.start()?;
    demand(container.start().is_err(), || "it was started twice".to_owned())?;
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn delete_running(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("delete-running", &["sleep", "100"])?;
    let created = container.create()?;
    container.start()?;
    match container.delete(DeleteMode::Stopped) {
        Err(Error::WrongStatus { status: Status::Running, .. }) => {}
        other => return Err(format!("{other:?}").into()),
    }
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    let status = end(&created)?;
    demand(status == ExitStatus::Signaled(libc::SIGKILL), || format!("it ended with {status:?}"))?;
    container.gone()
}

fn delete_created(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("delete-created", &["echo", "started"])?;
    let created = container.create()?;
    container.delete(DeleteMode::Stopped)?;
    end(&created)?;
    demand(container.written()?.is_empty(), || "it ran".to_owned())?;
    container.gone()
}

fn delete_again(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("delete-again", &["echo"])?;
    let created = container.create()?;
    container.start()?;
    end(&created)?;
    container.delete(DeleteMode::Stopped)?;
    match container.delete(DeleteMode::Stopped) {
        Err(Error::NotFound { .. }) => {}
        other => return Err(format!("deleted twice: {other:?}").into()),
    }
    container.delete(DeleteMode::Force)?;
    // The name is free again.
    let created = container.create()?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn kill_stopped(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("kill-stopped", &["echo"])?;
    let created = container.create()?;
    container.start()?;
    end(&created)?;
    match container.kill(libc::SIGTERM, KillTarget::Init) {
        Err(Error::WrongStatus { status: Status::Stopped, .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn unknown(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("unknown", &["echo"])?;
    let attempts = [
        ("start", container.start()),
        ("state", container.status().map(drop)),
        ("kill", container.kill(libc::SIGTERM, KillTarget::Init)),
        ("delete", container.delete(DeleteMode::Stopped)),
    ];
    for (operation, outcome) in attempts {
        demand(matches!(outcome, Err(Error::NotFound { .. })), || format!("{operation}: {outcome:?}"))?;
    }
    Ok(container.delete(DeleteMode::Force)?)
}

fn terminal(subject: &Subject<'_>) -> Outcome {
    let script = "[ -t 0 ] && [ -t 1 ] && echo on $(echo a terminal)";
    let container = subject.container_with("terminal", &["sh", "-c", script], &|spec| {
        spec["process"]["terminal"] = json!(true);
    })?;
    let created = container.runtime.create(&container.id, &container.bundle, &CreateOptions::new(Stdio::Terminal))?;
    let Created { console: Some(console), .. } = &created else {
        return Err("no terminal came".into());
    };
    let mut console = File::from(console.try_clone()?);
    container.start()?;
    let status = end(&created)?;
    demand(status.code() == 0, || format!("it ended with {status:?}: its streams are no terminal"))?;
    let mut text = vec![0; 4096];
    let length = console.read(&mut text)?;
    let text = String::from_utf8_lossy(&text[..length]);
    demand(text.contains("on a terminal\r\n"), || format!("the terminal shows {text:?}"))
}

fn pause(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("pause", &["sh", "-c", "while :; do echo tick; sleep 0.02; done"])?;
    let created = container.create()?;
    container.start()?;
    container.wrote("tick")?;
    match container.runtime.pause(&container.id) {
        // Not every runtime can.
        Err(Error::Unsupported { .. }) => return Ok(()),
        paused => paused?,
    }
    container.expect(Status::Paused)?;
    let before = container.written()?.len();
    std::thread::sleep(Duration::from_millis(150));
    let after = container.written()?.len();
    demand(before == after, || "it goes on while it is paused".to_owned())?;
    container.runtime.resume(&container.id)?;
    container.expect(Status::Running)?;
    let deadline = Instant::now() + PATIENCE;
    while container.written()?.len() == after {
        demand(Instant::now() < deadline, || "it does not go on".to_owned())?;
        std::thread::sleep(Duration::from_millis(5));
    }
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn process(arguments: &[&str]) -> Value {
    json!({ "user": { "uid": 0, "gid": 0 }, "args": arguments, "env": ["PATH=/bin"], "cwd": "/" })
}

fn exec(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec", &["sleep", "100"])?;
    let created = container.running()?;
    let script = "echo pid $$ in $(busybox hostname); [ -e /etc/plain ] && echo root; exit 9";
    let mut added = process(&["sh", "-c", script]);
    added["cwd"] = json!("/etc");
    let added = container.exec(&added)??;
    demand(added.pid != created.pid, || "it is the first process".to_owned())?;
    let status = end(&added)?;
    demand(status == ExitStatus::Exited(9), || format!("it ended with {status:?}"))?;
    container.wrote("in suite")?;
    container.wrote("root")?;
    let written = container.written()?;
    demand(!written.contains("pid 1 "), || format!("it wrote {written:?}: it is the first of a namespace"))?;
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

/// What is named counts; what is not is as for the container.
fn exec_rights(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec-rights", &["sleep", "100"])?;
    let created = container.running()?;
    let look = ["busybox", "grep", "-E", "^(Uid|CapEff|CapInh|NoNewPrivs)", "/proc/self/status"];
    end(&container.exec(&process(&look))??)?;
    let written = container.written()?;
    // CAP_KILL is 5.
    for line in ["CapEff:\t0000000000000020\n", "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n"] {
        demand(written.contains(line), || format!("{line:?} is not in {written:?}"))?;
    }
    fs::write(&container.output, "")?;
    let mut named = process(&look);
    named["user"] = json!({ "uid": 1234, "gid": 5 });
    named["noNewPrivileges"] = json!(false);
    named["capabilities"] = json!({ "bounding": [], "effective": [], "permitted": [] });
    end(&container.exec(&named)??)?;
    let written = container.written()?;
    for line in ["Uid:\t1234\t", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t0\n"] {
        demand(written.contains(line), || format!("{line:?} is not in {written:?}"))?;
    }
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn exec_terminal(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec-terminal", &["sleep", "100"])?;
    let created = container.running()?;
    let mut added = process(&["sh", "-c", "[ -t 0 ] && [ -t 1 ] && echo on $(echo a terminal)"]);
    added["terminal"] = json!(true);
    let added = serde_json::from_value(added)?;
    let added = container.runtime.exec(&container.id, &added, &ExecOptions::new(Stdio::Terminal))?;
    let Created { console: Some(console), .. } = &added else {
        return Err("no terminal came".into());
    };
    let mut console = File::from(console.try_clone()?);
    let status = end(&added)?;
    demand(status.code() == 0, || format!("it ended with {status:?}: its streams are no terminal"))?;
    let mut text = vec![0; 4096];
    let length = console.read(&mut text)?;
    let text = String::from_utf8_lossy(&text[..length]);
    demand(text.contains("on a terminal\r\n"), || format!("the terminal shows {text:?}"))?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn exec_executables(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec-executables", &["sleep", "100"])?;
    let created = container.running()?;
    for (program, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc/plain", 126)] {
        match container.exec(&process(&[program]))? {
            Err(Error::ExecutableNotFound { .. }) if code == 127 => {}
            Err(Error::NotExecutable { .. }) if code == 126 => {}
            other => return Err(format!("{program}: {other:?}").into()),
        }
    }
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn exec_stopped(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec-stopped", &["sleep", "100"])?;
    let added = process(&["echo", "added"]);
    match container.exec(&added)? {
        Err(Error::NotFound { .. }) => {}
        other => return Err(format!("nothing is there: {other:?}").into()),
    }
    let created = container.running()?;
    match container.runtime.pause(&container.id) {
        Err(Error::Unsupported { .. }) => {}
        paused => {
            paused?;
            match container.exec(&added)? {
                Err(Error::WrongStatus { status: Status::Paused, .. }) => {}
                other => return Err(format!("it is paused: {other:?}").into()),
            }
            container.runtime.resume(&container.id)?;
        }
    }
    container.kill(libc::SIGKILL, KillTarget::Init)?;
    end(&created)?;
    match container.exec(&added)? {
        Err(Error::WrongStatus { status: Status::Stopped, .. }) => {}
        other => return Err(format!("it has ended: {other:?}").into()),
    }
    demand(!container.written()?.contains("added"), || "it ran".to_owned())
}

fn exec_ends(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("exec-ends", &["sleep", "100"])?;
    let created = container.running()?;
    let added = container.exec(&process(&["sleep", "100"]))??;
    container.kill(libc::SIGKILL, KillTarget::Init)?;
    let status = end(&added)?;
    demand(status == ExitStatus::Signaled(libc::SIGKILL), || format!("it ended with {status:?}"))?;
    end(&created).map(drop)
}

/// The container can see its own cgroup's files, whatever the version.
fn control(container: &Container<'_>, names: &[&str]) -> Outcome<String> {
    let state = container.runtime.state(&container.id)?;
    let cgroup = crate::Cgroup::of_process(&crate::Hierarchies::detect()?, state.pid)?;
    let texts = cgroup.paths().iter().flat_map(|place| names.iter().map(|name| place.path.join(name)));
    let text = texts.into_iter().find_map(|path| fs::read_to_string(path).ok());
    text.map(|text| text.trim().to_owned()).ok_or_else(|| format!("there is none of {names:?}").into())
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const PIDS: [&str; 1] = ["pids.max"];

fn update(subject: &Subject<'_>) -> Outcome {
    let container = subject.container_with("update", &["sleep", "100"], &|spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    })?;
    let created = container.running()?;
    for (resources, memory, pids) in [
        (json!({ "pids": { "limit": 60 } }), 64 << 20, "60"),
        (json!({ "memory": { "limit": 96 << 20, "swap": 96 << 20 } }), 96 << 20, "60"),
        (json!({ "memory": { "limit": 32 << 20, "swap": 32 << 20 }, "pids": { "limit": 70 } }), 32 << 20, "70"),
        (json!({ "memory": { "limit": 128 << 20, "swap": 128 << 20 } }), 128 << 20, "70"),
    ] {
        container.update(&resources)??;
        let found = (control(&container, &MEMORY)?, control(&container, &PIDS)?);
        demand(found == (memory.to_string(), pids.to_owned()), || format!("after {resources} they are {found:?}"))?;
    }
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn update_refused(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("update-refused", &["sleep", "100"])?;
    demand(matches!(container.update(&json!({}))?, Err(Error::NotFound { .. })), || "nothing is there".to_owned())?;
    let created = container.running()?;
    // The kernel takes no quota below a millisecond.
    let refused = container.update(&json!({ "cpu": { "quota": 5, "period": 100_000 } }))?;
    demand(refused.is_err(), || "a quota that cannot be was taken".to_owned())?;
    container.expect(Status::Running)?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn stats(subject: &Subject<'_>) -> Outcome {
    let script = "sleep 100 & i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo ready; wait";
    let container = subject.container_with("stats", &["sh", "-c", script], &|spec| {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 50 } });
    })?;
    match container.runtime.stats(&container.id) {
        Err(Error::NotFound { .. }) => {}
        other => return Err(format!("nothing is there: {other:?}").into()),
    }
    let created = container.running()?;
    container.wrote("ready")?;
    let stats = container.runtime.stats(&container.id)?;
    let plausible = stats.pids.current == 2
        && stats.pids.limit == Some(50)
        && stats.memory.limit == Some(64 << 20)
        && (1..64 << 20).contains(&stats.memory.usage)
        && (1_000_000..60_000_000_000).contains(&stats.cpu.usage);
    demand(plausible, || format!("{stats:?}"))?;
    container.delete(DeleteMode::Force)?;
    end(&created).map(drop)
}

fn processes(subject: &Subject<'_>) -> Outcome {
    let container = subject.container("processes", &["sh", "-c", "sleep 100 & echo ready; wait"])?;
    let created = container.running()?;
    container.wrote("ready")?;
    let added = container.exec(&process(&["sleep", "100"]))??;
    let pids = container.runtime.processes(&container.id)?;
    let there = pids.contains(&created.pid) && pids.contains(&added.pid) && pids.len() == 3;
    demand(there, || format!("{pids:?} are not {}, its child and {}", created.pid, added.pid))?;
    container.kill(libc::SIGKILL, KillTarget::Init)?;
    end(&added)?;
    end(&created).map(drop)
}
