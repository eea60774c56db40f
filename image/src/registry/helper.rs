//! Credential helpers: programs called `docker-credential-NAME`, with a protocol of one JSON document each way.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use super::credentials::{Credential, password_of};
use super::problem::{RegistryProblem as Problem, spoken};

/// A helper may ask a person to unlock something; but not for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// More than this is no secret of a registry.
const MAX_OUTPUT: usize = 256 << 10;

/// Asks for a secret; `None` if the helper has none for this server.
pub(super) fn get(name: &str, server: &str) -> Result<Option<Credential>, Problem> {
    let fail = |reason: &str| failure(name, reason);
    let (success, output) = run(name, "get", server.as_bytes(), PATIENCE)?;
    if !success {
        let said = String::from_utf8_lossy(&output);
        // The words of the protocol's own library.
        if said.contains("credentials not found") || said.contains("no credentials") {
            return Ok(None);
        }
        return Err(fail(&format!("it said: {}", spoken(&said))));
    }
    let answer: Value = serde_json::from_slice(&output).map_err(|_| fail("its answer is not valid JSON"))?;
    match (answer.get("Username").and_then(Value::as_str), answer.get("Secret").and_then(Value::as_str)) {
        (Some(username), Some(secret)) if !secret.is_empty() => Ok(Some(password_of(username, secret))),
        _ => Ok(None),
    }
}

pub(super) fn store(name: &str, server: &str, username: &str, secret: &str) -> Result<(), Problem> {
    let document = json!({ "ServerURL": server, "Username": username, "Secret": secret });
    order(name, "store", document.to_string().as_bytes())
}

pub(super) fn erase(name: &str, server: &str) -> Result<(), Problem> {
    order(name, "erase", server.as_bytes())
}

fn order(name: &str, action: &str, input: &[u8]) -> Result<(), Problem> {
    let (success, output) = run(name, action, input, PATIENCE)?;
    if success {
        return Ok(());
    }
    Err(failure(name, &format!("it said: {}", spoken(&String::from_utf8_lossy(&output)))))
}

fn failure(name: &str, reason: &str) -> Problem {
    Problem::Credentials { place: format!("the helper docker-credential-{name}"), reason: reason.to_owned() }
}

/// Ends the helper if it is not waited for to its end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(name: &str, action: &str, input: &[u8], patience: Duration) -> Result<(bool, Vec<u8>), Problem> {
    let fail = |reason: &str| failure(name, reason);
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(fail("its name has characters that no helper's has"));
    }
    let deadline = Instant::now() + patience;
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => fail("it is not installed"),
            _ => fail(&error.to_string()),
        })?;
    let (stdin, stdout) = (child.0.stdin.take(), child.0.stdout.take());
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(input)
        && error.kind() != ErrorKind::BrokenPipe
    {
        // What is written fits into a pipe: this does not wait for the helper.
        return Err(fail(&error.to_string()));
    }
    let mut output = Vec::new();
    if let Some(mut stdout) = stdout {
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
            match ready {
                Ok(0) => return Err(fail(&format!("no answer within {} s", patience.as_secs()))),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(fail(errno.desc())),
                Ok(_) => {}
            }
            match stdout.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => output.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(fail(&error.to_string())),
            }
            if output.len() > MAX_OUTPUT {
                return Err(fail("its answer has no end"));
            }
        }
    }
    loop {
        match child.0.try_wait() {
            Ok(Some(status)) => return Ok((status.success(), output)),
            Ok(None) if Instant::now() >= deadline => {
                return Err(fail(&format!("it did not end within {} s", patience.as_secs())));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(fail(&error.to_string())),
        }
    }
}
