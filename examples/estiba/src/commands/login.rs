//! `estiba login` and `estiba logout`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use clap::Args;
use estiba_engine::image::Credential;

use crate::failure::{Failure, Result};
use crate::output;
use crate::registry::{self, DOCKER_HUB};
use crate::terminal;

/// The most that is read as a password.
const MAX_SECRET: u64 = 64 << 10;

/// Log in to a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba login -u me --password-stdin 127.0.0.1:5000 <password.txt\n")]
pub(crate) struct Login {
    /// The registry's host [default: docker.io]
    #[arg(value_name = "SERVER")]
    server: Option<String>,
    /// The user's name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password; others can see it in the list of processes
    #[arg(short, long, value_name = "TEXT", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

impl Login {
    pub(crate) async fn execute(self) -> Result<u8> {
        let server = self.server.as_deref().unwrap_or(DOCKER_HUB);
        if self.password_stdin && self.username.is_none() {
            return Err(Failure::new("--password-stdin needs -u NAME: both cannot come from standard input"));
        }
        let terminal = io::stdin().is_terminal();
        if !terminal && (self.username.is_none() || (self.password.is_none() && !self.password_stdin)) {
            let advice = "standard input is no terminal: give -u NAME and --password-stdin";
            return Err(Failure::new(format!("cannot ask for a user name and password: {advice}")));
        }
        let username = match self.username {
            Some(username) => username,
            None => ask("Username: ")?,
        };
        let password = match self.password {
            Some(password) => password,
            None if self.password_stdin => {
                let mut text = String::new();
                let read = io::stdin().lock().take(MAX_SECRET).read_to_string(&mut text);
                read.map_err(|error| Failure::caused("cannot read the password", error))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => {
                let hidden = terminal::hide().map_err(|error| Failure::caused("cannot hide what is typed", error))?;
                let password = ask("Password: ");
                drop(hidden);
                output::print("\n")?;
                password?
            }
        };
        if username.is_empty() || password.is_empty() {
            return Err(Failure::new("a user name and a password are needed, and one is empty"));
        }
        let client = registry::client()?;
        client.login(server, &Credential::Password { username, password }).await?;
        output::print("Login Succeeded\n")
    }
}

fn ask(prompt: &str) -> Result<String> {
    let failed = |error| Failure::caused("cannot ask on the terminal", error);
    let mut stdout = io::stdout().lock();
    stdout.write_all(prompt.as_bytes()).and_then(|()| stdout.flush()).map_err(failed)?;
    let mut line = String::new();
    io::stdin().lock().take(MAX_SECRET).read_line(&mut line).map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Forget what was kept of a registry by `login`
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// The registry's host [default: docker.io]
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl Logout {
    pub(crate) async fn execute(self) -> Result<u8> {
        let server = self.server.as_deref().unwrap_or(DOCKER_HUB);
        let client = registry::client()?;
        if client.logout(server).await? {
            output::print(&format!("Removing login credentials for {server}\n"))
        } else {
            output::print(&format!("Not logged in to {server}\n"))
        }
    }
}
