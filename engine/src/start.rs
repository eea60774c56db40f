//! How a container comes to run: bundle, shim, root, network, streams.

use std::fs;
use std::io;
use std::time::SystemTime;

use estiba_shim::proto;
use estiba_shim::{Launch, Program};
use estiba_storage::mounts;

use crate::bundle;
use crate::config::ShimProgram;
use crate::connection::{Blocking, Waited, Waiter};
use crate::engine::{Engine, Fresh, Inner, Made};
use crate::error::{Error, Result, chain};
use crate::folder::{self, FolderLock};
use crate::process::Process;
use crate::record::{Ended, Exit, Record, Stage, boot_id};
use crate::repair;
use crate::request::LogConfig;
use crate::running::Running;
use crate::sharing::Donors;
use crate::streams::{ATTACH, Fifos, Streams};
use crate::unpack;

/// Who asks for the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// Somebody, by a command.
    User,
    /// The container's restart policy.
    Policy,
}

/// What has been started: its shim, and what to ask of it.
struct Launched {
    donors: Donors,
    control: Blocking,
    waiting: Blocking,
    create: proto::CreateTaskRequest,
}

/// Does a start on one of the blocking threads, from first to last: each change of threads costs as much as several calls
/// of the shim. Dropping the future ends the shim's calls, and so the start, which is then undone.
pub(crate) async fn on_thread(
    engine: &Engine,
    work: impl FnOnce(&Inner, Waited) -> Result<Running> + Send + 'static,
) -> Result<Running> {
    let caller = Waiter::default();
    let waited = caller.waited();
    let running = engine.blocking(move |inner| work(inner, waited)).await;
    caller.done();
    let running = running?;
    if running.record().needs_monitor() {
        engine.ensure_monitor().await?;
    }
    Ok(running)
}

/// Starts a container whose lock the caller holds. On failure what the start made is undone, and a container that was
/// made for this one run is removed. Blocks.
pub(crate) fn start(
    engine: &Engine,
    made: Made,
    streams: Streams,
    starter: Starter,
    waited: &Waited,
) -> Result<Running> {
    let Made { record, lock, fresh } = made;
    let undo = record.clone();
    let goes = record.stage == Stage::Creating || record.request.auto_remove;
    match try_start(engine, record, fresh, streams, starter, waited) {
        Ok(running) => {
            let record = running.record();
            let attached = (streams != Streams::NONE).then(|| record.event("attach"));
            engine.inner.tell(&attached.into_iter().chain([record.event("start")]).collect::<Vec<_>>());
            drop(lock);
            Ok(running)
        }
        Err(error) => {
            let failure = Ended {
                at: SystemTime::now(),
                exit: Some(Exit { status: error.exit_code().into(), signal: None, oom_killed: false }),
                error: Some(chain(&error)),
            };
            if let Err(undone) = undo_start(&engine.inner, undo, failure, lock) {
                tracing::warn!(error = &undone as &dyn std::error::Error, "a failed start could not be undone");
            }
            Err(if goes { error.without_id() } else { error }.explained())
        }
    }
}

/// Undoes what a failed start has made. `before` is the record as it was.
fn undo_start(inner: &Inner, mut before: Record, failure: Ended, lock: FolderLock) -> Result<()> {
    let id = before.id.clone();
    // The shim has lost its clients and ends by itself; it is at its end when its lock is free.
    repair::end(inner, &id)?;
    let undone = if before.stage == Stage::Creating || before.request.auto_remove {
        repair::demolish(inner, &before)
    } else {
        before.ended = Some(failure);
        before.restarting = false;
        inner.records.write(&before)?;
        repair::settle(inner, &id, &lock).map(drop)
    };
    drop(lock);
    undone
}

fn try_start(
    engine: &Engine,
    mut record: Record,
    fresh: Option<Fresh>,
    streams: Streams,
    starter: Starter,
    waited: &Waited,
) -> Result<Running> {
    let inner = &*engine.inner;
    let id = record.id.clone();
    let shim = |operation: &'static str| {
        let id = id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    };
    let bundle = inner.records.bundle(&id);
    let socket = |source| Error::Io { operation: "use the socket of", path: bundle.clone(), source };
    let Launched { donors, mut control, waiting, create } = launch(inner, &record, fresh)?;
    waited.watch(&control).map_err(socket)?;

    // Both calls at once: the second fails if the first does.
    let of_start = |operation: &'static str| {
        let record = &record;
        move |source| no_shim(inner, record, source).unwrap_or_else(|source| Error::of_start(operation, record, source))
    };
    let created = control.send(&create).map_err(of_start("create"))?;
    let request = &record.request;
    let fifos = Fifos::make(&bundle, streams.of(request.interactive, request.tty))?;
    let attach = fifos.call(&record, String::new(), request.interactive);
    let attached = attach.map(|attach| control.send(&attach)).transpose().map_err(shim("attach to"))?;
    let boot_id = boot_id()?;
    let pid = control.answer(&created).map_err(of_start("create"))?.pid;
    inner.still_run(&donors)?;
    inner.attach_networks(&mut record, pid)?;
    // Written before the start: a container that has run is never taken for one that has not.
    record.stage = Stage::Started;
    record.boot_id = boot_id;
    record.starts += 1;
    record.started = Some(SystemTime::now());
    record.pid = pid;
    record.ended = None;
    record.paused = false;
    record.restarting = false;
    match starter {
        Starter::User => (record.stopped, record.restarts) = (false, 0),
        Starter::Policy => record.restarts = record.restarts.saturating_add(1),
    }
    inner.records.write(&record)?;
    let attached = attached.map(|attached| control.answer(&attached)).transpose().map_err(shim("attach to"))?;
    let ends = fifos.ends()?;
    let start = proto::StartRequest { id: id.to_string(), ..proto::StartRequest::default() };
    control.call(&start).map_err(|source| Error::of_start("start", &record, source))?;
    let (control, waiting) = (control.into_async().map_err(socket)?, waiting.into_async().map_err(socket)?);
    let process = Process::new(engine.clone(), record, String::new(), control, waiting);
    Ok(Running::new(process.attached(attached.map(|answer| answer.attachment)), ends))
}

/// What was given as a shim is none, if it did not even take its lock, or ended at once and had nothing to say about that.
fn no_shim(inner: &Inner, record: &Record, source: estiba_shim::Error) -> Result<Error, estiba_shim::Error> {
    use estiba_shim::Error::{Disconnected, EarlyExit, File};
    let ShimProgram::Path(program) = &inner.config.shim else { return Err(source) };
    let is_none = match &source {
        Disconnected { .. } | File { .. } => matches!(inner.records.has_shim(&record.id), Ok(false)),
        EarlyExit { log, .. } => !log.contains("estiba-shim: "),
        _ => false,
    };
    if is_none { Ok(Error::NotAShim { program: program.clone(), source: Box::new(source) }) } else { Err(source) }
}

/// Writes the bundle and starts the shim.
fn launch(inner: &Inner, record: &Record, fresh: Option<Fresh>) -> Result<Launched> {
    let id = &record.id;
    let exit_file = inner.records.exit_file(record);
    match fs::remove_file(&exit_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", exit_file)(error)),
        _ => {}
    }
    let folder = inner.records.bundle(id);
    inner.records.mark(id)?;
    folder::empty(&folder)?;
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
        bundle_dir: folder.clone(),
        exit_file: Some(exit_file),
        cgroup_root: None,
        exit_command,
    };
    // While the shim comes up, the bundle is written.
    let launching = launch.begin().map_err(failed("start the shim of"))?;
    let early = |operation| move |source| no_shim(inner, record, source).unwrap_or_else(failed(operation));
    let waiting = estiba_shim::Client::connect(&folder, id.as_str()).map_err(early("connect to the shim of"))?;

    let Fresh { defaults, mounts } = match fresh {
        Some(fresh) => fresh,
        None => Fresh::of(inner, record)?,
    };
    let donors = bundle::write(inner, record, &defaults, &folder, &mounts::read_only(mounts.clone()))?;
    // What nobody will look at again need not reach the disk.
    let mounts = if record.request.auto_remove { mounts::volatile(mounts) } else { mounts };
    let control = launching.finish().map_err(early("start the shim of"))?;
    let options = record.request.runtime.as_ref().map(|program| {
        proto::Any::pack(&proto::RuncOptions {
            binary_name: program.to_string_lossy().into_owned(),
            ..proto::RuncOptions::default()
        })
    });
    let log = log_uri(inner, record);
    let create = proto::CreateTaskRequest {
        id: id.to_string(),
        bundle: folder.to_string_lossy().into_owned(),
        rootfs: mounts.iter().map(to_proto).collect(),
        terminal: record.request.tty,
        stdin: if record.request.interactive { ATTACH.to_owned() } else { String::new() },
        stderr: if record.request.tty { String::new() } else { log.clone() },
        stdout: log,
        options,
        ..proto::CreateTaskRequest::default()
    };
    Ok(Launched {
        donors,
        control: Blocking::new(control.into_stream()),
        waiting: Blocking::new(waiting.into_stream()),
        create,
    })
}

impl Fresh {
    /// The same of a container that was made some time ago.
    fn of(inner: &Inner, record: &Record) -> Result<Self> {
        let key = record.id.snapshot_key()?;
        let mounts = inner.snapshotter_of(record)?.mounts(&key).map_err(|source| Error::Snapshot {
            operation: "find",
            snapshot: key.to_string(),
            source: Box::new(source),
        })?;
        Ok(Self { defaults: unpack::defaults_of(&record.request.image, &inner.content)?, mounts })
    }
}

/// Where the shim keeps the container's output, as it wants to be told.
fn log_uri(inner: &Inner, record: &Record) -> String {
    let LogConfig::JsonFile { max_size, max_files } = record.request.log else { return ATTACH.to_owned() };
    let mut uri = format!("json-file://{}", inner.records.log(&record.id).display());
    let mut separator = '?';
    for (name, value) in [("max-size", max_size), ("max-file", max_files.map(u64::from))] {
        if let Some(value) = value {
            uri.extend([separator.to_string(), format!("{name}={value}")]);
            separator = '&';
        }
    }
    uri
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
