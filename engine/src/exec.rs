//! Further processes in a container that runs.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use estiba_shim::proto;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder, Process as Spec, UserBuilder};
use tokio::net::unix::pipe;

use crate::bundle;
use crate::connection::{Blocking, Waited, Waiter};
use crate::container::{Container, TYPES};
use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::journal::Event;
use crate::process::Process;
use crate::record::{Record, Status};
use crate::spec;
use crate::streams::{ATTACH, Fifos, Streams};
use crate::user;

/// A process to be added to a container. What is not said is as with the container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecRequest {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, over the container's.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `UID[:GID]` or `NAME[:GROUP]`.
    pub user: Option<String>,
    /// A terminal is allocated for it.
    pub tty: bool,
    /// The terminal's first size: columns and rows.
    pub console_size: Option<(u16, u16)>,
    /// Standard input is connected; without it the process reads from `/dev/null`.
    pub interactive: bool,
    /// It has all capabilities, whatever the container's are.
    pub privileged: bool,
}

/// A process that was added to a container, with the ends of the standard streams that were asked for.
///
/// Dropping it leaves the process running.
#[derive(Debug)]
pub struct Exec {
    /// Standard input, if the request was interactive. Dropping it is the end of the process's input.
    pub stdin: Option<pipe::Sender>,
    /// Standard output; of a process with a terminal, all of its output.
    pub stdout: Option<pipe::Receiver>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<pipe::Receiver>,
    process: Process,
    pid: u32,
}

impl Container {
    /// Adds a process to the container, which runs.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`], [`Error::Paused`]; [`Error::exit_code`] is 127 if the program is not there and 126 if it cannot be
    /// executed.
    pub async fn exec(&self, request: ExecRequest, streams: Streams) -> Result<Exec> {
        let engine = self.engine.clone();
        let caller = Waiter::default();
        let waited = caller.waited();
        let exec = self.with(move |_, id| start(&engine, id, &request, streams, &waited)).await;
        caller.done();
        exec
    }
}

/// Adds a process. Blocks.
fn start(engine: &Engine, id: &Id, request: &ExecRequest, streams: Streams, waited: &Waited) -> Result<Exec> {
    let inner = &*engine.inner;
    let gone = || Error::NotRunning { id: id.clone() };
    let shim = |operation| move |source| Error::Shim { operation, id: id.clone(), source: Box::new(source) };
    let bundle = inner.records.bundle(id);
    let socket = |source| Error::Io { operation: "use the socket of", path: bundle.clone(), source };
    let (interactive, tty) = (request.interactive, request.tty);
    // Nobody removes it meanwhile.
    let (lock, record) = inner.lock(id)?;
    match inner.records.status(&record)? {
        Status::Running => {}
        Status::Paused => return Err(Error::Paused { id: id.clone() }),
        _ => return Err(gone()),
    }
    let spec = inner.process_of(&record, request)?;
    let fifos = Fifos::make(&bundle, streams.of(interactive, tty))?;
    let exec_id = Id::random()?.to_string();
    let words = request.command.join(" ");
    let event = |action: &str| told(&record, &format!("{action}: {words}"), &exec_id);
    inner.tell(&[event("exec_create"), event("exec_start")]);
    drop(lock);
    let connect = || inner.connect(id)?.map(Blocking::new).ok_or_else(gone);
    let (mut control, waiting) = (connect()?, connect()?);
    waited.watch(&control).map_err(socket)?;
    let add = proto::ExecProcessRequest {
        id: id.to_string(),
        exec_id: exec_id.clone(),
        terminal: tty,
        stdin: if interactive { ATTACH.to_owned() } else { String::new() },
        stdout: if streams.stdout { ATTACH.to_owned() } else { String::new() },
        stderr: if streams.stderr && !tty { ATTACH.to_owned() } else { String::new() },
        spec: Some(proto::Any { type_url: format!("{TYPES}Process"), value: spec }),
    };
    // Both calls at once: the second fails if the first does.
    let added = control.send(&add).map_err(shim("add a process to"))?;
    let attach = fifos.call(&record, exec_id.clone(), true);
    let attached = attach.map(|attach| control.send(&attach)).transpose().map_err(shim("attach to"))?;
    control.answer(&added).map_err(shim("add a process to"))?;
    let attached = attached.map(|attached| control.answer(&attached)).transpose().map_err(shim("attach to"))?;
    let ends = fifos.ends()?;
    let start = proto::StartRequest { id: id.to_string(), exec_id: exec_id.clone() };
    let pid = match control.call(&start) {
        Ok(answer) => answer.pid,
        Err(source) => {
            let _ = control.call(&proto::DeleteRequest { id: id.to_string(), exec_id });
            return Err(shim("execute the program in")(source));
        }
    };
    let (control, waiting) = (control.into_async().map_err(socket)?, waiting.into_async().map_err(socket)?);
    let process = Process::new(engine.clone(), record, exec_id, control, waiting);
    let process = process.attached(attached.map(|answer| answer.attachment));
    Ok(Exec { stdin: ends.stdin, stdout: ends.stdout, stderr: ends.stderr, process, pid })
}

impl Exec {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.process.exec_id
    }

    /// Its number, as the host sees it, when it was started.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, and returns its status as a shell has it. All of its output has been written by then, and
    /// waits in the pipes.
    pub async fn wait(&self) -> Result<i32> {
        self.process.wait().await
    }

    /// Sends it a signal.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.process.kill(signal).await
    }

    /// Sets the size of its terminal, in characters.
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.process.resize(width, height).await
    }

    /// Leaves it running without an end of its input.
    pub async fn detach(self) -> Result<()> {
        self.process.detach().await
    }

    /// Forgets the process, which has ended with `status`.
    pub async fn finish(self, status: i32) -> Result<()> {
        let (record, exec_id) = (self.process.record.clone(), self.process.exec_id.clone());
        let engine = self.process.engine.clone();
        let (control, _waiting) = self.process.into_blocking();
        let caller = Waiter::default();
        let waited = caller.waited();
        let finished = engine
            .blocking(move |inner| {
                if let Some(mut control) = control {
                    let folder = inner.records.bundle(&record.id);
                    waited.watch(&control).map_err(Error::io("use the socket of", folder))?;
                    // Somebody else may have done it, or the shim has gone.
                    let _ = control.call(&proto::DeleteRequest { id: record.id.to_string(), exec_id: exec_id.clone() });
                }
                inner.tell(&[told(&record, "exec_die", &exec_id).with("exitCode", &status)]);
                Ok(())
            })
            .await;
        caller.done();
        finished
    }
}

fn told(record: &Record, action: &str, exec_id: &str) -> Event {
    record.event(action).with("execID", exec_id)
}

impl Inner {
    /// The process in the words of the specification, from the container's own.
    fn process_of(&self, record: &Record, request: &ExecRequest) -> Result<Vec<u8>> {
        let path = self.records.bundle(&record.id).join("config.json");
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |source: serde_json::Error| Error::Damaged { path: path.clone(), source: source.into() };
        let config: oci_spec::runtime::Spec = serde_json::from_slice(&bytes).map_err(damaged)?;
        let mut process: Spec = config.process().clone().unwrap_or_default();
        if request.command.is_empty() {
            let (value, reason) = (String::new(), "give a program to execute");
            return Err(Error::Request { field: "the command", value, reason });
        }
        process.set_args(Some(request.command.clone()));
        let mut env = process.env().clone().unwrap_or_default();
        if request.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        spec::set_variables(&mut env, &request.env);
        process.set_env(Some(env));
        if let Some(workdir) = &request.workdir {
            if !workdir.starts_with('/') {
                let (field, reason) = ("the working directory", "it must be an absolute path");
                return Err(Error::Request { field, value: workdir.clone(), reason });
            }
            process.set_cwd(workdir.into());
        }
        process.set_terminal(Some(request.tty));
        process.set_console_size(None);
        if let Some((width, height)) = request.console_size.filter(|_| request.tty) {
            let size = oci_spec::runtime::BoxBuilder::default().width(width).height(height).build();
            process.set_console_size(Some(spec::built("process.consoleSize", size)?));
        }
        if let Some(wanted) = &request.user {
            let root = Root::open(record)?;
            let identity = user::resolve(wanted, &root.read("etc/passwd"), &root.read("etc/group"))?;
            let user = UserBuilder::default().uid(identity.uid).gid(identity.gid).additional_gids(identity.groups);
            process.set_user(spec::built("process.user", user.build())?);
        }
        let bounding: HashSet<Capability> = if request.privileged {
            spec::all_capabilities().into_iter().collect()
        } else {
            process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).unwrap_or_default()
        };
        let held = if process.user().uid() == 0 { bounding.clone() } else { HashSet::new() };
        let sets = LinuxCapabilitiesBuilder::default()
            .bounding(bounding)
            .effective(held.clone())
            .permitted(held)
            .inheritable(HashSet::new())
            .ambient(HashSet::new())
            .build();
        process.set_capabilities(Some(spec::built("process.capabilities", sets)?));
        serde_json::to_vec(&process).map_err(|source| Error::Spec { field: "process", source: source.into() })
    }
}

/// The root of a container that runs, as its first process sees it.
#[derive(Debug)]
pub(crate) struct Root {
    folder: File,
}

impl Root {
    /// By the number of the container's first process. A shim may live for longer than that, and then the number may be another
    /// process's by now: only one in the container's cgroup is the container's.
    pub(crate) fn open(record: &Record) -> Result<Self> {
        let gone = || Error::NotRunning { id: record.id.clone() };
        // What is found in this folder is of this one process, also when its number is given to another one.
        let process = File::open(format!("/proc/{}", record.pid)).map_err(|_| gone())?;
        let open = |name: &str, flags: OFlag| {
            openat(&process, name, flags | OFlag::O_CLOEXEC, Mode::empty()).map(File::from).map_err(|_| gone())
        };
        let mut groups = String::new();
        open("cgroup", OFlag::O_RDONLY)?.read_to_string(&mut groups).map_err(|_| gone())?;
        if !is_in_cgroup(&groups, record.id.as_str()) {
            return Err(gone());
        }
        let folder = open("root", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(Self { folder })
    }

    /// The folder, opened with `O_PATH`.
    pub(crate) fn folder(&self) -> &File {
        &self.folder
    }

    /// A file of the container, bounded; empty if it is not there or not a text.
    fn read(&self, path: &str) -> String {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let place = openat2(&self.folder, Path::new(path), how).map(File::from);
        place.map(|place| bundle::text_of(&place)).unwrap_or_default()
    }
}

/// Whether one of the cgroups in the text of `/proc/PID/cgroup` is a container's: it has the container's id in its path.
fn is_in_cgroup(groups: &str, id: &str) -> bool {
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| path.contains(id))
}

#[cfg(test)]
mod tests {
    use super::is_in_cgroup;

    #[test]
    fn a_process_is_known_by_its_cgroup() {
        let groups = "5:pids:/estiba/0123/own\n1:name=systemd:/\n0::/\n";
        assert!(is_in_cgroup(groups, "0123"));
        assert!(!is_in_cgroup(groups, "4567"));
        assert!(is_in_cgroup("0::/machine.slice/estiba-0123.scope\n", "0123"));
        assert!(!is_in_cgroup("0::/user.slice\n", "0123"));
        assert!(!is_in_cgroup("", "0123"));
    }
}
