//! `estiba diff`: what a container has changed in its root file system.

use std::fmt::Write as _;

use clap::Args;
use estiba_engine::Engine;
use estiba_engine::storage::layer::ChangeKind;

use crate::failure::Result;
use crate::{format, output};

/// Show what a container has changed in its root file system
#[derive(Debug, Args)]
#[command(after_help = "Each line is a path: A was added, C was changed, D was deleted.\n")]
pub(crate) struct Diff {
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Diff {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let changes = engine.container(&self.container).await?.changes().await?;
        let mut text = String::new();
        for change in changes {
            let kind = match change.kind {
                ChangeKind::Added => 'A',
                ChangeKind::Modified => 'C',
                ChangeKind::Deleted => 'D',
            };
            let _ = writeln!(
                text,
                "{kind} {}",
                format::shown(&change.path.display().to_string()).replace('\n', "\u{fffd}")
            );
        }
        output::print(&text)
    }
}
