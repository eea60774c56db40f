//! Logs under rotation: no line is lost or doubled, whoever reads them and dies.

use std::io::{BufRead, BufReader};
use std::process::{ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::dice::{Dice, seed};
use crate::home::{Error, Home, Result, wait};
use crate::image::{Layout, busybox};
use crate::need::{Need, campaign, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("logs_lose_nothing_under_rotation", &[Need::Busybox], all_is_kept),
        trial("logs_keep_the_last_files", &[Need::Busybox], the_last_is_kept),
    ]
}

fn lines() -> u64 {
    if campaign() { 10_000_000 } else { 100_000 }
}

/// Numbers that follow each other.
#[derive(Debug, Default)]
struct Run {
    first: Option<u64>,
    last: Option<u64>,
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    AtALine,
    /// Perhaps within a line, as for one who attaches.
    Anywhere,
}

impl Run {
    /// Reads numbered lines to the end of a stream, which may end within a line.
    fn read(stream: ChildStdout, begins: Begins) -> Result<Self> {
        let mut run = Self::default();
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        let mut line = Vec::new();
        if begins == Begins::Anywhere {
            reader.read_until(b'\n', &mut line)?;
        }
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
                return Ok(run);
            }
            let text = std::str::from_utf8(&line[..line.len() - 1])?;
            let number: u64 = text.parse().map_err(|_| Error::from(format!("{text:?} is no numbered line")))?;
            if let Some(last) = run.last.filter(|last| number != last + 1) {
                return Err(format!("{number} follows {last}").into());
            }
            run.first.get_or_insert(number);
            run.last = Some(number);
        }
    }
}

/// Starts a container that writes numbered lines, and reads it by many readers that are killed, until it has ended.
fn write_and_read(home: &Home, options: &[&str], endings: &[&[&str]]) -> Result {
    let seed = seed();
    println!("ESTIBA_SEED={seed}");
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    let count = lines().to_string();
    let words = [&["run", "-d", "--name", "writer"], options, &[&image, "seq", "1", &count]].concat();
    home.run(&words)?.expect_status(0)?;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = endings
            .iter()
            .enumerate()
            .map(|(number, words)| {
                let ended = &ended;
                scope.spawn(move || {
                    let mut dice = Dice::new(seed, number as u64);
                    let mut read = 0;
                    while !ended.load(Ordering::Relaxed) {
                        let killed_after = Duration::from_millis(20 + dice.below(1500));
                        read += one_reader(home, words, killed_after)
                            .map_err(|error| format!("{words:?}, killed after {killed_after:?}: {error}"))?;
                    }
                    Ok::<_, Error>(read)
                })
            })
            .collect();
        let waited = home.run(&["wait", "writer"]).and_then(|waited| waited.expect_out("0\n"));
        ended.store(true, Ordering::Relaxed);
        for reader in readers {
            let read = reader.join().map_err(|_| "a reader panicked")??;
            println!("a reader that was killed again and again has read {read} lines");
        }
        waited.map(|_| ())
    })
    .map_err(|error: Error| format!("ESTIBA_SEED={seed}: {error}").into())
}

/// A reader that is killed after a while; how many lines it has read.
fn one_reader(home: &Home, words: &[&str], killed_after: Duration) -> Result<u64> {
    let mut child = home.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stream = child.stdout.take().ok_or("no stdout")?;
    let run = std::thread::scope(|scope| {
        let begins = if words[0] == "attach" { Begins::Anywhere } else { Begins::AtALine };
        let reader = scope.spawn(move || Run::read(stream, begins));
        std::thread::sleep(killed_after);
        let _ = child.kill();
        let _ = child.wait();
        reader.join().map_err(|_| Error::from("a reader panicked"))?
    })?;
    let from_the_start = words == ["logs", "-f", "writer"];
    if from_the_start && run.first.is_some_and(|first| first != 1) {
        return Err(format!("it began with {:?}", run.first).into());
    }
    Ok(run.first.zip(run.last).map_or(0, |(first, last)| last + 1 - first))
}

fn logged(home: &Home) -> Result<Run> {
    let mut child = home.command(&["logs", "writer"]).stdout(Stdio::piped()).spawn()?;
    let run = Run::read(child.stdout.take().ok_or("no stdout")?, Begins::AtALine);
    let status = wait(&mut child)?;
    if status.success() { run } else { Err(format!("logs ended with {status}").into()) }
}

fn all_is_kept(home: &Home) -> Result {
    let readers: [&[&str]; 4] = [
        &["logs", "-f", "writer"],
        &["logs", "-f", "writer"],
        &["logs", "-f", "--tail", "10", "writer"],
        &["attach", "--no-stdin", "--sig-proxy=false", "writer"],
    ];
    write_and_read(home, &["--log-opt", "max-size=1m", "--log-opt", "max-file=2000"], &readers)?;
    let run = logged(home)?;
    if (run.first, run.last) != (Some(1), Some(lines())) {
        return Err(format!("the log has {run:?}").into());
    }
    let lines_of = |words: &[&str]| -> Result<Vec<String>> {
        Ok(home.run(words)?.expect_status(0)?.out.lines().map(str::to_owned).collect())
    };
    let tail = lines_of(&["logs", "--tail", "5", "writer"])?;
    let expected: Vec<String> = (lines() - 4..=lines()).map(|number| number.to_string()).collect();
    assert_eq!(tail, expected);
    home.run(&["rm", "writer"])?.expect_status(0)?;
    Ok(())
}

fn the_last_is_kept(home: &Home) -> Result {
    let readers: [&[&str]; 1] = [&["attach", "--no-stdin", "--sig-proxy=false", "writer"]];
    write_and_read(home, &["--log-opt", "max-size=100k", "--log-opt", "max-file=3"], &readers)?;
    let run = logged(home)?;
    let kept = run.first.map_or(0, |first| lines() + 1 - first);
    // A line takes some 75 bytes in a file; at least two whole files are there, and at most three.
    if run.last != Some(lines()) || !(2000..=4500).contains(&kept) {
        return Err(format!("the log has {run:?}, {kept} lines").into());
    }
    home.run(&["rm", "writer"])?.expect_status(0)?;
    Ok(())
}
