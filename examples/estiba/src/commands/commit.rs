//! `estiba commit`: makes an image of what a container has changed.

use clap::Args;
use estiba_engine::image::{Change, Reference};
use estiba_engine::{CommitRequest, Engine};

use crate::failure::{Failure, Result};
use crate::output;

/// Make an image of what a container has changed
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba commit web web:changed\n  estiba commit -c 'CMD [\"nginx\"]' -c 'ENV A=1' web web:2\n"
)]
pub(crate) struct Commit {
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// Change its configuration by an instruction of a Dockerfile (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER …)
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What is said about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Pause the container meanwhile [default: true]
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = crate::flags::boolean, hide_possible_values = true)]
    pause: Option<bool>,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

/// The instructions, each judged.
pub(crate) fn changes(instructions: &[String]) -> Result<Vec<Change>> {
    instructions.iter().map(|instruction| Ok(instruction.parse::<Change>()?)).collect()
}

/// An image's name, if one was given.
pub(crate) fn name(text: Option<&str>) -> Result<Option<Reference>> {
    let parse = |text: &str| {
        let reference: Reference = text.parse()?;
        if reference.digest().is_some() {
            return Err(Failure::new(format!(
                "the name {text:?} is refused: an image's digest comes of itself, give NAME:TAG"
            )));
        }
        Ok(reference)
    };
    text.filter(|text| !text.is_empty()).map(parse).transpose()
}

impl Commit {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let request = CommitRequest {
            name: name(self.name.as_deref())?,
            author: self.author,
            message: self.message,
            changes: changes(&self.change)?,
            running: !self.pause.unwrap_or(true),
        };
        let image = engine.container(&self.container).await?.commit(request).await?;
        let (_, image) = engine.inspect_image(image.manifest.digest().as_ref()).await?;
        output::print(&format!("{}\n", image.id()))
    }
}
