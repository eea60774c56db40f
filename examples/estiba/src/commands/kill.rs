//! `estiba kill`.

use clap::Args;
use estiba_engine::Engine;

use super::{each, settled};
use crate::failure::{Failure, Result};
use crate::signals::{self, SIGKILL};

/// Send a signal to containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba kill web\n  estiba kill -s HUP web\n")]
pub(crate) struct Kill {
    /// Signal by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let signal = signals::parse(&self.signal).map_err(Failure::new)?;
        let kill = async |name: &str| -> Result<()> {
            let container = engine.container(name).await?;
            container.kill(signal).await?;
            // What cannot be refused is waited for, as with Docker.
            if signal == SIGKILL { settled(&container).await } else { Ok(()) }
        };
        each(&self.containers, kill).await
    }
}
