//! The rows that can be asked for, each a group of contenders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::{self, Kind};
use crate::contender::{Action, Contender, Group};
use crate::engines::Engine;
use crate::floor::Network;
use crate::report::Table;
use crate::station::{Answer, Request, Start, Station};

/// A measurement by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RowName {
    /// What the kernel charges, with and without a network namespace
    Floor,
    /// RUNTIME run of `true`, whole process
    Run,
    /// The same with the mounts and namespaces of the floor only
    RunBare,
    /// The same as `run` by calls of the library, in a program that stays up
    Library,
    /// The same as `run-bare` by calls of the library
    LibraryBare,
    /// ENGINE run --rm --network none IMAGE true, whole process
    Engine,
    /// ENGINE run -d of `sleep`, and rm -f of it: two processes
    RunDetached,
    /// ENGINE exec of `true` in a running container
    Exec,
    /// ENGINE ps -a with 1,000 containers
    Ps,
    /// 40 of the row `engine` at once
    AtOnce,
    /// 200 of them
    Crowd,
    /// The row `engine` by calls of estiba-engine, in a program that stays up
    EngineLibrary,
    /// The memory of what stays beside each running container
    Shim,
    /// The memory of what stays besides: a monitor or a daemon
    Daemon,
    /// Attach and detach of a network namespace with a published port, by calls of estiba-network
    Network,
    /// Pull and unpack of the image that `--image` names, into an empty place
    Pull,
}

/// What the rows are made from.
#[derive(Debug)]
pub(crate) struct Yard {
    /// Where bundles, images and the state of all contenders lie.
    pub(crate) work: PathBuf,
    /// The parent of all cgroups that are made.
    pub(crate) cgroup: String,
    /// Where our own binaries lie.
    pub(crate) ours: Vec<PathBuf>,
    pub(crate) stations: Vec<Station>,
    /// Whether a dockerd may be started.
    pub(crate) docker: Docker,
    /// How often each contender runs for time, and how often for its peak memory.
    pub(crate) rounds: (usize, usize),
    /// How many containers there are for the row `ps`.
    pub(crate) containers: usize,
    /// The engines, once they were prepared.
    pub(crate) engines: Option<Vec<Engine>>,
    /// What is pulled.
    pub(crate) image: Option<String>,
}

/// Whether docker is measured, for which its daemon has to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Docker {
    Start,
    Leave,
}

impl Yard {
    pub(crate) fn table(&mut self, row: RowName) -> io::Result<Table> {
        let group = match row {
            RowName::Floor => self.floor()?,
            RowName::Run => self.run("run", Kind::Usual)?,
            RowName::RunBare => self.run("run-bare", Kind::Bare)?,
            RowName::Library => self.library("library", Kind::Usual)?,
            RowName::LibraryBare => self.library("library-bare", Kind::Bare)?,
            RowName::Engine => self.engine()?,
            RowName::RunDetached => self.run_detached()?,
            RowName::Exec => return self.exec(),
            RowName::Ps => return self.ps(),
            RowName::AtOnce => return self.at_once("at-once", 40),
            RowName::Crowd => return self.at_once("crowd", 200),
            RowName::EngineLibrary => self.engine_library()?,
            RowName::Shim => return self.shim(),
            RowName::Daemon => return self.daemon(),
            RowName::Network => return self.network(),
            RowName::Pull => return self.pull(),
        };
        group.measure(&mut self.stations, self.rounds.0, self.rounds.1)
    }

    fn floor(&mut self) -> io::Result<Group> {
        let rootfs = self.bundle("floor", Kind::Bare)?.join("rootfs");
        let contenders = [("floor", Network::Host), ("floor, own network", Network::Own)]
            .map(|(name, network)| kernel(name, 0, rootfs.clone(), network));
        let about = "clone3 with all namespaces, five cgroups made, joined and removed, proc, tmpfs, pivot_root, exec";
        Ok(Group { name: "floor", about: about.to_owned(), contenders: contenders.into() })
    }

    fn run(&mut self, name: &'static str, kind: Kind) -> io::Result<Group> {
        let bundle = self.bundle(name, kind)?;
        let mut contenders = Vec::new();
        for station in 0..self.stations.len() {
            let ocirun = self.ours("ocirun")?;
            contenders.push(self.runtime("ocirun", ocirun, station, &bundle)?);
            for peer in ["crun", "runc", "youki"] {
                let found = self.find(peer, station)?;
                contenders.push(self.runtime(peer, found, station, &bundle)?);
            }
        }
        contenders.push(kernel("(the kernel's floor)", 0, bundle.join("rootfs"), kind.network()));
        let what = kind.about();
        let about = format!("RUNTIME run of a static program that exits at once, whole process; {what}");
        Ok(Group { name, about, contenders })
    }

    fn library(&mut self, name: &'static str, kind: Kind) -> io::Result<Group> {
        let bundle = self.bundle(name, kind)?;
        let floor = kernel("(the kernel's floor)", 0, bundle.join("rootfs"), kind.network());
        let action = Action::Library { bundle, state: self.work.join(format!("state-{name}")) };
        let version = format!("estiba-runtime {}", env!("CARGO_PKG_VERSION"));
        let native = Contender { name: "Native".to_owned(), version, station: 0, action };
        let what = kind.about();
        let about = format!("create, start, wait and delete by estiba_runtime in a program that stays up; {what}");
        Ok(Group { name, about, contenders: vec![floor, native] })
    }

    fn runtime(
        &mut self,
        name: &str,
        program: Result<PathBuf, String>,
        station: usize,
        bundle: &Path,
    ) -> io::Result<Contender> {
        let place = self.stations[station].place().name();
        let state = self.work.join(format!("state-{place}-{name}"));
        fs::create_dir_all(&state)?;
        let arguments = ["--root", &text(&state), "run", "--bundle", &text(bundle), "{id}"].map(str::to_owned);
        self.contender(name, program, station, &arguments)
    }

    /// Runs a command that prepares another, and returns why it failed.
    pub(crate) fn once(&mut self, station: usize, argv: Vec<String>) -> io::Result<Result<(), String>> {
        Ok(match self.stations[station].ask(&Request::Run { argv, start: Start::Spawn })? {
            Answer::Ran(sample) if sample.status == 0 => Ok(()),
            Answer::Ran(sample) => Err(sample.stderr.lines().last().unwrap_or("nothing said").to_owned()),
            Answer::Failed(reason) => Err(reason),
            other => Err(format!("an answer to another question: {other:?}")),
        })
    }

    pub(crate) fn contender(
        &mut self,
        name: &str,
        program: Result<PathBuf, String>,
        station: usize,
        arguments: &[String],
    ) -> io::Result<Contender> {
        let (action, version) = match program {
            Ok(program) => {
                let version = self.version(&program, station)?;
                let argv = std::iter::once(text(&program)).chain(arguments.iter().cloned()).collect();
                (Action::Process(argv), version)
            }
            Err(reason) => (Action::Absent(reason), String::new()),
        };
        Ok(Contender { name: name.to_owned(), version, station, action })
    }

    pub(crate) fn bundle(&self, name: &str, kind: Kind) -> io::Result<PathBuf> {
        let folder = self.work.join(name);
        bundle::write(&folder, kind, &format!("/{}/{name}", self.cgroup))?;
        Ok(folder)
    }

    pub(crate) fn find(&mut self, program: &str, station: usize) -> io::Result<Result<PathBuf, String>> {
        let request = Request::Find { program: program.to_owned() };
        Ok(match self.stations[station].ask(&request)? {
            Answer::Found(Some(path)) => Ok(path),
            Answer::Failed(reason) => Err(reason),
            _ => Err("not found in PATH".to_owned()),
        })
    }

    /// One of our own programs, from the folder that all places see. In a place with another root it has to be static.
    pub(crate) fn ours(&mut self, name: &str) -> io::Result<Result<PathBuf, String>> {
        let folder = self.work.join("bin");
        fs::create_dir_all(&folder)?;
        // The shim stands beside the engine, as it is installed.
        for name in ["estiba", "ocirun", "containerd-shim-estiba-v2"] {
            let built = self.ours.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
            if let Some(program) = built.filter(|_| !folder.join(name).exists()) {
                fs::copy(program, folder.join(name))?;
            }
        }
        let program = folder.join(name);
        Ok(if program.exists() { Ok(program) } else { Err(format!("not built: cargo build --release -p {name}")) })
    }

    pub(crate) fn version(&mut self, program: &Path, station: usize) -> io::Result<String> {
        let argv = vec![program.to_string_lossy().into_owned(), "--version".to_owned()];
        Ok(match self.stations[station].ask(&Request::Run { argv, start: Start::Spawn })? {
            Answer::Ran(sample) if sample.status == 0 => sample.stdout.lines().next().unwrap_or_default().to_owned(),
            _ => String::new(),
        })
    }
}

/// As an argument of a command line.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn kernel(name: &str, station: usize, rootfs: PathBuf, network: Network) -> Contender {
    Contender { name: name.to_owned(), version: String::new(), station, action: Action::Floor { rootfs, network } }
}
