//! The processes below this one, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A process as `/proc` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) zombie: bool,
    pub(crate) name: String,
    /// The arguments, separated by spaces.
    pub(crate) command: String,
    /// Whether it is in a pid namespace below this one's: in a container.
    pub(crate) contained: bool,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold any character.
        let (head, tail) = (stat.find('(')?, stat.rfind(')')?);
        let mut fields = stat[tail + 1..].split_whitespace();
        let zombie = matches!(fields.next()?, "Z" | "X");
        let parent = fields.next()?.parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let contained = numbers.is_some_and(|numbers| numbers.split_whitespace().count() > 1);
        Some(Self { pid, parent, zombie, name: stat[head + 1..tail].to_owned(), command, contained })
    }

    /// A container's first process is a copy of its shim until it executes its program.
    pub(crate) fn is_shim(&self) -> bool {
        let named = self.command.starts_with("estiba-shim") || self.command.contains("containerd-shim-estiba-v2");
        named && !self.contained
    }

    pub(crate) fn is_monitor(&self) -> bool {
        self.command.contains("estiba") && self.command.split(' ').any(|word| word == "monitor")
    }

    /// The network namespace, as its link says.
    pub(crate) fn network(&self) -> Option<String> {
        fs::read_link(format!("/proc/{}/ns/net", self.pid)).ok().map(|link| link.display().to_string())
    }
}

/// All living processes below this one.
pub(crate) fn below() -> Vec<Process> {
    all_below().into_iter().filter(|process| !process.zombie).collect()
}

/// Reaps orphans that have ended: they are this process's own. Not to be called while a child that was started here may
/// have ended and was not waited for.
pub(crate) fn reap() {
    let me = std::process::id() as i32;
    for process in all_below().into_iter().filter(|process| process.zombie && process.parent == me) {
        let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
    }
}

fn all_below() -> Vec<Process> {
    let me = std::process::id() as i32;
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all: BTreeMap<i32, Process> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Process::read(pid)?)))
        .collect();
    let is_below = |process: &Process| {
        let mut parent = process.parent;
        // A pid that was reused in between could close a circle.
        for _ in 0..all.len() {
            if parent == me {
                return true;
            }
            match all.get(&parent) {
                Some(process) => parent = process.parent,
                None => return false,
            }
        }
        false
    };
    all.values().filter(|process| is_below(process)).cloned().collect()
}

/// Whether a process has ended: until then it holds its locks, though it has no command any more.
pub(crate) fn has_ended(pid: i32) -> bool {
    Process::read(pid).is_none_or(|process| process.zombie)
}

/// SIGKILL for one process that this test has started or inherited.
pub(crate) fn end(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}
