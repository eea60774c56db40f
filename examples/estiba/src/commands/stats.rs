//! `estiba stats`: what containers use.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use estiba_engine::{Engine, Error, Summary, Usage};

use crate::failure::Result;
use crate::format::Format;
use crate::output::{self, BROKEN_PIPE};
use crate::view::row::Length;
use crate::view::usage::{COLUMNS, Row, TABLE};

/// Time between two measurements.
const PERIOD: Duration = Duration::from_secs(1);

/// Show what containers use
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba stats\n  estiba stats --no-stream --format '{{.Name}}: {{.MemUsage}}' web\n"
)]
pub(crate) struct Stats {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Name or id, or the beginning of an id; all that run without one
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// A container that is looked at.
struct Watched {
    asked: String,
    summary: Summary,
}

impl Stats {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let format = Format::parse(&self.format, TABLE);
        format.prepare()?;
        let length = Length::of(self.no_trunc);
        let memory = crate::platform::memory();
        let clears = !self.no_stream && matches!(format, Format::Table(_)) && std::io::stdout().is_terminal();
        let mut before: HashMap<String, Usage> = HashMap::new();
        let mut first = true;
        loop {
            let watched = self.watched(engine).await?;
            let now = measure(engine, &watched).await?;
            if first {
                // What is used in a time needs two looks.
                before = now;
                first = false;
                tokio::time::sleep(PERIOD).await;
                continue;
            }
            let rows: Vec<_> = watched
                .iter()
                .map(|one| {
                    let record = &one.summary.record;
                    let usage = now.get(record.id.as_str());
                    let name = record.name.to_string();
                    let measured = usage.map(|usage| (before.get(record.id.as_str()).unwrap_or(usage), usage));
                    Row { asked: &one.asked, name: &name, id: length.id(record.id.as_str()), measured, memory }.value()
                })
                .collect();
            let mut text = format.print(&COLUMNS, &rows)?;
            if clears {
                // Up and left, and away with what was there.
                text.insert_str(0, "\x1b[H\x1b[J");
            }
            if output::print(&text)? == BROKEN_PIPE {
                return Ok(BROKEN_PIPE);
            }
            if self.no_stream {
                return Ok(0);
            }
            before = now;
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn watched(&self, engine: &Engine) -> Result<Vec<Watched>> {
        let mut watched = Vec::new();
        for name in &self.containers {
            let summary = engine.container(name).await?.summary().await?;
            watched.push(Watched { asked: name.clone(), summary });
        }
        if self.containers.is_empty() {
            for summary in engine.containers().await? {
                if self.all || summary.status.is_running() {
                    watched.push(Watched { asked: summary.record.id.to_string(), summary });
                }
            }
        }
        Ok(watched)
    }
}

/// What each of the containers that run uses now, by its id.
async fn measure(engine: &Engine, watched: &[Watched]) -> Result<HashMap<String, Usage>> {
    let mut usages = HashMap::new();
    for one in watched.iter().filter(|one| one.summary.status.is_running()) {
        let id = one.summary.record.id.as_str();
        let usage = match engine.container(id).await {
            Ok(container) => container.usage().await,
            Err(error) => Err(error),
        };
        match usage {
            Ok(usage) => _ = usages.insert(id.to_owned(), usage),
            // It has ended meanwhile.
            Err(Error::NotRunning { .. } | Error::NoContainer { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(usages)
}
