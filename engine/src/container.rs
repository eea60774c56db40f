//! A handle on a container that exists.

use std::time::{Duration, SystemTime};

use estiba_runtime::Stats;
use estiba_shim::proto;

use crate::engine::{Engine, Inner, Made};
use crate::error::{Error, Result};
use crate::folder::FolderLock;
use crate::health::Health;
use crate::identity::{ContainerName, Id};
use crate::record::{Exit, Record, Stage, Status, Summary};
use crate::repair;
use crate::request::{Limits, RestartPolicy};
use crate::running::Running;
use crate::spec;
use crate::start::{self, Starter};
use crate::streams::Streams;

/// How long a killed container may take to be gone: longer than its shim waits for a reader that does not read (10 seconds).
const KILLED: Duration = Duration::from_secs(20);

/// How long the shim of a container that has ended is waited for: one that a client keeps may stay for longer.
const LEAVING: Duration = Duration::from_secs(5);

/// A container by its id. The handle holds nothing: the container may change or go at any time.
///
/// Every method that changes the container takes its lock for as long as that takes: of two commands at once one comes first, and
/// the other finds what that has made of the container.
#[derive(Debug, Clone)]
pub struct Container {
    pub(crate) engine: Engine,
    pub(crate) id: Id,
}

/// What [`Container::wait`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Until {
    /// That it does not run; one that does not is not waited for.
    #[default]
    NotRunning,
    /// Its next end.
    NextExit,
    /// That it is removed.
    Removed,
}

/// Whether a container that runs is killed to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// It is killed.
    Yes,
    /// It is refused.
    No,
}

/// What becomes of the volumes that were made for a container alone, when it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnVolumes {
    /// They stay.
    Keep,
    /// They go with it.
    Remove,
}

/// What a container uses at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// When it was measured.
    pub at: SystemTime,
    /// By its cgroup.
    pub stats: Stats,
}

impl Container {
    pub(crate) fn new(engine: Engine, id: Id) -> Self {
        Self { engine, id }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// What is known of it for as long as it exists.
    pub async fn record(&self) -> Result<Record> {
        self.with(Inner::record).await
    }

    /// What it is doing now.
    pub async fn status(&self) -> Result<Status> {
        self.with(|inner, id| inner.records.status(&inner.record(id)?)).await
    }

    /// Record, status and health in one.
    pub async fn summary(&self) -> Result<Summary> {
        self.with(|inner, id| inner.summary(inner.record(id)?)).await
    }

    /// What the checks of its health have found in its last run; `None` if it is not checked.
    pub async fn health(&self) -> Result<Option<Health>> {
        self.with(|inner, id| Ok(inner.records.health(&inner.record(id)?))).await
    }

    /// Starts it, connected to the caller by all of its streams.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`] if it runs.
    pub async fn start(&self) -> Result<Running> {
        self.start_with(Streams::ALL).await
    }

    /// Starts it, connected to the caller by the streams that it wants.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`] if it runs.
    pub async fn start_with(&self, streams: Streams) -> Result<Running> {
        let (engine, id) = (self.engine.clone(), self.id.clone());
        start::on_thread(&self.engine, move |inner, waited| {
            let (lock, record) = inner.lock(&id)?;
            if inner.records.has_shim(&id)? {
                return Err(Error::StillRunning { id });
            }
            // Its shim may have died, and nobody has cleaned up since.
            repair::settle(inner, &id, &lock)?;
            let record = inner.records.read(&id)?.ok_or_else(|| Error::NoContainer { name: record.id.to_string() })?;
            start::start(&engine, Made { record, lock, fresh: None }, streams, Starter::User, &waited)
        })
        .await
    }

    /// Connects to a container that runs.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn attach(&self, streams: Streams) -> Result<Running> {
        let (record, fifos) = self
            .with(move |inner, id| {
                // Nobody starts or removes it meanwhile.
                let (_lock, record) = inner.lock(id)?;
                if !inner.records.status(&record)?.is_running() {
                    return Err(Error::NotRunning { id: id.clone() });
                }
                let streams = streams.of(record.request.interactive, record.request.tty);
                let fifos = crate::streams::Fifos::make(&inner.records.bundle(id), streams)?;
                inner.tell(&[record.event("attach")]);
                Ok((record, fifos))
            })
            .await?;
        let mut process = self.engine.process(&record, String::new()).await?;
        let ends = process.attach(fifos, false).await?;
        Ok(Running::new(process, ends))
    }

    /// Sends a signal to its first process. A frozen container is thawed, so that it takes it. The end of one that was sent SIGKILL
    /// is waited for, and is on record then.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`]; [`Error::DoesNotEnd`] if a killed one has not ended after 20 seconds.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        let record = self
            .with(move |inner, id| {
                let (_lock, mut record) = inner.lock(id)?;
                if !inner.records.status(&record)?.is_running() {
                    return Err(Error::NotRunning { id: id.clone() });
                }
                // Whoever ends it so does not want it back.
                if (signal == nix::libc::SIGKILL || signal == record.stop_signal) && !record.stopped {
                    record.stopped = true;
                    is_noted(&record, inner.records.write(&record))?;
                }
                Ok(record)
            })
            .await?;
        if signal != nix::libc::SIGKILL {
            return self.signal(&record, signal).await;
        }
        let process = self.engine.process(&record, String::new()).await?;
        self.signal(&record, signal).await?;
        let mut ended = Box::pin(process.wait());
        if !is_in_time(&mut ended, Some(KILLED)).await {
            return Err(Error::DoesNotEnd { id: self.id.clone() });
        }
        drop(ended);
        drop(process);
        self.left(record.starts).await
    }

    /// Waits until the shim of a run that has ended is gone, and so the end is on record: whatever is asked for next finds that the
    /// container does not run. A client that has not read all output keeps its shim, and is not waited for without end.
    async fn left(&self, run: u32) -> Result<()> {
        let deadline = tokio::time::Instant::now() + LEAVING;
        let mut pause = Duration::from_micros(200);
        loop {
            match self.summary().await {
                Ok(summary) if summary.status.is_running() && summary.record.starts == run => {}
                Ok(_) | Err(Error::NoContainer { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
            if tokio::time::Instant::now() > deadline {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }

    async fn signal(&self, record: &Record, signal: i32) -> Result<()> {
        let gone = || Error::NotRunning { id: self.id.clone() };
        let mut shim = self.engine.connect(&self.id).await?.ok_or_else(gone)?;
        let call = proto::KillRequest {
            id: self.id.to_string(),
            signal: u32::try_from(signal).unwrap_or_default(),
            ..proto::KillRequest::default()
        };
        match shim.call(&call).await {
            Ok(_) => {}
            // It ended before the signal came.
            Err(error) if is_over(&error) => return Err(gone()),
            Err(source) => return Err(self.shim("signal")(source)),
        }
        let event = record.event("kill").with("signal", &signal);
        self.engine
            .blocking(move |inner| {
                inner.tell(&[event]);
                Ok(())
            })
            .await?;
        if !record.paused {
            return Ok(());
        }
        match self.unpause().await {
            // Somebody was quicker, or it has ended already.
            Err(Error::NotPaused { .. } | Error::NotRunning { .. } | Error::NoContainer { .. }) => Ok(()),
            thawed => thawed,
        }
    }

    /// Asks it to end, by its stop signal or `signal`, and kills it if it has not ended in time (its own, or `timeout` in seconds;
    /// negative is for ever). One that does not run is fine; one that was going to be started again is not.
    pub async fn stop(&self, signal: Option<i32>, timeout: Option<i64>) -> Result<()> {
        let record = self
            .with(|inner, id| {
                let (_lock, mut record) = inner.lock(id)?;
                let runs = inner.records.status(&record)?.is_running();
                if runs || record.restarting {
                    record.stopped = true;
                    record.restarting = false;
                    is_noted(&record, inner.records.write(&record))?;
                }
                Ok(runs.then_some(record))
            })
            .await?;
        let Some(record) = record else { return Ok(()) };
        let process = match self.engine.process(&record, String::new()).await {
            Ok(process) => process,
            // It has ended by itself.
            Err(Error::NotRunning { .. }) => return self.engine.settled(self.id.clone(), record.starts).await,
            Err(error) => return Err(error),
        };
        match self.signal(&record, signal.unwrap_or(record.stop_signal)).await {
            Ok(()) | Err(Error::NotRunning { .. }) => {}
            Err(error) => return Err(error),
        }
        let seconds = timeout.unwrap_or(record.stop_timeout);
        let patience = u64::try_from(seconds).ok().map(Duration::from_secs);
        // A shim that has died is an end, too.
        let mut ended = Box::pin(process.wait());
        if !is_in_time(&mut ended, patience).await {
            let all = proto::KillRequest { id: self.id.to_string(), signal: 9, all: true, ..Default::default() };
            let _ = process.call(&all).await;
            let event = record.event("kill").with("signal", &9);
            self.engine
                .blocking(move |inner| {
                    inner.tell(&[event]);
                    Ok(())
                })
                .await?;
            if !is_in_time(&mut ended, Some(KILLED)).await {
                return Err(Error::DoesNotEnd { id: self.id.clone() });
            }
        }
        drop(ended);
        process.delete().await;
        process.shut_down().await;
        self.engine.settled(self.id.clone(), record.starts).await?;
        self.engine
            .blocking(move |inner| {
                inner.tell(&[record.event("stop")]);
                Ok(())
            })
            .await
    }

    /// [`stop`](Self::stop), and starts it again, whatever it did before.
    pub async fn restart(&self, signal: Option<i32>, timeout: Option<i64>) -> Result<()> {
        self.stop(signal, timeout).await?;
        let running = match self.start_with(Streams::NONE).await {
            // Somebody else has started it meanwhile: so it runs.
            Err(Error::StillRunning { .. }) => return Ok(()),
            running => running?,
        };
        let record = running.record().clone();
        drop(running);
        self.engine
            .blocking(move |inner| {
                inner.tell(&[record.event("restart")]);
                Ok(())
            })
            .await
    }

    /// Freezes its processes where they stand.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`], [`Error::Paused`].
    pub async fn pause(&self) -> Result<()> {
        self.freeze(true).await
    }

    /// Thaws its processes.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`].
    pub async fn unpause(&self) -> Result<()> {
        self.freeze(false).await
    }

    /// In one piece: a future that is dropped leaves nothing half done, and gives the lock back only when the shim has answered.
    async fn freeze(&self, freeze: bool) -> Result<()> {
        self.with(move |inner, id| {
            let (_lock, mut record) = inner.lock(id)?;
            match inner.records.status(&record)? {
                Status::Paused if freeze => return Err(Error::Paused { id: id.clone() }),
                Status::Running if !freeze => return Err(Error::NotPaused { id: id.clone() }),
                Status::Running | Status::Paused => {}
                _ => return Err(Error::NotRunning { id: id.clone() }),
            }
            if record.cgroup.is_empty() {
                return Err(Error::NoCgroup);
            }
            // From before it is frozen until it is thawed: one that nobody knows of as frozen would be so for ever.
            if !record.paused {
                record.paused = true;
                inner.records.write(&record)?;
            }
            let done = repair::set_frozen(inner, id, freeze);
            if freeze != done.is_ok() {
                record.paused = false;
                inner.records.write(&record)?;
            }
            if done.is_ok() {
                inner.tell(&[record.event(if freeze { "pause" } else { "unpause" })]);
            }
            done
        })
        .await
    }

    /// Waits for what `until` says, and returns how the container ended; `None` if that is lost, or it never ran. The end is on record
    /// then: the container can be removed, or started again.
    pub async fn wait(&self, until: Until) -> Result<Option<Exit>> {
        let first = self.record().await?;
        let mut last = first.ended.as_ref().and_then(|ended| ended.exit.clone());
        loop {
            let summary = match self.summary().await {
                Ok(summary) => summary,
                // Removed: by itself, or by somebody else.
                Err(Error::NoContainer { .. }) => return Ok(last),
                Err(error) => return Err(error),
            };
            let over = !summary.status.is_running();
            let record = summary.record;
            match summary.status {
                Status::Exited(exit) | Status::Restarting(exit) => {
                    last = exit;
                    if until == Until::NotRunning || (until == Until::NextExit && has_ended_since(&first, &record)) {
                        return Ok(last);
                    }
                }
                Status::Created if until == Until::NotRunning => return Ok(last),
                _ => {}
            }
            if over {
                // Nothing tells of the next start or the removal but the folder itself.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            let Ok(process) = self.engine.process(&record, String::new()).await else {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            };
            let run = record.starts;
            match process.wait().await {
                Ok(status) => {
                    let stored = self.with(move |inner, _| inner.records.exit(&record)).await.ok().flatten();
                    last = Some(stored.unwrap_or(Exit { status, signal: None, oom_killed: false }));
                    if until != Until::Removed {
                        // Without a client the shim leaves.
                        drop(process);
                        self.left(run).await?;
                        return Ok(last);
                    }
                }
                Err(Error::ShimLost { .. }) => {}
                Err(error) => return Err(error),
            }
            drop(process);
            // Without a client the shim leaves, and what follows is found on disk.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Gives it another name.
    pub async fn rename(&self, name: &str) -> Result<()> {
        let name: ContainerName = name.strip_prefix('/').unwrap_or(name).parse()?;
        self.with(move |inner, id| {
            let (lock, mut record) = inner.lock(id)?;
            let old = record.name.clone();
            if old == name {
                return Err(Error::SameName { name: name.to_string() });
            }
            inner.records.rename(&mut record, name.clone())?;
            inner.tell(&[record.event("rename").with("oldName", &format!("/{old}"))]);
            if !inner.records.has_shim(id)? {
                repair::settle(inner, id, &lock)?;
            }
            Ok(())
        })
        .await
    }

    /// Changes its limits and restart policy; what is `None` stays. What it has while it runs changes at once.
    pub async fn update(&self, limits: Limits, restart: Option<RestartPolicy>) -> Result<()> {
        let (lock, mut record, runs) = self
            .with(|inner, id| {
                let (lock, record) = inner.lock(id)?;
                let runs = inner.records.status(&record)?.is_running();
                Ok((lock, record, runs))
            })
            .await?;
        if restart.is_some_and(|policy| policy != RestartPolicy::No) && record.request.auto_remove {
            let (field, value) = ("the restart policy", restart.map_or("", RestartPolicy::name).to_owned());
            return Err(Error::Request { field, value, reason: "the container is removed when it has ended (--rm)" });
        }
        let changed = record.request.limits.changed(&limits);
        // Checked as a whole, and only what was asked for is sent.
        spec::resources(&changed)?;
        if record.cgroup.is_empty() {
            spec::refuse_limits(&changed)?;
        }
        if runs && limits != Limits::default() {
            let resources = spec::changes(&limits, &changed)?;
            let value = serde_json::to_vec(&resources)
                .map_err(|source| Error::Spec { field: "linux.resources", source: source.into() })?;
            let any = proto::Any { type_url: format!("{TYPES}LinuxResources"), value };
            let call = proto::UpdateTaskRequest {
                id: self.id.to_string(),
                resources: Some(any),
                ..proto::UpdateTaskRequest::default()
            };
            let gone = || Error::NotRunning { id: self.id.clone() };
            let mut shim = self.engine.connect(&self.id).await?.ok_or_else(gone)?;
            shim.call(&call).await.map_err(self.shim("update"))?;
        }
        record.request.limits = changed;
        if let Some(policy) = restart {
            record.request.restart = policy;
            record.restarting = record.restarting && policy != RestartPolicy::No;
        }
        let watch = runs && record.needs_monitor();
        self.engine
            .blocking(move |inner| {
                inner.records.write(&record)?;
                inner.tell(&[record.event("update")]);
                drop(lock);
                Ok(())
            })
            .await?;
        if watch { self.engine.ensure_monitor().await } else { Ok(()) }
    }

    /// What it uses now.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn usage(&self) -> Result<Usage> {
        let gone = || Error::NotRunning { id: self.id.clone() };
        let mut shim = self.engine.connect(&self.id).await?.ok_or_else(gone)?;
        let answer = match shim.call(&proto::StatsRequest { id: self.id.to_string() }).await {
            Err(error) if is_over(&error) => return Err(gone()),
            answer => answer.map_err(self.shim("measure"))?,
        };
        let stats = answer.to_stats().map_err(self.shim("measure"))?;
        Ok(Usage { at: SystemTime::now(), stats })
    }

    /// Its processes, numbered as the host sees them.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`].
    pub async fn processes(&self) -> Result<Vec<u32>> {
        let gone = || Error::NotRunning { id: self.id.clone() };
        let mut shim = self.engine.connect(&self.id).await?.ok_or_else(gone)?;
        match shim.call(&proto::PidsRequest { id: self.id.to_string() }).await {
            Ok(answer) => Ok(answer.processes.iter().map(|process| process.pid).collect()),
            Err(error) if is_over(&error) => Err(gone()),
            Err(source) => Err(self.shim("list the processes of")(source)),
        }
    }

    /// Removes it with all that is its own. With `kill`, one that runs is killed first.
    ///
    /// # Errors
    ///
    /// [`Error::StillRunning`] if it runs and `kill` is [`Kill::No`].
    pub async fn remove(&self, kill: Kill) -> Result<()> {
        self.remove_with(kill, OwnVolumes::Keep).await
    }

    /// The same, and says what becomes of the volumes that were made for it alone.
    pub async fn remove_with(&self, kill: Kill, volumes: OwnVolumes) -> Result<()> {
        self.with(move |inner, id| {
            loop {
                if kill == Kill::Yes {
                    // Nobody starts it again meanwhile.
                    if let Ok((_lock, mut record)) = inner.lock(id)
                        && !record.stopped
                    {
                        (record.stopped, record.restarting) = (true, false);
                        room(inner.records.write(&record))?;
                    }
                    repair::end(inner, id)?;
                }
                let (lock, record) = match inner.lock(id) {
                    // It was of the kind that goes by itself.
                    Err(Error::NoContainer { .. }) if kill == Kill::Yes => return Ok(()),
                    Err(error @ (Error::Damaged { .. } | Error::Version { .. })) if kill == Kill::Yes => {
                        return inner.remove_damaged(id, &error);
                    }
                    held => held?,
                };
                if inner.records.has_shim(id)? {
                    if kill == Kill::Yes {
                        // Somebody was quicker to start it.
                        drop(lock);
                        continue;
                    }
                    let id = id.clone();
                    return Err(if record.paused { Error::StillPaused { id } } else { Error::StillRunning { id } });
                }
                if record.restarting && kill == Kill::No {
                    return Err(Error::StillRunning { id: id.clone() });
                }
                room(repair::settle(inner, id, &lock).map(drop))?;
                let Some(mut record) = inner.records.read(id)? else { return Ok(()) };
                record.stage = Stage::Removing;
                record.takes_volumes |= volumes == OwnVolumes::Remove;
                room(inner.records.mark(id).and_then(|()| inner.records.write(&record)))?;
                return repair::demolish(inner, &record);
            }
        })
        .await
    }

    pub(crate) fn shim(&self, operation: &'static str) -> impl FnOnce(estiba_shim::Error) -> Error {
        let id = self.id.clone();
        move |source| Error::Shim { operation, id, source: Box::new(source) }
    }

    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Id) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let id = self.id.clone();
        self.engine.blocking(move |inner| work(inner, &id)).await
    }
}

/// Where the types of the runtime specification are named in the task API.
pub(crate) const TYPES: &str = "types.containerd.io/opencontainers/runtime-spec/1/";

/// What could not be noted for want of room must not stop a removal, which makes room. If it is interrupted, somebody has to ask for
/// it again.
fn room(noted: Result<()>) -> Result<()> {
    match noted {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => Ok(()),
        noted => noted,
    }
}

/// Nor must it stop the end of a container that nobody starts again: it may be the one that fills the disk.
fn is_noted(record: &Record, noted: Result<()>) -> Result<()> {
    if record.request.restart == RestartPolicy::No { room(noted) } else { noted }
}

fn has_ended_since(first: &Record, now: &Record) -> bool {
    now.starts > first.starts || now.ended != first.ended
}

/// Whether a call failed since the process or the shim is not there any more.
fn is_over(error: &estiba_shim::Error) -> bool {
    matches!(error, estiba_shim::Error::Disconnected { .. })
        || matches!(error.code(), Some(proto::Code::NotFound | proto::Code::FailedPrecondition))
}

/// Whether something comes to its end in time; `None` is for ever.
async fn is_in_time(ending: &mut (impl Future + Unpin), patience: Option<Duration>) -> bool {
    match patience {
        None => {
            ending.await;
            true
        }
        Some(patience) => tokio::time::timeout(patience, ending).await.is_ok(),
    }
}

impl Inner {
    pub(crate) fn record(&self, id: &Id) -> Result<Record> {
        self.records.read(id)?.ok_or_else(|| Error::NoContainer { name: id.to_string() })
    }

    pub(crate) fn summary(&self, record: Record) -> Result<Summary> {
        let status = self.records.status(&record)?;
        let health = self.records.health(&record);
        Ok(Summary { record, status, health })
    }

    /// Removes a container whose record cannot be read, by what its id tells.
    fn remove_damaged(&self, id: &Id, error: &Error) -> Result<()> {
        let folder = self.records.folder(id);
        let Some(_lock) = FolderLock::try_now(&folder)? else { return Err(Error::Busy { id: id.clone() }) };
        let image = crate::images::Image::unknown();
        let origin = crate::record::Origin {
            snapshotter: self.snapshotter_name(),
            cgroup_parent: &self.config.cgroup_parent,
            image_id: String::new(),
            command: Vec::new(),
            stop_signal: nix::libc::SIGTERM,
            stop_timeout: 0,
            health: None,
            volumes: Vec::new(),
        };
        let name = self.records.name_of(id)?.unwrap_or_else(|| ContainerName::from_id(id));
        tracing::warn!(error = error as &dyn std::error::Error, "a container is removed whose record cannot be read");
        let record = Record::new(id.clone(), name, origin, crate::request::CreateRequest::new(image))?;
        repair::demolish(self, &record)
    }
}
