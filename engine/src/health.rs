//! Whether a container is well: what the checks have found (`health.json` beside the record).

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What the checks of a container have found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Docker's word: starting, healthy or unhealthy.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last checks, the oldest first; five at most.
    pub log: Vec<Probe>,
    /// The number of the run that was checked: what it says of an earlier one does not count.
    pub run: u32,
}

/// Whether a container is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No check has succeeded yet, and not enough have failed.
    Starting,
    /// The last check succeeded.
    Healthy,
    /// As many checks in a row have failed as are allowed.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// 0: well. Else not; -1 if it took too long or could not be made.
    pub exit_code: i32,
    /// The beginning of what it printed, 4096 bytes at most.
    pub output: String,
}

impl Health {
    /// Before the first check.
    pub(crate) fn starting(run: u32) -> Self {
        Self { status: HealthStatus::Starting, failing_streak: 0, log: Vec::new(), run }
    }

    /// Takes note of a check, as Docker does: in the start period a failure does not count, unless a check succeeded before.
    pub(crate) fn note(&mut self, probe: Probe, retries: u32, in_start_period: bool) {
        const KEPT: usize = 5;
        if probe.exit_code == 0 {
            self.status = HealthStatus::Healthy;
            self.failing_streak = 0;
        } else if !(in_start_period && self.status == HealthStatus::Starting) {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= retries.max(1) {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.log.push(probe);
        let excess = self.log.len().saturating_sub(KEPT);
        self.log.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_counted_as_dockers() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let probe =
            |exit_code| Probe { start: SystemTime::now(), end: SystemTime::now(), exit_code, output: String::new() };
        let mut health = Health::starting(1);
        for (number, (exit_code, early, status, streak)) in [
            (1, true, Starting, 0),
            (1, false, Starting, 1),
            (1, false, Unhealthy, 2),
            (0, false, Healthy, 0),
            (1, true, Healthy, 1),
            (-1, false, Unhealthy, 2),
            (0, true, Healthy, 0),
        ]
        .into_iter()
        .enumerate()
        {
            health.note(probe(exit_code), 2, early);
            assert_eq!((health.status, health.failing_streak), (status, streak), "check {number}");
        }
        assert_eq!(health.log.len(), 5);
    }
}
