//! `estiba start`: starts containers that do not run.

use std::io::IsTerminal as _;

use clap::Args;
use estiba_engine::{Engine, Error, Streams};

use super::each;
use crate::detach::Keys;
use crate::failure::{Failure, Result};
use crate::output;
use crate::session::{Options, Process, Session, Started};

/// Start containers that do not run
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba start web\n  estiba start -ai shell    and be its terminal until it ends\n"
)]
pub(crate) struct Start {
    /// Show its output and hand signals on to it, until it ends
    #[arg(short, long)]
    attach: bool,
    /// Hand standard input on to it
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave it running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<Keys>,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        if self.attach || self.interactive {
            let [name] = self.containers.as_slice() else {
                return Err(Failure::new(
                    "only one container at a time can be started and attached: leave -a and -i away",
                ));
            };
            return self.attend(engine, name).await;
        }
        let start = async |name: &str| -> Result<()> {
            match engine.container(name).await?.start_with(Streams::NONE).await {
                // As it was wanted.
                Ok(_) | Err(Error::StillRunning { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        each(&self.containers, start).await
    }

    async fn attend(&self, engine: &Engine, name: &str) -> Result<u8> {
        let container = engine.container(name).await?;
        let record = container.record().await?;
        let (tty, stdin) = (record.request.tty, self.interactive && record.request.interactive);
        if tty && stdin && !std::io::stdin().is_terminal() {
            return Err(Failure::new("the input device is not a TTY: leave -i away, or start it at a terminal"));
        }
        let streams = Streams { stdin, stdout: true, stderr: true };
        let keys = self.detach_keys.clone().unwrap_or_default();
        let mut session = Session::prepare(Options { tty, stdin, signals: true, keys })?;
        let running = match session.start(Box::pin(container.start_with(streams))).await {
            Ok(Started::Running(running)) => running,
            Ok(Started::Interrupted(status)) => return Ok(status),
            Err(failure) if container.status().await?.is_running() => {
                drop(failure);
                output::print(&format!("{name}\n"))?;
                return Ok(0);
            }
            Err(failure) => return Err(failure),
        };
        Ok(session.attend(Process::Started(running)).await?.status())
    }
}
