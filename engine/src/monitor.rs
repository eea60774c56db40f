//! The monitor: what must be done for containers while no command runs. It starts again those whose policy says so, and looks
//! whether they are well.
//!
//! There is one for each root, and it holds `RUN/monitor.lock`. Who needs it makes `RUN/monitor.wanted` and starts it; it goes when
//! nothing is left to watch over. It keeps nothing in memory that matters: another one takes up everything from the records.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;

use crate::container::Container;
use crate::engine::{Engine, Inner, Made};
use crate::error::{Error, Result};
use crate::events::EventsRequest;
use crate::exec::ExecRequest;
use crate::folder;
use crate::health::{Health, HealthStatus, Probe};
use crate::identity::Id;
use crate::journal::Kind;
use crate::record::{Record, Stage};
use crate::request::Healthcheck;
use crate::start::{self, Starter};
use crate::streams::Streams;

/// The first pause before a container is started again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A run that lasted so long makes the next pause the first one again.
const LONG_RUN: Duration = Duration::from_secs(10);

/// The most that is kept of what a check prints.
const OUTPUT: usize = 4096;

impl Engine {
    /// Is the root's monitor for as long as there is something to watch over, and for `linger` more. Returns at once if
    /// another one is.
    pub async fn monitor(&self, linger: Duration) -> Result<()> {
        let Some(mut lock) = self.blocking(Inner::monitor_lock).await? else { return Ok(()) };
        loop {
            self.watch_over(linger).await?;
            match self.blocking(move |inner| inner.leave_monitor(lock)).await? {
                None => return Ok(()),
                Some(kept) => lock = kept,
            }
        }
    }

    /// Watches over the root's containers until there is none for `linger`.
    async fn watch_over(&self, linger: Duration) -> Result<()> {
        // From before the first look at the records: nothing is missed.
        let mut events = self.events(EventsRequest::default()).await?;
        let mut watched = Watched { engine: self.clone(), tasks: HashMap::new() };
        for summary in self.containers().await? {
            watched.look(&summary.record);
        }
        loop {
            let event = tokio::time::timeout(linger, events.next()).await;
            watched.tasks.retain(|_, task| !task.is_finished());
            match event {
                Ok(Some(event)) => {
                    let event = event?;
                    if event.kind == Kind::Container
                        && let Ok(id) = event.id.parse::<Id>()
                    {
                        watched.look_at(id).await;
                    }
                }
                Ok(None) => return Ok(()),
                Err(_) if watched.tasks.is_empty() => return Ok(()),
                Err(_) => {}
            }
        }
    }

    /// Starts the monitor if it does not run.
    pub(crate) async fn ensure_monitor(&self) -> Result<()> {
        self.blocking(|inner| {
            let [program, arguments @ ..] = inner.config.monitor_command.as_slice() else { return Ok(()) };
            {
                // A monitor that is about to leave looks at the records once more, and whoever comes after that finds it gone.
                let _gate = inner.monitor_gate()?;
                let wanted = inner.monitor_file("wanted");
                File::create(&wanted).map_err(Error::io("make", wanted))?;
                if folder::is_held(&inner.monitor_file("lock"))? {
                    return Ok(());
                }
            }
            let failed = |source| Error::Monitor { source };
            let command = Command::new(program)
                .args(arguments)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let status = command.map_err(failed)?;
            if status.success() { Ok(()) } else { Err(failed(io::Error::other(format!("it ended with {status}")))) }
        })
        .await
    }
}

impl Inner {
    fn monitor_file(&self, extension: &str) -> PathBuf {
        self.config.run.join("monitor").with_extension(extension)
    }

    /// The lock of the monitor; `None` if another one has it.
    fn monitor_lock(&self) -> Result<Option<Flock<File>>> {
        let path = self.monitor_file("lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        match Flock::lock(file.map_err(Error::io("open", &path))?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::errno("lock", path)(errno)),
        }
    }

    /// Held by who decides whether the monitor stays, and by who wants it.
    fn monitor_gate(&self) -> Result<Flock<File>> {
        let path = self.monitor_file("gate");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::errno("lock", path)(errno))
    }

    /// Gives up the monitor's lock, or gives it back if a container wants to be watched.
    fn leave_monitor(&self, lock: Flock<File>) -> Result<Option<Flock<File>>> {
        let _gate = self.monitor_gate()?;
        for id in self.records.ids()? {
            if self.records.read(&id).is_ok_and(|record| record.is_some_and(|record| is_watched(&record))) {
                return Ok(Some(lock));
            }
        }
        let _ = fs::remove_file(self.monitor_file("wanted"));
        drop(lock);
        Ok(None)
    }

    /// Whether a monitor is wanted and does not run: it was killed.
    pub(crate) fn misses_monitor(&self) -> Result<bool> {
        Ok(self.monitor_file("wanted").exists() && !folder::is_held(&self.monitor_file("lock"))?)
    }
}

/// The containers that are watched over, a task each.
struct Watched {
    engine: Engine,
    tasks: HashMap<Id, JoinHandle<()>>,
}

impl Watched {
    async fn look_at(&mut self, id: Id) {
        let container = Container::new(self.engine.clone(), id);
        if let Ok(summary) = container.summary().await {
            self.look(&summary.record);
        }
    }

    fn look(&mut self, record: &Record) {
        if is_watched(record) && !self.tasks.contains_key(&record.id) {
            let container = Container::new(self.engine.clone(), record.id.clone());
            let task = tokio::spawn(async move {
                if let Err(error) = Box::pin(attend(&container)).await {
                    let id = container.id();
                    tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a container is not watched any more");
                }
            });
            self.tasks.insert(record.id.clone(), task);
        }
    }
}

/// Whether a container is to be watched over. One that has started and does not run has ended just now, and nobody has put that on
/// record.
fn is_watched(record: &Record) -> bool {
    record.restarting || (record.stage == Stage::Started && record.needs_monitor())
}

/// Watches over one container until it needs it no more.
async fn attend(container: &Container) -> Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let summary = match container.summary().await {
            Err(Error::NoContainer { .. }) => return Ok(()),
            summary => summary?,
        };
        let record = summary.record;
        if record.stage == Stage::Started && record.needs_monitor() {
            let since = Instant::now();
            watch_run(container, &record).await?;
            if since.elapsed() >= LONG_RUN {
                pause = FIRST_PAUSE;
            }
        } else if record.restarting {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            restart(container).await?;
        } else {
            return Ok(());
        }
    }
}

/// Starts a container again, unless somebody has thought better of it.
async fn restart(container: &Container) -> Result<()> {
    let held = container
        .with(|inner, id| {
            let (lock, record) = inner.lock(id)?;
            let wanted = record.restarting && !inner.records.has_shim(id)?;
            Ok(wanted.then_some((lock, record)))
        })
        .await;
    let Some((lock, record)) = (match held {
        Err(Error::NoContainer { .. }) => None,
        held => held?,
    }) else {
        return Ok(());
    };
    let engine = container.engine.clone();
    // It goes on by itself; what it says goes to its log. A failure is on its record.
    let restart = move |_: &Inner, waited| {
        start::start(&engine, Made { record, lock, fresh: None }, Streams::NONE, Starter::Policy, &waited)
    };
    start::on_thread(&container.engine, restart).await.map(drop)
}

/// Waits for the end of a run, checking the container's health, and puts the end on record.
async fn watch_run(container: &Container, record: &Record) -> Result<()> {
    let process = match container.engine.process(record, String::new()).await {
        Err(Error::NotRunning { .. }) => {
            return container.engine.settled(record.id.clone(), record.starts).await;
        }
        process => process?,
    };
    let checks = async {
        match &record.health {
            Some(check) => check_health(container, record, check).await,
            None => std::future::pending().await,
        }
    };
    // Nobody else gets the ports of this machine that lead to it.
    let _ports = container.with(|inner, id| Ok(inner.hold_ports(id))).await?;
    tokio::select! {
        _ = process.wait() => {}
        failed = checks => {
            tracing::warn!(container = %record.id, error = &failed as &dyn std::error::Error, "health checks have ended");
            let _ = process.wait().await;
        }
    }
    process.delete().await;
    process.shut_down().await;
    container.engine.settled(record.id.clone(), record.starts).await
}

/// Checks a container's health for ever; returns what stops it.
async fn check_health(container: &Container, record: &Record, check: &Healthcheck) -> Error {
    let seconds = Duration::from_secs;
    let interval = check.interval.unwrap_or(seconds(30));
    let timeout = check.timeout.unwrap_or(seconds(30));
    let start_period = check.start_period.unwrap_or_default();
    let start_interval = check.start_interval.unwrap_or(seconds(5));
    let retries = check.retries.unwrap_or(3);
    let since = record.started.unwrap_or_else(SystemTime::now);
    // The clock may be set meanwhile; of one that was set back before, the period begins now.
    let (before, here) = (since.elapsed().unwrap_or_default(), Instant::now());
    let in_start_period = || before + here.elapsed() < start_period;
    // What a monitor before this one has found goes on.
    let mut health = match container.health().await {
        Ok(health) => health.unwrap_or_else(|| Health::starting(record.starts)),
        Err(error) => return error,
    };
    loop {
        let early = in_start_period() && health.status == HealthStatus::Starting;
        tokio::time::sleep(if early { start_interval } else { interval }).await;
        let start = SystemTime::now();
        let probe = match probe(container, check, timeout).await {
            // Frozen: it can answer nothing.
            Err(Error::Paused { .. }) => continue,
            Ok(probe) => probe,
            Err(error @ (Error::NotRunning { .. } | Error::NoContainer { .. })) => return error,
            // That it cannot be looked at is no good sign, and it may be looked at later.
            Err(error) => Probe { start, end: SystemTime::now(), exit_code: -1, output: crate::error::chain(&error) },
        };
        let before = health.status;
        health.note(probe, retries, in_start_period());
        let (written, record) = (health.clone(), record.clone());
        let told = container.with(move |inner, id| {
            inner.records.write_health(id, &written)?;
            if written.status != before {
                let action = format!("health_status: {}", written.status.name());
                inner.tell(&[record.event(&action)]);
            }
            Ok(())
        });
        // Where it cannot be written, the next check tries again.
        if let Err(error @ Error::NoContainer { .. }) = told.await {
            return error;
        }
    }
}

/// One check.
async fn probe(container: &Container, check: &Healthcheck, timeout: Duration) -> Result<Probe> {
    let command = match check.test.as_slice() {
        [kind, line] if kind == "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        [_, command @ ..] => command.to_vec(),
        [] => Vec::new(),
    };
    let start = SystemTime::now();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let mut exec = match container.exec(request, Streams::OUTPUT).await {
        Ok(exec) => exec,
        Err(error @ Error::Shim { .. }) if error.exit_code() != 125 => {
            let output = crate::error::chain(&error);
            return Ok(Probe { start, end: SystemTime::now(), exit_code: error.exit_code().into(), output });
        }
        Err(error) => return Err(error),
    };
    let (mut out, mut err) = (exec.stdout.take(), exec.stderr.take());
    let mut output = Vec::new();
    let ended = {
        let reading = async {
            let mut errors = Vec::new();
            tokio::join!(read(out.as_mut(), &mut output), read(err.as_mut(), &mut errors));
            output.extend(errors);
            output.truncate(OUTPUT);
        };
        tokio::time::timeout(timeout, async { tokio::join!(exec.wait(), reading).0 }).await
    };
    let end = SystemTime::now();
    if let Ok(status) = ended {
        let status = status?;
        exec.finish(status).await?;
        return Ok(Probe { start, end, exit_code: status, output: String::from_utf8_lossy(&output).into_owned() });
    }
    // The connection that waited is of no more use: the shim forgets the process with its end.
    exec.kill(nix::libc::SIGKILL).await.ok();
    exec.finish(137).await?;
    let output = format!("Health check exceeded timeout ({timeout:?})");
    Ok(Probe { start, end, exit_code: -1, output })
}

/// Reads to the end and keeps the beginning.
async fn read(source: Option<&mut tokio::net::unix::pipe::Receiver>, kept: &mut Vec<u8>) {
    let Some(source) = source else { return };
    let mut buffer = [0; 1024];
    while let Ok(count) = source.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..count.min(OUTPUT.saturating_sub(kept.len()))]);
    }
}
