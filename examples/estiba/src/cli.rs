//! The command line: what all commands share, and which there are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use estiba_engine::{Config, Engine, ShimProgram, SnapshotterKind};

use crate::commands::{
    attach, cleanup, commit, cp, create, diff, events, exec, export, history, images, import, info, inspect, kill,
    load, login, logs, monitor, network, pause, port, prune, ps, pull, push, rename, restart, rm, rmi, run, save,
    start, stats, stop, system_df, tag, top, update, version, volume, wait,
};
use crate::failure::{ENGINE, Failure, Result, one_line};
use crate::flags;
use crate::place;

const EXAMPLES: &str = "\
Examples:
  estiba run embedded:hello                      a first container, from an image inside this program
  estiba run --rm -it oci:DIR:TAG sh             a shell in an image that skopeo or umoci wrote
  estiba run -d --name web oci:DIR:TAG           a container in the background
  estiba logs -f web                             what it writes
  estiba exec -it web sh                         a shell in it
  estiba stop web && estiba rm web               the end of it
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
    /// Folder of images, snapshots and containers [default: /var/lib/estiba; of a user: ~/.local/share/estiba]
    #[arg(long, value_name = "DIR", global = true)]
    root: Option<PathBuf>,
    /// Folder of sockets and bundles [default: /run/estiba; of a user: $XDG_RUNTIME_DIR/estiba; or ROOT/run of another root]
    #[arg(long, value_name = "DIR", global = true)]
    run_root: Option<PathBuf>,
    /// How root file systems are kept: layers shared by overlayfs, or plain copies
    /// [default: overlay]
    #[arg(long, value_name = "NAME", global = true)]
    snapshotter: Option<Snapshotter>,
    /// Cgroup below which each container gets its own [default: /estiba; of a user: below the one that was delegated to him]
    #[arg(long, value_name = "PATH", global = true)]
    cgroup_parent: Option<String>,
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
    Create(Box<create::Create>),
    Start(start::Start),
    Stop(stop::Stop),
    Kill(kill::Kill),
    Restart(restart::Restart),
    Pause(pause::Pause),
    Unpause(pause::Unpause),
    Wait(wait::Wait),
    Attach(attach::Attach),
    Exec(exec::Exec),
    Logs(logs::Logs),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Top(top::Top),
    Stats(stats::Stats),
    Update(update::Update),
    Rename(rename::Rename),
    Port(port::Port),
    Cp(cp::Cp),
    Diff(diff::Diff),
    Commit(commit::Commit),
    Export(export::Export),
    Rm(rm::Rm),
    Images(images::Images),
    Load(load::Load),
    Import(import::Import),
    Save(save::Save),
    Pull(pull::Pull),
    Push(push::Push),
    Login(login::Login),
    Logout(login::Logout),
    Tag(tag::Tag),
    Rmi(rmi::Rmi),
    History(history::History),
    Events(events::Events),
    Info(info::Info),
    Version(version::Version),
    /// Manage containers
    #[command(subcommand, disable_help_subcommand = true)]
    Container(Container),
    /// Manage images
    #[command(subcommand, disable_help_subcommand = true)]
    Image(Image),
    #[command(subcommand, disable_help_subcommand = true)]
    Volume(volume::Volume),
    #[command(subcommand, disable_help_subcommand = true)]
    Network(network::Network),
    /// Manage what is kept, and see what happens
    #[command(subcommand, disable_help_subcommand = true)]
    System(System),
    Cleanup(cleanup::Cleanup),
    Monitor(monitor::Monitor),
}

#[derive(Debug, Subcommand)]
enum Container {
    Attach(attach::Attach),
    Commit(commit::Commit),
    Cp(cp::Cp),
    Create(Box<create::Create>),
    Diff(diff::Diff),
    Exec(exec::Exec),
    Export(export::Export),
    Inspect(inspect::InspectContainer),
    Kill(kill::Kill),
    Logs(logs::Logs),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Pause(pause::Pause),
    Port(port::Port),
    Prune(prune::PruneContainers),
    Rename(rename::Rename),
    Restart(restart::Restart),
    #[command(visible_alias = "remove")]
    Rm(rm::Rm),
    Run(Box<run::Run>),
    Start(start::Start),
    Stats(stats::Stats),
    Stop(stop::Stop),
    Top(top::Top),
    Unpause(pause::Unpause),
    Update(update::Update),
    Wait(wait::Wait),
}

#[derive(Debug, Subcommand)]
enum Image {
    History(history::History),
    Import(import::Import),
    Inspect(inspect::InspectImage),
    Load(load::Load),
    #[command(visible_alias = "list")]
    Ls(images::Images),
    Prune(prune::PruneImages),
    Pull(pull::Pull),
    Push(push::Push),
    #[command(visible_alias = "remove")]
    Rm(rmi::Rmi),
    Save(save::Save),
    Tag(tag::Tag),
}

#[derive(Debug, Subcommand)]
enum System {
    Df(system_df::SystemDf),
    Events(events::Events),
    Info(info::Info),
    Prune(prune::PruneSystem),
}

impl From<Container> for Command {
    fn from(command: Container) -> Self {
        match command {
            Container::Attach(command) => Self::Attach(command),
            Container::Commit(command) => Self::Commit(command),
            Container::Cp(command) => Self::Cp(command),
            Container::Diff(command) => Self::Diff(command),
            Container::Create(command) => Self::Create(command),
            Container::Exec(command) => Self::Exec(command),
            Container::Export(command) => Self::Export(command),
            Container::Kill(command) => Self::Kill(command),
            Container::Logs(command) => Self::Logs(command),
            Container::Ls(command) => Self::Ps(command),
            Container::Pause(command) => Self::Pause(command),
            Container::Port(command) => Self::Port(command),
            Container::Rename(command) => Self::Rename(command),
            Container::Restart(command) => Self::Restart(command),
            Container::Rm(command) => Self::Rm(command),
            Container::Run(command) => Self::Run(command),
            Container::Start(command) => Self::Start(command),
            Container::Stats(command) => Self::Stats(command),
            Container::Stop(command) => Self::Stop(command),
            Container::Top(command) => Self::Top(command),
            Container::Unpause(command) => Self::Unpause(command),
            Container::Update(command) => Self::Update(command),
            Container::Wait(command) => Self::Wait(command),
            // These two have no other name.
            command @ (Container::Inspect(_) | Container::Prune(_)) => Self::Container(command),
        }
    }
}

const SHIM: &str = "containerd-shim-estiba-v2";

impl Cli {
    /// Runs the command; the result is the exit status.
    pub(crate) async fn execute(self) -> Result<u8> {
        let command = match self.command {
            Command::Container(command) => command.into(),
            command => command,
        };
        let config = match &command {
            Command::Version(command) => return command.execute(),
            _ => self.global.config()?,
        };
        let place = Place { root: config.root.clone(), snapshotter: config.snapshotter.name() };
        let result = match command {
            // These judge their options before they open anything.
            Command::Run(command) => return command.execute(config).await,
            Command::Create(command) => Box::pin(command.execute(config)).await,
            Command::Monitor(command) => return command.execute(config).await,
            command => {
                let engine = open(config).await?;
                Box::pin(command.execute(&engine, &place)).await
            }
        };
        // Only of `run` has a failure of ours a status of its own.
        result.map_err(|failure| match failure.status() {
            ENGINE => failure.with_status(1),
            _ => failure,
        })
    }
}

impl Command {
    async fn execute(self, engine: &Engine, place: &Place) -> Result<u8> {
        match self {
            Self::Start(command) => Box::pin(command.execute(engine)).await,
            Self::Stop(command) => command.execute(engine).await,
            Self::Kill(command) => command.execute(engine).await,
            Self::Restart(command) => command.execute(engine).await,
            Self::Pause(command) => command.execute(engine).await,
            Self::Unpause(command) => command.execute(engine).await,
            Self::Wait(command) => command.execute(engine).await,
            Self::Attach(command) => command.execute(engine).await,
            Self::Exec(command) => command.execute(engine).await,
            Self::Logs(command) => command.execute(engine).await,
            Self::Ps(command) => command.execute(engine).await,
            Self::Inspect(command) => command.execute(engine, place).await,
            Self::Top(command) => command.execute(engine).await,
            Self::Stats(command) => command.execute(engine).await,
            Self::Update(command) => command.execute(engine).await,
            Self::Rename(command) => command.execute(engine).await,
            Self::Port(command) => command.execute(engine).await,
            Self::Cp(command) => command.execute(engine).await,
            Self::Diff(command) => command.execute(engine).await,
            Self::Commit(command) => command.execute(engine).await,
            Self::Volume(command) => command.execute(engine).await,
            Self::Network(command) => command.execute(engine).await,
            Self::Import(command) | Self::Image(Image::Import(command)) => command.execute(engine).await,
            Self::Export(command) => command.execute(engine).await,
            Self::Rm(command) => command.execute(engine).await,
            Self::Images(command) | Self::Image(Image::Ls(command)) => command.execute(engine).await,
            Self::Load(command) | Self::Image(Image::Load(command)) => command.execute(engine).await,
            Self::Save(command) | Self::Image(Image::Save(command)) => command.execute(engine).await,
            Self::Tag(command) | Self::Image(Image::Tag(command)) => command.execute(engine).await,
            Self::Pull(command) | Self::Image(Image::Pull(command)) => command.execute(engine).await,
            Self::Push(command) | Self::Image(Image::Push(command)) => command.execute(engine).await,
            Self::Login(command) => command.execute().await,
            Self::Logout(command) => command.execute().await,
            Self::Rmi(command) | Self::Image(Image::Rm(command)) => command.execute(engine).await,
            Self::History(command) | Self::Image(Image::History(command)) => command.execute(engine).await,
            Self::Image(Image::Inspect(command)) => command.execute(engine, place).await,
            Self::Image(Image::Prune(command)) => command.execute(engine).await,
            Self::Events(command) | Self::System(System::Events(command)) => command.execute(engine).await,
            Self::Info(command) | Self::System(System::Info(command)) => command.execute(engine, place).await,
            Self::System(System::Df(command)) => command.execute(engine).await,
            Self::System(System::Prune(command)) => command.execute(engine).await,
            Self::Container(Container::Inspect(command)) => command.execute(engine, place).await,
            Self::Container(Container::Prune(command)) => command.execute(engine).await,
            Self::Cleanup(command) => command.execute(engine).await,
            Self::Run(_) | Self::Create(_) | Self::Monitor(_) | Self::Version(_) | Self::Container(_) => {
                Err(Failure::new("this command opens its engine by itself"))
            }
        }
    }
}

/// Where the engine keeps its state, and how.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) snapshotter: &'static str,
}

/// Opens the engine.
pub(crate) async fn open(config: Config) -> Result<Engine> {
    Ok(Engine::open(config).await?)
}

/// The command line, as Docker's would take these words.
fn command(words: &[OsString]) -> clap::Command {
    flags::like_docker(<Cli as clap::CommandFactory>::command(), words)
}

/// Reads the command line. What help and errors say goes to the caller.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = match narrow(&words).map(|command| command.try_get_matches_from(&words)) {
        Some(Ok(matches)) => matches,
        Some(Err(error)) if error.kind() == ErrorKind::DisplayVersion => return Err(error),
        // All that is said about a command line is said by the whole.
        _ => command(&words).try_get_matches_from(words)?,
    };
    Cli::from_arg_matches(&matches)
}

/// The command line with no other command than the one that the words lead to: to set up all of them takes more time and
/// memory than many a command does.
fn narrow(words: &[OsString]) -> Option<clap::Command> {
    let root = Global::augment_args(clap::Command::new("estiba").version(env!("CARGO_PKG_VERSION")));
    let root = root.subcommand_required(true).disable_help_subcommand(true);
    let Some(word) = flags::first(&root, words) else { return Some(root) };
    let (name, augment) = COMMANDS.into_iter().find(|(name, _)| *name == word)?;
    let command = augment(clap::Command::new(name));
    let command = if command.has_subcommands() {
        // As the derived ones are.
        command.subcommand_required(true).arg_required_else_help(true).disable_help_subcommand(true)
    } else {
        command
    };
    Some(flags::like_docker(root.subcommand(command), words))
}

/// What makes a command of an empty one.
type Augment = fn(clap::Command) -> clap::Command;

/// The commands and small groups of commands. `container` is not among them: it has nearly all commands once more.
const COMMANDS: [(&str, Augment); 44] = [
    ("run", run::Run::augment_args),
    ("create", create::Create::augment_args),
    ("start", start::Start::augment_args),
    ("stop", stop::Stop::augment_args),
    ("kill", kill::Kill::augment_args),
    ("restart", restart::Restart::augment_args),
    ("pause", pause::Pause::augment_args),
    ("unpause", pause::Unpause::augment_args),
    ("wait", wait::Wait::augment_args),
    ("attach", attach::Attach::augment_args),
    ("exec", exec::Exec::augment_args),
    ("logs", logs::Logs::augment_args),
    ("ps", ps::Ps::augment_args),
    ("inspect", inspect::Inspect::augment_args),
    ("top", top::Top::augment_args),
    ("stats", stats::Stats::augment_args),
    ("update", update::Update::augment_args),
    ("rename", rename::Rename::augment_args),
    ("port", port::Port::augment_args),
    ("cp", cp::Cp::augment_args),
    ("diff", diff::Diff::augment_args),
    ("commit", commit::Commit::augment_args),
    ("export", export::Export::augment_args),
    ("rm", rm::Rm::augment_args),
    ("images", images::Images::augment_args),
    ("load", load::Load::augment_args),
    ("import", import::Import::augment_args),
    ("save", save::Save::augment_args),
    ("pull", pull::Pull::augment_args),
    ("push", push::Push::augment_args),
    ("login", login::Login::augment_args),
    ("logout", login::Logout::augment_args),
    ("tag", tag::Tag::augment_args),
    ("rmi", rmi::Rmi::augment_args),
    ("history", history::History::augment_args),
    ("events", events::Events::augment_args),
    ("info", info::Info::augment_args),
    ("version", version::Version::augment_args),
    ("image", Image::augment_subcommands),
    ("volume", volume::Volume::augment_subcommands),
    ("network", network::Network::augment_subcommands),
    ("system", System::augment_subcommands),
    ("cleanup", cleanup::Cleanup::augment_args),
    ("monitor", monitor::Monitor::augment_args),
];

/// The help of the command that the words lead to. The one that parses would show each flag with a value.
pub(crate) fn help(words: &[OsString]) -> String {
    let mut root = <Cli as clap::CommandFactory>::command();
    root.build();
    let (_, command) = flags::path(&root, words);
    command.clone().render_help().to_string()
}

impl Global {
    fn config(&self) -> Result<Config> {
        let place = place::place();
        let root = absolute(self.root.as_deref().unwrap_or(&place.root))?;
        let run = match &self.run_root {
            Some(run) => absolute(run)?,
            None => place.run_of(&root),
        };
        let program = std::env::current_exe()
            .map_err(|error| Failure::caused("cannot find this program's own file in /proc/self/exe", error))?;
        let shim = match &self.shim {
            Some(path) if !path.is_file() => {
                return Err(Failure::new(format!(
                    "the shim {} is no file that is there: give the path of containerd-shim-estiba-v2, or leave --shim away",
                    path.display()
                )));
            }
            Some(path) => ShimProgram::Path(absolute(path)?),
            None => installed_shim(&program).map_or(ShimProgram::Reexec, ShimProgram::Path),
        };
        let snapshotter = match self.snapshotter {
            None => place.snapshotter,
            Some(Snapshotter::Overlay) => SnapshotterKind::Overlay,
            Some(Snapshotter::Native) => SnapshotterKind::Native,
        };
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| Failure::new(format!("{} is not UTF-8", path.display())))
        };
        let shim_path = match &shim {
            ShimProgram::Path(path) => Some(text(path)?),
            ShimProgram::Reexec => None,
        };
        let cgroup_parent = self.cgroup_parent.clone().unwrap_or_else(|| place.cgroup_parent.clone());
        // Who comes later has to find the same state.
        let command = |words: &[&str]| -> Result<Vec<String>> {
            let mut command = vec![text(&program)?, "--root".into(), text(&root)?, "--run-root".into(), text(&run)?];
            command.extend(["--snapshotter".into(), snapshotter.name().into()]);
            command.extend(["--cgroup-parent".into(), cgroup_parent.clone()]);
            if let Some(path) = &shim_path {
                command.extend(["--shim".into(), path.clone()]);
            }
            command.extend(words.iter().map(|word| (*word).to_owned()));
            Ok(command)
        };
        let (exit_command, monitor_command) = (command(&["cleanup"])?, command(&["monitor", "--detach"])?);
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
pub(crate) fn usage_failure(error: &clap::Error, words: &[OsString]) -> Option<Failure> {
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
    let root = <Cli as clap::CommandFactory>::command();
    let names = flags::path(&root, words).0;
    let place: String = names.iter().flat_map(|name| [*name, " "]).collect();
    let failure = Failure::new(match suggestion {
        Some(name) => format!("{message} (did you mean '{name}'?): see 'estiba {place}--help'"),
        None => format!("{message}: see 'estiba {place}--help'"),
    });
    // As Docker has it: a command that is not there and arguments that are missing or too many are failures like others.
    let is_option = error.get(ContextKind::InvalidArg).is_some_and(|argument| argument.to_string().starts_with('-'));
    Some(match error.kind() {
        ErrorKind::InvalidSubcommand
        | ErrorKind::MissingSubcommand
        | ErrorKind::MissingRequiredArgument
        | ErrorKind::TooFewValues => failure.with_status(1),
        ErrorKind::UnknownArgument if !is_option => failure.with_status(1),
        _ => failure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        let root = <Cli as clap::CommandFactory>::command();
        root.clone().debug_assert();
        for first in root.get_subcommands() {
            let words = |names: &[&str]| ["estiba"].iter().chain(names).map(OsString::from).collect::<Vec<_>>();
            command(&words(&[first.get_name()])).debug_assert();
            for second in first.get_subcommands() {
                command(&words(&[first.get_name(), second.get_name()])).debug_assert();
            }
        }
    }

    #[test]
    fn a_command_alone_is_what_it_is_among_all() {
        let names: Vec<String> = <Cli as clap::CommandFactory>::command()
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .filter(|name| name != "container")
            .collect();
        for name in &names {
            let words = ["estiba", "--root", "run", name].map(OsString::from);
            let (mut whole, mut narrow) = (command(&words), narrow(&words).expect(name));
            whole.build();
            narrow.build();
            assert_eq!(narrow.get_subcommands().count(), 1, "{name}");
            let takes = |root: &clap::Command| leaves(root.find_subcommand(name).expect(name));
            assert_eq!(takes(&narrow), takes(&whole));
        }
    }

    /// What a command and those below it take.
    fn leaves(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().map(|arg| format!("{} {arg:?}", command.get_name()));
        let aliases = command.get_all_aliases().map(str::to_owned);
        let settings = format!(
            "{} {} {}",
            command.is_subcommand_required_set(),
            command.is_disable_help_flag_set(),
            command.is_disable_help_subcommand_set()
        );
        let below = command.get_subcommands().flat_map(leaves);
        std::iter::once(settings).chain(own).chain(aliases).chain(below).collect()
    }

    fn failure(words: &str) -> String {
        let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
        let error = parse(words.clone()).expect_err("refused");
        usage_failure(&error, &words).expect("a failure").to_string()
    }

    #[test]
    fn usage_errors_are_one_line() {
        for (words, part) in [
            ("estiba rum", "did you mean 'run'?"),
            ("estiba run", "IMAGE"),
            ("estiba run", "see 'estiba run --help'"),
            ("estiba --nothing", "see 'estiba --help'"),
            ("estiba run --memery 1m x", "did you mean '--memory'?"),
            ("estiba run --memory 1q x", "such as 512m"),
            ("estiba run --memory 1q x", "see 'estiba run --help'"),
            ("estiba run --rm=maybe x", "it must be true or false"),
            ("estiba container ls --nope", "see 'estiba container ls --help'"),
            ("estiba system nope", "see 'estiba system --help'"),
            ("estiba run --stop-signal NOPE x", "invalid signal: NOPE"),
            ("estiba run --pid bridge x", "container:NAME"),
            ("estiba --snapshotter btrfs ps", "btrfs"),
        ] {
            let text = failure(words);
            assert!(text.contains(part) && !text.contains('\n'), "{words}: {text}");
        }
    }

    #[test]
    fn help_is_no_failure() {
        for words in ["estiba", "estiba --help", "estiba run --help", "estiba --version"] {
            let words: Vec<OsString> = words.split(' ').map(Into::into).collect();
            let error = parse(words.clone()).expect_err("shown");
            assert!(usage_failure(&error, &words).is_none(), "{words:?}");
        }
    }

    #[test]
    fn the_run_folder_follows_the_root() {
        for (words, run) in [
            ("estiba ps", "/run/estiba"),
            ("estiba --root /x ps", "/x/run"),
            ("estiba ps --root /x --run-root /y", "/y"),
        ] {
            let cli = parse(words.split(' ').map(Into::into).collect()).expect("parsed");
            assert_eq!(cli.global.config().expect("a configuration").run, Path::new(run), "{words}");
        }
    }
}
