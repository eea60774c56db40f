//! The runtime of this crate.

mod exec;
mod hook;
mod label;
mod launch;
mod network;
mod notify;
mod rdt;
mod record;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Process, Spec};

use crate::cgroup::{Cgroup, Hierarchies};
use crate::plan::{Filter, Host, Plan, Slot, Step};
use crate::rootless::{self, Ids};
use crate::sys::mount::Depth;
use crate::sys::{self, process};
use crate::{
    Bundle, ContainerId, CreateOptions, Created, DeleteMode, Error, ExecOptions, Features, KillTarget, Result, Root,
    Runtime, State, Stats, Status, Stdio,
};
use hook::Hooks;
use launch::{Event, Launch, Opener, Waiting};
use rdt::Groups;
use record::{Folder, Identity, Record};

/// How long a killed process may take to end, in milliseconds.
const PATIENCE: i32 = 10_000;
/// How long after that nobody has to be left time any more to ask how a process ended that was added.
const GRACE: i32 = 200;

/// Containers made by this process itself, with no other program.
///
/// One value serves any number of containers and threads. Several processes may work on the same `state_root`: `create` in one and
/// `start` in another is the usual life of a command-line runtime. The process that created a container also learns in
/// [`Runtime::start`] why its program could not be executed; another one sees only the exit status, 126 or 127.
#[derive(Debug)]
pub struct Native {
    state_root: PathBuf,
    features: Features,
    hierarchies: OnceLock<Hierarchies>,
    waiting: Mutex<HashMap<ContainerId, Waiting>>,
}

/// What is known of a container beside its [`State`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// When it was made.
    pub created: SystemTime,
    /// Its root filesystem's folder; `None` for a detached tree.
    pub rootfs: Option<PathBuf>,
}

impl Native {
    /// A runtime that keeps its state in `state_root/ID`, which should lie on a tmpfs such as `/run`.
    pub fn new(state_root: impl Into<PathBuf>) -> Self {
        Self::with_features(state_root, Features::probe())
    }

    /// The same, with no more of the kernel than `features`.
    pub fn with_features(state_root: impl Into<PathBuf>, features: Features) -> Self {
        Self {
            state_root: state_root.into(),
            features,
            hierarchies: OnceLock::new(),
            waiting: Mutex::new(HashMap::new()),
        }
    }

    /// The names of all containers, sorted.
    pub fn list(&self) -> Result<Vec<ContainerId>> {
        record::list(&self.state_root)
    }

    /// What is known of a container beside its state.
    pub fn details(&self, id: &ContainerId) -> Result<Details> {
        let record = Folder::open(&self.state_root, id)?.load()?;
        Ok(Details { created: record.created(), rootfs: record.rootfs })
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the container's cgroup. Where no hierarchy is mounted there is none, unless limits want it.
    fn hierarchies(&self) -> Result<&Hierarchies> {
        match self.hierarchies.get() {
            Some(hierarchies) => Ok(hierarchies),
            None => Hierarchies::detect().map(|hierarchies| self.hierarchies.get_or_init(|| hierarchies)),
        }
    }

    fn cgroup(&self, id: &ContainerId, spec: &Spec, options: &CreateOptions<'_>) -> Result<Option<Cgroup>> {
        let resources = Plan::resources(spec);
        let detected;
        let hierarchies = match &options.cgroup_root {
            Some(root) => {
                detected = Hierarchies::at(root)?;
                &detected
            }
            None => match self.hierarchies() {
                Err(Error::CgroupsNotMounted) if resources.is_none() => return Ok(None),
                hierarchies => hierarchies?,
            },
        };
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let path = match path.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => path.to_str().ok_or_else(|| Error::InvalidSpec {
                field: "linux.cgroupsPath".into(),
                reason: "is not UTF-8".into(),
            })?,
            None => &format!("/{id}"),
        };
        match Cgroup::create(hierarchies, path, resources) {
            // Without root there is one only where somebody has been given a part of the tree.
            Err(Error::Io { source, .. })
                if resources.is_none()
                    && source.kind() == std::io::ErrorKind::PermissionDenied
                    && (rootless::ids() != Ids::Host || !privileged()?) =>
            {
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    fn make(
        &self,
        id: &ContainerId,
        bundle: &Bundle,
        options: &CreateOptions<'_>,
        folder: &Folder,
        undo: &mut Undo,
    ) -> Result<Created> {
        let completed;
        let spec = if bundle.spec.process().is_some() {
            &bundle.spec
        } else {
            completed = without_program(&bundle.spec);
            &completed
        };
        let terminal = spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal) == Some(true);
        match (terminal, options.stdio) {
            (true, Stdio::Fds { .. }) | (false, Stdio::Terminal) => {
                return Err(Error::InvalidSpec {
                    field: "process.terminal".into(),
                    reason: format!("is {terminal}, and the streams are given otherwise"),
                });
            }
            _ => {}
        }
        Plan::check(spec)?;
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filter = profile.map(crate::seccomp::compile).transpose()?;
        undo.rdt = Groups::make(spec, id)?;
        undo.cgroup = self.cgroup(id, spec, options)?;
        let cgroup = undo.cgroup.as_ref();
        let mut record = Record::new(id, bundle, cgroup, options.keyring, filter.is_some())?;
        record.rdt.clone_from(&undo.rdt);
        folder.store(&record)?;
        if let Some(filter) = &filter {
            folder.store_filter(filter)?;
        }

        let rootless = !privileged()?;
        let Joining { tasks, unified } = Joining::new(cgroup, self.features)?;
        let root_path = spec.root().as_ref().map(|root| bundle.path.join(root.path())).filter(|path| path.is_dir());
        let mut plan = Plan::new(
            spec,
            &Host {
                features: self.features,
                bundle: &bundle.path,
                id: id.as_str(),
                permitted: permitted()?,
                cgroups: cgroup.map(cgroup_mounts).unwrap_or_default(),
                tasks: tasks.len(),
                terminal,
                preserved: options.preserve_fds.len(),
                keyring: options.keyring,
                root_switch: options.root_switch,
                root_path: root_path.as_deref(),
                filter: filter.as_ref().map(Filter::of),
                rootless,
                confined: rootless::ids() != Ids::Host,
                groups: rootless::can_set_groups(),
                apparmor: label::apparmor(),
                selinux: label::selinux(),
                labels: options.labels,
                nested: !mount_namespace(spec) && crate::mount::nests(),
                kcore: Path::new("/proc/kcore").exists(),
            },
        )?;

        if record.programless {
            plan.steps.retain(|step| !matches!(step, Step::FindExecutable | Step::Home { .. }));
        }
        let gate = folder.make_gate()?;
        let cloned;
        let root = match &bundle.root {
            // The child opens it.
            Root::Path(_) if rootless => gate.as_fd(),
            Root::Detached(tree) => tree.as_fd(),
            Root::Path(path) => {
                cloned = launch::clone_tree(path, Depth::Recursive, "root")?;
                cloned.as_fd()
            }
        };
        let mut host = Opener::new(self.features);
        let opened = plan.opens.iter().map(|wanted| host.open(wanted)).collect::<Result<Vec<_>>>()?;
        drop(host);
        let (socket, inner) = sys::socket::pair().map_err(launch::system("make a pair of sockets"))?;
        let table: Vec<i32> = [inner.as_fd(), gate.as_fd(), root]
            .into_iter()
            .chain(opened.iter().chain(&tasks).map(AsFd::as_fd))
            .map(|fd| fd.as_raw_fd())
            .collect();
        debug_assert_eq!(table.len(), Slot::FIXED + opened.len() + tasks.len(), "the plan counts on it");
        let standard: [BorrowedFd<'_>; 3] = match options.stdio {
            Stdio::Fds { stdin, stdout, stderr } => [stdin, stdout, stderr],
            // Their places; the terminal is put there by the child.
            Stdio::Terminal => [inner.as_fd(), inner.as_fd(), inner.as_fd()],
        };
        let descriptors = standard.iter().chain(options.preserve_fds).map(AsRawFd::as_raw_fd).collect();
        let launch = Launch {
            features: self.features,
            cgroup: unified.as_ref().map(AsFd::as_fd),
            fds: &table,
            filter: filter.as_ref().map(|filter| (filter.instructions.as_slice(), u64::from(filter.flags))),
        };
        let mut started = launch.spawn(&mut plan, descriptors)?;
        // The child's ends; with them open, its end would not be seen.
        drop((inner, gate, opened, tasks, unified));
        undo.process = Some(copy(&started.pidfd)?);
        let mut adopted = !plan.forks;
        if adopted {
            adopt(rootless, spec, &plan, &mut record, folder, &socket, started.pid)?;
        }
        let mut console = None;
        let mut ready = false;
        while !(ready && adopted) {
            let event = launch::receive(&socket, &plan, &started).inspect_err(|_| {
                if !adopted && let Some(pid) = launch::unheard(&socket) {
                    // The one in between ends by itself; the other is what is to be ended.
                    let _ = process::wait(started.pidfd.as_fd());
                    undo.process = process::pidfd_open(pid).ok();
                }
            })?;
            match event {
                Event::Forked(pid) => {
                    // The one in between has done its part.
                    crate::wait(started.pidfd.as_fd(), started.pid)?;
                    started.pidfd = process::pidfd_open(pid).map_err(launch::system("open a pidfd"))?;
                    started.pid = pid;
                    undo.process = Some(copy(&started.pidfd)?);
                    adopt(rootless, spec, &plan, &mut record, folder, &socket, pid)?;
                    adopted = true;
                }
                Event::Console(fd) => console = Some(fd),
                Event::Hooks => {
                    Hooks::of(&record, self.features).while_created(&started.pidfd)?;
                    launch::answer(&socket)?;
                }
                Event::Clocks => {
                    launch::set_clocks(started.pid, &plan.clocks)?;
                    launch::answer(&socket)?;
                }
                Event::Network(inside) => {
                    if let Some(devices) = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref()) {
                        network::give(devices, started.pid, inside)?;
                    }
                    launch::answer(&socket)?;
                }
                Event::Listener(number) => {
                    if let Some(listener) = &record.listener {
                        listener.inform(&socket, &started, number, &record.state(Status::Creating))?;
                    }
                    launch::answer(&socket)?;
                }
                Event::Ready => ready = true,
            }
        }
        if plan.asks {
            launch::answer(&socket)?;
        }
        self.waiting().insert(id.clone(), Waiting::new(socket, &plan));
        Ok(Created { pid: started.pid, pidfd: started.pidfd, console })
    }

    /// The container's folder, locked, with what it says.
    fn locked(&self, id: &ContainerId) -> Result<(Folder, Record)> {
        let folder = Folder::open(&self.state_root, id)?;
        folder.lock()?;
        let record = folder.load()?;
        Ok((folder, record))
    }
}

/// Puts the process on record, and does for it what it cannot do itself.
///
/// The child goes on meanwhile; it reads the last answer only when it is ready. Without that, and so without a record, it does not
/// wait for a start that might never come.
fn adopt(
    rootless: bool,
    spec: &Spec,
    plan: &Plan,
    record: &mut Record,
    folder: &Folder,
    socket: &OwnedFd,
    pid: i32,
) -> Result<()> {
    if plan.in_user_namespace
        && !rootless
        && let Some(process) = spec.process()
    {
        launch::privileged(process, pid)?;
    }
    if plan.mappings {
        launch::write_mappings(spec, pid, rootless)?;
        launch::answer(socket)?;
    }
    if let Some(rdt) = &record.rdt {
        rdt.add(pid)?;
    }
    record.identity = Identity::of(pid)?;
    folder.store(record)?;
    // An answer to what it asks would not be the first that is read.
    if plan.asks { Ok(()) } else { launch::answer(socket) }
}

impl Runtime for Native {
    fn create(&self, id: &ContainerId, bundle: &Bundle, options: &CreateOptions<'_>) -> Result<Created> {
        let folder = Folder::make(&self.state_root, id)?;
        let mut undo = Undo::default();
        let result = self.make(id, bundle, options, &folder, &mut undo);
        if result.is_err() {
            undo.run();
            // What is left of it is found by the next `delete` with `Force`.
            let _ = folder.remove();
        }
        result
    }

    fn start(&self, id: &ContainerId) -> Result<()> {
        let (folder, record) = self.locked(id)?;
        let status = folder.status(&record);
        if status != Status::Created {
            return Err(Error::WrongStatus { id: id.clone(), operation: "start", status });
        }
        if record.programless {
            return Err(Error::InvalidSpec {
                field: "process".into(),
                reason: "is missing, and there is nothing to start".into(),
            });
        }
        let hooks = Hooks::of(&record, self.features).under(folder.filter(&record)?);
        let result = hooks.start_container(&record.identity).and_then(|()| folder.open_gate(id));
        if let Err(error) = result {
            // The specification wants the container stopped if a hook fails.
            self.kill(id, libc::SIGKILL, KillTarget::Init).ok();
            return Err(error);
        }
        let waiting = self.waiting().remove(id);
        if let Some(waiting) = waiting {
            waiting.executed()?;
        }
        hooks.poststart().inspect_err(|_| {
            // As with a hook that fails before.
            self.kill(id, libc::SIGKILL, KillTarget::Init).ok();
        })
    }

    fn state(&self, id: &ContainerId) -> Result<State> {
        let folder = Folder::open(&self.state_root, id)?;
        let record = folder.load()?;
        let status = folder.status(&record);
        Ok(record.state(status))
    }

    fn kill(&self, id: &ContainerId, signal: i32, target: KillTarget) -> Result<()> {
        let folder = Folder::open(&self.state_root, id)?;
        let record = folder.load()?;
        let cgroup = record.cgroup();
        if let (KillTarget::All, Some(cgroup)) = (target, &cgroup) {
            return if signal == libc::SIGKILL { cgroup.kill() } else { cgroup.signal(signal) };
        }
        let Some(pidfd) = record.identity.open() else {
            return Err(Error::WrongStatus { id: id.clone(), operation: "kill", status: folder.status(&record) });
        };
        process::signal(pidfd.as_fd(), signal).map_err(launch::system("send a signal"))?;
        // A frozen process would die only once it is thawed.
        if signal == libc::SIGKILL
            && folder.paused()
            && let Some(cgroup) = cgroup
        {
            cgroup.thaw()?;
        }
        Ok(())
    }

    fn delete(&self, id: &ContainerId, mode: DeleteMode) -> Result<()> {
        let folder = match Folder::open(&self.state_root, id) {
            Err(Error::NotFound { .. }) if mode == DeleteMode::Force => return Ok(()),
            folder => folder?,
        };
        folder.lock()?;
        let record = match folder.load() {
            Ok(record) => record,
            // A `create` that was killed before it wrote anything.
            Err(_) if mode == DeleteMode::Force => return folder.remove(),
            Err(error) => return Err(error),
        };
        let status = folder.status(&record);
        if mode == DeleteMode::Stopped && !matches!(status, Status::Stopped | Status::Created) {
            return Err(Error::WrongStatus { id: id.clone(), operation: "delete", status });
        }
        self.waiting().remove(id);
        let mut undo = Undo {
            process: record.identity.open(),
            pid: record.identity.pid,
            cgroup: record.cgroup(),
            rdt: record.rdt.clone(),
        };
        // The end of its first process has ended a whole pid namespace.
        let alone = status == Status::Stopped && record.own_pids;
        let mut failures = undo.tear_down(!alone);
        if failures.is_empty() {
            failures.extend(folder.remove().err());
        }
        failures.extend(Hooks::of(&record, self.features).poststop());
        if failures.is_empty() { Ok(()) } else { Err(Error::Teardown { id: id.clone(), failures }) }
    }

    fn exec(&self, id: &ContainerId, process: &Process, options: &ExecOptions<'_>) -> Result<Created> {
        self.add(id, process, options)
    }

    fn update(&self, id: &ContainerId, resources: &LinuxResources) -> Result<()> {
        let (folder, mut record) = self.locked(id)?;
        let status = folder.status(&record);
        match (status, record.cgroup()) {
            (Status::Created | Status::Running | Status::Paused, Some(mut cgroup)) => {
                if cgroup.grow(self.hierarchies()?, resources)? {
                    record.take(&cgroup);
                    folder.store(&record)?;
                }
                cgroup.set(resources)
            }
            _ => Err(Error::WrongStatus { id: id.clone(), operation: "update", status }),
        }
    }

    fn stats(&self, id: &ContainerId) -> Result<Stats> {
        let record = Folder::open(&self.state_root, id)?.load()?;
        record.cgroup().map_or_else(|| Ok(Stats::default()), |cgroup| cgroup.stats())
    }

    fn processes(&self, id: &ContainerId) -> Result<Vec<i32>> {
        let folder = Folder::open(&self.state_root, id)?;
        let record = folder.load()?;
        match record.cgroup() {
            Some(cgroup) => cgroup.pids(),
            // Without a cgroup nobody knows of more than the first.
            None => Ok(record.identity.open().map(|_| record.identity.pid).into_iter().collect()),
        }
    }

    fn pause(&self, id: &ContainerId) -> Result<()> {
        let (folder, record) = self.locked(id)?;
        let status = folder.status(&record);
        match (status, record.cgroup()) {
            (Status::Created | Status::Running, Some(cgroup)) => {
                cgroup.freeze()?;
                folder.set_paused(true)
            }
            _ => Err(Error::WrongStatus { id: id.clone(), operation: "pause", status }),
        }
    }

    fn resume(&self, id: &ContainerId) -> Result<()> {
        let (folder, record) = self.locked(id)?;
        let status = folder.status(&record);
        match (status, record.cgroup()) {
            (Status::Paused, Some(cgroup)) => {
                cgroup.thaw()?;
                folder.set_paused(false)
            }
            _ => Err(Error::WrongStatus { id: id.clone(), operation: "resume", status }),
        }
    }
}

/// A configuration need not have a process as long as the container is not started. What waits then has no rights.
fn without_program(spec: &Spec) -> Spec {
    let mut process = Process::default();
    process.set_args(Some(vec!["/".into()])).set_cwd("/".into()).set_capabilities(None).set_rlimits(None);
    process.set_terminal(Some(false)).set_no_new_privileges(Some(true)).set_apparmor_profile(None);
    let mut spec = spec.clone();
    spec.set_process(Some(process));
    spec
}

/// How a child gets into a cgroup.
#[derive(Debug)]
struct Joining {
    /// What it writes itself to.
    tasks: Vec<OwnedFd>,
    /// Where it is born.
    unified: Option<OwnedFd>,
}

impl Joining {
    fn new(cgroup: Option<&Cgroup>, features: Features) -> Result<Self> {
        let Some(cgroup) = cgroup else { return Ok(Self { tasks: Vec::new(), unified: None }) };
        let mut tasks = cgroup.tasks()?;
        if features.clone3 {
            return Ok(Self { tasks, unified: cgroup.dir()? });
        }
        // Nobody is born elsewhere by clone: it goes there.
        tasks.extend(cgroup.procs()?);
        Ok(Self { tasks, unified: None })
    }
}

/// What a creation has made so far.
#[derive(Debug, Default)]
struct Undo {
    process: Option<OwnedFd>,
    /// Its number, if others may have been added to its namespace.
    pid: i32,
    cgroup: Option<Cgroup>,
    rdt: Option<Groups>,
}

impl Undo {
    /// After a failure whose error is what is returned.
    fn run(mut self) {
        if let Some(pidfd) = &self.process {
            // It is our child, and nobody else will reap it.
            let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
            let _ = process::wait(pidfd.as_fd());
        }
        self.process = None;
        let _ = self.tear_down(true);
    }

    /// Ends the process, whoever reaps it, and removes the cgroup, and all processes in it if there may be `others`. Returns all
    /// that failed.
    fn tear_down(&mut self, others: bool) -> Vec<Error> {
        let mut failures = Vec::new();
        if let Some(pidfd) = &self.process {
            match process::signal(pidfd.as_fd(), libc::SIGKILL) {
                Ok(()) | Err(libc::ESRCH) => {}
                Err(errno) => failures.push(launch::system("kill the container's process")(errno)),
            }
        }
        if let Some(cgroup) = &self.cgroup {
            if others {
                failures.extend(cgroup.kill().err());
            }
            if let Some(pidfd) = &self.process {
                failures.extend(end(pidfd, self.pid));
            }
            failures.extend(cgroup.remove().err());
        } else if let Some(pidfd) = &self.process {
            failures.extend(end(pidfd, self.pid));
        }
        failures.extend(self.rdt.iter().flat_map(Groups::remove));
        failures
    }
}

/// Waits until a killed process has ended. The first of a pid namespace cannot before those that were added to it are reaped; where
/// they are this process's children and nobody does that, it is done here.
fn end(pidfd: &OwnedFd, pid: i32) -> Option<Error> {
    let mut ended = process::ended(pidfd.as_fd(), GRACE);
    if ended == Ok(false) {
        if pid > 0 {
            crate::offspring::reap_namespace(pid);
        }
        ended = process::ended(pidfd.as_fd(), PATIENCE);
    }
    match ended {
        Ok(true) => None,
        Ok(false) => Some(launch::system("wait for the killed process")(libc::ETIMEDOUT)),
        Err(errno) => Some(launch::system("wait for the killed process")(errno)),
    }
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(|source| Error::System { operation: "copy a descriptor", source })
}

/// Takes a state file as far as it goes without its container.
#[cfg(any(fuzzing, test))]
pub(crate) fn read_state(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(bytes) else { return };
    let _ = (record.state(Status::Running), record.created(), record.cgroup(), record.identity.open());
}

/// Whether the container makes or joins a mount namespace.
fn mount_namespace(spec: &Spec) -> bool {
    let mut namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_deref()).flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::Mount)
}

/// See [`Bundle::warnings`].
pub(crate) fn warnings(spec: &Spec) -> Vec<String> {
    let mut warnings = crate::plan::label_warnings(spec, label::apparmor(), label::selinux());
    let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_deref()).flatten();
    let in_user_namespace = namespaces.into_iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    // A user namespace starts with all.
    let given = if in_user_namespace { u64::MAX } else { permitted().unwrap_or(u64::MAX) };
    if let Some(process) = spec.process() {
        warnings.extend(crate::plan::capability_warnings(process, given));
    }
    warnings
}

/// The capabilities that this process can give.
fn permitted() -> Result<u64> {
    process::capabilities().map(|sets| sets.permitted).map_err(launch::system("read the capabilities"))
}

/// Whether this process may do what only root can.
fn privileged() -> Result<bool> {
    const SYS_ADMIN: u64 = 1 << 21;
    process::capabilities().map(|sets| sets.effective & SYS_ADMIN != 0).map_err(launch::system("read the capabilities"))
}

/// The cgroup's folders with the names that they have below `/sys/fs/cgroup`.
fn cgroup_mounts(cgroup: &Cgroup) -> Vec<(String, PathBuf)> {
    cgroup.paths().iter().map(|folder| (folder.controllers.join(","), folder.path.clone())).collect()
}
