//! The rows that can be asked for, each a group of contenders.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::{self, Kind};
use crate::contender::{Action, Contender, Group};
use crate::floor::Network;
use crate::place::Place;
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
    /// ENGINE run --rm --network none IMAGE true, whole process
    Engine,
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
}

impl Yard {
    pub(crate) fn group(&mut self, row: RowName) -> io::Result<Group> {
        match row {
            RowName::Floor => self.floor(),
            RowName::Run => self.run("run", Kind::Usual),
            RowName::RunBare => self.run("run-bare", Kind::Bare),
            RowName::Engine => self.engine(),
        }
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
            let ocirun = self.ours("ocirun", station)?;
            contenders.push(self.runtime("ocirun", ocirun, station, &bundle)?);
            for peer in ["crun", "runc", "youki"] {
                let found = self.find(peer, station)?;
                contenders.push(self.runtime(peer, found, station, &bundle)?);
            }
        }
        let network = if kind == Kind::Bare { Network::Host } else { Network::Own };
        contenders.push(kernel("(the kernel's floor)", 0, bundle.join("rootfs"), network));
        let what = match kind {
            Kind::Bare => "a bundle with proc and one tmpfs, the host's network",
            Kind::Usual => "a bundle as `runc spec` writes it",
        };
        let about = format!("RUNTIME run of a static program that exits at once, whole process; {what}");
        Ok(Group { name, about, contenders })
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
        let argv = |program: &Path| {
            let words = [program.to_str()?, "--root", state.to_str()?, "run", "--bundle", bundle.to_str()?, "{id}"];
            Some(words.map(str::to_owned).to_vec())
        };
        self.contender(name, program, station, argv)
    }

    fn engine(&mut self) -> io::Result<Group> {
        let archive = self.work.join("image.tar");
        let image = "localhost/estiba-bench:latest";
        let busybox = self.find("busybox", 0)?;
        let prepared = match &busybox {
            Ok(busybox) => bundle::write_image(&archive, busybox, image).map_err(|error| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        let mut contenders = Vec::new();
        for station in 0..self.stations.len() {
            let program = prepared.clone().and(self.ours("estiba", station)?);
            contenders.push(self.estiba(program, station, &archive)?);
            let program = prepared.clone().and(self.find("podman", station)?);
            contenders.push(self.podman(program, station, &archive, image)?);
        }
        let rootfs = self.bundle("engine-floor", Kind::Bare)?.join("rootfs");
        contenders.push(kernel("(the kernel's floor)", 0, rootfs, Network::Own));
        let about =
            "ENGINE run --rm --network none of `true` in an image that is present, to exit and removal".to_owned();
        Ok(Group { name: "engine", about, contenders })
    }

    fn estiba(&mut self, program: Result<PathBuf, String>, station: usize, archive: &Path) -> io::Result<Contender> {
        let place = self.stations[station].place().name();
        let home = self.work.join(format!("estiba-{place}"));
        let image = format!("docker-archive:{}", archive.display());
        let argv = |program: &Path| {
            let (root, run) = (home.join("root"), home.join("run"));
            let words = [
                program.to_str()?,
                "--root",
                root.to_str()?,
                "--run-root",
                run.to_str()?,
                "run",
                "--rm",
                "--network",
                "none",
                &image,
                "true",
            ];
            Some(words.map(str::to_owned).to_vec())
        };
        self.contender("estiba", program, station, argv)
    }

    fn podman(
        &mut self,
        program: Result<PathBuf, String>,
        station: usize,
        archive: &Path,
        image: &str,
    ) -> io::Result<Contender> {
        let place = self.stations[station].place().name();
        let home = self.work.join(format!("podman-{place}"));
        fs::create_dir_all(&home)?;
        // For machines without systemd; and below, for root without CAP_SYS_RESOURCE.
        let globals = [
            format!("--root={}", home.join("root").display()),
            format!("--runroot={}", home.join("run").display()),
            format!("--tmpdir={}", home.join("tmp").display()),
            "--cgroup-manager=cgroupfs".to_owned(),
            "--events-backend=file".to_owned(),
        ];
        let argv = |program: &Path, rest: &[&str]| {
            let mut words = vec![program.to_str()?.to_owned()];
            words.extend(globals.iter().cloned());
            words.extend(rest.iter().map(|word| (*word).to_owned()));
            Some(words)
        };
        let program = match program {
            Ok(program) => self
                .once(station, argv(&program, &["load", "--quiet", "--input", &archive.to_string_lossy()]))?
                .map(|()| program),
            Err(reason) => Err(reason),
        };
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        let run = [
            "run",
            "--rm",
            "--network=none",
            &parent,
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1000:1000",
            image,
            "true",
        ];
        self.contender("podman", program, station, |program| argv(program, &run))
    }

    /// Runs a command that prepares another, and returns why it failed.
    fn once(&mut self, station: usize, argv: Option<Vec<String>>) -> io::Result<Result<(), String>> {
        let argv = argv.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(match self.stations[station].ask(&Request::Run { argv, start: Start::Spawn })? {
            Answer::Ran(sample) if sample.status == 0 => Ok(()),
            Answer::Ran(sample) => Err(sample.stderr.lines().last().unwrap_or("nothing said").to_owned()),
            Answer::Failed(reason) => Err(reason),
            Answer::Found(_) => Err("an answer to another question".to_owned()),
        })
    }

    fn contender(
        &mut self,
        name: &str,
        program: Result<PathBuf, String>,
        station: usize,
        argv: impl FnOnce(&Path) -> Option<Vec<String>>,
    ) -> io::Result<Contender> {
        let (action, version) = match program {
            Ok(program) => {
                let version = self.version(&program, station)?;
                let argv = argv(&program);
                (argv.map_or(Action::Absent("a path that is not UTF-8".to_owned()), Action::Process), version)
            }
            Err(reason) => (Action::Absent(reason), String::new()),
        };
        Ok(Contender { name: name.to_owned(), version, station, action })
    }

    fn bundle(&self, name: &str, kind: Kind) -> io::Result<PathBuf> {
        let folder = self.work.join(name);
        bundle::write(&folder, kind, &format!("/{}/{name}", self.cgroup))?;
        Ok(folder)
    }

    fn find(&mut self, program: &str, station: usize) -> io::Result<Result<PathBuf, String>> {
        let request = Request::Find { program: program.to_owned() };
        Ok(match self.stations[station].ask(&request)? {
            Answer::Found(Some(path)) => Ok(path),
            Answer::Failed(reason) => Err(reason),
            _ => Err("not found in PATH".to_owned()),
        })
    }

    /// One of our own programs. In a place with another root it has to be a static one.
    fn ours(&mut self, name: &str, station: usize) -> io::Result<Result<PathBuf, String>> {
        let Some(program) = self.ours.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) else {
            return Ok(Err(format!("not built: cargo build --release -p {name}")));
        };
        if !matches!(self.stations[station].place(), Place::Folder(_)) {
            return Ok(Ok(program));
        }
        let copy = self.work.join(name);
        fs::copy(program, &copy)?;
        Ok(Ok(copy))
    }

    fn version(&mut self, program: &Path, station: usize) -> io::Result<String> {
        let argv = vec![program.to_string_lossy().into_owned(), "--version".to_owned()];
        Ok(match self.stations[station].ask(&Request::Run { argv, start: Start::Spawn })? {
            Answer::Ran(sample) if sample.status == 0 => sample.stdout.lines().next().unwrap_or_default().to_owned(),
            _ => String::new(),
        })
    }
}

fn kernel(name: &str, station: usize, rootfs: PathBuf, network: Network) -> Contender {
    Contender { name: name.to_owned(), version: String::new(), station, action: Action::Floor { rootfs, network } }
}
