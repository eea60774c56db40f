//! `estiba push`.

use clap::Args;
use estiba_engine::Engine;
use estiba_engine::image::Reference;

use crate::failure::Result;
use crate::output;
use crate::registry;
use crate::transfer::{Direction, Output, progress};

/// Send an image to the registry in its name
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba tag app 127.0.0.1:5000/team/app:1.2\n  estiba push 127.0.0.1:5000/team/app:1.2\n"
)]
pub(crate) struct Push {
    /// Name of an image that is there
    #[arg(value_name = "NAME[:TAG]")]
    name: Reference,
    /// Say nothing but the name
    #[arg(short, long)]
    quiet: bool,
}

impl Push {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let familiar = self.name.familiar();
        if !self.quiet {
            output::print(&format!("The push refers to repository [{}]\n", registry::repository(&self.name)))?;
        }
        let sent = engine
            .push(&registry::client()?, &self.name, &progress(Direction::Push, self.quiet, Output::Standard))
            .await?;
        if self.quiet {
            return output::print(&format!("{}\n", self.name));
        }
        let tag = familiar.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        output::print(&format!("{tag}: digest: {} size: {}\n", sent.digest(), sent.size()))
    }
}
