//! `estiba pull`.

use clap::Args;
use estiba_engine::Engine;
use estiba_engine::image::Reference;

use crate::failure::Result;
use crate::output;
use crate::registry;
use crate::transfer::Output;

/// Fetch an image from a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba pull alpine\n  estiba pull 127.0.0.1:5000/team/app:1.2\n")]
pub(crate) struct Pull {
    /// Name, with a registry's host before it if it is not Docker Hub's
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: Reference,
    /// Say nothing but the name
    #[arg(short, long)]
    quiet: bool,
}

impl Pull {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let image = registry::pull(engine, &self.name, self.quiet, Output::Standard).await?;
        output::print(&format!("{}\n", image.name))
    }
}
