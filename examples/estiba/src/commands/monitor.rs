//! `estiba monitor`: what restarts containers and checks their health, started by itself when it is needed.

use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use estiba_engine::{Config, Engine};

use crate::failure::{Failure, Result};

/// How long it stays when there is nothing to watch over any more.
const LINGER: Duration = Duration::from_secs(2);

/// Restart containers and check their health, for as long as there is one that needs it
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Monitor {
    /// Go on in the background
    #[arg(long)]
    detach: bool,
}

impl Monitor {
    pub(crate) async fn execute(self, config: Config) -> Result<u8> {
        if self.detach {
            return detach(&config);
        }
        // Away from the terminal of whoever started it. Refused to the leader of a process group, which is in nobody's way.
        let _ = rustix::process::setsid();
        // It is the monitor itself: another one is not to be started.
        let engine = Engine::open(Config { monitor_command: Vec::new(), ..config }).await?;
        engine.monitor(LINGER).await?;
        Ok(0)
    }
}

/// Starts this program again, as nobody's child once this one has ended.
fn detach(config: &Config) -> Result<u8> {
    let [program, arguments @ ..] = config.monitor_command.as_slice() else { return Ok(0) };
    Command::new(program)
        .args(arguments.iter().filter(|argument| *argument != "--detach"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Failure::caused("cannot start the monitor", error))?;
    Ok(0)
}
