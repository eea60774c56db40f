//! Runs what the plan says, and tells the harness over the second serial line.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::keeper::power_off;
use super::trial::Trial;
use crate::Result;
use crate::plan::{Binary, Message, Outcome, PAYLOAD, Plan, SCRIPT, User, Work};
use crate::system;

/// The line to the harness.
#[derive(Debug)]
struct Line(File);

impl Line {
    fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/ttyS1")?;
        let mut settings = tcgetattr(&file)?;
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        Ok(Self(file))
    }

    fn say(&mut self, message: &Message) -> Result {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        Ok(())
    }
}

pub(super) fn run() -> Result {
    let mut line = Line::open()?;
    let told = work(&mut line);
    if let Err(error) = told {
        line.say(&Message::Trouble { text: error.to_string() })?;
    }
    line.say(&Message::Done)?;
    nix::sys::termios::tcdrain(&line.0)?;
    power_off();
    Ok(())
}

fn work(line: &mut Line) -> Result {
    let plan: Plan = serde_json::from_slice(&fs::read(Path::new(PAYLOAD).join("plan.json"))?)?;
    for place in &plan.places {
        let parent = place.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(|error| format!("make {}: {error}", parent.display()))?;
        symlink(&place.target, &place.path).map_err(|error| format!("link {}: {error}", place.path.display()))?;
    }
    // The tests' programs are found by their names.
    for entry in fs::read_dir(Path::new(PAYLOAD).join("bin"))?.flatten() {
        let _ = symlink(entry.path(), Path::new("/usr/local/bin").join(entry.file_name()));
    }
    fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))?;
    if plan.user == User::Delegated {
        wait_for_session()?;
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    line.say(&Message::Ready { kernel: kernel.trim().to_owned() })?;
    match &plan.work {
        Work::Shell => {
            Command::new("/bin/bash").arg("-l").current_dir("/root").status()?;
        }
        Work::Tests { binaries, scripts } => {
            for script in scripts {
                let mut command = as_user(plan.user, Path::new("/"));
                command.args(["/bin/sh", "-c", script]);
                one(line, &plan, SCRIPT, script, command)?;
            }
            for binary in binaries {
                if let Err(error) = of(line, &plan, binary) {
                    line.say(&Message::Trouble { text: format!("{}: {error}", binary.name) })?;
                }
            }
        }
    }
    Ok(())
}

/// The user's own service manager has to stand before it can be asked for anything.
fn wait_for_session() -> Result {
    let begun = Instant::now();
    let bus = format!("/run/user/{}/bus", system::DELEGATED.1);
    while !Path::new(&bus).exists() {
        if begun.elapsed() > Duration::from_secs(120) {
            return Err(format!("there is no {bus}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A command to which a program and its arguments are added.
fn as_user(user: User, folder: &Path) -> Command {
    let (name, id) = match user {
        User::Root => {
            let mut command = Command::new("/usr/bin/env");
            command.current_dir(folder);
            return command;
        }
        User::Delegated => system::DELEGATED,
        User::Plain => system::PLAIN,
    };
    let mut command = Command::new("/usr/bin/setpriv");
    let id = id.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--reset-env", "/usr/bin/env"]);
    command.arg(format!("HOME=/home/{name}")).arg(format!("USER={name}")).current_dir(folder);
    command.arg("PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
    if user == User::Delegated {
        command.arg(format!("XDG_RUNTIME_DIR=/run/user/{id}"));
        command.arg(format!("DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{id}/bus"));
        command.args([
            "/usr/bin/systemd-run",
            "--user",
            "--quiet",
            "--pipe",
            "--wait",
            "--collect",
            "-p",
            "Delegate=yes",
        ]);
        command.arg(format!("--working-directory={}", folder.display()));
    }
    command
}

/// Runs the tests of a binary whose names contain the filter, each in a process of its own.
fn of(line: &mut Line, plan: &Plan, binary: &Binary) -> Result {
    let list = |ignored: &[&str]| -> Result<String> {
        let mut command = as_user(plan.user, &binary.folder);
        command.arg(&binary.program).args(["--list", "--format", "terse"]).args(ignored);
        let output = command.output()?;
        if !output.status.success() {
            return Err(format!("--list: {} {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ignored: Vec<(String, String)> = list(&["--ignored"])?.lines().filter_map(listed).collect();
    for (reason, test) in list(&[])?.lines().filter_map(listed) {
        if !test.contains(&binary.filter) {
            continue;
        }
        if ignored.iter().any(|(_, name)| *name == test) {
            let outcome = Outcome::Ignored(reason);
            let (binary, output) = (binary.name.clone(), String::new());
            line.say(&Message::Ended { binary, test, outcome, seconds: 0.0, output })?;
            continue;
        }
        let mut command = as_user(plan.user, &binary.folder);
        command.arg(&binary.program).args(["--exact", "--nocapture", &test]);
        one(line, plan, &binary.name, &test, command)?;
    }
    Ok(())
}

/// `[kind] name: test`, where the kind is the reason why a test cannot run.
fn listed(line: &str) -> Option<(String, String)> {
    let line = line.strip_suffix(": test")?;
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((kind, name)) => Some((kind.to_owned(), name.to_owned())),
        None => Some((String::new(), line.to_owned())),
    }
}

fn one(line: &mut Line, plan: &Plan, binary: &str, test: &str, command: Command) -> Result {
    line.say(&Message::Begun { binary: binary.to_owned(), test: test.to_owned() })?;
    let begun = Instant::now();
    let (outcome, output) = Trial::run(command, Duration::from_secs(plan.test_limit))?;
    line.say(&Message::Ended {
        binary: binary.to_owned(),
        test: test.to_owned(),
        outcome,
        seconds: begun.elapsed().as_secs_f64(),
        output,
    })
}
