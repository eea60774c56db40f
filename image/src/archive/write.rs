//! Writing a tar file: the same content gives the same bytes.

use std::io::{self, Write};

use super::header::BLOCK;

/// What the octal digits of a size can say.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// A tar file on its way out, of the POSIX kind; nothing of this machine is in it: no owner, no time.
pub(crate) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.header(&format!("{name}/"), b'5', 0o755, 0)
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.begin(name, content.len() as u64)?;
        self.out.write_all(content)?;
        self.end(content.len() as u64)
    }

    /// Begins a file, of which `size` bytes go to [`content`](Self::content) then.
    pub(crate) fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.header(name, b'0', 0o644, size)
    }

    pub(crate) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Ends a file of `size` bytes.
    pub(crate) fn end(&mut self, size: u64) -> io::Result<()> {
        self.out.write_all(&[0; BLOCK][..padding(size)])
    }

    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    fn header(&mut self, name: &str, kind: u8, mode: u64, size: u64) -> io::Result<()> {
        let mut records = String::new();
        if name.len() > 100 {
            records.push_str(&record("path", name));
        }
        if size > MAX_OCTAL {
            records.push_str(&record("size", &size.to_string()));
        }
        if !records.is_empty() {
            self.out.write_all(&block("pax", b'x', 0o644, records.len() as u64))?;
            self.out.write_all(records.as_bytes())?;
            self.end(records.len() as u64)?;
        }
        self.out.write_all(&block(name, kind, mode, size))
    }
}

fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// A PAX record, whose length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// A header; what does not fit is in the PAX records before it.
fn block(name: &str, kind: u8, mode: u64, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let name = &name.as_bytes()[..name.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    let mut octal = |from: usize, digits: usize, number: u64| {
        let text = format!("{number:0digits$o}");
        block[from..from + digits].copy_from_slice(text.as_bytes());
    };
    octal(100, 7, mode);
    octal(108, 7, 0);
    octal(116, 7, 0);
    octal(124, 11, if size > MAX_OCTAL { 0 } else { size });
    octal(136, 11, 0);
    block[148..156].fill(b' ');
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::Archive;
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        let files: [(&str, &[u8]); 5] =
            [("empty", b""), ("one", b"x"), (&long, b"long"), ("block", &[7; BLOCK]), ("more", &[8; BLOCK + 1])];
        let mut bytes = Vec::new();
        let mut tar = TarWriter::new(&mut bytes);
        tar.folder("blobs").expect("writes");
        for (name, content) in files {
            tar.file(name, content).expect("writes");
        }
        tar.finish().expect("writes");
        assert_eq!(bytes.len() % BLOCK, 0);
        let archive = Archive::from_bytes(bytes.leak()).expect("is a tar");
        for (name, content) in files {
            assert_eq!(archive.document(name, 4096).expect("reads").as_deref(), Some(content), "{name}");
        }
    }

    #[test]
    fn a_file_may_be_larger_than_octal_digits_say() {
        // The other reader, which is not this crate's.
        let mut bytes = Vec::new();
        let mut tar = TarWriter::new(&mut bytes);
        tar.begin("large", MAX_OCTAL + 1).expect("writes");
        let mut read = tar::Archive::new(io::Cursor::new(bytes).chain(io::repeat(0)));
        let entry = read.entries().expect("lists").next().expect("is there").expect("reads");
        assert_eq!((entry.size(), entry.path().expect("has a name").to_str()), (MAX_OCTAL + 1, Some("large")));
    }

    #[test]
    fn records_count_themselves() {
        for length in 1..1200 {
            let text = record("path", &"x".repeat(length));
            let (number, _) = text.split_once(' ').expect("has a length");
            assert_eq!(number.parse(), Ok(text.len()));
        }
    }
}
