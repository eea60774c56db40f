//! One test in a process of its own.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Result;
use crate::plan::Outcome;

/// Bytes of a test's output that are told.
const TOLD: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Trial;

impl Trial {
    /// Runs it, and returns what became of it and the end of what it wrote.
    pub(super) fn run(mut command: Command, limit: Duration) -> Result<(Outcome, String)> {
        // A file, not a pipe: a process that the test leaves behind holds up nobody.
        let mut output = tempfile::tempfile()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let begun = Instant::now();
        let outcome = loop {
            if let Some(status) = child.try_wait()? {
                break if status.success() { Outcome::Passed } else { Outcome::Failed(status.to_string()) };
            }
            if begun.elapsed() > limit {
                let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
                child.wait()?;
                break Outcome::Failed(format!("not done in {} s", limit.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ok((outcome, end_of(&mut output)?))
    }
}

fn end_of(file: &mut File) -> Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TOLD)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
