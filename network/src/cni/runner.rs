//! Executes the plugins of a network, as a container engine does (specification, section 3).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::FlockArg;
use serde_json::{Map, Value, json};

use super::cache::{Cache, Cached};
use super::config::{Network, PluginConfig};
use super::execute::{Execution, find, joined, shown};
use super::failure::Failure;
use super::names::{check_container_id, check_interface_name};
use super::success::Success;
use super::version::Version;
use super::{Command, code};
use crate::error::{Error, Result};

/// Attaches containers to networks by executing plugins. All methods block.
///
/// Plugins run in the network namespace of the calling thread, which is the host's for them, with the environment of the calling process. The
/// caller sees to it that no two operations work on the same container at once, as the specification asks; that a
/// collection ([`Runner::gc`]) has the cache for itself is seen to here, between all runners that share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Folders with plugins: `CNI_PATH`.
    pub path: Vec<PathBuf>,
    /// Where results are kept, in its folder `results`. libcni has the same place and form.
    pub cache: PathBuf,
    /// How long one plugin may take for one command. Then it is killed, with its process group.
    pub limit: Duration,
}

impl Default for Runner {
    /// The usual places, and two minutes: longer than the reference DHCP plugin waits.
    fn default() -> Self {
        Self {
            path: vec![PathBuf::from("/opt/cni/bin"), PathBuf::from("/usr/lib/cni")],
            cache: PathBuf::from("/var/lib/cni"),
            limit: Duration::from_secs(120),
        }
    }
}

/// A container's place in a network (specification, section 3, "Attachment Parameters").
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Attachment {
    /// The container: letters, digits, `_`, `.` and `-`.
    pub container_id: String,
    /// A path of its network namespace. DEL works without, when that is gone.
    pub netns: Option<PathBuf>,
    /// The interface to be made inside.
    pub interface: String,
    /// `CNI_ARGS`: keys and values without `;` and `=`, for every plugin to see.
    pub args: Vec<(String, String)>,
    /// What plugins are given that say they can do it: `portMappings`, `ips`, `mac` …
    /// ([conventions](https://www.cni.dev/docs/conventions/)).
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    /// One without arguments.
    #[must_use]
    pub fn new(container_id: &str, netns: &Path, interface: &str) -> Self {
        Self {
            container_id: container_id.to_owned(),
            netns: Some(netns.to_owned()),
            interface: interface.to_owned(),
            ..Self::default()
        }
    }
}

/// An attachment that is still wanted, to a collection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Valid {
    /// The container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its interface.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Runner {
    /// Attaches: ADD of every plugin in order. The result of the last one is kept in the cache.
    ///
    /// If a plugin fails, what was done is undone by DEL of all, and the plugin's error is returned.
    ///
    /// # Errors
    ///
    /// [`Error::Plugin`] with what a plugin reported; [`Error::PluginMissing`] before any is executed;
    /// [`Error::PluginTimeout`]; [`Error::Several`] if undoing failed as well.
    pub fn add(&self, network: &Network, attachment: &Attachment) -> Result<Success> {
        checked(attachment)?;
        self.locate(network)?;
        let cache = Cache::new(&self.cache);
        let _lock = cache.lock(FlockArg::LockShared)?;
        let mut result = None;
        let added = network.plugins.iter().try_for_each(|plugin| {
            let input = request(network, plugin, Some(attachment), result.as_ref());
            let printed = self.execute(Command::Add, plugin, Some(attachment), &input)?;
            result = Some(parsed(network, plugin, &printed)?);
            Ok(())
        });
        let finished = added.and_then(|()| {
            let result = result.clone().unwrap_or_default();
            let success = Success::from_json(result.clone(), network.version);
            let success = success.map_err(|reason| nonsense("the chain", Command::Add, &reason))?;
            cache.write(network, attachment, &result)?;
            Ok(success)
        });
        finished.map_err(|error| match self.undo(network, attachment, result.as_ref()) {
            Ok(()) => error,
            Err(second) => Error::Several { errors: vec![error, second] },
        })
    }

    /// Detaches: DEL of every plugin, the last one first, with what ADD gave. What is not attached is no error, if the plugins keep to that.
    ///
    /// # Errors
    ///
    /// The first plugin's that fails: those before it in the chain are not asked (the specification says so), and what
    /// is on record stays for another try.
    pub fn del(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        checked(attachment)?;
        let _lock = Cache::new(&self.cache).lock(FlockArg::LockShared)?;
        self.del_locked(network, attachment)
    }

    fn del_locked(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        let cache = Cache::new(&self.cache);
        // A record that cannot be read must not keep anything from being removed.
        let cached = if network.version >= Version::V0_4_0 {
            cache.read(&network.name, attachment).ok().flatten().and_then(|cached| in_version(cached, network.version))
        } else {
            None
        };
        self.undo(network, attachment, cached.as_ref())?;
        cache.remove(&network.name, attachment)
    }

    fn undo(&self, network: &Network, attachment: &Attachment, result: Option<&Value>) -> Result<()> {
        let result = result.filter(|_| network.version >= Version::V0_4_0);
        network.plugins.iter().rev().try_for_each(|plugin| {
            let input = request(network, plugin, Some(attachment), result);
            self.execute(Command::Del, plugin, Some(attachment), &input).map(drop)
        })
    }

    /// Looks whether the attachment is as ADD left it: CHECK of every plugin. Does nothing where the configuration says
    /// `disableCheck`.
    ///
    /// # Errors
    ///
    /// [`Error::CheckUnsupported`] before version 0.4.0, [`Error::NotAttached`] without a record of ADD, [`Error::Plugin`] with what is
    /// amiss.
    pub fn check(&self, network: &Network, attachment: &Attachment) -> Result<()> {
        checked(attachment)?;
        if network.version < Version::V0_4_0 {
            return Err(Error::CheckUnsupported { network: network.name.clone(), version: network.version.as_str() });
        }
        if network.disable_check {
            return Ok(());
        }
        let cache = Cache::new(&self.cache);
        let _lock = cache.lock(FlockArg::LockShared)?;
        let cached = cache.read(&network.name, attachment)?;
        let result =
            cached.and_then(|cached| in_version(cached, network.version)).ok_or_else(|| Error::NotAttached {
                container: attachment.container_id.clone(),
                interface: attachment.interface.clone(),
                network: network.name.clone(),
            })?;
        network.plugins.iter().try_for_each(|plugin| {
            let input = request(network, plugin, Some(attachment), Some(&result));
            self.execute(Command::Check, plugin, Some(attachment), &input).map(drop)
        })
    }

    /// Removes what belongs to attachments of the network that are no more: DEL for those that are on record and not among `valid`, then, from
    /// version 1.1.0, GC of every plugin. Does nothing where the configuration says `disableGC`.
    ///
    /// # Errors
    ///
    /// [`Error::Several`] with all that failed; every plugin is asked all the same.
    pub fn gc(&self, network: &Network, valid: &[Valid]) -> Result<()> {
        if network.disable_gc {
            return Ok(());
        }
        let cache = Cache::new(&self.cache);
        let _lock = cache.lock(FlockArg::LockExclusive)?;
        cache.sweep();
        let is_valid = |attachment: &Attachment| {
            valid.iter().any(|v| v.container_id == attachment.container_id && v.interface == attachment.interface)
        };
        let mut errors = Vec::new();
        for cached in cache.all()? {
            if cached.network == network.name && !is_valid(&cached.attachment) {
                let removed = checked(&cached.attachment).and_then(|()| self.del_locked(network, &cached.attachment));
                errors.extend(removed.err());
            }
        }
        if network.version >= Version::V1_1_0 {
            for plugin in &network.plugins {
                let mut input = request(network, plugin, None, None);
                // The second is what the specification's first text called it.
                for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                    input.insert(key.to_owned(), json!(valid));
                }
                errors.extend(self.execute(Command::Gc, plugin, None, &input).err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Several { errors }) }
    }

    /// Whether ADD would work: STATUS of every plugin. Says yes before version 1.1.0, which does not have it, if all plugins are there.
    ///
    /// # Errors
    ///
    /// The first plugin's; code 50 or 51 if it is not ready.
    pub fn status(&self, network: &Network) -> Result<()> {
        self.locate(network)?;
        if network.version < Version::V1_1_0 {
            return Ok(());
        }
        network.plugins.iter().try_for_each(|plugin| {
            self.execute(Command::Status, plugin, None, &request(network, plugin, None, None)).map(drop)
        })
    }

    /// The versions that a plugin supports, by VERSION; those that this crate does not know are left out.
    ///
    /// # Errors
    ///
    /// [`Error::PluginMissing`]; [`Error::Plugin`] if its answer makes no sense.
    pub fn versions(&self, plugin: &str) -> Result<Vec<Version>> {
        let executable = find(plugin, &self.path)?;
        let input = json!({ "cniVersion": Version::LATEST.as_str() }).to_string();
        // Plugins that are older than VERSION want the others to be set before they say so.
        let mut environment = self.environment(Command::Version, None);
        environment.extend([("CNI_NETNS", "dummy".into()), ("CNI_IFNAME", "dummy".into())]);
        let (command, input) = (Command::Version, input.as_bytes());
        let execution = Execution { plugin, executable: &executable, command, environment, input, limit: self.limit };
        let printed = match execution.run() {
            Ok(printed) => printed,
            Err(Error::Plugin { failure, .. }) if failure.msg.contains("unknown CNI_COMMAND: VERSION") => {
                return Ok(vec![Version::V0_1_0]);
            }
            Err(error) => return Err(error),
        };
        let answer: Value = serde_json::from_slice(&printed).map_err(|_| {
            nonsense(plugin, command, &format!("it is no JSON: {}", shown(&printed).unwrap_or_default()))
        })?;
        match answer.get("supportedVersions") {
            Some(Value::Array(all)) => {
                Ok(all.iter().filter_map(Value::as_str).filter_map(|text| text.parse().ok()).collect())
            }
            // Version 0.1.0 had no word for it.
            _ => Ok(vec![Version::V0_1_0]),
        }
    }

    /// Whether all plugins of a network are there and speak its version.
    ///
    /// # Errors
    ///
    /// [`Error::PluginMissing`], or [`Error::Plugin`] with code 1.
    pub fn validate(&self, network: &Network) -> Result<()> {
        for plugin in &network.plugins {
            let versions = self.versions(&plugin.plugin_type)?;
            if !versions.contains(&network.version) {
                let list: Vec<_> = versions.iter().map(|version| version.as_str()).collect();
                let details = format!("{:?} has {}, the plugin {}", network.name, network.version, list.join(", "));
                let failure = Failure::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions").details(details);
                return Err(Error::Plugin { plugin: plugin.plugin_type.clone(), command: Command::Version, failure });
            }
        }
        Ok(())
    }

    /// What is on record of an attachment, if it was made: with what arguments, configuration, and result.
    ///
    /// # Errors
    ///
    /// If what is there cannot be read or understood.
    pub fn cached(&self, network: &str, attachment: &Attachment) -> Result<Option<Cached>> {
        checked(attachment)?;
        super::check_network_name(network).map_err(|failure| Error::InvalidAttachment { failure })?;
        Cache::new(&self.cache).read(network, attachment)
    }

    /// All attachments that are on record.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read; entries that make no sense are left out.
    pub fn all_cached(&self) -> Result<Vec<Cached>> {
        Cache::new(&self.cache).all()
    }

    /// That all plugins are there is known before the first is executed.
    fn locate(&self, network: &Network) -> Result<()> {
        network.plugins.iter().try_for_each(|plugin| find(&plugin.plugin_type, &self.path).map(drop))
    }

    fn execute(
        &self,
        command: Command,
        plugin: &PluginConfig,
        attachment: Option<&Attachment>,
        input: &Map<String, Value>,
    ) -> Result<Vec<u8>> {
        let executable = find(&plugin.plugin_type, &self.path)?;
        let input =
            serde_json::to_vec(input).map_err(|error| nonsense(&plugin.plugin_type, command, &error.to_string()))?;
        Execution {
            plugin: &plugin.plugin_type,
            executable: &executable,
            command,
            environment: self.environment(command, attachment),
            input: &input,
            limit: self.limit,
        }
        .run()
    }

    fn environment(&self, command: Command, attachment: Option<&Attachment>) -> Vec<(&'static str, OsString)> {
        let none = Attachment::default();
        let attachment = attachment.unwrap_or(&none);
        let args: Vec<_> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            ("CNI_COMMAND", command.as_str().into()),
            ("CNI_CONTAINERID", attachment.container_id.clone().into()),
            ("CNI_NETNS", attachment.netns.clone().unwrap_or_default().into()),
            ("CNI_IFNAME", attachment.interface.clone().into()),
            ("CNI_ARGS", args.join(";").into()),
            ("CNI_PATH", joined(&self.path)),
        ]
    }
}

/// Names become file names, and arguments one text: both are looked at before anything is done.
fn checked(attachment: &Attachment) -> Result<()> {
    let arguments = || {
        let wrong = |text: &str| text.contains([';', '=', '\0']);
        match attachment.args.iter().find(|(key, value)| key.is_empty() || wrong(key) || wrong(value)) {
            Some((key, value)) => Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_ARGS: {:?} is no pair of a key and a value without ; and =", format!("{key}={value}")),
            )),
            None => Ok(()),
        }
    };
    check_container_id(&attachment.container_id)
        .and_then(|()| check_interface_name(&attachment.interface))
        .and_then(|()| arguments())
        .map_err(|failure| Error::InvalidAttachment { failure })
}

/// What a plugin reads (specification, section 3, "Deriving request configuration from plugin configuration").
fn request(
    network: &Network,
    plugin: &PluginConfig,
    attachment: Option<&Attachment>,
    result: Option<&Value>,
) -> Map<String, Value> {
    let mut fields = plugin.fields.clone();
    fields.remove("capabilities");
    fields.insert("name".to_owned(), network.name.as_str().into());
    fields.insert("cniVersion".to_owned(), network.version.as_str().into());
    if let Some(result) = result {
        fields.insert("prevResult".to_owned(), result.clone());
    }
    let given = attachment.map(|attachment| &attachment.capabilities);
    let wanted = plugin.capabilities.iter().filter_map(|key| Some((key.clone(), given?.get(key)?.clone())));
    let wanted: Map<String, Value> = wanted.collect();
    if !wanted.is_empty() {
        fields.insert("runtimeConfig".to_owned(), wanted.into());
    }
    fields
}

/// What a plugin printed for ADD, as JSON that says its version.
fn parsed(network: &Network, plugin: &PluginConfig, printed: &[u8]) -> Result<Value> {
    let wrong = |reason: &str| nonsense(&plugin.plugin_type, Command::Add, reason);
    let Ok(mut value) = serde_json::from_slice::<Value>(printed) else {
        let shown = shown(printed).map_or_else(|| "it printed nothing".to_owned(), |text| format!("it printed {text}"));
        return Err(wrong(&shown));
    };
    Success::from_json(value.clone(), network.version).map_err(|reason| wrong(&reason))?;
    if value.get("cniVersion").and_then(Value::as_str).is_none_or(str::is_empty) {
        value["cniVersion"] = network.version.as_str().into();
    }
    Ok(value)
}

/// A result on record in the words of the network's version: it has another one if the configuration has changed since.
fn in_version(cached: Cached, version: Version) -> Option<Value> {
    if cached.result.get("cniVersion").and_then(Value::as_str) == Some(version.as_str()) {
        return Some(cached.result);
    }
    Success::from_json(cached.result, version).and_then(|success| success.to_json(version)).ok()
}

fn nonsense(plugin: &str, command: Command, reason: &str) -> Error {
    let failure = Failure::new(code::DECODING, format!("its result makes no sense: {reason}"));
    Error::Plugin { plugin: plugin.to_owned(), command, failure }
}
