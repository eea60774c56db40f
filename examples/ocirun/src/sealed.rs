//! This program from a read-only mount of its own file.

use std::env;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use estiba_runtime::mount::Tree;
use estiba_runtime::oci_spec::runtime::Mount;
use rustix::fs::{StatVfsMountFlags, statvfs};

const PROGRAM: &str = "/proc/self/exe";
/// Set in the second run, so that there is no third, whatever the kernel says.
const MARK: &str = "OCIRUN_SEALED";

/// For a process that others in a container can see before it executes a program of theirs. It costs a millisecond or two.
///
/// Executes this program again, from a mount that is read-only and attached nowhere: whoever reaches it from a container through
/// `/proc/PID/exe` can never write to it (CVE-2019-5736). Returns where it is so already, and where it cannot be had: before Linux
/// 5.12, or without `CAP_SYS_ADMIN`.
pub(crate) fn seal() {
    let read_only = statvfs(PROGRAM).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY));
    if read_only || env::var_os(MARK).is_some() {
        return;
    }
    let Ok(path) = env::current_exe() else { return };
    let mut mount = Mount::default();
    mount
        .set_destination("/".into())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(path))
        .set_options(Some(vec!["bind".to_owned(), "ro".to_owned()]));
    let Ok(tree) = Tree::new(&[mount]) else { return };
    let mut arguments = env::args_os();
    let mut command = Command::new(format!("/proc/self/fd/{}", tree.as_fd().as_raw_fd()));
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(MARK, "1");
    // It returns only if it fails, and then the program is as good as it was.
    let _ = command.exec();
}
