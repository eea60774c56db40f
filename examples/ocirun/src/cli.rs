//! The command line, which is runc's.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// An OCI runtime with the command line of runc.
#[derive(Debug, Parser)]
#[command(name = "ocirun", version = version(), disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Where the state of containers is kept.
    #[arg(long, global = true, default_value = "/run/ocirun")]
    pub(crate) root: PathBuf,
    /// A file for messages, beside the standard error.
    #[arg(long, global = true)]
    pub(crate) log: Option<PathBuf>,
    /// The form of the messages in the file.
    #[arg(long, global = true, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Accepted for callers that give it always; there is nothing more to say.
    #[arg(long, global = true, hide = true)]
    pub(crate) debug: bool,
    /// Refused: cgroups are not made through systemd.
    #[arg(long, global = true, hide = true)]
    pub(crate) systemd_cgroup: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The form of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// logfmt, as runc writes it.
    Text,
    /// An object a line.
    Json,
}

/// The form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// Columns.
    Table,
    /// A JSON array.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container, whose process waits for `start`.
    Create(Create),
    /// Let a created container's process execute its program.
    Start {
        /// The container.
        id: String,
    },
    /// Create and start a container, and wait for its end.
    Run {
        #[command(flatten)]
        create: Create,
        /// Do not wait.
        #[arg(long, short)]
        detach: bool,
        /// Do not delete the container at its end.
        #[arg(long)]
        keep: bool,
    },
    /// Print the state of a container.
    State {
        /// The container.
        id: String,
    },
    /// Send a signal to a container's first process.
    Kill {
        /// The container.
        id: String,
        /// The signal, by name or number.
        #[arg(default_value = "SIGTERM")]
        signal: String,
        /// To all its processes.
        #[arg(long, short)]
        all: bool,
    },
    /// Remove a container that has stopped.
    Delete {
        /// The container.
        id: String,
        /// Kill it first if it has not; if there is none, that is fine.
        #[arg(long, short)]
        force: bool,
    },
    /// Stop all processes of a container where they stand.
    Pause {
        /// The container.
        id: String,
    },
    /// Undo `pause`.
    Resume {
        /// The container.
        id: String,
    },
    /// List the containers.
    List {
        /// The form of the list.
        #[arg(long, short, default_value = "table")]
        format: ListFormat,
        /// Only the names.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Write a config.json to start from.
    Spec {
        /// The bundle's folder.
        #[arg(long, short)]
        bundle: Option<PathBuf>,
    },
    /// Print what this runtime supports, as JSON.
    Features,
}

/// How a container is made.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The container's name.
    pub(crate) id: String,
    /// The bundle's folder; the current one by default.
    #[arg(long, short)]
    pub(crate) bundle: Option<PathBuf>,
    /// A unix socket that receives the terminal's descriptor.
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// A file for the process's number.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// Move the root instead of pivoting to it, on a host that runs from a ramdisk.
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Keep the caller's session keyring.
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Hand that many descriptors on, from 3 up.
    #[arg(long, default_value_t = 0, action = ArgAction::Set)]
    pub(crate) preserve_fds: u32,
}

/// What docker reads: the version after the word, then the version of the specification.
fn version() -> &'static str {
    concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.1")
}
