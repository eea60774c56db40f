//! The commands, one a file, and what several of them share.

pub(crate) mod attach;
pub(crate) mod cleanup;
pub(crate) mod commit;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod kill;
pub(crate) mod load;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod monitor;
pub(crate) mod network;
pub(crate) mod pause;
pub(crate) mod port;
pub(crate) mod prune;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod rename;
pub(crate) mod restart;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod start;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod system_df;
pub(crate) mod tag;
pub(crate) mod top;
pub(crate) mod update;
pub(crate) mod version;
pub(crate) mod volume;
pub(crate) mod wait;

use std::io::{self, BufRead as _, Write as _};

use crate::failure::{Failure, Result};
use crate::output;

/// Does something to each of several, and prints the name of each that it was done to. One for which it fails keeps none
/// of the others; the status is then 1.
pub(crate) async fn each(names: &[String], act: impl AsyncFn(&str) -> Result<()>) -> Result<u8> {
    let mut status = 0;
    for name in names {
        match act(name).await {
            Ok(()) => {
                output::print(&format!("{name}\n"))?;
            }
            Err(failure) => {
                tell(&failure);
                status = 1;
            }
        }
    }
    Ok(status)
}

/// Says on stderr what went wrong with one of several.
pub(crate) fn tell(failure: &Failure) {
    // Where even stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "estiba: {failure}");
}

/// Asks a person whether to go on. The end of the input is a no.
pub(crate) fn confirm(warning: &str) -> Result<bool> {
    let mut stderr = io::stderr();
    let _ = write!(stderr, "{warning}\nAre you sure you want to continue? [y/N] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::caused("cannot read the answer", error))?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}
