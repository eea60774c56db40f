//! What a container is made of: its configuration and its root filesystem.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use crate::mount::Tree;
use crate::{Error, Result};

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
        let given = path.as_ref();
        let io = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { operation, path, source }
        };
        let path = fs::canonicalize(given).map_err(io("open the bundle", given))?;
        let config = path.join("config.json");
        let file = fs::File::open(&config).map_err(io("open", &config))?;
        let mut text = Vec::new();
        file.take(LARGEST_CONFIG + 1).read_to_end(&mut text).map_err(io("read", &config))?;
        if text.len() as u64 > LARGEST_CONFIG {
            return Err(Error::InvalidSpec { field: "config.json".into(), reason: "larger than 16 MiB".into() });
        }
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(|source| Error::ParseSpec { path: config.clone(), source: Box::new(source) })?;
        let Some(root) = spec.root() else {
            return Err(Error::InvalidSpec { field: "root".into(), reason: "is missing".into() });
        };
        let root = Root::Path(path.join(root.path()));
        Ok(Self { path, spec, root })
    }
}
