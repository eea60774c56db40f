//! What happens when processes end.

use std::path::Path;
use std::time::{Duration, Instant};

use estiba_runtime::{DeleteMode, ExitStatus, KillTarget, mount};

use super::{Stage, Task};
use crate::daemon::log;
use crate::error::{Error, Result, chain};
use crate::exit::{Durability, ExitRecord};
use crate::process::{Ended, Process};
use crate::proto::events::{TaskExit, TaskOOM};

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried to write the exit record, and for how long.
const AGAIN: Duration = Duration::from_secs(1);
const PERSISTENCE: Duration = Duration::from_secs(60);

/// An exit record for which there was no room.
#[derive(Debug)]
pub(super) struct Unwritten {
    record: ExitRecord,
    since: Instant,
    pub(super) next: Instant,
}

impl Task {
    /// Takes note of the end of each process that has ended.
    pub(crate) fn notice_ends(&mut self) {
        let id = &self.arguments.id;
        let Some(container) = &mut self.container else { return };
        // First the added ones: the kernel ends the first of a process namespace only when all others are reaped.
        for exec in &mut container.execs {
            if let Some(process) = &mut exec.process
                && process.ended.is_none()
                && let Some(status) = process.reap(Duration::ZERO)
            {
                process.set_ended(Ended::now(status, false));
            }
        }
        if container.process.ended.is_some() {
            return;
        }
        let Some(status) = container.process.reap(Duration::ZERO) else { return };
        // Only then can the kernel have done it; looking costs a tenth of a millisecond.
        let suspected = container.limited || status == ExitStatus::Signaled(libc::SIGKILL);
        let kills =
            || container.open_cgroup(self.arguments.cgroup_root.as_deref()).and_then(|cgroup| cgroup.oom_kills());
        let oom_killed = suspected && kills().is_ok_and(|count| count > 0);
        container.process.set_ended(Ended::now(status, oom_killed));
        container.paused = false;
        if !container.own_pids {
            // Nothing else ends them, and they would hold the container's cgroup and pipes.
            let _ = container.runtime.kill(id, libc::SIGKILL, KillTarget::All);
        }
    }

    /// Writes the end of the container to disk once it is settled. Returns the processes whose end may be told now, by the names
    /// of those that were added; the empty one is the first.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        self.write_again();
        let Some(container) = &mut self.container else { return Vec::new() };
        let mut told = container.settle_execs();
        if container.stage != Stage::Stopped
            && container.process.is_settled()
            && let Some(ended) = container.process.ended
        {
            if let (Stage::Started, Some(path)) = (container.stage, &self.arguments.exit_file) {
                let process = &container.process;
                let record = ExitRecord::new(process.pid, process.start_time, ended.status, ended.oom_killed, ended.at);
                if let Err(error) = record.write(path, durability(path, &self.folder)) {
                    // Those who wait are told all the same: they can learn it nowhere else now.
                    log(&format!("{}: it is tried again", chain(&error)));
                    let now = Instant::now();
                    self.unwritten = Some(Unwritten { record, since: now, next: now + AGAIN });
                }
            }
            container.stage = Stage::Stopped;
            // What was not started never will be.
            container.execs.retain(|exec| exec.process.is_some());
            told.push((String::new(), container.process.pid as u32, ended));
        }
        for (name, pid, ended) in &told {
            let container_id = self.arguments.id.to_string();
            if ended.oom_killed {
                self.publish(&TaskOOM { container_id: container_id.clone() });
            }
            let id = if name.is_empty() { container_id.clone() } else { name.clone() };
            let exit_status = ended.status.code() as u32;
            self.publish(&TaskExit { container_id, id, pid: *pid, exit_status, exited_at: Some(ended.at.into()) });
        }
        told.into_iter().map(|(name, ..)| name).collect()
    }

    /// Tries again to write the exit record, if it is time to.
    fn write_again(&mut self) {
        let now = Instant::now();
        let Some(unwritten) = self.unwritten.as_mut().filter(|unwritten| unwritten.next <= now) else { return };
        let Some(path) = &self.arguments.exit_file else { return };
        // Nobody will look for it in a folder that is gone.
        let wanted = path.parent().is_none_or(Path::exists) && unwritten.since.elapsed() < PERSISTENCE;
        match unwritten.record.write(path, durability(path, &self.folder)) {
            Ok(()) => {
                log(&format!("{} is written after all", path.display()));
            }
            Err(_) if wanted => {
                unwritten.next = now + AGAIN;
                return;
            }
            Err(error) => {
                log(&format!("{}: given up", chain(&error)));
            }
        }
        self.unwritten = None;
    }

    /// Kills and removes the container.
    pub(crate) fn destroy(&mut self) -> Result<Option<Ended>> {
        let Some(mut container) = self.container.take() else { return Ok(None) };
        let end = |process: &mut Process| {
            let status = process.reap(KILL_PATIENCE).unwrap_or(ExitStatus::Signaled(libc::SIGKILL));
            process.set_ended(Ended::now(status, false));
        };
        // The kernel ends the first process of a namespace only when all others are reaped, and these are ours.
        let added = container.execs.iter_mut().filter_map(|exec| exec.process.as_mut());
        let added: Vec<_> = added.filter(|process| process.ended.is_none()).collect();
        if !added.is_empty() {
            // What fails here fails again below.
            let _ = container.runtime.kill(&self.arguments.id, libc::SIGKILL, KillTarget::All);
            for process in added {
                end(process);
            }
        }
        let removed = container.runtime.delete(&self.arguments.id, DeleteMode::Force);
        if container.process.ended.is_none() {
            end(&mut container.process);
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
}

/// What is in the shim's own folder means nothing after a reboot.
fn durability(path: &Path, folder: &Path) -> Durability {
    if path.parent() == Some(folder) { Durability::Lazy } else { Durability::Synced }
}

/// Unmounts the root, where it was attached.
pub(super) fn detach(target: Option<&Path>) {
    if let Some(target) = target
        && let Err(error) = mount::detach(target)
    {
        log(&chain(&error));
    }
}
