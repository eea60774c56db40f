//! What the harness tells the guest to do, and what the guest answers: JSON, one value a line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the payload is mounted in the guest.
pub(crate) const PAYLOAD: &str = "/guest";

/// What stands for the binary of a script.
pub(crate) const SCRIPT: &str = "--run";

/// What is to be done in the guest; `plan.json` of the payload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) user: User,
    /// Seconds after which a test is ended.
    pub(crate) test_limit: u64,
    /// Paths that exist where the tests were built, and what each is in the guest.
    pub(crate) places: Vec<Place>,
    pub(crate) work: Work,
}

/// A path of the machine that built the tests, which have it compiled in.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// The file of the payload that it is a link to.
    pub(crate) target: PathBuf,
}

/// Who runs the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum User {
    Root,
    /// A user with subordinate ids, in a cgroup that was delegated to him.
    Delegated,
    /// A user with neither.
    Plain,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Work {
    Tests { binaries: Vec<Binary>, scripts: Vec<String> },
    Shell,
}

/// A test binary.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Binary {
    /// Package and test, as reports name them.
    pub(crate) name: String,
    /// Its file in the guest.
    pub(crate) program: PathBuf,
    /// The working directory.
    pub(crate) folder: PathBuf,
    /// What names of tests have to contain.
    pub(crate) filter: String,
}

/// A line that the guest writes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The tests begin, on this kernel.
    Ready { kernel: String },
    /// A test begins.
    Begun { binary: String, test: String },
    /// A test has ended.
    Ended { binary: String, test: String, outcome: Outcome, seconds: f64, output: String },
    /// Something else than a test has failed.
    Trouble { text: String },
    /// All is done.
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    /// With the reason.
    Ignored(String),
}
