//! Programs of the machine that are used.

use std::process::{Command, Stdio};

use crate::Result;

/// Runs a program to its end; what it wrote is the error's text if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| match package(&name) {
        Some(package) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("{name} is missing: apt-get install {package}")
        }
        _ => format!("{name} cannot be run: {error}"),
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = text.lines().chain(error.lines()).collect();
    let last = said.iter().skip(said.len().saturating_sub(20)).copied().collect::<Vec<_>>().join("\n");
    Err(format!("{name}: {}\n{last}", output.status).into())
}

/// Debian's package that has a program.
pub(crate) fn package(program: &str) -> Option<&'static str> {
    Some(match program {
        "qemu-system-x86_64" => "qemu-system-x86",
        "debootstrap" => "debootstrap",
        "mke2fs" => "e2fsprogs",
        "strip" => "binutils",
        "xz" => "xz-utils",
        "apt-get" | "apt-cache" => "apt",
        "dpkg" => "dpkg",
        _ => return None,
    })
}

/// The program, looked for in the places of system programs, too.
pub(crate) fn system(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8");
    command
}
