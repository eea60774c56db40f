//! Bundles to try a shim on: busybox, and nothing else, in a folder that goes with the test.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use estiba_shim::proto::CreateTaskRequest;
use estiba_shim::{Client, ExitRecord, LOCK, LOG, Launch, Program};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// The busybox that containers run.
const BUSYBOX: &str = "/bin/busybox";

/// How long anything may take that takes no time.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What the machine lacks for these tests.
pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    let needs_loader = fs::read(BUSYBOX).ok().and_then(|program| has_interpreter(&program));
    if needs_loader == Some(false) { None } else { Some("needs busybox-static") }
}

/// Whether a 64-bit ELF program names a dynamic loader (a program header of type `PT_INTERP`); `None` if it is none.
fn has_interpreter(program: &[u8]) -> Option<bool> {
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    Some((0..count).any(|index| number(table + index * size, 4) == Some(3)))
}

/// This process's copy of busybox, made before anything is started: a file that is open for writing while another thread
/// forks cannot be executed for a while.
fn busybox() -> &'static Path {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        let path = copy_path();
        fs::copy(BUSYBOX, &path).expect("copy busybox");
        path
    })
}

/// Where [`busybox`] is, if it was needed.
fn copy_path() -> PathBuf {
    std::env::temp_dir().join(format!("estiba-test-busybox-{}", std::process::id()))
}

/// The cgroup that holds those of this process's containers.
pub(crate) fn cgroup_parent() -> String {
    format!("estiba-test-{}", std::process::id())
}

/// Removes what all tests share: [`busybox`], and [`cgroup_parent`] from every hierarchy; the containers' own are gone by then.
pub(crate) fn clean_up() {
    let _ = fs::remove_file(copy_path());
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
    for hierarchy in hierarchies.flatten() {
        let _ = fs::remove_dir(hierarchy.path().join(cgroup_parent()));
    }
    let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(cgroup_parent()));
}

/// The shim's program: this one, or what `ESTIBA_SHIM` names, to try a shim as it is installed.
fn program() -> Program {
    std::env::var_os("ESTIBA_SHIM").map_or(Program::Reexec, |path| Program::Path(path.into()))
}

/// A container that is to be, its folder, and its shim.
pub(crate) struct Bundle {
    dir: tempfile::TempDir,
    id: String,
    pub(crate) config: Value,
    pub(crate) launch: Launch,
}

impl Bundle {
    /// A container that runs `arguments`.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("tempdir");
        let id = format!("shim-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = dir.path().join("bundle");
        let root = path.join("rootfs");
        for folder in ["bin", "proc", "dev", "tmp", "etc"] {
            fs::create_dir_all(root.join(folder)).expect("create folder");
        }
        fs::hard_link(busybox(), root.join("bin/busybox")).expect("link busybox");
        for applet in
            ["sh", "cat", "sleep", "seq", "stty", "echo", "true", "kill", "md5sum", "dd", "ls", "tail", "head"]
        {
            symlink("busybox", root.join("bin").join(applet)).expect("symlink");
        }
        for (name, content, mode) in
            [("plain", "not a program\n", 0o644), ("garbage", "\x01\x02\x03\n", 0o755), ("orphan", "#!/nope\n", 0o755)]
        {
            let path = root.join("etc").join(name);
            fs::write(&path, content).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": { "uid": 0, "gid": 0 },
                "args": arguments,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": { "path": "rootfs", "readonly": false },
            "hostname": "shim-test",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
                },
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", cgroup_parent()),
                "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            },
        });
        let launch = Launch {
            program: program(),
            id: id.parse().expect("id"),
            bundle_dir: path,
            exit_file: Some(dir.path().join("exit.json")),
            cgroup_root: None,
            exit_command: Vec::new(),
        };
        Self { dir, id, config, launch }
    }

    /// A container that runs a shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// With a terminal.
    pub(crate) fn with_terminal(mut self) -> Self {
        self.config["process"]["terminal"] = true.into();
        self
    }

    /// In the process namespace of the host.
    pub(crate) fn with_host_pids(mut self) -> Self {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "pid");
        self
    }

    /// With an exit command that leaves a mark: [`mark`](Self::mark).
    pub(crate) fn with_exit_command(mut self) -> Self {
        let script = format!("echo \"$0 in $PWD\" >> {}", self.mark_path().display());
        self.launch.exit_command = vec!["/bin/sh".into(), "-c".into(), script.into(), self.id.clone().into()];
        self
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.launch.bundle_dir
    }

    /// A path beside the bundle.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mark_path(&self) -> PathBuf {
        self.path("mark")
    }

    /// What the exit command has written; empty if it has not run.
    pub(crate) fn mark(&self) -> String {
        fs::read_to_string(self.mark_path()).unwrap_or_default()
    }

    /// Makes a named pipe and opens its reading end, not blocking.
    pub(crate) fn fifo(&self, name: &str) -> (String, File) {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).expect("open fifo");
        (path.to_str().expect("text").to_owned(), reader)
    }

    /// Writes the configuration and starts the shim.
    pub(crate) fn spawn(&self) -> Client {
        self.write_config();
        let client = self.launch.spawn().expect("spawn the shim");
        client.set_timeout(Some(SOON)).expect("set timeout");
        client
    }

    pub(crate) fn write_config(&self) {
        fs::write(self.folder().join("config.json"), self.config.to_string()).expect("write config");
    }

    /// Another client of the same shim.
    pub(crate) fn connect(&self) -> Client {
        let client = Client::connect(self.folder(), self.id.as_str()).expect("connect");
        client.set_timeout(Some(SOON)).expect("set timeout");
        client
    }

    /// A request to create the container with these streams.
    pub(crate) fn request(&self, stdin: &str, stdout: &str, stderr: &str) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.folder().to_str().expect("text").to_owned(),
            terminal: self.config["process"]["terminal"] == true,
            stdin: stdin.to_owned(),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            ..CreateTaskRequest::default()
        }
    }

    /// Creates the container, with its standard output as a reader that blocks.
    pub(crate) fn create(&self, client: &mut Client) -> File {
        let (path, reader) = self.fifo("stdout");
        client.create(self.request("", &path, "")).expect("create");
        blocking(reader)
    }

    pub(crate) fn exit_record(&self) -> Option<ExitRecord> {
        ExitRecord::read(&self.path("exit.json")).expect("a record or none")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder().join(LOG)).unwrap_or_default()
    }

    /// Waits until no shim holds the folder's lock.
    pub(crate) fn wait_for_lock(&self) {
        eventually("the lock is free", || {
            let file = OpenOptions::new().read(true).write(true).open(self.folder().join(LOCK)).expect("open lock");
            Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok()
        });
    }

    /// That nothing of the container is left on the machine.
    pub(crate) fn assert_gone(&self) {
        self.wait_for_lock();
        let state = self.folder().join("runtime");
        let left: Vec<_> = fs::read_dir(&state).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "state left: {left:?}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("list").flatten() {
            let path = hierarchy.path().join(cgroup_parent()).join(&self.id);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }

    /// Deletes the container, ends the shim, and looks whether all is gone.
    pub(crate) fn finish(&self, client: &mut Client) {
        client.delete().expect("delete");
        client.shutdown().expect("shutdown");
        self.assert_gone();
        assert_eq!(self.log(), "");
    }
}

impl Drop for Bundle {
    /// After a failed test the container may still run.
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        eprintln!("shim.log of {}: {}", self.id, self.log());
        let Ok(mut client) = Client::connect(self.folder(), self.id.as_str()) else { return };
        let _ = client.set_timeout(Some(Duration::from_secs(2)));
        let shim = client.who().map(|who| who.shim_pid);
        let _ = client.kill_all(9).and_then(|()| client.wait());
        let _ = client.delete().and_then(|_| client.shutdown());
        let deadline = Instant::now() + Duration::from_secs(2);
        while shim.as_ref().is_ok_and(|shim| process_state(*shim).is_some()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A reader that waits for bytes.
pub(crate) fn blocking(file: File) -> File {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).expect("make it block");
    file
}

/// Reads to the end, in a thread.
pub(crate) fn drain(mut file: File) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("read to the end");
        bytes
    })
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of a process, such as `Z`; `None` if there is none.
pub(crate) fn process_state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
