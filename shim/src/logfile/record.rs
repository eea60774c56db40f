//! One entry of a log, as text and as a value.

use std::borrow::Cow;
use std::fmt;
use std::time::SystemTime;

use serde::Deserialize;

use crate::moment::parse_rfc3339;

/// Which standard stream something was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As the log has it: `stdout` or `stderr`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One entry of a log: a line, or a part of one that is longer than 16 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When the shim read it from the container.
    pub time: SystemTime,
    /// Where the container wrote it.
    pub stream: Stream,
    /// What it wrote, with the newline if there was one. Bytes that were not UTF-8 are U+FFFD, as with Docker.
    pub bytes: Vec<u8>,
}

impl Entry {
    /// Reads one line of a log; `None` if it is damaged.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            log: Cow<'a, str>,
            #[serde(borrow)]
            stream: Cow<'a, str>,
            #[serde(borrow)]
            time: Cow<'a, str>,
        }
        let line: Line<'_> = serde_json::from_slice(line).ok()?;
        let stream = match line.stream.as_ref() {
            "stdout" => Stream::Stdout,
            "stderr" => Stream::Stderr,
            _ => return None,
        };
        Some(Self { time: parse_rfc3339(&line.time)?, stream, bytes: line.log.into_owned().into_bytes() })
    }
}

/// Appends an entry as Docker writes it: `{"log":"…","stream":"…","time":"…"}` and a newline.
pub(crate) fn append(out: &mut Vec<u8>, bytes: &[u8], stream: Stream, time: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    for chunk in bytes.utf8_chunks() {
        escape(out, chunk.valid().as_bytes());
        // Docker, too, writes one for each byte that is not UTF-8.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.as_str().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

/// Appends text with what may not stand in a JSON string escaped, and with what Go escapes besides for the sake of HTML and
/// JavaScript.
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut start = 0;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        if PLAIN[usize::from(byte)] {
            at += 1;
            continue;
        }
        // U+2028 and U+2029 are E2 80 A8 and E2 80 A9; whatever else begins so is plain.
        let separator = byte == 0xe2;
        if separator && !matches!(text.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9])) {
            at += 1;
            continue;
        }
        out.extend_from_slice(&text[start..at]);
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0xe2 => {
                out.extend_from_slice(if text[at + 2] == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                at += 2;
            }
            _ => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
        at += 1;
        start = at;
    }
    out.extend_from_slice(&text[start..]);
}

/// Which bytes stand for themselves whatever follows.
const PLAIN: [bool; 256] = {
    let mut table = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = false;
        byte += 1;
    }
    let special = b"\"\\<>&\xe2";
    let mut at = 0;
    while at < special.len() {
        table[special[at] as usize] = false;
        at += 1;
    }
    table
};

/// How many bytes at the end of `bytes` are the beginning of a character whose rest may still come: 0 to 3.
pub(crate) fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - back..];
        // `error_len` is `None` for an unexpected end alone.
        if let Err(error) = std::str::from_utf8(tail)
            && error.valid_up_to() == 0
            && error.error_len().is_none()
        {
            return back;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        append(&mut out, bytes, Stream::Stdout, "2026-11-23T21:45:06.000000005Z");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn entries_are_docker_s() {
        let cases: [(&[u8], &str); 8] = [
            (b"plain\n", r"plain\n"),
            (b"", ""),
            (b"\"quoted\\\"\r\n", r#"\"quoted\\\"\r\n"#),
            (b"tab\there\x00\x1f\x7f", "tab\\u0009here\\u0000\\u001f\x7f"),
            (b"<a>&b", r"\u003ca\u003e\u0026b"),
            (
                "h\u{e9} \u{20ac} \u{1f600} \u{2028}\u{2029}\u{2030}".as_bytes(),
                "h\u{e9} \u{20ac} \u{1f600} \\u2028\\u2029\u{2030}",
            ),
            (b"a\xffb\xc3", r"a\ufffdb\ufffd"),
            (b"\xe2\x80", r"\ufffd\ufffd"),
        ];
        for (bytes, expected) in cases {
            let line = text(bytes);
            let whole = format!(
                "{{\"log\":\"{expected}\",\"stream\":\"stdout\",\"time\":\"2026-11-23T21:45:06.000000005Z\"}}\n"
            );
            assert_eq!(line, whole);
            let entry = Entry::parse(line.as_bytes()).expect("an entry");
            if let Ok(valid) = std::str::from_utf8(bytes) {
                assert_eq!(entry.bytes, valid.as_bytes());
            }
            assert_eq!(
                (entry.stream, crate::moment::rfc3339(entry.time).as_str()),
                (Stream::Stdout, "2026-11-23T21:45:06.000000005Z")
            );
        }
    }

    #[test]
    fn every_string_of_bytes_is_an_entry() {
        let mut state = 88_172_645_463_325_252_u64;
        for length in 0..600 {
            let bytes: Vec<u8> = (0..length)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })
                .collect();
            let entry = Entry::parse(text(&bytes).as_bytes()).expect("an entry");
            assert!(std::str::from_utf8(&entry.bytes).is_ok());
        }
    }

    #[test]
    fn damaged_lines_are_none() {
        let good = text(b"x\n");
        for cut in 0..good.len() - 2 {
            assert_eq!(Entry::parse(&good.as_bytes()[..cut]), None, "{cut}");
        }
        for line in ["{}", "[]", "{\"log\":\"x\",\"stream\":\"stdin\",\"time\":\"2026-11-23T21:45:06Z\"}", "\0\0\0\0"] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
        // What others write besides is skipped.
        let more = "{\"log\":\"x\",\"stream\":\"stderr\",\"attrs\":{\"a\":\"b\"},\"time\":\"2026-11-23T21:45:06Z\"}";
        assert_eq!(Entry::parse(more.as_bytes()).expect("an entry").stream, Stream::Stderr);
    }

    #[test]
    fn the_beginning_of_a_character_is_known() {
        let cases: [(&[u8], usize); 9] = [
            (b"", 0),
            (b"abc", 0),
            ("\u{e9}".as_bytes(), 0),
            (b"a\xc3", 1),
            (b"a\xe2\x82", 2),
            (b"a\xf0\x9f\x98", 3),
            (b"\xf0", 1),
            (b"\xff", 0),
            (b"\x80\x80\x80\x80", 0),
        ];
        for (bytes, expected) in cases {
            assert_eq!(unfinished(bytes), expected, "{bytes:?}");
        }
    }
}
