//! `estiba save`.

use std::path::PathBuf;

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;
use crate::output::Destination;

/// Write images as a tar archive that `docker load` and `estiba load` read
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba save -o images.tar alpine debian\n  estiba save alpine | docker load\n")]
pub(crate) struct Save {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Save {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        for image in &self.images {
            engine.image(image).await?;
        }
        let destination = Destination::open(self.output)?;
        let writer = destination.writer()?;
        let result = engine.save(self.images, writer).await;
        destination.finish(result)
    }
}
