//! Moves bytes between a container's standard streams and the places they come from and go to, without ever waiting.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use crate::stdio::{Sink, Taken};

/// Bytes that were read and could not be written yet: at most one read's worth.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.start = 0;
    }

    fn advance(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            // Given back: most containers never write faster than they are read.
            *self = Self::default();
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// One output stream: from the container's pipe or terminal to a sink.
///
/// A slow reader slows the container down: while bytes are pending nothing more is read. A reader that has gone away does
/// not: what it would have read is thrown away.
#[derive(Debug)]
pub(crate) struct Output {
    source: Option<File>,
    sink: Sink,
    pending: Pending,
    /// When bytes moved last.
    pub(crate) moved: Instant,
}

impl Output {
    pub(crate) fn new(source: File, sink: Sink) -> Self {
        Self { source: Some(source), sink, pending: Pending::default(), moved: Instant::now() }
    }

    /// The container starts: see [`Sink::release`].
    pub(crate) fn release(&mut self) {
        self.sink.release();
    }

    /// Whether everything that the container wrote has been handed on.
    pub(crate) fn is_done(&self) -> bool {
        self.source.is_none() && self.pending.is_empty()
    }

    /// Whether a reader holds up the stream.
    pub(crate) fn is_held_up(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads no more from the container; what is pending is still handed on.
    pub(crate) fn abandon_source(&mut self) {
        self.source = None;
        self.finish();
    }

    /// Closes the sink once all is handed on, so that its reader sees the end.
    fn finish(&mut self) {
        if self.is_done() {
            self.sink = Sink::Nowhere;
        }
    }

    /// What to poll for, if anything.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        if self.pending.is_empty() {
            self.source.as_ref().map(|source| (source.as_fd(), PollFlags::POLLIN))
        } else {
            self.sink.fd().map(|fd| (fd, PollFlags::POLLOUT))
        }
    }

    /// Moves what can be moved. `scratch` is where bytes pass through.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) {
        if !self.pending.is_empty() {
            self.flush();
        }
        if self.pending.is_empty()
            && let Some(source) = &mut self.source
        {
            match source.read(scratch) {
                Ok(0) => self.source = None,
                Ok(count) => {
                    self.moved = Instant::now();
                    self.hand_on(&scratch[..count]);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // A terminal answers EIO once nobody has its other side open: that is its end.
                Err(_) => self.source = None,
            }
        }
        self.finish();
    }

    fn hand_on(&mut self, bytes: &[u8]) {
        match self.sink.offer(bytes) {
            Ok(Taken::Some(count)) => self.pending.keep(&bytes[count..]),
            Ok(Taken::Nobody) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn flush(&mut self) {
        match self.sink.offer(self.pending.rest()) {
            Ok(Taken::Some(0)) => {}
            Ok(Taken::Some(count)) => {
                self.moved = Instant::now();
                self.pending.advance(count);
            }
            Ok(Taken::Nobody) => self.pending.clear(),
            Err(error) => self.fail(&error),
        }
    }

    /// A sink that fails (a full disk) must not stop the container: its output is thrown away from here on.
    fn fail(&mut self, error: &io::Error) {
        crate::daemon::log(&format!("a standard stream is lost: {error}"));
        self.pending.clear();
        self.sink = Sink::Nowhere;
    }
}

/// The input stream: from a named pipe to the container's pipe or terminal.
#[derive(Debug)]
pub(crate) struct Input {
    source: Option<File>,
    target: Option<File>,
    pending: Pending,
    /// What the source has now is all that is wanted of it.
    closing: bool,
    /// Whether a target that nobody reads is an end: so for a pipe, not for a terminal, which may be opened again.
    watched: bool,
}

/// How many times [`Input`] reads before others have their turn.
const TURN: usize = 4;

/// How many times [`Input`] reads at most once it is being closed: more than a pipe holds.
const LAST_TURN: usize = 1024;

impl Input {
    /// From a named pipe to the container's pipe.
    pub(crate) fn to_pipe(source: File, target: File) -> Self {
        Self { source: Some(source), target: Some(target), pending: Pending::default(), closing: false, watched: true }
    }

    /// From a named pipe to the container's terminal.
    pub(crate) fn to_terminal(source: File, target: File) -> Self {
        Self { watched: false, ..Self::to_pipe(source, target) }
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let waiting = !self.pending.is_empty();
        // Asked for nothing, a pipe still tells that its reader is gone.
        let flags = if waiting { PollFlags::POLLOUT } else { PollFlags::empty() };
        let target = self.target.as_ref().filter(|_| waiting || self.watched).map(|target| (target.as_fd(), flags));
        let source = self.source.as_ref().filter(|_| !waiting).map(|source| (source.as_fd(), PollFlags::POLLIN));
        source.into_iter().chain(target)
    }

    /// Closes the stream for the container once it has what was sent so far.
    pub(crate) fn close(&mut self, scratch: &mut [u8]) {
        self.closing = true;
        self.advance(scratch);
    }

    /// Moves what can be moved.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) {
        for _ in 0..if self.closing { LAST_TURN } else { TURN } {
            if !self.pending.is_empty() && !self.flush() {
                return;
            }
            let Some(source) = &mut self.source else {
                self.target = None;
                return;
            };
            match source.read(scratch) {
                Ok(0) => self.source = None,
                Ok(count) => self.pending.keep(&scratch[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !self.closing => return,
                Err(_) => self.source = None,
            }
        }
        if self.closing {
            self.hang_up();
        }
    }

    /// The far end went away: nobody wants more.
    pub(crate) fn hang_up(&mut self) {
        self.source = None;
        self.target = None;
        self.pending.clear();
    }

    /// Whether nothing is left to move.
    pub(crate) fn is_done(&self) -> bool {
        self.target.is_none()
    }

    /// Writes what is pending; whether all of it went.
    fn flush(&mut self) -> bool {
        while let Some(target) = &mut self.target {
            match target.write(self.pending.rest()) {
                Ok(count) => self.pending.advance(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => self.hang_up(),
            }
            if self.pending.is_empty() {
                break;
            }
        }
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().expect("pipe");
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        crate::sys::set_nonblocking(&reader).expect("set");
        crate::sys::set_nonblocking(&writer).expect("set");
        (reader.into(), writer.into())
    }

    fn fifo(dir: &tempfile::TempDir) -> (File, Sink) {
        use std::os::unix::fs::OpenOptionsExt;
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let reader = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("open");
        let mut sink = Sink::open(&crate::Stdio::Fifo(path)).expect("sink");
        sink.release();
        (reader, sink)
    }

    #[test]
    fn a_slow_reader_stops_reading_and_loses_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut reader, sink) = fifo(&dir);
        let (source, mut container) = pipe();
        let mut output = Output::new(source, sink);
        let mut scratch = [0; 4096];
        let (mut sent, mut seen) = (0u32, Vec::new());
        // Until neither pipe takes more.
        loop {
            let before = sent;
            while container.write(&sent.to_ne_bytes()).is_ok() {
                sent += 1;
            }
            for _ in 0..64 {
                output.advance(&mut scratch);
            }
            if sent == before {
                break;
            }
        }
        assert!(output.is_held_up());
        assert_eq!(output.interest().expect("waits").1, PollFlags::POLLOUT);
        assert!(output.pending.rest().len() <= scratch.len());
        drop(container);
        let mut buffer = [0; 1000];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                Err(_) => output.advance(&mut scratch),
            }
        }
        assert!(output.is_done());
        let numbers: Vec<u32> =
            seen.chunks(4).map(|four| u32::from_ne_bytes(four.try_into().expect("four bytes"))).collect();
        assert!(numbers.iter().copied().eq(0..sent), "{} of {sent}", numbers.len());
    }

    #[test]
    fn a_reader_that_left_does_not_hold_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (reader, sink) = fifo(&dir);
        let (source, mut container) = pipe();
        let mut output = Output::new(source, sink);
        let mut scratch = [0; 4096];
        // Full first, so that bytes are pending when the reader leaves.
        while container.write(&[1; 512]).is_ok() {}
        while !output.is_held_up() {
            output.advance(&mut scratch);
            while container.write(&[1; 512]).is_ok() {}
        }
        drop(reader);
        for _ in 0..100 {
            output.advance(&mut scratch);
        }
        assert!(!output.is_held_up());
        assert!(container.write(&[1; 512]).is_ok(), "it was read to the end");
        drop(container);
        output.advance(&mut scratch);
        output.advance(&mut scratch);
        assert!(output.is_done());
    }

    #[test]
    fn input_arrives_whole_and_ends_when_its_writers_leave() {
        let (source, mut client) = pipe();
        let (mut container, target) = pipe();
        let mut input = Input::to_pipe(source, target);
        let mut scratch = [0; 4096];
        let sent: Vec<u8> = (0..600_000u32).map(|n| (n % 251) as u8).collect();
        let (mut rest, mut seen) = (sent.as_slice(), Vec::new());
        let mut buffer = [0; 777];
        let mut client = loop {
            if let Ok(count) = client.write(rest) {
                rest = &rest[count..];
            }
            input.advance(&mut scratch);
            if let Ok(count) = container.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..count]);
            }
            if rest.is_empty() {
                break Some(client);
            }
        };
        assert!(!input.is_done());
        client.take();
        loop {
            input.advance(&mut scratch);
            match container.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
                Err(_) => {}
            }
        }
        assert!(input.is_done());
        assert!(seen == sent);
    }

    #[test]
    fn closing_hands_on_what_was_sent_though_a_writer_stays() {
        let (source, mut client) = pipe();
        let (mut container, target) = pipe();
        let mut input = Input::to_pipe(source, target);
        let mut scratch = [0; 4];
        client.write_all(b"the last words").expect("write");
        input.close(&mut scratch);
        assert!(input.is_done());
        let mut seen = String::new();
        container.read_to_string(&mut seen).expect("read to the end");
        assert_eq!(seen, "the last words");
    }

    #[test]
    fn input_ends_when_the_container_closes_it() {
        let (source, mut client) = pipe();
        let (container, target) = pipe();
        let mut input = Input::to_pipe(source, target);
        drop(container);
        client.write_all(b"unwanted").expect("write");
        input.advance(&mut [0; 64]);
        assert!(input.is_done());
        assert!(client.write_all(b"more").is_err(), "the client learns of it");
    }
}
