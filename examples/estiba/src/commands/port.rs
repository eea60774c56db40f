//! `estiba port`.

use clap::Args;
use estiba_engine::Engine;

use crate::failure::{Failure, Result};
use crate::{output, view};

/// List the ports that a container publishes
#[derive(Debug, Args)]
pub(crate) struct Port {
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// One port of the container
    #[arg(value_name = "PORT[/PROTO]")]
    port: Option<String>,
}

impl Port {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let summary = engine.container(&self.container).await?.summary().await?;
        let published =
            if summary.status.is_running() { view::network::published(&summary.record) } else { Vec::new() };
        let shown = |(address, port): &(String, u16)| {
            if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
        };
        let Some(port) = self.port else {
            let lines = published
                .iter()
                .flat_map(|(port, hosts)| hosts.iter().map(move |host| format!("{port} -> {}", shown(host))));
            return output::print(&output::lines(lines));
        };
        let wanted = if port.contains('/') { port.clone() } else { format!("{port}/tcp") };
        match published.iter().find(|(port, _)| *port == wanted) {
            Some((_, hosts)) => output::print(&output::lines(hosts.iter().map(shown))),
            None => Err(Failure::new(format!("No public port '{port}' published for {}", self.container))),
        }
    }
}
