//! Executes a plugin: bounded in time and in what it says, and killed with all that it has started.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::Command;
use super::failure::Failure;
use crate::error::{Error, Result};

/// Far more than any result has.
const STDOUT_MAX: usize = 4 << 20;
/// What is kept of its log, from the beginning.
const STDERR_MAX: usize = 16 << 10;
/// How much of what makes no sense is shown.
const SHOWN_MAX: usize = 300;
/// How often an executable that is being written is tried again, and after how long.
const BUSY: (u32, Duration) = (20, Duration::from_millis(50));

/// Finds a plugin's executable in the folders of `CNI_PATH`.
pub(super) fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf> {
    let is_name = !plugin.is_empty() && !plugin.contains(['/', '\0']) && plugin != "." && plugin != "..";
    let found = is_name.then(|| path.iter().map(|folder| folder.join(plugin)).find(|file| file.is_file())).flatten();
    found.ok_or_else(|| Error::PluginMissing { plugin: plugin.to_owned(), path: path.to_vec() })
}

/// One execution of a plugin.
#[derive(Debug)]
pub(super) struct Execution<'a> {
    pub(super) plugin: &'a str,
    pub(super) executable: &'a Path,
    pub(super) command: Command,
    /// What is set besides the caller's environment.
    pub(super) environment: Vec<(&'static str, OsString)>,
    pub(super) input: &'a [u8],
    pub(super) limit: Duration,
}

impl Execution<'_> {
    /// What the plugin has printed, if it was successful.
    ///
    /// # Errors
    ///
    /// [`Error::Plugin`] with what it reports, or with what can be said where it reported nothing that makes sense;
    /// [`Error::PluginTimeout`]; [`Error::PluginExecute`].
    pub(super) fn run(&self) -> Result<Vec<u8>> {
        let mut child = self.spawn().map_err(|source| self.failed("execute", source))?;
        let said = self.converse(&mut child);
        if said.is_err() {
            // The child has not been waited for, so its number is still its own.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        }
        let status = child.wait().map_err(|source| self.failed("wait for", source))?;
        let (stdout, stderr) = said?;
        if status.success() {
            return Ok(stdout);
        }
        let failure = serde_json::from_slice::<Failure>(&stdout).ok().filter(|failure| !failure.msg.is_empty());
        let failure = failure.unwrap_or_else(|| {
            let end = match (status.code(), status.signal()) {
                (Some(code), _) => format!("it ended with status {code}"),
                (_, signal) => format!("it was killed by signal {}", signal.unwrap_or_default()),
            };
            let word = match (shown(&stdout), shown(&stderr)) {
                (None, None) => "it said nothing".to_owned(),
                (Some(stdout), _) => format!("what it printed is no error: {stdout}"),
                (None, Some(stderr)) => format!("it said: {stderr}"),
            };
            Failure::internal(format!("{end}; {word}"))
        });
        Err(Error::Plugin { plugin: self.plugin.to_owned(), command: self.command, failure })
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::PluginExecute { operation, executable: self.executable.to_owned(), source }
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut tries = 0;
        loop {
            let mut process = Process::new(self.executable);
            process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
            process.envs(self.environment.iter().map(|(key, value)| (key, value)));
            match process.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY.0 => {
                    tries += 1;
                    thread::sleep(BUSY.1);
                }
                result => return result,
            }
        }
    }

    /// Hands it its input and takes its output until it ends, whoever has inherited its pipes.
    fn converse(&self, child: &mut Child) -> Result<(Vec<u8>, Vec<u8>)> {
        let failed = |source| self.failed("speak with", source);
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pipes =
            [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        for pipe in pipes.into_iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| failed(errno.into()))?;
        }
        let deadline = Instant::now() + self.limit;
        let (mut rest, mut out, mut err) = (self.input, Vec::new(), Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let plugin = self.plugin.to_owned();
                return Err(Error::PluginTimeout { plugin, command: self.command, limit: self.limit });
            }
            let has_ended = {
                let mut fds = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
                let readers = [stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
                fds.extend(readers.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
                fds.extend(stdin.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
                let timeout = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
                match poll(&mut fds, PollTimeout::from(timeout)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
                fds[0].any().unwrap_or_default()
            };
            if rest.is_empty() {
                stdin = None;
            } else if let Some(pipe) = &mut stdin {
                match pipe.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) if would_block(&error) => {}
                    // A plugin need not read what it has no use for.
                    Err(_) => stdin = None,
                }
            }
            if read_some(&mut stdout, &mut out, STDOUT_MAX + 1).map_err(failed)? && out.len() > STDOUT_MAX {
                let failure = Failure::internal(format!("it printed more than {STDOUT_MAX} bytes"));
                return Err(Error::Plugin { plugin: self.plugin.to_owned(), command: self.command, failure });
            }
            read_some(&mut stderr, &mut err, STDERR_MAX).map_err(failed)?;
            if has_ended || (stdout.is_none() && stderr.is_none() && stdin.is_none() && wait_a_little(&ended, left)) {
                return Ok((out, err));
            }
        }
    }
}

/// A process that has closed its streams ends soon: the poll on its descriptor alone.
fn wait_a_little(ended: &impl AsFd, left: Duration) -> bool {
    let timeout = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
    let mut fds = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::from(timeout)), Ok(count) if count > 0)
}

/// Reads all that is there, keeps no more than `limit` bytes of it, and takes the pipe away at its end. Whether bytes came.
fn read_some<P: Read>(pipe: &mut Option<P>, into: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let Some(reader) = pipe else { return Ok(false) };
    let mut buffer = [0; 16 << 10];
    let mut any = false;
    // A plugin that writes without end must not keep this loop from looking at the clock.
    for _ in 0..64 {
        match reader.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                break;
            }
            Ok(count) => {
                any = true;
                let room = limit.saturating_sub(into.len());
                into.extend_from_slice(&buffer[..count.min(room)]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if would_block(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(any)
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The beginning of a plugin's words, on one line and without control characters.
pub(super) fn shown(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    (!shown.is_empty()).then_some(shown)
}

/// `CNI_PATH` of folders.
pub(super) fn joined(path: &[PathBuf]) -> OsString {
    let folders: Vec<&[u8]> = path.iter().map(|folder| folder.as_os_str().as_bytes()).collect();
    std::os::unix::ffi::OsStringExt::from_vec(folders.join(&b':'))
}
