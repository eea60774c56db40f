//! The task API's client side: one call at a time on a connection to a shim, on tokio; or on a thread that may block, where
//! calls can be sent before the answers of earlier ones are there.

use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::unix::net::UnixStream as BlockingStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use estiba_shim::codec::{Decoder, decode_response, encode_request};
use estiba_shim::proto::Call;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

type Result<T> = std::result::Result<T, estiba_shim::Error>;

/// A connection to a shim.
///
/// A call whose future was dropped may have left half a frame behind: the connection is then given up, never reused.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// Stream of the next call. Odd, as clients' are.
    next: u32,
    /// A call is under way, or was when its future was dropped.
    in_call: bool,
    /// Where answers arrive; here, so that futures stay small.
    buffer: Box<[u8]>,
}

impl Connection {
    pub(crate) fn new(stream: BlockingStream) -> io::Result<Self> {
        Blocking::new(stream).into_async()
    }

    /// For a thread that may block.
    pub(crate) fn into_blocking(self) -> io::Result<Blocking> {
        if self.in_call {
            return Err(given_up());
        }
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(Blocking { stream, decoder: self.decoder, next: self.next })
    }

    /// Calls the shim and waits for its answer.
    pub(crate) async fn call<C: Call>(&mut self, call: &C) -> Result<C::Response> {
        let lost = |source| estiba_shim::Error::Disconnected { method: C::METHOD, log: String::new(), source };
        if self.in_call {
            return Err(lost(given_up()));
        }
        self.in_call = true;
        let mut request = Vec::new();
        encode_request(&mut request, self.next, call)?;
        self.stream.write_all(&request).await.map_err(lost)?;
        let answer = loop {
            if let Some(frame) = self.decoder.next_frame()? {
                if frame.stream == self.next {
                    break frame;
                }
                continue;
            }
            match self.stream.read(&mut self.buffer).await.map_err(lost)? {
                0 => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                count => self.decoder.push(&self.buffer[..count]),
            }
        };
        self.next = self.next.wrapping_add(2);
        self.in_call = false;
        decode_response::<C>(&answer)
    }

    /// Waits until the shim has closed the connection, which it does by ending.
    pub(crate) async fn closed(mut self) {
        while matches!(self.stream.read(&mut self.buffer).await, Ok(count) if count > 0) {}
    }
}

fn given_up() -> io::Error {
    io::Error::other("an earlier call on this connection was given up")
}

/// A connection to a shim whose calls block.
#[derive(Debug)]
pub(crate) struct Blocking {
    stream: BlockingStream,
    decoder: Decoder,
    next: u32,
}

/// A call whose answer is to come. Answers are taken in the order of the calls.
#[derive(Debug)]
pub(crate) struct Sent<C>(u32, PhantomData<C>);

impl Blocking {
    pub(crate) fn new(stream: BlockingStream) -> Self {
        Self { stream, decoder: Decoder::default(), next: 1 }
    }

    /// For tokio. All answers have been taken.
    pub(crate) fn into_async(self) -> io::Result<Connection> {
        self.stream.set_nonblocking(true)?;
        Ok(Connection {
            stream: UnixStream::from_std(self.stream)?,
            decoder: self.decoder,
            next: self.next,
            in_call: false,
            buffer: vec![0; 4096].into(),
        })
    }

    /// Calls the shim and waits for its answer.
    pub(crate) fn call<C: Call>(&mut self, call: &C) -> Result<C::Response> {
        let sent = self.send(call)?;
        self.answer(&sent)
    }

    /// Calls the shim, whose answer is taken later.
    pub(crate) fn send<C: Call>(&mut self, call: &C) -> Result<Sent<C>> {
        let mut request = Vec::new();
        encode_request(&mut request, self.next, call)?;
        self.stream.write_all(&request).map_err(lost::<C>)?;
        let sent = Sent(self.next, PhantomData);
        self.next = self.next.wrapping_add(2);
        Ok(sent)
    }

    /// Waits for the answer to a call.
    pub(crate) fn answer<C: Call>(&mut self, sent: &Sent<C>) -> Result<C::Response> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                if frame.stream == sent.0 {
                    return decode_response::<C>(&frame);
                }
                continue;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(lost::<C>(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost::<C>(error)),
            }
        }
    }

    /// Waits until the shim has closed the connection, which it does by ending.
    pub(crate) fn closed(mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    }
}

fn lost<C: Call>(source: io::Error) -> estiba_shim::Error {
    estiba_shim::Error::Disconnected { method: C::METHOD, log: String::new(), source }
}

/// The connections that a thread blocks on, and whether somebody still waits for what it does.
#[derive(Debug, Default)]
struct Wires {
    given_up: bool,
    streams: Vec<BlockingStream>,
}

/// Held by a future that waits for a thread which blocks on connections. If it is dropped before [`done`](Self::done), the
/// connections are shut down: the calls of the thread fail, and to the shim its client has left.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    wires: Arc<Mutex<Wires>>,
    done: bool,
}

/// The thread's half of a [`Waiter`].
#[derive(Debug)]
pub(crate) struct Waited(Arc<Mutex<Wires>>);

impl Waiter {
    pub(crate) fn waited(&self) -> Waited {
        Waited(Arc::clone(&self.wires))
    }

    /// The thread has come to its end.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Waited {
    /// Says that the thread is going to block on a connection.
    pub(crate) fn watch(&self, connection: &Blocking) -> io::Result<()> {
        let stream = connection.stream.try_clone()?;
        let mut wires = held(&self.0);
        if wires.given_up {
            return stream.shutdown(Shutdown::Both);
        }
        wires.streams.push(stream);
        Ok(())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut wires = held(&self.wires);
        wires.given_up = true;
        for stream in wires.streams.drain(..) {
            // One that is shut down already is as it should be.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        // From here on the connections are the caller's.
        held(&self.0).streams.clear();
    }
}

fn held(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use estiba_shim::codec::encode_response;
    use estiba_shim::proto;

    use super::*;

    #[test]
    fn calls_are_answered_in_their_order() {
        let (ours, mut theirs) = BlockingStream::pair().expect("a pair");
        let mut connection = Blocking::new(ours);
        let first = connection.send(&proto::StartRequest::default()).expect("sent");
        let second = connection.send(&proto::StartRequest::default()).expect("sent");
        let mut answers = Vec::new();
        encode_response(&mut answers, 1, Ok(b"\x08\x07".to_vec())).expect("encoded");
        encode_response(&mut answers, 3, Ok(b"\x08\x2a".to_vec())).expect("encoded");
        theirs.write_all(&answers).expect("written");
        assert_eq!(connection.answer(&first).expect("answered").pid, 7);
        assert_eq!(connection.answer(&second).expect("answered").pid, 42);
    }

    #[test]
    fn who_waits_no_more_ends_the_calls() {
        let (ours, _theirs) = BlockingStream::pair().expect("a pair");
        let mut connection = Blocking::new(ours);
        let caller = Waiter::default();
        let waited = caller.waited();
        waited.watch(&connection).expect("watched");
        let thread = std::thread::spawn(move || connection.call(&proto::StartRequest::default()));
        drop(caller);
        let error = thread.join().expect("no panic").expect_err("given up");
        assert!(matches!(error, estiba_shim::Error::Disconnected { .. }), "{error}");
        let (ours, _theirs) = BlockingStream::pair().expect("a pair");
        let mut late = Blocking::new(ours);
        waited.watch(&late).expect("watched");
        assert!(late.call(&proto::StartRequest::default()).is_err());
    }
}
