//! What a cgroup uses.

use std::collections::BTreeMap;
use std::io;

use super::folder::Folder;
use super::hierarchies::Controller;
use super::{Cgroup, CgroupPath};
use crate::error::Result;
use crate::{CpuStats, IoStats, MemoryStats, PidsStats, Stats};

/// What version 1 says instead of "no limit": the largest number of pages, in bytes.
const NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

impl Cgroup {
    /// What it uses, with those below it. A file that is not there leaves its figures at 0 or `None`.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for place in &self.paths {
            let failed = |source| place.io("read the usage of cgroup")(source);
            let Some(folder) = Folder::open_if_there(&place.path).map_err(failed)? else { continue };
            let files = Files(&folder);
            let read = if place.is_unified() { v2(&files, &mut stats) } else { v1(&files, place, &mut stats) };
            read.map_err(failed)?;
        }
        Ok(stats)
    }

    /// How many processes the kernel killed for want of memory, in the cgroup and, on version 2, below it. 0 where nothing counts.
    pub fn oom_kills(&self) -> Result<u64> {
        let legacy = self.paths.iter().find(|p| p.has(Controller::Memory)).map(|p| (p, "memory.oom_control"));
        let unified = || self.paths.iter().find(|p| p.is_unified()).map(|p| (p, "memory.events"));
        let Some((place, file)) = legacy.or_else(unified) else {
            return Ok(0);
        };
        let text = match Folder::open_if_there(&place.path).and_then(|f| f.map(|f| f.read(file)).transpose()) {
            Ok(text) => text.unwrap_or_default(),
            // The memory controller is not enabled here.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => String::new(),
            Err(e) => return Err(place.io("read the events of cgroup")(e)),
        };
        Ok(text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0))
    }
}

/// The files of a folder, some of which may not be there.
struct Files<'a>(&'a Folder);

impl Files<'_> {
    fn text(&self, file: &str) -> io::Result<Option<String>> {
        match self.0.read(file) {
            Ok(text) => Ok(Some(text)),
            // The controller is not enabled, the kernel is older, swap is not counted, or the cgroup has just gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A file with one number; `max` and an absent file are none.
    fn number(&self, file: &str) -> io::Result<Option<u64>> {
        Ok(self.text(file)?.and_then(|text| text.trim().parse().ok()))
    }

    /// A file with a name and a number a line.
    fn table(&self, file: &str) -> io::Result<Table> {
        Ok(Table(self.text(file)?.unwrap_or_default()))
    }
}

/// A name and a number a line.
struct Table(String);

impl Table {
    fn get(&self, name: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value)
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name).unwrap_or_default()
    }
}

fn v1(files: &Files<'_>, place: &CgroupPath, stats: &mut Stats) -> io::Result<()> {
    if place.has(Controller::Cpuacct) {
        let cpu = &mut stats.cpu;
        cpu.usage = files.number("cpuacct.usage")?.unwrap_or_default();
        cpu.user = files.number("cpuacct.usage_user")?.unwrap_or_default();
        cpu.system = files.number("cpuacct.usage_sys")?.unwrap_or_default();
    }
    if place.has(Controller::Cpu) {
        let table = files.table("cpu.stat")?;
        let cpu = &mut stats.cpu;
        cpu.periods = table.number("nr_periods");
        cpu.throttled_periods = table.number("nr_throttled");
        cpu.throttled = table.number("throttled_time");
    }
    if place.has(Controller::Memory) {
        let table = files.table("memory.stat")?;
        stats.memory = MemoryStats {
            usage: files.number("memory.usage_in_bytes")?.unwrap_or_default(),
            max_usage: files.number("memory.max_usage_in_bytes")?.unwrap_or_default(),
            limit: files.number("memory.limit_in_bytes")?.filter(|limit| *limit < NO_LIMIT),
            inactive_file: table.number("total_inactive_file"),
            anon: table.number("total_rss"),
            swap: table.number("total_swap"),
            oom_kills: files.table("memory.oom_control")?.number("oom_kill"),
        };
    }
    if place.has(Controller::Pids) {
        stats.pids = pids(files)?;
    }
    if place.has(Controller::Blkio) {
        let mut devices = BTreeMap::new();
        for (file, of) in
            [("blkio.throttle.io_service_bytes", Amount::Bytes), ("blkio.throttle.io_serviced", Amount::Requests)]
        {
            let text = match files.text(&format!("{file}_recursive"))? {
                Some(text) => text,
                None => files.text(file)?.unwrap_or_default(),
            };
            blkio(&text, of, &mut devices);
        }
        stats.io = devices.into_values().collect();
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Amount {
    Bytes,
    Requests,
}

type Devices = BTreeMap<(u64, u64), IoStats>;

fn device<'a>(devices: &'a mut Devices, name: &str) -> Option<&'a mut IoStats> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    Some(devices.entry((major, minor)).or_insert_with(|| IoStats { major, minor, ..IoStats::default() }))
}

/// `8:0 Read 4096`; the last line is a total without a device.
fn blkio(text: &str, of: Amount, devices: &mut Devices) {
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[name, operation, value] = fields.as_slice() else { continue };
        let (Some(stats), Ok(value)) = (device(devices, name), value.parse()) else { continue };
        match (operation, of) {
            ("Read", Amount::Bytes) => stats.read_bytes = value,
            ("Write", Amount::Bytes) => stats.write_bytes = value,
            ("Read", Amount::Requests) => stats.reads = value,
            ("Write", Amount::Requests) => stats.writes = value,
            _ => {}
        }
    }
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io_stat(text: &str) -> Vec<IoStats> {
    let mut devices = Devices::new();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some(stats) = fields.next().and_then(|name| device(&mut devices, name)) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => stats.read_bytes = value,
                "wbytes" => stats.write_bytes = value,
                "rios" => stats.reads = value,
                "wios" => stats.writes = value,
                _ => {}
            }
        }
    }
    devices.into_values().collect()
}

fn pids(files: &Files<'_>) -> io::Result<PidsStats> {
    Ok(PidsStats { current: files.number("pids.current")?.unwrap_or_default(), limit: files.number("pids.max")? })
}

/// Beside version 1 hierarchies the version 2 tree has a few controllers alone: what is not enabled here says nothing.
fn v2(files: &Files<'_>, stats: &mut Stats) -> io::Result<()> {
    let table = files.table("cpu.stat")?;
    let nanoseconds = |name: &str| table.number(name).saturating_mul(1000);
    // Every cgroup counts its own time, one without processes as 0.
    if stats.cpu.usage == 0 {
        stats.cpu = CpuStats {
            usage: nanoseconds("usage_usec"),
            user: nanoseconds("user_usec"),
            system: nanoseconds("system_usec"),
            periods: stats.cpu.periods + table.number("nr_periods"),
            throttled_periods: stats.cpu.throttled_periods + table.number("nr_throttled"),
            throttled: stats.cpu.throttled + nanoseconds("throttled_usec"),
        };
    }
    if let Some(usage) = files.number("memory.current")? {
        let table = files.table("memory.stat")?;
        stats.memory = MemoryStats {
            usage,
            // Linux 5.19.
            max_usage: files.number("memory.peak")?.unwrap_or_default(),
            limit: files.number("memory.max")?,
            inactive_file: table.number("inactive_file"),
            anon: table.number("anon"),
            swap: files.number("memory.swap.current")?.unwrap_or_default(),
            oom_kills: files.table("memory.events")?.number("oom_kill"),
        };
    }
    if files.text("pids.current")?.is_some() {
        stats.pids = pids(files)?;
    }
    if let Some(text) = files.text("io.stat")? {
        stats.io = io_stat(&text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_both_versions() {
        let want = IoStats { major: 8, minor: 16, read_bytes: 4096, write_bytes: 5, reads: 1, writes: 2 };
        let mut devices = Devices::new();
        blkio("8:16 Read 4096\n8:16 Write 5\n8:16 Sync 4\n8:16 Total 4101\nTotal 4101\n", Amount::Bytes, &mut devices);
        blkio("8:16 Read 1\n8:16 Write 2\n", Amount::Requests, &mut devices);
        assert_eq!(devices.into_values().collect::<Vec<_>>(), [want]);
        assert_eq!(io_stat("8:16 rbytes=4096 wbytes=5 rios=1 wios=2 dbytes=0 dios=0\nodd\n"), [want]);
        assert_eq!(io_stat(""), []);
    }

    #[test]
    fn names_are_whole() {
        let table = Table("anon 5\nanon_thp 7\nfile 8\n".to_owned());
        assert_eq!((table.get("anon"), table.get("anon_thp"), table.get("thp")), (Some(5), Some(7), None));
    }
}
