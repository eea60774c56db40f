//! What a container is made of: its configuration and its root filesystem.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, Spec};
use serde_json::{Map, Value};

use crate::mount::Tree;
use crate::{Error, Result, native};

/// A `config.json` larger than this is refused; real ones have a few dozen kilobytes.
const LARGEST_CONFIG: u64 = 16 << 20;

/// A [bundle](https://github.com/opencontainers/runtime-spec/blob/main/bundle.md): a configuration and a root.
#[derive(Debug)]
pub struct Bundle {
    /// The bundle's folder: what the state reports and what relative paths in `spec` start from.
    pub path: PathBuf,
    /// The configuration. It need not lie on disk.
    pub spec: Spec,
    /// The root filesystem. It takes the place of `spec.root.path`; `spec.root.readonly` still counts.
    pub root: Root,
}

/// Where a container's root filesystem comes from.
#[derive(Debug)]
pub enum Root {
    /// A folder of the host.
    Path(PathBuf),
    /// A mount that is attached nowhere on the host.
    Detached(Tree),
}

impl Bundle {
    /// Reads `path/config.json`. A relative `root.path` starts at `path`.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_with(path, "config.json")
    }

    /// As [`Bundle::load`], with the configuration from another file. A relative one starts at `path`.
    pub fn load_with(path: impl AsRef<Path>, config: impl AsRef<Path>) -> Result<Self> {
        let given = path.as_ref();
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { operation, path, source }
        };
        let path = fs::canonicalize(given).map_err(io("open the bundle", given))?;
        let config = path.join(config);
        let file = fs::File::open(&config).map_err(io("open", &config))?;
        let mut text = Vec::new();
        file.take(LARGEST_CONFIG + 1).read_to_end(&mut text).map_err(io("read", &config))?;
        if text.len() as u64 > LARGEST_CONFIG {
            return Err(Error::InvalidSpec { field: "config.json".into(), reason: "larger than 16 MiB".into() });
        }
        let spec =
            parse(&text).map_err(|source| Error::ParseSpec { path: config.clone(), source: Box::new(source) })?;
        let Some(root) = spec.root() else {
            return Err(Error::InvalidSpec { field: "root".into(), reason: "is missing".into() });
        };
        let root = Root::Path(path.join(root.path()));
        Ok(Self { path, spec, root })
    }

    /// What the configuration asks for and will not have on this host, where that is no error: capabilities that cannot be given,
    /// and with [`Labels::WherePossible`](crate::Labels) labels that nobody gives. A sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        native::warnings(&self.spec)
    }
}

/// Parses a configuration.
///
/// A capability that nobody knows is left out: the specification wants no failure for it. And two flags of the scheduler have
/// other names in the types than in the specification.
pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Spec> {
    let first = match serde_json::from_slice(text) {
        Err(error) if error.is_data() => error,
        result => return result,
    };
    let mut value: Value = serde_json::from_slice(text)?;
    let before = value.clone();
    let Some(process) = value.get_mut("process") else { return Err(first) };
    for set in process.get_mut("capabilities").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        if let Some(list) = set.as_array_mut() {
            list.retain(|name| serde_json::from_value::<Capability>(name.clone()).is_ok());
        }
    }
    for flag in process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    // The first error has the line.
    if value == before { Err(first) } else { serde_json::from_value(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_left_out() {
        let text = r#"{"ociVersion": "1.3.0", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "capabilities":
            {"bounding": ["CAP_KILL", "CAP_OF_TOMORROW"]}, "scheduler": {"policy": "SCHED_OTHER", "flags":
            ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_KEEP_POLICY"]}}}"#;
        let spec = parse(text.as_bytes()).expect("a configuration");
        let process = spec.process().as_ref().expect("a process");
        let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).expect("a set");
        assert_eq!(bounding, [Capability::Kill].into());
        let flags = process.scheduler().as_ref().and_then(|scheduler| scheduler.flags().clone()).expect("flags");
        assert_eq!(flags.len(), 3);
        let wrong = text.replace("SCHED_OTHER", "SCHED_ODD");
        assert!(parse(wrong.as_bytes()).expect_err("no policy").to_string().contains("SCHED_ODD"));
    }
}
