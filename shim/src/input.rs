//! Moves what is sent to a container to its standard input, without ever waiting.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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

/// Somebody who sends.
#[derive(Debug)]
struct Sender {
    /// Which attachment; [`NAMED`](crate::output::NAMED) is the pipe that the request named.
    number: u64,
    file: File,
    /// Whether its end is that of the whole input.
    closes: bool,
    /// It has sent all it will, and what lies in its pipe is the rest.
    leaving: bool,
}

/// Where an input's bytes go.
#[derive(Debug)]
enum Target {
    /// It is not there yet: a terminal that the runtime will make.
    Awaited,
    Open(File),
    Closed,
}

/// The input stream: from any number of named pipes to the container's pipe or terminal.
#[derive(Debug)]
pub(crate) struct Input {
    senders: Vec<Sender>,
    target: Target,
    pending: Pending,
    /// What the senders have sent until now is all that is wanted.
    closing: bool,
    /// Whether a target that nobody reads is an end: so for a pipe, not for a terminal, which may be opened again.
    watched: bool,
}

/// How many times [`Input`] reads before others have their turn.
const TURN: usize = 4;

/// How many times [`Input`] reads at most once it is being closed: more than a pipe holds.
const LAST_TURN: usize = 1024;

impl Input {
    /// From a named pipe, if there is one, and from who attaches. Without one it is open until it is closed.
    pub(crate) fn new(source: Option<File>) -> Self {
        let sender = |file| Sender { number: crate::output::NAMED, file, closes: true, leaving: false };
        let senders = source.map(sender).into_iter().collect();
        Self { senders, target: Target::Awaited, pending: Pending::default(), closing: false, watched: false }
    }

    /// To the container's pipe.
    pub(crate) fn connect_pipe(&mut self, target: File) {
        self.target = Target::Open(target);
        self.watched = true;
    }

    /// To the container's terminal.
    pub(crate) fn connect_terminal(&mut self, target: File) {
        self.target = Target::Open(target);
    }

    /// Takes from this pipe, too. `closes` says whether its end is that of the whole input.
    pub(crate) fn attach(&mut self, number: u64, file: File, closes: bool) {
        self.senders.push(Sender { number, file, closes, leaving: false });
    }

    /// How many senders there are.
    pub(crate) fn attachments(&self) -> usize {
        self.senders.len()
    }

    /// Takes no more from an attachment than what it has sent.
    pub(crate) fn detach(&mut self, number: u64, scratch: &mut [u8]) {
        for sender in self.senders.iter_mut().filter(|sender| sender.number == number) {
            sender.closes = false;
            sender.leaving = true;
        }
        self.advance(scratch);
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let waiting = !self.pending.is_empty();
        // Asked for nothing, a pipe still tells that its reader is gone.
        let flags = if waiting { PollFlags::POLLOUT } else { PollFlags::empty() };
        let target = match &self.target {
            Target::Open(target) if waiting || self.watched => Some((target.as_fd(), flags)),
            _ => None,
        };
        let open = matches!(self.target, Target::Open(_));
        let senders = self.senders.iter().filter(move |_| open && !waiting);
        senders.map(|sender| (sender.file.as_fd(), PollFlags::POLLIN)).chain(target)
    }

    /// Closes the stream for the container once it has what was sent so far.
    pub(crate) fn close(&mut self, scratch: &mut [u8]) {
        self.closing = true;
        self.advance(scratch);
    }

    /// Moves what can be moved.
    pub(crate) fn advance(&mut self, scratch: &mut [u8]) {
        if matches!(self.target, Target::Awaited) {
            return;
        }
        for _ in 0..if self.closing { LAST_TURN } else { TURN } {
            if !self.pending.is_empty() && !self.flush() {
                return;
            }
            if self.senders.is_empty() && self.closing {
                self.target = Target::Closed;
            }
            if self.is_done() || !self.take(scratch) {
                return;
            }
        }
        if self.closing {
            self.hang_up();
        }
    }

    /// Reads from the first sender that has something. Whether there may be more to do.
    fn take(&mut self, scratch: &mut [u8]) -> bool {
        let mut at = 0;
        while let Some(sender) = self.senders.get_mut(at) {
            // Before its first writer comes a named pipe reads as ended.
            if !self.closing && !sender.leaving && !is_ready(&sender.file) {
                at += 1;
                continue;
            }
            let ended = match sender.file.read(scratch) {
                Ok(0) => true,
                Ok(count) => {
                    self.pending.keep(&scratch[..count]);
                    // The next is asked first the next time.
                    self.senders.rotate_left(at + 1);
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.closing || sender.leaving,
                Err(_) => true,
            };
            if ended {
                let sender = self.senders.remove(at);
                self.closing |= sender.closes;
            } else {
                at += 1;
            }
        }
        self.closing
    }

    /// The far end went away: nobody wants more.
    pub(crate) fn hang_up(&mut self) {
        self.senders.clear();
        self.target = Target::Closed;
        self.pending.clear();
    }

    /// Whether nothing is left to move, ever.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.target, Target::Closed)
    }

    /// Writes what is pending; whether all of it went.
    fn flush(&mut self) -> bool {
        while let Target::Open(target) = &mut self.target {
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

/// Whether a pipe has bytes, or had a writer and has none any more.
fn is_ready(file: &File) -> bool {
    poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|count| count > 0)
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

    fn input(source: Option<File>, target: File) -> Input {
        let mut input = Input::new(source);
        input.connect_pipe(target);
        input
    }

    #[test]
    fn input_arrives_whole_and_ends_when_its_writers_leave() {
        let (source, mut client) = pipe();
        let (mut container, target) = pipe();
        let mut input = input(Some(source), target);
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
        let mut input = input(Some(source), target);
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
        let mut input = input(Some(source), target);
        drop(container);
        client.write_all(b"unwanted").expect("write");
        input.advance(&mut [0; 64]);
        assert!(input.is_done());
        assert!(client.write_all(b"more").is_err(), "the client learns of it");
    }

    #[test]
    fn many_senders_share_an_input_that_stays_open_until_one_that_closes_it_ends() {
        let (mut container, target) = pipe();
        let mut input = input(None, target);
        let mut scratch = [0; 64];
        input.advance(&mut scratch);
        assert!(!input.is_done(), "nobody is attached");
        let mut senders = Vec::new();
        for number in 1..=3 {
            let (source, sender) = pipe();
            input.attach(number, source, number == 3);
            senders.push(sender);
        }
        let mut seen = String::new();
        let mut expect = |input: &mut Input, expected: &str| {
            let mut scratch = [0; 64];
            input.advance(&mut scratch);
            let mut buffer = [0; 64];
            seen.clear();
            while let Ok(count) = container.read(&mut buffer) {
                seen.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
                if count == 0 {
                    seen.push_str("the end");
                    break;
                }
            }
            assert_eq!(seen, expected);
        };
        senders[1].write_all(b"b").expect("write");
        expect(&mut input, "b");
        senders[0].write_all(b"a").expect("write");
        senders.remove(0);
        expect(&mut input, "a");
        senders[0].write_all(b"c").expect("write");
        input.detach(2, &mut scratch);
        assert!(senders[0].write_all(b"unwanted").is_err(), "it is told");
        expect(&mut input, "c");
        senders[1].write_all(b"d").expect("write");
        senders.clear();
        expect(&mut input, "dthe end");
        assert!(input.is_done());
    }
}
