//! What is known of containers, with the names that runc gives it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use estiba_runtime::{ContainerId, Error, Native, Runtime, Status};
use serde::Serialize;

use crate::Result;
use crate::cli::ListFormat;
use crate::log::timestamp;

/// A container, with its properties in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    oci_version: String,
    id: String,
    pid: i32,
    status: Status,
    bundle: PathBuf,
    /// Empty if the root is at no path.
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    owner: &'static str,
}

impl Row {
    fn of(native: &Native, id: &ContainerId, owner: &'static str) -> Result<Self, Error> {
        let state = native.state(id)?;
        let details = native.details(id)?;
        let since = details.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            oci_version: state.oci_version,
            id: state.id,
            pid: state.pid,
            status: state.status,
            bundle: state.bundle,
            rootfs: details.rootfs.unwrap_or_default(),
            created: timestamp(since.as_secs(), since.subsec_nanos()),
            annotations: state.annotations.into_iter().collect(),
            owner,
        })
    }
}

/// Prints one container.
pub(crate) fn state(native: &Native, id: &ContainerId) -> Result<()> {
    // Only the list names owners.
    crate::print(&serde_json::to_string_pretty(&Row::of(native, id, "")?)?)
}

/// Prints all containers.
pub(crate) fn print(native: &Native, format: ListFormat, quiet: bool) -> Result<()> {
    let mut rows = Vec::new();
    for id in native.list()? {
        match Row::of(native, &id, "root") {
            Ok(row) => rows.push(row),
            // It was deleted meanwhile, or is only being made.
            Err(Error::NotFound { .. } | Error::Io { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if quiet {
        let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
        return if ids.is_empty() { Ok(()) } else { crate::print(&ids.join("\n")) };
    }
    if format == ListFormat::Json {
        return crate::print(&serde_json::to_string(&rows)?);
    }
    let mut table = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    table.extend(rows.into_iter().map(|row| {
        let Row { id, pid, status, bundle, created, owner, .. } = row;
        [id, pid.to_string(), status.to_string(), bundle.display().to_string(), created, owner.to_owned()]
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
