//! Kernel settings of the calling thread's network namespace, below `/proc/sys`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::Result;
use crate::ledger::failed;

/// Sets a setting that has another value.
pub(crate) fn ensure(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if fs::read_to_string(&path).map_err(failed("read", &path))?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(failed("write", &path))
}

/// The same, where the kernel has that setting.
pub(crate) fn set_if_there(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    match fs::write(&path, value) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("write", &path)(error)),
        _ => Ok(()),
    }
}
