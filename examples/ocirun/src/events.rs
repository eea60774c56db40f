//! What a container uses and what happens to it, as runc prints it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use estiba_runtime::{Cgroup, ContainerId, Hierarchies, IoStats, Native, Runtime, Stats, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::Result;

/// Prints once, or again and again until the container ends.
pub(crate) fn print(native: &Native, id: &ContainerId, interval: &str, once: bool) -> Result<()> {
    let interval = duration(interval)?;
    let state = native.state(id)?;
    if state.status == Status::Stopped {
        return Err("container not running".into());
    }
    let usage = || crate::print(&event("stats", id, Some(&data(&native.stats(id)?))));
    if once {
        return usage();
    }
    let first = Pid::from_raw(state.pid).ok_or("container not running")?;
    let first = pidfd_open(first, PidfdFlags::empty())?;
    let mut kills = Cgroup::of_process(&Hierarchies::detect()?, state.pid)?.oom_events()?;
    let mut next = Instant::now() + interval;
    loop {
        let mut fds = vec![PollFd::new(first.as_fd(), PollFlags::POLLIN)];
        fds.extend(kills.as_ref().map(|kills| PollFd::new(kills.as_fd(), PollFlags::POLLIN)));
        let left = next.saturating_duration_since(Instant::now());
        poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        let ended = fds.first().and_then(PollFd::any) == Some(true);
        let told = fds.get(1).and_then(PollFd::any) == Some(true);
        drop(fds);
        if told && let Some(kills) = &mut kills {
            for _ in 0..kills.kills()? {
                crate::print(&event("oom", id, None))?;
            }
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            usage()?;
            next += interval;
        }
    }
}

/// The figures with runc's names. What the machine does not tell is left out.
fn data(stats: &Stats) -> Value {
    let Stats { cpu, memory, pids, io } = stats;
    let amounts = |read: fn(&IoStats) -> u64, write: fn(&IoStats) -> u64| -> Vec<Value> {
        let one = |device: &IoStats, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
        io.iter().flat_map(|device| [one(device, "Read", read(device)), one(device, "Write", write(device))]).collect()
    };
    let mut pids_data = json!({"current": pids.current});
    if let Some(limit) = pids.limit {
        pids_data["limit"] = json!(limit);
    }
    json!({
        "cpu": {
            "usage": {"total": cpu.usage, "kernel": cpu.system, "user": cpu.user},
            "throttling": {"periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled},
        },
        "memory": {
            // No limit is the largest number, as runc has it on version 2.
            "usage": {"limit": memory.limit.unwrap_or(u64::MAX), "usage": memory.usage, "max": memory.max_usage},
            "raw": {"anon": memory.anon, "inactive_file": memory.inactive_file, "swap": memory.swap},
        },
        "pids": pids_data,
        "blkio": {
            "ioServiceBytesRecursive": amounts(|io| io.read_bytes, |io| io.write_bytes),
            "ioServicedRecursive": amounts(|io| io.reads, |io| io.writes),
        },
    })
}

/// `500ms`, `5s`, `1m`.
fn duration(text: &str) -> Result<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let wrong = || format!("{text:?} is no duration such as 500ms, 5s or 1m");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(wrong().into()),
    };
    if duration.is_zero() { Err("the interval must be longer than nothing".into()) } else { Ok(duration) }
}

/// An event with its fields in runc's order, which some readers look for.
fn event(kind: &str, id: &ContainerId, data: Option<&Value>) -> String {
    let data = data.map(|data| format!(",\"data\":{data}")).unwrap_or_default();
    // A name has no letter that JSON writes otherwise.
    format!("{{\"type\":\"{kind}\",\"id\":\"{id}\"{data}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms").ok(), Some(Duration::from_millis(500)));
        assert_eq!(duration("2m").ok(), Some(Duration::from_secs(120)));
        for bad in ["", "5", "s", "0s", "-1s", "1h30m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
