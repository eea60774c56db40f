//! To write a plugin with: its main function, its request, and how it delegates to another (specification, sections 2 and 4).
//!
//! ```no_run
//! use std::process::ExitCode;
//! use estiba_network::cni::{Failure, Interface, Success, plugin};
//!
//! struct Marker;
//!
//! impl plugin::Plugin for Marker {
//!     fn about(&self) -> String {
//!         "CNI plugin marker v1".to_owned()
//!     }
//!     fn add(&self, request: &plugin::Request) -> Result<Success, Failure> {
//!         let mut success = request.previous()?.clone();
//!         success.dns.options.push("ndots:1".to_owned());
//!         Ok(success)
//!     }
//!     fn del(&self, _: &plugin::Request) -> Result<(), Failure> {
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     plugin::main(&Marker)
//! }
//! ```

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::execute::{Execution, find};
use super::names::{check_container_id, check_interface_name, check_network_name};
use super::runner::Valid;
use super::success::Success;
use super::version::{UnknownVersion, Version};
use super::{Command, Failure, code};

/// More than any configuration with its result has.
const INPUT_MAX: u64 = 16 << 20;
/// How long a delegate may take. Whoever runs the plugin has a limit of its own.
const DELEGATE_LIMIT: Duration = Duration::from_secs(300);

/// A CNI plugin. Each method gets a request whose form is right; what it returns is printed.
pub trait Plugin {
    /// What is printed if a person starts it: its name and version.
    fn about(&self) -> String;

    /// The versions that it supports: all, unless it says otherwise.
    fn versions(&self) -> &[Version] {
        &Version::ALL
    }

    /// Makes the interface [`Request::interface`] in [`Request::netns`], or changes it.
    fn add(&self, request: &Request) -> Result<Success, Failure>;

    /// Undoes that. What is not there is no error.
    fn del(&self, request: &Request) -> Result<(), Failure>;

    /// Looks whether all is as `add` left it. Finds nothing amiss, unless it says otherwise.
    fn check(&self, request: &Request) -> Result<(), Failure> {
        let _ = request;
        Ok(())
    }

    /// Removes what belongs to none of [`Request::valid`]. Nothing to be done, unless it says otherwise.
    fn gc(&self, request: &Request) -> Result<(), Failure> {
        let _ = request;
        Ok(())
    }

    /// Whether `add` would work: code 50 or 51 if not. Yes, unless it says otherwise.
    fn status(&self, request: &Request) -> Result<(), Failure> {
        let _ = request;
        Ok(())
    }
}

/// What a plugin is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Its command.
    pub command: Command,
    /// The container; empty for GC and STATUS.
    pub container_id: String,
    /// The path of its network namespace; for DEL it may be empty, and need not exist.
    pub netns: PathBuf,
    /// The interface inside; empty for GC and STATUS.
    pub interface: String,
    /// `CNI_ARGS` as they are.
    pub args: String,
    /// `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// The configuration's version, in which the result is printed.
    pub version: Version,
    /// The network's name.
    pub network: String,
    /// The whole configuration.
    pub fields: Map<String, Value>,
    /// What the plugins before have done; for CHECK and DEL, what all of them did.
    pub previous: Option<Success>,
    /// Attachments that are still wanted, for GC.
    pub valid: Vec<Valid>,
}

impl Request {
    /// The configuration as a structure of the plugin's own.
    ///
    /// # Errors
    ///
    /// Code 6 with the reason.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_value(Value::Object(self.fields.clone()))
            .map_err(|error| Failure::new(code::DECODING, format!("failed to parse network configuration: {error}")))
    }

    /// What the plugins before have done.
    ///
    /// # Errors
    ///
    /// Code 7 if the plugin is the first one.
    pub fn previous(&self) -> Result<&Success, Failure> {
        self.previous.as_ref().ok_or_else(|| {
            Failure::config("missing prevResult from earlier plugin: it must be called as chained plugin")
        })
    }

    /// The values of `CNI_ARGS` under these keys.
    ///
    /// # Errors
    ///
    /// Code 4 if they are no pairs, or if there is another key and `IgnoreUnknown` is not among them (the reference plugins do so).
    pub fn arguments<'a>(&'a self, keys: &[&str]) -> Result<Vec<(&'a str, &'a str)>, Failure> {
        let mut found = Vec::new();
        let (mut unknown, mut ignore) = (None, false);
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(Failure::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: invalid pair {pair:?}")));
            };
            if key == "IgnoreUnknown" {
                ignore = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => {
                        let message = format!("CNI_ARGS: IgnoreUnknown is true or false, not {value:?}");
                        return Err(Failure::new(code::INVALID_ENVIRONMENT, message));
                    }
                };
            } else if keys.contains(&key) {
                found.push((key, value));
            } else {
                unknown = unknown.or(Some(pair));
            }
        }
        match unknown.filter(|_| !ignore) {
            Some(pair) => Err(Failure::new(code::INVALID_ENVIRONMENT, format!("CNI_ARGS: unknown args {pair:?}"))),
            None => Ok(found),
        }
    }

    /// Has another plugin do `command` with the same configuration and environment, an IPAM plugin for instance. If it is an ADD that
    /// fails, it is asked for DEL as well.
    ///
    /// # Errors
    ///
    /// What the other plugin reports, with its code; code 7 if it is not in `CNI_PATH`.
    pub fn delegate(&self, plugin: &str, command: Command) -> Result<Option<Success>, Failure> {
        let executable = find(plugin, &self.path).map_err(|error| Failure::config(error.to_string()))?;
        let input = serde_json::to_vec(&self.fields).map_err(|error| Failure::internal(error.to_string()))?;
        let run = |command: Command| {
            let environment = vec![("CNI_COMMAND", OsString::from(command.as_str()))];
            let input = input.as_slice();
            Execution { plugin, executable: &executable, command, environment, input, limit: DELEGATE_LIMIT }.run()
        };
        if command != Command::Add {
            return run(command).map(|_| None).map_err(Failure::from);
        }
        let added = run(command).map_err(Failure::from).and_then(|printed| {
            serde_json::from_slice(&printed)
                .map_err(|error| error.to_string())
                .and_then(|value| Success::from_json(value, self.version))
                .map_err(|reason| {
                    Failure::new(code::DECODING, format!("the result of {plugin} makes no sense: {reason}"))
                })
        });
        if added.is_err() {
            // What it failed at is what counts.
            let _ = run(Command::Del);
        }
        added.map(Some)
    }
}

/// The main function of a plugin's program.
pub fn main(plugin: &dyn Plugin) -> ExitCode {
    let mut printed = Vec::new();
    let code = serve(plugin, &|name| env::var_os(name), &mut io::stdin().lock(), &mut printed, &mut io::stderr());
    match io::stdout().lock().write_all(&printed) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The same with other streams and another environment.
pub fn serve(
    plugin: &dyn Plugin,
    environment: &dyn Fn(&str) -> Option<OsString>,
    input: &mut dyn Read,
    output: &mut dyn Write,
    log: &mut dyn Write,
) -> ExitCode {
    let variable = |name: &str| environment(name).unwrap_or_default();
    if variable("CNI_COMMAND").is_empty() {
        // A person has started it.
        let _ = writeln!(log, "{}\nCNI protocol versions supported: {}", plugin.about(), listed(plugin.versions()));
        return ExitCode::SUCCESS;
    }
    let mut version = None;
    let answer = answer(plugin, &variable, input, &mut version);
    let (printed, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(failure) => {
            let mut value = json!(failure);
            if let Some(version) = version {
                value["cniVersion"] = json!(version);
            }
            (value, ExitCode::FAILURE)
        }
    };
    match writeln!(output, "{printed:#}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What is to be printed. The configuration's `cniVersion` is told as soon as it is known, for an error has it too.
fn answer(
    plugin: &dyn Plugin,
    variable: &dyn Fn(&str) -> OsString,
    input: &mut dyn Read,
    told: &mut Option<String>,
) -> Result<Option<Value>, Failure> {
    let name = variable("CNI_COMMAND");
    let Some(command) = name.to_str().and_then(Command::named) else {
        let message = format!("unknown CNI_COMMAND: {}", name.display());
        return Err(Failure::new(code::INVALID_ENVIRONMENT, message));
    };
    if command == Command::Version {
        let supported: Vec<_> = plugin.versions().iter().map(|version| version.as_str()).collect();
        return Ok(Some(json!({ "cniVersion": Version::LATEST.as_str(), "supportedVersions": supported })));
    }
    let text = |name: &'static str| {
        variable(name)
            .into_string()
            .map_err(|_| Failure::new(code::INVALID_ENVIRONMENT, format!("{name} is no text in UTF-8")))
    };
    let of_attachment = matches!(command, Command::Add | Command::Del | Command::Check);
    let mut missing = Vec::new();
    for (name, needed) in [
        ("CNI_CONTAINERID", of_attachment),
        ("CNI_NETNS", matches!(command, Command::Add | Command::Check)),
        ("CNI_IFNAME", of_attachment),
        ("CNI_PATH", true),
    ] {
        if needed && variable(name).is_empty() {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        let message = format!("required env variables [{}] missing", missing.join(","));
        return Err(Failure::new(code::INVALID_ENVIRONMENT, message));
    }
    let (container_id, interface) = (text("CNI_CONTAINERID")?, text("CNI_IFNAME")?);
    if of_attachment {
        check_container_id(&container_id)?;
        check_interface_name(&interface)?;
    }
    let fields = configuration(input)?;
    let network = match fields.get("name") {
        Some(Value::String(name)) => name.clone(),
        None | Some(Value::Null) => String::new(),
        Some(_) => return Err(Failure::new(code::DECODING, "the network's name is no text")),
    };
    check_network_name(&network)?;
    let version = match fields.get("cniVersion") {
        Some(Value::String(text)) => text.as_str(),
        None | Some(Value::Null) => "",
        Some(_) => return Err(Failure::new(code::DECODING, "cniVersion is no text")),
    };
    *told = Some(if version.is_empty() { Version::V0_1_0.as_str() } else { version }.to_owned());
    let supported = plugin.versions();
    let version = version.parse().ok().filter(|version| supported.contains(version)).ok_or_else(|| {
        let details = format!("config is {version:?}, plugin supports {}", listed(supported));
        Failure::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions").details(details)
    })?;
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
        _ => Version::V0_1_0,
    };
    if version < since {
        let message = format!("config version does not allow {command}");
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, message));
    }
    let netns = PathBuf::from(variable("CNI_NETNS"));
    let overridden = text("CNI_NETNS_OVERRIDE")?;
    let is_overridden = overridden.eq_ignore_ascii_case("true") || overridden == "1";
    if matches!(command, Command::Add | Command::Del) && !is_overridden && is_own(&netns) {
        let message = "plugin's netns and netns from CNI_NETNS should not be the same";
        return Err(Failure::new(code::INVALID_NETNS, message));
    }
    let path = env::split_paths(&variable("CNI_PATH")).filter(|folder| !folder.as_os_str().is_empty()).collect();
    let previous = match fields.get("prevResult") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            Success::from_json(value.clone(), version)
                .map_err(|reason| Failure::new(code::DECODING, format!("could not parse prevResult: {reason}")))?,
        ),
    };
    let valid = if command == Command::Gc { valid(&fields)? } else { Vec::new() };
    let args = text("CNI_ARGS")?;
    let request =
        Request { command, container_id, netns, interface, args, path, version, network, fields, previous, valid };
    match command {
        Command::Add => {
            let success = plugin.add(&request)?;
            success.to_json(version).map(Some).map_err(Failure::internal)
        }
        Command::Del => plugin.del(&request).map(|()| None),
        Command::Check => plugin.check(&request).map(|()| None),
        Command::Gc => plugin.gc(&request).map(|()| None),
        Command::Status => plugin.status(&request).map(|()| None),
        Command::Version => Ok(None),
    }
}

fn configuration(input: &mut dyn Read) -> Result<Map<String, Value>, Failure> {
    let mut bytes = Vec::new();
    input
        .take(INPUT_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io("error reading from stdin", &error))?;
    if bytes.len() as u64 > INPUT_MAX {
        return Err(Failure::new(code::DECODING, format!("the network config has more than {INPUT_MAX} bytes")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(code::DECODING, format!("error unmarshall network config: {error}")))
}

/// The attachments that are still wanted, by whichever of its two names they were given.
fn valid(fields: &Map<String, Value>) -> Result<Vec<Valid>, Failure> {
    let given = fields.get("cni.dev/valid-attachments").or_else(|| fields.get("cni.dev/attachments"));
    match given {
        // Without a list nobody knows what is wanted, and none at all would remove everything.
        None => Err(Failure::config("GC needs cni.dev/valid-attachments")),
        // So Go programs write an empty list.
        Some(Value::Null) => Ok(Vec::new()),
        Some(list) => serde_json::from_value(list.clone())
            .map_err(|error| Failure::new(code::DECODING, format!("cni.dev/valid-attachments: {error}"))),
    }
}

/// Whether the path leads to the namespace that this thread is in. One that is not there is another one.
fn is_own(netns: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let own = identity(Path::new("/proc/thread-self/ns/net"));
    own.is_some() && !netns.as_os_str().is_empty() && identity(netns) == own
}

fn listed(versions: &[Version]) -> String {
    let texts: Vec<_> = versions.iter().map(|version| version.as_str()).collect();
    texts.join(", ")
}

impl From<UnknownVersion> for Failure {
    fn from(error: UnknownVersion) -> Self {
        Self::new(code::INCOMPATIBLE_VERSION, error.to_string())
    }
}
