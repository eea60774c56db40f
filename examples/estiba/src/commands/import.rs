//! `estiba import`: makes an image of a tar archive of files.

use std::fs::File;
use std::io::IsTerminal as _;

use clap::Args;
use estiba_engine::{CommitRequest, Engine};

use super::commit::{changes, name};
use crate::failure::{Failure, Result};
use crate::output;

/// Make an image of a tar archive of a root file system
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba export web | estiba import - web:flat\n  estiba import -c 'CMD [\"sh\"]' rootfs.tar.gz base\n"
)]
pub(crate) struct Import {
    /// Change its configuration by an instruction of a Dockerfile (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER …)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What is said about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// The archive, or - for standard input
    #[arg(value_name = "FILE|-")]
    file: String,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Import {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let message = self.message.or_else(|| Some(format!("Imported from {}", self.file)));
        let request = CommitRequest {
            name: name(self.name.as_deref())?,
            message,
            changes: changes(&self.change)?,
            ..CommitRequest::default()
        };
        let image = if self.file == "-" {
            if std::io::stdin().is_terminal() {
                return Err(Failure::new("an archive is not typed at a terminal: redirect it, or name a file"));
            }
            engine.import_tree(std::io::stdin(), request).await?
        } else {
            let file = File::open(&self.file)
                .map_err(|error| Failure::caused(format!("cannot read the archive {}", self.file), error))?;
            engine.import_tree(file, request).await?
        };
        let (_, image) = engine.inspect_image(image.manifest.digest().as_ref()).await?;
        output::print(&format!("{}\n", image.id()))
    }
}
