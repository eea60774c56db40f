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
    /// Say what is done.
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Refused: cgroups are not made through systemd.
    #[arg(long, global = true, hide = true)]
    pub(crate) systemd_cgroup: bool,
    /// Who makes cgroups: this program itself, through their files.
    #[arg(long, global = true, hide = true)]
    pub(crate) cgroup_manager: Option<CgroupManager>,
    /// Accepted for callers that give it: whether there are privileges is seen by itself.
    #[arg(long, global = true, hide = true)]
    pub(crate) rootless: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CgroupManager {
    /// This program.
    Cgroupfs,
    /// Refused.
    Systemd,
    /// Refused.
    Disabled,
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
    /// Execute a program in a running container.
    Exec(Exec),
    /// List the processes of a container.
    Ps {
        /// The container.
        id: String,
        /// The form of the list.
        #[arg(long, short, default_value = "table")]
        format: ListFormat,
        /// What `ps` is called with; `-ef` by default.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Print what a container uses, and what happens to it, a JSON object a line.
    Events {
        /// The container.
        id: String,
        /// How long to wait between two looks.
        #[arg(long, default_value = "5s")]
        interval: String,
        /// Look once.
        #[arg(long)]
        stats: bool,
    },
    /// Change the limits of a container.
    Update(Update),
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
    /// The configuration, if it is not the bundle's config.json.
    #[arg(long, short = 'f')]
    pub(crate) config: Option<PathBuf>,
    /// A unix socket that receives the terminal's descriptor.
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// A unix socket that receives a pidfd of the process.
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
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

/// What is executed in a container, and how.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Exec {
    /// A unix socket that receives the terminal's descriptor.
    #[arg(long)]
    pub(crate) console_socket: Option<PathBuf>,
    /// The folder to start in.
    #[arg(long)]
    pub(crate) cwd: Option<PathBuf>,
    /// An environment variable, NAME=VALUE.
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// With a terminal.
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// The user, UID or UID:GID.
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    /// Further groups.
    #[arg(long, short = 'g')]
    pub(crate) additional_gids: Vec<u32>,
    /// A process.json with all of it; the other options about the process do not count then.
    #[arg(long, short)]
    pub(crate) process: Option<PathBuf>,
    /// Do not wait.
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// A unix socket that receives a pidfd of the process.
    #[arg(long)]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// A file for the process's number.
    #[arg(long)]
    pub(crate) pid_file: Option<PathBuf>,
    /// A label of SELinux.
    #[arg(long)]
    pub(crate) process_label: Option<String>,
    /// A profile of AppArmor.
    #[arg(long)]
    pub(crate) apparmor: Option<String>,
    /// No program gains privileges.
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// A capability beside those of the container.
    #[arg(long, short)]
    pub(crate) cap: Vec<String>,
    /// Hand that many descriptors on, from 3 up.
    #[arg(long, default_value_t = 0, action = ArgAction::Set)]
    pub(crate) preserve_fds: u32,
    /// A cgroup below the container's to join: `[CONTROLLER[,CONTROLLER]:]PATH`. May be given for several hierarchies.
    #[arg(long)]
    pub(crate) cgroup: Vec<String>,
    /// Wait for a paused container's resume.
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// The container.
    pub(crate) id: String,
    /// The program and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

/// Limits; those that are not given stay.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// A file with `linux.resources` as JSON, or `-` for the standard input; the other options do not count then.
    #[arg(long, short)]
    pub(crate) resources: Option<PathBuf>,
    /// The weight at block devices, from 10 to 1000.
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// The period of the quota, in microseconds.
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// The processor time in a period, in microseconds; -1 for no limit.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// How much of a quota may be saved, in microseconds.
    #[arg(long)]
    pub(crate) cpu_burst: Option<u64>,
    /// The share of the processors, from 2 to 262144.
    #[arg(long)]
    pub(crate) cpu_share: Option<u64>,
    /// The period of the real-time quota, in microseconds.
    #[arg(long)]
    pub(crate) cpu_rt_period: Option<u64>,
    /// The real-time quota, in microseconds.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,
    /// 1 to run only when nobody else does.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_idle: Option<i64>,
    /// The processors, such as 0-2,5.
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// The memory nodes.
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// The limit of memory: bytes, or with a suffix b, k, m, g, t.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// The memory that is left to it when memory is short.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// The limit of memory and swap together; -1 for none.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// How many processes and threads there may be; -1 for any number.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// The container.
    pub(crate) id: String,
}

/// What docker reads: the version after the word, then the version of the specification.
fn version() -> &'static str {
    concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0")
}
