//! `estiba version`.

use crate::failure::Result;
use crate::output;

/// Show the version
#[derive(Debug, clap::Args)]
pub(crate) struct Version {}

pub(crate) fn print() -> Result<u8> {
    output::print(&format!("estiba {}\n", env!("CARGO_PKG_VERSION")))
}
