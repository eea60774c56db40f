//! What a trial needs of the machine. Where it is not there, the trial shows as ignored, with the reason as its kind.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::home::{Home, Result};
use crate::processes;

/// Something that not every machine has. Root is needed by all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    Program(&'static str),
    /// A static busybox.
    Busybox,
    /// A version 1 or 2 hierarchy with the controller.
    Controller(&'static str),
    /// `ESTIBA_CAMPAIGN` is set: hours rather than minutes.
    Campaign,
    /// A path in an environment variable.
    Variable(&'static str),
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Program(name) => find(name).is_none().then(|| format!("no {name}")),
            Self::Busybox => find("busybox").is_none().then(|| "no busybox-static".to_owned()),
            Self::Controller(name) => (!has_controller(name)).then(|| format!("no cgroup controller {name}")),
            Self::Campaign => (!campaign()).then(|| "only with ESTIBA_CAMPAIGN=1".to_owned()),
            Self::Variable(name) => std::env::var_os(name).is_none().then(|| format!("${name} is not set")),
        }
    }
}

/// Whether the long versions are asked for.
pub(crate) fn campaign() -> bool {
    std::env::var_os("ESTIBA_CAMPAIGN").is_some()
}

/// A program by its name.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn has_controller(name: &str) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let in_one = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup "))
        .any(|line| line.rsplit(' ').next().is_some_and(|options| options.split(',').any(|option| option == name)));
    let two = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    in_one || two.split_whitespace().any(|controller| controller == name)
}

/// A trial in a home of its own, after which the world has to be as it was.
pub(crate) fn trial(name: &str, needs: &[Need], body: fn(&Home) -> Result) -> Trial {
    let root = (!nix::unistd::geteuid().is_root()).then(|| "not root".to_owned());
    let missing = root.into_iter().chain(needs.iter().filter_map(|need| need.missing()));
    let missing = missing.collect::<Vec<_>>().join(", ");
    let trial = Trial::test(format!("privileged_{name}"), move || {
        let _guard = Watchdog::set(if campaign() { Duration::from_secs(7200) } else { Duration::from_secs(150) });
        let home = Home::new()?;
        body(&home).map_err(|error| format!("{error}\n{}", home.report()))?;
        home.check().map_err(|error| format!("{error}\n{}", home.report()))?;
        Ok(())
    });
    if missing.is_empty() { trial } else { trial.with_ignored_flag(true).with_kind(missing) }
}

/// Ends a trial that hangs: without the processes below it, whatever it waits for comes to an end.
#[derive(Debug)]
struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    fn set(patience: Duration) -> Self {
        let (alive, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut wait = patience;
            // Dropping the other end wakes this thread with another error.
            while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                for process in processes::below() {
                    processes::end(process.pid);
                }
                wait = Duration::from_millis(100);
            }
        });
        Self { _alive: alive }
    }
}

/// The path as text, for a command line.
pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}
