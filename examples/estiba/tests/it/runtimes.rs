//! The same with another runtime, and with the other snapshotter.

use std::process::{Command, Stdio};

use libtest_mimic::Trial;

use crate::home::{HELLO, Home, Result, finish};
use crate::image::{Layout, OS_RELEASE, busybox};
use crate::need::{Need, find, text, trial};
use crate::terminal::shell_with;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("runtime_runc", &[Need::Busybox, Need::Program("runc")], runc),
        trial("runtime_runc_at_a_terminal", &[Need::Busybox, Need::Program("runc")], runc_at_a_terminal),
        trial("runtime_crun", &[Need::Busybox, Need::Program("crun")], crun),
        trial("a_runtime_that_fails_is_told", &[], broken),
        trial("snapshotter_native", &[Need::Busybox], native),
        trial("static_shim", &[Need::Busybox, Need::Variable("ESTIBA_SHIM")], static_shim),
    ]
}

fn image(home: &Home) -> Result<String> {
    Ok(Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference())
}

fn whole_way(image: &str, runtime: &[&str], run: impl Fn(&[&str]) -> Command) -> Result {
    let ended = |command: &[&str]| finish(&mut run(&[&["run", "--rm"], runtime, command].concat()));
    ended(&[image, "cat", "/etc/os-release"])?.expect_out(OS_RELEASE)?;
    ended(&[image, "sh", "-c", "exit 7"])?.expect_status(7)?;
    ended(&["--memory", "64m", HELLO, "eat", "256"])?.expect_status(137)?;
    ended(&["--pids-limit", "20", HELLO, "fork", "100"])?.expect_status(1)?;
    ended(&["-h", "quay", image, "hostname"])?.expect_out("quay\n")?;
    ended(&[image, "no-such-program"])?.expect_status(127)?;
    ended(&[image, "/etc/not-a-program"])?.expect_status(126)?;
    let mut child = run(&[&["run", "--rm", "-i"], runtime, &[image, "cat"]].concat());
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "through\n")?;
    finish(child.stdin(Stdio::from(file.reopen()?)))?.expect_out("through\n")?;
    Ok(())
}

fn runc(home: &Home) -> Result {
    let runc = text(&find("runc").ok_or("no runc")?);
    whole_way(&image(home)?, &["--runtime", &runc], |arguments| home.command(arguments))
}

fn runc_at_a_terminal(home: &Home) -> Result {
    let (runc, image) = (text(&find("runc").ok_or("no runc")?), image(home)?);
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    shell_with(home, &["run", "--rm", "-it", "--runtime", &runc, &image, "sh"])
}

/// crun refuses a machine that shows both versions of cgroups: it is shown one.
fn crun(home: &Home) -> Result {
    let crun = text(&find("crun").ok_or("no crun")?);
    whole_way(&image(home)?, &["--runtime", &crun], |arguments| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"", "sh"]);
        command.arg(Home::program()).args(home.options()).args(arguments).stdin(Stdio::null());
        command
    })
}

fn broken(home: &Home) -> Result {
    for runtime in ["/no/such/runtime", "/bin/false"] {
        let ended = home.run(&["run", "--rm", "--runtime", runtime, HELLO, "exit", "0"])?.expect_status(125)?;
        assert!(ended.err.lines().count() == 1 && ended.err.contains(runtime), "{runtime}: {}", ended.err);
    }
    Ok(())
}

fn native(home: &Home) -> Result {
    let image = image(home)?;
    whole_way(&image, &[], |arguments| home.command(&[&["--snapshotter", "native"], arguments].concat()))?;
    let run = |script: &str| home.run(&["--snapshotter", "native", "run", "--rm", &image, "sh", "-c", script]);
    run("echo x > /file; rm /etc/os-release")?.expect_status(0)?;
    run("test ! -e /file && cat /etc/os-release")?.expect_out(OS_RELEASE)?;
    Ok(())
}

/// The small static program as the shim, rather than `estiba` once more.
fn static_shim(home: &Home) -> Result {
    let shim = std::env::var("ESTIBA_SHIM")?;
    let image = image(home)?;
    whole_way(&image, &[], |arguments| home.command(&[&["--shim", &shim], arguments].concat()))?;
    shell_with(home, &["--shim", &shim, "run", "--rm", "-it", &image, "sh"])
}
