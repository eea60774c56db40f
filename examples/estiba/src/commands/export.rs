//! `estiba export`.

use std::path::PathBuf;

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;
use crate::output::Destination;

/// Write a container's files as a tar archive
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba export -o web.tar web\n  estiba export web | tar t\n")]
pub(crate) struct Export {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Export {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let container = engine.container(&self.container).await?;
        let destination = Destination::open(self.output)?;
        let writer = destination.writer()?;
        let result = container.export(writer).await;
        destination.finish(result.map(|_| ()))
    }
}
