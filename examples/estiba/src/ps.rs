//! `estiba ps`: the containers.

use clap::Args;
use estiba_engine::{Engine, Status, Summary};

use crate::failure::Result;
use crate::output;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba ps\n  estiba rm $(estiba ps -aq)    remove all that do not run\n")]
pub(crate) struct Ps {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

impl Ps {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let mut containers = engine.containers().await?;
        containers.retain(|container| self.all || container.status == Status::Running);
        if self.quiet {
            return output::print(&output::lines(containers.iter().map(|container| container.record.id.short())));
        }
        let rows: Vec<[String; 6]> = containers.iter().map(row).collect();
        output::print(&output::table(["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"], &rows))
    }
}

fn row(container: &Summary) -> [String; 6] {
    let record = &container.record;
    [
        record.id.short().to_owned(),
        record.request.image.name.clone(),
        command(record.request.entrypoint.as_deref(), &record.request.command),
        output::ago(record.created),
        status(&container.status),
        record.name.to_string(),
    ]
}

/// What was asked for; nothing where the image's own command runs.
fn command(entrypoint: Option<&[String]>, command: &[String]) -> String {
    const WIDTH: usize = 20;
    let words: Vec<&str> = entrypoint.unwrap_or_default().iter().chain(command).map(String::as_str).collect();
    let text: String = words.join(" ").escape_debug().collect();
    if text.is_empty() {
        text
    } else if text.chars().count() > WIDTH {
        format!("\"{}…\"", text.chars().take(WIDTH - 1).collect::<String>())
    } else {
        format!("\"{text}\"")
    }
}

fn status(status: &Status) -> String {
    match status {
        Status::Created => "Created".into(),
        Status::Running => "Up".into(),
        Status::Exited(Some(exit)) if exit.oom_killed => format!("Exited ({}), out of memory", exit.status),
        Status::Exited(Some(exit)) => format!("Exited ({})", exit.status),
        Status::Exited(None) => "Exited (status lost)".into(),
        _ => "Dead".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_short_and_harmless() {
        for (words, expected) in [
            (vec![], ""),
            (vec!["sh"], "\"sh\""),
            (vec!["echo", "a\nb\x1b"], "\"echo a\\nb\\u{1b}\""),
            (vec!["sleep", "1000000000000000000000"], "\"sleep 1000000000000…\""),
        ] {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            assert_eq!(command(None, &words), expected);
        }
        assert_eq!(command(Some(&["tini".into()]), &["sh".into()]), "\"tini sh\"");
    }
}
