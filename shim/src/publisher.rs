//! Tells containerd of events, one after the other, without ever waiting.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::PollFlags;

use crate::codec;
use crate::connection::Connection;
use crate::daemon::log;
use crate::proto::Any;
use crate::proto::events::{Envelope, ForwardRequest, TaskEvent};

/// How many events wait at most; the oldest are given up.
const QUEUE: usize = 2048;

/// How long containerd may take to answer, and how long it is left alone after a failure.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is tried to publish an event.
const TRIES: u32 = 5;

/// The events that containerd has not taken yet, in their order.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: PathBuf,
    namespace: String,
    queue: VecDeque<ForwardRequest>,
    connection: Option<Connection>,
    /// The stream of the last call. Odd, as clients' are.
    stream: u32,
    /// Whether the first event of the queue is on its way.
    under_way: bool,
    /// How often that was tried, and when it is to be looked at again.
    tries: u32,
    next: Instant,
}

impl Publisher {
    pub(crate) fn new(address: PathBuf, namespace: String) -> Self {
        Self {
            address,
            namespace,
            queue: VecDeque::new(),
            connection: None,
            stream: 1,
            under_way: false,
            tries: 0,
            next: Instant::now(),
        }
    }

    /// Adds an event.
    pub(crate) fn publish<E: TaskEvent>(&mut self, event: &E) {
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any::pack(event)),
        };
        if self.queue.len() >= QUEUE {
            // The first may be on its way.
            self.queue.remove(1);
        }
        self.queue.push_back(ForwardRequest { envelope: Some(envelope) });
    }

    /// Whether all is told, or given up.
    pub(crate) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// What to poll for.
    pub(crate) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        self.connection.as_ref().map(Connection::interest)
    }

    /// When to look again, whatever happens.
    pub(crate) fn patience(&self) -> Option<Duration> {
        (!self.queue.is_empty()).then(|| self.next.saturating_duration_since(Instant::now()))
    }

    /// Sends what can be sent.
    pub(crate) fn advance(&mut self, flags: PollFlags, scratch: &mut [u8]) {
        if let Some(connection) = &mut self.connection {
            if flags.contains(PollFlags::POLLOUT) {
                connection.send();
            }
            if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                for frame in connection.receive(scratch) {
                    if self.under_way && frame.stream == self.stream {
                        self.under_way = false;
                        self.tries = 0;
                        self.queue.pop_front();
                        if let Err(error) = codec::decode_response::<ForwardRequest>(&frame) {
                            log(&format!("containerd refuses an event: {error}"));
                        }
                    }
                }
            }
        }
        let now = Instant::now();
        let gone = self.connection.as_ref().is_some_and(Connection::is_gone);
        if gone || self.under_way && self.next <= now {
            self.connection = None;
            if self.under_way {
                self.failed("containerd does not answer");
            }
        }
        if !self.under_way && !self.queue.is_empty() && (self.tries == 0 || self.next <= now) {
            self.send();
        }
    }

    fn send(&mut self) {
        let Some(request) = self.queue.front() else { return };
        if self.connection.is_none() {
            let stream = UnixStream::connect(&self.address).and_then(|stream| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match stream {
                Ok(stream) => self.connection = Some(Connection::new(0, stream)),
                Err(error) => return self.failed(&error.to_string()),
            }
        }
        let Some(connection) = &mut self.connection else { return };
        self.stream = self.stream.wrapping_add(2);
        let mut bytes = Vec::new();
        if codec::encode_request(&mut bytes, self.stream, request).is_err() {
            // Longer than a frame: nobody can be told.
            self.queue.pop_front();
            return;
        }
        connection.push(&bytes);
        self.under_way = true;
        self.next = Instant::now() + PATIENCE;
    }

    fn failed(&mut self, reason: &str) {
        self.under_way = false;
        self.tries += 1;
        self.next = Instant::now() + PATIENCE;
        if self.tries >= TRIES {
            log(&format!("an event is given up: {reason}"));
            self.queue.pop_front();
            self.tries = 0;
        }
    }
}
