//! The machine fails: no space, a disk that cannot be written to, a kernel that lacks something.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};

use crate::home::{HELLO, Home, Result, finish};
use crate::need::{text, trial};
use crate::refusals::refused;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_read_only_disk", &[], read_only),
        trial("no_space", &[], no_space),
        trial("no_cgroups", &[], no_cgroups),
        trial("no_proc", &[], no_proc),
    ]
}

/// `estiba` with its root at another place than the home's.
pub(crate) fn at(home: &Home, root: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(Home::program());
    let run = text(&home.folder().join("other-run"));
    command.args(["--root", root, "--run-root", &run, "--cgroup-parent", home.cgroup()]).args(arguments);
    command
}

/// A small file system of its own. This process has its own mounts, and the home removes them in the end.
pub(crate) fn small(home: &Home, name: &str, options: &str, flags: MsFlags) -> Result<String> {
    let point = home.folder().join(name);
    fs::create_dir(&point)?;
    mount(Some("tmpfs"), &point, Some("tmpfs"), flags, Some(options))?;
    Ok(text(&point))
}

pub(crate) fn unmounted(point: &str) -> Result {
    Ok(nix::mount::umount(point)?)
}

fn read_only(home: &Home) -> Result {
    let point = small(home, "read-only", "size=1m", MsFlags::MS_RDONLY)?;
    let ended = finish(&mut at(home, &point, &["run", "--rm", HELLO, "exit", "0"]))?;
    refused(ended, 125, &["read-only file system", &point])?;
    unmounted(&point)
}

fn no_space(home: &Home) -> Result {
    // From room for nothing to room for almost all: each step of the way meets the end of the disk.
    for size in [4, 64, 256, 512, 768, 1024, 1280] {
        let name = format!("small-{size}");
        let point = small(home, &name, &format!("size={size}k"), MsFlags::empty())?;
        let first = finish(&mut at(home, &point, &["run", "--rm", HELLO, "exit", "3"]))?;
        if first.status.code() != Some(3) {
            refused(first, 125, &["no space left on device"]).map_err(|error| format!("{size}k: {error}"))?;
            // The same with room enough: what the first left behind is in nobody's way.
            mount(None::<&str>, point.as_str(), None::<&str>, MsFlags::MS_REMOUNT, Some("size=100m"))?;
            finish(&mut at(home, &point, &["run", "--rm", HELLO, "exit", "3"]))?.expect_status(3)?;
        }
        unmounted(&point)?;
        home.check()?;
    }
    Ok(())
}

/// Runs in mounts of its own from which something was taken away.
fn without(home: &Home, script: &str, arguments: &[&str]) -> Result<crate::home::Ended> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &format!("{script}; exec \"$@\""), "sh"]);
    finish(command.arg(Home::program()).args(home.options()).args(arguments))
}

fn no_cgroups(home: &Home) -> Result {
    let script = "umount --recursive /sys/fs/cgroup";
    refused(
        without(home, script, &["run", "--rm", "--memory", "64m", HELLO, "exit", "0"])?,
        125,
        &["mount cgroup2 at /sys/fs/cgroup"],
    )
}

fn no_proc(home: &Home) -> Result {
    let ended = without(home, "umount --recursive --lazy /proc", &["run", "--rm", HELLO, "exit", "0"])?;
    refused(ended, 125, &["/proc"])
}
