//! Limits from the command line.

use std::fs;
use std::io;

use estiba_runtime::oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use crate::Result;
use crate::cli::Update;

/// What is asked for.
pub(crate) fn resources(arguments: &Update) -> Result<LinuxResources> {
    if let Some(path) = &arguments.resources {
        let text = if path.as_os_str() == "-" { io::read_to_string(io::stdin()) } else { fs::read_to_string(path) };
        let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        return Ok(serde_json::from_str(&text).map_err(|error| format!("cannot parse {}: {error}", path.display()))?);
    }
    let size = |value: &Option<String>| value.as_deref().map(bytes).transpose();
    let memory = object([
        ("limit", size(&arguments.memory)?.map(Value::from)),
        ("reservation", size(&arguments.memory_reservation)?.map(Value::from)),
        ("swap", size(&arguments.memory_swap)?.map(Value::from)),
    ]);
    let cpu = object([
        ("shares", arguments.cpu_share.map(Value::from)),
        ("quota", arguments.cpu_quota.map(Value::from)),
        ("period", arguments.cpu_period.map(Value::from)),
        ("burst", arguments.cpu_burst.map(Value::from)),
        ("idle", arguments.cpu_idle.map(Value::from)),
        ("realtimePeriod", arguments.cpu_rt_period.map(Value::from)),
        ("realtimeRuntime", arguments.cpu_rt_runtime.map(Value::from)),
        ("cpus", arguments.cpuset_cpus.clone().map(Value::from)),
        ("mems", arguments.cpuset_mems.clone().map(Value::from)),
    ]);
    let all = object([
        ("memory", memory),
        ("cpu", cpu),
        ("pids", arguments.pids_limit.map(|limit| json!({"limit": limit}))),
        ("blockIO", arguments.blkio_weight.map(|weight| json!({"weight": weight}))),
    ]);
    let all = all.ok_or("there is nothing to update: give --resources or a limit")?;
    Ok(serde_json::from_value(all)?)
}

/// Those that are there; `None` if none is.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Option<Value> {
    let there = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let map: Map<_, _> = there.collect();
    if map.is_empty() { None } else { Some(Value::Object(map)) }
}

/// A number of bytes with a suffix, in powers of 1024.
fn bytes(text: &str) -> Result<i64> {
    let wrong = || format!("{text:?} is no size: want bytes, or a number with b, k, m, g or t, or -1");
    if text == "-1" {
        return Ok(-1);
    }
    let text = text.to_ascii_lowercase();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong().into()),
    };
    let number: i64 = number.parse().map_err(|_| wrong())?;
    Ok(number.checked_mul(1 << shift).ok_or_else(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes() {
        for (text, want) in
            [("0", 0), ("12", 12), ("5b", 5), ("2k", 2048), ("3MiB", 3 << 20), ("1g", 1 << 30), ("-1", -1)]
        {
            assert_eq!(bytes(text).ok(), Some(want), "{text}");
        }
        for text in ["", "k", "5x", "-2", "1.5g", "9999999999999g", "0x5"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
