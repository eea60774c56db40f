//! The three fifos between a foreground command and its container's shim.
//!
//! The reading ends of output are opened before the shim opens its writing ends, and the writing end of input after the
//! shim has opened its reading end, so neither side ever blocks in open(2).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

use crate::error::{Error, Result};
use crate::request::CreateRequest;

/// The fifos of one container in its bundle, output's reading ends opened.
#[derive(Debug)]
pub(crate) struct Fifos {
    stdin: Option<PathBuf>,
    stdout: (PathBuf, OwnedFd),
    stderr: Option<(PathBuf, OwnedFd)>,
}

impl Fifos {
    /// Makes the fifos that the request calls for.
    pub(crate) fn make(bundle: &Path, request: &CreateRequest) -> Result<Self> {
        let fifo = |name: &str| -> Result<PathBuf> {
            let path = bundle.join(name);
            match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(()) | Err(Errno::EEXIST) => Ok(path),
                Err(errno) => Err(Error::errno("make the fifo", path)(errno)),
            }
        };
        let reader = |name: &str| -> Result<(PathBuf, OwnedFd)> {
            let path = fifo(name)?;
            let end = open_end(&path, OFlag::O_RDONLY)?;
            Ok((path, end))
        };
        Ok(Self {
            stdin: request.interactive.then(|| fifo("stdin")).transpose()?,
            stdout: reader("stdout")?,
            // A terminal has one stream of output.
            stderr: (!request.tty).then(|| reader("stderr")).transpose()?,
        })
    }

    /// The paths as the task API wants them: empty for none.
    pub(crate) fn paths(&self) -> [String; 3] {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        [
            self.stdin.as_deref().map(text).unwrap_or_default(),
            text(&self.stdout.0),
            self.stderr.as_ref().map(|(path, _)| text(path)).unwrap_or_default(),
        ]
    }

    /// The ends for the caller. Only after the shim has opened the other ends, which it has done when it answers Create.
    pub(crate) fn ends(self) -> Result<Ends> {
        let receiver = |(path, end): (PathBuf, OwnedFd)| {
            pipe::Receiver::from_file(File::from(end)).map_err(Error::io("read from", path))
        };
        let sender = |path: PathBuf| {
            let end = open_end(&path, OFlag::O_WRONLY)?;
            pipe::Sender::from_file(File::from(end)).map_err(Error::io("write to", path))
        };
        Ok(Ends {
            stdin: self.stdin.map(sender).transpose()?,
            stdout: receiver(self.stdout)?,
            stderr: self.stderr.map(receiver).transpose()?,
        })
    }
}

fn open_end(path: &Path, access: OFlag) -> Result<OwnedFd> {
    open(path, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
        .map_err(Error::errno("open", path))
}

/// The caller's ends of a container's standard streams.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<pipe::Sender>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: Option<pipe::Receiver>,
}
