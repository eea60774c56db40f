//! The guest's system: Debian 12 by debootstrap, with the modules of a kernel, on a disk.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::cache::{Cache, fingerprint};
use crate::command;
use crate::disk;
use crate::kernel::Kernel;

/// What tests and peers need.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,kmod,iproute2,uidmap,slirp4netns,passt,\
                        runc,crun,umoci,busybox-static,strace,nftables,procps,libseccomp2,attr,acl,apparmor";
/// Raised when the files below change.
const FORMAT: &[u8] = b"1";

/// A user with subordinate ids and a session that lasts, and one with neither.
pub(crate) const DELEGATED: (&str, u32) = ("rootless", 1000);
pub(crate) const PLAIN: (&str, u32) = ("plain", 1001);

/// The disk with a system and the modules of `kernel`.
pub(crate) fn disk(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let made_from = fingerprint(&[PACKAGES.as_bytes(), FORMAT, kernel.fingerprint()?.as_bytes()]);
    cache.get(&format!("system-{}-{made_from}.ext4", kernel.version), |to| {
        if !nix::unistd::geteuid().is_root() {
            return Err(
                "the guests' disk is made by debootstrap, which takes root; once it is there, anybody can use it"
                    .into(),
            );
        }
        eprintln!("guests: making a disk with Debian 12 and the modules of {}", kernel.version);
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        command::run(
            command::system("debootstrap")
                .args(["--variant=minbase", "--include", PACKAGES, "bookworm"])
                .arg(&root)
                .arg("http://deb.debian.org/debian"),
        )?;
        furnish(&root)?;
        let modules = root.join("lib/modules").join(&kernel.version);
        fs::create_dir_all(root.join("lib/modules"))?;
        command::run(command::system("cp").arg("-a").arg(&kernel.modules).arg(&modules))?;
        command::run(command::system("chroot").arg(&root).args(["depmod", &kernel.version]))?;
        disk::make(&root, to, disk::Spare::Gigabytes(2))
    })
}

/// The files that debootstrap does not write.
fn furnish(root: &Path) -> Result {
    for folder in ["guest", "etc/systemd/system/user@.service.d", "var/lib/systemd/linger"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::write(root.join("etc/hostname"), "guest\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n::1 localhost\n")?;
    // No network: a name is not looked for.
    fs::write(root.join("etc/resolv.conf"), "")?;
    fs::write(root.join("etc/fstab"), "")?;
    for (name, id) in [DELEGATED, PLAIN] {
        let id = id.to_string();
        command::run(command::system("chroot").arg(root).args(["useradd", "-m", "-s", "/bin/bash", "-u", &id, name]))?;
    }
    for file in ["etc/subuid", "etc/subgid"] {
        fs::write(root.join(file), format!("{}:100000:65536\n", DELEGATED.0))?;
    }
    fs::write(root.join("var/lib/systemd/linger").join(DELEGATED.0), "")?;
    fs::write(
        root.join("etc/systemd/system/user@.service.d/delegate.conf"),
        "[Service]\nDelegate=cpu cpuset io memory pids\n",
    )?;
    // Nothing that is waited for in vain, or that works while tests are timed.
    for unit in [
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
        "fstrim.timer",
        "systemd-timesyncd.service",
        "systemd-networkd-wait-online.service",
        "getty@tty1.service",
        "serial-getty@ttyS0.service",
        "systemd-firstboot.service",
    ] {
        let _ = symlink("/dev/null", root.join("etc/systemd/system").join(unit));
    }
    fs::write(root.join("etc/machine-id"), "")?;
    Ok(())
}
