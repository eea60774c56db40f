//! From the kernel's first root to the guest's own.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

use crate::Result;
use crate::guest::Init;
use crate::kernel::INIT;
use crate::plan::PAYLOAD;

/// How systemd is told to run the tests.
const UNIT: &str = "\
[Unit]
Description=The tests of this guest
After=multi-user.target dbus.service systemd-logind.service user@1000.service
Wants=user@1000.service

[Service]
Type=simple
ExecStart=/guest/bin/guests inside-tests
Delegate=yes
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
";

/// Mounts a file system of a kind on a folder, which is made.
pub(super) fn mount_at(kind: &str, source: &str, folder: &str, flags: MsFlags, options: Option<&str>) -> Result {
    fs::create_dir_all(folder).map_err(|error| format!("make {folder}: {error}"))?;
    mount(Some(source), folder, Some(kind), flags, options).map_err(|error| format!("mount {folder}: {error}"))?;
    Ok(())
}

pub(super) fn boot() -> Result {
    let none = MsFlags::empty();
    mount_at("devtmpfs", "dev", "/dev", none, None)?;
    mount_at("proc", "proc", "/proc", none, None)?;
    mount_at("sysfs", "sysfs", "/sys", none, None)?;
    let init: Init = serde_json::from_slice(&fs::read(Path::new("/").join(INIT))?)?;
    let mut modules: Vec<_> = fs::read_dir("/modules")?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in modules {
        let loaded = finit_module(File::open(&module)?, c"", ModuleInitFlags::empty());
        loaded.map_err(|error| format!("load {}: {error}", module.display()))?;
    }
    wait_for("/dev/vdb")?;
    mount_at("ext4", "/dev/vda", "/root", MsFlags::MS_NOATIME, None)?;
    mount_at("ext4", "/dev/vdb", &format!("/root{PAYLOAD}"), MsFlags::MS_RDONLY, None)?;
    for folder in ["/dev", "/proc", "/sys"] {
        let to = format!("/root{folder}");
        mount(Some(folder), to.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    }
    mount_at("tmpfs", "tmpfs", "/root/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755"))?;
    std::env::set_current_dir("/root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    let error = match init {
        Init::Bare => Command::new(format!("{PAYLOAD}/bin/guests")).arg("inside-keeper").exec(),
        Init::Systemd => {
            let wants = Path::new("/run/systemd/system/multi-user.target.wants");
            fs::create_dir_all(wants)?;
            fs::write("/run/systemd/system/guest-tests.service", UNIT)?;
            symlink("../guest-tests.service", wants.join("guest-tests.service"))?;
            Command::new("/lib/systemd/systemd").exec()
        }
    };
    Err(format!("execute the init: {error}").into())
}

/// Devices are found some time after their driver was loaded.
fn wait_for(path: &str) -> Result {
    let begun = Instant::now();
    while !Path::new(path).exists() {
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("there is no {path}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
