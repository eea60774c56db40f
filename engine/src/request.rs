//! What a caller asks of a new container.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::images::Image;

/// A container to be made: an image and what differs from the image's own configuration.
///
/// ```
/// use estiba_engine::{CreateRequest, Image};
/// # fn request(image: Image) -> CreateRequest {
/// CreateRequest { command: vec!["true".into()], memory: Some(64 << 20), ..CreateRequest::new(image) }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, set by name")]
pub struct CreateRequest {
    /// The image, as [`Engine::import`](crate::Engine::import) returned it.
    pub image: Image,
    /// The container's name; one is made up if there is none.
    pub name: Option<String>,
    /// Arguments: they replace the image's `Cmd`.
    pub command: Vec<String>,
    /// Replaces the image's `Entrypoint` and drops its `Cmd`. An empty list clears it.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE`, over the image's.
    pub env: Vec<String>,
    /// Working directory, instead of the image's.
    pub workdir: Option<String>,
    /// `UID[:GID]` or `NAME[:GROUP]`, instead of the image's.
    pub user: Option<String>,
    /// Host name; the first 12 characters of the id if there is none.
    pub hostname: Option<String>,
    /// Folders and files of the host shown inside.
    pub binds: Vec<Bind>,
    /// Memory limit in bytes; swap included.
    pub memory: Option<u64>,
    /// CPU time per wall time, in units of 0.000000001 CPU (Docker's `NanoCpus`).
    pub nano_cpus: Option<u64>,
    /// Greatest number of processes and threads.
    pub pids_limit: Option<i64>,
    /// The container's network.
    pub network: NetworkMode,
    /// The root file system is read-only.
    pub read_only: bool,
    /// A terminal is allocated for the process.
    pub tty: bool,
    /// The terminal's first size: columns and rows.
    #[serde(default)]
    pub console_size: Option<(u16, u16)>,
    /// Standard input is connected; without it the process reads from `/dev/null`.
    pub interactive: bool,
    /// Record, root and all that is the container's are removed when it has ended.
    pub auto_remove: bool,
    /// An OCI runtime's program file; the built-in runtime if there is none.
    pub runtime: Option<PathBuf>,
}

impl CreateRequest {
    /// A request for `image` that changes nothing of the image's configuration.
    #[must_use]
    pub fn new(image: Image) -> Self {
        Self {
            image,
            name: None,
            command: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            workdir: None,
            user: None,
            hostname: None,
            binds: Vec::new(),
            memory: None,
            nano_cpus: None,
            pids_limit: None,
            network: NetworkMode::None,
            read_only: false,
            tty: false,
            console_size: None,
            interactive: false,
            auto_remove: false,
            runtime: None,
        }
    }
}

/// A folder or file of the host that is shown inside a container (`SRC:DST[:ro]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host. Made as a folder if it is not there, as Docker does for `-v`.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Not writable inside; mounts below it included.
    pub read_only: bool,
}

/// The network that a container is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A network namespace of its own with the loopback interface only.
    #[default]
    None,
    /// The host's network namespace.
    Host,
}

impl FromStr for NetworkMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => Err(Error::NetworkMode { mode: other.to_owned() }),
        }
    }
}

impl FromStr for Bind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Error::Bind { bind: text.to_owned(), reason };
        let mut parts = text.split(':');
        let (Some(source), Some(destination), options, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("it must be SRC:DST or SRC:DST:ro"));
        };
        if !source.starts_with('/') {
            return Err(invalid("the source must be an absolute path (named volumes are not supported yet)"));
        }
        if !destination.starts_with('/') || destination.split('/').all(|part| part.is_empty() || part == ".") {
            return Err(invalid("the destination must be an absolute path other than /"));
        }
        let mut read_only = false;
        for option in options.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                _ => return Err(invalid("only the options ro and rw are supported")),
            }
        }
        Ok(Self { source: PathBuf::from(source), destination: destination.to_owned(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_parsed_or_refused() {
        let bind: Bind = "/a:/b:ro".parse().expect("a bind");
        assert_eq!(bind, Bind { source: "/a".into(), destination: "/b".into(), read_only: true });
        assert!(!"/a:/b".parse::<Bind>().expect("a bind").read_only);
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/", "/a:/.", "/a:/b:ro:x", "/a:/b:exec"] {
            assert!(bad.parse::<Bind>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn network_modes() {
        assert_eq!("none".parse::<NetworkMode>().expect("a mode"), NetworkMode::None);
        assert!("bridge".parse::<NetworkMode>().is_err());
    }
}
