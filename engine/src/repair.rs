//! What undoes containers: after their end, and after the end of whoever should have done it.
//!
//! Every step may be done twice. The record goes last, so that a crash in between is found by the next command.

use std::time::{Duration, Instant};

use estiba_runtime::{Cgroup, DeleteMode, External, Hierarchies, Native, Runtime};

use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::folder::{self, FolderLock};
use crate::identity::Id;
use crate::record::{Record, Stage};
use crate::unpack;

/// What stays of a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The record and the root file system: it can be looked at and started again.
    Record,
    /// Nothing.
    Nothing,
}

/// Finds and undoes what killed commands and shims have left below the engine's root. Containers that run, and those
/// that a command is at work on, are not touched.
pub(crate) fn run(inner: &Inner) -> Result<()> {
    for id in inner.records.ids()? {
        let lock = match FolderLock::try_now(&inner.records.folder(&id)) {
            Ok(Some(lock)) => lock,
            // Somebody is at work on it.
            Ok(None) => continue,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // One container that cannot be mended must not stop every other command.
        if let Err(error) = settle(inner, &id, &lock) {
            tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a dead container could not be cleaned up");
        }
    }
    inner.records.remove_recordless()?;
    inner.records.remove_stale_names()?;
    unpack::remove_abandoned(&*inner.snapshotter, &inner.leases)
}

/// Undoes what is left of one container that nobody holds.
pub(crate) fn settle(inner: &Inner, id: &Id, _lock: &FolderLock) -> Result<()> {
    let Some(record) = inner.records.read(id)? else { return Ok(()) };
    if inner.records.has_shim(id)? {
        return Ok(());
    }
    match record.stage {
        Stage::Creating => demolish(inner, &record, Keep::Nothing),
        Stage::Started if record.request.auto_remove => demolish(inner, &record, Keep::Nothing),
        Stage::Started if inner.records.bundle(id).exists() => demolish(inner, &record, Keep::Record),
        Stage::Created | Stage::Started => Ok(()),
    }
}

/// Kills what may run, and removes what the container has made. The caller holds the container's lock, and no shim
/// lives.
pub(crate) fn demolish(inner: &Inner, record: &Record, keep: Keep) -> Result<()> {
    let id = &record.id;
    let mut failures = Vec::new();
    let bundle = inner.records.bundle(id);
    if bundle.exists() {
        failures.extend(kill(inner, record).err());
    }
    failures.extend(remains(inner, record, keep).err());
    Error::all(id, failures)
}

/// Removes what is left of a container whose processes and cgroup are gone.
pub(crate) fn remains(inner: &Inner, record: &Record, keep: Keep) -> Result<()> {
    let id = &record.id;
    let mut failures = Vec::new();
    failures.extend(folder::remove(&inner.records.bundle(id)).err());
    if keep == Keep::Nothing {
        let removed = inner.snapshotter_of(record).and_then(|held| unpack::remove(&*held, &id.snapshot_key()?));
        failures.extend(removed.err());
        if failures.is_empty() {
            failures.extend(inner.records.remove(record).err());
        }
    }
    Error::all(id, failures)
}

/// Kills the processes of a container whose shim has died, and removes its cgroup.
fn kill(inner: &Inner, record: &Record) -> Result<()> {
    let id = &record.id;
    let failed = |source| Error::Runtime { id: id.clone(), source: Box::new(source) };
    let state = inner.records.bundle(id).join("runtime");
    let container = id.runtime_id()?;
    let runtime: Box<dyn Runtime> = match &record.request.runtime {
        None => Box::new(Native::new(state)),
        Some(program) => Box::new(External::new(program.clone(), state)),
    };
    let deleted = runtime.delete(&container, DeleteMode::Force);
    // A runtime that was killed before it wrote its state knows nothing of the cgroup: the record does.
    let hierarchies = Hierarchies::detect().map_err(failed)?;
    let cgroup = Cgroup::open(&hierarchies, &record.cgroup).map_err(failed)?;
    cgroup.kill().and_then(|()| cgroup.remove()).map_err(failed)?;
    deleted.map_err(failed)
}

/// Kills a container that runs and waits until its shim has gone. One that does not run is fine.
pub(crate) fn end(inner: &Inner, id: &Id) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if !inner.records.has_shim(id)? {
        return Ok(());
    }
    let failed = |source| Error::Shim { operation: "kill", id: id.clone(), source: Box::new(source) };
    match estiba_shim::Client::connect(inner.records.bundle(id), id.as_str()) {
        Ok(mut client) => match client.kill_all(nix::libc::SIGKILL as u32) {
            // There is nothing to kill, or no longer: the shim is at its end.
            Ok(()) | Err(estiba_shim::Error::Status { .. } | estiba_shim::Error::Disconnected { .. }) => {}
            Err(error) => return Err(failed(error)),
        },
        // It is at its end, and its socket is gone already: the lock says when.
        Err(estiba_shim::Error::File { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    // Without a client, the shim ends when its container has ended.
    let deadline = Instant::now() + PATIENCE;
    while inner.records.has_shim(id)? {
        if Instant::now() > deadline {
            return Err(Error::Busy { id: id.clone() });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
