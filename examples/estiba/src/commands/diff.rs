//! `estiba diff`: what a container has changed in its root file system.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use estiba_engine::Engine;
use estiba_engine::storage::layer::{Change, ChangeKind};

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

/// Where something is mounted in every container. What stands for it in the root file system was not made by the container,
/// and Docker does not show it either.
const MOUNTS: [&str; 6] = ["/dev", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// The changes without those places, and without a folder that was changed by nothing but them.
fn own(mut changes: Vec<Change>) -> Vec<Change> {
    let is_mount = |change: &Change| {
        change.kind == ChangeKind::Added && MOUNTS.iter().any(|place| change.path == Path::new(place))
    };
    let hidden: Vec<PathBuf> =
        changes.iter().filter(|change| is_mount(change)).map(|change| change.path.clone()).collect();
    changes.retain(|change| !hidden.contains(&change.path));
    let paths: Vec<PathBuf> = changes.iter().map(|change| change.path.clone()).collect();
    let is_empty = |folder: &Path| !paths.iter().any(|path| path != folder && path.starts_with(folder));
    changes.retain(|change| {
        let held = hidden.iter().any(|path| path.parent() == Some(&change.path));
        !(held && change.kind == ChangeKind::Modified && is_empty(&change.path))
    });
    changes
}

impl Diff {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let changes = engine.container(&self.container).await?.changes().await?;
        let mut text = String::new();
        for change in own(changes) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_has_made_is_not_shown() {
        let change = |kind, path: &str| Change { path: path.into(), kind };
        let (added, modified) = (ChangeKind::Added, ChangeKind::Modified);
        let made = || {
            vec![change(added, "/dev"), change(modified, "/etc"), change(added, "/etc/hosts"), change(added, "/sys")]
        };
        assert_eq!(own(made()), []);
        let mut more = made();
        more.extend([change(ChangeKind::Deleted, "/etc/passwd"), change(added, "/dev/null"), change(modified, "/sys")]);
        let shown = [change(modified, "/etc"), change(ChangeKind::Deleted, "/etc/passwd"), change(added, "/dev/null")];
        assert_eq!(own(more)[..3], shown);
    }
}
