//! `estiba images`: what is in the content store.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;
use crate::output;

/// List images
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Print digests only
    #[arg(short, long)]
    quiet: bool,
}

impl Images {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let images = engine.images().await?;
        if self.quiet {
            return output::print(&output::lines(images.iter().map(|image| image.manifest.digest())));
        }
        let rows: Vec<[String; 2]> =
            images.into_iter().map(|image| [image.name, image.manifest.digest().to_string()]).collect();
        output::print(&output::table(["IMAGE", "DIGEST"], &rows))
    }
}
