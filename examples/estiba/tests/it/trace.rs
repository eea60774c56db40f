//! What strace sees between the clone of the container's process and its `execve`, and which programs are executed.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::home::{HELLO, Home, Result, finish};
use crate::need::{Need, text, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("between_clone_and_exec", &[Need::Program("strace")], between_clone_and_exec)]
}

/// What allocates or locks: of a threaded program's child, none may be called.
const NOT_IN_THE_CHILD: [&str; 7] = ["brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "futex"];

/// One line of `strace -f`.
#[derive(Debug)]
struct Call<'a> {
    pid: i32,
    name: &'a str,
    text: &'a str,
}

fn calls(trace: &str) -> Vec<Call<'_>> {
    trace.lines().filter_map(call).collect()
}

fn call(line: &str) -> Option<Call<'_>> {
    let (pid, text) = line.split_once(' ')?;
    let text = text.trim_start();
    let name = match text.strip_prefix("<... ") {
        Some(resumed) => resumed.split(' ').next()?,
        None => text.split('(').next()?,
    };
    Some(Call { pid: pid.parse().ok()?, name, text })
}

/// The pid that the clone of a container's process returned.
fn init_of(calls: &[Call<'_>]) -> Option<i32> {
    let cloned = calls.iter().position(|call| call.name == "clone3" && call.text.contains("CLONE_NEWPID"))?;
    let parent = calls[cloned].pid;
    calls[cloned..]
        .iter()
        .filter(|call| call.pid == parent && call.name == "clone3")
        .find_map(|call| call.text.rsplit_once(" = ")?.1.split(' ').next()?.parse().ok())
}

fn between_clone_and_exec(home: &Home) -> Result {
    let file = home.folder().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-o", &text(&file), Home::program()]).args(home.options());
    finish(command.args(["run", "--rm", HELLO, "exit", "0"]))?.expect_status(0)?;
    let trace = fs::read_to_string(&file)?;
    let calls = calls(&trace);
    let executed: Vec<&str> = calls
        .iter()
        .filter(|call| call.name == "execve" && !call.text.contains("= -1"))
        .filter(|call| !call.text.starts_with("<..."))
        .map(|call| call.text)
        .collect();
    // strace's own of the program, the shim's, the container's.
    assert_eq!(executed.len(), 3, "{executed:#?}");
    let init = init_of(&calls).ok_or("no clone3 with CLONE_NEWPID was seen")?;
    let mut steps = calls.iter().filter(|call| call.pid == init);
    let mut seen = Vec::new();
    let reached = steps.by_ref().any(|call| {
        seen.push(call.name);
        call.name == "execve"
    });
    assert!(reached && seen.len() > 10, "the child's steps were not seen: {seen:?}");
    let wrong: Vec<_> = seen.iter().filter(|name| NOT_IN_THE_CHILD.contains(name)).collect();
    assert!(wrong.is_empty(), "{wrong:?} among {seen:?}");
    Ok(())
}
