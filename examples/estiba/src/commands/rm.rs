//! `estiba rm`: removes containers.

use clap::Args;
use estiba_engine::{Engine, Error, Kill};

use super::each;
use crate::failure::Result;

/// Remove containers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba rm web\n  estiba rm -f $(estiba ps -aq)    all of them, whatever they do\n"
)]
pub(crate) struct Rm {
    /// Kill those that run, and do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Remove their anonymous volumes, too (there are none yet)
    #[arg(short, long)]
    volumes: bool,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let kill = if self.force { Kill::Yes } else { Kill::No };
        let remove = async |name: &str| -> Result<()> {
            let removed = match engine.container(name).await {
                Ok(container) => container.remove(kill).await,
                Err(error) => Err(error),
            };
            match removed {
                Err(Error::NoContainer { .. }) if self.force => Ok(()),
                removed => Ok(removed?),
            }
        };
        each(&self.containers, remove).await
    }
}
