//! The fifos between a client and a container's shim.
//!
//! The client opens its ends before the shim opens the others, that of the input for both directions until the shim reads, so
//! neither side ever blocks in open(2) or sees an end that is none. Once both have theirs, the names go.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use estiba_shim::proto;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

use crate::error::{Error, Result};
use crate::identity::Id;
use crate::record::Record;

/// A stream that belongs to whoever attaches, as the shim wants to be told.
pub(crate) const ATTACH: &str = "attach:";

/// Which standard streams of a container a client wants to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// To write to its standard input, if it has one that is connected.
    pub stdin: bool,
    /// To read its standard output (with a terminal: all output).
    pub stdout: bool,
    /// To read its standard error.
    pub stderr: bool,
}

impl Streams {
    /// All that the container has.
    pub const ALL: Self = Self { stdin: true, stdout: true, stderr: true };
    /// None: the container is left to itself.
    pub const NONE: Self = Self { stdin: false, stdout: false, stderr: false };
    /// To read only.
    pub const OUTPUT: Self = Self { stdin: false, stdout: true, stderr: true };

    /// Those that there are.
    pub(crate) fn of(self, interactive: bool, tty: bool) -> Self {
        // A terminal has one stream of output.
        Self { stdin: self.stdin && interactive, stdout: self.stdout, stderr: self.stderr && !tty }
    }
}

/// The fifos of one client, output's reading ends opened. Dropping it removes their names.
#[derive(Debug)]
pub(crate) struct Fifos {
    stdin: Option<(PathBuf, OwnedFd)>,
    stdout: Option<(PathBuf, OwnedFd)>,
    stderr: Option<(PathBuf, OwnedFd)>,
}

impl Fifos {
    /// Makes fifos in a folder.
    pub(crate) fn make(folder: &Path, streams: Streams) -> Result<Self> {
        let mut fifos = Self { stdin: None, stdout: None, stderr: None };
        if streams == Streams::NONE {
            return Ok(fifos);
        }
        let client = Id::random()?;
        let fifo = |name: &str| -> Result<PathBuf> {
            let path = folder.join(format!("{}-{name}", client.short()));
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(Error::errno("make the fifo", path.clone()))?;
            Ok(path)
        };
        let end = |name: &str, access: OFlag| -> Result<(PathBuf, OwnedFd)> {
            let path = fifo(name)?;
            let end = open_end(&path, access)?;
            Ok((path, end))
        };
        fifos.stdin = streams.stdin.then(|| end("stdin", OFlag::O_RDWR)).transpose()?;
        fifos.stdout = streams.stdout.then(|| end("stdout", OFlag::O_RDONLY)).transpose()?;
        fifos.stderr = streams.stderr.then(|| end("stderr", OFlag::O_RDONLY)).transpose()?;
        Ok(fifos)
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none()
    }

    /// The paths of input, output and errors as the task API wants them: empty for none.
    fn paths(&self) -> [String; 3] {
        let end = |end: &Option<(PathBuf, OwnedFd)>| {
            end.as_ref().map(|(path, _)| path.to_string_lossy().into_owned()).unwrap_or_default()
        };
        [end(&self.stdin), end(&self.stdout), end(&self.stderr)]
    }

    /// The call that connects them with a process, `exec_id` (empty for the first); `None` if there are none. `stdin_once`: the
    /// end of this client's input is the end of the process's.
    pub(crate) fn call(&self, record: &Record, exec_id: String, stdin_once: bool) -> Option<proto::AttachRequest> {
        if self.is_empty() {
            return None;
        }
        let [stdin, stdout, stderr] = self.paths();
        Some(proto::AttachRequest { id: record.id.to_string(), exec_id, stdin, stdout, stderr, stdin_once })
    }

    /// The ends for the caller. Only after the shim has opened the other ends.
    pub(crate) fn ends(mut self) -> Result<Ends> {
        let receiver = |end: &mut Option<(PathBuf, OwnedFd)>| match end.take() {
            Some((path, fd)) => {
                let receiver = pipe::Receiver::from_file(File::from(fd)).map_err(Error::io("read from", &path));
                remove(&path);
                receiver.map(Some)
            }
            None => Ok(None),
        };
        let (stdout, stderr) = (receiver(&mut self.stdout)?, receiver(&mut self.stderr)?);
        let stdin = match &self.stdin {
            Some((path, _both)) => {
                let end = open_end(path, OFlag::O_WRONLY)?;
                Some(pipe::Sender::from_file(File::from(end)).map_err(Error::io("write to", path))?)
            }
            None => None,
        };
        Ok(Ends { stdin, stdout, stderr })
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten().for_each(|(path, _)| remove(path));
    }
}

/// Removes a name. If that fails, it goes with the folder that it is in.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

fn open_end(path: &Path, access: OFlag) -> Result<OwnedFd> {
    open(path, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
        .map_err(Error::errno("open", path))
}

/// The caller's ends of a container's standard streams.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: Option<pipe::Receiver>,
    pub(crate) stderr: Option<pipe::Receiver>,
}
