//! What is written down of a container.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::runtime::{Hooks, LinuxMemoryPolicy, LinuxNamespaceType, LinuxPersonality};
use serde::{Deserialize, Serialize};

use super::notify::Listener;
use super::rdt::Groups;
use crate::cgroup::{Cgroup, CgroupPath};
use crate::rights::{Common, Rights};
use crate::sys::{self, file, process};
use crate::{Bundle, ContainerId, Error, Keyring, Result, Root, State, Status, seccomp};

/// The container's record.
const RECORD: &str = "state.json";
/// The fifo that a created container waits on. It is removed by `start`.
const GATE: &CStr = c"exec.fifo";
/// Is there while the container is paused.
const PAUSED: &str = "paused";
/// The compiled seccomp filter, if there is one.
const FILTER: &str = "seccomp.bpf";

/// A container's record, `STATE_ROOT/ID/state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Record {
    oci_version: String,
    id: String,
    bundle: PathBuf,
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    /// Seconds since 1970.
    created: u64,
    /// And what is missing to the moment.
    #[serde(default)]
    created_nanoseconds: u32,
    /// Where the root filesystem is, if it has a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rootfs: Option<PathBuf>,
    #[serde(flatten)]
    pub(super) identity: Identity,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cgroups: Vec<CgroupPath>,
    /// Whether the first process is that of a pid namespace, whose end ends all others.
    pub(super) own_pids: bool,
    /// What `CLONE_NEW…` of namespaces differs from the host's.
    pub(super) namespaces: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hooks: Option<Hooks>,
    /// What a process that is added later has if it does not say.
    #[serde(default)]
    pub(super) rights: Rights,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    personality: Option<LinuxPersonality>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_policy: Option<LinuxMemoryPolicy>,
    /// The program's environment, for hooks in the container that have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) environment: Vec<String>,
    /// Whether processes are in a session keyring of the container's.
    #[serde(default)]
    pub(super) keyring: bool,
    /// Whether there is a seccomp filter. Without its file nothing may be added then.
    #[serde(default)]
    filtered: bool,
    /// Whether there is no program, and so no start.
    #[serde(default)]
    pub(super) programless: bool,
    /// Whom the filter asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listener: Option<Listener>,
    /// Its shares of the caches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rdt: Option<Groups>,
}

/// A process for certain: its number may come again, but not with the same start, in the same run of the machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    /// 0 as long as there is none.
    pub(super) pid: i32,
    /// In clock ticks after the machine's.
    start_time: u64,
    boot_id: String,
}

impl Record {
    pub(super) fn new(
        id: &ContainerId,
        bundle: &Bundle,
        cgroup: Option<&Cgroup>,
        keyring: Keyring,
        filtered: bool,
    ) -> Result<Self> {
        let spec = &bundle.spec;
        let namespaces = spec.linux().iter().filter_map(|linux| linux.namespaces().as_deref()).flatten();
        let mut own_pids = false;
        let mut kinds = 0;
        for namespace in namespaces {
            own_pids |= namespace.typ() == LinuxNamespaceType::Pid && crate::plan::joined(namespace).is_none();
            kinds |= crate::plan::kind(namespace.typ());
        }
        let common = Common::of(spec);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            oci_version: spec.version().clone(),
            id: id.to_string(),
            bundle: std::path::absolute(&bundle.path).map_err(|source| Error::Io {
                operation: "find",
                path: bundle.path.clone(),
                source,
            })?,
            annotations: spec.annotations().clone().unwrap_or_default(),
            created: now.as_secs(),
            created_nanoseconds: now.subsec_nanos(),
            rootfs: match &bundle.root {
                Root::Path(path) => std::path::absolute(path).ok(),
                Root::Detached(_) => None,
            },
            identity: Identity::default(),
            cgroups: cgroup.map(|cgroup| cgroup.paths().to_vec()).unwrap_or_default(),
            own_pids,
            namespaces: kinds,
            hooks: spec.hooks().clone(),
            rights: spec.process().as_ref().map(Rights::of).unwrap_or_default(),
            personality: common.personality.cloned(),
            memory_policy: common.memory_policy.cloned(),
            environment: match spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref()) {
                Some(_) => spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default(),
                None => Vec::new(),
            },
            keyring: keyring == Keyring::New,
            filtered,
            programless: spec.process().is_none(),
            listener: Listener::of(spec),
            rdt: None,
        })
    }

    pub(super) fn state(&self, status: Status) -> State {
        State {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status,
            pid: if status == Status::Stopped { 0 } else { self.identity.pid },
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// What every process of the container shares.
    pub(super) fn common(&self) -> Common<'_> {
        Common { personality: self.personality.as_ref(), memory_policy: self.memory_policy.as_ref() }
    }

    /// When it was made.
    pub(super) fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::new(self.created, self.created_nanoseconds.min(999_999_999))
    }

    /// Puts the cgroup's folders on record.
    pub(super) fn take(&mut self, cgroup: &Cgroup) {
        self.cgroups = cgroup.paths().to_vec();
    }

    pub(super) fn cgroup(&self) -> Option<Cgroup> {
        if self.cgroups.is_empty() { None } else { Some(Cgroup::from_paths(self.cgroups.clone())) }
    }
}

impl Identity {
    /// Of a living child.
    pub(super) fn of(pid: i32) -> Result<Self> {
        let (start_time, _) = stat(pid).map_err(|source| Error::Io {
            operation: "read",
            path: format!("/proc/{pid}/stat").into(),
            source,
        })?;
        Ok(Self { pid, start_time, boot_id: boot_id().to_owned() })
    }

    /// The process, if it still lives. The check after the opening makes sure of which process was opened.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        if self.pid <= 0 || self.boot_id != boot_id() {
            return None;
        }
        let pidfd = process::pidfd_open(self.pid).ok()?;
        let (start_time, ended) = stat(self.pid).ok()?;
        (start_time == self.start_time && !ended).then_some(pidfd)
    }
}

/// When a process started, and whether it has ended and waits to be reaped.
fn stat(pid: i32) -> io::Result<(u64, bool)> {
    let mut buffer = [0u8; 1024];
    let length = File::open(format!("/proc/{pid}/stat"))?.read(&mut buffer)?;
    parse_stat(&buffer[..length]).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The name in parentheses may have anything in it, so the fields are counted from the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<(u64, bool)> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text.get(end + 2..)?.split(|&byte| byte == b' ');
    let state = fields.next()?;
    let start = std::str::from_utf8(fields.nth(18)?).ok()?.trim().parse().ok()?;
    Some((start, matches!(state, b"Z" | b"X" | b"x")))
}

/// The identity of this run of the machine.
fn boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}

/// A container's folder, `STATE_ROOT/ID`.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    dir: File,
}

impl Folder {
    /// Makes it, and locks it.
    pub(super) fn make(state_root: &Path, id: &ContainerId) -> Result<Self> {
        let path = state_root.join(id.as_str());
        let mut made = DirBuilder::new().mode(0o700).create(&path);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            DirBuilder::new().mode(0o700).recursive(true).create(state_root).map_err(|source| Error::Io {
                operation: "make the folder",
                path: state_root.to_owned(),
                source,
            })?;
            made = DirBuilder::new().mode(0o700).create(&path);
        }
        made.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::AlreadyExists { id: id.clone() },
            _ => Error::Io { operation: "make the folder", path: path.clone(), source },
        })?;
        let folder = Self::open(state_root, id)?;
        folder.lock()?;
        Ok(folder)
    }

    /// Opens it.
    pub(super) fn open(state_root: &Path, id: &ContainerId) -> Result<Self> {
        let path = state_root.join(id.as_str());
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(dir) => Ok(Self { path, dir }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Err(Error::NotFound { id: id.clone() }),
            Err(source) => Err(Error::Io { operation: "open", path, source }),
        }
    }

    /// Waits until nobody else works on the container.
    pub(super) fn lock(&self) -> Result<()> {
        file::lock(self.dir.as_raw_fd()).map_err(|errno| self.io("lock", "")(io::Error::from_raw_os_error(errno)))
    }

    fn io(&self, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> Error {
        let path = if name.is_empty() { self.path.clone() } else { self.path.join(name) };
        move |source| Error::Io { operation, path, source }
    }

    /// Writes the record: beside the old one, then in its place.
    pub(super) fn store(&self, record: &Record) -> Result<()> {
        const NEW: &str = "state.json.new";
        let text = serde_json::to_vec(record).map_err(io::Error::from).map_err(self.io("write", RECORD))?;
        let path = self.path.join(NEW);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(self.io("make", NEW))?;
        file.write_all(&text).map_err(self.io("write", NEW))?;
        fs::rename(&path, self.path.join(RECORD)).map_err(self.io("replace", RECORD))
    }

    /// Reads the record.
    pub(super) fn load(&self) -> Result<Record> {
        let text = fs::read(self.path.join(RECORD)).map_err(self.io("read", RECORD))?;
        serde_json::from_slice(&text)
            .map_err(|source| Error::ParseState { path: self.path.join(RECORD), source: Box::new(source) })
    }

    /// Writes the filter, so that what is added later is under the very same one.
    pub(super) fn store_filter(&self, filter: &seccomp::Program) -> Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(FILTER))
            .map_err(self.io("make", FILTER))?;
        file.write_all(&filter.to_bytes()).map_err(self.io("write", FILTER))
    }

    /// Reads the filter of a container that has one.
    pub(super) fn filter(&self, record: &Record) -> Result<Option<seccomp::Program>> {
        if !record.filtered {
            return Ok(None);
        }
        let bytes = fs::read(self.path.join(FILTER)).map_err(self.io("read", FILTER))?;
        let damaged = || self.io("read", FILTER)(io::ErrorKind::InvalidData.into());
        seccomp::Program::from_bytes(&bytes).map(Some).ok_or_else(damaged)
    }

    /// How far the container is.
    pub(super) fn status(&self, record: &Record) -> Status {
        if record.identity.pid == 0 {
            // As long as it is being made, its folder is locked.
            return if file::try_lock_briefly(self.dir.as_raw_fd()) { Status::Stopped } else { Status::Creating };
        }
        if record.identity.open().is_none() {
            Status::Stopped
        } else if self.paused() {
            Status::Paused
        } else if file::stat(self.dir.as_raw_fd(), GATE).is_ok() {
            Status::Created
        } else {
            Status::Running
        }
    }

    pub(super) fn paused(&self) -> bool {
        self.path.join(PAUSED).exists()
    }

    pub(super) fn set_paused(&self, paused: bool) -> Result<()> {
        let path = self.path.join(PAUSED);
        if paused {
            File::create(path).map(drop).map_err(self.io("make", PAUSED))
        } else {
            fs::remove_file(path).map_err(self.io("remove", PAUSED))
        }
    }

    /// Makes the fifo. The child has it open for both directions, so that its reading waits for somebody's writing; as long as it
    /// does, and no longer, others can open it for writing.
    pub(super) fn make_gate(&self) -> Result<OwnedFd> {
        let dir = self.dir.as_raw_fd();
        let error = |errno| self.io("make", "exec.fifo")(io::Error::from_raw_os_error(errno));
        file::mknodat(dir, GATE, libc::S_IFIFO | 0o600, 0).map_err(error)?;
        let error = |errno| self.io("open", "exec.fifo")(io::Error::from_raw_os_error(errno));
        file::openat(dir, GATE, libc::O_RDWR, 0).map(sys::own).map_err(error)
    }

    /// Lets the child go.
    pub(super) fn open_gate(&self, id: &ContainerId) -> Result<()> {
        let dir = self.dir.as_raw_fd();
        let gate = match file::openat(dir, GATE, libc::O_WRONLY | libc::O_NONBLOCK, 0) {
            Ok(fd) => sys::own(fd),
            // Nobody reads: it has died since.
            Err(libc::ENXIO) => {
                return Err(Error::WrongStatus { id: id.clone(), operation: "start", status: Status::Stopped });
            }
            Err(errno) => return Err(self.io("open", "exec.fifo")(io::Error::from_raw_os_error(errno))),
        };
        let error = |operation| move |errno| (operation, io::Error::from_raw_os_error(errno));
        file::unlinkat(dir, GATE)
            .map_err(error("remove"))
            .and_then(|()| file::write(gate.as_raw_fd(), b"s").map_err(error("write to")))
            .map_err(|(operation, source)| self.io(operation, "exec.fifo")(source))?;
        Ok(())
    }

    /// Removes the folder and all that is in it.
    pub(super) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.io("remove", "")(error)),
            _ => Ok(()),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The names of all containers.
pub(super) fn list(state_root: &Path) -> Result<Vec<ContainerId>> {
    let io = |source| Error::Io { operation: "read", path: state_root.to_owned(), source };
    let entries = match fs::read_dir(state_root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            ids.push(id);
        }
    }
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_the_22nd_field() {
        let text = b"7 (a) b) c) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 98765 1 2\n";
        assert_eq!(parse_stat(text), Some((98765, false)));
        let zombie = b"7 (x) Z 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 5 1 2\n";
        assert_eq!(parse_stat(zombie), Some((5, true)));
        for bad in [&b""[..], b"7 (x", b"7 (x) S 1"] {
            assert_eq!(parse_stat(bad), None);
        }
    }

    #[test]
    fn another_process_with_the_same_number_is_not_it() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let mut identity = Identity::of(pid).expect("this process");
        assert!(identity.open().is_some());
        identity.start_time += 1;
        assert!(identity.open().is_none(), "the start differs");
        identity.start_time -= 1;
        identity.boot_id.push('x');
        assert!(identity.open().is_none(), "the machine was started again");
    }
}
