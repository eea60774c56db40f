//! A place in which `estiba` works: its own root, run folder and cgroup parent.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::need::campaign;
use crate::processes;
use crate::world::{World, hierarchies};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T = ()> = std::result::Result<T, Error>;

/// Longer than any run takes on a loaded machine; a run that takes more hangs.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(if campaign() { 600 } else { 40 })
}

/// The image inside the program.
pub(crate) const HELLO: &str = "embedded:hello";

static HOMES: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(crate) struct Home {
    folder: TempDir,
    cgroup: String,
    before: World,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    pub(crate) fn expect_status(self, status: i32) -> Result<Self> {
        if self.status.code() == Some(status) {
            return Ok(self);
        }
        Err(format!("{} instead of exit status {status}\nstdout: {}\nstderr: {}", self.status, self.out, self.err)
            .into())
    }

    pub(crate) fn expect_out(self, out: &str) -> Result<Self> {
        let ended = self.expect_status(0)?;
        if ended.out == out {
            return Ok(ended);
        }
        Err(format!("it said {:?} instead of {out:?}\nstderr: {}", ended.out, ended.err).into())
    }
}

impl Home {
    /// A home in which the embedded image has run once: what stays of that is there before any trial.
    pub(crate) fn new() -> Result<Self> {
        let mut home = Self::bare()?;
        home.run(&["run", "--rm", HELLO, "exit", "0"])?.expect_status(0)?;
        let of_the_run = |difference: &str| difference.contains(": process") || difference.contains(": cgroup");
        home.settled_as(&World::default(), of_the_run)?;
        home.before = home.look();
        Ok(home)
    }

    fn bare() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("estiba-test-").tempdir()?;
        let number = HOMES.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/estiba-test-{}-{number}", std::process::id());
        Ok(Self { folder, cgroup, before: World::default() })
    }

    /// The folder for a trial's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The program's file: `ESTIBA_PROGRAM`, or the one that was built with the tests.
    pub(crate) fn program() -> &'static str {
        static PROGRAM: LazyLock<String> = LazyLock::new(|| {
            std::env::var("ESTIBA_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_estiba").to_owned())
        });
        &PROGRAM
    }

    /// The options of all commands.
    pub(crate) fn options(&self) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let words = ["--root", &path("root"), "--run-root", &path("run"), "--cgroup-parent", &self.cgroup];
        words.map(str::to_owned).to_vec()
    }

    /// `estiba` with this home and these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Self::program());
        command.args(self.options()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `estiba` to its end, with nothing on its standard input.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Ended> {
        finish(&mut self.command(arguments))
    }

    /// The world below this home as it is now.
    pub(crate) fn look(&self) -> World {
        processes::reap();
        World::look(&[self.root(), self.folder.path().join("run")], &self.cgroup)
    }

    /// Nothing may be left of what was run but images: their blobs, their layers' snapshots and the locks of their store. A shim that has answered
    /// its last call still needs a moment to go.
    pub(crate) fn check(&self) -> Result {
        let of_images = ["content", "snapshots", "leases"].map(|name| self.root().join(name));
        // Nor may the monitor stay when there is nothing to watch over, but for its lock's file.
        let deadline = Instant::now() + Duration::from_secs(30);
        while processes::below().iter().any(processes::Process::is_monitor) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.settled_as(&self.before, |difference| {
            if difference.ends_with("/monitor.lock") || difference.ends_with("/monitor.gate") {
                return false;
            }
            let path = Path::new(difference.rsplit_once(": file ").map_or("", |(_, path)| path));
            // The default network keeps its definition, and where its next address is looked for; addresses and attachments it may not.
            let networks = self.root().join("networks");
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let definition = path.extension().is_some_and(|extension| extension == "json") || path.is_dir();
            let place = name == "lock" || name.starts_with("last_reserved_ip.");
            if path == self.folder.path().join("run/networks") || path.starts_with(&networks) && (definition || place) {
                return false;
            }
            let of_an_image = of_images.iter().any(|folder| path.starts_with(folder));
            // The folders of volumes are made for the first one.
            let volumes = self.root().join("volumes");
            if path == volumes || path == volumes.join(".tmp") {
                return false;
            }
            !of_an_image || path.parent().is_some_and(|parent| parent.ends_with("active"))
        })
    }

    /// The same, with another state to come back to.
    pub(crate) fn settled_as(&self, before: &World, counts: impl Fn(&str) -> bool) -> Result {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut differences = self.look().differences(before);
            differences.retain(|difference| counts(difference));
            if differences.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(differences.join("\n").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What helps to understand a failure: the shims' logs.
    pub(crate) fn report(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.path().join("run")).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path().join("shim.log")).unwrap_or_default();
            let _ = writeln!(text, "{}: {log}", entry.path().display());
        }
        text
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Of a trial that failed anything may be left; all that is below this process is the trial's.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            processes::reap();
            let left = processes::below();
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for process in left {
                processes::end(process.pid);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.folder.path()) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for hierarchy in hierarchies(&mounts) {
            remove_folders(&hierarchy.join(self.cgroup.trim_start_matches('/')));
        }
    }
}

fn remove_folders(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folders(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// Runs a command to its end. It writes to files: what it says is complete when it has ended, whoever else holds them.
pub(crate) fn finish(command: &mut Command) -> Result<Ended> {
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command.stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
    let status = wait(&mut child)?;
    let read = |file: &mut File| -> Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ended { status, out: read(&mut out)?, err: read(&mut err)? })
}

/// Waits for a child, but not for ever.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(format!("it did not end within {:?}", patience()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result {
    let deadline = Instant::now() + patience();
    while !is_so() {
        if Instant::now() > deadline {
            return Err(format!("{what} did not come about within {:?}", patience()).into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
