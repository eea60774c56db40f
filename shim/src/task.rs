//! The task: one container, and what the calls of the task API do with it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use estiba_runtime::oci_spec::runtime::{LinuxNamespaceType, Mount, Process, Spec};
use estiba_runtime::{
    Bundle, Cgroup, CreateOptions, DeleteMode, ExitStatus, External, Hierarchies, Keyring, KillTarget, Native, Root,
    RootSwitch, Runtime, mount,
};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use crate::arguments::Arguments;
use crate::daemon::log;
use crate::error::{Error, Result, chain};
use crate::exit::ExitRecord;
use crate::process::{self, Ended, Streams};
use crate::proto::{self, Code, RuncOptions, Status, TaskStatus};
use crate::refusal::refuse;

type Answer<T> = Result<T, Status>;

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Whom the kernel ends when memory runs out:
/// [proc_pid_oom_score_adj(5)](https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// One container, from before its creation until after its deletion.
#[derive(Debug)]
pub(crate) struct Task {
    arguments: Arguments,
    /// The shim's folder.
    folder: PathBuf,
    container: Option<Container>,
    /// How the container ended, once it is deleted.
    deleted: Option<Ended>,
    /// The mount namespace that the shim was started in, once it has one of its own.
    home: Option<File>,
    /// The score for when memory runs out that the shim was started with, if it has another now.
    score: Option<String>,
}

/// What exists between `Create` and `Delete`.
#[derive(Debug)]
struct Container {
    runtime: Box<dyn Runtime>,
    process: process::Process,
    request: proto::CreateTaskRequest,
    stage: Stage,
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
    pub(crate) fn new(arguments: Arguments, folder: PathBuf) -> Self {
        Self { arguments, folder, container: None, deleted: None, home: None, score: None }
    }

    pub(crate) fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// The first process, if there is a container.
    pub(crate) fn process(&self) -> Option<&process::Process> {
        self.container.as_ref().map(|container| &container.process)
    }

    pub(crate) fn process_mut(&mut self) -> Option<&mut process::Process> {
        self.container.as_mut().map(|container| &mut container.process)
    }

    /// Whether the shim is still needed when nobody is connected: a container runs, or its end is not on disk yet.
    pub(crate) fn is_needed(&mut self) -> bool {
        self.container.as_mut().is_some_and(|container| match container.stage {
            Stage::Created => false,
            Stage::Started => true,
            // Somebody may still be reading the last of its output.
            Stage::Stopped => !container.process.is_drained() && !container.process.is_settled(),
        })
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
        self.container = Some(container);
        Ok(proto::CreateTaskResponse { pid })
    }

    fn create_container(&mut self, request: proto::CreateTaskRequest, options: &RuncOptions) -> Result<Container> {
        let id = self.arguments.id.clone();
        let failed = |source: estiba_runtime::Error| Error::Runtime {
            operation: "create",
            id: id.to_string(),
            source: Box::new(source),
        };
        let folder = if request.bundle.is_empty() { self.folder.clone() } else { PathBuf::from(&request.bundle) };
        let mut bundle = Bundle::load(&folder).map_err(failed)?;
        let wants_terminal = bundle.spec.process().as_ref().and_then(Process::terminal).unwrap_or(false);
        if wants_terminal != request.terminal {
            let reason = "terminal differs between the request and process.terminal in config.json";
            return Err(Error::Request { reason });
        }
        let streams = Streams::open(&request)?;
        let state_root =
            if options.root.is_empty() { self.folder.join("runtime") } else { PathBuf::from(&options.root) };
        let runtime: Box<dyn Runtime> = if options.binary_name.is_empty() {
            Box::new(Native::new(state_root))
        } else {
            Box::new(External::new(&options.binary_name, state_root))
        };
        let attached = self.mount_root(&mut bundle, &request.rootfs, options)?;
        let mut wishes = CreateOptions::new(streams.for_runtime());
        wishes.cgroup_root.clone_from(&self.arguments.cgroup_root);
        if options.no_new_keyring {
            wishes.keyring = Keyring::Inherit;
        }
        if options.no_pivot_root {
            wishes.root_switch = RootSwitch::Chroot;
        }
        if bundle.spec.process().as_ref().is_some_and(|process| process.oom_score_adj().is_some()) {
            // Else the container would inherit what is for the shim alone.
            self.protect();
        }
        let created = runtime.create(&self.arguments.id, &bundle, &wishes).map_err(failed);
        let process = created.and_then(|created| {
            // The container has its own ends of the streams; ours of them go with `streams`.
            process::Process::new(created, streams).inspect_err(|_| {
                let _ = runtime.delete(&self.arguments.id, DeleteMode::Force);
            })
        });
        match process {
            Ok(process) => {
                let linux = bundle.spec.linux().as_ref();
                let path = linux.and_then(|linux| linux.cgroups_path().as_deref()).and_then(Path::to_str);
                let cgroup = path.filter(|path| !path.is_empty()).map_or_else(|| format!("/{id}"), str::to_owned);
                let resources = linux.and_then(|linux| linux.resources().as_ref());
                let limited = resources.is_some_and(|resources| resources.memory().is_some());
                let own_pids = has_own_pids(&bundle.spec);
                let stage = Stage::Created;
                Ok(Container { runtime, process, request, stage, own_pids, cgroup, limited, attached })
            }
            Err(error) => {
                detach(attached.as_deref());
                Err(error)
            }
        }
    }

    /// Mounts the container's root: attached nowhere for our own runtime; for others, which want a path, at the bundle's root in a
    /// mount namespace of the shim's own. Returns where it is attached.
    fn mount_root(
        &mut self,
        bundle: &mut Bundle,
        mounts: &[proto::Mount],
        options: &RuncOptions,
    ) -> Result<Option<PathBuf>> {
        if mounts.is_empty() {
            return Ok(None);
        }
        let id = self.arguments.id.to_string();
        let failed =
            |source| Error::Runtime { operation: "mount the root of", id: id.clone(), source: Box::new(source) };
        let mounts: Vec<Mount> = mounts.iter().map(to_oci).collect();
        if options.binary_name.is_empty() {
            bundle.root = Root::Detached(mount::Tree::new(&mounts).map_err(failed)?);
            return Ok(None);
        }
        let Root::Path(target) = &bundle.root else { return Ok(None) };
        let target = target.clone();
        std::fs::create_dir_all(&target).map_err(|error| Error::file("create", &target, error))?;
        self.leave_home()?;
        mount::attach(&mounts, &target).map_err(failed)?;
        Ok(Some(target))
    }

    /// Asks the kernel to take others when memory runs out: the shim has little to give, and its end would orphan a container.
    /// Refused without `CAP_SYS_RESOURCE`; then nothing changes.
    fn protect(&mut self) {
        if self.score.is_none()
            && let Ok(score) = std::fs::read_to_string(OOM_SCORE)
            && std::fs::write(OOM_SCORE, "-999").is_ok()
        {
            self.score = Some(score);
        }
    }

    /// Moves the shim into a mount namespace of its own, whose mounts the host does not see.
    fn leave_home(&mut self) -> Result<()> {
        if self.home.is_some() {
            return Ok(());
        }
        let path = "/proc/self/ns/mnt";
        let home = File::open(path).map_err(|error| Error::file("open", path, error))?;
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|error| Error::system("unshare the mounts", error))?;
        self.home = Some(home);
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .map_err(|error| Error::system("keep our mounts from the host", error))
    }

    /// Makes the shim again what it was when it was started, for the exit command.
    pub(crate) fn return_home(&mut self) {
        if let Some(score) = self.score.take() {
            let _ = std::fs::write(OOM_SCORE, score);
        }
        if let Some(home) = self.home.take()
            && let Err(error) = nix::sched::setns(home, CloneFlags::CLONE_NEWNS)
        {
            log(&format!("cannot return to the first mount namespace: {error}"));
        }
    }

    pub(crate) fn start(&mut self, request: &proto::StartRequest) -> Answer<proto::StartResponse> {
        let id = self.arguments.id.clone();
        let container = self.find(&request.id, &request.exec_id)?;
        if container.stage != Stage::Created || container.process.ended.is_some() {
            return Err(refuse(Code::FailedPrecondition, format!("container {id} was started before")));
        }
        container.process.outputs.iter_mut().for_each(crate::pump::Output::release);
        let started = container.runtime.start(&id);
        started.map_err(|source| {
            Status::from(&Error::Runtime { operation: "start", id: id.to_string(), source: Box::new(source) })
        })?;
        container.stage = Stage::Started;
        Ok(proto::StartResponse { pid: container.process.pid as u32 })
    }

    pub(crate) fn state(&mut self, request: &proto::StateRequest) -> Answer<proto::StateResponse> {
        let bundle = self.folder.to_string_lossy().into_owned();
        let container = self.find(&request.id, &request.exec_id)?;
        let given = &container.request;
        let mut response = proto::StateResponse {
            id: given.id.clone(),
            bundle: if given.bundle.is_empty() { bundle } else { given.bundle.clone() },
            pid: container.process.pid as u32,
            status: match container.stage {
                Stage::Created => TaskStatus::Created,
                Stage::Started => TaskStatus::Running,
                Stage::Stopped => TaskStatus::Stopped,
            } as i32,
            stdin: given.stdin.clone(),
            stdout: given.stdout.clone(),
            stderr: given.stderr.clone(),
            terminal: given.terminal,
            ..proto::StateResponse::default()
        };
        if let (Stage::Stopped, Some(ended)) = (container.stage, &container.process.ended) {
            response.exit_status = ended.status.code() as u32;
            response.exited_at = Some(ended.at.into());
        }
        Ok(response)
    }

    pub(crate) fn kill(&mut self, request: &proto::KillRequest) -> Answer<proto::Empty> {
        let id = self.arguments.id.clone();
        let container = self.find(&request.id, &request.exec_id)?;
        if container.process.ended.is_some() {
            return Err(refuse(Code::NotFound, format!("container {id}: process already finished")));
        }
        let signal = i32::try_from(request.signal).ok().filter(|signal| (1..=64).contains(signal));
        let signal = signal.ok_or_else(|| refuse(Code::InvalidArgument, format!("no signal {}", request.signal)))?;
        let target = if request.all { KillTarget::All } else { KillTarget::Init };
        let killed = container.runtime.kill(&id, signal, target);
        killed.map_err(|source| {
            Status::from(&Error::Runtime { operation: "kill", id: id.to_string(), source: Box::new(source) })
        })?;
        Ok(proto::Empty {})
    }

    pub(crate) fn resize(&mut self, request: &proto::ResizePtyRequest) -> Answer<proto::Empty> {
        let container = self.find(&request.id, &request.exec_id)?;
        let size =
            |value: u32| u16::try_from(value).map_err(|_| refuse(Code::InvalidArgument, format!("size {value}")));
        let (columns, rows) = (size(request.width)?, size(request.height)?);
        match container.process.resize(columns, rows) {
            Ok(true) => Ok(proto::Empty {}),
            Ok(false) => Err(refuse(Code::FailedPrecondition, "the container has no terminal".to_owned())),
            Err(error) => Err(Status::from(&error)),
        }
    }

    pub(crate) fn close_io(&mut self, request: &proto::CloseIoRequest, scratch: &mut [u8]) -> Answer<proto::Empty> {
        let container = self.find(&request.id, &request.exec_id)?;
        if request.stdin
            && let Some(input) = &mut container.process.input
        {
            input.close(scratch);
        }
        Ok(proto::Empty {})
    }

    pub(crate) fn pids(&mut self, request: &proto::PidsRequest) -> Answer<proto::PidsResponse> {
        let cgroup_root = self.arguments.cgroup_root.clone();
        let container = self.find(&request.id, "")?;
        let first = if container.process.ended.is_some() { None } else { Some(container.process.pid) };
        let pids = match container.open_cgroup(cgroup_root.as_deref()).and_then(|cgroup| cgroup.pids()) {
            // Where no cgroups are mounted there is still the first.
            Err(estiba_runtime::Error::CgroupsNotMounted) => first.into_iter().collect(),
            pids => pids.map_err(|source| {
                let id = container.request.id.clone();
                Status::from(&Error::Runtime { operation: "list the processes of", id, source: Box::new(source) })
            })?,
        };
        let processes = pids.into_iter().map(|pid| proto::ProcessInfo { pid: pid as u32, info: None });
        Ok(proto::PidsResponse { processes: processes.collect() })
    }

    /// The answer to `Wait`; `None` as long as the process has not ended.
    pub(crate) fn wait(&mut self, request: &proto::WaitRequest) -> Answer<Option<proto::WaitResponse>> {
        let ended = match self.deleted {
            Some(ended) => Some(ended),
            None => self.find(&request.id, &request.exec_id)?.ending(),
        };
        Ok(ended.map(|ended| proto::WaitResponse {
            exit_status: ended.status.code() as u32,
            exited_at: Some(ended.at.into()),
        }))
    }

    pub(crate) fn delete(&mut self, request: &proto::DeleteRequest) -> Answer<proto::DeleteResponse> {
        let id = self.arguments.id.clone();
        let container = self.find(&request.id, &request.exec_id)?;
        if container.stage == Stage::Started {
            return Err(refuse(Code::FailedPrecondition, format!("container {id} is running: kill it first")));
        }
        let pid = container.process.pid as u32;
        let ended = self.destroy().map_err(|error| Status::from(&error))?;
        Ok(proto::DeleteResponse {
            pid,
            exit_status: ended.map_or(0, |ended| ended.status.code() as u32),
            exited_at: ended.map(|ended| ended.at.into()),
        })
    }

    pub(crate) fn connect(&mut self, request: &proto::ConnectRequest) -> Answer<proto::ConnectResponse> {
        self.check_id(&request.id)?;
        Ok(proto::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.process().map_or(0, |process| process.pid as u32),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Takes note of the process's end, if it has ended.
    pub(crate) fn notice_end(&mut self) {
        let id = &self.arguments.id;
        let Some(container) = self.container.as_mut().filter(|container| container.process.ended.is_none()) else {
            return;
        };
        let Some(status) = container.process.reap(Duration::ZERO) else { return };
        // Only then can the kernel have done it; looking costs a tenth of a millisecond.
        let suspected = container.limited || status == ExitStatus::Signaled(libc::SIGKILL);
        let kills =
            || container.open_cgroup(self.arguments.cgroup_root.as_deref()).and_then(|cgroup| cgroup.oom_kills());
        let oom_killed = suspected && kills().is_ok_and(|count| count > 0);
        container.process.set_ended(Ended::now(status, oom_killed));
        if !container.own_pids {
            // Nothing else ends them, and they would hold the container's cgroup and pipes.
            let _ = container.runtime.kill(id, libc::SIGKILL, KillTarget::All);
        }
    }

    /// Writes the end to disk once it is settled. Returns whether the waiting may be told.
    pub(crate) fn settle(&mut self) -> bool {
        let Some(container) = &mut self.container else { return false };
        if container.stage == Stage::Stopped || !container.process.is_settled() {
            return false;
        }
        let Some(ended) = container.process.ended else { return false };
        if let (Stage::Started, Some(path)) = (container.stage, &self.arguments.exit_file) {
            let process = &container.process;
            let record = ExitRecord::new(process.pid, process.start_time, ended.status, ended.oom_killed, ended.at);
            if let Err(error) = record.write(path) {
                // Those who wait are told all the same: they are the only ones who can still learn it.
                log(&chain(&error));
            }
        }
        container.stage = Stage::Stopped;
        true
    }

    /// Kills and removes the container.
    pub(crate) fn destroy(&mut self) -> Result<Option<Ended>> {
        let Some(mut container) = self.container.take() else { return Ok(None) };
        let removed = container.runtime.delete(&self.arguments.id, DeleteMode::Force);
        if container.process.ended.is_none() {
            let status = container.process.reap(KILL_PATIENCE).unwrap_or(ExitStatus::Signaled(libc::SIGKILL));
            container.process.set_ended(Ended::now(status, false));
        }
        let ended = container.process.ended;
        if let Err(source) = removed {
            let id = self.arguments.id.to_string();
            self.container = Some(container);
            return Err(Error::Runtime { operation: "delete", id, source: Box::new(source) });
        }
        detach(container.attached.as_deref());
        self.deleted = ended;
        Ok(ended)
    }

    fn check_id(&self, id: &str) -> Answer<()> {
        if id.is_empty() || id == self.arguments.id.as_str() {
            Ok(())
        } else {
            Err(refuse(Code::NotFound, format!("this shim serves container {}, not {id:?}", self.arguments.id)))
        }
    }

    fn find(&mut self, id: &str, exec_id: &str) -> Answer<&mut Container> {
        self.check_id(id)?;
        if !exec_id.is_empty() {
            return Err(refuse(Code::NotFound, format!("no process {exec_id:?}")));
        }
        let missing = || refuse(Code::NotFound, format!("container {} does not exist", self.arguments.id));
        self.container.as_mut().ok_or_else(missing)
    }
}

impl Container {
    /// The cgroup that the runtime has made.
    fn open_cgroup(&self, root: Option<&Path>) -> estiba_runtime::Result<Cgroup> {
        let hierarchies = root.map_or_else(Hierarchies::detect, Hierarchies::at)?;
        Cgroup::open(&hierarchies, &self.cgroup)
    }

    /// How it ended, once that may be told.
    fn ending(&self) -> Option<Ended> {
        self.process.ended.filter(|_| self.stage == Stage::Stopped)
    }
}

/// What `Create` says about the runtime.
fn runtime_options(any: Option<&proto::Any>) -> Answer<RuncOptions> {
    let Some(any) = any else { return Ok(RuncOptions::default()) };
    let options = any.unpack::<RuncOptions>().map_err(|error| Status::from(&error))?;
    let Some(options) = options else {
        return Err(refuse(Code::InvalidArgument, format!("Create: options of type {:?} are not known", any.type_url)));
    };
    let refused = [
        ("shim_cgroup", !options.shim_cgroup.is_empty()),
        ("io_uid", options.io_uid != 0),
        ("io_gid", options.io_gid != 0),
        ("systemd_cgroup", options.systemd_cgroup),
        ("criu_image_path", !options.criu_image_path.is_empty()),
        ("criu_work_path", !options.criu_work_path.is_empty()),
        ("task_api_address", !options.task_api_address.is_empty()),
        ("task_api_version", options.task_api_version != 0),
    ];
    match refused.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(refuse(Code::Unimplemented, format!("Create: option {field} is not supported"))),
        None => Ok(options),
    }
}

fn to_oci(mount: &proto::Mount) -> Mount {
    let mut oci = Mount::default();
    oci.set_destination(Path::new("/").join(&mount.target));
    oci.set_typ(Some(mount.kind.clone()).filter(|kind| !kind.is_empty()));
    oci.set_source(Some(PathBuf::from(&mount.source)).filter(|source| !source.as_os_str().is_empty()));
    oci.set_options(Some(mount.options.clone()));
    oci
}

/// Whether the container has a process namespace of its own, in which the kernel ends all with the first.
fn has_own_pids(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|list| {
        list.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
    })
}

fn detach(target: Option<&Path>) {
    if let Some(target) = target
        && let Err(error) = mount::detach(target)
    {
        log(&chain(&error));
    }
}
