//! A writer of tar archives that writes whatever it is told.

use std::fmt::Write as _;

/// An archive in the making.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
    owner: (u32, u32),
}

/// One header, field by field.
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    pub(crate) fn new(name: &str, kind: u8, size: u64) -> Self {
        let mut header = Header([0; 512]);
        header.set(0, name.as_bytes());
        header.octal(100, 8, 0o644);
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, size);
        header.octal(136, 12, 1_500_000_000);
        header.0[156] = kind;
        header.set(257, b"ustar\x0000");
        header
    }

    pub(crate) fn set(&mut self, at: usize, value: &[u8]) -> &mut Self {
        self.0[at..at + value.len()].copy_from_slice(value);
        self
    }

    pub(crate) fn octal(&mut self, at: usize, width: usize, value: u64) -> &mut Self {
        let mut text = String::new();
        write!(text, "{value:0width$o}\0", width = width - 1).expect("text");
        self.set(at, text.as_bytes())
    }

    pub(crate) fn sealed(&self) -> [u8; 512] {
        let mut block = self.0;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// A record of a PAX header.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body;
    while length != body + length.to_string().len() {
        length = body + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

impl Tar {
    /// Entries belong to whoever runs the test, so that anybody may.
    pub(crate) fn new() -> Self {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Tar { bytes: Vec::new(), owner }
    }

    pub(crate) fn header(mut self, header: &mut Header, content: &[u8]) -> Self {
        header.octal(108, 8, self.owner.0.into());
        header.octal(116, 8, self.owner.1.into());
        self.bytes.extend_from_slice(&header.sealed());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn owned(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.header(Header::new(name, b'5', 0).octal(100, 8, mode.into()), b"")
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.header(&mut Header::new(name, b'0', content.len() as u64), content)
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.header(Header::new(name, b'2', 0).set(157, target.as_bytes()), b"")
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.header(Header::new(name, b'1', 0).set(157, target.as_bytes()), b"")
    }

    pub(crate) fn device(self, name: &str, kind: u8, major: u64, minor: u64) -> Self {
        self.header(Header::new(name, kind, 0).octal(329, 8, major).octal(337, 8, minor), b"")
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.header(&mut Header::new("pax", b'x', content.len() as u64), &content)
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The archive without its end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}
