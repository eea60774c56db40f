//! The runtime of this crate.

use std::path::PathBuf;

use crate::{Bundle, ContainerId, CreateOptions, Created, DeleteMode, Features, KillTarget, Result, Runtime, State};

/// Containers made by this process itself, with no other program.
#[derive(Debug)]
pub struct Native {
    state_root: PathBuf,
    features: Features,
}

impl Native {
    /// A runtime that keeps its state in `state_root/ID`, which should lie on a tmpfs such as `/run`.
    pub fn new(state_root: impl Into<PathBuf>) -> Self {
        Self::with_features(state_root, Features::probe())
    }

    /// The same, with no more of the kernel than `features`.
    pub fn with_features(state_root: impl Into<PathBuf>, features: Features) -> Self {
        Self { state_root: state_root.into(), features }
    }
}

impl Runtime for Native {
    fn create(&self, _id: &ContainerId, _bundle: &Bundle, _options: &CreateOptions<'_>) -> Result<Created> {
        todo!()
    }
    fn start(&self, _id: &ContainerId) -> Result<()> {
        todo!()
    }
    fn state(&self, _id: &ContainerId) -> Result<State> {
        todo!()
    }
    fn kill(&self, _id: &ContainerId, _signal: i32, _target: KillTarget) -> Result<()> {
        todo!()
    }
    fn delete(&self, _id: &ContainerId, _mode: DeleteMode) -> Result<()> {
        todo!()
    }
}
