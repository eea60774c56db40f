//! What a container uses, in containerd's words and back.

use std::collections::BTreeMap;

use estiba_runtime::cgroup::Mode;
use estiba_runtime::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};

use crate::error::{Error, Result};
use crate::proto::{Any, StatsResponse, cgroups_v1 as v1, cgroups_v2 as v2};

/// From so much on a limit of version 1 means that there is none: the kernel rounds 2^63 - 1 down to whole pages.
const NO_LIMIT: u64 = (1 << 63) - (1 << 16);

impl StatsResponse {
    /// What a shim, ours or another of containerd's, has measured.
    ///
    /// # Errors
    ///
    /// [`Error::Message`] if the bytes are no message, [`Error::Request`] if they are neither of the two that are known.
    pub fn to_stats(&self) -> Result<Stats> {
        let missing = Error::Request { reason: "the shim does not measure in a way that is known" };
        let any = self.stats.as_ref().ok_or(missing)?;
        if let Some(metrics) = any.unpack::<v1::Metrics>()? {
            return Ok(from_v1(&metrics));
        }
        let metrics = any.unpack::<v2::Metrics>()?;
        let unknown = Error::Request { reason: "the shim does not measure in a way that is known" };
        metrics.map(|metrics| from_v2(&metrics)).ok_or(unknown)
    }
}

/// As containerd's own shim answers on a machine of that kind.
pub(crate) fn pack(stats: &Stats, mode: Mode) -> Any {
    match mode {
        Mode::V2 => Any::pack(&to_v2(stats)),
        Mode::V1 | Mode::Hybrid => Any::pack(&to_v1(stats)),
    }
}

fn to_v1(stats: &Stats) -> v1::Metrics {
    let Stats { cpu, memory, pids, io } = stats;
    let entries = |read: fn(&IoStats) -> u64, write: fn(&IoStats) -> u64| {
        let entry = |device: &IoStats, op: &str, value| v1::BlkioEntry {
            op: op.to_owned(),
            major: device.major,
            minor: device.minor,
            value,
        };
        io.iter()
            .flat_map(|device| [entry(device, "Read", read(device)), entry(device, "Write", write(device))])
            .collect()
    };
    v1::Metrics {
        pids: Some(v1::PidsStat { current: pids.current, limit: pids.limit.unwrap_or(0) }),
        cpu: Some(v1::CpuStat {
            usage: Some(v1::CpuUsage { total: cpu.usage, kernel: cpu.system, user: cpu.user }),
            throttling: Some(v1::Throttle {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled,
            }),
        }),
        memory: Some(v1::MemoryStat {
            rss: memory.anon,
            inactive_file: memory.inactive_file,
            total_rss: memory.anon,
            total_inactive_file: memory.inactive_file,
            usage: Some(v1::MemoryEntry {
                limit: memory.limit.unwrap_or(NO_LIMIT),
                usage: memory.usage,
                max: memory.max_usage,
            }),
            swap: Some(v1::MemoryEntry {
                limit: NO_LIMIT,
                usage: memory.usage.saturating_add(memory.swap),
                ..v1::MemoryEntry::default()
            }),
        }),
        blkio: Some(v1::BlkioStat {
            io_service_bytes_recursive: entries(|device| device.read_bytes, |device| device.write_bytes),
            io_serviced_recursive: entries(|device| device.reads, |device| device.writes),
        }),
        memory_oom_control: Some(v1::MemoryOomControl { oom_kill: memory.oom_kills }),
    }
}

fn from_v1(metrics: &v1::Metrics) -> Stats {
    let cpu = metrics.cpu.unwrap_or_default();
    let (used, throttled) = (cpu.usage.unwrap_or_default(), cpu.throttling.unwrap_or_default());
    let memory = metrics.memory.unwrap_or_default();
    let (usage, swap) = (memory.usage.unwrap_or_default(), memory.swap.unwrap_or_default());
    let pids = metrics.pids.unwrap_or_default();
    let mut devices: BTreeMap<(u64, u64), IoStats> = BTreeMap::new();
    let mut fill =
        |entries: &[v1::BlkioEntry], read: fn(&mut IoStats) -> &mut u64, write: fn(&mut IoStats) -> &mut u64| {
            for entry in entries {
                let place = match entry.op.to_ascii_lowercase().as_str() {
                    "read" => read,
                    "write" => write,
                    _ => continue,
                };
                let (major, minor) = (entry.major, entry.minor);
                let device = devices.entry((major, minor)).or_insert(IoStats { major, minor, ..IoStats::default() });
                *place(device) = entry.value;
            }
        };
    if let Some(blkio) = &metrics.blkio {
        fill(&blkio.io_service_bytes_recursive, |device| &mut device.read_bytes, |device| &mut device.write_bytes);
        fill(&blkio.io_serviced_recursive, |device| &mut device.reads, |device| &mut device.writes);
    }
    Stats {
        cpu: CpuStats {
            usage: used.total,
            user: used.user,
            system: used.kernel,
            periods: throttled.periods,
            throttled_periods: throttled.throttled_periods,
            throttled: throttled.throttled_time,
        },
        memory: MemoryStats {
            usage: usage.usage,
            max_usage: usage.max,
            limit: Some(usage.limit).filter(|limit| (1..NO_LIMIT).contains(limit)),
            inactive_file: memory.total_inactive_file.max(memory.inactive_file),
            anon: memory.total_rss.max(memory.rss),
            swap: swap.usage.saturating_sub(usage.usage),
            oom_kills: metrics.memory_oom_control.unwrap_or_default().oom_kill,
        },
        pids: PidsStats {
            current: pids.current,
            limit: Some(pids.limit).filter(|limit| (1..u64::MAX).contains(limit)),
        },
        io: devices.into_values().collect(),
    }
}

fn to_v2(stats: &Stats) -> v2::Metrics {
    let Stats { cpu, memory, pids, io } = stats;
    let entry = |device: &IoStats| v2::IoEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.reads,
        wios: device.writes,
    };
    v2::Metrics {
        pids: Some(v2::PidsStat { current: pids.current, limit: pids.limit.unwrap_or(0) }),
        cpu: Some(v2::CpuStat {
            usage_usec: cpu.usage / 1000,
            user_usec: cpu.user / 1000,
            system_usec: cpu.system / 1000,
            nr_periods: cpu.periods,
            nr_throttled: cpu.throttled_periods,
            throttled_usec: cpu.throttled / 1000,
        }),
        memory: Some(v2::MemoryStat {
            anon: memory.anon,
            inactive_file: memory.inactive_file,
            usage: memory.usage,
            usage_limit: memory.limit.unwrap_or(u64::MAX),
            swap_usage: memory.swap,
            swap_limit: u64::MAX,
            max_usage: memory.max_usage,
        }),
        io: Some(v2::IoStat { usage: io.iter().map(entry).collect() }),
        memory_events: Some(v2::MemoryEvents { oom_kill: memory.oom_kills }),
    }
}

fn from_v2(metrics: &v2::Metrics) -> Stats {
    let (cpu, memory) = (metrics.cpu.unwrap_or_default(), metrics.memory.unwrap_or_default());
    let pids = metrics.pids.unwrap_or_default();
    let device = |entry: &v2::IoEntry| IoStats {
        major: entry.major,
        minor: entry.minor,
        read_bytes: entry.rbytes,
        write_bytes: entry.wbytes,
        reads: entry.rios,
        writes: entry.wios,
    };
    let nanos = |micros: u64| micros.saturating_mul(1000);
    Stats {
        cpu: CpuStats {
            usage: nanos(cpu.usage_usec),
            user: nanos(cpu.user_usec),
            system: nanos(cpu.system_usec),
            periods: cpu.nr_periods,
            throttled_periods: cpu.nr_throttled,
            throttled: nanos(cpu.throttled_usec),
        },
        memory: MemoryStats {
            usage: memory.usage,
            max_usage: memory.max_usage,
            limit: Some(memory.usage_limit).filter(|limit| (1..u64::MAX).contains(limit)),
            inactive_file: memory.inactive_file,
            anon: memory.anon,
            swap: memory.swap_usage,
            oom_kills: metrics.memory_events.unwrap_or_default().oom_kill,
        },
        pids: PidsStats {
            current: pids.current,
            limit: Some(pids.limit).filter(|limit| (1..u64::MAX).contains(limit)),
        },
        io: metrics.io.iter().flat_map(|io| &io.usage).map(device).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_on_any_machine() {
        let device = |minor| IoStats { major: 8, minor, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 };
        let full = Stats {
            cpu: CpuStats { usage: 5000, user: 2000, system: 3000, periods: 7, throttled_periods: 6, throttled: 9000 },
            memory: MemoryStats {
                usage: 100,
                max_usage: 200,
                limit: Some(300),
                inactive_file: 10,
                anon: 20,
                swap: 30,
                oom_kills: 1,
            },
            pids: PidsStats { current: 4, limit: Some(64) },
            io: vec![device(0), device(16)],
        };
        let mut bare = Stats::default();
        bare.memory.usage = 1;
        for stats in [full, bare] {
            for mode in [Mode::V1, Mode::Hybrid, Mode::V2] {
                let any = pack(&stats, mode);
                assert_eq!(any.type_url.contains("v2"), mode == Mode::V2);
                let response = StatsResponse { stats: Some(any) };
                assert_eq!(response.to_stats().expect("stats"), stats, "{mode:?}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        assert!(StatsResponse::default().to_stats().is_err());
        let other = Any { type_url: "kata.Metrics".into(), value: Vec::new() };
        assert!(matches!(StatsResponse { stats: Some(other) }.to_stats(), Err(Error::Request { .. })));
        let torn = Any { type_url: "io.containerd.cgroups.v2.Metrics".into(), value: vec![0xff] };
        assert!(matches!(StatsResponse { stats: Some(torn) }.to_stats(), Err(Error::Message { .. })));
    }
}
