//! The processes of a container.

use std::process::Command;

use estiba_runtime::{ContainerId, Native, Runtime};

use crate::Result;
use crate::cli::ListFormat;

/// Prints their numbers, or what `ps` says of them.
pub(crate) fn print(native: &Native, id: &ContainerId, format: ListFormat, options: &[String]) -> Result<()> {
    let pids = native.processes(id)?;
    if format == ListFormat::Json {
        return crate::print(&serde_json::to_string(&pids)?);
    }
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).output().map_err(|error| format!("cannot execute ps: {error}"))?;
    if !output.status.success() {
        return Err(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut lines = listed.lines();
    let header = lines.next().unwrap_or_default();
    let column = header.split_whitespace().position(|name| name == "PID").ok_or("ps prints no column PID")?;
    let ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let rows: Vec<&str> = std::iter::once(header).chain(lines.filter(ours)).collect();
    crate::print(&rows.join("\n"))
}
