//! Images: what `image inspect` shows, and the part of an image's configuration that containers have from it.

use std::collections::BTreeMap;

use estiba_engine::image::{Image, Reference, Stored};
use serde_json::Value as Json;

use crate::moment;
use crate::template::{Record, Value};

/// An image's configuration as it is in the store, with all that `oci_spec` drops of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    whole: Json,
}

impl Config {
    /// Reads the bytes of a configuration. What is none is an empty one.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self { whole: serde_json::from_slice(bytes).unwrap_or(Json::Null) }
    }

    fn inner(&self, key: &str) -> &Json {
        &self.whole["config"][key]
    }

    fn text(&self, key: &str) -> &str {
        self.whole[key].as_str().unwrap_or_default()
    }

    pub(crate) fn created(&self) -> &str {
        self.text("created")
    }

    pub(crate) fn architecture(&self) -> &str {
        self.text("architecture")
    }

    /// The list under a key of the inner configuration; `None`: it is null or not there.
    pub(crate) fn list(&self, key: &str) -> Option<Vec<String>> {
        let items = self.inner(key).as_array()?;
        Some(items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
    }

    pub(crate) fn string(&self, key: &str) -> &str {
        self.inner(key).as_str().unwrap_or_default()
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let entries = self.inner("Labels").as_object().into_iter().flatten();
        entries.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    }

    /// The keys of a set, such as `ExposedPorts` and `Volumes`.
    pub(crate) fn set(&self, key: &str) -> Vec<String> {
        self.inner(key).as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    }

    /// The set as `inspect` shows it.
    pub(crate) fn set_value(&self, key: &str) -> Value {
        Value::map(self.set(key).into_iter().map(|key| (key, Value::map([]))))
    }

    pub(crate) fn raw(&self, key: &str) -> Option<Value> {
        Some(self.inner(key)).filter(|value| !value.is_null()).map(|value| value.clone().into())
    }

    /// The steps that made the image, the newest first.
    pub(crate) fn history(&self) -> Vec<Step> {
        let steps = self.whole["history"].as_array().into_iter().flatten();
        let text = |step: &Json, key: &str| step[key].as_str().unwrap_or_default().to_owned();
        let mut steps: Vec<Step> = steps
            .map(|step| Step {
                created: text(step, "created"),
                created_by: text(step, "created_by"),
                comment: text(step, "comment"),
                has_layer: !step["empty_layer"].as_bool().unwrap_or(false),
            })
            .collect();
        steps.reverse();
        steps
    }
}

/// A step of an image's history.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) created: String,
    pub(crate) created_by: String,
    pub(crate) comment: String,
    /// Whether it made a layer.
    pub(crate) has_layer: bool,
}

/// A name in a store as Docker's two columns show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) repository: String,
    pub(crate) tag: String,
}

pub(crate) const NONE: &str = "<none>";

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        if let Some(reference) = reference(name) {
            let tag = reference.tag().unwrap_or(NONE).to_owned();
            let familiar = reference.familiar();
            let repository = familiar.split('@').next().unwrap_or_default();
            let repository = repository.strip_suffix(&format!(":{tag}")).unwrap_or(repository).to_owned();
            return Self { repository, tag };
        }
        // A name of a layout: what stands behind its last colon is the tag.
        match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') && !repository.is_empty() => {
                Self { repository: repository.to_owned(), tag: tag.to_owned() }
            }
            _ => Self { repository: name.to_owned(), tag: NONE.to_owned() },
        }
    }

    /// An image that has no name.
    pub(crate) fn none() -> Self {
        Self { repository: NONE.to_owned(), tag: NONE.to_owned() }
    }
}

/// The reference that a name in the store is; `None` of a name such as an image layout gives.
fn reference(name: &str) -> Option<Reference> {
    name.parse::<Reference>().ok().filter(|reference| reference.to_string() == name)
}

/// The short form of a name.
pub(crate) fn familiar(name: &str) -> String {
    reference(name).map_or_else(|| name.to_owned(), |reference| reference.familiar())
}

/// What `image inspect` shows.
pub(crate) fn inspect(stored: &Stored, image: &Image, driver: &'static str, size: u64) -> Value {
    let config = Config::read(image.raw_config());
    let list = |key: &str| config.list(key).map_or_else(Value::nil_list, Value::from);
    let labels = config.labels();
    let labels = if labels.is_empty() { Value::nil_map() } else { Value::from(&labels) };
    let layers: Vec<Value> =
        config.whole["rootfs"]["diff_ids"].as_array().into_iter().flatten().cloned().map(Value::from).collect();
    let inner = Record::new("container.Config")
        .with("Cmd", list("Cmd"))
        .with("Entrypoint", list("Entrypoint"))
        .with("Env", list("Env"))
        .with_some("ExposedPorts", config.set_value("ExposedPorts"))
        .with_some("Healthcheck", config.raw("Healthcheck"))
        .with("Labels", labels)
        .with("OnBuild", list("OnBuild"))
        .with_some("Shell", config.list("Shell"))
        .with_some("StopSignal", config.string("StopSignal"))
        .with("User", config.string("User"))
        .with("Volumes", config.set_value("Volumes").or_nil())
        .with("WorkingDir", config.string("WorkingDir"));
    Record::new("image.InspectResponse")
        .with("Id", image.id().to_string())
        .with("RepoTags", stored.names.iter().map(|name| familiar(name)).collect::<Vec<_>>())
        .with("RepoDigests", stored.repository_digests())
        .with("Parent", "")
        .with("Comment", config.history().first().map(|step| step.comment.clone()).unwrap_or_default())
        .with("Created", if config.created().is_empty() { moment::NEVER } else { config.created() })
        .with("DockerVersion", config.text("docker_version"))
        .with("Author", config.text("author"))
        .with("Architecture", config.architecture())
        .with_some("Variant", config.text("variant"))
        .with("Os", config.text("os"))
        .with("Size", size)
        .with("GraphDriver", Record::new("storage.DriverData").with("Data", Value::nil_map()).with("Name", driver))
        .with("RootFS", Record::new("image.RootFS").with("Type", "layers").with("Layers", layers))
        .with("Metadata", Record::new("image.Metadata").with("LastTagTime", moment::NEVER))
        .with("Config", inner)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_two_columns() {
        for (name, repository, tag) in [
            ("docker.io/library/alpine:3.20", "alpine", "3.20"),
            ("docker.io/user/app:latest", "user/app", "latest"),
            ("localhost:5000/app:1", "localhost:5000/app", "1"),
            ("embedded:hello", "embedded", "hello"),
            ("plain", "plain", NONE),
        ] {
            let expected = Name { repository: repository.to_owned(), tag: tag.to_owned() };
            assert_eq!(Name::of(name), expected, "{name}");
        }
    }

    #[test]
    fn a_configuration_keeps_what_it_says() {
        let config = Config::read(
            br#"{"created":"2026-01-01T00:00:00Z","config":{"Labels":{"a":"b"},"Cmd":["sh"],"Volumes":{"/data":{}}},
                 "history":[{"created_by":"one"},{"created_by":"two","empty_layer":true}]}"#,
        );
        assert_eq!(config.list("Cmd"), Some(vec!["sh".to_owned()]));
        assert_eq!(config.list("Entrypoint"), None);
        assert_eq!(config.set("Volumes"), ["/data"]);
        assert_eq!(config.labels()["a"], "b");
        let history = config.history();
        assert_eq!((history[0].created_by.as_str(), history[0].has_layer), ("two", false));
        assert_eq!(Config::read(b"not json").labels().len(), 0);
    }
}
