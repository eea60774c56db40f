//! `estiba attach`: connects with a container that runs.

use std::io::IsTerminal as _;

use clap::Args;
use estiba_engine::{Engine, Status, Streams};

use crate::detach::Keys;
use crate::failure::{Failure, Result};
use crate::session::{Options, Outcome, Process, Session};

/// Connect with a container that runs
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba attach web\n  estiba attach --no-stdin web    to look only\n\n\
                        The exit status is the container's. The keys ctrl-p ctrl-q leave a container with a terminal running.\n")]
pub(crate) struct Attach {
    /// Keys that leave it running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<Keys>,
    /// Do not hand standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Hand signals on to it (without a terminal) [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = crate::flags::boolean, hide_possible_values = true)]
    sig_proxy: Option<bool>,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Attach {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let container = engine.container(&self.container).await?;
        let (record, status) = (container.record().await?, container.status().await?);
        match status {
            Status::Running => {}
            Status::Paused => return Err(Failure::new("You cannot attach to a paused container, unpause it first")),
            Status::Restarting(_) => {
                return Err(Failure::new("You cannot attach to a restarting container, wait until it is running"));
            }
            _ => return Err(Failure::new("You cannot attach to a stopped container, start it first")),
        }
        let (tty, stdin) = (record.request.tty, !self.no_stdin && record.request.interactive);
        if tty && stdin && !std::io::stdin().is_terminal() {
            return Err(Failure::new("the input device is not a TTY: give --no-stdin, or attach at a terminal"));
        }
        let keys = self.detach_keys.unwrap_or_default();
        let session = Session::prepare(Options { tty, stdin, signals: self.sig_proxy.unwrap_or(true), keys })?;
        let running = container.attach(Streams { stdin, stdout: true, stderr: true }).await?;
        match session.attend(Process::Attached(Box::new(running))).await? {
            Outcome::Detached => Err(Failure::new("read escape sequence")),
            outcome => Ok(outcome.status()),
        }
    }
}
