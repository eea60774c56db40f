//! What is said: a line on the standard error, and one in the log file in the form that engines read.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;

use crate::cli::{Cli, LogFormat};

/// Reports what went wrong, with all its causes.
pub(crate) fn error(cli: &Cli, error: &(dyn Error + 'static)) {
    if let Some(message) = error.downcast_ref().and_then(of_the_program) {
        // It is about the user's program, and nobody else's words.
        eprintln!("{message}");
        return write(cli, "error", &message);
    }
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(message, ": {cause}");
        source = cause.source();
    }
    eprintln!("ocirun: {message}");
    write(cli, "error", &message);
}

/// Says what somebody should know though all goes on.
pub(crate) fn warning(cli: &Cli, message: &str) {
    aside(cli, "warning", message);
}

/// Says what is done, to who asks for it.
pub(crate) fn debug(cli: &Cli, message: impl FnOnce() -> String) {
    if cli.debug {
        aside(cli, "debug", &message());
    }
}

/// In the log file if there is one, else on the standard error.
fn aside(cli: &Cli, level: &str, message: &str) {
    if cli.log.is_some() {
        write(cli, level, message);
    } else {
        eprintln!("{}", line(LogFormat::Text, level, message));
    }
}

/// A program that cannot be executed, in the words that engines look for.
fn of_the_program(error: &estiba_runtime::Error) -> Option<String> {
    use estiba_runtime::Error::{ExecutableNotFound, InterpreterNotFound, NotExecutable};
    if let InterpreterNotFound { executable, interpreter } = error {
        let named = if interpreter.is_empty() { String::new() } else { format!(" {interpreter}") };
        return Some(format!("exec {executable}: no such file or directory (its interpreter{named} is not there)"));
    }
    let (ExecutableNotFound { executable, source } | NotExecutable { executable, source }) = error else { return None };
    if matches!(error, ExecutableNotFound { .. }) && !executable.contains('/') {
        return Some(format!("exec: {executable:?}: executable file not found in $PATH"));
    }
    let reason =
        source.raw_os_error().map_or_else(|| source.to_string(), |errno| Errno::from_raw(errno).desc().to_owned());
    Some(format!("exec {executable}: {}", reason.to_lowercase()))
}

fn line(format: LogFormat, level: &str, message: &str) -> String {
    let time = timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()), 0);
    match format {
        LogFormat::Json => serde_json::json!({"level": level, "msg": message, "time": time}).to_string(),
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={}", serde_json::Value::from(message)),
    }
}

fn write(cli: &Cli, level: &str, message: &str) {
    let Some(path) = &cli.log else { return };
    let line = line(cli.log_format, level, message);
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("ocirun: cannot write {}: {error}", path.display());
    }
}

/// Seconds since 1970 as RFC 3339 has them, with nanoseconds if there are some.
pub(crate) fn timestamp(seconds: u64, nanoseconds: u32) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Years that start with March make the leap day the last one.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let fraction = if nanoseconds == 0 { String::new() } else { format!(".{nanoseconds:09}") };
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn days_are_counted_right() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds, 0), text);
        }
        assert_eq!(timestamp(1, 50), "1970-01-01T00:00:01.000000050Z");
    }
}
