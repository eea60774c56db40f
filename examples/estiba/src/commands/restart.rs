//! `estiba restart`.

use clap::Args;
use estiba_engine::Engine;

use super::each;
use super::stop::Ending;
use crate::failure::Result;

/// Stop containers and start them again
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    ending: Ending,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Restart {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let (signal, timeout) = self.ending.parse()?;
        let restart =
            async |name: &str| -> Result<()> { Ok(engine.container(name).await?.restart(signal, timeout).await?) };
        each(&self.containers, restart).await
    }
}
