//! `estiba exec`: runs one more program in a container.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use estiba_engine::{Engine, Error, ExecRequest, Streams};

use crate::detach::Keys;
use crate::environment;
use crate::failure::{ENGINE, Failure, Result};
use crate::session::{Options, Process, Session};

/// Run one more program in a container that runs
#[derive(Debug, Args)]
#[command(override_usage = "estiba exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
#[command(
    after_help = "Examples:\n  estiba exec web ls /\n  estiba exec -it web sh\n  estiba exec -d -u 1000 web touch /tmp/file\n\n\
                        The exit status is the program's; 126 if it could not be executed, 127 if it was not found.\n"
)]
#[expect(clippy::struct_excessive_bools, reason = "a flag of the command line is a bool")]
pub(crate) struct Exec {
    /// Leave it running in the background
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<Keys>,
    /// Set a variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Keep standard input connected
    #[arg(short, long)]
    interactive: bool,
    /// Give it all capabilities
    #[arg(long)]
    privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// User inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = crate::options::user)]
    user: Option<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container; and the program with its options
    // One list: only so does clap leave every option after CONTAINER to the program.
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_name = "CONTAINER COMMAND")]
    words: Vec<String>,
}

/// Docker's status for a process that could not be set up: 127 if something is not there, 126 if something is not allowed.
fn refused(error: Error) -> Failure {
    let is_start = matches!(error, Error::Shim { .. });
    let failure = Failure::from(error);
    let said = failure.to_string();
    match failure.status() {
        ENGINE if is_start && said.contains("No such file or directory") => failure.with_status(127),
        ENGINE if is_start && said.contains("Permission denied") => failure.with_status(126),
        _ => failure,
    }
}

impl Exec {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let Some((name, command)) = self.words.split_first() else {
            return Err(Failure::new("give a container and a command"));
        };
        let stdin = self.interactive && !self.detach;
        if self.tty && stdin && !std::io::stdin().is_terminal() {
            return Err(Failure::new("the input device is not a TTY: leave -t away, or run it at a terminal"));
        }
        let env = environment::collect(&self.env_file, &self.env, |key| std::env::var(key).ok())?;
        let request = ExecRequest {
            command: command.to_vec(),
            env,
            workdir: self.workdir,
            user: self.user,
            tty: self.tty,
            console_size: crate::terminal::size().filter(|_| self.tty),
            interactive: stdin,
            privileged: self.privileged,
        };
        let container = engine.container(name).await?;
        if self.detach {
            container.exec(request, Streams::NONE).await.map_err(refused)?.detach().await?;
            return Ok(0);
        }
        let keys = self.detach_keys.unwrap_or_default();
        let session = Session::prepare(Options { tty: self.tty, stdin, signals: false, keys })?;
        let streams = Streams { stdin, stdout: true, stderr: true };
        let exec = container.exec(request, streams).await.map_err(refused)?;
        Ok(session.attend(Process::Added(Box::new(exec))).await?.status())
    }
}
