//! The task: one container, and what the calls of the task API do with it.

mod creation;
mod ending;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use estiba_runtime::oci_spec::runtime::LinuxResources;
use estiba_runtime::{Cgroup, ContainerId, Hierarchies, KillTarget, Runtime};
use serde::de::DeserializeOwned;

use self::creation::runtime_options;
use self::ending::Unwritten;
use crate::arguments::Arguments;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::output::{NAMED, Output};
use crate::process::{self, Ended};
use crate::proto::events::{TaskCreate, TaskDelete, TaskEvent, TaskIo, TaskPaused, TaskResumed, TaskStart};
use crate::proto::{self, Code, Status, TaskStatus};
use crate::publisher::Publisher;
use crate::refusal::refuse;
use crate::runtimes::Runtimes;
use crate::streams::Streams;

/// What a call is answered with.
pub(crate) type Answer<T> = Result<T, Status>;

/// The number of the container's first process.
pub(crate) const FIRST: u64 = 0;

/// How often time is looked at while something waits for time to pass.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// How many clients may be attached to one stream.
const MAX_ATTACHMENTS: usize = 64;

/// One container, from before its creation until after its deletion.
#[derive(Debug)]
pub(crate) struct Task {
    arguments: Arguments,
    /// The shim's folder.
    folder: PathBuf,
    container: Option<Container>,
    /// How the container ended, once it is deleted.
    deleted: Option<Ended>,
    /// The runtimes of the embedding program.
    runtimes: Runtimes,
    /// Tells containerd of what happens, if it is containerd's shim.
    pub(crate) publisher: Option<Publisher>,
    /// How the container ended, as long as that cannot be written.
    unwritten: Option<Unwritten>,
    /// The number of the process that was added last.
    last_process: u64,
    /// The number of the attachment that was made last.
    last_attachment: u64,
    /// The mount namespace that the shim was started in, once it has one of its own.
    home: Option<File>,
    /// The score for when memory runs out that the shim was started with, if it has another now.
    score: Option<String>,
}

/// What exists between `Create` and `Delete`.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) runtime: Box<dyn Runtime>,
    pub(crate) process: process::Process,
    request: proto::CreateTaskRequest,
    stage: Stage,
    /// Whether all processes are frozen.
    paused: bool,
    /// The processes that were added.
    pub(crate) execs: Vec<Exec>,
    /// The configured score for when memory runs out.
    pub(crate) oom_score: Option<i32>,
    /// Whether the end of the first process ends all others.
    own_pids: bool,
    /// The cgroup's path as the configuration has it.
    cgroup: String,
    /// Whether memory is limited.
    limited: bool,
    /// Where the root was attached on the host's side, if it was.
    attached: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Created,
    Started,
    /// Ended, its output handed on, its status on disk.
    Stopped,
}

impl Task {
    pub(crate) fn new(arguments: Arguments, folder: PathBuf, runtimes: Runtimes) -> Self {
        let publisher = arguments
            .events
            .clone()
            .map(|address| Publisher::new(address, arguments.namespace.clone().unwrap_or_default()));
        Self {
            publisher,
            arguments,
            folder,
            container: None,
            deleted: None,
            runtimes,
            unwritten: None,
            last_process: FIRST,
            last_attachment: NAMED,
            home: None,
            score: None,
        }
    }

    pub(crate) fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// All processes with their numbers: [`FIRST`] is the container's first.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (u64, &process::Process)> {
        self.container.iter().flat_map(|container| {
            let added = container.execs.iter().filter_map(|exec| Some((exec.number, exec.process.as_ref()?)));
            std::iter::once((FIRST, &container.process)).chain(added)
        })
    }

    /// A process by its number.
    pub(crate) fn process_mut(&mut self, number: u64) -> Option<&mut process::Process> {
        let container = self.container.as_mut()?;
        if number == FIRST {
            return Some(&mut container.process);
        }
        container.execs.iter_mut().find(|exec| exec.number == number)?.process.as_mut()
    }

    /// Whether the shim is still needed when nobody is connected: a container runs, or its end is not on disk yet.
    pub(crate) fn is_needed(&mut self) -> bool {
        // Somebody may still be reading the last of its output.
        let is_read = |process: &mut process::Process| !process.streams.is_drained() && !process.is_settled();
        self.unwritten.is_some()
            || self.container.as_mut().is_some_and(|container| match container.stage {
                Stage::Created => false,
                Stage::Started => true,
                Stage::Stopped => {
                    let added = container.execs.iter_mut().filter_map(|exec| exec.process.as_mut());
                    std::iter::once(&mut container.process).chain(added).any(is_read)
                }
            })
    }

    /// When something is to be looked at that no descriptor tells of.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let draining = self.processes().any(|(_, process)| process.ended.is_some() && !process.streams.is_drained());
        let retry = self.unwritten.as_ref().map(|unwritten| unwritten.next.saturating_duration_since(Instant::now()));
        draining.then_some(TICK).into_iter().chain(retry).min()
    }

    /// Whether the container runs.
    pub(crate) fn is_started(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.stage == Stage::Started)
    }

    /// Whether `Shutdown` may end the shim.
    pub(crate) fn may_shut_down(&self) -> bool {
        self.container.is_none()
    }

    pub(crate) fn create(&mut self, request: proto::CreateTaskRequest) -> Answer<proto::CreateTaskResponse> {
        self.check_id(&request.id)?;
        if self.container.is_some() || self.deleted.is_some() {
            return Err(refuse(Code::AlreadyExists, format!("container {} already exists", self.arguments.id)));
        }
        for (field, value) in [
            ("checkpoint", &request.checkpoint),
            ("parent_checkpoint", &request.parent_checkpoint),
            ("oom_path", &request.oom_path),
        ] {
            if !value.is_empty() {
                return Err(refuse(Code::Unimplemented, format!("Create: {field} is not supported")));
            }
        }
        let options = runtime_options(request.options.as_ref())?;
        let container = self.create_container(request, &options).map_err(|error| Status::from(&error))?;
        let pid = container.process.pid as u32;
        let given = &container.request;
        let event = TaskCreate {
            container_id: self.arguments.id.to_string(),
            bundle: given.bundle.clone(),
            rootfs: given.rootfs.clone(),
            io: Some(TaskIo {
                stdin: given.stdin.clone(),
                stdout: given.stdout.clone(),
                stderr: given.stderr.clone(),
                terminal: given.terminal,
            }),
            pid,
        };
        self.container = Some(container);
        self.publish(&event);
        Ok(proto::CreateTaskResponse { pid })
    }

    pub(crate) fn start(&mut self, request: &proto::StartRequest) -> Answer<proto::StartResponse> {
        if !request.exec_id.is_empty() {
            return self.start_exec(&request.id, &request.exec_id);
        }
        let id = self.arguments.id.clone();
        let container = self.find(&request.id)?;
        if container.stage != Stage::Created || container.process.ended.is_some() {
            return Err(refuse(Code::FailedPrecondition, format!("container {id} was started before")));
        }
        if let Some(path) = &self.arguments.exit_file
            && let Err(error) = crate::exit::ExitRecord::reserve(path)
        {
            // It is tried again when there is something to write.
            crate::daemon::log(&crate::error::chain(&error));
        }
        let container = self.find(&request.id)?;
        container.process.streams.outputs.iter_mut().for_each(Output::release);
        container.runtime.start(&id).map_err(|source| failed("start", &id, source))?;
        container.stage = Stage::Started;
        let pid = container.process.pid as u32;
        self.publish(&TaskStart { container_id: id.to_string(), pid });
        Ok(proto::StartResponse { pid })
    }

    pub(crate) fn state(&mut self, request: &proto::StateRequest) -> Answer<proto::StateResponse> {
        let folder = self.folder.to_string_lossy().into_owned();
        let container = self.find(&request.id)?;
        let given = &container.request;
        let bundle = if given.bundle.is_empty() { folder } else { given.bundle.clone() };
        let running = if container.paused { TaskStatus::Paused } else { TaskStatus::Running };
        let mut response = if request.exec_id.is_empty() {
            proto::StateResponse {
                pid: container.process.pid as u32,
                status: match container.stage {
                    Stage::Created => TaskStatus::Created,
                    Stage::Started => running,
                    Stage::Stopped => TaskStatus::Stopped,
                } as i32,
                stdin: given.stdin.clone(),
                stdout: given.stdout.clone(),
                stderr: given.stderr.clone(),
                terminal: given.terminal,
                ..proto::StateResponse::default()
            }
        } else {
            self.find(&request.id)?.exec(&request.exec_id)?.state(running)
        };
        let container = self.find(&request.id)?;
        response.id.clone_from(&container.request.id);
        response.bundle = bundle;
        if request.exec_id.is_empty()
            && let Some(ended) = container.ending()
        {
            response.exit_status = ended.status.code() as u32;
            response.exited_at = Some(ended.at.into());
        }
        Ok(response)
    }

    pub(crate) fn kill(&mut self, request: &proto::KillRequest) -> Answer<proto::Empty> {
        let id = self.arguments.id.clone();
        let process = self.process_named(&request.id, &request.exec_id)?;
        if process.ended.is_some() {
            return Err(refuse(Code::NotFound, format!("container {id}: process already finished")));
        }
        let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
        let signal = signal.ok_or_else(|| refuse(Code::InvalidArgument, format!("no signal {}", request.signal)))?;
        if !request.exec_id.is_empty() {
            process.signal(signal).map_err(|error| Status::from(&error))?;
            return Ok(proto::Empty {});
        }
        let target = if request.all { KillTarget::All } else { KillTarget::Init };
        let container = self.find(&request.id)?;
        container.runtime.kill(&id, signal, target).map_err(|source| failed("kill", &id, source))?;
        Ok(proto::Empty {})
    }

    pub(crate) fn resize(&mut self, request: &proto::ResizePtyRequest) -> Answer<proto::Empty> {
        let process = self.process_named(&request.id, &request.exec_id)?;
        let size =
            |value: u32| u16::try_from(value).map_err(|_| refuse(Code::InvalidArgument, format!("size {value}")));
        let (columns, rows) = (size(request.width)?, size(request.height)?);
        match process.resize(columns, rows) {
            Ok(true) => Ok(proto::Empty {}),
            Ok(false) => Err(refuse(Code::FailedPrecondition, "the process has no terminal".to_owned())),
            Err(error) => Err(Status::from(&error)),
        }
    }

    pub(crate) fn close_io(&mut self, request: &proto::CloseIoRequest, scratch: &mut [u8]) -> Answer<proto::Empty> {
        let (streams, _) = self.streams(&request.id, &request.exec_id)?;
        if request.stdin
            && let Some(input) = &mut streams.input
        {
            input.close(scratch);
            if input.is_done() {
                streams.input = None;
            }
        }
        Ok(proto::Empty {})
    }

    /// Connects a client to the streams of a process.
    pub(crate) fn attach(&mut self, request: &proto::AttachRequest) -> Answer<proto::AttachResponse> {
        let attachment = self.last_attachment + 1;
        let (streams, ended) = self.streams(&request.id, &request.exec_id)?;
        if ended {
            return Err(refuse(Code::FailedPrecondition, "the process has ended".to_owned()));
        }
        if streams.attachments() >= MAX_ATTACHMENTS {
            return Err(refuse(Code::ResourceExhausted, "too many clients are attached".to_owned()));
        }
        streams.attach(attachment, request).map_err(|error| Status::from(&error))?;
        self.last_attachment = attachment;
        Ok(proto::AttachResponse { attachment })
    }

    /// Disconnects a client from the streams of a process.
    pub(crate) fn detach(&mut self, request: &proto::DetachRequest, scratch: &mut [u8]) -> Answer<proto::Empty> {
        let (streams, _) = self.streams(&request.id, &request.exec_id)?;
        if request.attachment != NAMED {
            streams.detach(request.attachment, scratch);
        }
        Ok(proto::Empty {})
    }

    /// Freezes all processes, or lets them go on.
    pub(crate) fn set_paused(&mut self, id: &str, paused: bool) -> Answer<proto::Empty> {
        let own = self.arguments.id.clone();
        let container = self.find(id)?;
        let running = container.stage == Stage::Started && container.process.ended.is_none();
        if !running || container.paused == paused {
            let state = match (running, container.paused) {
                (false, _) => "not running",
                (true, true) => "paused already",
                (true, false) => "not paused",
            };
            return Err(refuse(Code::FailedPrecondition, format!("container {own} is {state}")));
        }
        if paused {
            container.runtime.pause(&own).map_err(|source| failed("pause", &own, source))?;
        } else {
            container.runtime.resume(&own).map_err(|source| failed("resume", &own, source))?;
        }
        container.paused = paused;
        let container_id = own.to_string();
        if paused {
            self.publish(&TaskPaused { container_id });
        } else {
            self.publish(&TaskResumed { container_id });
        }
        Ok(proto::Empty {})
    }

    /// Changes limits.
    pub(crate) fn update(&mut self, request: &proto::UpdateTaskRequest) -> Answer<proto::Empty> {
        let id = self.arguments.id.clone();
        let container = self.find(&request.id)?;
        let resources: LinuxResources = from_json(request.resources.as_ref(), "LinuxResources")?;
        container.runtime.update(&id, &resources).map_err(|source| failed("update", &id, source))?;
        container.limited |= resources.memory().is_some();
        Ok(proto::Empty {})
    }

    /// Measures.
    pub(crate) fn stats(&mut self, request: &proto::StatsRequest) -> Answer<proto::StatsResponse> {
        let (id, root) = (self.arguments.id.clone(), self.arguments.cgroup_root.clone());
        let container = self.find(&request.id)?;
        let stats = container.runtime.stats(&id).map_err(|source| failed("measure", &id, source))?;
        let hierarchies = hierarchies(root.as_deref()).map_err(|source| failed("measure", &id, source))?;
        Ok(proto::StatsResponse { stats: Some(crate::measure::pack(&stats, hierarchies.mode())) })
    }

    pub(crate) fn pids(&mut self, request: &proto::PidsRequest) -> Answer<proto::PidsResponse> {
        let id = self.arguments.id.clone();
        let cgroup_root = self.arguments.cgroup_root.clone();
        let container = self.find(&request.id)?;
        let listed = match container.runtime.processes(&id) {
            Err(estiba_runtime::Error::Unsupported { .. }) => {
                container.open_cgroup(cgroup_root.as_deref()).and_then(|cgroup| cgroup.pids())
            }
            listed => listed,
        };
        let pids = match listed {
            // Where no cgroups are mounted there are still those that we know.
            Err(estiba_runtime::Error::CgroupsNotMounted) => {
                let known = self.processes().filter(|(_, process)| process.ended.is_none());
                known.map(|(_, process)| process.pid).collect()
            }
            pids => pids.map_err(|source| failed("list the processes of", &id, source))?,
        };
        let container = self.find(&request.id)?;
        let info = |pid: i32| {
            let exec = container.execs.iter().find(|exec| exec.process.as_ref().is_some_and(|it| it.pid == pid))?;
            Some(proto::Any::pack(&proto::ProcessDetails { exec_id: exec.name().to_owned() }))
        };
        let processes = pids.into_iter().map(|pid| proto::ProcessInfo { pid: pid as u32, info: info(pid) });
        Ok(proto::PidsResponse { processes: processes.collect() })
    }

    /// The answer to `Wait`; `None` as long as the process has not ended.
    pub(crate) fn wait(&mut self, request: &proto::WaitRequest) -> Answer<Option<proto::WaitResponse>> {
        let ended = match self.deleted {
            Some(ended) if request.exec_id.is_empty() => Some(ended),
            _ if request.exec_id.is_empty() => self.find(&request.id)?.ending(),
            _ => self.find(&request.id)?.exec(&request.exec_id)?.ending(),
        };
        Ok(ended.map(|ended| proto::WaitResponse {
            exit_status: ended.status.code() as u32,
            exited_at: Some(ended.at.into()),
        }))
    }

    pub(crate) fn delete(&mut self, request: &proto::DeleteRequest) -> Answer<proto::DeleteResponse> {
        let id = self.arguments.id.clone();
        let container = self.find(&request.id)?;
        let (pid, ended) = if request.exec_id.is_empty() {
            if container.stage == Stage::Started {
                return Err(refuse(Code::FailedPrecondition, format!("container {id} is running: kill it first")));
            }
            let pid = container.process.pid as u32;
            (pid, self.destroy().map_err(|error| Status::from(&error))?)
        } else {
            container.delete_exec(&request.exec_id)?
        };
        let exit_status = ended.map_or(0, |ended| ended.status.code() as u32);
        let exited_at = ended.map(|ended| ended.at.into());
        if request.exec_id.is_empty() {
            self.publish(&TaskDelete { container_id: id.to_string(), pid, exit_status, exited_at, id: String::new() });
        }
        Ok(proto::DeleteResponse { pid, exit_status, exited_at })
    }

    pub(crate) fn connect(&mut self, request: &proto::ConnectRequest) -> Answer<proto::ConnectResponse> {
        self.check_id(&request.id)?;
        Ok(proto::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.container.as_ref().map_or(0, |container| container.process.pid as u32),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Tells containerd of an event, if it is containerd's shim.
    pub(crate) fn publish(&mut self, event: &impl TaskEvent) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(event);
        }
    }

    /// The number of the next process that is added.
    pub(crate) fn next_process(&mut self) -> u64 {
        self.last_process += 1;
        self.last_process
    }

    /// A client has left: what only it knew of is forgotten.
    pub(crate) fn client_left(&mut self, client: u64) {
        if let Some(container) = &mut self.container {
            container.forget_client(client);
        }
    }

    fn check_id(&self, id: &str) -> Answer<()> {
        if id.is_empty() || id == self.arguments.id.as_str() {
            Ok(())
        } else {
            Err(refuse(Code::NotFound, format!("this shim serves container {}, not {id:?}", self.arguments.id)))
        }
    }

    pub(crate) fn find(&mut self, id: &str) -> Answer<&mut Container> {
        self.check_id(id)?;
        let missing = || refuse(Code::NotFound, format!("container {} does not exist", self.arguments.id));
        self.container.as_mut().ok_or_else(missing)
    }

    /// A process that was started, by its name; the empty one is the first.
    fn process_named(&mut self, id: &str, exec_id: &str) -> Answer<&mut process::Process> {
        let container = self.find(id)?;
        if exec_id.is_empty() {
            return Ok(&mut container.process);
        }
        let exec = container.exec(exec_id)?;
        let not_started = || refuse(Code::FailedPrecondition, format!("process {exec_id:?} is not started"));
        exec.process.as_mut().ok_or_else(not_started)
    }

    /// The streams of a process, and whether it has ended.
    fn streams(&mut self, id: &str, exec_id: &str) -> Answer<(&mut Streams, bool)> {
        let container = self.find(id)?;
        if exec_id.is_empty() {
            let process = &mut container.process;
            return Ok((&mut process.streams, process.ended.is_some()));
        }
        container.exec(exec_id)?.streams()
    }
}

impl Container {
    /// The cgroup that the runtime has made.
    fn open_cgroup(&self, root: Option<&Path>) -> estiba_runtime::Result<Cgroup> {
        Cgroup::open(&hierarchies(root)?, &self.cgroup)
    }

    /// Whether a process can be added now, and if not, why.
    pub(crate) fn takes_processes(&self) -> Result<(), &'static str> {
        match self.stage {
            Stage::Created => Err("not started"),
            Stage::Started if self.process.ended.is_some() => Err("ending"),
            Stage::Started if self.paused => Err("paused"),
            Stage::Started => Ok(()),
            Stage::Stopped => Err("stopped"),
        }
    }

    /// How it ended, once that may be told.
    fn ending(&self) -> Option<Ended> {
        self.process.ended.filter(|_| self.stage == Stage::Stopped)
    }
}

fn hierarchies(root: Option<&Path>) -> estiba_runtime::Result<Hierarchies> {
    root.map_or_else(Hierarchies::detect, Hierarchies::at)
}

/// What the runtime answered, as a refusal.
pub(crate) fn failed(operation: &'static str, id: &ContainerId, source: estiba_runtime::Error) -> Status {
    Status::from(&Error::Runtime { operation, id: id.to_string(), source: Box::new(source) })
}

/// Reads a part of the OCI runtime specification, which travels as JSON under a name of its own.
pub(crate) fn from_json<T: DeserializeOwned>(any: Option<&proto::Any>, message: &'static str) -> Answer<T> {
    let Some(any) = any else {
        return Err(refuse(Code::InvalidArgument, format!("no {message} is given")));
    };
    if any.type_url.rsplit('/').next() != Some(message) {
        return Err(refuse(Code::InvalidArgument, format!("{:?} is given instead of {message}", any.type_url)));
    }
    serde_json::from_slice(&any.value)
        .map_err(|source| Status::from(&Error::Message { message, source: Box::new(source) }))
}
