//! What a container uses.

use serde::{Deserialize, Serialize};

/// What a container uses, by its cgroup. What the machine's cgroups do not tell is 0 or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block devices.
    pub io: Vec<IoStats>,
}

/// Processor time, in nanoseconds since the container's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    /// All that was used.
    pub usage: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Periods of the quota that have passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// How long processes were kept waiting by the quota.
    pub throttled: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// All that is charged, cached files among it.
    pub usage: u64,
    /// The most that was charged at once.
    pub max_usage: u64,
    /// The limit, if there is one.
    pub limit: Option<u64>,
    /// Of the usage: cached files that the kernel gives back first. Docker's figure is the usage without these.
    pub inactive_file: u64,
    /// Of the usage: memory of programs.
    pub anon: u64,
    /// Swap that is used.
    pub swap: u64,
    /// How often the kernel killed a process because the limit was reached.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be, if there is a limit.
    pub limit: Option<u64>,
}

/// What went to and from one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoStats {
    /// The device.
    pub major: u64,
    /// The device.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests to read.
    pub reads: u64,
    /// Requests to write.
    pub writes: u64,
}
