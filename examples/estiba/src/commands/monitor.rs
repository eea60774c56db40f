//! `estiba monitor`: what the engine executes when a container wants to be restarted or checked while nobody is there.

use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use estiba_engine::Engine;

use crate::failure::{Failure, Result};

/// How long it stays when there is nothing to watch over.
const LINGER: Duration = Duration::from_secs(10);

/// Restart containers and check their health in the background
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Monitor {
    /// Be the monitor, rather than start it
    #[arg(long)]
    stay: bool,
}

impl Monitor {
    pub(crate) fn stays(&self) -> bool {
        self.stay
    }

    /// Starts this command once more as a process of its own, which nobody waits for.
    pub(crate) fn begin() -> Result<u8> {
        let failed = |error| Failure::caused("cannot start the monitor", error);
        let program = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).arg("--stay");
        // A group of its own, so that keys pressed at a terminal are not for it, until it has a session of its own.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        command.spawn().map_err(failed)?;
        Ok(0)
    }

    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        engine.monitor(LINGER).await?;
        Ok(0)
    }
}
