//! The first process of a guest without another init: mounts what is missing, reaps, and ends the machine.

use std::fs;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::wait::wait;

use super::boot::mount_at;
use crate::Result;

pub(super) fn keep() -> Result {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("cgroup2", "cgroup2", "/sys/fs/cgroup", safe, Some("nsdelegate"))?;
    mount_at(
        "devpts",
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("mode=620,ptmxmode=666,gid=5"),
    )?;
    mount_at("tmpfs", "tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, None)?;
    mount_at("mqueue", "mqueue", "/dev/mqueue", safe, None)?;
    // Not every kernel has these.
    let _ = mount_at("securityfs", "securityfs", "/sys/kernel/security", safe, None);
    let _ = mount_at("selinuxfs", "selinuxfs", "/sys/fs/selinux", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, None);
    let _ = mount_at("bpf", "bpf", "/sys/fs/bpf", safe, None);
    for (link, to) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        let _ = std::os::unix::fs::symlink(to, link);
    }
    fs::write("/proc/sys/kernel/hostname", "guest")?;
    // As on a machine with systemd; and a Go program, which raises the one to the other, changes nothing.
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 20, 1 << 20)?;
    let mut tests = Command::new("/proc/self/exe");
    tests
        .arg("inside-tests")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root");
    Command::new("ip").args(["link", "set", "lo", "up"]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").status()?;
    let tests = tests.spawn()?;
    loop {
        match wait() {
            Ok(ended) if ended.pid().is_some_and(|pid| pid.as_raw() == tests.id() as i32) => break,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(format!("wait for the tests: {error}").into()),
        }
    }
    power_off();
    Ok(())
}

/// Ends the machine. What was written is not needed any more.
pub(super) fn power_off() {
    let _ = reboot(RebootMode::RB_POWER_OFF);
}
