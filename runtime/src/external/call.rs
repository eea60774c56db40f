//! One execution of a runtime binary, and what its log says.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::{ContainerId, Error, Result, Status, sys};

/// Of a log or an output, no more than this is read.
const MOST: u64 = 4 << 20;
/// Of a message, no more than this is shown.
const LONGEST: usize = 2000;
/// Room for a path in `struct sockaddr_un`.
const SOCKET_PATH: usize = 107;

#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) command: Command,
    pub(super) scratch: Scratch,
    program: &'a Path,
    operation: &'static str,
    id: ContainerId,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        program: &'a Path,
        state_root: &'a Path,
        operation: &'static str,
        id: &ContainerId,
    ) -> Result<Self> {
        let scratch = Scratch::new(state_root)?;
        let mut command = super::command(program, state_root, &scratch.path.join("log"), operation);
        if !matches!(operation, "create" | "exec") {
            let file = |name: &str| {
                let path = scratch.path.join(name);
                File::create(&path).map_err(|source| Error::Io { operation: "make", path, source })
            };
            command.stdout(file("out")?).stderr(file("err")?);
        }
        Ok(Self { command, scratch, program, operation, id: id.clone() })
    }

    /// Runs the binary to its end and returns what it wrote to its output.
    pub(super) fn run(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let program = self.program;
        let io = |operation, source| Error::Io { operation, path: program.to_owned(), source };
        let mut child = self.command.spawn().map_err(|source| io("execute", source))?;
        // The container's streams are the runtime's alone now: a reader would otherwise wait for our copies.
        self.command = Command::new(program);
        match wait(&mut child, limit) {
            Err(source) => Err(io("wait for", source)),
            Ok(None) => {
                Err(Error::ExternalTimeout { program: self.program.to_owned(), operation: self.operation, limit })
            }
            Ok(Some(status)) if status.success() => Ok(self.scratch.read("out")),
            Ok(Some(status)) => Err(self.failure(status)),
        }
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let message = self.message();
        let text = message.to_ascii_lowercase();
        let id = || self.id.clone();
        // A runtime that does not find the container's own files says so of a file.
        let state_file = format!("{}/status", self.id.as_str().to_ascii_lowercase());
        let no_state = text.contains(&state_file) && text.contains("no such file") && self.operation != "create";
        if text.contains("does not exist") && !text.contains("config.json") && text.contains("container") || no_state {
            return Error::NotFound { id: id() };
        }
        if self.operation == "create" && (text.contains("already exists") || text.contains("already exist")) {
            return Error::AlreadyExists { id: id() };
        }
        if self.operation == "exec" && text.contains("paused") && !text.contains("exec: ") {
            return Error::WrongStatus { id: id(), operation: "add a process to", status: Status::Paused };
        }
        let ended = [
            "not running",
            "no such process",
            "process already finished",
            "container is stopped",
            "stopped container",
            "container that has stopped",
        ];
        let about_it = match self.operation {
            "kill" | "pause" | "resume" | "update" => Some(self.operation),
            "exec" if !text.contains("exec: ") => Some("add a process to"),
            _ => None,
        };
        if let Some(operation) = about_it
            && ended.iter().any(|e| text.contains(e))
        {
            return Error::WrongStatus { id: id(), operation, status: Status::Stopped };
        }
        let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Error::External { program: self.program.to_owned(), operation: self.operation, message, status }
    }

    /// The last error of the log, else what was written to the standard error.
    fn message(&self) -> String {
        let log = self.scratch.read("log");
        let message = last_error(&log).unwrap_or_else(|| {
            let text = self.scratch.read("err");
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        shorten(&message)
    }
}

/// Waits for the child; one that takes longer is killed, and is `None`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let milliseconds = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let ended = sys::process::pidfd_open(child.id() as i32)
        .and_then(|pidfd| sys::process::ended(pidfd.as_fd(), milliseconds))
        .map_err(io::Error::from_raw_os_error);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended?.then_some(status))
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    level: String,
    msg: String,
}

/// The message of the last entry of a JSON log that is an error. An entry may take a line, or several (crun 1.28).
fn last_error(mut log: &[u8]) -> Option<String> {
    let mut last = None;
    loop {
        let mut entries = serde_json::Deserializer::from_slice(log).into_iter::<Entry>();
        let read = match entries.next() {
            None => return last,
            Some(Ok(entry)) => {
                if matches!(entry.level.to_ascii_lowercase().as_str(), "error" | "fatal" | "panic") {
                    last = Some(entry.msg);
                }
                entries.byte_offset()
            }
            // What is no entry ends with its line.
            Some(Err(_)) => log.iter().position(|byte| *byte == b'\n').map_or(log.len(), |at| at + 1),
        };
        log = log.get(read..).unwrap_or_default();
    }
}

/// On one line, and not endless.
fn shorten(message: &str) -> String {
    let mut text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.len() > LONGEST {
        let mut end = LONGEST;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

impl Error {
    /// Recognises that a runtime's complaint is about the program that the container is to execute.
    pub(super) fn about(self, executable: &str) -> Self {
        let Self::External { message, .. } = &self else {
            return self;
        };
        let text = message.to_ascii_lowercase();
        // `exec: "NAME": …` is Go's and runc's, `executable …` crun's and youki's, `execve` everybody's.
        let of_it =
            ["exec: ", "executable", "execve", "exec user process", "exec format"].iter().any(|m| text.contains(m));
        let says = |parts: &[&str]| parts.iter().any(|p| text.contains(p));
        let kind = if !of_it {
            return self;
        } else if says(&["permission denied", "is a directory", "exec format error", "not executable"]) {
            io::ErrorKind::PermissionDenied
        } else if says(&["not found", "no such file", "cannot be found"]) {
            io::ErrorKind::NotFound
        } else {
            return self;
        };
        let source = io::Error::new(kind, message.clone());
        let executable = executable.to_owned();
        match kind {
            io::ErrorKind::NotFound => Self::ExecutableNotFound { executable, source },
            _ => Self::NotExecutable { executable, source },
        }
    }
}

/// A folder of one call's own, for its log and its other files; removed in the end.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) path: PathBuf,
    /// What reaches the folder if its path is too long for a socket's address.
    fd: File,
}

impl Scratch {
    fn new(state_root: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(".call-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::path::absolute(state_root).unwrap_or_else(|_| state_root.to_owned()).join(name);
        let made = fs::create_dir_all(state_root).and_then(|()| {
            // What an earlier process of the same number left.
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            std::os::unix::fs::DirBuilderExt::mode(&mut fs::DirBuilder::new(), 0o700).create(&path)?;
            File::open(&path)
        });
        match made {
            Ok(fd) => Ok(Self { path, fd }),
            Err(source) => Err(Error::Io { operation: "make", path, source }),
        }
    }

    /// A path below the folder that is short enough for a socket.
    pub(super) fn reachable(&self, path: &Path) -> io::Result<PathBuf> {
        if path.as_os_str().len() <= SOCKET_PATH {
            return Ok(path.to_owned());
        }
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Path::new("/proc")
            .join(std::process::id().to_string())
            .join("fd")
            .join(self.fd.as_raw_fd().to_string())
            .join(name))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(self.path.join(name)) {
            // What cannot be read is missing from a message at worst.
            let _ = file.take(MOST).read_to_end(&mut bytes);
        }
        bytes
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_counts() {
        let log = br#"{"level":"warning","msg":"w","time":"t"}
not json
{"level":"error","msg":"first"}
{"msg":"second","level":"error","time":"t"}
{"level":"debug","msg":"later"}
"#;
        assert_eq!(last_error(log).as_deref(), Some("second"));
        let log = b"{\n  \"msg\": \"over\\nlines\",\n  \"level\": \"error\"\n}\nodd\n{\n  \"msg\": \"w\",\n  \"level\": \"warning\"\n}\n{";
        assert_eq!(last_error(log).as_deref(), Some("over\nlines"));
        assert_eq!(last_error(b""), None);
        assert_eq!(last_error(b"{\"level\":\"error\"}"), None);
    }

    #[test]
    fn complaints_about_the_program_are_recognised() {
        let table = [
            // runc 1.1, 1.3; crun 1.8, 1.28; youki 0.7.
            (
                "runc create failed: unable to start container process: exec: \"x\": executable file not found in $PATH",
                127,
            ),
            ("unable to start container process: exec: \"/x\": stat /x: no such file or directory", 127),
            ("executable file `x` not found in $PATH: No such file or directory", 127),
            ("executable 'x' for container not found", 127),
            ("runc create failed: unable to start container process: exec: \"/etc/passwd\": permission denied", 126),
            ("exec: \"/etc\": is a directory", 126),
            ("open executable: Permission denied", 126),
            ("exec container process `/x`: Exec format error", 126),
            ("error mounting \"/nowhere\" to rootfs at \"/mnt\": stat /nowhere: no such file or directory", 125),
            ("unable to apply cgroup configuration: permission denied", 125),
            ("chdir to cwd (\"/x\") set in config.json failed: no such file or directory", 125),
        ];
        for (message, code) in table {
            let error =
                Error::External { program: "runc".into(), operation: "create", message: message.into(), status: 1 };
            assert_eq!(error.about("x").exit_code(), code, "{message}");
        }
    }

    #[test]
    fn what_hangs_is_killed() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("sleep");
        let pid = child.id();
        assert!(wait(&mut child, Duration::from_millis(30)).expect("wait").is_none());
        assert!(!Path::new("/proc").join(pid.to_string()).exists(), "it is still there");
        let mut child = Command::new("true").spawn().expect("true");
        assert!(wait(&mut child, Duration::from_secs(30)).expect("wait").is_some_and(|s| s.success()));
    }

    #[test]
    fn messages_are_short_and_on_one_line() {
        assert_eq!(shorten(" a\n  b\t"), "a b");
        let long = shorten(&"é".repeat(2000));
        assert!(long.len() <= LONGEST + 4 && long.ends_with('…'));
    }
}
