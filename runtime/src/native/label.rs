//! Which security modules the host has that give labels.

use std::fs;
use std::path::Path;

/// Whether AppArmor is enabled.
pub(super) fn apparmor() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether `SELinux` is enabled: its filesystem is there, and a policy gives this process a context.
pub(super) fn selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
