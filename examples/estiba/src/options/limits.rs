//! What a container may use, and where its output is kept.

use clap::Args;
use estiba_engine::{Limits, LogConfig, Ulimit};

use crate::failure::{Failure, Result};
use crate::quantity;

/// The limits that `run`, `create` and `update` take.
#[derive(Debug, Args)]
pub(crate) struct LimitOptions {
    /// Weight of its block I/O (10 to 1000)
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time in each period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_quota: Option<i64>,
    /// Weight of its CPU time (1024 is the usual one)
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// How many CPUs it may use (1.5)
    #[arg(long, value_name = "NUMBER", value_parser = quantity::nano_cpus)]
    cpus: Option<u64>,
    /// The CPUs that it may run on (0-3, 0,1)
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// The memory nodes that it may use (0-3, 0,1)
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Memory limit (512m, 1.5g)
    #[arg(short, long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// Memory that the kernel tries to leave it
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    memory_reservation: Option<u64>,
    /// Memory and swap together; -1 is any amount of swap
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes_or_any)]
    memory_swap: Option<i64>,
    /// How many processes and threads it may have (-1: any number)
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<i64>,
}

impl LimitOptions {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            memory_swap: self.memory_swap,
            memory_reservation: self.memory_reservation,
            nano_cpus: self.cpus,
            cpu_shares: self.cpu_shares,
            cpu_quota: self.cpu_quota,
            cpu_period: self.cpu_period,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            pids_limit: self.pids_limit,
            blkio_weight: self.blkio_weight,
            ..Limits::default()
        }
    }
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
pub(super) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let invalid = || "it must be NAME=SOFT[:HARD], such as nofile=1024:2048".to_owned();
    let (name, values) = text.split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse::<u64>().map_err(|_| invalid()),
    };
    let limit = Ulimit { name: name.to_ascii_lowercase(), soft: number(soft)?, hard: number(hard)? };
    if limit.name.is_empty() {
        return Err(invalid());
    }
    if limit.soft > limit.hard {
        return Err("the soft limit must not be greater than the hard one".to_owned());
    }
    Ok(limit)
}

/// `--log-driver` and `--log-opt`.
pub(super) fn log(driver: &str, options: &[String]) -> Result<LogConfig> {
    let (mut max_size, mut max_files) = (None, None);
    for option in options {
        let refused = |reason: &str| Failure::new(format!("--log-opt {option}: {reason}"));
        match option.split_once('=') {
            Some(("max-size", "-1")) => max_size = None,
            Some(("max-size", value)) => max_size = Some(quantity::bytes(value).map_err(|reason| refused(&reason))?),
            Some(("max-file", value)) => {
                let number = value.parse().ok().filter(|number| *number > 0);
                max_files = Some(number.ok_or_else(|| refused("it must be a number greater than 0"))?);
            }
            _ => return Err(refused("use max-size=BYTES or max-file=NUMBER")),
        }
    }
    match driver {
        "none" if options.is_empty() => Ok(LogConfig::None),
        "none" => Err(Failure::new("--log-opt means nothing with --log-driver none: leave one away")),
        "json-file" | "" => {
            if max_files.is_some_and(|files| files > 1) && max_size.is_none() {
                return Err(Failure::new("--log-opt max-file needs max-size, too: without it no new file is begun"));
            }
            Ok(LogConfig::JsonFile { max_size, max_files })
        }
        other => Err(Failure::new(format!("the log driver {other:?} is not supported: use json-file or none"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits_are_read() {
        for (text, expected) in [
            ("nofile=1024", Some(("nofile", 1024, 1024))),
            ("nofile=1024:2048", Some(("nofile", 1024, 2048))),
            ("CORE=0", Some(("core", 0, 0))),
            ("core=-1", Some(("core", u64::MAX, u64::MAX))),
            ("nofile=2048:1024", None),
            ("nofile", None),
            ("nofile=x", None),
            ("=1", None),
        ] {
            let found = ulimit(text).ok();
            let found = found.as_ref().map(|limit| (limit.name.as_str(), limit.soft, limit.hard));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn logs_are_configured() {
        let options = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let read = |driver, words: &[&str]| log(driver, &options(words)).ok();
        let file = |max_size, max_files| Some(LogConfig::JsonFile { max_size, max_files });
        assert_eq!(read("json-file", &[]), file(None, None));
        assert_eq!(read("json-file", &["max-size=10m", "max-file=3"]), file(Some(10 << 20), Some(3)));
        assert_eq!(read("none", &[]), Some(LogConfig::None));
        for (driver, words) in [
            ("syslog", vec![]),
            ("none", vec!["max-size=1m"]),
            ("json-file", vec!["tag=x"]),
            ("json-file", vec!["max-file=3"]),
        ] {
            assert_eq!(read(driver, &words), None, "{driver} {words:?}");
        }
    }
}
