//! Any OCI runtime binary behind the [`Runtime`] trait.

mod call;
mod orphan;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as Standard};
use std::time::Duration;

use self::call::{Call, Scratch};
use oci_spec::runtime::{LinuxResources, Process};

use crate::rights::Rights;
use crate::{
    Bundle, Cgroup, ContainerId, CreateOptions, Created, DeleteMode, Error, ExecOptions, Hierarchies, Keyring,
    KillTarget, Result, Root, RootSwitch, Runtime, State, Stats, Status, Stdio, sys,
};

/// Making a container runs its hooks and may unpack idmapped mounts or labels; everything else is quick.
const CREATE: Duration = Duration::from_secs(120);
const QUICK: Duration = Duration::from_secs(30);

/// An OCI runtime binary with runc's command line: runc, crun, youki, runsc and others.
///
/// Each operation executes the binary with `--root STATE_ROOT --log FILE --log-format json` and waits for it, 30 seconds at most and
/// 120 for `create`; what hangs longer is killed and is an error. What it logs as an error becomes the error's message.
///
/// The container's process is not a child of the calling process: it becomes that of its nearest subreaper
/// ([`PR_SET_CHILD_SUBREAPER`](https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html)), which is who can
/// [`wait`](crate::wait) for it.
///
/// The binary reads `config.json` in the bundle's folder, so it must be there, and the root filesystem must have a path.
#[derive(Clone, Debug)]
pub struct External {
    program: PathBuf,
    state_root: PathBuf,
}

impl External {
    /// The binary at `program` (looked up in `PATH` if it has no slash), with its state in `state_root`, which is made if missing.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, state_root: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), state_root: state_root.into() }
    }

    /// The binary.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn call(&self, operation: &'static str, id: &ContainerId) -> Result<Call<'_>> {
        Call::new(&self.program, &self.state_root, operation, id)
    }

    fn run(&self, operation: &'static str, id: &ContainerId, arguments: &[&str]) -> Result<()> {
        let mut call = self.call(operation, id)?;
        call.command.args(arguments).arg(id.to_string());
        call.run(QUICK).map(drop)
    }
}

impl Runtime for External {
    fn create(&self, id: &ContainerId, bundle: &Bundle, options: &CreateOptions<'_>) -> Result<Created> {
        self.refuse(id, bundle, options)?;
        let mut call = self.call("create", id)?;
        let pid_file = call.scratch.path.join("pid");
        call.command.arg("--bundle").arg(&bundle.path).arg("--pid-file").arg(&pid_file);
        if options.keyring == Keyring::Inherit {
            call.command.arg("--no-new-keyring");
        }
        if options.root_switch == RootSwitch::Chroot {
            call.command.arg("--no-pivot");
        }
        let console = streams(&mut call, options.stdio)?;
        let executable = executable(bundle.spec.process().as_ref());
        call.command.arg(id.to_string());
        let made = call.run(CREATE).map_err(|e| e.about(&executable)).and_then(|_| created(&pid_file, console));
        let made = made.map_err(|error| match error {
            Error::Io { path, source, .. } if path == pid_file && source.kind() == io::ErrorKind::NotFound => {
                let message = "wrote no pid file, as an OCI runtime would: is it one?".to_owned();
                Error::External { program: self.program.clone(), operation: "create", message, status: 0 }
            }
            error => error,
        });
        if made.as_ref().is_err_and(|e| !matches!(e, Error::AlreadyExists { .. })) {
            // What a runtime leaves behind differs; the first error is what counts.
            let _ = self.delete(id, DeleteMode::Force);
        }
        made
    }

    fn start(&self, id: &ContainerId) -> Result<()> {
        self.run("start", id, &[]).map_err(|e| e.about("the container's program"))
    }

    fn state(&self, id: &ContainerId) -> Result<State> {
        let mut call = self.call("state", id)?;
        call.command.arg(id.to_string());
        let output = call.run(QUICK)?;
        serde_json::from_slice(&output).map_err(|source| Error::ParseState {
            path: self.state_root.join(id.to_string()),
            source: Box::new(source),
        })
    }

    fn kill(&self, id: &ContainerId, signal: i32, target: KillTarget) -> Result<()> {
        let mut call = self.call("kill", id)?;
        if target == KillTarget::All {
            call.command.arg("--all");
        }
        call.command.arg(id.to_string()).arg(signal.to_string());
        call.run(QUICK).map(drop)
    }

    fn delete(&self, id: &ContainerId, mode: DeleteMode) -> Result<()> {
        if mode == DeleteMode::Stopped {
            // Not every runtime refuses to delete a container that runs, nor agrees to delete one that was never started.
            let status = self.state(id)?.status;
            match status {
                Status::Stopped => return self.run("delete", id, &[]),
                Status::Created => {}
                Status::Creating | Status::Running | Status::Paused => {
                    return Err(Error::WrongStatus { id: id.clone(), operation: "delete", status });
                }
            }
        }
        match self.run("delete", id, &["--force"]) {
            Err(Error::NotFound { .. }) if mode == DeleteMode::Force => Ok(()),
            other => other,
        }
    }

    /// With `exec --process FILE --detach`: the process becomes a child of the nearest subreaper, as the container's own.
    fn exec(&self, id: &ContainerId, process: &Process, options: &ExecOptions<'_>) -> Result<Created> {
        if !options.preserve_fds.is_empty() {
            return Err(self.unsupported(id, "preserve_fds", "cannot be given further descriptors"));
        }
        check_terminal(process.terminal(), options.stdio)?;
        let mut call = self.call("exec", id)?;
        // Not every binary looks, and one that does not hangs in a paused container.
        let State { status, bundle, .. } = self.state(id)?;
        if !matches!(status, Status::Created | Status::Running) {
            return Err(Error::WrongStatus { id: id.clone(), operation: "add a process to", status });
        }
        let complete;
        let process = if Rights::are_named(process) {
            process
        } else {
            // Binaries differ in what they take for said.
            let bundle = Bundle::load(bundle)?;
            complete = bundle.spec.process().as_ref().map(Rights::of).unwrap_or_default().complete(process);
            &complete
        };
        let (pid_file, file) = (call.scratch.path.join("pid"), call.scratch.path.join("process.json"));
        write_json(&file, process)?;
        call.command.arg("--detach").arg("--process").arg(&file).arg("--pid-file").arg(&pid_file);
        let console = streams(&mut call, options.stdio)?;
        call.command.arg(id.to_string());
        let made = call.run(CREATE).map_err(|e| e.about(&executable(Some(process))));
        if made.is_err() {
            orphan::reap(&self.program);
        }
        made?;
        created(&pid_file, console)
    }

    /// With `update --resources FILE`, which knows memory, processor, processes, the weight of block devices, and files of version 2;
    /// anything else would be ignored by some binaries and is refused.
    fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        let io = resources.block_io().as_ref();
        let throttled = io.is_some_and(|io| {
            let lists = [
                io.throttle_read_bps_device(),
                io.throttle_write_bps_device(),
                io.throttle_read_iops_device(),
                io.throttle_write_iops_device(),
            ];
            lists.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
                || io.weight_device().as_ref().is_some_and(|list| !list.is_empty())
        });
        let refused = [
            ("linux.resources.devices", resources.devices().as_ref().is_some_and(|list| !list.is_empty())),
            (
                "linux.resources.hugepageLimits",
                resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty()),
            ),
            ("linux.resources.network", resources.network().is_some()),
            ("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|list| !list.is_empty())),
            ("linux.resources.blockIO", throttled),
        ];
        if let Some((field, _)) = refused.iter().find(|(_, named)| *named) {
            return Err(self.unsupported(id, field, "cannot change it in a container that is there"));
        }
        let mut call = self.call("update", id)?;
        let file = call.scratch.path.join("resources.json");
        write_json(&file, resources)?;
        call.command.arg("--resources").arg(&file).arg(id.to_string());
        call.run(QUICK).map(drop)
    }

    /// From the cgroup that the first process is in, since not every binary tells.
    fn stats(&self, id: &ContainerId) -> Result<Stats> {
        let state = self.state(id)?;
        if state.pid <= 0 || state.status == Status::Stopped {
            return Err(Error::WrongStatus { id: id.clone(), operation: "measure", status: state.status });
        }
        Cgroup::of_process(&Hierarchies::detect()?, state.pid)?.stats()
    }

    fn processes(&self, id: &ContainerId) -> Result<Vec<i32>> {
        let mut call = self.call("ps", id)?;
        call.command.args(["--format", "json"]).arg(id.to_string());
        let output = call.run(QUICK)?;
        // Go's empty list is null.
        let pids: Option<Vec<i32>> = serde_json::from_slice(&output).map_err(|source| Error::ParseState {
            path: self.state_root.join(id.to_string()),
            source: Box::new(source),
        })?;
        let mut pids = pids.unwrap_or_default();
        pids.sort_unstable();
        Ok(pids)
    }

    fn pause(&self, id: &ContainerId) -> Result<()> {
        self.run("pause", id, &[])
    }

    fn resume(&self, id: &ContainerId) -> Result<()> {
        self.run("resume", id, &[])
    }
}

impl External {
    /// What a binary that reads `config.json` cannot be given.
    fn refuse(&self, id: &ContainerId, bundle: &Bundle, options: &CreateOptions<'_>) -> Result<()> {
        let refuse = |field, reason| Err(self.unsupported(id, field, reason));
        if matches!(bundle.root, Root::Detached(_)) {
            return refuse("root", "needs the root filesystem at a path");
        }
        if options.cgroup_root.is_some() {
            return refuse("cgroup_root", "finds the cgroup hierarchies itself");
        }
        if !options.preserve_fds.is_empty() {
            return refuse("preserve_fds", "cannot be given further descriptors");
        }
        check_terminal(bundle.spec.process().as_ref().and_then(Process::terminal), options.stdio)
    }

    fn unsupported(&self, id: &ContainerId, field: &str, reason: &str) -> Error {
        Error::UnsupportedField {
            field: field.to_owned(),
            reason: format!("{}, an external runtime, {reason} (container {id})", self.program.display()),
        }
    }
}

fn check_terminal(terminal: Option<bool>, stdio: Stdio<'_>) -> Result<()> {
    let terminal = terminal == Some(true);
    if terminal == matches!(stdio, Stdio::Terminal) {
        return Ok(());
    }
    Err(Error::InvalidSpec {
        field: "process.terminal".to_owned(),
        reason: format!("is {terminal}, and the streams are given otherwise"),
    })
}

/// Gives the binary the streams that it hands on, or a place to send the terminal to.
fn streams(call: &mut Call<'_>, stdio: Stdio<'_>) -> Result<Option<Console>> {
    match stdio {
        Stdio::Fds { stdin, stdout, stderr } => {
            let copy = |fd: std::os::fd::BorrowedFd<'_>| {
                let copied = fd.try_clone_to_owned().map(Standard::from);
                copied.map_err(|source| Error::System { operation: "copy a descriptor", source })
            };
            // The container inherits them, and the runtime's own complaints go there, too; the log has them as well.
            call.command.stdin(copy(stdin)?).stdout(copy(stdout)?).stderr(copy(stderr)?);
            Ok(None)
        }
        Stdio::Terminal => {
            let console = call.scratch.console()?;
            call.command.arg("--console-socket").arg(&console.path);
            Ok(Some(console))
        }
    }
}

/// What the binary has made, by the file that it wrote.
fn created(pid_file: &Path, console: Option<Console>) -> Result<Created> {
    let pid = pid(pid_file)?;
    let pidfd = sys::process::pidfd_open(pid).map_err(|errno| Error::System {
        operation: "open the container's process",
        source: io::Error::from_raw_os_error(errno),
    })?;
    let console = console.map(Console::receive).transpose()?;
    Ok(Created { pid, pidfd, console })
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let io = |source| Error::Io { operation: "write", path: path.to_owned(), source };
    let text = serde_json::to_vec(value).map_err(|error| io(error.into()))?;
    fs::write(path, text).map_err(io)
}

/// The program that is to be executed, for errors about it.
fn executable(process: Option<&Process>) -> String {
    let arguments = process.and_then(|p| p.args().as_ref());
    arguments.and_then(|a| a.first().cloned()).unwrap_or_default()
}

fn pid(file: &Path) -> Result<i32> {
    let io = |source| Error::Io { operation: "read", path: file.to_owned(), source };
    let text = fs::read_to_string(file).map_err(io)?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io(io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is not a pid", text.trim())))),
    }
}

/// The socket on which the runtime sends the controlling side of the container's terminal.
#[derive(Debug)]
struct Console {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Scratch {
    fn console(&self) -> Result<Console> {
        let path = self.path.join("console");
        let bound = self.reachable(&path).and_then(|path| {
            let listener = std::os::unix::net::UnixListener::bind(&path)?;
            // The runtime has sent it before it ends: there is nothing to wait for.
            listener.set_nonblocking(true)?;
            Ok(Console { listener, path })
        });
        bound.map_err(|source| Error::Io { operation: "listen on", path, source })
    }
}

impl Console {
    fn receive(self) -> Result<OwnedFd> {
        use std::os::fd::AsFd;
        let io = |source| Error::Io { operation: "receive the terminal from", path: self.path.clone(), source };
        let (stream, _) = self.listener.accept().map_err(io)?;
        let mut name = [0; 4096];
        let (_, fd) =
            sys::socket::receive(stream.as_fd(), &mut name).map_err(|e| io(io::Error::from_raw_os_error(e)))?;
        let terminal = fd.ok_or_else(|| io(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came")))?;
        if rustix::termios::isatty(&terminal) {
            return Ok(terminal);
        }
        Err(io(io::Error::new(io::ErrorKind::InvalidData, "what came is not a terminal")))
    }
}

/// Executes nothing yet: the arguments that go before the operation.
fn command(program: &Path, state_root: &Path, log: &Path, operation: &str) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(state_root).arg("--log").arg(log).args(["--log-format", "json"]).arg(operation);
    command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null());
    command
}
