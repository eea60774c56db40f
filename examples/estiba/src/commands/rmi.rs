//! `estiba rmi`: removes images.

use std::fmt::Write as _;

use clap::Args;
use estiba_engine::{Engine, Error, Force, Removed};

use super::tell;
use crate::failure::Result;
use crate::output;
use crate::view::image::familiar;

/// Remove images
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Even if a container is made from it that does not run, and do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Keep what is without a name (nothing is kept or removed beside what is named)
    #[arg(long)]
    no_prune: bool,
    /// Name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let force = if self.force { Force::Yes } else { Force::No };
        let mut status = 0;
        for image in &self.images {
            match engine.remove_image(image, force).await {
                Ok(removed) => {
                    output::print(&told(&removed))?;
                }
                Err(error) => {
                    let missing = is_missing(&error);
                    tell(&error.into());
                    if !(missing && self.force) {
                        status = 1;
                    }
                }
            }
        }
        Ok(status)
    }
}

fn is_missing(error: &Error) -> bool {
    match error {
        Error::NoImage { .. } => true,
        Error::Image { source, .. } => matches!(**source, estiba_engine::image::Error::NoSuchImage { .. }),
        _ => false,
    }
}

/// What was removed, line by line.
pub(crate) fn told(removed: &Removed) -> String {
    let mut text = String::new();
    for name in &removed.untagged {
        let _ = writeln!(text, "Untagged: {}", familiar(name));
    }
    for id in &removed.deleted {
        let _ = writeln!(text, "Deleted: {id}");
    }
    text
}
