//! `estiba create`: makes a container that is started later.

use clap::Args;
use estiba_engine::Config;

use crate::failure::Result;
use crate::options::{IdFile, Options, WordsOfCommand};
use crate::output;

/// Make a container without starting it
#[derive(Debug, Args)]
#[command(override_usage = "estiba create [OPTIONS] IMAGE [COMMAND [ARG...]]", disable_help_flag = true)]
#[command(after_help = "Examples:\n  estiba create --name web oci:images:nginx\n  estiba start -a web\n")]
pub(crate) struct Create {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    words: WordsOfCommand,
}

impl Create {
    pub(crate) async fn execute(self, config: Config) -> Result<u8> {
        let prepared = self.options.prepare()?;
        let mut id_file = prepared.cidfile().map(IdFile::make).transpose()?;
        let engine = crate::cli::open(config).await?;
        let container = engine.create(Box::pin(prepared.request(&engine, self.words)).await?).await?;
        if let Some(file) = &mut id_file
            && let Err(failure) = file.write(container.id().as_str())
        {
            // Whoever asked for the file finds the container by it alone.
            container.remove(estiba_engine::Kill::Yes).await?;
            return Err(failure);
        }
        output::print(&format!("{}\n", container.id()))
    }
}
