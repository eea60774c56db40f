//! A container in the foreground: its streams are ours, and so are its signals, until it ends.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use estiba_engine::{Error, Exit, Running};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};
use crate::output::BROKEN_PIPE;
use crate::signals::{self, SIGCONT, SIGWINCH, Signals};
use crate::terminal::{self, Raw};

const SIGKILL: i32 = 9;

/// How long a start that is interrupted may take to its end.
const GRACE: Duration = Duration::from_millis(500);

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Started {
    /// The container runs.
    Running(Box<Running>),
    /// A signal came first; this is the status to end with.
    Interrupted(u8),
}

/// What has to stand before the container starts, so that no signal of its is missed.
#[derive(Debug)]
pub(crate) struct Session {
    signals: Signals,
    tty: bool,
    interactive: bool,
}

impl Session {
    pub(crate) fn prepare(tty: bool, interactive: bool) -> Result<Self> {
        let signals = Signals::catch().map_err(|error| Failure::caused("cannot catch signals", error))?;
        Ok(Self { signals, tty, interactive })
    }

    /// Waits for the container's start, and gives it up if a signal asks this program to end before there is a
    /// container that could: unpacking an image takes its time. What it leaves then is what a crash leaves, and the
    /// next command removes it.
    pub(crate) async fn start(&mut self, start: impl Future<Output = Result<Running, Error>>) -> Result<Started> {
        let mut start = pin!(start);
        let signal = tokio::select! {
            running = &mut start => return Ok(Started::Running(Box::new(running?))),
            signal = self.signals.next_deadly() => signal,
        };
        // It may have been the last step, and the container runs: then the signal is the container's.
        match tokio::time::timeout(GRACE, start).await {
            Ok(running) => {
                let running = running?;
                let _ = running.kill(signal).await;
                Ok(Started::Running(Box::new(running)))
            }
            Err(_) => Ok(Started::Interrupted(signals::exit_status(signal))),
        }
    }

    /// Connects the container with this process until it has ended, removes what it leaves, and returns its status.
    pub(crate) async fn attend(mut self, mut running: Running) -> Result<u8> {
        // The container may run already, but nothing of it has reached the terminal, and no key has reached it.
        let raw = match self.raw() {
            Ok(raw) => raw,
            Err(failure) => {
                running.finish().await?;
                return Err(failure);
            }
        };
        self.fit(&running).await;
        if let Some(stdin) = running.stdin.take() {
            tokio::spawn(feed(stdin));
        }
        let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
        let mut output = pin!(async {
            tokio::try_join!(copy(stdout, tokio::io::stdout()), copy(stderr, tokio::io::stderr())).map(|_| ())
        });
        let mut written = None;
        let ended = {
            let mut ended = pin!(running.wait());
            loop {
                tokio::select! {
                    ended = &mut ended => break ended,
                    result = &mut output, if written.is_none() => {
                        if result.as_ref().is_err_and(is_broken_pipe) {
                            // Whoever read the output has gone, and a program of its own would get SIGPIPE. Nobody
                            // else is going to end this one.
                            let _ = running.kill(SIGKILL).await;
                        }
                        written = Some(result);
                    }
                    signal = self.signals.next() => self.forward(signal, raw.as_ref(), &running).await,
                }
            }
        };
        // The shim holds what a slow reader has not taken yet: it is asked to end after that.
        let rest = async {
            if let Some(result) = written {
                return Ok(result);
            }
            tokio::select! {
                result = &mut output => Ok(result),
                signal = self.signals.next_deadly() => Err(signal),
            }
        };
        let rest = rest.await;
        let removed = running.finish().await;
        // From here on messages may be printed.
        drop(raw);
        removed?;
        let status = status(&ended?);
        match rest {
            Ok(Ok(())) => Ok(status),
            Ok(Err(error)) if is_broken_pipe(&error) => Ok(BROKEN_PIPE),
            Ok(Err(error)) => Err(Failure::caused("cannot write the container's output", error)),
            Err(signal) => Ok(signals::exit_status(signal)),
        }
    }

    fn raw(&self) -> Result<Option<Raw>> {
        if !(self.tty && self.interactive) {
            return Ok(None);
        }
        Raw::enter().map_err(|error| Failure::caused("cannot switch the terminal to raw mode", error))
    }

    async fn forward(&self, signal: i32, raw: Option<&Raw>, running: &Running) {
        match signal {
            SIGWINCH => return self.fit(running).await,
            SIGCONT => {
                if let Some(raw) = raw {
                    // A terminal that is gone will say so when it is read.
                    let _ = raw.again();
                }
                self.fit(running).await;
            }
            _ => {}
        }
        // The container may have ended a moment ago; if so, the end is what will be told.
        let _ = running.kill(signal).await;
    }

    /// Gives the container's terminal the size of ours.
    async fn fit(&self, running: &Running) {
        if let Some((width, height)) = terminal::size().filter(|_| self.tty) {
            let _ = running.resize(width, height).await;
        }
    }
}

fn status(exit: &Exit) -> u8 {
    u8::try_from(exit.status).unwrap_or(u8::MAX)
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

async fn copy(from: Option<pipe::Receiver>, to: impl AsyncWrite) -> io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let (mut from, mut to) = (pin!(from), pin!(to));
    tokio::io::copy(&mut from, &mut to).await?;
    to.flush().await
}

/// Hands our standard input on to the container. Its end, and a container that does not read any more, end it.
async fn feed(mut stdin: pipe::Sender) {
    let Ok(mut chunks) = reader() else { return };
    while let Some(chunk) = chunks.recv().await {
        if stdin.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

/// Reads standard input on a thread of its own, which nothing waits for: a read that never returns, of a terminal say,
/// ends with the process. (Making the file non-blocking instead would make it so for everybody who shares it.)
fn reader() -> io::Result<mpsc::Receiver<Vec<u8>>> {
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::Errno;

    let (to, chunks) = mpsc::channel(4);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let stdin = io::stdin();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if to.blocking_send(buffer[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Err(Errno::INTR) => {}
                // Somebody who shares the file has made it non-blocking.
                Err(Errno::AGAIN) => {
                    let _ = poll(&mut [PollFd::new(&stdin, PollFlags::IN)], None);
                }
                Err(_) => return,
            }
        }
    })?;
    Ok(chunks)
}
