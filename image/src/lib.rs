#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod archive;
mod change;
mod commit;
mod config;
mod copy;
mod digest;
mod docker_archive;
mod error;
mod image;
mod layer;
mod layout;
mod load;
mod manifest;
pub mod media;
mod oci_archive;
mod platform;
mod provider;
mod reference;
#[cfg(feature = "registry")]
mod registry;
mod save;
mod source;
mod stored;
mod verified;

pub use oci_spec;

pub use change::Change;
pub use commit::{Commit, Committed, Settings};
pub use config::{DockerConfig, Healthcheck, ImageConfig, Made};
pub use copy::copy;
pub use digest::digest_of;
pub use docker_archive::DockerArchive;
pub use error::{ArchiveProblem, Error, Result};
pub use image::{Image, Layer};
pub use layer::{LayerWriter, import_layer};
pub use layout::{Check, Collected, Follower, ImageUsage, Layout, Lease, Listing, Problem, Usage};
pub use load::Loaded;
pub use oci_archive::OciArchive;
pub use platform::Platform;
pub use provider::{ContentStore, Ingest, MAX_DOCUMENT, Provider, read_blob};
pub use reference::Reference;
#[cfg(feature = "registry")]
pub use registry::{
    BlobState, Credential, Credentials, Event, Mirror, Progress, Proxies, Pulled, Pulls, Push, Registries, Registry,
    RegistryProblem, Rule, Settings as RegistrySettings, Taps,
};
pub use save::Export;
pub use source::{Imported, Source};
pub use stored::{Found, Stored, StoredPlatform, short_id};
pub use verified::Verified;
