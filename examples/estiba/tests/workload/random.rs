//! Eight commands at a time, of all kinds, on a small set of names, while one process of ours is killed every 200 ms.
//! Afterwards all that is recorded is so, nothing is left, nothing died that was not killed, and no status is lost.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::dice::{Dice, seed};
use crate::home::{Error, Home, Result};
use crate::image::{Layout, busybox};
use crate::killer::kill_until;
use crate::need::{Need, campaign, trial};
use crate::truth::{self, Told};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("random_commands_and_kills", &[Need::Busybox], random)]
}

const WORKERS: u64 = 8;
const NAMES: [&str; 6] = ["w0", "w1", "w2", "w3", "w4", "w5"];

/// What may be drawn: how likely, and the words. `{n}` and `{m}` stand for names, `{i}` for the image, `{d}` for a digit, `{f}`
/// for a folder.
const COMMANDS: &[(u64, &[&str])] = &[
    (8, &["run", "-d", "-l", "drawn", "--name", "{n}", "{i}", "sleep", "1000"]),
    (4, &["run", "-d", "-l", "drawn", "--name", "{n}", "{i}", "sh", "-c", "echo start; sleep 0.{d}; exit {d}"]),
    (2, &["run", "-d", "--rm", "-l", "drawn", "--name", "{n}", "{i}", "sleep", "0.{d}"]),
    (4, &["run", "--rm", "-l", "drawn", "--name", "{n}", "{i}", "sh", "-c", "sleep 0.{d}"]),
    (2, &["run", "-d", "--restart", "on-failure:2", "-l", "drawn", "--name", "{n}", "{i}", "false"]),
    (1, &["run", "-d", "--restart", "always", "-l", "drawn", "--name", "{n}", "{i}", "sleep", "0.{d}"]),
    (
        1,
        &[
            "run",
            "-d",
            "--health-cmd",
            "true",
            "--health-interval",
            "300ms",
            "-l",
            "drawn",
            "--name",
            "{n}",
            "{i}",
            "sleep",
            "1000",
        ],
    ),
    (4, &["create", "-l", "drawn", "--name", "{n}", "{i}", "sleep", "1000"]),
    (8, &["start", "{n}"]),
    (4, &["stop", "-t", "0", "{n}"]),
    (4, &["kill", "{n}"]),
    (1, &["kill", "-s", "STOP", "{n}"]),
    (4, &["restart", "-t", "0", "{n}"]),
    (2, &["pause", "{n}"]),
    (4, &["unpause", "{n}"]),
    (3, &["rename", "{n}", "{m}"]),
    (4, &["rm", "{n}"]),
    (6, &["rm", "-f", "{n}", "{m}"]),
    (6, &["exec", "{n}", "echo", "inside"]),
    (2, &["exec", "-d", "{n}", "sleep", "0.{d}"]),
    (3, &["exec", "{n}", "sleep", "0.{d}"]),
    (3, &["ps", "-a"]),
    (2, &["inspect", "{n}"]),
    (2, &["logs", "{n}"]),
    (1, &["logs", "-f", "{n}"]),
    (1, &["attach", "--no-stdin", "{n}"]),
    (2, &["wait", "{n}"]),
    (1, &["top", "{n}"]),
    (1, &["stats", "--no-stream", "{n}"]),
    (2, &["update", "--memory", "64m", "--memory-swap", "64m", "{n}"]),
    (1, &["update", "--restart", "no", "{n}"]),
    (1, &["cp", "{f}", "{n}:/tmp"]),
    (1, &["cp", "{n}:/etc/passwd", "-"]),
    (1, &["diff", "{n}"]),
    (1, &["export", "-o", "/dev/null", "{n}"]),
    (1, &["commit", "{n}", "made/image:{d}"]),
    (1, &["rmi", "made/image:{d}"]),
    (1, &["images"]),
    (1, &["events", "--since", "1s", "--until", "0s"]),
    (1, &["container", "prune", "-f", "--filter", "label=drawn"]),
    (1, &["system", "df"]),
];

/// Commands that go on for as long as the container does; they are left after a second.
const ENDLESS: [&str; 3] = ["logs", "attach", "wait"];

/// Longer than any command takes here.
const PATIENCE: Duration = Duration::from_secs(60);

/// Containers of which nothing may be lost: their shims are not killed, and nobody is told their names.
const SPARED: [&str; 2] = ["keep-", "exit-"];

fn random(home: &Home) -> Result {
    let seed = seed();
    println!("ESTIBA_SEED={seed}");
    whole(home, seed).map_err(|error| format!("ESTIBA_SEED={seed}:\n{error}").into())
}

fn whole(home: &Home, seed: u64) -> Result {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    let keepers = (0..3).map(|number| Keeper::start(home, &image, number)).collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    let root = home.root();
    let (done, hits) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_until(&stop, &root, seed, &SPARED));
        let workers = (0..WORKERS).map(|number| {
            let (image, stop) = (&image, &stop);
            scope.spawn(move || Worker::new(home, image, seed, number).work(stop))
        });
        let workers: Vec<_> = workers.collect();
        let end = Instant::now() + Duration::from_secs(if campaign() { 300 } else { 15 });
        while Instant::now() < end && workers.iter().all(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let done = workers.into_iter().map(|worker| worker.join().map_err(|_| Error::from("a worker panicked"))?);
        let done = done.collect::<Result<Vec<_>>>();
        (done, killer.join())
    });
    let hits = hits.map_err(|_| "the killer panicked")?;
    let done = done?;
    let sum = |count: fn(&Done) -> u32| done.iter().map(count).sum::<u32>();
    println!(
        "{} commands, {} of them done, {} killed, {} left; killed: {hits:?}",
        sum(|done| done.commands),
        sum(|done| done.well),
        sum(|done| done.killed),
        sum(|done| done.left),
    );
    if sum(|done| done.well) * 10 < sum(|done| done.commands) {
        return Err("fewer than a tenth of the commands were done: this tests nothing".into());
    }
    // The next ordinary command sets right whatever was left.
    home.run(&["ps", "-a"])?.expect_status(0)?;
    let told = truth::holds(home)?;
    for keeper in keepers {
        keeper.check(home, &told)?;
    }
    let promised: BTreeMap<&str, i32> =
        done.iter().flat_map(|done| &done.exits).map(|(name, status)| (name.as_str(), *status)).collect();
    statuses(home, &promised)?;
    remove_all(home)?;
    home.check()
}

/// Each container that was started to end with a status has done so.
fn statuses(home: &Home, promised: &BTreeMap<&str, i32>) -> Result {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let told = truth::told(home)?;
        let mut wrong = Vec::new();
        for (name, status) in promised {
            match told.iter().find(|told| told.name == *name) {
                Some(told) if told.status == "exited" && told.code == *status => {}
                other => wrong.push(format!("{name} should have ended with {status}: {other:?}")),
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        // The last of them may still be on their way.
        if Instant::now() > deadline {
            return Err(wrong.join("\n").into());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn remove_all(home: &Home) -> Result {
    let ids: Vec<String> = truth::told(home)?.into_iter().map(|told| told.id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    if !ids.is_empty() {
        home.run(&[&["rm", "-f"], &ids[..]].concat())?.expect_status(0)?;
    }
    let left = truth::told(home)?;
    if left.is_empty() { Ok(()) } else { Err(format!("they stay after rm -f: {left:?}").into()) }
}

/// What a worker has seen.
#[derive(Debug, Default)]
struct Done {
    commands: u32,
    well: u32,
    killed: u32,
    left: u32,
    /// Containers that were started to end by themselves with a status.
    exits: Vec<(String, i32)>,
}

#[derive(Debug)]
struct Worker<'a> {
    home: &'a Home,
    image: &'a str,
    number: u64,
    dice: Dice,
    done: Done,
}

impl<'a> Worker<'a> {
    fn new(home: &'a Home, image: &'a str, seed: u64, number: u64) -> Self {
        Self { home, image, number, dice: Dice::new(seed, number), done: Done::default() }
    }

    fn work(mut self, stop: &AtomicBool) -> Result<Done> {
        while !stop.load(Ordering::Relaxed) {
            if self.dice.below(12) == 0 {
                self.exit()?;
            } else {
                let words = self.draw();
                self.command(&words)?;
            }
        }
        Ok(self.done)
    }

    /// A container that ends with a status of its own.
    fn exit(&mut self) -> Result {
        let (name, status) = (format!("exit-{}-{}", self.number, self.done.commands), self.dice.below(200) as i32);
        let script = format!("sleep 0.{}; exit {status}", self.dice.below(5));
        let words = ["run", "-d", "--name", &name, self.image, "sh", "-c", &script].map(str::to_owned);
        if self.command(&words)? {
            self.done.exits.push((name, status));
        }
        Ok(())
    }

    fn draw(&mut self) -> Vec<String> {
        let mut at = self.dice.below(COMMANDS.iter().map(|(weight, _)| weight).sum());
        let drawn = COMMANDS.iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let (_, words) = drawn.unwrap_or(&COMMANDS[0]);
        let (name, other) = (*self.dice.one_of(&NAMES), *self.dice.one_of(&NAMES));
        let digit = self.dice.below(10).to_string();
        let folder = self.home.folder().join("busybox/blobs").display().to_string();
        let fill = |word: &&str| {
            let word = word.replace("{n}", name).replace("{m}", other).replace("{i}", self.image);
            word.replace("{d}", &digit).replace("{f}", &folder)
        };
        words.iter().map(fill).collect()
    }

    /// Runs a command; whether it has done what it was told. That it could not, since others were quicker, is no failure; that it
    /// hangs, or says something else than why, is one.
    fn command(&mut self, words: &[String]) -> Result<bool> {
        self.done.commands += 1;
        let endless = ENDLESS.contains(&words[0].as_str());
        let patience = if endless { Duration::from_secs(1) } else { PATIENCE };
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.home.command(&arguments);
        let mut child = command.stdout(out.try_clone()?).stderr(err.try_clone()?).stdin(Stdio::null()).spawn()?;
        let told = |what: String| Error::from(format!("`estiba {}` {what}", words.join(" ")));
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if begin.elapsed() > patience {
                if !endless {
                    let stacks = stacks(&child);
                    end(&mut child)?;
                    return Err(told(format!("did not end within {patience:?}; it waits in {stacks}")));
                }
                end(&mut child)?;
                self.done.left += 1;
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if status.signal() == Some(9) {
            self.done.killed += 1;
            return Ok(false);
        }
        let text = |file: &mut std::fs::File| -> Result<String> {
            let mut bytes = Vec::new();
            std::io::Seek::rewind(file)?;
            std::io::Read::read_to_end(file, &mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (_out, said) = (text(&mut out)?, text(&mut err)?);
        for word in ["panicked", "damaged", "RUST_BACKTRACE", "unrecognized subcommand", "unexpected argument"] {
            if said.contains(word) {
                return Err(told(format!("said: {said}")));
            }
        }
        if status.signal().is_some() {
            return Err(told(format!("ended with {status}: {said}")));
        }
        if status.success() {
            self.done.well += 1;
        } else if said.is_empty() && !matches!(words[0].as_str(), "run" | "exec" | "attach" | "wait" | "start") {
            return Err(told(format!("ended with {status} and did not say why")));
        }
        Ok(status.success())
    }
}

fn end(child: &mut Child) -> Result {
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// What each thread of a process waits for in the kernel.
fn stacks(child: &Child) -> String {
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id()));
    let waits = threads.into_iter().flatten().flatten().map(|thread| {
        let read = |name: &str| std::fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        format!("{} ({})", read("wchan"), read("syscall").trim())
    });
    waits.collect::<Vec<_>>().join(", ")
}

/// A container that nobody touches, and that counts.
#[derive(Debug)]
struct Keeper {
    name: String,
    told: Told,
}

impl Keeper {
    fn start(home: &Home, image: &str, number: u32) -> Result<Self> {
        let name = format!("keep-{number}");
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
        home.run(&["run", "-d", "--name", &name, image, "sh", "-c", script])?.expect_status(0)?;
        let told = truth::told(home)?.into_iter().find(|told| told.name == name);
        Ok(Self { told: told.ok_or("a container that was just started is not there")?, name })
    }

    /// It is the same process, it answers, and nothing of what it counted is missing.
    fn check(&self, home: &Home, all: &[Told]) -> Result {
        let now = all.iter().find(|told| told.name == self.name);
        if now.is_none_or(|now| now.pid != self.told.pid || now.status != "running") {
            return Err(format!("{} died, and nobody killed it: {:?}, now {now:?}", self.name, self.told).into());
        }
        home.run(&["exec", &self.name, "echo", "here"])?.expect_out("here\n")?;
        let logs = home.run(&["logs", &self.name])?.expect_status(0)?;
        let mut count = 0;
        for line in logs.out.lines() {
            count += 1;
            if line != count.to_string() {
                return Err(format!("{}: {line:?} where {count} should be", self.name).into());
            }
        }
        if count < 50 { Err(format!("{} has counted to {count} only", self.name).into()) } else { Ok(()) }
    }
}
