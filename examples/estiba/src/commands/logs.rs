//! `estiba logs`: what a container has written.

use std::time::SystemTime;

use clap::Args;
use estiba_engine::shim::{LogOptions, Stream};
use estiba_engine::{Engine, Logs as Entries};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use crate::failure::{Failure, Result};
use crate::moment;
use crate::output::BROKEN_PIPE;
use crate::view::image::Config;

/// How many bytes are written at once, if there are so many.
const TOGETHER: usize = 64 << 10;

/// Show what a container has written
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba logs web\n  estiba logs -f --tail 10 web\n  estiba logs --since 10m -t web\n"
)]
pub(crate) struct Logs {
    /// Show the container's labels as well
    #[arg(long)]
    details: bool,
    /// Go on until it has ended
    #[arg(short, long)]
    follow: bool,
    /// Only what was written since a time (2006-01-02T15:04:05Z) or a duration ago (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all")]
    tail: String,
    /// Show when each line was written
    #[arg(short, long)]
    timestamps: bool,
    /// Only what was written before a time or a duration ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Logs {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let now = SystemTime::now();
        let time = |name: &str, text: &Option<String>| {
            let failed = |reason| Failure::new(format!("invalid value for {name:?}: {reason}"));
            text.as_deref()
                .filter(|text| !text.is_empty())
                .map(|text| moment::parse(text, now).map_err(failed))
                .transpose()
        };
        let request = LogOptions {
            // Whatever is no number is all, as with Docker.
            tail: self.tail.parse().ok(),
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
            follow: self.follow,
        };
        let container = engine.container(&self.container).await?;
        let details = if self.details {
            let record = container.record().await?;
            let labels = crate::view::container::labels(&record, &Config::default());
            labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",") + " "
        } else {
            String::new()
        };
        let written = self.write(container.logs(request).await?, &details).await;
        match written {
            Ok(()) => Ok(0),
            Err(Problem::Failure(failure)) => Err(failure),
            Err(Problem::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
            Err(Problem::Write(error)) => Err(Failure::caused("cannot write the container's output", error)),
        }
    }

    async fn write(&self, mut entries: Entries, details: &str) -> Result<(), Problem> {
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        // Only the first part of a long line has its time before it.
        let mut middle = [false; 2];
        // What comes at once is written at once, as long as it goes to the same stream.
        let mut text = Vec::new();
        let mut next = None;
        loop {
            let entry = match next.take() {
                Some(entry) => entry,
                None => match entries.next().await {
                    Some(entry) => entry.map_err(|error| Problem::Failure(error.into()))?,
                    None => return Ok(()),
                },
            };
            let stream = entry.stream;
            let middle = &mut middle[usize::from(stream == Stream::Stderr)];
            if !*middle {
                if self.timestamps {
                    text.extend(format!("{} ", moment::rfc3339_nano(entry.time)).as_bytes());
                }
                text.extend(details.as_bytes());
            }
            *middle = !entry.bytes.ends_with(b"\n");
            text.extend(&entry.bytes);
            next = entries.next_ready();
            if text.len() < TOGETHER && next.as_ref().is_some_and(|next| next.stream == stream) {
                continue;
            }
            let out: &mut (dyn AsyncWrite + Unpin) = match stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            out.write_all(&text).await.map_err(Problem::Write)?;
            out.flush().await.map_err(Problem::Write)?;
            text.clear();
        }
    }
}

/// Why it came to an end too early.
enum Problem {
    Failure(Failure),
    Write(std::io::Error),
}
