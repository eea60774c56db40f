//! What containers use, as `docker stats` shows it.

use std::time::Duration;

use estiba_engine::Usage;

use crate::format::Column;
use crate::size;
use crate::template::{Record, Value};

/// The columns of `stats`.
pub(crate) const COLUMNS: [Column; 9] = [
    ("Container", "CONTAINER"),
    ("Name", "NAME"),
    ("ID", "CONTAINER ID"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// The table of `stats`.
pub(crate) const TABLE: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// A row of `stats`: two measurements of one container; none of one that does not run.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    /// As it was asked for.
    pub(crate) asked: &'a str,
    pub(crate) name: &'a str,
    pub(crate) id: String,
    pub(crate) measured: Option<(&'a Usage, &'a Usage)>,
    /// The machine's memory, for a container without a limit.
    pub(crate) memory: u64,
}

impl Row<'_> {
    #[expect(clippy::cast_precision_loss, reason = "two digits behind the point are shown")]
    pub(crate) fn value(&self) -> Value {
        let (mut cpu, mut memory, mut limit, mut pids, mut io) = (0.0, 0, 0, 0, (0, 0));
        if let Some((before, now)) = self.measured {
            let elapsed = now.at.duration_since(before.at).unwrap_or(Duration::ZERO).as_nanos();
            if elapsed > 0 {
                let used = now.stats.cpu.usage.saturating_sub(before.stats.cpu.usage);
                cpu = used as f64 / elapsed as f64 * 100.0;
            }
            // Files that the kernel keeps in memory for a while are not the container's need.
            memory = now.stats.memory.usage.saturating_sub(now.stats.memory.inactive_file);
            limit = now.stats.memory.limit.unwrap_or(self.memory).min(self.memory);
            pids = now.stats.pids.current;
            io =
                now.stats.io.iter().fold((0, 0), |sum, device| (sum.0 + device.read_bytes, sum.1 + device.write_bytes));
        }
        let share = if limit > 0 { memory as f64 / limit as f64 * 100.0 } else { 0.0 };
        Record::row("container.statsContext")
            .with("BlockIO", format!("{} / {}", size::human_with(3, io.0), size::human_with(3, io.1)))
            .with("CPUPerc", format!("{cpu:.2}%"))
            .with("Container", self.asked)
            .with("ID", &self.id)
            .with("MemPerc", format!("{share:.2}%"))
            .with("MemUsage", format!("{} / {}", size::binary(memory), size::binary(limit)))
            .with("Name", self.name)
            // The container's network is none or the host's: none of its traffic is its own.
            .with("NetIO", "0B / 0B")
            .with("PIDs", pids.to_string())
            .into()
    }
}
