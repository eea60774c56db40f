//! One client of the shim.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::poll::PollFlags;

use crate::codec::{self, Decoder, Frame};
use crate::error::Result;
use crate::proto::Status;

/// From so many unsent bytes on, no more requests are read: a client that does not read its answers gets no new ones.
const FULL: usize = 64 << 10;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Its number, never used twice.
    pub(crate) number: u64,
    stream: UnixStream,
    decoder: Decoder,
    unsent: Vec<u8>,
    gone: bool,
}

impl Connection {
    /// Takes over a stream that does not block.
    pub(crate) fn new(number: u64, stream: UnixStream) -> Self {
        Self { number, stream, decoder: Decoder::default(), unsent: Vec::new(), gone: false }
    }

    /// Whether the client has left or broken the protocol.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Whether all answers are on their way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, self.unsent.len() < FULL);
        flags.set(PollFlags::POLLOUT, !self.unsent.is_empty());
        (self.stream.as_fd(), flags)
    }

    /// Reads once, and returns the frames that are whole now.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        match self.stream.read(scratch) {
            Ok(0) => self.gone = true,
            Ok(count) => {
                self.decoder.push(&scratch[..count]);
                loop {
                    match self.decoder.next_frame() {
                        Ok(Some(frame)) => frames.push(frame),
                        Ok(None) => break,
                        Err(error) => {
                            self.drop_out(&error.to_string());
                            break;
                        }
                    }
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
        frames
    }

    /// Answers a request, as far as the client takes it now.
    pub(crate) fn answer(&mut self, stream: u32, answer: Result<Vec<u8>, Status>) {
        match codec::encode_response(&mut self.unsent, stream, answer) {
            Ok(()) => self.send(),
            Err(error) => self.drop_out(&error.to_string()),
        }
    }

    /// Sends bytes, as far as the other side takes them now.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.send();
    }

    /// Sends what the client takes now.
    pub(crate) fn send(&mut self) {
        while !self.unsent.is_empty() && !self.gone {
            match self.stream.write(&self.unsent) {
                Ok(count) => {
                    self.unsent.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.gone = true,
            }
        }
    }

    /// Gives up a client that breaks the protocol.
    pub(crate) fn drop_out(&mut self, reason: &str) {
        crate::daemon::log(&format!("dropped a client: {reason}"));
        self.gone = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::StateRequest;

    #[test]
    fn a_client_that_reads_nothing_costs_a_bounded_amount() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("set");
        theirs.set_nonblocking(true).expect("set");
        let mut connection = Connection::new(1, ours);
        let mut requests = Vec::new();
        for stream in 0..100u32 {
            let call = StateRequest { id: "c".into(), ..Default::default() };
            codec::encode_request(&mut requests, stream * 2 + 1, &call).expect("encode");
        }
        let (mut scratch, mut asked, mut answered) = (vec![0; 4096], 0, 0);
        for _ in 0..100_000 {
            asked += usize::from(theirs.write(&requests).is_ok());
            if connection.interest().1.contains(PollFlags::POLLIN) {
                for frame in connection.receive(&mut scratch) {
                    connection.answer(frame.stream, Ok(vec![0; 100]));
                    answered += 1;
                }
            }
        }
        assert!(!connection.is_gone());
        assert!(asked > 0 && answered > 0);
        assert!(connection.unsent.len() < FULL + 100 * 200, "{}", connection.unsent.len());
        assert_eq!(connection.interest().1, PollFlags::POLLOUT);
        drop(theirs);
        connection.send();
        assert!(connection.is_gone());
    }

    #[test]
    fn garbage_ends_the_connection_alone() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let mut connection = Connection::new(1, ours);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("write");
        assert!(connection.receive(&mut [0; 512]).is_empty());
        assert!(connection.is_gone());
    }
}
