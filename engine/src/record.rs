//! Container records: what is known of a container for as long as it exists (`record.json`).

use std::fs;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::identity::{ContainerName, Id};
use crate::journal::{Event, Kind};
use crate::request::{CreateRequest, Healthcheck};
use crate::volumes::VolumeUse;

/// The format of a record that this version writes. Version 1 had no past ends, commands and restarts; what it lacks is made up.
pub(crate) const VERSION: u32 = 2;

/// What is known of a container for as long as it exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Record {
    pub(crate) version: u32,
    /// The container's id.
    pub id: Id,
    /// Its name.
    pub name: ContainerName,
    /// When it was made.
    pub created: SystemTime,
    /// How far its life came.
    pub stage: Stage,
    /// The kernel's boot id when `stage` was written: after a reboot nothing of it runs.
    pub boot_id: String,
    /// The snapshotter that holds its root file system.
    pub snapshotter: String,
    /// Its cgroup, from the root of the hierarchies.
    pub cgroup: String,
    /// The digest of its image's configuration: what Docker calls the image's id.
    #[serde(default)]
    pub image_id: String,
    /// The program and its arguments, image and request combined.
    #[serde(default)]
    pub command: Vec<String>,
    /// The signal that asks it to end.
    #[serde(default = "sigterm")]
    pub stop_signal: i32,
    /// Seconds between that signal and SIGKILL; negative: no end.
    #[serde(default = "ten")]
    pub stop_timeout: i64,
    /// How to find out whether it is well, image and request combined. `None`: it is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Healthcheck>,
    /// Its volumes, those that its image wants among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeUse>,
    /// When it is removed, its own volumes are removed with it.
    #[serde(default)]
    pub(crate) takes_volumes: bool,
    /// How often it was started.
    #[serde(default)]
    pub starts: u32,
    /// When it was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<SystemTime>,
    /// Its first process when it was started last. A number that the kernel may have given to another process since: nothing is
    /// ever signalled by it.
    #[serde(default)]
    pub pid: u32,
    /// How its last run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// It is frozen.
    #[serde(default)]
    pub paused: bool,
    /// Somebody has stopped it, so that it is not started again by itself.
    #[serde(default)]
    pub stopped: bool,
    /// How often it was started again by itself since somebody started it.
    #[serde(default)]
    pub restarts: u32,
    /// It has ended and is going to be started again.
    #[serde(default)]
    pub restarting: bool,
    /// What was asked for.
    pub request: CreateRequest,
}

fn sigterm() -> i32 {
    nix::libc::SIGTERM
}

fn ten() -> i64 {
    10
}

/// How far the life of a container came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The command that makes it is at work, or has died: without its lock it is rubbish.
    Creating,
    /// Made, not started.
    Created,
    /// It was started. Whether it still runs, the shim's lock and `exit.json` say.
    Started,
    /// It has ended, and [`Record::ended`] says how.
    Ended,
    /// It is being removed, or the command that did so has died.
    Removing,
}

/// How a container ended (`exit.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit status; 128 + n if signal n ended it.
    pub status: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer was at work in its cgroup.
    #[serde(default)]
    pub oom_killed: bool,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// When it was noticed.
    pub at: SystemTime,
    /// How. `None`: its shim died with it, the status is lost.
    pub exit: Option<Exit>,
    /// Why it could not be started, if it could not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Made, not started.
    Created,
    /// A shim holds it.
    Running,
    /// It runs and is frozen.
    Paused,
    /// It has ended and is going to be started again.
    Restarting(Option<Exit>),
    /// It has ended. `None`: its shim died, the status is lost.
    Exited(Option<Exit>),
    /// It is being removed.
    Removing,
    /// Half made: the next ordinary command removes it.
    Dead,
}

impl Status {
    /// Docker's word for it, as in `State.Status`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }

    /// Whether it has processes: running or paused.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// A line of a listing.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The record.
    pub record: Record,
    /// What it is doing.
    pub status: Status,
    /// Whether it is well, if it is checked.
    pub health: Option<crate::health::Health>,
}

/// What a record is made of, beside the request.
#[derive(Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) snapshotter: &'a str,
    pub(crate) cgroup_parent: &'a str,
    pub(crate) image_id: String,
    pub(crate) command: Vec<String>,
    pub(crate) stop_signal: i32,
    pub(crate) stop_timeout: i64,
    pub(crate) health: Option<Healthcheck>,
    pub(crate) volumes: Vec<VolumeUse>,
}

impl Record {
    pub(crate) fn new(id: Id, name: ContainerName, origin: Origin<'_>, request: CreateRequest) -> Result<Self> {
        let cgroup = match origin.cgroup_parent {
            "" => String::new(),
            parent => format!("{}/{id}", parent.trim_end_matches('/')),
        };
        Ok(Self {
            version: VERSION,
            id,
            name,
            created: SystemTime::now(),
            stage: Stage::Creating,
            boot_id: boot_id()?,
            snapshotter: origin.snapshotter.to_owned(),
            cgroup,
            image_id: origin.image_id,
            command: origin.command,
            stop_signal: origin.stop_signal,
            stop_timeout: origin.stop_timeout,
            health: origin.health,
            volumes: origin.volumes,
            takes_volumes: request.auto_remove,
            starts: 0,
            started: None,
            pid: 0,
            ended: None,
            paused: false,
            stopped: false,
            restarts: 0,
            restarting: false,
            request,
        })
    }

    /// Something that happens to it, with what Docker tells of each.
    pub(crate) fn event(&self, action: &str) -> Event {
        let mut event = Event::new(Kind::Container, action, self.id.as_str());
        event.attributes.extend(self.request.labels.clone());
        event.with("name", &self.name).with("image", &self.request.image.familiar_name())
    }

    /// Whether somebody has to watch over it while it runs: to start it again, or to look whether it is well.
    #[must_use]
    pub fn needs_monitor(&self) -> bool {
        self.request.restart != crate::request::RestartPolicy::No
            || self.health.is_some()
            || !self.request.ports.is_empty()
    }
}

/// The kernel's boot id: another one after each boot.
pub(crate) fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(PATH).map_err(Error::io("read", PATH))?.trim().to_owned())
}
