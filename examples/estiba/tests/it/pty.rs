//! A person at a terminal.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};

use crate::home::{Result, patience, wait};
use crate::sys;

/// A command whose terminal is ours to type at and to read.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: File,
    screen: Receiver<Vec<u8>>,
    /// All that has been shown so far.
    shown: String,
    /// How much of it has been looked at.
    seen: usize,
    child: Child,
    reader: JoinHandle<()>,
    /// The reading thread is to end.
    over: Arc<AtomicBool>,
}

impl Terminal {
    pub(crate) fn open(mut command: Command, columns: u16, rows: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None)?;
        // The command must not hold its own terminal's other side.
        fcntl(&master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let stream = || -> Result<Stdio> { Ok(slave.try_clone()?.into()) };
        command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        sys::lead_session(&mut command);
        let child = command.spawn()?;
        // The command holds descriptors of its own for as long as it lives.
        drop(command);
        drop(slave);
        let master = File::from(master);
        let mut reader = master.try_clone()?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (send, screen) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stop.load(Ordering::Relaxed) {
                match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) if send.send(buffer[..count].to_vec()).is_err() => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    // EIO: the last who held the other side has gone.
                    Err(_) => return,
                }
            }
        });
        Ok(Self { master, screen, shown: String::new(), seen: 0, child, reader, over })
    }

    pub(crate) fn press(&mut self, keys: &str) -> Result {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result {
        Ok(sys::resize(&self.master, columns, rows)?)
    }

    /// Reads until the text is shown, and returns what came before it since the last look.
    pub(crate) fn read_until(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                let before = self.shown[self.seen..self.seen + at].to_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => return Err(format!("{text:?} was not shown, but {:?}", self.shown).into()),
            }
        }
    }

    /// The terminal goes away. Waits for the command's end.
    pub(crate) fn hang_up(self) -> Result<ExitStatus> {
        let Self { master, mut child, reader, over, .. } = self;
        // The reading thread has another descriptor of it.
        over.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| "the reading thread panicked")?;
        drop(master);
        wait(&mut child)
    }

    /// Waits for the command's end, and returns its status and all that was shown.
    pub(crate) fn finish(mut self) -> Result<(ExitStatus, String)> {
        let status = wait(&mut self.child)?;
        while let Ok(bytes) = self.screen.recv_timeout(std::time::Duration::from_millis(100)) {
            self.shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok((status, self.shown))
    }
}
