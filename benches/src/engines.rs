//! Whole engines, each with a place of its own for all that it keeps.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::bundle::{self, Kind};
use crate::contender::{Action, Group};
use crate::floor::Network;
use crate::place::Place;
use crate::report::{Outcome, Row, Table};
use crate::rows::{Docker, Yard, kernel, text};
use crate::station::{Answer, Request};

const IMAGE: &str = "localhost/estiba-bench:latest";

/// An engine that has the image, ready to run it.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    pub(crate) program: Result<PathBuf, String>,
    pub(crate) station: usize,
    /// Options before the command.
    globals: Vec<String>,
    /// Options of `run`, and the image.
    run: Vec<String>,
}

impl Engine {
    /// A command and its words, with the options of all commands.
    pub(crate) fn words(&self, words: &[&str]) -> Vec<String> {
        self.globals.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect()
    }

    /// `create` or `run` with these options and this command in the image.
    pub(crate) fn container(&self, before: &[&str], after: &[&str]) -> Vec<String> {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        [self.words(before), self.run.clone(), words(after)].concat()
    }

    fn arguments(&self, before: &[&str], after: &[&str]) -> Vec<String> {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        [self.globals.clone(), words(&["run", "--rm"]), words(before), self.run.clone(), words(after)].concat()
    }
}

impl Yard {
    pub(crate) fn engine(&mut self) -> io::Result<Group> {
        let mut contenders = Vec::new();
        for engine in self.engines()? {
            let arguments = engine.arguments(&[], &["true"]);
            contenders.push(self.contender(engine.name, engine.program, engine.station, &arguments)?);
        }
        let rootfs = self.bundle("engine-floor", Kind::Bare)?.join("rootfs");
        contenders.push(kernel("(the kernel's floor)", 0, rootfs, Network::Own));
        let about =
            "ENGINE run --rm --network none of `true` in an image that is present, to exit and removal".to_owned();
        Ok(Group { name: "engine", about, contenders })
    }

    /// The process that stays beside a container: how much memory is its own.
    pub(crate) fn shim(&mut self) -> io::Result<Table> {
        let mut rows = Vec::new();
        for engine in self.engines()? {
            let name = format!("bench-{}-shim", std::process::id());
            let arguments = engine.arguments(&["--name", &name], &["sleep", "1000"]);
            let contender = self.contender(engine.name, engine.program.clone(), engine.station, &arguments)?;
            let command = contender.action.command();
            let outcome = match contender.action {
                Action::Process(argv) => {
                    let program = argv.first().cloned().into_iter();
                    let remove = ["rm", "--force", &name].map(str::to_owned);
                    let remove = program.chain(engine.globals).chain(remove).collect();
                    let request = Request::Shim { argv, remove, marks: self.marks() };
                    match self.stations[engine.station].ask(&request)? {
                        Answer::Weighed(memory) => Outcome::Resident { memory },
                        Answer::Failed(reason) => Outcome::Absent { reason },
                        other => Outcome::Absent { reason: format!("an answer to another question: {other:?}") },
                    }
                }
                Action::Absent(reason) => Outcome::Absent { reason },
                _ => continue,
            };
            let place = self.stations[engine.station].place().name();
            rows.push(Row { name: contender.name, version: contender.version, place, command, outcome });
        }
        let about = "memory of the process that stays beside one running container".to_owned();
        Ok(Table { name: "shim", about, rows })
    }

    /// By what a shim of this run is told from others on the machine: its command line names our folder.
    pub(crate) fn marks(&self) -> Vec<String> {
        vec![text(&self.work)]
    }

    /// All engines in all places; they are prepared once.
    pub(crate) fn engines(&mut self) -> io::Result<Vec<Engine>> {
        if let Some(engines) = &self.engines {
            return Ok(engines.clone());
        }
        let archive = self.work.join("image.tar");
        let prepared = match self.find("busybox", 0)? {
            Ok(busybox) => bundle::write_image(&archive, &busybox, IMAGE).map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        let mut engines = Vec::new();
        for station in 0..self.stations.len() {
            for engine in [self.estiba(station)?, self.podman(station)?, self.docker(station)?].into_iter().flatten() {
                engines.push(Engine { program: prepared.clone().and(engine.program.clone()), ..engine });
            }
        }
        self.engines = Some(engines.clone());
        Ok(engines)
    }

    fn home(&self, name: &str, station: usize) -> io::Result<PathBuf> {
        let home = self.work.join(format!("{name}-{}", self.stations[station].place().name()));
        fs::create_dir_all(&home)?;
        Ok(home)
    }

    fn estiba(&mut self, station: usize) -> io::Result<Option<Engine>> {
        let home = self.home("estiba", station)?;
        let globals = [
            "--root".to_owned(),
            text(&home.join("root")),
            "--run-root".to_owned(),
            text(&home.join("run")),
            format!("--cgroup-parent=/{}", self.cgroup),
        ];
        let image = format!("docker-archive:{}", text(&self.work.join("image.tar")));
        let run = ["--network".to_owned(), "none".to_owned(), image];
        let program = self.ours("estiba")?;
        Ok(Some(Engine { name: "estiba", program, station, globals: globals.into(), run: run.into() }))
    }

    fn podman(&mut self, station: usize) -> io::Result<Option<Engine>> {
        let home = self.home("podman", station)?;
        let globals = [
            format!("--root={}", text(&home.join("root"))),
            format!("--runroot={}", text(&home.join("run"))),
            format!("--tmpdir={}", text(&home.join("tmp"))),
            // For machines without systemd; and below, for root without CAP_SYS_RESOURCE.
            "--cgroup-manager=cgroupfs".to_owned(),
            "--events-backend=file".to_owned(),
        ];
        let parent = format!("--cgroup-parent=/{}", self.cgroup);
        let run = ["--network=none", &parent, "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000", IMAGE];
        let program = self.find("podman", station)?;
        let run = run.map(str::to_owned).into();
        self.with_image(Engine { name: "podman", program, station, globals: globals.into(), run }).map(Some)
    }

    /// A daemon of this run's own: no bridge, no firewall rules, all files in our folder. It ends with the station.
    fn docker(&mut self, station: usize) -> io::Result<Option<Engine>> {
        // A hybrid machine's two views are the same to it.
        if *self.stations[station].place() == Place::V1 {
            return Ok(None);
        }
        let home = self.home("docker", station)?;
        let socket = format!("unix://{}", text(&home.join("sock")));
        let mut program = self.find("docker", station)?;
        if self.docker == Docker::Leave {
            program = Err("needs its daemon: ask for it by --docker".to_owned());
        }
        let daemon = self.find("dockerd", station)?;
        let run = ["--network=none", IMAGE].map(str::to_owned).into();
        let mut engine = Engine { name: "docker", program, station, globals: vec!["-H".into(), socket.clone()], run };
        if let Ok(program) = engine.program.clone() {
            engine.program = match daemon {
                Ok(daemon) => self.start_docker(&daemon, &home, &socket, station)?.map(|()| program),
                Err(reason) => Err(format!("dockerd: {reason}")),
            };
        }
        self.with_image(engine).map(Some)
    }

    fn start_docker(
        &mut self,
        daemon: &std::path::Path,
        home: &std::path::Path,
        socket: &str,
        station: usize,
    ) -> io::Result<Result<(), String>> {
        let path = |name: &str| text(&home.join(name));
        let argv = [
            text(daemon),
            format!("--data-root={}", path("data")),
            format!("--exec-root={}", path("exec")),
            format!("--pidfile={}", path("pid")),
            format!("--host={socket}"),
            format!("--cgroup-parent=/{}", self.cgroup),
            "--bridge=none".to_owned(),
            "--iptables=false".to_owned(),
            "--ip6tables=false".to_owned(),
            "--ip-forward=false".to_owned(),
        ];
        let log = home.join("log");
        self.stations[station].ask(&Request::Daemon { argv: argv.into(), log: log.clone() })?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !home.join("sock").exists() {
            if Instant::now() > deadline {
                let log = fs::read_to_string(&log).unwrap_or_default();
                return Ok(Err(format!("dockerd did not start: {}", log.lines().last().unwrap_or_default())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Ok(()))
    }

    /// Loads the image from the archive.
    fn with_image(&mut self, engine: Engine) -> io::Result<Engine> {
        let Ok(program) = engine.program.clone() else { return Ok(engine) };
        let load = ["load", "--quiet", "--input", &text(&self.work.join("image.tar"))].map(str::to_owned);
        let argv = std::iter::once(text(&program)).chain(engine.globals.clone()).chain(load).collect();
        let program = self.once(engine.station, argv)?.map(|()| program);
        Ok(Engine { program, ..engine })
    }
}
