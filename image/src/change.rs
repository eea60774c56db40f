//! What `docker commit --change` takes: Dockerfile instructions that change an image's config.

mod words;

use std::str::FromStr;

use serde_json::{Map, Value, json};

use self::words::{Words, expand};
use crate::{Error, Healthcheck, Result};

/// Units of Go's durations, in nanoseconds; longer ones first where one begins another.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// An instruction that changes an image's config: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`, `SHELL`,
/// `STOPSIGNAL`, `USER`, `VOLUME` or `WORKDIR`, as in a Dockerfile.
///
/// `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}` mean the environment of the image, where they do in a Dockerfile.
/// `ENTRYPOINT` takes the parent's `CMD` away, unless the changes before it set one. `CMD []` and `ENTRYPOINT []` take it away,
/// too, where Docker puts back what the container had. `${NAME%pattern}` and its kin are refused.
///
/// ```
/// let change: estiba_image::Change = "ENV PATH=/opt/bin:$PATH LANG=C".parse()?;
/// assert_eq!(change.to_string(), "ENV PATH=/opt/bin:$PATH LANG=C");
/// assert!("RUN true".parse::<estiba_image::Change>().is_err());
/// # Ok::<(), estiba_image::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    text: String,
    instruction: Instruction,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Instruction {
    Cmd(Command),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck, Option<String>),
    Label(Vec<(String, String)>),
    OnBuild(String),
    Shell(Vec<String>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Exec(Vec<String>),
    Shell(String),
}

impl Command {
    fn into_arguments(self, config: &Map<String, Value>) -> Vec<String> {
        match self {
            Self::Exec(arguments) => arguments,
            Self::Shell(line) => {
                let mut shell = strings(config, "Shell");
                if shell.is_empty() {
                    shell = vec!["/bin/sh".to_owned(), "-c".to_owned()];
                }
                shell.push(line);
                shell
            }
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let instruction = parse(text).map_err(|reason| invalid(text, reason))?;
        Ok(Self { text: text.to_owned(), instruction })
    }
}

fn invalid(text: &str, reason: &'static str) -> Error {
    Error::InvalidChange { text: text.to_owned(), reason }
}

fn parse(text: &str) -> Result<Instruction, &'static str> {
    if text.contains(['\n', '\0']) {
        return Err("it must be one line; give each instruction by itself");
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("the instruction needs an argument");
    }
    match name.to_ascii_uppercase().as_str() {
        "CMD" => command(rest).map(Instruction::Cmd),
        "ENTRYPOINT" => command(rest).map(Instruction::Entrypoint),
        "ENV" => pairs(rest).map(Instruction::Env),
        "LABEL" => pairs(rest).map(Instruction::Label),
        "EXPOSE" => Ok(Instruction::Expose(rest.split_whitespace().map(str::to_owned).collect())),
        "HEALTHCHECK" => healthcheck(rest),
        "ONBUILD" => on_build(rest),
        "SHELL" => match array(rest)? {
            Some(shell) if !shell.is_empty() => Ok(Instruction::Shell(shell)),
            _ => Err("SHELL must be a JSON list such as [\"/bin/sh\", \"-c\"]"),
        },
        "STOPSIGNAL" => Ok(Instruction::StopSignal(rest.to_owned())),
        "USER" => Ok(Instruction::User(rest.to_owned())),
        "WORKDIR" => Ok(Instruction::Workdir(rest.to_owned())),
        "VOLUME" => match array(rest)? {
            Some(paths) if paths.is_empty() => Err("VOLUME needs a path"),
            Some(paths) => Ok(Instruction::Volume(paths)),
            None => Ok(Instruction::Volume(rest.split_whitespace().map(str::to_owned).collect())),
        },
        _ => Err(
            "it must be CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR",
        ),
    }
}

/// A JSON list of strings; `None` if it is no JSON list, which then is the shell form.
fn array(text: &str) -> Result<Option<Vec<String>>, &'static str> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(text) else { return Ok(None) };
    let strings = values.into_iter().map(|value| match value {
        Value::String(text) => Ok(text),
        _ => Err("only strings may be in a list"),
    });
    strings.collect::<Result<_, _>>().map(Some)
}

fn command(text: &str) -> Result<Command, &'static str> {
    Ok(array(text)?.map_or_else(|| Command::Shell(text.to_owned()), Command::Exec))
}

/// `NAME=VALUE ...`, or in the old form `NAME VALUE`. The words still have their quotes.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut words = Words::new(text);
    let first = words.next().ok_or("a name is missing")?;
    let pairs: Vec<(String, String)> = if first.contains('=') {
        let split = |word: &str| {
            let (name, value) =
                word.split_once('=').ok_or("write NAME=VALUE, with quotes around a value with spaces")?;
            Ok((name.to_owned(), value.to_owned()))
        };
        std::iter::once(first).chain(words).map(split).collect::<Result<_, &'static str>>()?
    } else {
        let value = text[first.len()..].trim_start();
        if value.is_empty() {
            return Err("write NAME=VALUE");
        }
        vec![(first.to_owned(), value.to_owned())]
    };
    if pairs.iter().any(|(name, _)| name.is_empty()) { Err("a name is empty") } else { Ok(pairs) }
}

fn on_build(text: &str) -> Result<Instruction, &'static str> {
    let name = text.split_whitespace().next().unwrap_or_default();
    match name.to_ascii_uppercase().as_str() {
        "ONBUILD" => Err("ONBUILD cannot be in ONBUILD"),
        "FROM" | "MAINTAINER" => Err("FROM and MAINTAINER cannot be in ONBUILD"),
        _ => Ok(Instruction::OnBuild(text.to_owned())),
    }
}

fn healthcheck(text: &str) -> Result<Instruction, &'static str> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while rest.starts_with("--") {
        let (option, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = after.trim_start();
        let (name, value) = option.split_once('=').ok_or("write an option as --NAME=VALUE")?;
        let place = match name {
            "--interval" => &mut check.interval,
            "--timeout" => &mut check.timeout,
            "--start-period" => &mut check.start_period,
            "--start-interval" => &mut check.start_interval,
            "--retries" => {
                check.retries =
                    value.parse().ok().filter(|n: &i32| *n >= 0).ok_or("--retries must be a number")?.into();
                continue;
            }
            _ => return Err("there are --interval, --timeout, --start-period, --start-interval and --retries"),
        };
        *place = duration(value)?;
    }
    let (kind, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let argument = argument.trim();
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if !argument.is_empty() => Err("NONE takes nothing beside"),
        "NONE" => {
            let none = Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
            Ok(Instruction::Healthcheck(none, None))
        }
        "CMD" => match command(argument)? {
            Command::Exec(arguments) if arguments.is_empty() => Err("CMD needs a command"),
            Command::Shell(line) if line.is_empty() => Err("CMD needs a command"),
            Command::Exec(arguments) => {
                check.test = std::iter::once("CMD".to_owned()).chain(arguments).collect();
                Ok(Instruction::Healthcheck(check, None))
            }
            Command::Shell(line) => Ok(Instruction::Healthcheck(check, Some(line))),
        },
        _ => Err("it must be NONE, or CMD and a command"),
    }
}

/// A duration as Go writes it: `1m30s`, `500ms`, `0`; in nanoseconds.
fn duration(text: &str) -> Result<i64, &'static str> {
    const INVALID: &str = "a duration must be such as 30s, 1m30s or 500ms";
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(INVALID)?;
        let number: f64 = rest[..digits].parse().map_err(|_| INVALID)?;
        rest = &rest[digits..];
        // `ms` before `m`: the longest one that fits.
        let fits = UNITS.iter().filter(|(unit, _)| rest.starts_with(unit));
        let (unit, factor) = fits.max_by_key(|(unit, _)| unit.len()).ok_or(INVALID)?;
        rest = &rest[unit.len()..];
        total += number * factor;
    }
    match total {
        _ if text.is_empty() || total > 9e18 => Err(INVALID),
        0.0 => Ok(0),
        total if total < 1e6 => Err("a duration must be 1ms or longer"),
        total => Ok(total as i64),
    }
}

/// Applies changes to an image's `config` object, in this order.
pub(crate) fn apply(changes: &[Change], config: &mut Map<String, Value>) -> Result<()> {
    let mut cmd_set = false;
    for change in changes {
        change.apply(config, &mut cmd_set).map_err(|reason| invalid(&change.text, reason))?;
    }
    Ok(())
}

impl Change {
    fn apply(&self, config: &mut Map<String, Value>, cmd_set: &mut bool) -> Result<(), &'static str> {
        let mut env = strings(config, "Env");
        let word = |text: &str, env: &[String]| expand(text, env);
        match &self.instruction {
            Instruction::Cmd(command) => {
                let arguments = command.clone().into_arguments(config);
                set_list(config, "Cmd", &arguments);
                *cmd_set = true;
            }
            Instruction::Entrypoint(command) => {
                let arguments = command.clone().into_arguments(config);
                set_list(config, "Entrypoint", &arguments);
                if !*cmd_set {
                    config.remove("Cmd");
                }
            }
            Instruction::Env(pairs) => {
                // All of one instruction see what was before it.
                let before = env.clone();
                for (name, value) in pairs {
                    let (name, value) = (word(name, &before)?, word(value, &before)?);
                    let is_it = |entry: &String| entry.split('=').next() == Some(name.as_str());
                    let entry = format!("{name}={value}");
                    match env.iter().position(is_it) {
                        Some(position) => env[position] = entry,
                        None => env.push(entry),
                    }
                }
                set_list(config, "Env", &env);
            }
            Instruction::Label(pairs) => {
                for (name, value) in pairs {
                    let (name, value) = (word(name, &env)?, word(value, &env)?);
                    object(config, "Labels")?.insert(name, json!(value));
                }
            }
            Instruction::Expose(ports) => {
                for port in ports {
                    let port = word(port, &env)?;
                    for port in port.split_whitespace() {
                        for port in expose(port)? {
                            object(config, "ExposedPorts")?.insert(port, json!({}));
                        }
                    }
                }
            }
            Instruction::Volume(paths) => {
                for path in paths {
                    let path = word(path, &env)?;
                    if path.trim().is_empty() {
                        return Err("a volume's path is empty");
                    }
                    object(config, "Volumes")?.insert(path, json!({}));
                }
            }
            Instruction::Healthcheck(check, line) => {
                let mut check = check.clone();
                if let Some(line) = line {
                    check.test = vec!["CMD-SHELL".to_owned(), line.clone()];
                }
                config.insert("Healthcheck".to_owned(), json!(check));
            }
            Instruction::OnBuild(text) => {
                let mut triggers = strings(config, "OnBuild");
                triggers.push(text.clone());
                set_list(config, "OnBuild", &triggers);
            }
            Instruction::Shell(shell) => set_list(config, "Shell", shell),
            Instruction::StopSignal(signal) => {
                let signal = word(signal, &env)?;
                check_signal(&signal)?;
                config.insert("StopSignal".to_owned(), json!(signal));
            }
            Instruction::User(user) => {
                config.insert("User".to_owned(), json!(word(user, &env)?));
            }
            Instruction::Workdir(path) => {
                let path = word(path, &env)?;
                let before = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
                config.insert("WorkingDir".to_owned(), json!(join(before, &path)?));
            }
        }
        Ok(())
    }
}

fn strings(config: &Map<String, Value>, key: &str) -> Vec<String> {
    let list = config.get(key).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn set_list(config: &mut Map<String, Value>, key: &str, list: &[String]) {
    if list.is_empty() {
        config.remove(key);
    } else {
        config.insert(key.to_owned(), json!(list));
    }
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>, &'static str> {
    let value = config.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or("the parent's config has something else in that place")
}

/// The ports of one argument of `EXPOSE`: `80`, `53/udp`, `8000-8010/tcp`.
fn expose(text: &str) -> Result<Vec<String>, &'static str> {
    const INVALID: &str = "a port must be such as 80, 53/udp or 8000-8010/tcp";
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err("a port's protocol must be tcp, udp or sctp");
    }
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (first, last) = (number(first).ok_or(INVALID)?, number(last).ok_or(INVALID)?);
    if first > last {
        return Err("the first port of a range must be the lower one");
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// Whether it is a signal's name or number. Which names there are, who starts the container knows.
fn check_signal(text: &str) -> Result<(), &'static str> {
    const INVALID: &str = "a signal must be a name such as SIGTERM or RTMIN+3, or a number from 1 to 64";
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=64).contains(n)).map(|_: u32| ()).ok_or(INVALID);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS", "RTMIN", "RTMAX",
    ];
    // As Docker has them: each real-time signal has one name.
    let real_time = |name: &str| {
        let up_to = |prefix: &str, last: u32| {
            name.strip_prefix(prefix).and_then(|n| n.parse().ok()).is_some_and(|n: u32| (1..=last).contains(&n))
        };
        up_to("RTMIN+", 15) || up_to("RTMAX-", 14)
    };
    if known.contains(&name) || real_time(name) { Ok(()) } else { Err(INVALID) }
}

/// A path from another one, with `.`, `..` and double slashes resolved: it is for a container, so nothing here is looked at.
fn join(before: &str, path: &str) -> Result<String, &'static str> {
    if path.is_empty() {
        return Err("the path is empty");
    }
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{before}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(before: Value, changes: &[&str]) -> Result<Value> {
        let Value::Object(mut config) = before else { panic!("not an object") };
        let changes: Vec<Change> = changes.iter().map(|text| text.parse()).collect::<Result<_>>()?;
        apply(&changes, &mut config)?;
        Ok(Value::Object(config))
    }

    #[test]
    fn changes_what_docker_would() {
        let cases: &[(Value, &[&str], Value)] = &[
            (json!({}), &["CMD [\"a\", \"b c\"]"], json!({ "Cmd": ["a", "b c"] })),
            (json!({}), &["cmd echo  $HOME"], json!({ "Cmd": ["/bin/sh", "-c", "echo  $HOME"] })),
            (
                json!({ "Shell": ["/bin/ash", "-ec"] }),
                &["CMD x"],
                json!({ "Shell": ["/bin/ash", "-ec"], "Cmd": ["/bin/ash", "-ec", "x"] }),
            ),
            (json!({}), &["SHELL [\"a\",\"-c\"]", "CMD x"], json!({ "Shell": ["a", "-c"], "Cmd": ["a", "-c", "x"] })),
            // Not JSON, so a line for the shell.
            (json!({}), &["CMD ['a']"], json!({ "Cmd": ["/bin/sh", "-c", "['a']"] })),
            (json!({ "Cmd": ["x"] }), &["CMD []"], json!({})),
            (json!({ "Cmd": ["x"] }), &["ENTRYPOINT [\"e\"]"], json!({ "Entrypoint": ["e"] })),
            (
                json!({ "Cmd": ["x"] }),
                &["CMD [\"y\"]", "ENTRYPOINT e"],
                json!({ "Cmd": ["y"], "Entrypoint": ["/bin/sh", "-c", "e"] }),
            ),
            (json!({ "Entrypoint": ["e"] }), &["ENTRYPOINT []"], json!({})),
            (
                json!({}),
                &["ENV A=1 B=\"two words\" C='$A' D=a\\ b"],
                json!({ "Env": ["A=1", "B=two words", "C=$A", "D=a b"] }),
            ),
            (json!({ "Env": ["PATH=/bin", "A=1"] }), &["ENV PATH=/x:$PATH"], json!({ "Env": ["PATH=/x:/bin", "A=1"] })),
            (json!({}), &["ENV A some words  here "], json!({ "Env": ["A=some words  here"] })),
            (json!({}), &["ENV A="], json!({ "Env": ["A="] })),
            (json!({ "Env": ["A=1"] }), &["ENV A=2 B=$A", "ENV C=${A}x"], json!({ "Env": ["A=2", "B=1", "C=2x"] })),
            (
                json!({}),
                &["LABEL a.b=c \"d e\"=\"f\"", "LABEL x y z"],
                json!({ "Labels": { "a.b": "c", "d e": "f", "x": "y z" } }),
            ),
            (json!({ "Labels": null }), &["LABEL a=1"], json!({ "Labels": { "a": "1" } })),
            (
                json!({ "ExposedPorts": { "1/tcp": {} } }),
                &["EXPOSE 80 53/UDP 8000-8001"],
                json!({ "ExposedPorts": { "1/tcp": {}, "80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {} } }),
            ),
            (json!({ "Env": ["P=7"] }), &["EXPOSE $P"], json!({ "Env": ["P=7"], "ExposedPorts": { "7/tcp": {} } })),
            (json!({}), &["VOLUME /a /b"], json!({ "Volumes": { "/a": {}, "/b": {} } })),
            (json!({}), &["VOLUME [\"/a b\"]"], json!({ "Volumes": { "/a b": {} } })),
            (json!({}), &["USER 1:2"], json!({ "User": "1:2" })),
            (json!({ "WorkingDir": "/a" }), &["WORKDIR b/../c/", "WORKDIR ."], json!({ "WorkingDir": "/a/c" })),
            (json!({}), &["WORKDIR ../../x"], json!({ "WorkingDir": "/x" })),
            (json!({}), &["STOPSIGNAL SIGRTMIN+3"], json!({ "StopSignal": "SIGRTMIN+3" })),
            (json!({}), &["STOPSIGNAL 9"], json!({ "StopSignal": "9" })),
            (json!({ "OnBuild": ["RUN a"] }), &["ONBUILD COPY . /x"], json!({ "OnBuild": ["RUN a", "COPY . /x"] })),
            (json!({}), &["HEALTHCHECK NONE"], json!({ "Healthcheck": { "Test": ["NONE"] } })),
            (
                json!({}),
                &["HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0 --retries=3 CMD curl -f localhost"],
                json!({ "Healthcheck": { "Test": ["CMD-SHELL", "curl -f localhost"], "Interval": 90_000_000_000_i64, "Timeout": 500_000_000, "Retries": 3 } }),
            ),
            (json!({}), &["HEALTHCHECK CMD [\"a\",\"b\"]"], json!({ "Healthcheck": { "Test": ["CMD", "a", "b"] } })),
            (json!({ "Vendor": 1 }), &["USER x"], json!({ "Vendor": 1, "User": "x" })),
        ];
        for (before, changes, after) in cases {
            assert_eq!(changed(before.clone(), changes).expect("is right"), *after, "{changes:?}");
        }
    }

    #[test]
    fn refuses_what_docker_would() {
        for text in [
            "",
            "CMD",
            "RUN x",
            "FROM x",
            "COPY a b",
            "CMD [1]",
            "CMD [\"a\", null]",
            "ENV",
            "ENV A",
            "ENV =x",
            "ENV A=1 B",
            "SHELL /bin/sh",
            "SHELL []",
            "EXPOSE x",
            "EXPOSE 70000",
            "EXPOSE 80/icmp",
            "EXPOSE 9-8",
            "EXPOSE +8",
            "EXPOSE 1:2",
            "VOLUME []",
            "VOLUME [\"\"]",
            "ONBUILD ONBUILD RUN x",
            "ONBUILD from x",
            "ONBUILD MAINTAINER x",
            "STOPSIGNAL SIGX",
            "STOPSIGNAL 65",
            "STOPSIGNAL 0",
            "STOPSIGNAL RTMIN+16",
            "HEALTHCHECK x",
            "HEALTHCHECK CMD",
            "HEALTHCHECK CMD []",
            "HEALTHCHECK NONE x",
            "HEALTHCHECK --interval=1 CMD x",
            "HEALTHCHECK --interval=1us CMD x",
            "HEALTHCHECK --retries=-1 CMD x",
            "HEALTHCHECK --other=1 CMD x",
            "ENV A=1\nUSER x",
            "ENV A=${",
            "ENV A=\"x",
            "ENV A=${B:?needed}",
            "WORKDIR $NOTHING",
        ] {
            let error = changed(json!({}), &[text]).expect_err(text);
            assert!(matches!(error, Error::InvalidChange { .. }), "{text}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, wanted) in [
            ("1h", Some(3_600_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("1m1ms", Some(60_001_000_000)),
            ("2000us", Some(2_000_000)),
            ("2000µs", Some(2_000_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("s", None),
            ("1", None),
            ("1x", None),
            ("-1s", None),
            ("", None),
            ("1..2s", None),
            ("9999999999h", None),
        ] {
            assert_eq!(duration(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn anything_is_a_change_or_an_error() {
        let parts = [
            "CMD",
            "ENTRYPOINT",
            "ENV",
            "EXPOSE",
            "HEALTHCHECK",
            "LABEL",
            "ONBUILD",
            "SHELL",
            "STOPSIGNAL",
            "USER",
            "VOLUME",
            "WORKDIR",
            " ",
            " ",
            " ",
            "=",
            "\"",
            "'",
            "\\",
            "$",
            "${",
            "}",
            ":-",
            ":?",
            "[",
            "]",
            "[\"a\"]",
            "/",
            "..",
            "-",
            "80",
            "99999999999",
            "--interval=",
            "1h",
            "9e9s",
            "NONE",
            "CMD",
            "A",
            "ä",
            "\u{2028}",
            "\n",
            "\t",
            "1-65535",
            "RTMIN+",
        ];
        let (mut state, mut taken) = (0x9e37_79b9_7f4a_7c15_u64, 0);
        let mut below = |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % bound
        };
        for _ in 0..20_000 {
            let mut text = format!("{} ", parts[below(12)]);
            for _ in 0..below(12) {
                text.push_str(parts[below(parts.len())]);
            }
            match changed(json!({ "Env": ["A=1", "broken", "=x"], "Cmd": "odd", "Labels": {} }), &[&text]) {
                Ok(after) => {
                    assert!(after.to_string().len() < 4 << 20, "{text}");
                    taken += 1;
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{text}"),
            }
        }
        assert!(taken > 2000, "the generator makes changes: {taken}");
    }
}
