//! Network configurations: lists of plugins, in files that other programs share (specification, section 1).

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::names::check_network_name;
use super::version::Version;
use crate::error::{Error, Result};

/// Far more than any configuration has, and little enough to be read.
const FILE_MAX: u64 = 4 << 20;

/// A network: the chain of plugins that attach a container to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version in which plugins are spoken to: the highest that configuration and crate have in common.
    pub version: Version,
    /// CHECK does nothing.
    pub disable_check: bool,
    /// GC does nothing.
    pub disable_gc: bool,
    /// The plugins in the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The configuration as it was read; it goes into the cache.
    pub bytes: Vec<u8>,
}

/// The part of a network's configuration that one plugin gets, with all the fields that only it knows.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// The name of its executable.
    pub plugin_type: String,
    /// What it says that it can be given at run time.
    pub capabilities: Vec<String>,
    /// All of it.
    pub fields: Map<String, Value>,
}

impl Network {
    /// The network of that name among the files of a folder, `/etc/cni/net.d` for instance. As libcni 1.3 does it: lists (`*.conflist`) in the
    /// order of their names, then single plugins (`*.conf`, `*.json`); the first of that name counts. Plugins that are not in the list
    /// are read from the folder that has the network's name, unless it says `loadOnlyInlinedPlugins`.
    ///
    /// A file that cannot be understood is no obstacle for other files' networks.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkUnknown`] if there is none; if a file could not be understood, the reason for that instead.
    pub fn load(folder: &Path, name: &str) -> Result<Self> {
        let mut broken = None;
        for file in files(folder)? {
            match Self::from_file(&file) {
                Ok(network) if network.name == name => return Ok(network),
                Ok(_) => {}
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        Err(broken.unwrap_or_else(|| Error::NetworkUnknown { name: name.to_owned(), folder: folder.to_owned() }))
    }

    /// All networks of a folder in the order of [`Network::load`], and why the files are none that are none. Of several networks with the
    /// same name the first one counts. A folder that does not exist has none.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn load_all(folder: &Path) -> Result<(Vec<Self>, Vec<Error>)> {
        let (mut networks, mut errors) = (Vec::<Self>::new(), Vec::new());
        for file in files(folder)? {
            match Self::from_file(&file) {
                Ok(network) if networks.iter().any(|known| known.name == network.name) => {}
                Ok(network) => networks.push(network),
                Err(error) => errors.push(error),
            }
        }
        Ok((networks, errors))
    }

    /// The network in a file: a list, or a single plugin.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkConfig`] with what is wrong, [`Error::NetworkFile`] if it cannot be read.
    pub fn from_file(path: &Path) -> Result<Self> {
        let wrong = |reason| Error::NetworkConfig { origin: path.to_owned(), reason };
        let bytes = read(path)?;
        let fields = object(&bytes).map_err(wrong)?;
        let (mut network, inlined_only) = Self::parse(fields, bytes).map_err(wrong)?;
        if !inlined_only {
            let folder = path.parent().unwrap_or(Path::new(".")).join(&network.name);
            let mut parts = entries(&folder)?;
            parts.retain(|part| part.extension().is_some_and(|extension| extension == "conf"));
            for part in parts {
                let wrong = |reason| Error::NetworkConfig { origin: part.clone(), reason };
                let fields = object(&read(&part)?).map_err(wrong)?;
                network.plugins.push(PluginConfig::parse(fields).map_err(wrong)?);
            }
        }
        if network.plugins.is_empty() {
            return Err(wrong("it names no plugins, and its folder has none".to_owned()));
        }
        Ok(network)
    }

    /// The network in a text: a list with its plugins, or a single plugin.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkConfig`] with what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = |reason| Error::NetworkConfig { origin: PathBuf::from("(given)"), reason };
        let fields = object(bytes).map_err(wrong)?;
        let (network, _) = Self::parse(fields, bytes.to_vec()).map_err(wrong)?;
        if network.plugins.is_empty() {
            return Err(wrong("it names no plugins".to_owned()));
        }
        Ok(network)
    }

    /// The union of what its plugins say that they can be given at run time.
    #[must_use]
    pub fn capabilities(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.plugins.iter().flat_map(|plugin| &plugin.capabilities).map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The network, and whether it has no other plugins than those it names.
    fn parse(mut fields: Map<String, Value>, mut bytes: Vec<u8>) -> Result<(Self, bool), String> {
        if !fields.contains_key("plugins") && fields.contains_key("type") {
            // A single plugin, as it was before lists were: the list of it alone is what the cache gets.
            let name = fields.get("name").cloned().unwrap_or(Value::Null);
            let version = fields.get("cniVersion").cloned().unwrap_or_else(|| "".into());
            let list = json!({ "name": name, "cniVersion": version, "plugins": [fields] });
            bytes = list.to_string().into_bytes();
            fields = object(&bytes)?;
            fields.insert("loadOnlyInlinedPlugins".to_owned(), true.into());
        }
        let name = match fields.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(_) => return Err("its name is no text".to_owned()),
            None => return Err("it has no name".to_owned()),
        };
        check_network_name(&name).map_err(|failure| failure.to_string())?;
        let inlined_only = flag(&fields, "loadOnlyInlinedPlugins")?;
        let plugins = match fields.get("plugins") {
            None if inlined_only => return Err("it says loadOnlyInlinedPlugins, and has no plugins".to_owned()),
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err("its list of plugins is empty".to_owned()),
            Some(Value::Array(plugins)) => {
                let parse = |(index, plugin): (usize, &Value)| {
                    let Value::Object(fields) = plugin else { return Err(format!("plugin {index} is no object")) };
                    PluginConfig::parse(fields.clone()).map_err(|reason| format!("plugin {index}: {reason}"))
                };
                plugins.iter().enumerate().map(parse).collect::<Result<_, _>>()?
            }
            Some(_) => return Err("its plugins are no list".to_owned()),
        };
        let network = Self {
            name,
            version: highest(&fields)?,
            disable_check: flag(&fields, "disableCheck")?,
            disable_gc: flag(&fields, "disableGC")?,
            plugins,
            bytes,
        };
        Ok((network, inlined_only))
    }
}

impl PluginConfig {
    /// The configuration of one plugin.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn parse(fields: Map<String, Value>) -> Result<Self, String> {
        let plugin_type = match fields.get("type") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            Some(_) => return Err("its type is no name".to_owned()),
            None => return Err("it has no type".to_owned()),
        };
        let capabilities = match fields.get("capabilities") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Object(all)) => {
                if all.values().any(|value| !value.is_boolean()) {
                    return Err("its capabilities are not true or false".to_owned());
                }
                all.iter().filter(|(_, value)| value.as_bool() == Some(true)).map(|(key, _)| key.clone()).collect()
            }
            Some(_) => return Err("its capabilities are no object".to_owned()),
        };
        Ok(Self { plugin_type, capabilities, fields })
    }
}

/// The highest version among `cniVersion` and `cniVersions` that is known.
fn highest(fields: &Map<String, Value>) -> Result<Version, String> {
    let own = match fields.get("cniVersion") {
        None => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(_) => return Err("its cniVersion is no text".to_owned()),
    };
    let mut texts: Vec<&str> = own.into_iter().collect();
    match fields.get("cniVersions") {
        None => {}
        Some(Value::Array(list)) => {
            for entry in list {
                texts.push(entry.as_str().ok_or("its cniVersions are no texts")?);
            }
        }
        Some(_) => return Err("its cniVersions are no list".to_owned()),
    }
    if texts.is_empty() {
        return Ok(Version::V0_1_0);
    }
    match texts.iter().filter_map(|text| text.parse().ok()).max() {
        Some(version) => Ok(version),
        None => Err(format!("none of its versions ({}) is known; known are {}", texts.join(", "), Version::list())),
    }
}

/// A flag that may be written as a text, too.
fn flag(fields: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match fields.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("its {key} is neither true nor false")),
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("it is no JSON object: {error}"))
}

/// The files that may be networks, lists first.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let all = entries(folder)?;
    let with = |extension: &str| {
        all.iter().filter(|path| path.extension().is_some_and(|found| found == extension)).cloned().collect::<Vec<_>>()
    };
    let mut singles = [with("conf"), with("json")].concat();
    singles.sort();
    Ok([with("conflist"), singles].concat())
}

/// What is in a folder that is no folder itself, in the order of the names; nothing if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::NetworkFile { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(paths),
        Err(error) => return Err(failed(error)),
    };
    for entry in listing {
        let path = entry.map_err(failed)?.path();
        if !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::NetworkFile { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        let reason = format!("it has more than {FILE_MAX} bytes");
        return Err(Error::NetworkConfig { origin: path.to_owned(), reason });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(value: &Value) -> Result<Network> {
        Network::from_bytes(value.to_string().as_bytes())
    }

    #[test]
    fn the_highest_version_in_common_is_chosen() {
        let version = |own: Value, others: Value| {
            let mut value = json!({ "name": "n", "plugins": [{ "type": "t" }] });
            for (key, entry) in [("cniVersion", own), ("cniVersions", others)] {
                if !entry.is_null() {
                    value[key] = entry;
                }
            }
            network(&value).map(|network| network.version).map_err(|error| error.to_string())
        };
        assert_eq!(version(Value::Null, Value::Null), Ok(Version::V0_1_0));
        assert_eq!(version(json!("0.4.0"), Value::Null), Ok(Version::V0_4_0));
        assert_eq!(version(json!("0.3.1"), json!(["0.4.0", "1.1.0", "1.0.0"])), Ok(Version::V1_1_0));
        assert_eq!(version(json!("7.0.0"), json!(["0.4.0", "8.0.0"])), Ok(Version::V0_4_0));
        let error = version(json!("7.0.0"), Value::Null).expect_err("not known");
        assert!(error.contains("7.0.0"), "{error}");
        assert!(version(json!(1), Value::Null).is_err());
        assert!(version(Value::Null, json!([1])).is_err());
        assert!(version(Value::Null, json!("1.0.0")).is_err());
    }

    #[test]
    fn flags_may_be_texts() {
        let value = json!({ "name": "n", "disableCheck": "True", "disableGC": true, "plugins": [{ "type": "t" }] });
        let network = network(&value).expect("it is one");
        assert!(network.disable_check && network.disable_gc);
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let value = json!({ "name": "n", "cniVersion": "0.4.0", "type": "t", "x": [1], "capabilities": { "a": true, "b": false } });
        let single = network(&value).expect("it is one");
        assert_eq!(single.plugins.len(), 1);
        assert_eq!(single.plugins[0].fields["x"], json!([1]));
        assert_eq!(single.capabilities(), ["a"]);
        assert_eq!(single.version, Version::V0_4_0);
        assert_eq!(Network::from_bytes(&single.bytes).expect("what is kept can be read").plugins, single.plugins);
    }

    #[test]
    fn wrong_configurations_say_what_is_wrong() {
        for (value, expected) in [
            (json!([]), "JSON"),
            (json!({ "plugins": [{ "type": "t" }] }), "no name"),
            (json!({ "name": 5, "plugins": [{ "type": "t" }] }), "no text"),
            (json!({ "name": "../x", "plugins": [{ "type": "t" }] }), "invalid characters"),
            (json!({ "name": "n", "plugins": [] }), "empty"),
            (json!({ "name": "n", "plugins": {} }), "no list"),
            (json!({ "name": "n" }), "no plugins"),
            (json!({ "name": "n", "loadOnlyInlinedPlugins": true }), "loadOnlyInlinedPlugins"),
            (json!({ "name": "n", "plugins": [{ "type": "t" }, {}] }), "plugin 1: it has no type"),
            (json!({ "name": "n", "plugins": [5] }), "plugin 0 is no object"),
            (json!({ "name": "n", "plugins": [{ "type": "" }] }), "no name"),
            (json!({ "name": "n", "disableCheck": "maybe", "plugins": [{ "type": "t" }] }), "disableCheck"),
            (json!({ "name": "n", "plugins": [{ "type": "t", "capabilities": [] }] }), "capabilities"),
            (json!({ "name": "n", "plugins": [{ "type": "t", "capabilities": { "a": 1 } }] }), "capabilities"),
        ] {
            let error = network(&value).expect_err("it is wrong").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
