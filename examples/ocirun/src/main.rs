//! `ocirun`: an OCI runtime with the command line of runc, over `estiba-runtime`.

mod cli;
mod console;
mod events;
mod exec;
mod features;
mod foreground;
mod list;
mod log;
mod ps;
mod sealed;
mod signal;
mod spec;
mod update;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use estiba_runtime::oci_spec::runtime::LinuxNamespaceType;
use estiba_runtime::{
    Bundle, ContainerId, CreateOptions, Created, DeleteMode, ExitStatus, Keyring, KillTarget, Labels, Native,
    RootSwitch, Runtime, Stdio, inherited_fds, seccomp,
};

use cli::{CgroupManager, Cli, Command, Create};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap, too.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    match execute(&cli) {
        Ok(code) => code,
        Err(error) => {
            log::error(&cli, error.as_ref());
            let code = error.downcast_ref::<estiba_runtime::Error>().map_or(1, estiba_runtime::Error::exit_code);
            ExitCode::from(match (&cli.command, code) {
                // As with runc: all other statuses are the program's.
                (Command::Exec(_), _) => 255,
                // What cannot be executed has a status of its own.
                (_, 126) => 126,
                (_, 127) => 127,
                _ => 1,
            })
        }
    }
}

fn execute(cli: &Cli) -> Result<ExitCode> {
    let manager = if cli.systemd_cgroup { Some(CgroupManager::Systemd) } else { cli.cgroup_manager };
    match manager {
        Some(CgroupManager::Systemd) => {
            return Err("--systemd-cgroup: cgroups are not made through systemd: leave it away, or choose the cgroup driver cgroupfs".into());
        }
        Some(CgroupManager::Disabled) => {
            return Err("--cgroup-manager=disabled: each container has a cgroup here: choose cgroupfs".into());
        }
        Some(CgroupManager::Cgroupfs) | None => {}
    }
    let native = || Native::new(&cli.root);
    match &cli.command {
        Command::Create(arguments) => create(cli, &native(), arguments).map(|_| ExitCode::SUCCESS),
        Command::Start { id } => native().start(&id.parse()?).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Run { create, detach, keep } => run(cli, &native(), create, *detach, *keep),
        Command::State { id } => {
            list::state(&native(), &id.parse()?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kill { id, signal, all } => {
            let target = if *all { KillTarget::All } else { KillTarget::Init };
            let signal = signal::parse(signal)?;
            native().kill(&id.parse()?, signal, target).map_err(|error| match error {
                // The words that containerd looks for.
                estiba_runtime::Error::WrongStatus { .. } => "container not running".into(),
                error => Box::<dyn Error>::from(error),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Delete { id, force } => {
            let mode = if *force { DeleteMode::Force } else { DeleteMode::Stopped };
            native().delete(&id.parse()?, mode)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pause { id } => native().pause(&id.parse()?).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Resume { id } => native().resume(&id.parse()?).map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Command::Exec(arguments) => {
            sealed::seal();
            log::debug(cli, || format!("adding a process to container {}", arguments.id));
            exec::exec(&native(), arguments)
        }
        Command::Ps { id, format, options } => {
            ps::print(&native(), &id.parse()?, *format, options).map(|()| ExitCode::SUCCESS)
        }
        Command::Events { id, interval, stats } => {
            events::print(&native(), &id.parse()?, interval, *stats).map(|()| ExitCode::SUCCESS)
        }
        Command::Update(arguments) => {
            native().update(&arguments.id.parse()?, &update::resources(arguments)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List { format, quiet } => list::print(&native(), *format, *quiet).map(|()| ExitCode::SUCCESS),
        Command::Spec { bundle } => spec::write(bundle.as_deref()).map(|()| ExitCode::SUCCESS),
        Command::Features => print(&features::text()?).map(|()| ExitCode::SUCCESS),
    }
}

/// A line of output. A reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A container that was created, and where its terminal is.
struct Made {
    id: ContainerId,
    created: Created,
}

fn create(cli: &Cli, native: &Native, arguments: &Create) -> Result<Made> {
    let (id, bundle) = load(cli, arguments)?;
    let terminal = wants_terminal(&bundle);
    match (terminal, &arguments.console_socket) {
        (true, None) => return Err("process.terminal is true: --console-socket is needed".into()),
        (false, Some(_)) => return Err("--console-socket is given, but process.terminal is not true".into()),
        _ => {}
    }
    make(cli, native, arguments, id, &bundle)
}

fn load(cli: &Cli, arguments: &Create) -> Result<(ContainerId, Bundle)> {
    let id: ContainerId = arguments.id.parse()?;
    let bundle = arguments.bundle.as_deref().unwrap_or(Path::new("."));
    let bundle = match &arguments.config {
        Some(config) => Bundle::load_with(bundle, std::path::absolute(config)?),
        None => Bundle::load(bundle),
    }?;
    let namespaces = bundle.spec.linux().iter().filter_map(|linux| linux.namespaces().as_deref()).flatten();
    let mut pids = namespaces.filter(|namespace| namespace.typ() == LinuxNamespaceType::Pid);
    if pids.next().is_none_or(|namespace| namespace.path().is_some()) {
        // Processes that are there already see those that are on their way. In a new namespace there are none.
        sealed::seal();
    }
    for text in bundle.warnings() {
        log::warning(cli, &text);
    }
    log::debug(cli, || format!("bundle {}", bundle.path.display()));
    if cli.debug
        && let Some(profile) = bundle.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref())
        && let Ok(filter) = seccomp::compile(profile)
    {
        log::debug(cli, || format!("seccomp filter flags: {}", filter.flags));
        log::debug(cli, || format!("seccomp filter instructions: {}", filter.instructions.len()));
    }
    Ok((id, bundle))
}

fn wants_terminal(bundle: &Bundle) -> bool {
    bundle.spec.process().as_ref().and_then(estiba_runtime::oci_spec::runtime::Process::terminal) == Some(true)
}

fn make(cli: &Cli, native: &Native, arguments: &Create, id: ContainerId, bundle: &Bundle) -> Result<Made> {
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let stdio = if wants_terminal(bundle) {
        Stdio::Terminal
    } else {
        Stdio::Fds { stdin: input.as_fd(), stdout: output.as_fd(), stderr: errors.as_fd() }
    };
    let inherited = inherited_fds(activated().saturating_add(arguments.preserve_fds))?;
    let preserved: Vec<_> = inherited.iter().map(AsFd::as_fd).collect();
    let options = CreateOptions {
        preserve_fds: &preserved,
        keyring: if arguments.no_new_keyring { Keyring::Inherit } else { Keyring::New },
        root_switch: if arguments.no_pivot { RootSwitch::Chroot } else { RootSwitch::Pivot },
        labels: Labels::WherePossible,
        ..CreateOptions::new(stdio)
    };
    let mut created = native.create(&id, bundle, &options)?;
    log::debug(cli, || format!("created container {id}: its first process is {}", created.pid));
    let delivered = (|| {
        if let Some(socket) = &arguments.console_socket
            && let Some(console) = created.console.take()
        {
            console::send(socket, &console)?;
        }
        if let Some(socket) = &arguments.pidfd_socket {
            console::send_pidfd(socket, &created.pidfd, "standard")?;
        }
        if let Some(path) = &arguments.pid_file {
            write_pid(path, created.pid)?;
        }
        Ok(())
    })();
    if let Err(error) = delivered {
        let _ = native.delete(&id, DeleteMode::Force);
        return Err(error);
    }
    Ok(Made { id, created })
}

/// How many sockets systemd has handed to us; they are the container's
/// ([`sd_listen_fds(3)`](https://man7.org/linux/man-pages/man3/sd_listen_fds.3.html)).
fn activated() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") == Some(std::process::id()) { number("LISTEN_FDS").unwrap_or(0) } else { 0 }
}

/// Whoever waits for the file finds it whole.
fn write_pid(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().ok_or_else(|| format!("{} is no file", path.display()))?;
    let beside = path.with_file_name(format!(".{}.new", name.to_string_lossy()));
    let written = fs::write(&beside, pid.to_string()).and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

fn run(cli: &Cli, native: &Native, arguments: &Create, detach: bool, keep: bool) -> Result<ExitCode> {
    let (id, mut bundle) = load(cli, arguments)?;
    let terminal = wants_terminal(&bundle);
    if terminal && detach && arguments.console_socket.is_none() {
        return Err("process.terminal is true: --detach needs --console-socket".into());
    }
    if terminal && !detach {
        bundle.spec.process_mut().as_mut().map(foreground::adopt_size);
    }
    // From here on a signal is for the container.
    let signals = if detach { None } else { Some(signal::Forwarded::new()?) };
    let Made { id, created } = make(cli, native, arguments, id, &bundle)?;
    let begun = || {
        let console = created.console.as_ref().filter(|_| signals.is_some());
        let bridge = console.map(foreground::Bridge::new).transpose()?;
        native.start(&id)?;
        log::debug(cli, || format!("started container {id}"));
        let Some(signals) = &signals else { return Ok(ExitStatus::Exited(0)) };
        let kill = |signal| native.kill(&id, signal, KillTarget::Init).map_err(Into::into);
        foreground::wait(&created, bridge, signals, kill)
    };
    let result: Result<ExitStatus> = begun();
    if result.is_err() || (!detach && !keep) {
        // The process is our child: it stays until somebody has waited for it.
        let deleted = native.delete(&id, DeleteMode::Force);
        if result.is_err() {
            let _ = estiba_runtime::wait(created.pidfd.as_fd(), created.pid);
        }
        let status = result?;
        deleted?;
        return Ok(code(status));
    }
    Ok(code(result?))
}

fn code(status: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(status.code()).unwrap_or(u8::MAX))
}
