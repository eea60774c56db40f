//! `estiba wait`.

use clap::Args;
use estiba_engine::{Engine, Until};

use super::tell;
use crate::failure::Result;
use crate::output;

/// Wait for containers to end, and print their exit statuses
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let mut status = 0;
        for name in &self.containers {
            match wait(engine, name).await {
                Ok(code) => {
                    output::print(&format!("{code}\n"))?;
                }
                Err(failure) => {
                    tell(&failure);
                    status = 1;
                }
            }
        }
        Ok(status)
    }
}

/// The container's exit status; 0 of one that never ran, 255 if it is lost.
async fn wait(engine: &Engine, name: &str) -> Result<i32> {
    let container = engine.container(name).await?;
    let never_ran = container.record().await?.starts == 0;
    let exit = container.wait(Until::NotRunning).await?;
    Ok(exit.map_or(if never_ran { 0 } else { 255 }, |exit| exit.status))
}
