//! `estiba run`: makes a container, is its terminal and its signals, and ends as it ends.

use std::io::IsTerminal as _;

use clap::Args;
use estiba_engine::{Config, Engine, Streams};

use crate::detach::Keys;
use crate::failure::{ENGINE, Failure, Result};
use crate::options::{IdFile, Options, WordsOfCommand};
use crate::output;
use crate::session::{self, Process, Session, Started};

const EXAMPLES: &str = "\
IMAGE is the name or id of an image that is there (see `estiba images`), or one of:
  embedded:hello              the image inside this program
  oci:DIR[:TAG]               an OCI image layout (skopeo, umoci, buildah)
  oci-archive:FILE[:TAG]      the same in a tar
  docker-archive:FILE[:REF]   what `docker save` writes

Examples:
  estiba run embedded:hello
  estiba run --rm -it oci:images:debian bash
  estiba run -d --name web --restart on-failure:5 oci:images:nginx
  estiba run --rm -m 256m --cpus 1.5 --pids-limit 100 oci:images:debian make -j4
  estiba run --rm -v $PWD:/work -w /work -u 1000:1000 oci:images:alpine ./build
  tar c . | estiba run --rm -i oci:images:alpine tar tv

The exit status is the container's; 125 if estiba failed, 126 if the command could not be executed,
127 if it was not found, 128+n if signal n ended it.
";

/// Run a command in a new container
#[derive(Debug, Args)]
#[command(override_usage = "estiba run [OPTIONS] IMAGE [COMMAND [ARG...]]", after_help = EXAMPLES)]
#[command(disable_help_flag = true)]
pub(crate) struct Run {
    /// Leave it running in the background and print its id
    #[arg(short, long)]
    detach: bool,
    /// Hand signals on to it (without a terminal) [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = crate::flags::boolean, hide_possible_values = true)]
    sig_proxy: Option<bool>,
    /// Keys that leave it running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<Keys>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    words: WordsOfCommand,
}

impl Run {
    pub(crate) async fn execute(self, config: Config) -> Result<u8> {
        // Whatever goes wrong here is not the container's, whose own failures have 126 and 127.
        Box::pin(self.run(config)).await.map_err(|failure| match failure.status() {
            1 | 126 | 127 => failure,
            _ => failure.with_status(ENGINE),
        })
    }

    async fn run(self, config: Config) -> Result<u8> {
        let streams = self.options.streams()?;
        if self.detach && self.options.attaches() {
            return Err(Failure::new("conflicting options: --attach and --detach exclude each other: leave one away"));
        }
        let foreground = !self.detach;
        if foreground && self.options.tty() && streams.stdin && !std::io::stdin().is_terminal() {
            let failure = Failure::new("the input device is not a TTY: leave -t away, or run it at a terminal");
            return Err(failure.with_status(1));
        }
        // What needs no engine is judged first: then a wrong option costs and leaves nothing.
        let prepared = self.options.prepare()?;
        let mut id_file = prepared.cidfile().map(IdFile::make).transpose()?;
        let engine = crate::cli::open(config).await?;
        let request = Box::pin(prepared.request(&engine, self.words)).await?;
        if self.detach {
            let running = engine.run_with(request, Streams::NONE).await?;
            let id = running.id().clone();
            if let Some(file) = &mut id_file
                && let Err(failure) = file.write(id.as_str())
            {
                running.finish().await?;
                remove(&engine, id.as_str()).await;
                return Err(failure);
            }
            drop(running);
            return output::print(&format!("{id}\n"));
        }
        let options = session::Options {
            tty: request.tty,
            stdin: streams.stdin,
            signals: self.sig_proxy.unwrap_or(true),
            keys: self.detach_keys.unwrap_or_default(),
        };
        let mut session = Session::prepare(options)?;
        let running = match session.start(Box::pin(engine.run_with(request, streams))).await? {
            Started::Running(running) => running,
            Started::Interrupted(status) => return Ok(status),
        };
        if let Some(file) = &mut id_file
            && let Err(failure) = file.write(running.id().as_str())
        {
            // Whoever asked for the file finds the container by it alone.
            running.finish().await?;
            return Err(failure);
        }
        Ok(session.attend(Process::Started(running)).await?.status())
    }
}

/// Removes a container that nobody could find. What fails of it is mended by a later command.
async fn remove(engine: &Engine, id: &str) {
    if let Ok(container) = engine.container(id).await {
        let _ = container.remove(estiba_engine::Kill::Yes).await;
    }
}
