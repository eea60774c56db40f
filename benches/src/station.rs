//! A small process in one [`Place`] that measures one run at a time, on request. Each place has its own, and the harness
//! asks them in turn, so that contenders of different places alternate within one run.
//!
//! A request is one line of JSON on its standard input, and the answer one on its standard output.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::embedded::{Embedded, EngineCall};
use crate::floor::{Floor, Network};
use crate::library::Library;
use crate::place::Place;
use crate::sys::{self, Program};

/// What a station is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Find a program by its name in the place's `PATH`.
    Find { program: String },
    /// Run a program to its end.
    Run { argv: Vec<String>, start: Start },
    /// Run programs one after the other, each to its end.
    Steps { steps: Vec<Vec<String>> },
    /// Run a program many times at once, to the end of the last.
    AtOnce { argv: Vec<String>, count: usize },
    /// A call of estiba-engine.
    Engine(EngineCall),
    /// Run the kernel's floor once on a root file system.
    Floor { rootfs: PathBuf, network: Network },
    /// Make, start, wait for and delete a container by estiba-runtime.
    Library { bundle: PathBuf, state: PathBuf, id: String },
    /// Start a container that stays, weigh the process beside it, and remove it. The process is one whose command line
    /// has all the marks.
    Shim { argv: Vec<String>, remove: Vec<String>, marks: Vec<String> },
    /// Weigh a process that is there: of one of these names, with all the marks in its command line.
    Weigh { names: Vec<String>, marks: Vec<String> },
    /// Start a program that stays, with its output in a file; the station ends it with itself.
    Daemon { argv: Vec<String>, log: PathBuf },
}

/// How a measured process is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// For time.
    Spawn,
    /// For peak memory.
    Fork,
}

/// What a station answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer {
    Found(Option<PathBuf>),
    Ran(Sample),
    Weighed(Memory),
    Failed(String),
}

/// One measured run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) wall_us: f64,
    pub(crate) user_us: f64,
    pub(crate) system_us: f64,
    pub(crate) peak_kib: u32,
    /// Exit status, 128 + n for a signal.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The memory of a process in KiB, from `smaps_rollup`.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Pages that it has, whoever else has them too.
    pub(crate) rss: u32,
    /// The same, but a page that n processes have counts as one nth.
    pub(crate) pss: u32,
    /// What only this process has, written or not.
    pub(crate) own: u32,
}

/// The harness's end of a station.
#[derive(Debug)]
pub(crate) struct Station {
    place: Place,
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Station {
    /// Starts this program again as a station.
    pub(crate) fn start(place: &Place, work: &Path, cgroup: &str) -> io::Result<Self> {
        let encoded = serde_json::to_string(place)?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["station", &encoded])
            .arg(work)
            .arg(cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (requests, answers) = (process.stdin.take(), process.stdout.take());
        let answers = BufReader::new(answers.ok_or(io::ErrorKind::BrokenPipe)?);
        let mut station = Self { place: place.clone(), process, requests, answers };
        // The first line says whether the place could be entered.
        match station.answer()? {
            Answer::Failed(reason) => Err(io::Error::other(reason)),
            _ => Ok(station),
        }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let requests = self.requests.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        requests.write_all(&line)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the measuring process has ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // The end of its input is the sign to leave.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}

/// The station itself.
pub(crate) fn serve(place: &Place, work: &Path, cgroup: &str) -> io::Result<()> {
    let mut answers = io::stdout();
    let mut reply = |answer: &Answer| -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        answers.write_all(&line)?;
        answers.flush()
    };
    if let Err(error) = place.enter(work) {
        return reply(&Answer::Failed(format!("cannot enter the place: {error}")));
    }
    reply(&Answer::Found(None))?;
    let mut bench = Bench {
        work: work.to_owned(),
        cgroup: cgroup.to_owned(),
        floors: Vec::new(),
        library: Library::default(),
        embedded: Embedded::default(),
        daemons: Vec::new(),
    };
    for line in io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?).map_err(io::Error::from).and_then(|request| bench.answer(request));
        reply(&answer.unwrap_or_else(|error| Answer::Failed(error.to_string())))?;
    }
    for mut daemon in bench.daemons {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::Signal::SIGTERM)?;
        daemon.wait()?;
    }
    Ok(())
}

#[derive(Debug)]
struct Bench {
    work: PathBuf,
    cgroup: String,
    floors: Vec<(PathBuf, Network, Floor)>,
    library: Library,
    embedded: Embedded,
    daemons: Vec<Child>,
}

impl Bench {
    fn answer(&mut self, request: Request) -> io::Result<Answer> {
        match request {
            Request::Find { program } => Ok(Answer::Found(find(&program))),
            Request::Run { argv, start } => self.run(&argv, start).map(Answer::Ran),
            Request::Steps { steps } => self.steps(&steps).map(Answer::Ran),
            Request::AtOnce { argv, count } => self.at_once(&argv, count).map(Answer::Ran),
            Request::Engine(call) => {
                let took = self.embedded.call(&call)?;
                Ok(Answer::Ran(Sample { wall_us: took.as_secs_f64() * 1e6, ..Sample::default() }))
            }
            Request::Weigh { names, marks } => Ok(match weigh(&names, &marks) {
                Some(memory) => Answer::Weighed(memory),
                None => Answer::Failed(format!("no process {} was seen", names.join(" or "))),
            }),
            Request::Floor { rootfs, network } => {
                let known = self.floors.iter().position(|(path, kind, _)| *path == rootfs && *kind == network);
                let index = if let Some(index) = known {
                    index
                } else {
                    let parent = format!("{}/floor-{}-{}", self.cgroup, std::process::id(), self.floors.len());
                    self.floors.push((rootfs.clone(), network, Floor::new(&rootfs, network, &parent)?));
                    self.floors.len() - 1
                };
                let took = self.floors[index].2.once()?;
                Ok(Answer::Ran(Sample { wall_us: took.as_secs_f64() * 1e6, ..Sample::default() }))
            }
            Request::Library { bundle, state, id } => {
                let took = self.library.once(&bundle, &state, &id)?;
                Ok(Answer::Ran(Sample { wall_us: took.as_secs_f64() * 1e6, ..Sample::default() }))
            }
            Request::Shim { argv, remove, marks } => {
                let mut container = background(&argv, &self.work.join("shim.log"))?;
                let memory = weigh(&["estiba-shim", "containerd-shim", "conmon"], &marks);
                let removed = self.run(&remove, Start::Spawn)?;
                container.wait()?;
                match (memory, removed.status) {
                    (Some(memory), 0) => Ok(Answer::Weighed(memory)),
                    (None, _) => Ok(Answer::Failed("no process that looks like a shim was seen".to_owned())),
                    (_, status) => Ok(Answer::Failed(format!("removal ended with {status}: {}", removed.stderr))),
                }
            }
            Request::Daemon { argv, log } => {
                self.daemons.push(background(&argv, &log)?);
                Ok(Answer::Found(None))
            }
        }
    }

    /// The first that fails is the sample of all.
    fn steps(&self, steps: &[Vec<String>]) -> io::Result<Sample> {
        let mut sum = Sample::default();
        for argv in steps {
            let sample = self.run(argv, Start::Spawn)?;
            if sample.status != 0 {
                return Ok(sample);
            }
            sum.wall_us += sample.wall_us;
            sum.user_us += sample.user_us;
            sum.system_us += sample.system_us;
        }
        Ok(sum)
    }

    fn at_once(&self, argv: &[String], count: usize) -> io::Result<Sample> {
        let program = Program::new(argv)?;
        let (nothing, log) = (File::open("/dev/null")?, File::create(self.work.join("at-once.log"))?);
        let begin = sys::monotonic();
        let start = || sys::spawn(&program, [nothing.as_fd(), nothing.as_fd(), log.as_fd()]);
        let pids = (0..count).map(|_| start()).collect::<Vec<_>>();
        let mut sample = Sample::default();
        for pid in pids {
            let ended = sys::wait4(pid?)?;
            sample.user_us += ended.user.as_secs_f64() * 1e6;
            sample.system_us += ended.system.as_secs_f64() * 1e6;
            let status = ExitStatus::from_raw(ended.status);
            sample.status = sample.status.max(status.code().unwrap_or(255));
        }
        sample.wall_us = sys::monotonic().saturating_sub(begin).as_secs_f64() * 1e6;
        if sample.status != 0 {
            let said = fs::read_to_string(self.work.join("at-once.log"))?;
            said.trim().clone_into(&mut sample.stderr);
        }
        Ok(sample)
    }

    fn run(&self, argv: &[String], start: Start) -> io::Result<Sample> {
        let program = Program::new(argv)?;
        let nothing = File::open("/dev/null")?;
        let paths = ["out", "err"].map(|name| self.work.join(format!("{}.{name}", std::process::id())));
        let (stdout, stderr) = (File::create(&paths[0])?, File::create(&paths[1])?);
        let streams = [nothing.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let watchdog = Watchdog::new();
        let begin = sys::monotonic();
        let pid = match start {
            Start::Spawn => sys::spawn(&program, streams)?,
            Start::Fork => sys::fork(&program, streams)?,
        };
        watchdog.watch(pid);
        let ended = sys::wait4(pid)?;
        let took = sys::monotonic().saturating_sub(begin);
        let status = ExitStatus::from_raw(ended.status);
        let text = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        Ok(Sample {
            wall_us: took.as_secs_f64() * 1e6,
            user_us: ended.user.as_secs_f64() * 1e6,
            system_us: ended.system.as_secs_f64() * 1e6,
            peak_kib: ended.peak_kib,
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: text(&paths[0])?,
            stderr: text(&paths[1])?,
        })
    }
}

/// Longer than any run takes; one that takes more hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// Ends a process that hangs, so that it is its contender that is out, and not the whole measurement. Its thread is there
/// before the clock starts.
#[derive(Debug)]
struct Watchdog(Sender<i32>);

impl Watchdog {
    fn new() -> Self {
        let (sender, watched) = mpsc::channel();
        std::thread::spawn(move || {
            let Ok(pid) = watched.recv() else { return };
            if watched.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        });
        Self(sender)
    }

    fn watch(&self, pid: i32) {
        let _ = self.0.send(pid);
    }
}

fn background(argv: &[String], log: &Path) -> io::Result<Child> {
    let output = File::create(log)?;
    let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let streams = (output.try_clone()?, output);
    Command::new(program).args(arguments).stdin(Stdio::null()).stdout(streams.0).stderr(streams.1).spawn()
}

/// Waits for a process to come and to become quiet, and reads what it holds.
fn weigh(names: &[impl AsRef<str>], marks: &[String]) -> Option<Memory> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let program = command.split('\0').next().unwrap_or_default();
            let last = program.rsplit('/').next().unwrap_or_default();
            let is_one = names.iter().any(|name| last.starts_with(name.as_ref()));
            if is_one && marks.iter().all(|mark| command.contains(mark.as_str())) {
                let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).ok()?;
                let field = |name: &str| -> u32 {
                    let line = rollup.lines().find(|line| line.starts_with(name));
                    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
                };
                return Some(Memory {
                    rss: field("Rss:"),
                    pss: field("Pss:"),
                    own: field("Private_Clean:") + field("Private_Dirty:"),
                });
            }
        }
    }
    None
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}
