//! `estiba tag`.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::Result;

/// Give an image one more name
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Name or id
    #[arg(value_name = "IMAGE[:TAG]")]
    image: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    name: estiba_engine::image::Reference,
}

impl Tag {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        engine.tag(&self.image, &self.name).await?;
        Ok(0)
    }
}
