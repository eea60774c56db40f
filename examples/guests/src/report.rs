//! What became of the tests.

use std::time::Duration;

use crate::guest::Guest;
use crate::plan::{Outcome, SCRIPT};

#[derive(Debug)]
pub(crate) struct Report {
    guest: Guest,
    passed: usize,
    failed: Vec<String>,
    ignored: usize,
    trouble: usize,
    running: Option<String>,
    complete: bool,
}

impl Report {
    pub(crate) fn new(guest: Guest) -> Self {
        Self { guest, passed: 0, failed: Vec::new(), ignored: 0, trouble: 0, running: None, complete: false }
    }

    pub(crate) fn ready(&mut self, kernel: &str, after: Duration) {
        println!("{:?}: Linux {kernel}, ready after {:.1} s", self.guest, after.as_secs_f64());
    }

    pub(crate) fn begun(&mut self, binary: &str, test: &str) {
        self.running = Some(format!("{binary} {test}"));
    }

    pub(crate) fn ended(&mut self, binary: &str, test: &str, outcome: &Outcome, seconds: f64, output: &str) {
        let is_script = binary == SCRIPT;
        let name = format!("{binary} {test}");
        self.running = None;
        match outcome {
            Outcome::Passed => {
                self.passed += 1;
                println!("passed   {name} ({seconds:.1} s)");
                if is_script {
                    println!("{}", output.trim_end());
                }
            }
            Outcome::Ignored(reason) => {
                self.ignored += 1;
                println!("ignored  {name}: {reason}");
            }
            Outcome::Failed(how) => {
                println!("FAILED   {name}: {how} ({seconds:.1} s)\n{}", output.trim_end());
                self.failed.push(name);
            }
        }
    }

    pub(crate) fn trouble(&mut self, text: &str) {
        self.trouble += 1;
        println!("TROUBLE  {text}");
        if let Some(running) = self.running.take() {
            println!("FAILED   {running}: it was running then");
            self.failed.push(running);
        }
    }

    pub(crate) fn done(&mut self) {
        self.complete = true;
    }

    pub(crate) fn is_incomplete(&self) -> bool {
        !self.complete
    }

    pub(crate) fn sum(&self, time: Duration) {
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!(
            "{:?}: {} passed, {} failed, {} ignored, in {:.0} s{}",
            self.guest,
            self.passed,
            self.failed.len(),
            self.ignored,
            time.as_secs_f64(),
            if self.complete { "" } else { "; not all were run" }
        );
    }

    /// A run of nothing is none.
    pub(crate) fn all_passed(&self) -> bool {
        self.complete && self.failed.is_empty() && self.trouble == 0 && self.passed > 0
    }
}
