//! How a container comes to run: bundle, shim, root, network, streams.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use estiba_network::Sandbox;
use estiba_shim::proto;
use estiba_shim::{Launch, Program};
use estiba_storage::mounts;

use crate::bundle;
use crate::config::ShimProgram;
use crate::connection::Connection;
use crate::engine::{Engine, Inner};
use crate::error::{Error, Result, chain};
use crate::folder::{self, FolderLock};
use crate::process::Process;
use crate::record::{Ended, Exit, Record, Stage, boot_id};
use crate::repair;
use crate::request::LogConfig;
use crate::running::Running;
use crate::streams::{ATTACH, Fifos, Streams};

/// Who asks for the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Starter {
    /// Somebody, by a command.
    User,
    /// The container's restart policy.
    Policy,
}

/// What the blocking half of a start has made.
struct Launched {
    control: Connection,
    waiting: Connection,
    create: proto::CreateTaskRequest,
}

/// Starts a container whose lock the caller holds. On failure what the start made is undone, and a container that was
/// made for this one run is removed.
pub(crate) async fn start(
    engine: Engine,
    record: Record,
    lock: FolderLock,
    streams: Streams,
    starter: Starter,
) -> Result<Running> {
    let undo = record.clone();
    match Box::pin(try_start(&engine, record, streams, starter)).await {
        Ok(running) => {
            let record = running.record().clone();
            let watch = record.needs_monitor();
            engine
                .blocking(move |inner| {
                    let attached = (streams != Streams::NONE).then(|| record.event("attach"));
                    inner.tell(&attached.into_iter().chain([record.event("start")]).collect::<Vec<_>>());
                    drop(lock);
                    Ok(())
                })
                .await?;
            if watch {
                engine.ensure_monitor().await?;
            }
            Ok(running)
        }
        Err(error) => {
            let failure = Ended {
                at: SystemTime::now(),
                exit: Some(Exit { status: error.exit_code().into(), signal: None, oom_killed: false }),
                error: Some(chain(&error)),
            };
            let undone = engine.blocking(move |inner| undo_start(inner, undo, failure, lock)).await;
            if let Err(undone) = undone {
                tracing::warn!(error = &undone as &dyn std::error::Error, "a failed start could not be undone");
            }
            Err(error)
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

async fn try_start(engine: &Engine, before: Record, streams: Streams, starter: Starter) -> Result<Running> {
    let id = before.id.clone();
    let shim = |operation: &'static str| {
        let id = id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    };
    let (mut record, launched) = engine
        .blocking(move |inner| {
            let launched = launch(inner, &before)?;
            Ok((before, launched))
        })
        .await?;
    let Launched { mut control, waiting, create } = launched;

    let pid = control.call(&create).await.map_err(shim("create"))?.pid;
    let (record, fifos) = engine
        .blocking(move |inner| {
            attach_network(&record, pid)?;
            let request = &record.request;
            let streams = streams.of(request.interactive, request.tty);
            let fifos = Fifos::make(&inner.records.bundle(&record.id), streams)?;
            // Written before the start: a container that has run is never taken for one that has not.
            record.stage = Stage::Started;
            record.boot_id = boot_id()?;
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
            Ok((record, fifos))
        })
        .await?;
    let mut process = Process::new(engine.clone(), record.clone(), String::new(), control, waiting);
    let ends = process.attach(fifos, record.request.interactive).await?;
    let start = proto::StartRequest { id: id.to_string(), ..proto::StartRequest::default() };
    process.call(&start).await.map_err(shim("start"))?;
    Ok(Running::new(process, ends))
}

/// Connects the created container's network namespace.
fn attach_network(record: &Record, pid: u32) -> Result<()> {
    let failed = |source| Error::Network { id: record.id.clone(), source: Box::new(source) };
    let sandbox = Sandbox::open(Path::new(&format!("/proc/{pid}/ns/net"))).map_err(failed)?;
    Inner::network(record.request.network).attach(&sandbox).map_err(failed)?;
    Ok(())
}

/// Writes the bundle and starts the shim.
fn launch(inner: &Inner, record: &Record) -> Result<Launched> {
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
    let waiting = estiba_shim::Client::connect(&folder, id.as_str()).map_err(failed("connect to the shim of"))?;

    let key = id.snapshot_key()?;
    let mounts = inner.snapshotter_of(record)?.mounts(&key).map_err(|source| Error::Snapshot {
        operation: "find",
        snapshot: key.to_string(),
        source: Box::new(source),
    })?;
    bundle::write(inner, record, &folder, &mounts::read_only(mounts.clone()))?;
    // What nobody will look at again need not reach the disk.
    let mounts = if record.request.auto_remove { mounts::volatile(mounts) } else { mounts };
    let control = launching.finish().map_err(failed("start the shim of"))?;
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
    let socket = |source| Error::Io { operation: "use the socket of", path: folder.clone(), source };
    Ok(Launched {
        control: Connection::new(control.into_stream()).map_err(socket)?,
        waiting: Connection::new(waiting.into_stream()).map_err(socket)?,
        create,
    })
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
