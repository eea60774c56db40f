//! `estiba rm`: removes containers.

use clap::Args;
use estiba_engine::{Engine, Error, Kill, OwnVolumes};

use super::tell;
use crate::failure::Result;
use crate::output;

/// Remove containers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba rm web\n  estiba rm -f $(estiba ps -aq)    all of them, whatever they do\n"
)]
pub(crate) struct Rm {
    /// Kill those that run, and do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Remove the volumes that were made for them alone, too
    #[arg(short, long)]
    volumes: bool,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let kill = if self.force { Kill::Yes } else { Kill::No };
        let volumes = if self.volumes { OwnVolumes::Remove } else { OwnVolumes::Keep };
        let mut status = 0;
        for name in &self.containers {
            let removed = match engine.container(name).await {
                Ok(container) => container.remove_with(kill, volumes).await,
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => {
                    output::print(&format!("{name}\n"))?;
                }
                Err(error) => {
                    // By force one that is not there is said, and fine.
                    let is_fine = self.force && matches!(error, Error::NoContainer { .. });
                    tell(&error.into());
                    status = if is_fine { status } else { 1 };
                }
            }
        }
        Ok(status)
    }
}
