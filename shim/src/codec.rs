//! ttrpc framing without I/O: bytes in, frames out, and the other way round.
//!
//! A frame is a header of ten bytes (length, stream, kind, flags; integers big-endian) and at most 4 MiB of data, as
//! [ttrpc's PROTOCOL.md](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md) says. The same functions serve a
//! blocking socket, a poll loop and an asynchronous runtime: nothing here reads or writes.
//!
//! ```
//! use estiba_shim::{codec, proto};
//!
//! // What a client sends …
//! let mut wire = Vec::new();
//! codec::encode_request(&mut wire, 1, &proto::StateRequest { id: "web".into(), ..Default::default() });
//! // … and what a server makes of it, however the bytes are cut.
//! let mut decoder = codec::Decoder::default();
//! let (head, tail) = wire.split_at(7);
//! decoder.push(head);
//! assert!(decoder.next_frame()?.is_none());
//! decoder.push(tail);
//! let frame = decoder.next_frame()?.expect("a whole frame");
//! let request = codec::decode_request(&frame)?;
//! assert_eq!((request.service.as_str(), request.method.as_str()), ("containerd.task.v2.Task", "State"));
//! # Ok::<(), estiba_shim::Error>(())
//! ```

use prost::Message;

use crate::error::{Error, Result};
use crate::proto::{self, Call, Code};

/// Length of a frame's header in bytes.
pub const HEADER: usize = 10;

/// The most data that a frame may carry: 4 MiB, by the protocol.
pub const MAX_DATA: usize = 4 << 20;

/// Flag of a request whose sender will send no more data on the stream.
pub const REMOTE_CLOSED: u8 = 0x01;

/// Flag of a request whose sender has more data to send on the stream: not a unary call.
pub const REMOTE_OPEN: u8 = 0x02;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Opens a stream: a call.
    Request,
    /// Ends a stream: the answer to a call.
    Response,
    /// Data on an open stream. The task API has no streams.
    Data,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
        }
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream it belongs to. Odd, as only clients open streams.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// Flags, whose meaning depends on the kind. Unary calls and their answers have none.
    pub flags: u8,
    /// The bytes that it carries.
    pub data: Vec<u8>,
}

/// Finds the frames in a stream of bytes.
///
/// It holds what was pushed and not yet taken, and never reserves memory on the word of a header.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Start of what was not taken yet.
    start: usize,
}

impl Decoder {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole frame, or `None` if more bytes are needed first.
    ///
    /// Call it until it returns `None` after each [`push`](Self::push).
    ///
    /// # Errors
    ///
    /// [`Error::Frame`] if the header announces more than [`MAX_DATA`] or an unknown kind. The connection is useless from
    /// then on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>> {
        let pending = &self.buffer[self.start..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_DATA {
            return Err(Error::Frame { reason: "it announces more than 4 MiB" });
        }
        let kind = match kind {
            1 => Kind::Request,
            2 => Kind::Response,
            3 => Kind::Data,
            _ => return Err(Error::Frame { reason: "its kind is unknown" }),
        };
        let Some(data) = rest.get(..length) else { return Ok(None) };
        let frame = Frame { stream: u32::from_be_bytes([s0, s1, s2, s3]), kind, flags, data: data.to_vec() };
        self.start += HEADER + length;
        if self.start == self.buffer.len() {
            self.start = 0;
            self.buffer.clear();
            // A rare large message must not keep its memory for the life of the connection.
            self.buffer.shrink_to(4096);
        }
        Ok(Some(frame))
    }

    /// How many bytes wait for the rest of their frame.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.start
    }
}

/// Appends a frame to `out`.
///
/// # Errors
///
/// [`Error::Frame`] if `data` is longer than [`MAX_DATA`].
pub fn encode_frame(out: &mut Vec<u8>, stream: u32, kind: Kind, data: &[u8]) -> Result<()> {
    let length = u32::try_from(data.len()).ok().filter(|_| data.len() <= MAX_DATA);
    let length = length.ok_or(Error::Frame { reason: "its data is longer than 4 MiB" })?;
    out.reserve(HEADER + data.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[kind.byte(), 0]);
    out.extend_from_slice(data);
    Ok(())
}

/// Appends the frame of a call to `out`. `stream` is odd and used once per connection.
///
/// # Errors
///
/// [`Error::Frame`] if the message is longer than [`MAX_DATA`].
pub fn encode_request<C: Call>(out: &mut Vec<u8>, stream: u32, call: &C) -> Result<()> {
    let request = proto::Request {
        service: C::SERVICE.to_owned(),
        method: C::METHOD.to_owned(),
        payload: call.encode_to_vec(),
        ..proto::Request::default()
    };
    encode_frame(out, stream, Kind::Request, &request.encode_to_vec())
}

/// Reads the request that a frame carries.
///
/// # Errors
///
/// [`Error::Frame`] if the frame is no unary request; [`Error::Message`] if its data is not the message.
pub fn decode_request(frame: &Frame) -> Result<proto::Request> {
    if frame.kind != Kind::Request {
        return Err(Error::Frame { reason: "it is not a request" });
    }
    decode("ttrpc.Request", &frame.data)
}

/// Appends the frame of an answer to `out`.
///
/// # Errors
///
/// [`Error::Frame`] if the message is longer than [`MAX_DATA`].
pub fn encode_response(out: &mut Vec<u8>, stream: u32, answer: Result<Vec<u8>, proto::Status>) -> Result<()> {
    let response = match answer {
        // An absent status means success, but clients of ttrpc 1.0 expect to see one.
        Ok(payload) => proto::Response { status: Some(proto::Status::default()), payload },
        Err(status) => proto::Response { status: Some(status), payload: Vec::new() },
    };
    encode_frame(out, stream, Kind::Response, &response.encode_to_vec())
}

/// Reads the answer to a call of type `C`.
///
/// # Errors
///
/// [`Error::Status`] if the shim refused the call; [`Error::Frame`] and [`Error::Message`] if the bytes are not an answer.
pub fn decode_response<C: Call>(frame: &Frame) -> Result<C::Response> {
    if frame.kind != Kind::Response {
        return Err(Error::Frame { reason: "it is not a response" });
    }
    let response: proto::Response = decode("ttrpc.Response", &frame.data)?;
    match response.status {
        Some(status) if status.code != Code::Ok as i32 => Err(Error::Status { method: C::METHOD, status }),
        _ => decode(C::METHOD, &response.payload),
    }
}

/// Decodes a message, naming it in the error.
pub(crate) fn decode<M: Message + Default>(name: &'static str, data: &[u8]) -> Result<M> {
    M::decode(data).map_err(|source| Error::Message { message: name, source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(decoder: &mut Decoder) -> Result<Vec<Frame>> {
        std::iter::from_fn(|| decoder.next_frame().transpose()).collect()
    }

    /// A small generator of reproducible bytes (xorshift), as a test needs no better one.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        fn bytes(&mut self, length: usize) -> Vec<u8> {
            (0..length).map(|_| self.next() as u8).collect()
        }
    }

    #[test]
    fn request_has_the_bytes_of_the_specification() {
        let mut wire = Vec::new();
        encode_request(&mut wire, 3, &proto::WaitRequest { id: "c1".into(), exec_id: String::new() }).expect("encode");
        let mut expected = vec![0, 0, 0, 37, 0, 0, 0, 3, 1, 0];
        expected.extend_from_slice(b"\x0a\x17containerd.task.v2.Task"); // 1: service
        expected.extend_from_slice(b"\x12\x04Wait"); // 2: method
        expected.extend_from_slice(b"\x1a\x04\x0a\x02c1"); // 3: payload
        assert_eq!(wire, expected);
    }

    #[test]
    fn response_has_the_bytes_of_the_specification() {
        let payload = proto::CreateTaskResponse { pid: 300 }.encode_to_vec();
        let mut wire = Vec::new();
        encode_response(&mut wire, 5, Ok(payload)).expect("encode");
        assert_eq!(wire, b"\x00\x00\x00\x07\x00\x00\x00\x05\x02\x00\x0a\x00\x12\x03\x08\xac\x02");
        let status = proto::Status { code: 5, message: "no".into(), details: Vec::new() };
        wire.clear();
        encode_response(&mut wire, 5, Err(status)).expect("encode");
        assert_eq!(wire, b"\x00\x00\x00\x08\x00\x00\x00\x05\x02\x00\x0a\x06\x08\x05\x12\x02no");
    }

    #[test]
    fn frames_survive_every_cut() {
        let mut wire = Vec::new();
        encode_frame(&mut wire, 1, Kind::Request, b"first").expect("encode");
        encode_frame(&mut wire, 3, Kind::Response, b"").expect("encode");
        encode_frame(&mut wire, 0xffff_fffd, Kind::Data, &[7; 300]).expect("encode");
        for cut in 0..=wire.len() {
            for second in cut..=wire.len() {
                let mut decoder = Decoder::default();
                let mut seen = Vec::new();
                for part in [&wire[..cut], &wire[cut..second], &wire[second..]] {
                    decoder.push(part);
                    seen.extend(frames(&mut decoder).expect("decode"));
                }
                let data: Vec<_> = seen.iter().map(|f| (f.stream, f.kind, f.data.len())).collect();
                let expected = [(1, Kind::Request, 5), (3, Kind::Response, 0), (0xffff_fffd, Kind::Data, 300)];
                assert_eq!(data, expected, "cut at {cut} and {second}");
                assert_eq!(decoder.buffered(), 0);
            }
        }
    }

    #[test]
    fn truncation_is_never_a_frame() {
        let mut wire = Vec::new();
        encode_frame(&mut wire, 1, Kind::Request, b"some bytes").expect("encode");
        for length in 0..wire.len() {
            let mut decoder = Decoder::default();
            decoder.push(&wire[..length]);
            assert_eq!(decoder.next_frame().expect("not an error yet"), None, "after {length} bytes");
        }
    }

    #[test]
    fn bad_headers_are_refused_before_their_data() {
        let cases: [(&[u8], &str); 4] = [
            (&[0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0], "4 MiB"),
            (&[0xff; 10], "4 MiB"),
            (&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0], "kind"),
            (&[0, 0, 0, 1, 0, 0, 0, 1, 4, 0], "kind"),
        ];
        for (header, reason) in cases {
            let mut decoder = Decoder::default();
            decoder.push(header);
            let error = decoder.next_frame().expect_err("refused").to_string();
            assert!(error.contains(reason), "{error}");
        }
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0x40, 0, 0, 0, 0, 0, 1, 1, 0]);
        assert_eq!(decoder.next_frame().expect("the largest length is allowed"), None);
        assert!(encode_frame(&mut Vec::new(), 1, Kind::Data, &vec![0; MAX_DATA + 1]).is_err());
    }

    #[test]
    fn noise_neither_panics_nor_grows() {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for round in 0..20_000 {
            let length = (noise.next() % 200) as usize;
            let mut bytes = noise.bytes(length);
            // Half of the rounds get past the header, so that the messages are tried too.
            if round % 2 == 0 && bytes.len() >= HEADER {
                let data = bytes.len() - HEADER;
                bytes[..4].copy_from_slice(&(data as u32).to_be_bytes());
                bytes[8] = 1 + bytes[8] % 3;
            }
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                if let Ok(request) = decode_request(&frame) {
                    let _ = decode::<proto::CreateTaskRequest>("noise", &request.payload);
                }
                let _ = decode::<proto::CreateTaskRequest>("noise", &frame.data);
                let _ = decode_response::<proto::StateRequest>(&frame);
            }
            assert!(decoder.buffered() <= bytes.len());
        }
    }

    #[test]
    fn flipped_bits_in_a_real_call_neither_panic_nor_hang() {
        let create = proto::CreateTaskRequest {
            id: "c1".into(),
            bundle: "/run/estiba/c1".into(),
            rootfs: vec![proto::Mount {
                kind: "overlay".into(),
                source: "overlay".into(),
                target: String::new(),
                options: vec!["lowerdir=/a:/b".into()],
            }],
            stdout: "/run/estiba/c1/stdout".into(),
            options: Some(proto::Any::pack(&proto::RuncOptions { binary_name: "runc".into(), ..Default::default() })),
            ..Default::default()
        };
        let mut wire = Vec::new();
        encode_request(&mut wire, 1, &create).expect("encode");
        for bit in 0..wire.len() * 8 {
            let mut bytes = wire.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            if let Ok(Some(frame)) = decoder.next_frame()
                && let Ok(request) = decode_request(&frame)
            {
                let _ = decode::<proto::CreateTaskRequest>("flipped", &request.payload);
            }
        }
    }

    #[test]
    fn a_large_frame_gives_its_memory_back() {
        let mut wire = Vec::new();
        encode_frame(&mut wire, 1, Kind::Data, &vec![1; MAX_DATA]).expect("encode");
        let mut decoder = Decoder::default();
        decoder.push(&wire);
        assert!(decoder.next_frame().expect("decode").is_some());
        assert!(decoder.buffer.capacity() <= 4096);
    }
}
