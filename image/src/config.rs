//! The image config: what OCI specifies, and what Docker adds to it.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::Platform;

/// An image's config, read from its raw bytes and never written back.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// What the OCI image specification defines.
    pub oci: ImageConfiguration,
    /// What Docker has in the same `config` object beside it.
    pub docker: DockerConfig,
}

/// Docker's extensions to the `config` object of an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerConfig {
    /// How to check that the container is well.
    pub healthcheck: Option<Healthcheck>,
    /// Dockerfile instructions for builds that start from this image.
    #[serde(deserialize_with = "null_as_default")]
    pub on_build: Vec<String>,
    /// The shell for the shell form of commands; empty is the default, `/bin/sh -c`.
    #[serde(deserialize_with = "null_as_default")]
    pub shell: Vec<String>,
    /// Seconds between the stop signal and SIGKILL.
    pub stop_timeout: Option<i64>,
}

/// Docker's `HEALTHCHECK`. Durations are in nanoseconds; 0 is "inherit the default".
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` and its arguments, or `CMD-SHELL` and a command line; empty inherits.
    #[serde(deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Time between checks.
    pub interval: i64,
    /// Time after which a check is taken as hung.
    pub timeout: i64,
    /// Time in which failures do not count, from the start.
    pub start_period: i64,
    /// Time between checks during the start period.
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    pub retries: i64,
}

/// Go writes a nil slice as `null`.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// The platform that the image is for.
    #[must_use]
    pub fn platform(&self) -> Platform {
        let (os, architecture) = (self.oci.os().to_string(), self.oci.architecture().to_string());
        Platform::new(&os, &architecture, self.oci.variant().as_deref())
    }

    /// Parses a config's bytes.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Beside {
            #[serde(default)]
            config: Option<DockerConfig>,
        }
        let oci = serde_json::from_slice(raw)?;
        let beside: Beside = serde_json::from_slice(raw)?;
        Ok(Self { oci, docker: beside.config.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_docker_writes() {
        let raw = br#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","docker_version":"20.10.24",
            "container_config":{"Hostname":"x"},"rootfs":{"type":"layers","diff_ids":[]},"history":null,
            "config":{"Hostname":"","Domainname":"","User":"1:2","AttachStdin":false,"Tty":false,"ExposedPorts":{"80/tcp":{}},
            "Env":["A=b"],"Cmd":["sh"],"ArgsEscaped":true,"Image":"sha256:x","Volumes":null,"WorkingDir":"/w","Entrypoint":null,
            "OnBuild":null,"Labels":null,"StopSignal":"SIGINT","StopTimeout":7,"Shell":["/bin/ash","-c"],
            "Healthcheck":{"Test":["CMD","true"],"Interval":5000000000,"Retries":3}}}"#;
        let config = ImageConfig::parse(raw).expect("parses");
        assert_eq!(config.docker.stop_timeout, Some(7));
        assert_eq!(config.docker.shell, ["/bin/ash", "-c"]);
        assert!(config.docker.on_build.is_empty());
        let check = config.docker.healthcheck.expect("is there");
        assert_eq!(
            (check.test.as_slice(), check.interval, check.retries),
            (&["CMD".to_owned(), "true".to_owned()][..], 5_000_000_000, 3)
        );
        let oci = config.oci.config().as_ref().expect("is there");
        assert_eq!(oci.exposed_ports().as_deref(), Some(&["80/tcp".to_owned()][..]));
        assert_eq!(oci.user().as_deref(), Some("1:2"));
    }

    #[test]
    fn does_without_a_config_object() {
        for raw in [
            &br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#[..],
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":null}"#,
        ] {
            assert_eq!(ImageConfig::parse(raw).expect("parses").docker, DockerConfig::default());
        }
    }
}
