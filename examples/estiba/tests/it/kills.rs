//! SIGKILL at random moments, of the command, of its shim, and of both, while other containers go on. What is left is
//! found and removed by the next ordinary run.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::Trial;

use crate::home::{Error, HELLO, Home, Result, until, wait};
use crate::need::{campaign, trial};
use crate::processes;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("kill_of_the_command", &[], |home| kills(home, Victim::Command)),
        trial("kill_of_the_shim", &[], |home| kills(home, Victim::Shim)),
        trial("kill_of_both", &[], |home| kills(home, Victim::Both)),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Command,
    Shim,
    Both,
}

/// A container that says what it hears.
#[derive(Debug)]
struct Parrot {
    child: Child,
    ear: ChildStdin,
    mouth: BufReader<ChildStdout>,
}

impl Parrot {
    fn start(home: &Home) -> Result<Self> {
        let mut child =
            home.command(&["run", "--rm", "-i", HELLO, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ear, mouth) = (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
        let mut parrot = Self { child, ear, mouth: BufReader::new(mouth) };
        parrot.answers("first")?;
        Ok(parrot)
    }

    fn answers(&mut self, word: &str) -> Result {
        writeln!(self.ear, "{word}")?;
        let mut line = String::new();
        self.mouth.read_line(&mut line)?;
        if line.trim_end() == word { Ok(()) } else { Err(format!("it said {line:?} to {word:?}").into()) }
    }

    fn end(mut self) -> Result {
        drop(self.ear);
        let status = wait(&mut self.child)?;
        if status.success() { Ok(()) } else { Err(format!("another container ended with {status}").into()) }
    }
}

/// A small generator: the moments are random, and the same again with the same seed.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn kills(home: &Home, victim: Victim) -> Result {
    let given = std::env::var("ESTIBA_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = given.unwrap_or(now).max(1);
    let mut dice = Dice(seed);
    let mut others = (0..3).map(|_| Parrot::start(home)).collect::<Result<Vec<_>>>()?;
    // How long a run takes here, so that the moments fall on all of it.
    let begin = std::time::Instant::now();
    home.run(&["run", "--rm", HELLO, "exit", "0"])?.expect_status(0)?;
    let whole = begin.elapsed().as_micros() as u64 + 20_000;
    let before = home.look();
    let shims = shims();
    for number in 0..if campaign() { 50 } else { 5 } {
        let moment = Duration::from_micros(dice.below(whole));
        let told = |error: Error| {
            let how = format!("ESTIBA_SEED={seed}, {victim:?} number {number}, killed after {moment:?}");
            format!("{how}:\n{error}")
        };
        strike(home, victim, moment, &shims).map_err(told)?;
        let word = format!("after {number}");
        home.run(&["run", "--rm", HELLO, "echo", &word])
            .and_then(|ended| ended.expect_out(&format!("{word}\n")))
            .map_err(told)?;
        home.settled_as(&before, |_| true).map_err(told)?;
        for other in &mut others {
            other.answers(&word).map_err(told)?;
        }
    }
    others.into_iter().try_for_each(Parrot::end)
}

fn shims() -> Vec<i32> {
    processes::below().iter().filter(|process| process.is_shim()).map(|process| process.pid).collect()
}

/// Starts a run, lets it go on for a while, and kills.
fn strike(home: &Home, victim: Victim, moment: Duration, others: &[i32]) -> Result {
    let mut command = home.command(&["run", "--rm", HELLO, "sleep", "0.02"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    std::thread::sleep(moment);
    // It starts as a copy of the command, and gets its name by its first execve; where it is not there yet (or any more)
    // this is a kill of nothing, as it may happen.
    let own = || shims().into_iter().filter(|pid| !others.contains(pid)).collect::<Vec<_>>();
    let mut killed = if victim == Victim::Command { Vec::new() } else { own() };
    if victim != Victim::Shim {
        child.kill()?;
    }
    killed.iter().copied().for_each(processes::end);
    let status = wait(&mut child)?;
    if victim == Victim::Both {
        // One that the command has started in its last moment.
        let late = own();
        late.iter().copied().for_each(processes::end);
        killed.extend(late);
    }
    if victim == Victim::Shim && status.code().is_none() {
        return Err(format!("the command ended with {status} as its shim was killed").into());
    }
    // Of the command alone the container goes on, and its shim removes it in the end. One that was killed is gone only
    // when it has ended: until then it holds its lock.
    until("the end of the shim", || own().is_empty() && killed.iter().copied().all(processes::has_ended))?;
    Ok(())
}
