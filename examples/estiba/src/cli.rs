//! The command line: what all commands share, and which there are.

use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand, ValueEnum};
use estiba_engine::{Config, Engine, ShimProgram, SnapshotterKind};

use crate::failure::{Failure, Result, one_line};
use crate::{cleanup, images, monitor, ps, rm, run, version};

const EXAMPLES: &str = "\
Examples:
  estiba run embedded:hello                      a first container, from an image inside this program
  estiba run --rm -it oci:DIR:TAG sh             a shell in an image that skopeo or umoci wrote
  estiba run --rm docker-archive:FILE.tar        an image that `docker save` wrote
  estiba ps -a                                   all containers
";

/// Run containers, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "estiba", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of all commands")]
struct Global {
    /// Folder of images, snapshots and containers
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT, global = true)]
    root: PathBuf,
    /// Folder of sockets and bundles [default: /run/estiba, or ROOT/run of another root]
    #[arg(long, value_name = "DIR", global = true)]
    run_root: Option<PathBuf>,
    /// How root file systems are kept: layers shared by overlayfs, or plain copies
    #[arg(long, value_name = "NAME", default_value = "overlay", global = true)]
    snapshotter: Snapshotter,
    /// Cgroup below which each container gets its own
    #[arg(long, value_name = "PATH", default_value = "/estiba", global = true)]
    cgroup_parent: String,
    /// Program that becomes each container's parent [default: the one installed beside this, or this one itself]
    #[arg(long, value_name = "FILE", global = true)]
    shim: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Snapshotter {
    Overlay,
    Native,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Ps(ps::Ps),
    Rm(rm::Rm),
    Images(images::Images),
    Version(version::Version),
    Cleanup(cleanup::Cleanup),
    Monitor(monitor::Monitor),
}

const DEFAULT_ROOT: &str = "/var/lib/estiba";
const DEFAULT_RUN: &str = "/run/estiba";
const SHIM: &str = "containerd-shim-estiba-v2";

impl Cli {
    /// Runs the command; the result is the exit status.
    pub(crate) async fn execute(self) -> Result<u8> {
        let global = &self.global;
        match self.command {
            Command::Run(command) => Box::pin(command.execute(global.config()?)).await,
            Command::Ps(command) => command.execute(&global.engine().await?).await,
            Command::Rm(command) => command.execute(&global.engine().await?).await,
            Command::Images(command) => command.execute(&global.engine().await?).await,
            Command::Version(version::Version {}) => version::print(),
            Command::Cleanup(command) => command.execute(&global.engine().await?).await,
            Command::Monitor(command) => command.execute(global.config()?).await,
        }
    }
}

impl Global {
    async fn engine(&self) -> Result<Engine> {
        Ok(Engine::open(self.config()?).await?)
    }

    fn config(&self) -> Result<Config> {
        let root = absolute(&self.root)?;
        let run = match &self.run_root {
            Some(run) => absolute(run)?,
            None if root == Path::new(DEFAULT_ROOT) => PathBuf::from(DEFAULT_RUN),
            None => root.join("run"),
        };
        let program = std::env::current_exe()
            .map_err(|error| Failure::caused("cannot find this program's own file in /proc/self/exe", error))?;
        let shim = match &self.shim {
            Some(path) => ShimProgram::Path(absolute(path)?),
            None => installed_shim(&program).map_or(ShimProgram::Reexec, ShimProgram::Path),
        };
        let snapshotter = match self.snapshotter {
            Snapshotter::Overlay => SnapshotterKind::Overlay,
            Snapshotter::Native => SnapshotterKind::Native,
        };
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
        };
        let shim_path = match &shim {
            ShimProgram::Path(path) => Some(text(path)?),
            ShimProgram::Reexec => None,
        };
        // Who comes later has to find the same state.
        let command = |words: &[&str]| -> Result<Vec<String>> {
            let mut command = vec![text(&program)?, "--root".into(), text(&root)?, "--run-root".into(), text(&run)?];
            command.extend(["--snapshotter".into(), snapshotter.name().into()]);
            command.extend(["--cgroup-parent".into(), self.cgroup_parent.clone()]);
            if let Some(path) = &shim_path {
                command.extend(["--shim".into(), path.clone()]);
            }
            command.extend(words.iter().map(|word| (*word).to_owned()));
            Ok(command)
        };
        let (exit_command, monitor_command) = (command(&["cleanup"])?, command(&["monitor", "--detach"])?);
        let cgroup_parent = self.cgroup_parent.clone();
        Ok(Config { root, run, shim, snapshotter, cgroup_parent, exit_command, monitor_command })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::caused(format!("cannot use the path {}", path.display()), error))
}

/// The small static shim that is installed beside this program. In a folder of Cargo's it may be of another state of
/// the sources, for Cargo builds this program without it: there it is used when `--shim` says so.
fn installed_shim(program: &Path) -> Option<PathBuf> {
    let shim = program.with_file_name(SHIM);
    (shim.is_file() && !program.with_file_name(".fingerprint").is_dir()).then_some(shim)
}

/// What is wrong with the command line, in one line. `None`: help or the version was asked for.
pub(crate) fn usage_failure(error: &clap::Error) -> Option<Failure> {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    if matches!(error.kind(), DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion) {
        return None;
    }
    // The first paragraph is the error, and the tips that may follow stand in paragraphs of their own.
    let rendered = error.render().to_string();
    let message = rendered.split("\n\n").next().unwrap_or_default().trim();
    let message = one_line(message.strip_prefix("error: ").unwrap_or(message));
    let suggestion = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
        .into_iter()
        .find_map(|kind| match error.get(kind)? {
            ContextValue::String(name) => Some(name.clone()),
            ContextValue::Strings(names) => names.first().cloned(),
            _ => None,
        });
    Some(Failure::new(match suggestion {
        Some(name) => format!("{message} (did you mean '{name}'?)"),
        None => format!("{message}: see 'estiba {}--help'", subcommand(&rendered)),
    }))
}

/// The subcommand that an error's usage line is about, with a space behind it.
fn subcommand(rendered: &str) -> String {
    let word = rendered
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("Usage: estiba "))
        .and_then(|usage| usage.split(' ').next())
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
    word.map(|word| format!("{word} ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn failure(words: &str) -> String {
        let error = Cli::try_parse_from(words.split(' ')).expect_err("refused");
        usage_failure(&error).expect("a failure").to_string()
    }

    #[test]
    fn usage_errors_are_one_line() {
        for (words, part) in [
            ("estiba rum", "did you mean 'run'?"),
            ("estiba run", "REF"),
            ("estiba run", "see 'estiba run --help'"),
            ("estiba --nothing", "see 'estiba --help'"),
            ("estiba run --memery 1m x", "did you mean '--memory'?"),
            ("estiba run --memory 1q x", "such as 512m"),
            ("estiba run --network bridge x", "not supported yet"),
            ("estiba --snapshotter btrfs ps", "btrfs"),
        ] {
            let text = failure(words);
            assert!(text.contains(part) && !text.contains('\n'), "{words}: {text}");
        }
    }

    #[test]
    fn help_is_no_failure() {
        for words in ["estiba", "estiba --help", "estiba run --help", "estiba --version"] {
            let error = Cli::try_parse_from(words.split(' ')).expect_err("shown");
            assert!(usage_failure(&error).is_none(), "{words}");
        }
    }

    #[test]
    fn the_run_folder_follows_the_root() {
        for (words, run) in [
            ("estiba ps", "/run/estiba"),
            ("estiba --root /x ps", "/x/run"),
            ("estiba ps --root /x --run-root /y", "/y"),
        ] {
            let cli = Cli::try_parse_from(words.split(' ')).expect("parsed");
            assert_eq!(cli.global.config().expect("a configuration").run, Path::new(run), "{words}");
        }
    }
}
