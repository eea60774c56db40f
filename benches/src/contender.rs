//! Who is measured, and how a group of them is run side by side.

use std::io;
use std::path::PathBuf;

use crate::embedded::EngineCall;
use crate::floor::Network;
use crate::report::{Outcome, Row, Table};
use crate::station::{Answer, Request, Sample, Start, Station};
use crate::statistics::Summary;

/// One line of a table to be.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Index of its station.
    pub(crate) station: usize,
    pub(crate) action: Action,
}

/// What is measured.
#[derive(Debug)]
pub(crate) enum Action {
    /// A whole process. `{id}` in an argument stands for a name that no other run has.
    Process(Vec<String>),
    /// Whole processes one after the other, whose times are added.
    Steps(Vec<Vec<String>>),
    /// A whole process, and another one after it, whose time does not count.
    Undone { argv: Vec<String>, undo: Vec<String> },
    /// The same process many times at once, until the last has ended.
    AtOnce { argv: Vec<String>, count: usize },
    /// The kernel's floor.
    Floor { rootfs: PathBuf, network: Network },
    /// Calls of estiba-runtime on a bundle.
    Library { bundle: PathBuf, state: PathBuf },
    /// Calls of estiba-engine in a program that stays up.
    Engine(EngineCall),
    /// It cannot run here, and why.
    Absent(String),
}

impl Action {
    fn request(&self, id: &str, start: Start) -> Option<Request> {
        let named = |argv: &[String]| argv.iter().map(|argument| argument.replace("{id}", id)).collect::<Vec<_>>();
        match self {
            Self::Process(argv) | Self::Undone { argv, .. } => Some(Request::Run { argv: named(argv), start }),
            Self::Steps(steps) => Some(Request::Steps { steps: steps.iter().map(|argv| named(argv)).collect() }),
            Self::AtOnce { argv, count } => Some(Request::AtOnce { argv: argv.clone(), count: *count }),
            Self::Engine(call) => Some(Request::Engine(call.clone())),
            Self::Floor { rootfs, network } => Some(Request::Floor { rootfs: rootfs.clone(), network: *network }),
            Self::Library { bundle, state } => {
                Some(Request::Library { bundle: bundle.clone(), state: state.clone(), id: id.to_owned() })
            }
            Self::Absent(_) => None,
        }
    }

    /// As the report shows it.
    pub(crate) fn command(&self) -> String {
        match self {
            Self::Process(argv) | Self::Undone { argv, .. } => argv.join(" "),
            Self::Steps(steps) => steps.iter().map(|argv| argv.join(" ")).collect::<Vec<_>>().join(" && "),
            Self::AtOnce { argv, count } => format!("{count} times at once: {}", argv.join(" ")),
            Self::Engine(call) => format!("in process, {call:?}"),
            Self::Floor { network, .. } => format!("in process, network namespace: {network:?}"),
            Self::Library { bundle, .. } => format!("in process, {}", bundle.display()),
            Self::Absent(_) => String::new(),
        }
    }
}

/// Contenders that do the same thing; the first of each place is what the others of it are compared with.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    pub(crate) contenders: Vec<Contender>,
}

impl Group {
    /// Runs all contenders in turn: A B C A B C …
    pub(crate) fn measure(self, stations: &mut [Station], rounds: usize, peaks: usize) -> io::Result<Table> {
        // Two rounds to warm up, which also show who cannot run.
        self.measure_after(2, stations, rounds, peaks)
    }

    /// The same with another number of rounds to warm up.
    pub(crate) fn measure_after(
        mut self,
        warm: usize,
        stations: &mut [Station],
        rounds: usize,
        peaks: usize,
    ) -> io::Result<Table> {
        let mut runs = 0;
        let mut times: Vec<Vec<Sample>> = self.contenders.iter().map(|_| Vec::new()).collect();
        let mut memory: Vec<Vec<f64>> = self.contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..rounds + warm {
            for (contender, times) in self.contenders.iter_mut().zip(&mut times) {
                runs += 1;
                match contender.run(self.name, runs, Start::Spawn, stations)? {
                    Ok(Some(sample)) if round >= warm => times.push(sample),
                    Ok(_) => {}
                    Err(reason) => contender.action = Action::Absent(reason),
                }
            }
        }
        for _ in 0..peaks {
            for (contender, memory) in self.contenders.iter_mut().zip(&mut memory) {
                if !matches!(contender.action, Action::Process(_)) {
                    continue;
                }
                runs += 1;
                match contender.run(self.name, runs, Start::Fork, stations)? {
                    Ok(sample) => memory.extend(sample.map(|sample| f64::from(sample.peak_kib))),
                    Err(reason) => contender.action = Action::Absent(reason),
                }
            }
        }
        Ok(self.table(&times, &memory, stations))
    }

    fn table(self, times: &[Vec<Sample>], memory: &[Vec<f64>], stations: &[Station]) -> Table {
        let mut rows: Vec<Row> = Vec::new();
        for ((contender, times), memory) in self.contenders.into_iter().zip(times).zip(memory) {
            let place = stations[contender.station].place().name();
            let column = |value: fn(&Sample) -> f64| {
                times.iter().map(|sample| (value(sample) * 10.0).round() / 10.0).collect::<Vec<_>>()
            };
            let wall = column(|sample| sample.wall_us);
            let outcome = match (&contender.action, Summary::of(&wall)) {
                (Action::Absent(reason), _) => Outcome::Absent { reason: reason.clone() },
                (_, None) => Outcome::Absent { reason: "not measured".to_owned() },
                (_, Some(summary)) => {
                    let base = match rows.iter().find(|row| row.place == place) {
                        Some(first) => first.outcome.median(),
                        None => Some(summary.median),
                    };
                    let ratio = base.map(|base| (summary.median / base * 1000.0).round() / 1000.0);
                    Outcome::Measured {
                        wall_us: summary,
                        ratio,
                        user_us: Summary::of(&column(|sample| sample.user_us)).map(|summary| summary.median),
                        system_us: Summary::of(&column(|sample| sample.system_us)).map(|summary| summary.median),
                        peak_kib: Summary::of(memory).map(|summary| summary.median),
                        samples_us: wall,
                    }
                }
            };
            let command = contender.action.command();
            rows.push(Row { name: contender.name, version: contender.version, place, command, outcome });
        }
        Table { name: self.name, about: self.about, rows }
    }
}

impl Contender {
    /// `Err` inside is the reason for which this contender is out; outside, that the harness itself failed.
    fn run(
        &self,
        group: &str,
        number: u64,
        start: Start,
        stations: &mut [Station],
    ) -> io::Result<Result<Option<Sample>, String>> {
        let id = format!("bench-{}-{group}-{number}", std::process::id());
        let Some(request) = self.action.request(&id, start) else {
            let Action::Absent(reason) = &self.action else { return Ok(Ok(None)) };
            return Ok(Err(reason.clone()));
        };
        let answer = stations[self.station].ask(&request)?;
        if let Action::Undone { undo, .. } = &self.action {
            stations[self.station].ask(&Request::Run { argv: undo.clone(), start: Start::Spawn })?;
        }
        Ok(match answer {
            Answer::Ran(sample) if sample.status == 0 => Ok(Some(sample)),
            Answer::Ran(sample) => {
                let said = if sample.stderr.is_empty() { &sample.stdout } else { &sample.stderr };
                let last = said.lines().last().unwrap_or("nothing said");
                Err(format!("exit status {}: {last}", sample.status))
            }
            Answer::Failed(reason) => Err(reason),
            other => Err(format!("an answer to another question: {other:?}")),
        })
    }
}
