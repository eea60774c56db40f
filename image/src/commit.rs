//! `docker commit` and `docker import`: images that are made here.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Map, Value, json};

use crate::change::{self, Change};
use crate::media::{self, Compression};
use crate::provider::MAX_DOCUMENT;
use crate::{ContentStore, Error, Healthcheck, Image, Layer, Lease, Platform, Reference, Result, digest_of};

/// The digest of a tar without entries: 1024 zero bytes.
const EMPTY_TAR: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// What an older Docker noted about how the parent was made, which is not true of the child.
const OF_PARENT: [&str; 7] =
    ["id", "parent", "parent_id", "container", "container_config", "docker_version", "throwaway"];

/// An image that is to be made: of a parent and a layer over it, or of a layer alone.
///
/// The parent's config is the beginning, with whatever is in it that is not known here; then [`settings`](Self::settings), then
/// [`changes`](Self::changes) are applied. Layers and formats are the parent's: a child of a Docker image is one.
///
/// ```no_run
/// use std::io::Write;
/// use estiba_image::media::Compression;
/// use estiba_image::{Commit, Image, Layout, LayerWriter, Platform};
///
/// let store = Layout::open("/var/lib/estiba/content")?;
/// let lease = store.lease()?;
/// let found = store.find("busybox")?;
/// lease.hold(&found.root)?;
/// let parent = Image::load(&store, &found.root, &Platform::host())?;
/// let mut layer = LayerWriter::begin(&lease, Compression::Gzip)?;
/// # let tar: &[u8] = &[];
/// std::io::copy(&mut { tar }, &mut layer).expect("takes it");
/// let layer = layer.finish()?;
/// let made = Commit {
///     parent: Some(&parent),
///     layer: Some(&layer),
///     changes: vec!["CMD [\"/hello\"]".parse()?],
///     message: Some("hello".to_owned()),
///     ..Commit::default()
/// }
/// .write(&lease, Some(&"hello:2".parse()?))?;
/// println!("{}", made.id);
/// # Ok::<(), estiba_image::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Commit<'a> {
    /// The image below; its blobs are in the same store.
    pub parent: Option<&'a Image>,
    /// The platform of an image without a parent.
    pub platform: Platform,
    /// The new layer; it is in the store already.
    pub layer: Option<&'a Layer>,
    /// What the container was run with.
    pub settings: Settings,
    /// What `docker commit --change` asks for, in this order.
    pub changes: Vec<Change>,
    /// Who made it.
    pub author: Option<String>,
    /// What they say about it.
    pub message: Option<String>,
    /// What was run to make the layer.
    pub created_by: Option<String>,
    /// When it was made; `None` is now.
    pub created: Option<SystemTime>,
}

impl Default for Commit<'_> {
    fn default() -> Self {
        let host = Platform::host();
        // An image does not need what this machine can do beyond its architecture; of arm the variants are architectures.
        let variant = host.variant().filter(|_| host.architecture() == "arm");
        Self {
            parent: None,
            platform: Platform::new(host.os(), host.architecture(), variant),
            layer: None,
            settings: Settings::default(),
            changes: Vec::new(),
            author: None,
            message: None,
            created_by: None,
            created: None,
        }
    }
}

/// Parts of an image's `config` object, of which each that is given replaces the one of the parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// See [`ImageConfig::entrypoint`](crate::ImageConfig::entrypoint); empty is none.
    pub entrypoint: Option<Vec<String>>,
    /// See [`ImageConfig::cmd`](crate::ImageConfig::cmd); empty is none.
    pub cmd: Option<Vec<String>>,
    /// All of the environment, as `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// The working directory.
    pub working_dir: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// All labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// All ports, as `80/tcp`.
    pub exposed_ports: Option<BTreeSet<String>>,
    /// All volumes.
    pub volumes: Option<BTreeSet<String>>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
    /// Seconds between this signal and SIGKILL.
    pub stop_timeout: Option<i64>,
    /// How to check that it is well.
    pub healthcheck: Option<Healthcheck>,
    /// Dockerfile instructions for builds that start from this image.
    pub on_build: Option<Vec<String>>,
    /// The shell for the shell form of commands.
    pub shell: Option<Vec<String>>,
}

impl Settings {
    fn apply(&self, config: &mut Map<String, Value>) {
        let list = |list: &Vec<String>| if list.is_empty() { Value::Null } else { json!(list) };
        let set = |keys: &BTreeSet<String>| Value::Object(keys.iter().map(|key| (key.clone(), json!({}))).collect());
        let parts = [
            ("Entrypoint", self.entrypoint.as_ref().map(list)),
            ("Cmd", self.cmd.as_ref().map(list)),
            ("Env", self.env.as_ref().map(list)),
            ("WorkingDir", self.working_dir.as_ref().map(|text| json!(text))),
            ("User", self.user.as_ref().map(|text| json!(text))),
            ("Labels", self.labels.as_ref().map(|labels| json!(labels))),
            ("ExposedPorts", self.exposed_ports.as_ref().map(set)),
            ("Volumes", self.volumes.as_ref().map(set)),
            ("StopSignal", self.stop_signal.as_ref().map(|text| json!(text))),
            ("StopTimeout", self.stop_timeout.map(|seconds| json!(seconds))),
            ("Healthcheck", self.healthcheck.as_ref().map(|check| json!(check))),
            ("OnBuild", self.on_build.as_ref().map(list)),
            ("Shell", self.shell.as_ref().map(list)),
        ];
        for (key, value) in parts {
            let Some(value) = value else { continue };
            let nothing = match &value {
                Value::Null => true,
                Value::Object(map) => map.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if nothing {
                config.remove(key);
            } else {
                config.insert(key.to_owned(), value);
            }
        }
    }
}

/// An image that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its id: the digest of its config.
    pub id: Digest,
}

impl Commit<'_> {
    /// Writes config and manifest, and gives the image its name; without one it is listed by its id alone.
    ///
    /// The lease is the one that the layer came in through, and that holds the parent.
    ///
    /// # Errors
    ///
    /// [`Error::BlobMissing`] if a layer is not in the store; [`Error::InvalidCommit`] if the image could not be read again.
    pub fn write(&self, to: &Lease, name: Option<&Reference>) -> Result<Committed> {
        let config = self.config()?;
        let docker =
            self.parent.is_some_and(|parent| parent.descriptor().media_type().as_ref() == media::DOCKER_MANIFEST);
        let (config_type, manifest_type) = if docker {
            (media::DOCKER_CONFIG, media::DOCKER_MANIFEST)
        } else {
            ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.manifest.v1+json")
        };
        let mut layers = Vec::new();
        if let Some(parent) = self.parent {
            let raw: Value = document(parent.raw_manifest(), "the parent's manifest")?;
            layers.extend(raw.get("layers").and_then(Value::as_array).cloned().unwrap_or_default());
            for layer in parent.layers() {
                to.hold(&layer.descriptor)?;
            }
        }
        if let Some(layer) = self.new_layer() {
            to.hold(&layer.descriptor)?;
            let media_type = match (docker, layer.compression) {
                (true, Compression::None) => media::DOCKER_LAYER,
                (true, Compression::Gzip) => media::DOCKER_LAYER_GZIP,
                (true, Compression::Zstd) => media::DOCKER_LAYER_ZSTD,
                (false, _) => layer.descriptor.media_type().as_ref(),
            };
            let (digest, size) = (layer.descriptor.digest().as_ref(), layer.descriptor.size());
            layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        }
        let raw_config = config.to_string().into_bytes();
        let config = describe(config_type, &raw_config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": { "mediaType": config_type, "digest": config.digest().as_ref(), "size": config.size() },
            "layers": layers,
        });
        let raw_manifest = manifest.to_string().into_bytes();
        let manifest = describe(manifest_type, &raw_manifest);
        for (descriptor, raw) in [(&config, &raw_config), (&manifest, &raw_manifest)] {
            if descriptor.size() > MAX_DOCUMENT {
                let reason = format!("its config or manifest would have {} bytes", descriptor.size());
                return Err(Error::InvalidCommit { reason });
            }
            if to.contains(descriptor)? {
                continue;
            }
            let mut ingest = to.ingest()?;
            ingest.write_all(raw).map_err(|error| {
                error.downcast::<Error>().unwrap_or_else(|source| Error::io("write to", to.layout().path(), source))
            })?;
            ingest.commit(descriptor)?;
        }
        // Nothing gets a name that could not be read again.
        Image::load(to, &manifest, &self.platform)?;
        match name {
            Some(name) => to.layout().tag(&name.to_string(), &manifest)?,
            None => to.layout().keep(&manifest)?,
        }
        Ok(Committed { id: config.digest().clone(), manifest })
    }

    /// The layer, unless nothing changed.
    fn new_layer(&self) -> Option<&Layer> {
        self.layer.filter(|layer| self.parent.is_none() || layer.diff_id.as_ref() != EMPTY_TAR)
    }

    fn config(&self) -> Result<Value> {
        let mut config: Map<String, Value> = match self.parent {
            Some(parent) => document(parent.raw_config(), "the parent's config")?,
            None => Map::new(),
        };
        config.retain(|key, _| !OF_PARENT.contains(&key.as_str()));
        if self.parent.is_none() {
            config.insert("os".to_owned(), json!(self.platform.os()));
            config.insert("architecture".to_owned(), json!(self.platform.architecture()));
            if let Some(variant) = self.platform.variant() {
                config.insert("variant".to_owned(), json!(variant));
            }
        }
        let created = rfc3339(self.created.unwrap_or_else(SystemTime::now))?;
        config.insert("created".to_owned(), json!(created));
        for (key, value) in [("author", &self.author), ("comment", &self.message)] {
            config.remove(key);
            if let Some(value) = value {
                config.insert(key.to_owned(), json!(value));
            }
        }
        let process = object(&mut config, "config")?;
        self.settings.apply(process);
        change::apply(&self.changes, process)?;

        let rootfs = object(&mut config, "rootfs")?;
        rootfs.insert("type".to_owned(), json!("layers"));
        let diff_ids = list(rootfs, "diff_ids")?;
        if let Some(layer) = self.new_layer() {
            diff_ids.push(json!(layer.diff_id.as_ref()));
        }
        let mut step = Map::new();
        step.insert("created".to_owned(), json!(created));
        for (key, value) in [("created_by", &self.created_by), ("author", &self.author), ("comment", &self.message)] {
            if let Some(value) = value {
                step.insert(key.to_owned(), json!(value));
            }
        }
        if self.new_layer().is_none() {
            step.insert("empty_layer".to_owned(), json!(true));
        }
        list(&mut config, "history")?.push(Value::Object(step));
        Ok(Value::Object(config))
    }
}

fn describe(media_type: &str, raw: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::from(media_type), raw.len() as u64, digest_of(raw))
}

fn document<T: for<'de> serde::Deserialize<'de>>(raw: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(raw)
        .map_err(|source| Error::InvalidDocument { what: what.to_owned(), source: source.into() })
}

/// An object in an object, which is made if it is absent or null.
fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| Error::InvalidCommit { reason: format!("the parent's {key} is no object") })
}

fn list<'a>(map: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| Error::InvalidCommit { reason: format!("the parent's {key} is no list") })
}

/// A time as RFC 3339 has it, in UTC and with as many digits of the second as it needs.
fn rfc3339(time: SystemTime) -> Result<String> {
    let since = time
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Error::InvalidCommit { reason: "it would be made before 1970; set the clock".to_owned() })?;
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years of 365.2425 days that begin in March: the leap day is then the last one (Hinnant, "chrono-compatible date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    if year > 9999 {
        return Err(Error::InvalidCommit { reason: "it would be made after the year 9999; set the clock".to_owned() });
    }
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if since.subsec_nanos() > 0 {
        let fraction = format!(".{:09}", since.subsec_nanos());
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_docker_does() {
        // By `date -u -d @SECONDS`.
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 1, "2000-02-28T23:59:59.000000001Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_709_164_800, 500_000_000, "2024-02-29T00:00:00.5Z"),
            (1_767_225_599, 120_000_000, "2025-12-31T23:59:59.12Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, nanos, wanted) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos)).expect("is a time"), wanted);
        }
        assert!(rfc3339(UNIX_EPOCH + Duration::from_secs(253_402_300_800)).is_err());
        assert!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)).is_err());
    }

    #[test]
    fn settings_replace_and_remove() {
        let mut config: Map<String, Value> =
            serde_json::from_str(r#"{"Cmd":["a"],"Env":["A=1"],"vendor":1,"WorkingDir":"/x"}"#).expect("JSON");
        let settings = Settings {
            cmd: Some(Vec::new()),
            env: Some(vec!["B=2".to_owned()]),
            exposed_ports: Some(["80/tcp".to_owned()].into()),
            working_dir: Some(String::new()),
            ..Settings::default()
        };
        settings.apply(&mut config);
        assert_eq!(Value::Object(config), json!({ "Env": ["B=2"], "ExposedPorts": { "80/tcp": {} }, "vendor": 1 }));
    }
}
