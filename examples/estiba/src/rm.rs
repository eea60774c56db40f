//! `estiba rm`: removes containers.

use std::io::{self, Write as _};

use clap::Args;
use estiba_engine::{Engine, Kill};

use crate::failure::{Failure, Result};
use crate::output;

/// Remove containers
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Kill those that run, and do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    /// Tries every container: one that cannot be removed keeps none of the others.
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let mut status = 0;
        for name in &self.containers {
            match self.remove(engine, name).await {
                Ok(()) => {
                    output::print(&format!("{name}\n"))?;
                }
                Err(failure) => {
                    let _ = writeln!(io::stderr(), "estiba: {failure}");
                    status = 1;
                }
            }
        }
        Ok(status)
    }

    async fn remove(&self, engine: &Engine, name: &str) -> Result<(), Failure> {
        let kill = if self.force { Kill::Yes } else { Kill::No };
        let removed = match engine.container(name).await {
            Ok(container) => container.remove(kill).await,
            Err(error) => Err(error),
        };
        match removed {
            Err(estiba_engine::Error::NoContainer { .. }) if self.force => Ok(()),
            removed => Ok(removed?),
        }
    }
}
