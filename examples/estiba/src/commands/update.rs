//! `estiba update`: changes the limits of containers while they run.

use clap::Args;
use estiba_engine::{Engine, Limits, RestartPolicy};

use super::each;
use crate::failure::{Failure, Result};
use crate::options::LimitOptions;

/// Change limits and restart policies of containers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba update -m 512m --cpus 2 web\n  estiba update --restart unless-stopped web\n"
)]
pub(crate) struct Update {
    #[command(flatten)]
    limits: LimitOptions,
    /// no, on-failure, on-failure:RETRIES, always or unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = crate::options::restart)]
    restart: Option<RestartPolicy>,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let limits = self.limits.limits();
        if limits == Limits::default() && self.restart.is_none() {
            return Err(Failure::new(
                "you must provide one or more flags when using this command: see 'estiba update --help'",
            ));
        }
        let update = async |name: &str| -> Result<()> {
            Ok(engine.container(name).await?.update(limits.clone(), self.restart).await?)
        };
        each(&self.containers, update).await
    }
}
