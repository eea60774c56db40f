//! A container in the foreground: its streams are ours, and so are its signals, until it ends.

use std::io::{self, ErrorKind};
use std::pin::pin;

use estiba_engine::{Exit, Running};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::failure::{Failure, Result};
use crate::output::BROKEN_PIPE;
use crate::signals::{SIGCONT, SIGWINCH, Signals};
use crate::terminal::{self, Raw};

const SIGKILL: i32 = 9;

/// What has to stand before the container starts: the first key and the first signal are the container's already.
#[derive(Debug)]
pub(crate) struct Session {
    signals: Signals,
    raw: Option<Raw>,
    tty: bool,
}

impl Session {
    pub(crate) fn prepare(tty: bool, interactive: bool) -> Result<Self> {
        let signals = Signals::catch().map_err(|error| Failure::caused("cannot catch signals", error))?;
        let raw = if tty && interactive {
            Raw::enter().map_err(|error| Failure::caused("cannot switch the terminal to raw mode", error))?
        } else {
            None
        };
        Ok(Self { signals, raw, tty })
    }

    /// Connects the container with this process until it has ended, removes what it leaves, and returns its status.
    pub(crate) async fn attend(mut self, mut running: Running) -> Result<u8> {
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
                    signal = self.signals.next() => self.forward(signal, &running).await,
                }
            }
        };
        // What is still in the pipes goes on to a slow reader while the container is removed.
        let rest = async {
            if let Some(result) = written {
                return Ok(result);
            }
            tokio::select! {
                result = &mut output => Ok(result),
                signal = deadly(&mut self.signals) => Err(signal),
            }
        };
        let (rest, removed) = tokio::join!(rest, running.finish());
        // From here on messages may be printed.
        drop(self.raw);
        removed?;
        let status = status(&ended?);
        match rest {
            Ok(Ok(())) => Ok(status),
            Ok(Err(error)) if is_broken_pipe(&error) => Ok(BROKEN_PIPE),
            Ok(Err(error)) => Err(Failure::caused("cannot write the container's output", error)),
            Err(signal) => Ok(status_of_signal(signal)),
        }
    }

    async fn forward(&self, signal: i32, running: &Running) {
        match signal {
            SIGWINCH => return self.fit(running).await,
            SIGCONT => {
                if let Some(raw) = &self.raw {
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

fn status_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn is_broken_pipe(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// The first signal that asks a program to end: SIGHUP, SIGINT, SIGQUIT or SIGTERM.
async fn deadly(signals: &mut Signals) -> i32 {
    loop {
        let signal = signals.next().await;
        if matches!(signal, 1 | 2 | 3 | 15) {
            return signal;
        }
    }
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
