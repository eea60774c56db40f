//! Tables for people, and the same as JSON.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::machine::Machine;
use crate::station::Memory;
use crate::statistics::Summary;

/// All of one run of the harness.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) load_after: String,
    pub(crate) rounds: usize,
    pub(crate) tables: Vec<Table>,
}

impl Report {
    /// Indented, but the samples of a contender on one line.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        let mut text = String::new();
        let mut in_samples = false;
        for line in serde_json::to_string_pretty(self)?.lines() {
            let opens = line.ends_with("\"samples_us\": [");
            if in_samples {
                text.push_str(line.trim());
                in_samples = !line.trim_start().starts_with(']');
            } else {
                text.push_str(line);
            }
            in_samples |= opens;
            if !in_samples {
                text.push('\n');
            }
        }
        Ok(text)
    }
}

/// Contenders that did the same thing.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    pub(crate) rows: Vec<Row>,
}

/// One contender's line.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) place: &'static str,
    pub(crate) command: String,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// Figures, or why there are none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    Measured {
        wall_us: Summary,
        /// Of the medians, to the first line of the same table and place.
        ratio: Option<f64>,
        user_us: Option<f64>,
        system_us: Option<f64>,
        peak_kib: Option<f64>,
        samples_us: Vec<f64>,
    },
    Resident {
        memory: Memory,
    },
    Absent {
        reason: String,
    },
}

impl Outcome {
    pub(crate) fn median(&self) -> Option<f64> {
        match self {
            Self::Measured { wall_us, .. } => Some(wall_us.median),
            Self::Resident { .. } | Self::Absent { .. } => None,
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}: {}", self.name, self.about)?;
        let head = ["", "place", "median ms", "min", "p90", "ratio", "peak MiB"];
        writeln!(
            f,
            "  {:<26} {:<7} {:>9} {:>9} {:>9} {:>7} {:>8}  version",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6]
        )?;
        for row in &self.rows {
            write!(f, "  {:<26} {:<7} ", row.name, row.place)?;
            match &row.outcome {
                Outcome::Measured { wall_us, ratio, peak_kib, .. } => {
                    let [median, min, p90] = [wall_us.median, wall_us.min, wall_us.p90].map(|us| us / 1000.0);
                    let peak = peak_kib.map_or("-".to_owned(), |kib| format!("{:.1}", kib / 1024.0));
                    let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                    writeln!(f, "{median:>9.2} {min:>9.2} {p90:>9.2} {ratio:>7} {peak:>8}  {}", row.version)?;
                }
                Outcome::Resident { memory } => {
                    let [own, proportional, resident] =
                        [memory.own, memory.pss, memory.rss].map(|kib| f64::from(kib) / 1024.0);
                    writeln!(f, "PSS {proportional:.2} MiB, RSS {resident:.2}, private {own:.2}  {}", row.version)?;
                }
                Outcome::Absent { reason } => writeln!(f, "not run: {reason}")?,
            }
        }
        Ok(())
    }
}
