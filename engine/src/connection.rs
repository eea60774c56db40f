//! The task API's client side on tokio: one call at a time on a connection to a shim.

use std::io;

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
    pub(crate) fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            decoder: Decoder::default(),
            next: 1,
            in_call: false,
            buffer: vec![0; 4096].into(),
        })
    }

    /// Calls the shim and waits for its answer.
    pub(crate) async fn call<C: Call>(&mut self, call: &C) -> Result<C::Response> {
        let lost = |source| estiba_shim::Error::Disconnected { method: C::METHOD, log: String::new(), source };
        if self.in_call {
            return Err(lost(io::Error::other("an earlier call on this connection was given up")));
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
