#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod archive;
mod config;
mod copy;
mod digest;
mod docker_archive;
mod error;
mod image;
mod layout;
mod manifest;
pub mod media;
mod oci_archive;
mod platform;
mod provider;
mod reference;
mod source;
mod verified;

pub use oci_spec;

pub use config::{DockerConfig, Healthcheck, ImageConfig};
pub use copy::copy;
pub use digest::digest_of;
pub use docker_archive::DockerArchive;
pub use error::{ArchiveProblem, Error, Result};
pub use image::{Image, Layer};
pub use layout::{Layout, Listing};
pub use oci_archive::OciArchive;
pub use platform::Platform;
pub use provider::{ContentStore, Ingest, MAX_DOCUMENT, Provider, read_blob};
pub use reference::Reference;
pub use source::{Imported, Source};
pub use verified::Verified;
