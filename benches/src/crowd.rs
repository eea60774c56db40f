//! Engines with containers that stay, and with many at once.

use std::io;

use crate::bundle::Kind;
use crate::contender::{Action, Contender, Group};
use crate::embedded::{CallKind, EngineCall};
use crate::engines::Engine;
use crate::floor::Network;
use crate::report::{Outcome, Row, Table};
use crate::rows::{Yard, kernel, text};
use crate::station::{Answer, Request};

impl Yard {
    pub(crate) fn run_detached(&mut self) -> io::Result<Group> {
        let mut contenders = Vec::new();
        for engine in self.engines()? {
            let run = engine.container(&["run", "-d", "--name", "{id}"], &["sleep", "1000"]);
            // A first process that does not heed SIGTERM is waited for by podman alone.
            let force: &[&str] = if engine.name == "podman" { &["--force", "--time=0"] } else { &["--force"] };
            let remove = engine.words(&[&["rm"], force, &["{id}"]].concat());
            contenders.push(self.steps(&engine, &[run, remove])?);
        }
        let about = "ENGINE run -d --network none of `sleep`, and rm -f of it".to_owned();
        Ok(Group { name: "run-detached", about, contenders })
    }

    pub(crate) fn exec(&mut self) -> io::Result<Table> {
        let name = format!("bench-{}-exec", std::process::id());
        let mut contenders = Vec::new();
        let engines = self.engines()?;
        for engine in &engines {
            let run = engine.container(&["run", "-d", "--name", &name], &["sleep", "1000"]);
            let program = self.prepared(engine, run)?;
            let exec = engine.words(&["exec", &name, "true"]);
            contenders.push(self.contender(engine.name, program, engine.station, &exec)?);
        }
        let about = "ENGINE exec of `true` in a running container".to_owned();
        let group = Group { name: "exec", about, contenders };
        let table = group.measure(&mut self.stations, self.rounds.0, self.rounds.1);
        for engine in &engines {
            self.prepared(engine, engine.words(&["rm", "--force", &name]))?.ok();
        }
        table
    }

    pub(crate) fn ps(&mut self) -> io::Result<Table> {
        let mut contenders = Vec::new();
        let engines = self.engines()?;
        let name = |number: usize| format!("bench-{}-ps-{number}", std::process::id());
        for engine in &engines {
            let mut program = engine.program.clone();
            for number in 0..self.containers {
                if program.is_ok() {
                    let create = engine.container(&["create", "--name", &name(number)], &["true"]);
                    program = self.prepared(engine, create)?;
                }
            }
            contenders.push(self.contender(engine.name, program, engine.station, &engine.words(&["ps", "--all"]))?);
        }
        let about = format!("ENGINE ps -a with {} containers that were created", self.containers);
        let group = Group { name: "ps", about, contenders };
        let table = group.measure(&mut self.stations, self.rounds.0, self.rounds.1);
        for engine in &engines {
            for numbers in (0..self.containers).collect::<Vec<_>>().chunks(100) {
                let names: Vec<String> = numbers.iter().map(|number| name(*number)).collect();
                let words: Vec<&str> = ["rm", "--force"].into_iter().chain(names.iter().map(String::as_str)).collect();
                self.prepared(engine, engine.words(&words))?.ok();
            }
        }
        table
    }

    /// The same by calls, beside the kernel's floor.
    pub(crate) fn engine_library(&mut self) -> io::Result<Group> {
        self.engines()?;
        let rootfs = self.bundle("engine-floor", Kind::Bare)?.join("rootfs");
        let mut contenders = vec![kernel("(the kernel's floor)", 0, rootfs, Network::Own)];
        for (name, kind) in [("run", CallKind::Run), ("exec", CallKind::Exec)] {
            let action = match self.ours("containerd-shim-estiba-v2")? {
                Ok(shim) => Action::Engine(EngineCall {
                    kind,
                    home: self.work.join("embedded"),
                    cgroup_parent: format!("/{}", self.cgroup),
                    shim,
                    archive: self.work.join("image.tar"),
                }),
                Err(reason) => Action::Absent(reason),
            };
            let version = format!("estiba-engine {}", env!("CARGO_PKG_VERSION"));
            contenders.push(Contender { name: name.to_owned(), version, station: 0, action });
        }
        let about =
            "run (to exit and removal) and exec of `true` by estiba_engine, in a program that stays up".to_owned();
        Ok(Group { name: "engine-library", about, contenders })
    }

    /// A few rounds only: each is many runs.
    pub(crate) fn at_once(&mut self, name: &'static str, count: usize) -> io::Result<Table> {
        let mut contenders = Vec::new();
        for engine in self.engines()? {
            let arguments = engine.container(&["run", "--rm"], &["true"]);
            let mut contender = self.contender(engine.name, engine.program.clone(), engine.station, &arguments)?;
            if let Action::Process(argv) = contender.action {
                contender.action = Action::AtOnce { argv, count };
            }
            contenders.push(contender);
        }
        let about = format!("{count} × ENGINE run --rm --network none of `true` at once, to the end of the last");
        Group { name, about, contenders }.measure(&mut self.stations, self.rounds.0.min(5), 0)
    }

    /// What an engine keeps beside the shims: a monitor, which is there while a container has a restart policy; or a daemon.
    pub(crate) fn daemon(&mut self) -> io::Result<Table> {
        let name = format!("bench-{}-kept", std::process::id());
        let mut rows = Vec::new();
        for engine in self.engines()? {
            let run = engine.container(&["run", "-d", "--restart", "always", "--name", &name], &["sleep", "1000"]);
            let program = self.prepared(&engine, run)?;
            let (names, mark): (&[&str], &str) = match engine.name {
                "estiba" => (&["estiba"], "monitor"),
                "docker" => (&["dockerd"], "--data-root"),
                _ => (&[], ""),
            };
            let outcome = match program {
                Ok(_) if names.is_empty() => Outcome::Absent { reason: "it keeps nothing".to_owned() },
                Ok(_) => {
                    let names = names.iter().map(|name| (*name).to_owned()).collect();
                    let marks = [self.marks(), vec![mark.to_owned()]].concat();
                    match self.stations[engine.station].ask(&Request::Weigh { names, marks })? {
                        Answer::Weighed(memory) => Outcome::Resident { memory },
                        Answer::Failed(reason) => Outcome::Absent { reason },
                        other => Outcome::Absent { reason: format!("an answer to another question: {other:?}") },
                    }
                }
                Err(reason) => Outcome::Absent { reason },
            };
            self.prepared(&engine, engine.words(&["rm", "--force", &name]))?.ok();
            let place = self.stations[engine.station].place().name();
            let (name, version) = (engine.name.to_owned(), String::new());
            rows.push(Row { name, version, place, command: "run -d --restart always".to_owned(), outcome });
        }
        let about = "memory of the process that an engine keeps besides: a monitor or a daemon".to_owned();
        Ok(Table { name: "daemon", about, rows })
    }

    /// Runs a command of an engine that prepares another or tidies up after it; the program, if that went well.
    fn prepared(&mut self, engine: &Engine, words: Vec<String>) -> io::Result<Result<std::path::PathBuf, String>> {
        let program = match &engine.program {
            Ok(program) => program.clone(),
            Err(reason) => return Ok(Err(reason.clone())),
        };
        let argv = std::iter::once(text(&program)).chain(words).collect();
        Ok(self.once(engine.station, argv)?.map(|()| program))
    }

    fn steps(&mut self, engine: &Engine, steps: &[Vec<String>]) -> io::Result<Contender> {
        let mut contender = self.contender(engine.name, engine.program.clone(), engine.station, &[])?;
        if let Action::Process(program) = contender.action {
            contender.action =
                Action::Steps(steps.iter().map(|words| [program.clone(), words.clone()].concat()).collect());
        }
        Ok(contender)
    }
}
