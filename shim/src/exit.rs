//! How a container ended, as it lies on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use estiba_runtime::ExitStatus;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::moment::rfc3339;

/// Whether a record must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// It is on disk before anybody is told.
    Synced,
    /// It lies where a reboot may take it.
    Lazy,
}

/// More than any record takes.
const RESERVED: usize = 1024;

/// The most that [`ExitRecord::read`] reads.
const MAX: u64 = 64 << 10;

/// How a container ended: the content of `exit.json`.
///
/// It is on disk before anyone is told. The boot id and the process's start time let a reader tell a reused pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The container's first process.
    pub pid: i32,
    /// When that process started, in clock ticks since boot, as `/proc/PID/stat` counts.
    #[serde(default)]
    pub start_time: u64,
    /// Its exit status as a shell has it: 128 + n if signal n ended it.
    pub status: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container because its memory limit was reached.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it ended: RFC 3339 in UTC, with nanoseconds.
    pub exited_at: String,
    /// In which boot of the machine.
    pub boot_id: String,
}

impl ExitRecord {
    pub(crate) fn new(pid: i32, start_time: u64, status: ExitStatus, oom_killed: bool, at: SystemTime) -> Self {
        let signal = match status {
            ExitStatus::Signaled(signal) => Some(signal),
            ExitStatus::Exited(_) => None,
        };
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Self { pid, start_time, status: status.code(), signal, oom_killed, exited_at: rfc3339(at), boot_id }
    }

    /// Reads a record; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be read, [`Error::Message`] if it is not a record.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("open", path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes).map_err(|error| Error::file("read", path, error))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Message { message: "exit record", source: Box::new(source) })
    }

    /// Takes the room on disk that the record will need, so that it can be written when the container has filled the disk.
    pub(crate) fn reserve(path: &Path) -> Result<()> {
        let beside = beside(path);
        let reserved = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
        let reserved = reserved.and_then(|mut file| file.write_all(&[b' '; RESERVED]));
        reserved.map_err(|error| {
            let _ = fs::remove_file(&beside);
            Error::file("write", beside, error)
        })
    }

    /// Writes the record beside and renames: a reader sees all of it or nothing, whatever ends this process.
    /// With [`Durability::Synced`] it survives a power cut from then on.
    pub(crate) fn write(&self, path: &Path, durability: Durability) -> Result<()> {
        let beside = beside(path);
        let beside = beside.as_path();
        let mut bytes = serde_json::to_vec(self)
            .map_err(|source| Error::Message { message: "exit record", source: Box::new(source) })?;
        bytes.push(b'\n');
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            // Over what was reserved: that needs no more room.
            .truncate(false)
            .mode(0o600)
            .open(beside)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.set_len(bytes.len() as u64)?;
                if durability == Durability::Synced { file.sync_data() } else { Ok(()) }
            });
        let written = written.map_err(|error| Error::file("write", beside, error));
        let renamed =
            written.and_then(|()| fs::rename(beside, path).map_err(|error| Error::file("rename to", path, error)));
        renamed.inspect_err(|_| {
            let _ = fs::remove_file(beside);
        })
    }
}

/// The file that becomes the record.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    PathBuf::from(beside)
}

/// When a process started, in clock ticks since boot: field 22 of
/// [proc_pid_stat(5)](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html). 0 if it is gone.
pub(crate) fn start_time(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name may hold anything, a closing bracket too; what follows the last one is numbers.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_is_read_and_the_old_one_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("exit.json");
        assert_eq!(ExitRecord::read(&path).expect("absent is fine"), None);
        for status in [ExitStatus::Exited(7), ExitStatus::Signaled(9)] {
            let record = ExitRecord::new(42, 9, status, true, SystemTime::now());
            record.write(&path, Durability::Synced).expect("write");
            assert_eq!(ExitRecord::read(&path).expect("read"), Some(record));
        }
        let names: Vec<_> = fs::read_dir(dir.path()).expect("list").flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, ["exit.json"]);
        fs::write(&path, b"{").expect("write");
        assert!(ExitRecord::read(&path).is_err());
    }

    #[test]
    fn our_own_start_time_is_known() {
        assert!(start_time(std::process::id() as i32) > 0);
        assert_eq!(start_time(-1), 0);
    }
}
