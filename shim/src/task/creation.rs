//! Makes the container.

use std::fs::File;
use std::path::{Path, PathBuf};

use estiba_runtime::oci_spec::runtime::{LinuxNamespaceType, Mount, Process as Spec, Spec as Configuration};
use estiba_runtime::{Bundle, CreateOptions, DeleteMode, External, Keyring, Native, Root, RootSwitch, Runtime, mount};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;

use super::ending::detach;
use super::{Answer, Container, Stage, Task};
use crate::daemon::log;
use crate::error::{Error, Result};
use crate::process;
use crate::proto::{self, Code, RuncOptions, Status};
use crate::refusal::refuse;
use crate::streams::{Places, Streams};

/// Whom the kernel ends when memory runs out:
/// [proc_pid_oom_score_adj(5)](https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

impl Task {
    pub(super) fn create_container(
        &mut self,
        request: proto::CreateTaskRequest,
        options: &RuncOptions,
    ) -> Result<Container> {
        let id = self.arguments.id.clone();
        let failed = |source: estiba_runtime::Error| Error::Runtime {
            operation: "create",
            id: id.to_string(),
            source: Box::new(source),
        };
        let folder = if request.bundle.is_empty() { self.folder.clone() } else { PathBuf::from(&request.bundle) };
        let mut bundle = Bundle::load(&folder).map_err(failed)?;
        let wants_terminal = bundle.spec.process().as_ref().and_then(Spec::terminal).unwrap_or(false);
        if wants_terminal != request.terminal {
            let reason = "terminal differs between the request and process.terminal in config.json";
            return Err(Error::Request { reason });
        }
        let places = Places {
            terminal: request.terminal,
            stdin: &request.stdin,
            stdout: &request.stdout,
            stderr: &request.stderr,
        };
        let (streams, ends) = Streams::open(places)?;
        let state_root =
            if options.root.is_empty() { self.folder.join("runtime") } else { PathBuf::from(&options.root) };
        let runtime: Box<dyn Runtime> = if options.binary_name.is_empty() {
            Box::new(Native::new(state_root))
        } else if let Some(runtime) = self.runtimes.make(&options.binary_name, state_root.clone()) {
            runtime
        } else {
            Box::new(External::new(&options.binary_name, state_root))
        };
        let attached = self.mount_root(&mut bundle, &request.rootfs, options)?;
        let mut wishes = CreateOptions::new(ends.for_runtime());
        wishes.cgroup_root.clone_from(&self.arguments.cgroup_root);
        if options.no_new_keyring {
            wishes.keyring = Keyring::Inherit;
        }
        if options.no_pivot_root {
            wishes.root_switch = RootSwitch::Chroot;
        }
        let oom_score = bundle.spec.process().as_ref().and_then(Spec::oom_score_adj);
        if oom_score.is_some() {
            // Else the container would inherit what is for the shim alone.
            self.protect();
        }
        let created = runtime.create(&self.arguments.id, &bundle, &wishes).map_err(failed);
        let process = created.and_then(|created| {
            // The container has its own copies of `ends`, which go here.
            process::Process::new(created, streams, &ends).inspect_err(|_| {
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
                Ok(Container {
                    runtime,
                    process,
                    request,
                    stage,
                    paused: false,
                    execs: Vec::new(),
                    oom_score,
                    own_pids,
                    cgroup,
                    limited,
                    attached,
                })
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
}

/// What `Create` says about the runtime.
pub(super) fn runtime_options(any: Option<&proto::Any>) -> Answer<RuncOptions> {
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
fn has_own_pids(spec: &Configuration) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.is_some_and(|list| {
        list.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
    })
}
