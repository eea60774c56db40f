//! `io.containerd.cgroups.v2.Metrics`: what a container uses, on a machine with cgroups of version 2.
//!
//! Only the fields that [`estiba_runtime::Stats`] knows are here; others are skipped.

use prost::Message;

use super::Named;

/// All of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Metrics {
    /// Processes and threads.
    #[prost(message, optional, tag = "1")]
    pub pids: Option<PidsStat>,
    /// Processor time.
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<CpuStat>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryStat>,
    /// Block devices.
    #[prost(message, optional, tag = "6")]
    pub io: Option<IoStat>,
    /// What happened at the memory's limits.
    #[prost(message, optional, tag = "8")]
    pub memory_events: Option<MemoryEvents>,
}

impl Named for Metrics {
    const NAME: &'static str = "io.containerd.cgroups.v2.Metrics";
}

/// Processes and threads.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PidsStat {
    /// How many there are.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// How many there may be; 0 without a limit.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// Processor time, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CpuStat {
    /// All that was used.
    #[prost(uint64, tag = "1")]
    pub usage_usec: u64,
    /// In programs.
    #[prost(uint64, tag = "2")]
    pub user_usec: u64,
    /// In the kernel.
    #[prost(uint64, tag = "3")]
    pub system_usec: u64,
    /// Periods of the quota that have passed.
    #[prost(uint64, tag = "4")]
    pub nr_periods: u64,
    /// Periods in which the quota was used up.
    #[prost(uint64, tag = "5")]
    pub nr_throttled: u64,
    /// How long processes were kept waiting.
    #[prost(uint64, tag = "6")]
    pub throttled_usec: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryStat {
    /// Memory of programs.
    #[prost(uint64, tag = "1")]
    pub anon: u64,
    /// Cached files that the kernel gives back first.
    #[prost(uint64, tag = "13")]
    pub inactive_file: u64,
    /// All that is charged.
    #[prost(uint64, tag = "32")]
    pub usage: u64,
    /// Its limit; 2^64 - 1 without one.
    #[prost(uint64, tag = "33")]
    pub usage_limit: u64,
    /// Swap that is used.
    #[prost(uint64, tag = "34")]
    pub swap_usage: u64,
    /// Its limit; 2^64 - 1 without one.
    #[prost(uint64, tag = "35")]
    pub swap_limit: u64,
    /// The most that was charged at once.
    #[prost(uint64, tag = "36")]
    pub max_usage: u64,
}

/// What happened at the memory's limits.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryEvents {
    /// How many processes the kernel killed.
    #[prost(uint64, tag = "5")]
    pub oom_kill: u64,
}

/// Block devices.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IoStat {
    /// One of each device.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<IoEntry>,
}

/// What went to and from one block device.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IoEntry {
    /// The device.
    #[prost(uint64, tag = "1")]
    pub major: u64,
    /// The device.
    #[prost(uint64, tag = "2")]
    pub minor: u64,
    /// Bytes read.
    #[prost(uint64, tag = "3")]
    pub rbytes: u64,
    /// Bytes written.
    #[prost(uint64, tag = "4")]
    pub wbytes: u64,
    /// Requests to read.
    #[prost(uint64, tag = "5")]
    pub rios: u64,
    /// Requests to write.
    #[prost(uint64, tag = "6")]
    pub wios: u64,
}
