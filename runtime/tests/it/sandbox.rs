//! A bundle with busybox, and a runtime to run it, in a folder that goes away.

use std::fmt::Debug;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use estiba_runtime::{
    Bundle, ContainerId, CreateOptions, Created, DeleteMode, Error, ExecOptions, ExitStatus, Features, Native, Root,
    Runtime, Stdio, wait,
};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

pub(crate) type Outcome = Result<(), Failed>;

/// Where the static busybox is.
const BUSYBOX: &str = "/bin/busybox";

/// A test that takes root and busybox; without them it shows as ignored, with the reason.
pub(crate) fn privileged(name: &str, run: fn() -> Outcome) -> Trial {
    let missing = if !nix::unistd::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new(BUSYBOX).exists() {
        Some("needs busybox-static")
    } else {
        None
    };
    let trial = Trial::test(format!("privileged_{name}"), run);
    match missing {
        Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
        None => trial,
    }
}

/// A bundle and a runtime. Whatever is left of its containers goes when it is dropped.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
    pub(crate) native: Native,
    pub(crate) id: ContainerId,
    pub(crate) spec: Value,
}

/// What became of a container.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self::with_features(Features::probe())
    }

    pub(crate) fn with_features(features: Features) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let name = format!("estiba-test-{}-s{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let bin = folder.path().join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).expect("the root");
        fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox");
        for applet in
            "sh true cat ls id mount hostname ps echo sleep grep stat env readlink touch test kill sort tty stty"
                .split(' ')
        {
            symlink("busybox", bin.join(applet)).expect("a link");
        }
        Self {
            native: Native::with_features(folder.path().join("state"), features),
            spec: spec(&format!("/{name}")),
            id: name.parse().expect("a name"),
            folder,
        }
    }

    pub(crate) fn bundle_path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle_path().join("rootfs")
    }

    /// A place outside the root.
    pub(crate) fn outside(&self) -> &Path {
        self.folder.path()
    }

    /// A shell script is the program.
    pub(crate) fn script(&mut self, script: &str) -> &mut Self {
        self.spec["process"]["args"] = json!(["sh", "-c", script]);
        self
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle {
            path: self.bundle_path(),
            spec: serde_json::from_value(self.spec.clone()).expect("a configuration"),
            root: Root::Path(self.rootfs()),
        }
    }

    /// The container, created on pipes, whose other ends come back.
    pub(crate) fn create(&self) -> Result<(Created, io::PipeReader, io::PipeReader), Error> {
        self.create_from(&self.bundle())
    }

    pub(crate) fn create_from(&self, bundle: &Bundle) -> Result<(Created, io::PipeReader, io::PipeReader), Error> {
        let null = fs::File::open("/dev/null").expect("/dev/null");
        let (stdout, stdout_inner) = io::pipe().expect("a pipe");
        let (stderr, stderr_inner) = io::pipe().expect("a pipe");
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: stdout_inner.as_fd(), stderr: stderr_inner.as_fd() };
        let created = self.native.create(&self.id, bundle, &CreateOptions::new(stdio))?;
        Ok((created, stdout, stderr))
    }

    /// The whole life of a container.
    pub(crate) fn run(&self) -> Result<Ended, Error> {
        self.run_from(&self.bundle())
    }

    pub(crate) fn run_from(&self, bundle: &Bundle) -> Result<Ended, Error> {
        let (created, mut stdout, mut stderr) = self.create_from(bundle)?;
        let started = self.native.start(&self.id);
        if started.is_err() {
            self.native.delete(&self.id, DeleteMode::Force)?;
        }
        let status = wait(created.pidfd.as_fd(), created.pid)?;
        started?;
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).expect("output");
        stderr.read_to_string(&mut err).expect("output");
        self.native.delete(&self.id, DeleteMode::Stopped)?;
        Ok(Ended { status, stdout: out, stderr: err })
    }

    /// The container, running until it is killed.
    pub(crate) fn running(&mut self) -> Result<Created, Error> {
        self.script("exec sleep 1000");
        let (created, _, _) = self.create()?;
        self.native.start(&self.id)?;
        Ok(created)
    }

    /// A process to add: a shell script, with nothing else said.
    pub(crate) fn process(script: &str) -> Value {
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh", "-c", script], "env": ["PATH=/bin"]})
    }

    /// Adds a process on pipes, whose other ends come back.
    pub(crate) fn add(&self, process: &Value) -> Result<(Created, io::PipeReader, io::PipeReader), Error> {
        let process = serde_json::from_value(process.clone()).expect("a process");
        let null = fs::File::open("/dev/null").expect("/dev/null");
        let (stdout, stdout_inner) = io::pipe().expect("a pipe");
        let (stderr, stderr_inner) = io::pipe().expect("a pipe");
        let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: stdout_inner.as_fd(), stderr: stderr_inner.as_fd() };
        let created = self.native.exec(&self.id, &process, &ExecOptions::new(stdio))?;
        Ok((created, stdout, stderr))
    }

    /// Adds a process, and waits for its end.
    pub(crate) fn exec(&self, process: &Value) -> Result<Ended, Error> {
        let (created, stdout, stderr) = self.add(process)?;
        let stdout = io::read_to_string(stdout).expect("output");
        let stderr = io::read_to_string(stderr).expect("output");
        Ok(Ended { status: wait(created.pidfd.as_fd(), created.pid)?, stdout, stderr })
    }

    /// What a script that was added printed, if it did well.
    pub(crate) fn exec_output(&self, process: &Value) -> Result<String, Failed> {
        let ended = self.exec(process).map_err(|error| Failed::from(chain(&error)))?;
        if ended.status == ExitStatus::Exited(0) { Ok(ended.stdout) } else { Err(format!("{ended:?}").into()) }
    }

    /// Ends what [`Sandbox::running`] started.
    pub(crate) fn stop(&self, created: &Created) -> Result<(), Error> {
        self.native.delete(&self.id, DeleteMode::Force)?;
        wait(created.pidfd.as_fd(), created.pid).map(drop)
    }

    /// Runs, and returns what was printed by a script that did well.
    pub(crate) fn output(&self) -> Result<String, Failed> {
        let ended = self.run().map_err(|error| Failed::from(chain(&error)))?;
        if ended.status == ExitStatus::Exited(0) { Ok(ended.stdout) } else { Err(format!("{ended:?}").into()) }
    }

    /// Cgroup folders of the container that are still there.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let tops = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().filter_map(Result::ok);
        tops.map(|top| top.path().join(self.id.as_str()))
            .chain([Path::new("/sys/fs/cgroup").join(self.id.as_str())])
            .filter(|path| path.exists())
            .collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.native.delete(&self.id, DeleteMode::Force);
    }
}

/// An error with its sources.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Fails unless both are equal, and says what they are.
#[expect(clippy::needless_pass_by_value, reason = "what is compared is mostly made on the spot")]
pub(crate) fn same<T: PartialEq<U> + Debug, U: Debug>(found: T, wanted: U) -> Outcome {
    if found == wanted { Ok(()) } else { Err(format!("found {found:?}, wanted {wanted:?}").into()) }
}

/// What Docker would write, about.
fn spec(cgroup: &str) -> Value {
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "inside",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/none"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
