//! Moves what a container writes to the places where it goes, without ever waiting.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use crate::logfile::{Journal, Stream};
use crate::stdio::{Sink, Taken};

/// The attachment's number of the place that the request named.
pub(crate) const NAMED: u64 = 0;

/// Where an output's bytes come from.
#[derive(Debug)]
enum Source {
    /// It is not there yet: a terminal that the runtime will make.
    Awaited,
    Open(File),
    Ended,
}

/// One place where an output goes.
#[derive(Debug)]
struct Branch {
    /// [`NAMED`], or which attachment this is.
    number: u64,
    sink: Sink,
    /// How many of the pending bytes it has taken.
    taken: usize,
}

/// One output stream: from the container's pipe or terminal to its log and to any number of sinks.
///
/// A slow reader slows the container down: while bytes are pending nothing more is read. A reader that has gone away does
/// not: what it would have read is thrown away.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stream: Stream,
    source: Source,
    journal: Option<Journal>,
    branches: Vec<Branch>,
    /// Bytes that were read and that not all branches have taken yet: at most one read's worth.
    pending: Vec<u8>,
    /// When bytes moved last.
    pub(crate) moved: Instant,
}

impl Output {
    /// An output whose source is still to come.
    pub(crate) fn new(stream: Stream, sink: Sink, journal: Option<Journal>) -> Self {
        let branches = match sink {
            Sink::Nowhere => Vec::new(),
            sink => vec![Branch { number: NAMED, sink, taken: 0 }],
        };
        Self { stream, source: Source::Awaited, journal, branches, pending: Vec::new(), moved: Instant::now() }
    }

    /// Where its bytes come from.
    pub(crate) fn connect(&mut self, source: File) {
        self.source = Source::Open(source);
    }

    /// The container starts: see [`Sink::release`].
    pub(crate) fn release(&mut self) {
        self.branches.iter_mut().for_each(|branch| branch.sink.release());
    }

    /// Hands on what comes from now on to this sink, too.
    pub(crate) fn attach(&mut self, number: u64, sink: Sink) {
        self.branches.push(Branch { number, sink, taken: self.pending.len() });
        self.finish();
    }

    /// How many sinks are attached.
    pub(crate) fn attachments(&self) -> usize {
        self.branches.iter().filter(|branch| branch.number != NAMED).count()
    }

    /// Gives up an attachment, whose reader wants no more or is gone.
    pub(crate) fn detach(&mut self, number: u64) {
        self.branches.retain(|branch| branch.number != number);
        self.finish();
    }

    /// Whether everything that the container wrote has been handed on.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.source, Source::Ended) && self.pending.is_empty()
    }

    /// Whether a reader holds up the stream.
    pub(crate) fn is_held_up(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Reads no more from the container; what is pending is still handed on.
    pub(crate) fn abandon_source(&mut self) {
        self.source = Source::Ended;
        self.finish();
    }

    /// What to poll for: the source, or a branch that is behind. An attachment is watched in any case: asked for nothing, a pipe
    /// still tells that its reader is gone.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (Option<u64>, BorrowedFd<'_>, PollFlags)> {
        let source = match &self.source {
            Source::Open(source) if self.pending.is_empty() => Some((None, source.as_fd(), PollFlags::POLLIN)),
            _ => None,
        };
        let branches = self.branches.iter().filter_map(|branch| {
            let behind = branch.taken < self.pending.len();
            let flags = if behind { PollFlags::POLLOUT } else { PollFlags::empty() };
            (behind || branch.number != NAMED).then_some((Some(branch.number), branch.sink.fd()?, flags))
        });
        source.into_iter().chain(branches)
    }

    /// Moves what can be moved. `scratch` is where bytes pass through.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let moved = offer(&mut self.branches, &pending);
            self.pending = pending;
            if moved {
                self.moved = Instant::now();
            }
            self.forget();
        }
        if self.pending.is_empty()
            && let Source::Open(source) = &mut self.source
        {
            match source.read(scratch) {
                Ok(0) => self.source = Source::Ended,
                Ok(count) => self.hand_on(&scratch[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // A terminal answers EIO once nobody has its other side open: that is its end.
                Err(_) => self.source = Source::Ended,
            }
        }
        self.finish();
    }

    fn hand_on(&mut self, bytes: &[u8]) {
        self.moved = Instant::now();
        if let Some(journal) = &mut self.journal {
            journal.write(bytes);
        }
        self.branches.iter_mut().for_each(|branch| branch.taken = 0);
        offer(&mut self.branches, bytes);
        // Kept from the first byte on that one has not taken.
        let first = self.branches.iter().map(|branch| branch.taken).min().unwrap_or(bytes.len());
        self.pending.extend_from_slice(&bytes[first..]);
        self.branches.iter_mut().for_each(|branch| branch.taken -= first);
    }

    /// Gives the pending bytes back once all have taken them: most containers never write faster than they are read.
    fn forget(&mut self) {
        if self.branches.iter().all(|branch| branch.taken == self.pending.len()) {
            self.pending = Vec::new();
            self.branches.iter_mut().for_each(|branch| branch.taken = 0);
        }
    }

    /// At the end, closes each sink that has all, so that its reader sees the end; and the log.
    fn finish(&mut self) {
        self.forget();
        if matches!(self.source, Source::Ended) {
            let all = self.pending.len();
            self.branches.retain(|branch| branch.taken < all);
            if let Some(mut journal) = self.journal.take() {
                journal.finish();
            }
        }
    }
}

/// Offers to each branch what it has not taken yet. Returns whether anything moved. Attachments without a reader and sinks that
/// fail are removed.
fn offer(branches: &mut Vec<Branch>, bytes: &[u8]) -> bool {
    let mut moved = false;
    branches.retain_mut(|branch| {
        let rest = &bytes[branch.taken..];
        if rest.is_empty() {
            return true;
        }
        match branch.sink.offer(rest) {
            Ok(Taken::Some(count)) => {
                moved |= count > 0;
                branch.taken += count;
                true
            }
            Ok(Taken::Nobody) => {
                branch.taken = bytes.len();
                branch.number == NAMED
            }
            // It must not stop the container: what goes there is thrown away from here on.
            Err(error) => {
                crate::daemon::log(&format!("a standard stream is lost: {error}"));
                false
            }
        }
    });
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().expect("pipe");
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        crate::sys::set_nonblocking(&reader).expect("set");
        crate::sys::set_nonblocking(&writer).expect("set");
        (reader.into(), writer.into())
    }

    fn fifo(dir: &tempfile::TempDir, name: &str) -> (File, Sink) {
        use std::os::unix::fs::OpenOptionsExt;
        let path = dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let reader = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).expect("open");
        let mut sink = Sink::open(&crate::Stdio::Fifo(path)).expect("sink");
        sink.release();
        (reader, sink)
    }

    fn output(sink: Sink) -> (Output, File) {
        let (source, container) = pipe();
        let mut output = Output::new(Stream::Stdout, sink, None);
        output.connect(source);
        (output, container)
    }

    /// Reads what there is; `false` once the end was seen.
    fn read_some(reader: &mut File, seen: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 1000];
        match reader.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => seen.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        true
    }

    #[test]
    fn a_slow_reader_stops_reading_and_nobody_loses_anything() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut slow, sink) = fifo(&dir, "slow");
        let (mut quick, second) = fifo(&dir, "quick");
        let (mut output, mut container) = output(sink);
        output.attach(1, second);
        let mut scratch = [0; 4096];
        let (mut sent, mut seen, mut seen_quickly) = (0u32, Vec::new(), Vec::new());
        // Until the slow reader's pipe and the container's take no more.
        loop {
            let before = sent;
            while container.write(&sent.to_ne_bytes()).is_ok() {
                sent += 1;
            }
            for _ in 0..64 {
                output.advance(&mut scratch);
                read_some(&mut quick, &mut seen_quickly);
            }
            if sent == before {
                break;
            }
        }
        assert!(output.is_held_up());
        let waits: Vec<_> = output.interest().map(|(number, _, flags)| (number, flags)).collect();
        assert_eq!(waits, [(Some(NAMED), PollFlags::POLLOUT), (Some(1), PollFlags::empty())]);
        assert!(output.pending.len() <= scratch.len());
        drop(container);
        while read_some(&mut slow, &mut seen) {
            output.advance(&mut scratch);
            read_some(&mut quick, &mut seen_quickly);
        }
        while read_some(&mut quick, &mut seen_quickly) {}
        assert!(output.is_done());
        assert_eq!(seen, seen_quickly);
        let numbers: Vec<u32> =
            seen.chunks(4).map(|four| u32::from_ne_bytes(four.try_into().expect("four bytes"))).collect();
        assert!(numbers.iter().copied().eq(0..sent), "{} of {sent}", numbers.len());
    }

    #[test]
    fn a_reader_that_left_does_not_hold_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (named, sink) = fifo(&dir, "named");
        let (attached, second) = fifo(&dir, "attached");
        let (mut output, mut container) = output(sink);
        output.attach(7, second);
        let mut scratch = [0; 4096];
        // Full first, so that bytes are pending when the readers leave.
        while container.write(&[1; 512]).is_ok() {}
        while !output.is_held_up() {
            output.advance(&mut scratch);
            while container.write(&[1; 512]).is_ok() {}
        }
        drop(attached);
        output.advance(&mut scratch);
        assert!(output.is_held_up(), "by the other");
        assert_eq!(output.branches.len(), 1);
        drop(named);
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
    fn who_attaches_sees_what_comes_from_then_on_and_the_end() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut output, mut container) = output(Sink::Nowhere);
        let mut scratch = [0; 64];
        let mut step = |output: &mut Output, text: &[u8]| {
            container.write_all(text).expect("write");
            output.advance(&mut scratch);
        };
        step(&mut output, b"one ");
        let (mut first, sink) = fifo(&dir, "first");
        output.attach(1, sink);
        step(&mut output, b"two ");
        let (mut second, sink) = fifo(&dir, "second");
        output.attach(2, sink);
        step(&mut output, b"three ");
        output.detach(1);
        step(&mut output, b"four");
        output.abandon_source();
        assert!(output.is_done());
        for (reader, expected) in [(&mut first, "two three "), (&mut second, "three four")] {
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("read to the end");
            assert_eq!(text, expected);
        }
        let (mut late, sink) = fifo(&dir, "late");
        output.attach(3, sink);
        assert_eq!(late.read(&mut [0; 8]).expect("the end at once"), 0);
    }
}
