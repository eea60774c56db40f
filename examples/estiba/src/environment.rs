//! Variables for the container: `-e KEY=VALUE`, `-e KEY` (the caller's value), `--env-file FILE`.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Collects the variables of files and options as `KEY=VALUE`; options come after files, so that they win.
///
/// `host` looks a variable of the caller up. One that the caller does not have is not set, as with Docker.
pub(crate) fn collect(
    files: &[PathBuf],
    options: &[String],
    host: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for path in files {
        let text = read(path)?;
        for (index, line) in text.lines().enumerate() {
            let entry = line.trim_start();
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            let variable = variable(entry, &host).map_err(|reason| invalid_line(path, index, &reason))?;
            variables.extend(variable);
        }
    }
    for option in options {
        let variable = variable(option, &host)
            .map_err(|reason| Failure::new(format!("the variable {option:?} is refused: {reason}")))?;
        variables.extend(variable);
    }
    Ok(variables)
}

/// The lines of files that are neither empty nor comments.
pub(crate) fn lines(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for path in files {
        let text = read(path)?;
        let entries = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(entries.map(str::to_owned));
    }
    Ok(lines)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::caused(format!("cannot read the file {}", path.display()), error))
}

fn invalid_line(path: &Path, index: usize, reason: &str) -> Failure {
    Failure::new(format!("{} line {}: {reason}", path.display(), index + 1))
}

fn variable(text: &str, host: impl Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    let key = text.split('=').next().unwrap_or_default();
    if key.is_empty() {
        return Err("a variable needs a name before its '='".into());
    }
    if key.contains(char::is_whitespace) {
        return Err(format!("the name {key:?} contains white space"));
    }
    if key.len() < text.len() {
        return Ok(Some(text.to_owned()));
    }
    Ok(host(key).map(|value| format!("{key}={value}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn host(key: &str) -> Option<String> {
        (key == "HOME").then(|| "/home/me".to_owned())
    }

    #[test]
    fn options_are_read() {
        for (option, expected) in [
            ("A=1", Some(Some("A=1"))),
            ("A=", Some(Some("A="))),
            ("A=b=c d", Some(Some("A=b=c d"))),
            ("HOME", Some(Some("HOME=/home/me"))),
            ("NOT_THERE", Some(None)),
            ("=1", None),
            ("", None),
            ("A B=1", None),
        ] {
            let found = variable(option, host).ok();
            assert_eq!(found.as_ref().map(Option::as_deref), expected, "{option:?}");
        }
    }

    #[test]
    fn files_come_before_options() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        write!(file, "# comment\n\nA=1\n  B=two words\nHOME\nNOT_THERE\n").expect("written");
        let files = [file.path().to_owned()];
        let found = collect(&files, &["A=2".to_owned()], host).expect("collected");
        assert_eq!(found, ["A=1", "B=two words", "HOME=/home/me", "A=2"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        write!(file, "A=1\n=2\n").expect("written");
        let failure = collect(&[file.path().to_owned()], &[], host).expect_err("refused");
        assert!(failure.to_string().contains("line 2"), "{failure}");
        let failure = collect(&["/nowhere/at/all".into()], &[], host).expect_err("refused");
        assert!(failure.to_string().contains("/nowhere/at/all"), "{failure}");
    }
}
