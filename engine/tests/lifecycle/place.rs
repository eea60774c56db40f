//! A root, a run folder and a cgroup of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use estiba_engine::image::Layout;
use estiba_engine::runtime::{Cgroup, Hierarchies};
use estiba_engine::{Config, Engine, Image, ShimProgram};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, image};

/// Why these tests cannot run here.
pub(crate) fn missing() -> Option<String> {
    if !fs::metadata(image::BUSYBOX).is_ok_and(|file| file.is_file()) {
        return Some(format!("needs the static {}", image::BUSYBOX));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective =
        status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    (effective != Some("0")).then(|| "needs root".to_owned())
}

/// What becomes of `RUN` when the machine is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunFolder {
    Gone,
    Stays,
}

#[derive(Debug)]
pub(crate) struct Place {
    folder: tempfile::TempDir,
    cgroup: String,
    pub(crate) image: Image,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("root"))?;
        let image = image::store(&Layout::open_or_create(folder.path().join("root/content"))?)?;
        Ok(Self { folder, cgroup: format!("/estiba-test-engine-{}-{number}", std::process::id()), image })
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The file of the image's layer: the largest blob.
    pub(crate) fn layer(&self) -> Result<PathBuf> {
        let blobs = entries(&self.root().join("content/blobs/sha256"));
        let size = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        Ok(blobs.into_iter().max_by_key(size).ok_or("there is no blob")?)
    }

    /// Waits until killed shims have ended: the kernel frees their locks then.
    pub(crate) fn without_shims(&self) {
        for _ in 0..100 {
            if shims(&self.folder.path().to_string_lossy()).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Another boot than before, with an empty `RUN`, or with what the last one has left there.
    pub(crate) fn reboot(&self, run: RunFolder) -> Result {
        self.without_shims();
        // The processes of the containers would not have outlived it.
        self.end_containers();
        if run == RunFolder::Stays {
            return Ok(fs::write(self.run().join("boot"), "00000000-0000-0000-0000-000000000000")?);
        }
        for entry in entries(&self.run()) {
            if entry.is_dir() { fs::remove_dir_all(entry)? } else { fs::remove_file(entry)? }
        }
        Ok(())
    }

    fn end_containers(&self) {
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            for folder in entries(&hierarchy.join(self.cgroup.trim_start_matches('/'))) {
                // One that is frozen is killed when it thaws.
                let _ = fs::write(folder.join("freezer.state"), "THAWED");
                for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                    let Ok(pid) = pid.parse() else { continue };
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                for _ in 0..1000 {
                    if !folder.is_dir() || fs::remove_dir(&folder).is_ok() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    /// Whether the kernel has frozen a container.
    pub(crate) fn is_frozen(&self, id: &str) -> Result<bool> {
        let cgroup = format!("{}/{id}", self.cgroup);
        Ok(Cgroup::open(&Hierarchies::detect()?, &cgroup)?.is_frozen()?)
    }

    /// Whether the root's monitor runs.
    pub(crate) fn has_monitor(&self) -> bool {
        !monitors(&self.root().to_string_lossy()).is_empty()
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub(crate) async fn open(&self) -> Result<Engine> {
        let config = Config {
            root: self.root(),
            run: self.run(),
            shim: ShimProgram::Reexec,
            cgroup_parent: self.cgroup.clone(),
            monitor_command: monitor_command(&self.root(), &self.run(), &self.cgroup)?,
            ..Config::default()
        };
        Ok(Engine::open(config).await?)
    }

    /// Says what is left of containers.
    pub(crate) fn is_clean(&self) -> Result {
        let mut left = Vec::new();
        for folder in
            [self.root().join("containers"), self.root().join("names"), self.root().join("leases/overlay"), self.run()]
        {
            left.extend(entries(&folder));
        }
        // What says in which boot the records were looked at.
        let kept = ["boot", "monitor.lock", "monitor.gate"].map(|name| self.run().join(name));
        left.retain(|path| !kept.contains(path));
        let mut snapshots = Vec::new();
        below(&self.root().join("snapshots"), &mut snapshots);
        left.extend(snapshots.into_iter().filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.len() == 64 || name.starts_with("unpack-"))
        }));
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            left.extend(
                entries(&hierarchy.join(self.cgroup.trim_start_matches('/'))).into_iter().filter(|path| path.is_dir()),
            );
        }
        left.extend(
            shims(&self.folder.path().to_string_lossy()).into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}"))),
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        left.extend(
            mounts.lines().filter(|line| line.contains(&*self.folder.path().to_string_lossy())).map(PathBuf::from),
        );
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
    }

    /// Waits until nothing is left, with `each` done again and again.
    pub(crate) async fn settles(&self, each: impl AsyncFn()) -> Result {
        for _ in 0..100 {
            each().await;
            if self.is_clean().is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.is_clean()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Of a test that failed anything may be left.
        for pid in shims(&self.folder.path().to_string_lossy()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.end_containers();
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            let _ = fs::remove_dir(hierarchy.join(self.cgroup.trim_start_matches('/')));
        }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in entries(folder) {
        if path.is_dir() && !path.is_symlink() && !path.ends_with("fs") {
            below(&path, found);
        }
        found.push(path);
    }
}

/// The word that makes this program a monitor.
const MONITOR: &str = "monitor-of-the-test";

fn monitor_command(root: &Path, run: &Path, cgroup: &str) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    let path = |path: &Path| path.to_string_lossy().into_owned();
    Ok(vec![program, MONITOR.to_owned(), path(root), path(run), cgroup.to_owned(), "detach".to_owned()])
}

/// In a process that was started as a monitor: is one, and ends.
pub(crate) fn monitor() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, word, root, run, cgroup, rest @ ..] = arguments.as_slice() else { return };
    if word != MONITOR {
        return;
    }
    if !rest.is_empty() {
        let mut command = std::process::Command::new(&arguments[0]);
        command.args([word, root, run, cgroup]).spawn().expect("a monitor in the background");
        std::process::exit(0);
    }
    let config = Config { root: root.into(), run: run.into(), cgroup_parent: cgroup.clone(), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let done = runtime.block_on(async { Engine::open(config).await?.monitor(Duration::from_millis(300)).await });
    if let Err(error) = done {
        eprintln!("{}", chain(&error));
    }
    std::process::exit(0);
}

/// The monitors of a root.
fn monitors(root: &str) -> Vec<i32> {
    processes(|line| line.contains(MONITOR) && line.contains(root))
}

/// Kills the monitor of a place.
pub(crate) fn kill_monitor(place: &Place) -> Result {
    let monitors = monitors(&place.root().to_string_lossy());
    let [monitor] = monitors.as_slice() else { return Err(format!("there are {} monitors", monitors.len()).into()) };
    kill(Pid::from_raw(*monitor), Signal::SIGKILL)?;
    for _ in 0..100 {
        if !place.has_monitor() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The shims whose arguments mention a text.
fn shims(text: &str) -> Vec<i32> {
    processes(|line| line.starts_with("estiba-shim") && line.contains(text))
}

/// The processes whose command line is such.
fn processes(is_such: impl Fn(&str) -> bool) -> Vec<i32> {
    let pids =
        entries(Path::new("/proc")).into_iter().filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_such(&String::from_utf8_lossy(&line))
    })
    .collect()
}

/// Kills the shim of a container of ours.
pub(crate) fn kill_shim(id: &str) -> Result {
    let shims = shims(id);
    let [shim] = shims.as_slice() else { return Err(format!("there are {} shims of {id}", shims.len()).into()) };
    kill(Pid::from_raw(*shim), Signal::SIGKILL)?;
    Ok(())
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
