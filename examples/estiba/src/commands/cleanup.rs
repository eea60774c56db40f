//! `estiba cleanup`: what a container's shim executes when the container has ended and no command attends it.

use clap::Args;
use estiba_engine::{Engine, Id};

use crate::failure::Result;

/// Undo what is left of a container that has ended
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Cleanup {
    /// The container's full id
    id: Id,
}

impl Cleanup {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        engine.cleanup(self.id).await?;
        Ok(0)
    }
}
