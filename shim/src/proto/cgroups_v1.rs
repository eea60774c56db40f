//! `io.containerd.cgroups.v1.Metrics`: what a container uses, on a machine with cgroups of version 1.
//!
//! Only the fields that [`estiba_runtime::Stats`] knows are here; others are skipped.

use prost::Message;

use super::Named;

/// All of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Metrics {
    /// Processes and threads.
    #[prost(message, optional, tag = "2")]
    pub pids: Option<PidsStat>,
    /// Processor time.
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<CpuStat>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<MemoryStat>,
    /// Block devices.
    #[prost(message, optional, tag = "5")]
    pub blkio: Option<BlkioStat>,
    /// What happened at the memory's limit.
    #[prost(message, optional, tag = "9")]
    pub memory_oom_control: Option<MemoryOomControl>,
}

impl Named for Metrics {
    const NAME: &'static str = "io.containerd.cgroups.v1.Metrics";
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

/// Processor time.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CpuStat {
    /// What was used.
    #[prost(message, optional, tag = "1")]
    pub usage: Option<CpuUsage>,
    /// What the quota did.
    #[prost(message, optional, tag = "2")]
    pub throttling: Option<Throttle>,
}

/// Processor time that was used, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct CpuUsage {
    /// All of it.
    #[prost(uint64, tag = "1")]
    pub total: u64,
    /// In the kernel.
    #[prost(uint64, tag = "2")]
    pub kernel: u64,
    /// In programs.
    #[prost(uint64, tag = "3")]
    pub user: u64,
}

/// What a quota of processor time did.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Throttle {
    /// Periods that have passed.
    #[prost(uint64, tag = "1")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[prost(uint64, tag = "2")]
    pub throttled_periods: u64,
    /// How long processes were kept waiting, in nanoseconds.
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryStat {
    /// Memory of programs, in the cgroup itself.
    #[prost(uint64, tag = "2")]
    pub rss: u64,
    /// Cached files that the kernel gives back first, in the cgroup itself.
    #[prost(uint64, tag = "13")]
    pub inactive_file: u64,
    /// Memory of programs, with the cgroups below.
    #[prost(uint64, tag = "19")]
    pub total_rss: u64,
    /// Cached files that the kernel gives back first, with the cgroups below.
    #[prost(uint64, tag = "30")]
    pub total_inactive_file: u64,
    /// All that is charged.
    #[prost(message, optional, tag = "33")]
    pub usage: Option<MemoryEntry>,
    /// The same with swap.
    #[prost(message, optional, tag = "34")]
    pub swap: Option<MemoryEntry>,
}

/// One kind of memory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryEntry {
    /// The limit; about 2^63 without one.
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    /// What is used.
    #[prost(uint64, tag = "2")]
    pub usage: u64,
    /// The most that was used at once.
    #[prost(uint64, tag = "3")]
    pub max: u64,
}

/// What happened at the memory's limit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryOomControl {
    /// How many processes the kernel killed.
    #[prost(uint64, tag = "3")]
    pub oom_kill: u64,
}

/// Block devices.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BlkioStat {
    /// Bytes that were moved.
    #[prost(message, repeated, tag = "1")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Requests.
    #[prost(message, repeated, tag = "2")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
}

/// One number of a block device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BlkioEntry {
    /// What it counts: `Read`, `Write` and others.
    #[prost(string, tag = "1")]
    pub op: String,
    /// The device.
    #[prost(uint64, tag = "3")]
    pub major: u64,
    /// The device.
    #[prost(uint64, tag = "4")]
    pub minor: u64,
    /// The number.
    #[prost(uint64, tag = "5")]
    pub value: u64,
}
