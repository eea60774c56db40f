//! Puts Estiba beside its peers in one run: `cargo run --release -p estiba-benches`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::machine::Machine;
use crate::place::Place;
use crate::report::Report;
use crate::rows::{Docker, RowName, Yard};
use crate::station::Station;

mod bundle;
mod contender;
mod crowd;
mod embedded;
mod engines;
mod floor;
mod library;
mod machine;
mod network;
mod payload;
mod place;
mod pull;
mod report;
mod rows;
mod station;
mod statistics;
mod sys;

/// Measures Estiba and its peers side by side, alternating, on this machine.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    internal: Option<Internal>,
    /// What to measure; all of it without
    rows: Vec<RowName>,
    /// How often each contender runs
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// How many containers there are for the row `ps`
    #[arg(long, default_value_t = 1000)]
    containers: usize,
    /// How often each runs for its peak memory
    #[arg(long, default_value_t = 5)]
    peaks: usize,
    /// The image for the row `pull`, in a registry that speaks plain HTTP on loopback
    #[arg(long, value_name = "REFERENCE")]
    image: Option<String>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where our own programs lie; without, beside this one, a static build preferred
    #[arg(long, value_name = "FOLDER")]
    ours: Option<PathBuf>,
    /// Measure docker too: a dockerd is started for this run, with all its files in a folder of its own
    #[arg(long)]
    docker: bool,
    /// A folder with a Linux system that holds other versions of the peers, to be measured too [default: $ESTIBA_PEERS]
    #[arg(long, value_name = "FOLDER")]
    peers: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// One of this program's own measuring processes
    #[command(hide = true)]
    Station { place: String, work: PathBuf, cgroup: String },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.internal {
        Some(Internal::Station { place, work, cgroup }) => {
            serde_json::from_str(place).map_err(io::Error::from).and_then(|place| station::serve(&place, work, cgroup))
        }
        None => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("estiba-benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "namespaces and cgroups need root: run it with sudo",
        ));
    }
    let work = tempfile::Builder::new().prefix("estiba-bench-").tempdir()?;
    let machine = Machine::look();
    writeln!(
        io::stdout(),
        "{} · {} × {} · kernel {} · load {} · cgroup {}",
        machine.date,
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.load,
        machine.cgroup
    )?;
    let mut places = vec![Place::Plain];
    if machine.cgroup == "hybrid" {
        places.push(Place::V1);
    }
    let peers = arguments.peers.clone().or_else(|| std::env::var_os("ESTIBA_PEERS").map(PathBuf::from));
    if let Some(folder) = peers {
        places.push(Place::Folder(folder.canonicalize()?));
    }
    let cgroup = format!("estiba-bench-{}", std::process::id());
    let start = |place: &Place| Station::start(place, work.path(), &cgroup);
    let stations = places.iter().map(start).collect::<io::Result<Vec<_>>>()?;
    let mut yard = Yard {
        work: work.path().to_owned(),
        cgroup,
        ours: our_folders(arguments)?,
        stations,
        docker: if arguments.docker { Docker::Start } else { Docker::Leave },
        rounds: (arguments.rounds, arguments.peaks),
        containers: arguments.containers,
        engines: None,
        image: arguments.image.clone(),
    };
    let all = RowName::value_variants();
    // Without an image there is nothing to pull.
    let all: Vec<RowName> =
        all.iter().copied().filter(|row| *row != RowName::Pull || arguments.image.is_some()).collect();
    let rows = if arguments.rows.is_empty() { &all } else { &arguments.rows };
    let measured = rows.iter().map(|row| {
        let table = yard.table(*row)?;
        write!(io::stdout(), "{table}")?;
        Ok(table)
    });
    let measured: io::Result<Vec<_>> = measured.collect();
    drop(std::mem::take(&mut yard.stations));
    floor::remove_cgroups(&yard.cgroup)?;
    let report = Report {
        command: command(),
        machine,
        load_after: machine::load(),
        rounds: arguments.rounds,
        tables: measured?,
    };
    if let Some(file) = &arguments.json {
        // A reader has other folders than this machine.
        let text = report.json()?.replace(&*work.path().to_string_lossy(), "WORK");
        fs::write(file, text.replace(&format!("{}/", project().display()), ""))?;
    }
    Ok(())
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

fn command() -> String {
    let words: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo run --release -p estiba-benches -- {}", words.join(" "))
}

/// Static builds first: what a user installs, and what runs under any root.
fn our_folders(arguments: &Arguments) -> io::Result<Vec<PathBuf>> {
    if let Some(folder) = &arguments.ours {
        return Ok(vec![folder.canonicalize()?]);
    }
    let program = std::env::current_exe()?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let target = beside.parent().unwrap_or(Path::new("/"));
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    Ok(vec![target.join(triple).join("release"), beside.to_owned()])
}
