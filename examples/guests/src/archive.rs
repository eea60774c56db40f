//! The archive that a kernel unpacks into its first root: cpio, in the format "newc"
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fmt::Write as _;
use std::io::{self, Write};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;

/// A cpio archive that is being written.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER, (0, 0), &[])
    }

    /// A file that everybody may execute.
    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE, (0, 0), content)
    }

    /// The device of the console.
    pub(crate) fn console(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, CONSOLE, (5, 1), &[])
    }

    pub(crate) fn end(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is too large")))?;
        self.entries += 1;
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            let _ = write!(header, "{field:08x}");
        }
        self.to.write_all(header.as_bytes())?;
        self.to.write_all(name.as_bytes())?;
        // The header's length is 2 more than a multiple of 4, and a zero ends the name.
        let zeros = [0; 4];
        self.to.write_all(&zeros[..=(4 - (header.len() + name.len() + 1) % 4) % 4])?;
        self.to.write_all(content)?;
        self.to.write_all(&zeros[..(4 - content.len() % 4) % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_read_by_cpio() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("a").expect("written");
        archive.file("a/b", b"hello").expect("written");
        let bytes = archive.end().expect("written");
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // Names begin after 110 bytes of header, contents at the next multiple of 4.
        let file = text.find("a/b\0").expect("the name");
        assert_eq!((file - 110) % 4, 0);
        assert_eq!(&bytes[(file + 4).next_multiple_of(4)..][..5], b"hello");
        assert!(text.contains("TRAILER!!!"));
    }
}
