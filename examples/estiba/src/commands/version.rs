//! `estiba version`.

use clap::Args;

use crate::failure::Result;
use crate::format;
use crate::output;
use crate::template::{Record, Value};

/// Show the version
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// A template, or json
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Version {
    pub(crate) fn execute(&self) -> Result<u8> {
        match self.format.as_deref() {
            None | Some("") => output::print(&format!("estiba {VERSION}\n")),
            Some("json") => output::print(&format!("{}\n", object().json(crate::template::Json::Compact))),
            Some(template) => output::print(&format::inspect(Some(template), vec![object()])?),
        }
    }
}

/// There is no daemon: client and server are one program.
fn object() -> Value {
    let part = |name| {
        Record::new(name)
            .with("Version", VERSION)
            .with("Os", std::env::consts::OS)
            .with("Arch", crate::platform::architecture())
    };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    Record::new("version.Info")
        .with("Client", part("version.Client"))
        .with("Server", part("version.Server").with("KernelVersion", kernel))
        .into()
}
