//! The children of this process that nobody waits for in time.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;

use crate::sys::process;

/// The numbers of all children of this process. Empty on a kernel that does not list them.
pub(crate) fn children() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Reaps the children that have ended in the pid namespace whose first process is `first`, which is ending, too, and cannot before
/// they are gone.
pub(crate) fn reap_namespace(first: i32) {
    let namespace = |pid: i32| -> Option<PathBuf> { fs::read_link(format!("/proc/{pid}/ns/pid")).ok() };
    let Some(ending) = namespace(first) else { return };
    for pid in children().into_iter().filter(|pid| *pid != first) {
        let Ok(pidfd) = process::pidfd_open(pid) else { continue };
        if namespace(pid).as_ref() == Some(&ending) && process::ended(pidfd.as_fd(), 0) == Ok(true) {
            // Whoever wanted to know how it ended has had the time.
            let _ = process::wait(pidfd.as_fd());
        }
    }
}
