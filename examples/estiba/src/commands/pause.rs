//! `estiba pause` and `estiba unpause`.

use clap::Args;
use estiba_engine::Engine;

use super::each;
use crate::failure::Result;

/// Freeze all processes of containers
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let pause = async |name: &str| -> Result<()> { Ok(engine.container(name).await?.pause().await?) };
        each(&self.containers, pause).await
    }
}

/// Let frozen containers go on
#[derive(Debug, Args)]
pub(crate) struct Unpause {
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Unpause {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let unpause = async |name: &str| -> Result<()> { Ok(engine.container(name).await?.unpause().await?) };
        each(&self.containers, unpause).await
    }
}
