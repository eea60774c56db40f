//! `estiba port`.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::{Failure, Result};

/// List the ports that a container publishes
#[derive(Debug, Args)]
pub(crate) struct Port {
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// One port of the container
    #[arg(value_name = "PORT[/PROTO]")]
    port: Option<String>,
}

impl Port {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        // No network of this version publishes ports: of a container that is there, there is none to list.
        engine.container(&self.container).await?;
        match self.port {
            None => Ok(0),
            Some(port) => Err(Failure::new(format!("No public port '{port}' published for {}", self.container))),
        }
    }
}
