//! `estiba stop`.

use clap::Args;
use estiba_engine::Engine;

use super::each;
use crate::failure::{Failure, Result};
use crate::signals;

/// How a container is asked to end.
#[derive(Debug, Args)]
pub(crate) struct Ending {
    /// Signal that asks it to end [default: its own, or SIGTERM]
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Seconds until it is killed; -1: never [default: its own, or 10]
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS")]
    timeout: Option<i64>,
}

impl Ending {
    /// The signal and the seconds. A signal that is none is a failure as of the container, as with Docker.
    pub(crate) fn parse(&self) -> Result<(Option<i32>, Option<i64>)> {
        let signal = self.signal.as_deref().filter(|text| !text.is_empty()).map(signals::parse).transpose();
        Ok((signal.map_err(Failure::new)?, self.timeout))
    }
}

/// Ask containers to end, and kill those that do not
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba stop web\n  estiba stop -t 60 db\n")]
pub(crate) struct Stop {
    #[command(flatten)]
    ending: Ending,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Stop {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let (signal, timeout) = self.ending.parse()?;
        let stop = async |name: &str| -> Result<()> { Ok(engine.container(name).await?.stop(signal, timeout).await?) };
        each(&self.containers, stop).await
    }
}
