//! A container's log in Docker's json-file format: one JSON object a line, in files that are rotated by renaming.
//!
//! The shim writes it, and anyone may read it while it does: see [`LogReader`].

mod reader;
mod record;
mod writer;

pub use reader::{LogOptions, LogReader};
pub use record::{Entry, Stream};
pub(crate) use writer::{Journal, Writer};

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The most bytes of a line that one entry holds, as Docker has it. A longer line becomes several entries, of which all but the
/// last have no newline.
pub(crate) const LONGEST: usize = 16 << 10;

/// The name of a rotated file: the log itself is number 0, the youngest rotated one number 1.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}
