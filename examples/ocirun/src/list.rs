//! The list of containers.

use estiba_runtime::{Error, Native, Runtime, State};
use serde::Serialize;

use crate::Result;
use crate::cli::ListFormat;
use crate::log::timestamp;

/// A container, with the names that runc gives its properties.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    state: State,
    created: String,
    owner: &'static str,
}

/// Prints all containers.
pub(crate) fn print(native: &Native, format: ListFormat, quiet: bool) -> Result<()> {
    let mut rows = Vec::new();
    for id in native.list()? {
        let row = native.state(&id).and_then(|state| Ok((state, native.created(&id)?)));
        match row {
            Ok((state, created)) => rows.push(Row { state, created: timestamp(created), owner: "root" }),
            // It was deleted meanwhile, or is only being made.
            Err(Error::NotFound { .. } | Error::Io { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if quiet {
        let ids: Vec<_> = rows.iter().map(|row| row.state.id.as_str()).collect();
        return if ids.is_empty() { Ok(()) } else { crate::print(&ids.join("\n")) };
    }
    if format == ListFormat::Json {
        return crate::print(&serde_json::to_string(&rows)?);
    }
    let mut table = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    table.extend(rows.into_iter().map(|row| {
        let State { id, pid, status, bundle, .. } = row.state;
        [id, pid.to_string(), status.to_string(), bundle.display().to_string(), row.created, row.owner.to_owned()]
    }));
    let mut widths = [0; 6];
    for line in &table {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let lines: Vec<String> = table
        .iter()
        .map(|line| {
            let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            cells.join("   ").trim_end().to_owned()
        })
        .collect();
    crate::print(&lines.join("\n"))
}
