//! `estiba load`.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use estiba_engine::Engine;

use crate::failure::{Failure, Result};
use crate::output;
use crate::view::image::familiar;

/// Take in the images of a tar archive that `docker save` or an OCI tool wrote
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba load -i images.tar\n  docker save alpine | estiba load\n")]
pub(crate) struct Load {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Do not show the progress (none is shown anyhow)
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let loaded = match self.input.filter(|path| path.as_os_str() != "-") {
            Some(path) => {
                std::fs::metadata(&path)
                    .map_err(|error| Failure::caused(format!("cannot read the archive {}", path.display()), error))?;
                engine.load(path).await?
            }
            None if std::io::stdin().is_terminal() => {
                return Err(Failure::new("requested load from stdin, but stdin is a terminal: give -i FILE"));
            }
            None => engine.load_stream(std::io::stdin()).await?,
        };
        let mut text = String::new();
        for image in loaded {
            for name in &image.names {
                let _ = writeln!(text, "Loaded image: {}", familiar(name));
            }
            if image.names.is_empty() {
                let _ = writeln!(text, "Loaded image ID: {}", image.id);
            }
        }
        output::print(&text)
    }
}
