//! `estiba top`: the processes of a container.

use std::fmt::Write as _;
use std::process::Command;

use clap::Args;
use estiba_engine::Engine;

use crate::columns;
use crate::failure::{Failure, Result};
use crate::format;
use crate::output;

/// Show the processes of a container
#[derive(Debug, Args)]
#[command(override_usage = "estiba top CONTAINER [OPTIONS OF ps]")]
#[command(after_help = "Examples:\n  estiba top web\n  estiba top web -o pid,comm    by the machine's own ps\n")]
pub(crate) struct Top {
    /// The container; and options of ps
    #[arg(required = true, trailing_var_arg = true, value_name = "CONTAINER")]
    words: Vec<String>,
}

impl Top {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let Some((name, arguments)) = self.words.split_first() else {
            return Err(Failure::new("give a container"));
        };
        let processes = engine.container(name).await?.processes().await?;
        let default = ["-ef".to_owned()];
        let arguments = if arguments.is_empty() { &default } else { arguments };
        let ps = Command::new("ps")
            .args(arguments)
            .output()
            .map_err(|error| Failure::caused("cannot execute ps, which comes with procps on most systems", error))?;
        let said = String::from_utf8_lossy(&ps.stderr);
        if !ps.status.success() {
            let said = crate::failure::one_line(&said);
            return Err(Failure::new(format!("ps {} failed: {said}", arguments.join(" "))));
        }
        let table = chosen(&String::from_utf8_lossy(&ps.stdout), &processes)
            .ok_or_else(|| Failure::new("ps shows no column PID: name it among the columns, as in -o pid,comm"))?;
        output::print(&columns::aligned(&format::shown(&table), 20, 1))
    }
}

/// The lines of those processes, their columns separated by tabs; the last one holds the rest of the line.
fn chosen(said: &str, processes: &[u32]) -> Option<String> {
    let mut lines = said.lines();
    let head: Vec<&str> = lines.next()?.split_whitespace().collect();
    let place = head.iter().position(|name| *name == "PID")?;
    let mut table = head.join("\t");
    table.push('\n');
    for line in lines {
        let mut cells: Vec<&str> = Vec::new();
        let mut rest = line.trim();
        while cells.len() + 1 < head.len() && !rest.is_empty() {
            let (cell, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            cells.push(cell);
            rest = after.trim_start();
        }
        cells.push(rest);
        let number = cells.get(place).and_then(|cell| cell.parse().ok());
        if number.is_some_and(|number| processes.contains(&number)) {
            let _ = writeln!(table, "{}", cells.join("\t"));
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let said = "UID          PID    PPID  C STIME TTY          TIME CMD\n\
                    root           1       0  0 22:48 ?        00:00:00 init\n\
                    root       19251   19224  0 23:00 ?        00:00:00 sleep 1000\n";
        let table = chosen(said, &[19251, 7]).expect("a column PID");
        assert_eq!(
            table,
            "UID\tPID\tPPID\tC\tSTIME\tTTY\tTIME\tCMD\nroot\t19251\t19224\t0\t23:00\t?\t00:00:00\tsleep 1000\n"
        );
        // As Docker shows it.
        let shown = columns::aligned(&chosen("PID COMMAND\n 19251 sleep\n", &[19251]).expect("a column"), 20, 1);
        assert_eq!(shown, "PID                 COMMAND\n19251               sleep\n");
        assert_eq!(chosen("COMMAND\nsleep\n", &[1]), None);
    }
}
