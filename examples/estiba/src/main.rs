//! `estiba`: runs containers without a daemon. A face of the crate `estiba-engine`.

mod cli;
mod columns;
mod commands;
mod detach;
mod duration;
mod embedded;
mod environment;
mod failure;
mod filter;
mod flags;
mod format;
mod moment;
mod options;
mod output;
mod place;
mod platform;
mod quantity;
mod registry;
mod session;
mod signals;
mod size;
mod template;
mod terminal;
mod transfer;
mod view;
mod volume;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::failure::{Failure, Result};

/// musl's own gives memory back to the kernel at once, which makes a command of some milliseconds a third longer.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    // In a process that was started as a container's shim this serves and never returns.
    estiba_engine::reexec();
    embedded::note_start();
    match command() {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Where even stderr is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "estiba: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn command() -> Result<u8> {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match cli::parse(words.clone()) {
        Ok(cli) => cli,
        Err(error) => {
            return match cli::usage_failure(&error, &words) {
                Some(failure) => Err(failure),
                None if error.kind() == ErrorKind::DisplayVersion => output::print(&error.render().to_string()),
                None => output::print(&cli::help(&words)),
            };
        }
    };
    place::enter()?;
    // One thread: what waits costs none, and what blocks is taken to threads that come when they are needed.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::caused("cannot set up asynchronous I/O", error))?;
    let result = runtime.block_on(cli.execute());
    // A write to a terminal or pipe that takes nothing must not keep the process.
    runtime.shutdown_background();
    result
}
