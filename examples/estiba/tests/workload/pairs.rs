//! Each two commands on one container at once: one wins, the other says why, and what is recorded is so.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::home::{Ended, Error, Home, Result};
use crate::image::{Layout, busybox};
use crate::need::{Need, campaign, trial};
use crate::truth;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("two_commands_on_one_container", &[Need::Busybox], pairs),
        trial("two_for_one_name", &[Need::Busybox], one_name),
    ]
}

/// What is done to the container `{n}`; the first half also in the short version.
const COMMANDS: [&[&str]; 18] = [
    &["start", "{n}"],
    &["stop", "-t", "0", "{n}"],
    &["rm", "{n}"],
    &["rm", "-f", "{n}"],
    &["exec", "{n}", "true"],
    &["rename", "{n}", "renamed"],
    &["restart", "-t", "0", "{n}"],
    &["pause", "{n}"],
    &["kill", "{n}"],
    &["unpause", "{n}"],
    &["update", "--memory", "64m", "--memory-swap", "64m", "{n}"],
    &["logs", "{n}"],
    &["top", "{n}"],
    &["inspect", "{n}"],
    &["diff", "{n}"],
    &["export", "-o", "/dev/null", "{n}"],
    &["cp", "{n}:/etc/passwd", "-"],
    &["commit", "{n}", "made/of-a-pair:1"],
];

#[derive(Debug, Clone, Copy)]
enum State {
    Created,
    Running,
    Paused,
    Exited,
}

fn pairs(home: &Home) -> Result {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    let (states, commands) = if campaign() {
        (&[State::Created, State::Running, State::Paused, State::Exited][..], &COMMANDS[..])
    } else {
        (&[State::Created, State::Running][..], &COMMANDS[..9])
    };
    for state in states {
        let mut alone = Vec::new();
        for command in commands {
            make(home, &image, *state)?;
            alone.push(together(home, &[command])?.remove(0).status.success());
            remove(home)?;
        }
        for (first, one) in commands.iter().enumerate() {
            for (second, other) in commands.iter().enumerate().skip(first) {
                make(home, &image, *state)?;
                pair(home, [one, other], alone[first] || alone[second])
                    .map_err(|error| format!("{one:?} and {other:?} on a container that is {state:?}:\n{error}"))?;
                remove(home)?;
            }
        }
    }
    home.run(&["rmi", "-f", "made/of-a-pair:1"])?;
    Ok(())
}

fn pair(home: &Home, commands: [&[&str]; 2], one_must_win: bool) -> Result {
    let ended = together(home, &commands)?;
    for (ended, command) in ended.iter().zip(commands) {
        let why = &ended.err;
        let told = why.lines().count() == 1 && why.starts_with("estiba: ");
        if !ended.status.success() && !told {
            return Err(format!("{command:?} ended with {} and said {why:?}", ended.status).into());
        }
    }
    if one_must_win && ended.iter().all(|ended| !ended.status.success()) {
        return Err(format!("none of them won: {ended:?}").into());
    }
    truth::holds(home)?;
    Ok(())
}

fn make(home: &Home, image: &str, state: State) -> Result {
    let run = |words: &[&str]| -> Result { home.run(words)?.expect_status(0).map(|_| ()) };
    match state {
        State::Created => run(&["create", "--name", "pair", image, "sleep", "1000"]),
        State::Running => run(&["run", "-d", "--name", "pair", image, "sleep", "1000"]),
        State::Paused => {
            run(&["run", "-d", "--name", "pair", image, "sleep", "1000"])?;
            run(&["pause", "pair"])
        }
        State::Exited => run(&["run", "--name", "pair", image, "true"]),
    }
}

fn remove(home: &Home) -> Result {
    let ids: Vec<String> = truth::told(home)?.into_iter().map(|told| told.id).collect();
    for id in ids {
        home.run(&["rm", "-f", &id])?.expect_status(0)?;
    }
    truth::holds(home)?;
    Ok(())
}

/// Starts all at once, and waits for all.
fn together(home: &Home, commands: &[&[&str]]) -> Result<Vec<Ended>> {
    let mut started = Vec::new();
    for command in commands {
        let words: Vec<String> = command.iter().map(|word| word.replace("{n}", "pair")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command: Command = home.command(&words);
        let command = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        started.push((words.join(" "), command.spawn()?, out, err));
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    // Who waits for a process that the other has frozen waits until it is thawed.
    let mut frozen =
        commands.iter().any(|command| command[0] == "pause").then(|| Instant::now() + Duration::from_secs(5));
    let mut ended = Vec::new();
    for (words, mut child, mut out, mut err) in started {
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if frozen.is_some_and(|moment| Instant::now() > moment) {
                frozen = None;
                home.run(&["unpause", "pair"])?;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(format!("`estiba {words}` hangs").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = |file: &mut std::fs::File| -> Result<String> {
            let mut bytes = Vec::new();
            std::io::Seek::rewind(file)?;
            std::io::Read::read_to_end(file, &mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        ended.push(Ended { status, out: text(&mut out)?, err: text(&mut err)? });
    }
    Ok(ended)
}

/// Where only one can win, one does.
fn one_name(home: &Home) -> Result {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    let image = image.as_str();
    for round in 0..if campaign() { 50 } else { 5 } {
        let create: &[&str] = &["create", "--name", "pair", image, "true"];
        exactly_one(home, &[create, create, create], round)?;
        remove(home)?;
        let run: &[&str] = &["run", "-d", "--name", "pair", image, "sleep", "1000"];
        exactly_one(home, &[run, run, create], round)?;
        remove(home)?;
        for name in ["one", "two"] {
            home.run(&["create", "--name", name, image, "true"])?.expect_status(0)?;
        }
        exactly_one(home, &[&["rename", "one", "pair"], &["rename", "two", "pair"], create], round)?;
        exactly_one(home, &[&["rm", "pair"], &["rm", "pair"]], round)?;
        remove(home)?;
    }
    Ok(())
}

fn exactly_one(home: &Home, commands: &[&[&str]], round: u32) -> Result {
    let ended = together(home, commands)?;
    let winners = ended.iter().filter(|ended| ended.status.success()).count();
    if winners != 1 {
        return Err(Error::from(format!("{winners} have won in round {round}: {commands:?}: {ended:?}")));
    }
    truth::holds(home)?;
    Ok(())
}
