//! The shim's program, as it is started.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use estiba_shim::{Error, Launch, Program};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-estiba-v2");

fn run(arguments: &[&str]) -> Output {
    Command::new(SHIM).args(arguments).stdin(Stdio::null()).output().expect("run the shim")
}

#[test]
fn a_program_starts_it_and_ends_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    // Longer than a socket's address may be.
    let folder = dir.path().join("long".repeat(40));
    std::fs::create_dir(&folder).expect("create folder");
    let launch = Launch {
        program: Program::Path(SHIM.into()),
        id: "c1".parse().expect("id"),
        bundle_dir: folder.clone(),
        exit_file: None,
        cgroup_root: None,
        exit_command: Vec::new(),
    };
    let mut client = launch.spawn().expect("spawn");
    client.set_timeout(Some(Duration::from_secs(20))).expect("set timeout");
    let who = client.who().expect("an answer");
    assert_eq!((who.task_pid, who.version.as_str()), (0, env!("CARGO_PKG_VERSION")));
    let program = std::fs::metadata(format!("/proc/{}/exe", who.shim_pid)).expect("it runs");
    assert_eq!(program.ino(), std::fs::metadata(SHIM).expect("metadata").ino());
    assert!(matches!(client.state(), Err(Error::Status { .. })), "there is no container");
    client.shutdown().expect("shutdown");
    // The next one waits until this one has left.
    let mut next = launch.spawn().expect("spawn again");
    next.shutdown().expect("shutdown");
    assert_eq!(std::fs::read_to_string(folder.join(estiba_shim::LOG)).expect("log"), "");
}

#[test]
fn it_says_what_it_is() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert_eq!(output.stdout, format!("containerd-shim-estiba-v2 {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    for (arguments, expected) in [
        (&["--help"][..], "usage: "),
        (&[], "usage: "),
        (&["-namespace", "x", "-id", "a/b", "start"], "a/b"),
        (&["-namespace", "x", "-id", "y", "restart"], "restart"),
        (&["-nonsense", "x"], "-nonsense"),
        (&["serve"], "--id"),
        (&["serve", "--id", "a/b"], "a/b"),
        (&["serve", "--id", "a"], "standard input"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
    }
}
