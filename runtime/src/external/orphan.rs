//! What a binary leaves behind when it cannot add a process.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::offspring::children;
use crate::sys::process;

/// How long those that are ending may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reaps the children that `program` made in a container's pid namespace, that never executed anything there, and that their maker
/// left for this process as the subreaper. As long as one is there, the first process of the namespace cannot end.
///
/// Whatever has executed its program has another name, and is not touched: its status is for whoever added it. What cannot be read
/// is left alone.
pub(super) fn reap(program: &Path) {
    let depth = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix("NSpid:")).map_or(0, |pids| pids.split_whitespace().count())
    };
    let own = depth("self");
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    // As much as the kernel keeps of a name.
    let name: String = name.chars().take(15).collect();
    let unexecuted = |pid: i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name && depth(&pid.to_string()) > own
    };
    let deadline = Instant::now() + PATIENCE;
    for pid in children() {
        let Ok(pidfd) = process::pidfd_open(pid) else { continue };
        // One that lives may be another that is about to execute its program.
        while unexecuted(pid) && Instant::now() < deadline {
            if process::ended(pidfd.as_fd(), 1) == Ok(true) {
                // The name of the dead does not change any more, and it is nobody's: there is no status to tell.
                if unexecuted(pid) {
                    let _ = process::wait(pidfd.as_fd());
                }
                break;
            }
        }
    }
}
