//! The image config: what OCI specifies, and what Docker adds to it.

use std::collections::BTreeMap;
use std::time::Duration;

use oci_spec::image::{Config, History, ImageConfiguration};
use serde::{Deserialize, Serialize};

use crate::Platform;

/// An image's config, read from its raw bytes and never written back.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageConfig {
    /// What the OCI image specification defines.
    pub oci: ImageConfiguration,
    /// What Docker has in the same `config` object beside it.
    pub docker: DockerConfig,
    /// What Docker has outside of the `config` object.
    pub made: Made,
}

/// Docker's extensions to an image config, of how it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Made {
    /// The version of the Docker that made it.
    #[serde(default)]
    pub docker_version: Option<String>,
    /// What the one who committed it said.
    #[serde(default)]
    pub comment: Option<String>,
    /// The id of the image below, in images of the classic builder.
    #[serde(default)]
    pub parent: Option<String>,
    /// The version of the operating system (Windows).
    #[serde(default, rename = "os.version")]
    pub os_version: Option<String>,
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
    /// The command line is already escaped (Windows).
    pub args_escaped: bool,
}

/// Docker's `HEALTHCHECK`. Durations are in nanoseconds; 0 is "inherit the default".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` and its arguments, or `CMD-SHELL` and a command line; empty inherits.
    #[serde(deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time after which a check is taken as hung.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time in which failures do not count, from the start.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks during the start period.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
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

    fn process(&self) -> Option<&Config> {
        self.oci.config().as_ref()
    }

    /// The program and its first arguments; `None` if the image has none, which differs from an empty list to nobody but `inspect`.
    #[must_use]
    pub fn entrypoint(&self) -> Option<&[String]> {
        self.process()?.entrypoint().as_deref()
    }

    /// The arguments after the entrypoint, or without one the program and its arguments.
    #[must_use]
    pub fn cmd(&self) -> Option<&[String]> {
        self.process()?.cmd().as_deref()
    }

    /// The environment, as `NAME=VALUE`.
    #[must_use]
    pub fn env(&self) -> &[String] {
        self.process().and_then(|config| config.env().as_deref()).unwrap_or_default()
    }

    /// The working directory; empty is `/`.
    #[must_use]
    pub fn working_dir(&self) -> &str {
        self.process().and_then(|config| config.working_dir().as_deref()).unwrap_or_default()
    }

    /// `USER`, `UID`, `USER:GROUP` and so on; empty is root.
    #[must_use]
    pub fn user(&self) -> &str {
        self.process().and_then(|config| config.user().as_deref()).unwrap_or_default()
    }

    /// The labels, sorted.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let labels = self.process().and_then(|config| config.labels().as_ref()).into_iter().flatten();
        labels.map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    /// The ports that it listens on, as `80/tcp`, sorted.
    #[must_use]
    pub fn exposed_ports(&self) -> Vec<&str> {
        sorted(self.process().and_then(|config| config.exposed_ports().as_deref()))
    }

    /// The paths that are volumes, sorted.
    #[must_use]
    pub fn volumes(&self) -> Vec<&str> {
        sorted(self.process().and_then(|config| config.volumes().as_deref()))
    }

    /// The signal that asks it to end, as `SIGTERM` or a number; `None` is the default.
    #[must_use]
    pub fn stop_signal(&self) -> Option<&str> {
        self.process()?.stop_signal().as_deref().filter(|signal| !signal.is_empty())
    }

    /// How long it has to end after the signal.
    #[must_use]
    pub fn stop_timeout(&self) -> Option<Duration> {
        self.docker.stop_timeout.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs)
    }

    /// How to check that it is well; `None` if it does not say, and if it says `NONE`.
    #[must_use]
    pub fn healthcheck(&self) -> Option<&Healthcheck> {
        let check = self.docker.healthcheck.as_ref()?;
        (check.test.first().is_some_and(|first| first != "NONE")).then_some(check)
    }

    /// The shell for the shell form of commands.
    #[must_use]
    pub fn shell(&self) -> Vec<&str> {
        if self.docker.shell.is_empty() {
            return vec!["/bin/sh", "-c"];
        }
        self.docker.shell.iter().map(String::as_str).collect()
    }

    /// When it was made (RFC 3339).
    #[must_use]
    pub fn created(&self) -> Option<&str> {
        self.oci.created().as_deref()
    }

    /// Who made it.
    #[must_use]
    pub fn author(&self) -> Option<&str> {
        self.oci.author().as_deref()
    }

    /// How each layer came to be, and what was set without one; oldest first.
    #[must_use]
    pub fn history(&self) -> &[History] {
        self.oci.history().as_deref().unwrap_or_default()
    }

    /// The comment of the last step, or what older Dockers wrote beside.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        let last = self.history().last().and_then(|step| step.comment().as_deref());
        last.or(self.made.comment.as_deref()).filter(|comment| !comment.is_empty())
    }

    /// Parses a config's bytes.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Beside {
            #[serde(default)]
            config: Option<DockerConfig>,
            #[serde(flatten)]
            made: Made,
        }
        let oci = serde_json::from_slice(raw)?;
        let beside: Beside = serde_json::from_slice(raw)?;
        Ok(Self { oci, docker: beside.config.unwrap_or_default(), made: beside.made })
    }
}

fn sorted(list: Option<&[String]>) -> Vec<&str> {
    let mut list: Vec<&str> = list.unwrap_or_default().iter().map(String::as_str).collect();
    list.sort_unstable();
    list
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
        let config = ImageConfig::parse(raw).expect("parses");
        assert_eq!(config.exposed_ports(), ["80/tcp"]);
        assert_eq!((config.user(), config.working_dir(), config.stop_signal()), ("1:2", "/w", Some("SIGINT")));
        assert_eq!((config.entrypoint(), config.cmd()), (None, Some(&["sh".to_owned()][..])));
        assert_eq!((config.env(), config.shell()), (&["A=b".to_owned()][..], vec!["/bin/ash", "-c"]));
        assert_eq!(
            (config.stop_timeout(), config.created()),
            (Some(Duration::from_secs(7)), Some("2024-01-01T00:00:00Z"))
        );
        assert!(config.labels().is_empty() && config.volumes().is_empty() && config.history().is_empty());
        assert_eq!(config.made.docker_version.as_deref(), Some("20.10.24"));
        assert!(config.healthcheck().is_some() && config.docker.args_escaped);
    }

    #[test]
    fn does_without_a_config_object() {
        for raw in [
            &br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#[..],
            br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":null}"#,
        ] {
            let config = ImageConfig::parse(raw).expect("parses");
            assert_eq!(config.docker, DockerConfig::default());
            assert_eq!((config.entrypoint(), config.env().len(), config.user()), (None, 0, ""));
            assert_eq!(config.shell(), ["/bin/sh", "-c"]);
        }
    }
}
