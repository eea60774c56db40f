//! What undoes containers: after their end, and after the end of whoever should have done it.
//!
//! Every step may be done twice. The record goes last, so that a crash in between is found by the next command.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use estiba_runtime::{Cgroup, DeleteMode, Hierarchies};
use estiba_shim::proto::{Code, TaskStatus};

use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::folder::FolderLock;
use crate::identity::Id;
use crate::journal::Event;
use crate::record::{Ended, Exit, Record, Stage};
use crate::records::Marked;
use crate::request::RestartPolicy;
use crate::unpack;

/// How long a shim takes at most to end once it has said so.
const LEAVING: Duration = Duration::from_secs(2);

/// Whether somebody has to watch over a container from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// A monitor is needed.
    Needed,
    /// It is not.
    No,
}

impl Watch {
    fn or(self, other: Self) -> Self {
        if self == Self::Needed { self } else { other }
    }
}

/// Finds and undoes what killed commands and shims have left below the engine's root. Containers that run, and those
/// that a command is at work on, are not touched.
///
/// The first time since the machine was started every record is looked at; later on what is in `RUN`.
pub(crate) fn run(inner: &Inner) -> Result<Watch> {
    let known = inner.records.is_known_boot();
    let Marked { mut ids, commits } = inner.records.marked()?;
    if !known {
        ids.extend(inner.records.ids()?);
        ids.sort_unstable();
        ids.dedup();
    }
    let mut watch = if inner.misses_monitor()? { Watch::Needed } else { Watch::No };
    for id in &ids {
        if known && inner.records.has_shim(id)? {
            continue;
        }
        let lock = match FolderLock::try_now(&inner.records.folder(id)) {
            Ok(Some(lock)) => lock,
            // Somebody is at work on it, or it has no folder.
            Ok(None) => continue,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // One container that cannot be mended must not stop every other command.
        match settle(inner, id, &lock) {
            Ok(needed) => watch = watch.or(needed),
            Err(error) => {
                tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a dead container could not be cleaned up");
            }
        }
        if !known && let Ok(needed) = come_back(inner, id) {
            watch = watch.or(needed);
        }
    }
    for id in &commits {
        if let Err(error) = thaw(inner, id) {
            tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a container that was paused for a commit could not be thawed");
        }
    }
    inner.records.remove_recordless(&ids)?;
    if !known {
        if let Err(error) = inner.forget_attachments() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what a network had before the boot could not be undone"
            );
        }
        // Layers that a power cut may have taken bytes of: they are unpacked again when they are wanted.
        if let Err(error) = inner.snapshotter.repair() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the snapshots could not be repaired");
        }
        inner.records.remove_stale_names()?;
        inner.records.know_boot()?;
    }
    unpack::remove_abandoned(&*inner.snapshotter, &inner.leases)?;
    Ok(watch)
}

/// Lets a container go on that was paused for a commit whose command is gone.
fn thaw(inner: &Inner, id: &Id) -> Result<()> {
    let Some(mark) = inner.records.abandoned_commit(id)? else { return Ok(()) };
    let lock = match FolderLock::try_now(&inner.records.folder(id)) {
        // Whoever is at work on it may be the one who pauses it: the next command looks again.
        Ok(None) => return Ok(()),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        lock => lock?,
    };
    if lock.is_some()
        && let Some(mut record) = inner.records.read(id)?
        && record.paused
        && inner.records.status(&record)?.is_running()
    {
        // Also one that is not frozen yet: its command may have been killed with the call on its way.
        match set_frozen(inner, id, false) {
            Ok(()) | Err(Error::NotRunning { .. }) => {}
            Err(error) => return Err(error),
        }
        record.paused = false;
        inner.records.write(&record)?;
        inner.tell(&[record.event("unpause")]);
    }
    inner.records.end_commit(id, mark)
}

/// After a reboot: a container whose policy says so is going to be started.
fn come_back(inner: &Inner, id: &Id) -> Result<Watch> {
    let Some(mut record) = inner.records.read(id)? else { return Ok(Watch::No) };
    let comes = record.stage == Stage::Ended
        && record.starts > 0
        && match record.request.restart {
            RestartPolicy::Always => true,
            RestartPolicy::UnlessStopped => !record.stopped,
            // Whether it had failed was decided when it ended.
            RestartPolicy::No | RestartPolicy::OnFailure { .. } => record.restarting,
        };
    if !comes || inner.records.has_shim(id)? {
        return Ok(Watch::No);
    }
    record.restarting = true;
    record.stopped = false;
    inner.records.write(&record)?;
    Ok(Watch::Needed)
}

/// Has a container's processes frozen or thawed by its shim. One that is so already is fine: a command that was killed may have
/// said the same before.
pub(crate) fn set_frozen(inner: &Inner, id: &Id, freeze: bool) -> Result<()> {
    let is_over = |error: &estiba_shim::Error| {
        matches!(error, estiba_shim::Error::File { .. } | estiba_shim::Error::Disconnected { .. })
            || matches!(error.code(), Some(Code::NotFound | Code::FailedPrecondition))
    };
    let ask = || {
        let mut client = estiba_shim::Client::connect(inner.records.bundle(id), id.as_str())?;
        let done = if freeze { client.pause() } else { client.resume() };
        match done {
            Err(error) if error.code() == Some(Code::FailedPrecondition) => {
                let wanted = if freeze { TaskStatus::Paused } else { TaskStatus::Running };
                if client.state()?.status == wanted as i32 { Ok(()) } else { Err(error) }
            }
            done => done,
        }
    };
    ask().map_err(|source| {
        let (operation, id) = (if freeze { "pause" } else { "unpause" }, id.clone());
        if is_over(&source) {
            Error::NotRunning { id }
        } else {
            Error::Shim { operation, id, source: Box::new(source) }
        }
    })
}

/// Brings a container that nobody holds to rest: what has ended is put on record, what was half made is undone. The caller has
/// its lock.
pub(crate) fn settle(inner: &Inner, id: &Id, _lock: &FolderLock) -> Result<Watch> {
    let Some(record) = inner.records.read(id)? else { return Ok(Watch::No) };
    if inner.records.has_shim(id)? {
        return Ok(Watch::No);
    }
    match record.stage {
        Stage::Creating | Stage::Removing => demolish(inner, &record).map(|()| Watch::No),
        Stage::Started => end_run(inner, record),
        Stage::Created | Stage::Ended if inner.records.bundle(id).exists() => {
            // A start that did not come to an end, or a rename.
            kill_leftovers(inner, &record)?;
            inner.detach_networks(&record)?;
            inner.records.mend_names(&record)?;
            inner.records.unmark(id)?;
            Ok(if record.restarting { Watch::Needed } else { Watch::No })
        }
        Stage::Created | Stage::Ended => Ok(if record.restarting { Watch::Needed } else { Watch::No }),
    }
}

/// The same, for a shim that has said that it ends and needs a moment for it. `run` is the number of the run that ends: when the
/// container has been started anew meanwhile, there is nothing left to do.
pub(crate) fn settle_ending(inner: &Inner, id: &Id, run: u32) -> Result<Watch> {
    let lock = match FolderLock::wait(&inner.records.folder(id)) {
        // Somebody else has removed it meanwhile.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Watch::No),
        lock => lock?,
    };
    if inner.records.read(id)?.is_none_or(|record| record.starts != run) {
        return Ok(Watch::No);
    }
    // Mostly it has closed its connections and is about to release its lock.
    let mut pause = Duration::from_micros(20);
    let deadline = Instant::now() + LEAVING;
    while inner.records.has_shim(id)? {
        if Instant::now() > deadline {
            return Err(Error::Busy { id: id.clone() });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
    settle(inner, id, &lock)
}

/// Puts the end of a run on record.
fn end_run(inner: &Inner, mut record: Record) -> Result<Watch> {
    let id = record.id.clone();
    let exit = inner.records.exit(&record)?;
    let mut failures = Vec::new();
    failures.extend(kill_leftovers(inner, &record).err());
    failures.extend(inner.detach_networks(&record).err());
    let mut events = Vec::new();
    if exit.as_ref().is_some_and(|exit| exit.oom_killed) {
        events.push(record.event("oom"));
    }
    // Docker's status for one whose end nobody saw.
    let status = exit.as_ref().map_or(255, |exit| exit.status);
    events.push(record.event("die").with("exitCode", &status));
    inner.tell(&events);
    if record.request.auto_remove {
        failures.extend(demolish(inner, &record).err());
        return Error::all(&id, failures).map(|()| Watch::No);
    }
    record.restarting = is_started_again(&record, exit.as_ref());
    for connection in &mut record.request.connections {
        connection.endpoint = None;
    }
    record.ended = Some(Ended { at: SystemTime::now(), exit, error: None });
    record.stage = Stage::Ended;
    record.paused = false;
    let watch = if record.restarting { Watch::Needed } else { Watch::No };
    inner.records.write(&record)?;
    if failures.is_empty() {
        // Else the next command finds it here and tries again.
        failures.extend(inner.records.unmark(&id).err());
    }
    Error::all(&id, failures).map(|()| watch)
}

/// Whether a container that has ended so is started again by itself.
fn is_started_again(record: &Record, exit: Option<&Exit>) -> bool {
    !record.stopped
        && match record.request.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure { retries } => {
                exit.is_none_or(|exit| exit.status != 0) && retries.is_none_or(|most| record.restarts < most)
            }
        }
}

/// Removes a container and all that it has made, killing what may run. The caller holds the container's lock, and no shim lives.
pub(crate) fn demolish(inner: &Inner, record: &Record) -> Result<()> {
    let id = &record.id;
    let mut failures = Vec::new();
    failures.extend(kill_leftovers(inner, record).err());
    failures.extend(inner.detach_networks(record).err());
    let removed = inner.snapshotter_of(record).and_then(|held| unpack::remove(&*held, &id.snapshot_key()?));
    failures.extend(removed.err());
    if record.takes_volumes || record.stage == Stage::Creating {
        failures.extend(inner.remove_own_volumes(record).err());
    }
    if failures.is_empty() {
        if record.stage != Stage::Creating {
            inner.tell(&[record.event("destroy")]);
        }
        failures.extend(inner.records.remove(record).err());
    }
    Error::all(id, failures)
}

/// Kills the processes of a container whose shim has died, and removes its cgroup. A container that its shim has deleted has
/// nothing left.
fn kill_leftovers(inner: &Inner, record: &Record) -> Result<()> {
    let id = &record.id;
    let bundle = inner.records.bundle(id);
    if !has_entries(&bundle.join("runtime")) && !bundle.join("shim.sock").exists() {
        return Ok(());
    }
    let failed = |source| Error::Runtime { id: id.clone(), source: Box::new(source) };
    let container = id.runtime_id()?;
    let deleted = inner.runtime_of(record).delete(&container, DeleteMode::Force);
    // A runtime that was killed before it wrote its state knows nothing of the cgroup: the record does.
    match Hierarchies::detect() {
        // It had none; with the first process all of its pid namespace have ended.
        _ if record.cgroup.is_empty() => {}
        Ok(hierarchies) => {
            let cgroup = Cgroup::open(&hierarchies, &record.cgroup).map_err(failed)?;
            cgroup.kill().and_then(|()| cgroup.remove()).map_err(failed)?;
        }
        // Then the container never came to be.
        Err(estiba_runtime::Error::CgroupsNotMounted) => {}
        Err(error) => return Err(failed(error)),
    }
    if let Err(error) = deleted {
        // Its processes are gone all the same, and what it remembers goes with the bundle.
        tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "the runtime could not delete a container");
    }
    Ok(())
}

fn has_entries(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}

/// Kills a container that runs and waits until its shim has gone. One that does not run is fine.
pub(crate) fn end(inner: &Inner, id: &Id) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if !inner.records.has_shim(id)? {
        return Ok(());
    }
    let failed = |source| Error::Shim { operation: "kill", id: id.clone(), source: Box::new(source) };
    // The connection is closed at once: without a client, the shim ends when its container has ended.
    match estiba_shim::Client::connect(inner.records.bundle(id), id.as_str()) {
        Ok(mut client) => match client.kill_all(nix::libc::SIGKILL as u32) {
            // There is nothing to kill, or no longer: the shim is at its end.
            Ok(()) | Err(estiba_shim::Error::Status { .. } | estiba_shim::Error::Disconnected { .. }) => {
                let _ = client.wait();
                let _ = client.delete();
                let _ = client.shutdown();
            }
            Err(error) => return Err(failed(error)),
        },
        // It is at its end, and its socket is gone already: the lock says when.
        Err(estiba_shim::Error::File { .. }) => {}
        Err(error) => return Err(failed(error)),
    }
    let deadline = Instant::now() + PATIENCE;
    while inner.records.has_shim(id)? {
        if Instant::now() > deadline {
            return Err(Error::Busy { id: id.clone() });
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

impl Inner {
    /// Appends events to the journal. What has happened has happened, though it cannot be told.
    pub(crate) fn tell(&self, events: &[Event]) {
        if let Err(error) = self.journal.append(events) {
            tracing::warn!(error = &error as &dyn std::error::Error, "an event could not be told");
        }
    }
}
