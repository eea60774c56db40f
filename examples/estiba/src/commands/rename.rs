//! `estiba rename`.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;

/// Give a container another name
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The new name
    #[arg(value_name = "NEW_NAME")]
    name: String,
}

impl Rename {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        engine.container(&self.container).await?.rename(&self.name).await?;
        Ok(0)
    }
}
