//! A container that runs, connected to this process.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use estiba_network::Sandbox;
use estiba_runtime::mount::Tree;
use estiba_shim::proto;
use estiba_shim::{Launch, Program};
use estiba_storage::mounts;
use nix::fcntl::OFlag;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use crate::config::ShimProgram;
use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::identity::Id;
use crate::record::{Exit, Record, Stage};
use crate::repair::{self, Keep};
use crate::spec::{self, HostFiles};
use crate::stdio::{Ends, Fifos};
use crate::task::Connection;
use crate::unpack;
use crate::user;

/// A container that was started, with the ends of its standard streams.
///
/// Dropping it leaves the container running: its shim goes on, reads its output, and stores how it ends.
#[derive(Debug)]
pub struct Running {
    /// Standard input, if the request was interactive. Dropping it is the end of the container's input.
    pub stdin: Option<pipe::Sender>,
    /// Standard output; of a container with a terminal, all of its output.
    pub stdout: Option<pipe::Receiver>,
    /// Standard error; `None` with a terminal.
    pub stderr: Option<pipe::Receiver>,
    engine: Engine,
    record: Record,
    control: Mutex<Connection>,
    waiting: Mutex<Connection>,
}

/// What the blocking half of a start has made.
struct Launched {
    fifos: Fifos,
    control: std::os::unix::net::UnixStream,
    waiting: std::os::unix::net::UnixStream,
    create: proto::CreateTaskRequest,
}

/// Starts a container whose lock the caller holds. On failure what the start made is undone, and a container that was
/// made for this one run is removed.
pub(crate) async fn start(engine: Engine, record: Record, lock: FolderLock) -> Result<Running> {
    let undo = record.clone();
    match try_start(&engine, record).await {
        Ok(running) => Ok(running),
        Err(error) => {
            let undone = engine
                .blocking(move |inner| {
                    let keep = if undo.stage == Stage::Creating { Keep::Nothing } else { Keep::Record };
                    // The shim has lost its clients and ends by itself; it is at its end when its lock is free.
                    repair::end(inner, &undo.id)?;
                    let record = inner.records.read(&undo.id)?.unwrap_or(undo);
                    let keep = if record.request.auto_remove { Keep::Nothing } else { keep };
                    let undone = repair::demolish(inner, &record, keep);
                    drop(lock);
                    undone
                })
                .await;
            if let Err(undone) = undone {
                tracing::warn!(error = &undone as &dyn std::error::Error, "a failed start could not be undone");
            }
            Err(error)
        }
    }
}

async fn try_start(engine: &Engine, record: Record) -> Result<Running> {
    let id = record.id.clone();
    let shim = |operation: &'static str| {
        let id = id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    };
    let launching = record.clone();
    let Launched { fifos, control, waiting, create } = engine.blocking(move |inner| launch(inner, &launching)).await?;
    let socket = |source| Error::Io { operation: "use the socket of", path: engine.inner.records.bundle(&id), source };
    let mut control = Connection::new(control).map_err(socket)?;
    let waiting = Connection::new(waiting).map_err(socket)?;

    let pid = control.call(&create).await.map_err(shim("create"))?.pid;
    let Ends { stdin, stdout, stderr } = fifos.ends()?;
    let mut started = record;
    let started = engine
        .blocking(move |inner| {
            attach(&started, pid)?;
            // Written before the start: a container that has run is never taken for one that has not.
            started.stage = Stage::Started;
            started.boot_id = crate::record::boot_id()?;
            inner.records.write(&started)?;
            Ok(started)
        })
        .await?;
    let start = proto::StartRequest { id: id.to_string(), ..proto::StartRequest::default() };
    control.call(&start).await.map_err(shim("start"))?;
    Ok(Running {
        stdin,
        stdout: Some(stdout),
        stderr,
        engine: engine.clone(),
        record: started,
        control: Mutex::new(control),
        waiting: Mutex::new(waiting),
    })
}

/// Connects the created container's network namespace.
fn attach(record: &Record, pid: u32) -> Result<()> {
    let failed = |source| Error::Network { id: record.id.clone(), source: Box::new(source) };
    let sandbox = Sandbox::open(Path::new(&format!("/proc/{pid}/ns/net"))).map_err(failed)?;
    Inner::network(record.request.network).attach(&sandbox).map_err(failed)?;
    Ok(())
}

/// Writes the bundle, makes the fifos and starts the shim.
fn launch(inner: &Inner, record: &Record) -> Result<Launched> {
    let id = &record.id;
    let exit_file = inner.records.exit_file(record);
    match fs::remove_file(&exit_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", exit_file)(error)),
        _ => {}
    }
    let bundle = inner.records.bundle(id);
    folder::remove(&bundle)?;
    folder::make(&bundle)?;
    let exit_command = match inner.config.exit_command.as_slice() {
        [] => Vec::new(),
        command => command.iter().cloned().chain([id.to_string()]).map(Into::into).collect(),
    };
    let program = match &inner.config.shim {
        ShimProgram::Path(path) => Program::Path(path.clone()),
        ShimProgram::Reexec => Program::Reexec,
    };
    let failed = |operation| move |source| Error::Shim { operation, id: id.clone(), source: Box::new(source) };
    let launch = Launch {
        program,
        id: id.runtime_id()?,
        bundle_dir: bundle.clone(),
        exit_file: Some(exit_file),
        cgroup_root: None,
        exit_command,
    };
    // While the shim comes up, the bundle is written.
    let launching = launch.begin().map_err(failed("start the shim of"))?;
    let waiting = estiba_shim::Client::connect(&bundle, id.as_str()).map_err(failed("connect to the shim of"))?;

    let fifos = Fifos::make(&bundle, &record.request)?;
    let key = id.snapshot_key()?;
    let mounts = inner.snapshotter_of(record)?.mounts(&key).map_err(|source| Error::Snapshot {
        operation: "find",
        snapshot: key.to_string(),
        source: Box::new(source),
    })?;
    write_bundle(inner, record, &bundle, &mounts::read_only(mounts.clone()))?;
    // What nobody will look at again need not reach the disk.
    let mounts = if record.request.auto_remove { mounts::volatile(mounts) } else { mounts };
    let control = launching.finish().map_err(failed("start the shim of"))?;
    let [stdin, stdout, stderr] = fifos.paths();
    let options = record.request.runtime.as_ref().map(|program| {
        proto::Any::pack(&proto::RuncOptions {
            binary_name: program.to_string_lossy().into_owned(),
            ..proto::RuncOptions::default()
        })
    });
    let create = proto::CreateTaskRequest {
        id: id.to_string(),
        bundle: bundle.to_string_lossy().into_owned(),
        rootfs: mounts.iter().map(to_proto).collect(),
        terminal: record.request.tty,
        stdin,
        stdout,
        stderr,
        options,
        ..proto::CreateTaskRequest::default()
    };
    Ok(Launched { fifos, control: control.into_stream(), waiting: waiting.into_stream(), create })
}

fn to_proto(mount: &oci_spec::runtime::Mount) -> proto::Mount {
    let path = |path: &Option<std::path::PathBuf>| path.as_deref().map(|path| path.to_string_lossy().into_owned());
    proto::Mount {
        kind: mount.typ().clone().unwrap_or_default(),
        source: path(mount.source()).unwrap_or_default(),
        target: String::new(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

/// Writes `config.json` and the files that stand in for the container's own.
fn write_bundle(inner: &Inner, record: &Record, bundle: &Path, mounts: &[oci_spec::runtime::Mount]) -> Result<()> {
    let request = &record.request;
    let image = unpack::defaults_of(&request.image, &inner.content)?;
    let wanted = request.user.as_deref().unwrap_or(&image.user);
    let root = |source| Error::Root { id: record.id.clone(), source: Box::new(source) };
    let tree = Tree::new(mounts).map_err(root)?;
    let identity = user::resolve(wanted, &read(&tree, "etc/passwd"), &read(&tree, "etc/group"))?;
    for bind in &request.binds {
        if let Err(error) = fs::symlink_metadata(&bind.source) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(Error::io("use the volume", &bind.source)(error));
            }
            fs::create_dir_all(&bind.source).map_err(Error::io("make the folder", &bind.source))?;
        }
    }
    let hostname = hostname(request, &record.id)?;
    // They can be written from inside, so they lie where the container's other changes do: not in RUN, which may be memory.
    let files = host_files(&inner.records.folder(&record.id), request, &hostname)?;
    let spec = spec::build(&record.id, &record.cgroup, request, &image, &identity, &hostname, &files)?;
    let bytes = serde_json::to_vec(&spec).map_err(|source| Error::Spec { field: "config", source: source.into() })?;
    folder::replace(bundle, "config.json", &bytes, Durability::Lazy)
}

/// A file of the root, bounded; empty if it is not there or not a text.
fn read(tree: &Tree, path: &str) -> String {
    use std::io::Read;
    let mut text = String::new();
    // Looked at before it is opened: to open a device, which an image can have here, may already do something.
    if let Ok(place) = tree.open(path, OFlag::O_PATH.bits())
        && place.metadata().is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = fs::File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
        && file.take(user::MAX_FILE).read_to_string(&mut text).is_err()
    {
        text.clear();
    }
    text
}

fn hostname(request: &crate::CreateRequest, id: &Id) -> Result<String> {
    use crate::request::NetworkMode;
    match (&request.hostname, request.network) {
        (Some(name), _) => {
            let fits = (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            if fits {
                Ok(name.clone())
            } else {
                let reason = "it must be 1 to 63 of [a-zA-Z0-9._-]";
                Err(Error::Request { field: "the host name", value: name.clone(), reason })
            }
        }
        (None, NetworkMode::Host) => {
            let name = nix::unistd::gethostname().map_err(Error::errno("read the host name from", "/proc"))?;
            Ok(name.to_string_lossy().into_owned())
        }
        (None, NetworkMode::None) => Ok(id.short().to_owned()),
    }
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the container.
fn host_files(folder: &Path, request: &crate::CreateRequest, hostname: &str) -> Result<HostFiles> {
    use crate::request::NetworkMode;
    const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    let (hosts, resolv_conf) = match request.network {
        NetworkMode::None => (LOCALHOST.to_owned(), String::new()),
        NetworkMode::Host => {
            let host = |path| fs::read_to_string(path).unwrap_or_default();
            (host("/etc/hosts"), host("/etc/resolv.conf"))
        }
    };
    let write = |name: &str, content: &str| -> Result<std::path::PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(Error::io("write", &path))?;
        Ok(path)
    };
    Ok(HostFiles {
        hostname: write("hostname", &format!("{hostname}\n"))?,
        hosts: write("hosts", &hosts)?,
        resolv_conf: write("resolv.conf", &resolv_conf)?,
    })
}

impl Running {
    /// The container's record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.record.id
    }

    /// Waits until the container has ended. All of its output has been written by then, and waits in the pipes.
    ///
    /// # Errors
    ///
    /// [`Error::ShimLost`] if the shim died: the container is then killed by [`finish`](Self::finish).
    pub async fn wait(&self) -> Result<Exit> {
        let call = proto::WaitRequest { id: self.record.id.to_string(), ..proto::WaitRequest::default() };
        match self.waiting.lock().await.call(&call).await {
            Ok(answer) => {
                let status = i32::try_from(answer.exit_status).unwrap_or(255);
                let record = self.record.clone();
                // The shim has written it before it answered. It knows more than the answer does.
                let stored = self.engine.blocking(move |inner| inner.records.exit(&record)).await?;
                Ok(stored.unwrap_or(Exit { status, signal: None, oom_killed: false }))
            }
            Err(estiba_shim::Error::Disconnected { .. }) => Err(Error::ShimLost { id: self.record.id.clone() }),
            Err(source) => Err(self.shim("wait for")(source)),
        }
    }

    /// Sends a signal to the container's first process.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        let call = proto::KillRequest {
            id: self.record.id.to_string(),
            signal: u32::try_from(signal).unwrap_or_default(),
            ..proto::KillRequest::default()
        };
        self.control.lock().await.call(&call).await.map_err(self.shim("signal"))?;
        Ok(())
    }

    /// Sets the size of the container's terminal, in characters.
    pub async fn resize(&self, width: u16, height: u16) -> Result<()> {
        let call = proto::ResizePtyRequest {
            id: self.record.id.to_string(),
            width: width.into(),
            height: height.into(),
            ..proto::ResizePtyRequest::default()
        };
        self.control.lock().await.call(&call).await.map_err(self.shim("resize the terminal of"))?;
        Ok(())
    }

    /// Ends the shim and removes what the container has made (read its output to the end first: what the shim still holds
    /// for a slow reader goes with it); with `auto_remove`, the record and the root file system
    /// too. A container that still runs is killed.
    pub async fn finish(self) -> Result<()> {
        let Self { engine, record, control, waiting, .. } = self;
        let mut control = control.into_inner();
        let id = record.id.to_string();
        let delete = proto::DeleteRequest { id: id.clone(), ..proto::DeleteRequest::default() };
        let orderly = match control.call(&delete).await {
            Ok(_) => true,
            Err(estiba_shim::Error::Status { .. }) => {
                let kill = proto::KillRequest { id: id.clone(), signal: 9, all: true, ..proto::KillRequest::default() };
                let wait = proto::WaitRequest { id: id.clone(), ..proto::WaitRequest::default() };
                control.call(&kill).await.is_ok()
                    && control.call(&wait).await.is_ok()
                    && control.call(&delete).await.is_ok()
            }
            Err(_) => false,
        };
        if orderly {
            let shutdown = proto::ShutdownRequest { id, now: true };
            // The shim may end before its answer has left.
            let _ = control.call(&shutdown).await;
            waiting.into_inner().closed().await;
        }
        engine
            .blocking(move |inner| {
                let lock = match FolderLock::wait(&inner.records.folder(&record.id)) {
                    // Somebody else has removed it meanwhile.
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
                    lock => lock?,
                };
                let keep = if record.request.auto_remove { Keep::Nothing } else { Keep::Record };
                let result = if orderly {
                    repair::remains(inner, &record, keep)
                } else {
                    repair::demolish(inner, &record, keep)
                };
                drop(lock);
                result
            })
            .await
    }

    fn shim(&self, operation: &'static str) -> impl FnOnce(estiba_shim::Error) -> Error {
        let id = self.record.id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    }
}
