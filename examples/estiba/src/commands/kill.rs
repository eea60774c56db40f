//! `estiba kill`.

use clap::Args;
use estiba_engine::Engine;

use super::each;
use crate::failure::{Failure, Result};
use crate::signals;

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
            engine.container(name).await?.kill(signal).await?;
            Ok(())
        };
        each(&self.containers, kill).await
    }
}
