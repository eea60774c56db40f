//! Kernel settings of the calling thread's network namespace.

use std::path::PathBuf;
use std::{fs, io};

/// Sets a setting, unless it has that value. `name` is below `/proc/sys`, with slashes: interfaces' names may have dots.
pub(crate) fn set(name: &str, value: &str) -> io::Result<()> {
    let path = PathBuf::from("/proc/sys").join(name);
    if fs::read_to_string(&path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}

/// The same where the kernel has it: one without IPv6 has none of IPv6's.
pub(crate) fn set_if_there(name: &str, value: &str) {
    let _ = set(name, value);
}
