//! A process of a container in the foreground: its streams are ours, and so are its signals, until it ends or is left.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use estiba_engine::{Error, Exec, Running};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::detach::{Keys, Watch};
use crate::failure::{Failure, Result};
use crate::output::BROKEN_PIPE;
use crate::signals::{self, SIGCONT, SIGHUP, SIGKILL, SIGWINCH, Signals, Wanted};
use crate::terminal::{self, Raw};

/// How long a start that is interrupted may take to its end.
const GRACE: Duration = Duration::from_millis(500);

/// How long a container whose terminal has hung up may take to end with it.
const HUNG_UP: Duration = Duration::from_secs(1);

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Started {
    /// The container runs.
    Running(Box<Running>),
    /// A signal came first; this is the status to end with.
    Interrupted(u8),
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The process has ended; the status to end with.
    Ended(u8),
    /// It was left running, by the keys.
    Detached,
    /// It was left running, because the terminal has gone.
    HungUp,
}

impl Outcome {
    /// The exit status of a command that was nothing but this session.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Ended(status) => status,
            Self::Detached => 0,
            Self::HungUp => signals::exit_status(SIGHUP),
        }
    }
}

/// What the session is connected with.
#[derive(Debug)]
pub(crate) enum Process {
    /// A container's first process, which this command has started.
    Started(Box<Running>),
    /// A container's first process, which ran already.
    Attached(Box<Running>),
    /// One that was added.
    Added(Box<Exec>),
}

impl Process {
    fn running(&self) -> Result<&Running, &Exec> {
        match self {
            Self::Started(running) | Self::Attached(running) => Ok(running),
            Self::Added(exec) => Err(exec),
        }
    }

    fn streams(&mut self) -> (Option<pipe::Sender>, Option<pipe::Receiver>, Option<pipe::Receiver>) {
        match self {
            Self::Started(running) | Self::Attached(running) => {
                (running.stdin.take(), running.stdout.take(), running.stderr.take())
            }
            Self::Added(exec) => (exec.stdin.take(), exec.stdout.take(), exec.stderr.take()),
        }
    }

    async fn wait(&self) -> Result<i32, Error> {
        match self.running() {
            Ok(running) => running.wait().await.map(|exit| exit.status),
            Err(exec) => exec.wait().await,
        }
    }

    async fn kill(&self, signal: i32) -> Result<(), Error> {
        match self.running() {
            Ok(running) => running.kill(signal).await,
            Err(exec) => exec.kill(signal).await,
        }
    }

    async fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        match self.running() {
            Ok(running) => running.resize(width, height).await,
            Err(exec) => exec.resize(width, height).await,
        }
    }

    /// Puts the end of a process that has ended with that status on record.
    async fn finish(self, status: i32) -> Result<(), Error> {
        match self {
            Self::Started(running) | Self::Attached(running) => running.finish().await,
            Self::Added(exec) => exec.finish(status).await,
        }
    }

    /// Leaves it running.
    async fn detach(self) -> Result<(), Error> {
        match self {
            Self::Started(running) | Self::Attached(running) => running.detach().await,
            Self::Added(exec) => exec.detach().await,
        }
    }
}

/// How a session is held.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// The process has a terminal.
    pub(crate) tty: bool,
    /// What is typed goes to the process.
    pub(crate) stdin: bool,
    /// Signals are the process's.
    pub(crate) signals: bool,
    /// The keys that leave it.
    pub(crate) keys: Keys,
}

/// What has to stand before the process starts, so that no signal of its is missed.
#[derive(Debug)]
pub(crate) struct Session {
    signals: Signals,
    options: Options,
}

impl Session {
    pub(crate) fn prepare(options: Options) -> Result<Self> {
        let wanted = match (options.signals, options.tty) {
            (true, tty) => Wanted::All { tty },
            (false, true) => Wanted::Terminal,
            (false, false) => Wanted::None,
        };
        let signals = Signals::catch(wanted).map_err(|error| Failure::caused("cannot catch signals", error))?;
        Ok(Self { signals, options })
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

    /// Connects the process with this one until it has ended or is left, and then puts its end on record.
    pub(crate) async fn attend(mut self, mut process: Process) -> Result<Outcome> {
        // The process may run already, but nothing of it has reached the terminal, and no key has reached it.
        let raw = match self.raw() {
            Ok(raw) => raw,
            Err(failure) => {
                if matches!(process, Process::Started(_)) {
                    process.finish(0).await?;
                }
                return Err(failure);
            }
        };
        if matches!(process, Process::Attached(_)) {
            self.redraw(&process).await;
        }
        self.fit(&process).await;
        let (stdin, stdout, stderr) = process.streams();
        // Held until the session is over: what is dropped is closed.
        let (left, mut leave) = mpsc::channel(1);
        let feeding = stdin.filter(|_| self.options.stdin).map(|stdin| {
            let keys = if self.options.tty { self.options.keys.clone() } else { Keys::none() };
            tokio::spawn(feed(stdin, Watch::new(keys), left.clone()))
        });
        let mut output = pin!(async {
            tokio::try_join!(copy(stdout, tokio::io::stdout()), copy(stderr, tokio::io::stderr())).map(|_| ())
        });
        let mut written = None;
        let ended = {
            let mut ended = pin!(process.wait());
            loop {
                tokio::select! {
                    ended = &mut ended => break Ok(ended),
                    Some(()) = leave.recv() => break Err(Outcome::Detached),
                    result = &mut output, if written.is_none() => {
                        if result.as_ref().is_err_and(is_broken_pipe) && matches!(process, Process::Started(_)) {
                            // Whoever read the output has gone, and a program of its own would get SIGPIPE. Nobody
                            // else is going to end this one.
                            let _ = process.kill(SIGKILL).await;
                        }
                        let over = result.as_ref().is_err() && !matches!(process, Process::Started(_));
                        written = Some(result);
                        if over {
                            break Err(Outcome::Ended(BROKEN_PIPE));
                        }
                    }
                    signal = self.signals.next() => {
                        if signal == SIGHUP && self.options.tty {
                            let _ = process.kill(SIGHUP).await;
                            match tokio::time::timeout(HUNG_UP, &mut ended).await {
                                Ok(ended) => break Ok(ended),
                                Err(_) => break Err(Outcome::HungUp),
                            }
                        }
                        self.forward(signal, raw.as_ref(), &process).await;
                    }
                }
            }
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(outcome) => {
                let detached = process.detach().await;
                // Only now may our end of its input be closed.
                if let Some(feeding) = feeding {
                    feeding.abort();
                }
                drop(raw);
                detached?;
                return Ok(outcome);
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
        let removed = process.finish(ended.as_ref().copied().unwrap_or(255)).await;
        // From here on messages may be printed.
        drop(raw);
        removed?;
        let status = u8::try_from(ended?).unwrap_or(u8::MAX);
        match rest {
            Ok(Ok(())) => Ok(Outcome::Ended(status)),
            Ok(Err(error)) if is_broken_pipe(&error) => Ok(Outcome::Ended(BROKEN_PIPE)),
            // The terminal has gone, and with it whoever would read.
            Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Ok(Outcome::Ended(status))
            }
            Ok(Err(error)) => Err(Failure::caused("cannot write the container's output", error)),
            Err(signal) => Ok(Outcome::Ended(signals::exit_status(signal))),
        }
    }

    fn raw(&self) -> Result<Option<Raw>> {
        if !(self.options.tty && self.options.stdin) {
            return Ok(None);
        }
        Raw::enter().map_err(|error| Failure::caused("cannot switch the terminal to raw mode", error))
    }

    async fn forward(&self, signal: i32, raw: Option<&Raw>, process: &Process) {
        match signal {
            SIGWINCH => return self.fit(process).await,
            SIGCONT => {
                if let Some(raw) = raw {
                    // A terminal that is gone will say so when it is read.
                    let _ = raw.again();
                }
                self.fit(process).await;
            }
            _ => {}
        }
        if self.options.signals {
            // The process may have ended a moment ago; if so, the end is what will be told.
            let _ = process.kill(signal).await;
        }
    }

    /// Gives the process's terminal the size of ours.
    async fn fit(&self, process: &Process) {
        if let Some((width, height)) = terminal::size().filter(|_| self.options.tty) {
            let _ = process.resize(width, height).await;
        }
    }

    /// Makes a program on the terminal draw anew: it does so only when the size has changed.
    async fn redraw(&self, process: &Process) {
        if let Some((width, height)) = terminal::size().filter(|_| self.options.tty) {
            let _ = process.resize(width.saturating_add(1), height.saturating_add(1)).await;
        }
    }
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

/// Hands our standard input on to the process. Its end, and a process that does not read any more, end it; so do the
/// keys, which are told.
async fn feed(mut stdin: pipe::Sender, mut watch: Watch, left: mpsc::Sender<()>) {
    let Ok(mut chunks) = reader() else { return };
    while let Some(chunk) = chunks.recv().await {
        let typed = watch.type_in(&chunk);
        if !typed.passed.is_empty() && stdin.write_all(&typed.passed).await.is_err() {
            return;
        }
        if typed.detach {
            let _ = left.send(()).await;
            // Whoever leaves the process ends this, too; until then its input stays open.
            std::future::pending::<()>().await;
        }
    }
    let _ = stdin.write_all(&watch.end()).await;
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
