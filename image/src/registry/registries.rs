//! `registries.conf` (containers-registries.conf(5), version 2): prefixes, locations, mirrors, short names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::problem::RegistryProblem as Problem;
use crate::{Reference, Result};

const MAX_FILE: u64 = 1 << 20;

/// What `registries.conf` and the files in `registries.conf.d` beside it say, and which folders have what else there is to say of hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    /// Where an unqualified name is looked for, in this order; none means Docker Hub, as with Docker.
    pub unqualified: Vec<String>,
    /// Short names and what they stand for.
    pub aliases: BTreeMap<String, String>,
    /// What is particular to registries and parts of them.
    pub rules: Vec<Rule>,
    /// Registries (`host[:port]`) of which certificates are not looked at, and that may speak plain HTTP, beside those in `rules`.
    pub insecure: Vec<String>,
    /// Folders with a folder a host, with the host's certificates: `/etc/docker/certs.d`.
    pub certificates: Vec<PathBuf>,
    /// Folders with a folder a host, with a `hosts.toml`: `/etc/containerd/certs.d`.
    pub hosts: Vec<PathBuf>,
}

/// One `[[registry]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// What it is for: `host[:port][/namespace…[:tag|@digest]]` or `*.domain`.
    pub prefix: String,
    /// What is put in the prefix's place; empty for the prefix itself.
    pub location: String,
    /// Certificates are not looked at, and plain HTTP will do.
    pub insecure: bool,
    /// Nothing is pulled from there.
    pub blocked: bool,
    /// Where it is looked for first.
    pub mirrors: Vec<Mirror>,
    /// The file that says so.
    pub file: String,
}

/// One `[[registry.mirror]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mirror {
    /// What is put in the prefix's place.
    pub location: String,
    /// Certificates are not looked at, and plain HTTP will do.
    pub insecure: bool,
    /// What is asked of it.
    pub pulls: Pulls,
}

/// What a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pulls {
    /// Everything.
    #[default]
    All,
    /// Only what has a digest, which no mirror can change.
    DigestOnly,
    /// Only what has no digest.
    TagOnly,
}

/// A place where a reference's content may lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) insecure: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    #[serde(default)]
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    registry: Vec<DocumentRule>,
    #[serde(default)]
    registries: Option<toml::Table>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DocumentRule {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<DocumentMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct DocumentMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pulls>,
}

impl Registries {
    /// What this machine's files say: `$CONTAINERS_REGISTRIES_CONF`, or `~/.config/containers/registries.conf`, or
    /// `/etc/containers/registries.conf`, and the folder beside; certificates below `/etc/docker/certs.d` and `/etc/containers/certs.d`;
    /// `hosts.toml` below `/etc/containerd/certs.d` and `/etc/docker/certs.d`.
    ///
    /// # Errors
    ///
    /// [`Problem::Configuration`] for a file that is not valid.
    pub fn of_system() -> std::result::Result<Self, Problem> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let config = variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        let own = config.map(|folder| folder.join("containers/registries.conf"));
        let system = PathBuf::from("/etc/containers/registries.conf");
        let file = variable("CONTAINERS_REGISTRIES_CONF").or_else(|| own.filter(|path| path.is_file()));
        let mut registries = Self::default();
        let main = file.unwrap_or(system);
        if main.is_file() {
            registries.add(&main)?;
        }
        let folder = main.with_extension("conf.d");
        let mut more: Vec<PathBuf> = std::fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        more.sort();
        for path in more {
            registries.add(&path)?;
        }
        let folders = |names: [&str; 2]| names.map(PathBuf::from).to_vec();
        registries.certificates = folders(["/etc/docker/certs.d", "/etc/containers/certs.d"]);
        registries.hosts = folders(["/etc/containerd/certs.d", "/etc/docker/certs.d"]);
        Ok(registries)
    }

    /// Adds what one file says. A later file's rule for a prefix takes the place of an earlier one's.
    ///
    /// # Errors
    ///
    /// [`Problem::Configuration`] if it is not valid, or of version 1.
    pub fn add(&mut self, path: &Path) -> std::result::Result<(), Problem> {
        let text = read(path)?;
        self.add_text(&text, &path.display().to_string())
    }

    fn add_text(&mut self, text: &str, file: &str) -> std::result::Result<(), Problem> {
        let fail = |reason: String| Problem::Configuration { path: file.to_owned(), reason };
        let document: Document = toml::from_str(text).map_err(|error| fail(one_line(&error.to_string())))?;
        if document.registries.is_some() {
            return Err(fail("it has version 1's [registries]; write [[registry]] entries of version 2".to_owned()));
        }
        if let Some(unqualified) = document.unqualified_search_registries {
            self.unqualified = unqualified;
        }
        self.aliases.extend(document.aliases);
        for rule in document.registry {
            let location = rule.location.unwrap_or_default();
            let prefix = rule.prefix.filter(|prefix| !prefix.is_empty()).unwrap_or_else(|| location.clone());
            let prefix = prefix.trim_end_matches('/').to_owned();
            if prefix.is_empty() {
                return Err(fail("a [[registry]] has neither prefix nor location".to_owned()));
            }
            if prefix.contains("://") || location.contains("://") {
                return Err(fail(format!("{prefix:?} has a scheme in it: a prefix or location has none")));
            }
            let mirrors = rule.mirror.into_iter().map(|mirror| Mirror {
                location: mirror.location.trim_end_matches('/').to_owned(),
                insecure: mirror.insecure,
                pulls: mirror.pull_from_mirror.unwrap_or(if rule.mirror_by_digest_only {
                    Pulls::DigestOnly
                } else {
                    Pulls::All
                }),
            });
            let rule = Rule {
                location: location.trim_end_matches('/').to_owned(),
                insecure: rule.insecure,
                blocked: rule.blocked,
                mirrors: mirrors.collect(),
                file: file.to_owned(),
                prefix,
            };
            self.rules.retain(|other| other.prefix != rule.prefix);
            self.rules.push(rule);
        }
        Ok(())
    }

    /// What an unqualified name (`alpine`) may stand for, best first; a qualified one stands for itself.
    ///
    /// An alias wins; then come the registries to search; without either it is Docker Hub's.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidReference`](crate::Error::InvalidReference).
    pub fn candidates(&self, text: &str) -> Result<Vec<Reference>> {
        let plain: Reference = text.parse()?;
        let first = text.split('/').next().unwrap_or_default();
        let qualified = text.contains('/') && (first == "localhost" || first.contains(['.', ':']));
        if qualified {
            return Ok(vec![plain]);
        }
        let end = text.find(['@', ':']).unwrap_or(text.len());
        let (name, suffix) = text.split_at(end);
        if let Some(full) = self.aliases.get(name).filter(|full| !full.is_empty()) {
            return Ok(vec![format!("{full}{suffix}").parse()?]);
        }
        if self.unqualified.is_empty() {
            return Ok(vec![plain]);
        }
        self.unqualified.iter().map(|registry| format!("{registry}/{text}").parse()).collect()
    }

    /// Where the reference's content may lie, best first; the last one is its own place.
    pub(super) fn places(&self, reference: &Reference) -> std::result::Result<Vec<Place>, Problem> {
        let own = Place {
            registry: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
            insecure: self.is_insecure(reference.registry()),
        };
        let Some((rule, rest)) = self.rule(reference) else { return Ok(vec![own]) };
        if rule.blocked {
            return Err(Problem::Blocked { prefix: rule.prefix.clone(), file: rule.file.clone() });
        }
        let has_digest = reference.digest().is_some();
        let mut places = Vec::new();
        for mirror in &rule.mirrors {
            let fits = match mirror.pulls {
                Pulls::All => true,
                Pulls::DigestOnly => has_digest,
                Pulls::TagOnly => !has_digest,
            };
            if fits {
                places.push(self.place(&mirror.location, &rest, mirror.insecure, rule)?);
            }
        }
        places.push(if rule.location.is_empty() {
            Place { insecure: own.insecure || rule.insecure, ..own }
        } else {
            self.place(&rule.location, &rest, rule.insecure, rule)?
        });
        Ok(places)
    }

    fn place(&self, location: &str, rest: &str, insecure: bool, rule: &Rule) -> std::result::Result<Place, Problem> {
        let text = format!("{location}{rest}");
        let parsed = text.split_once('/').and_then(|_| text.parse::<Reference>().ok());
        let Some(reference) = parsed else {
            let reason = format!("the location {location:?} makes the name {text:?}, which is not valid");
            return Err(Problem::Configuration { path: rule.file.clone(), reason });
        };
        let insecure = insecure || self.is_insecure(reference.registry());
        Ok(Place { registry: reference.registry().to_owned(), repository: reference.repository().to_owned(), insecure })
    }

    fn is_insecure(&self, registry: &str) -> bool {
        self.insecure.iter().any(|name| name == registry)
    }

    /// The rule with the longest prefix, and what of the name is behind that, with its slash.
    fn rule(&self, reference: &Reference) -> Option<(&Rule, String)> {
        let full = reference.to_string();
        let matched = |rule: &Rule| -> Option<usize> {
            if let Some(domain) = rule.prefix.strip_prefix("*.") {
                let host = reference.registry().split(':').next().unwrap_or_default();
                let below = host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
                return below.then_some(reference.registry().len());
            }
            let rest = full.strip_prefix(rule.prefix.as_str())?;
            // A colon behind the host begins a port, and then it is another registry.
            let ends_well =
                rest.is_empty() || rest.starts_with(['/', '@']) || (rest.starts_with(':') && rule.prefix.contains('/'));
            ends_well.then_some(rule.prefix.len())
        };
        let (rule, length) = self
            .rules
            .iter()
            .filter_map(|rule| Some((rule, matched(rule)?)))
            .max_by_key(|(rule, length)| (*length, !rule.prefix.starts_with("*.")))?;
        let name = &full[..reference.registry().len() + 1 + reference.repository().len()];
        Some((rule, name.get(length..).unwrap_or_default().to_owned()))
    }
}

pub(super) fn read(path: &Path) -> std::result::Result<String, Problem> {
    use std::io::Read;
    let fail = |reason: String| Problem::Configuration { path: path.display().to_string(), reason };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text))
        .map_err(|error| fail(error.to_string()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
unqualified-search-registries = ["docker.io", "quay.io"]
short-name-mode = "enforcing"

[aliases]
"fedora" = "registry.fedoraproject.org/fedora"

[[registry]]
prefix = "example.com/foo"
location = "internal.example:5000/bar"
insecure = true
[[registry.mirror]]
location = "mirror.example/foo"
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"

[[registry]]
location = "example.com"

[[registry]]
prefix = "example.com/foo/secret"
blocked = true

[[registry]]
prefix = "*.wild.example"
location = "tame.example/wild"

[[registry]]
location = "docker.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "hub.example/hub"
"#;

    fn places(registries: &Registries, name: &str) -> String {
        match registries.places(&name.parse().expect("a reference")) {
            Ok(places) => places
                .iter()
                .map(|place| {
                    format!("{}/{}{}", place.registry, place.repository, if place.insecure { "!" } else { "" })
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn prefixes_are_rewritten_as_the_manual_says() {
        let mut registries = Registries { insecure: vec!["lab:5000".to_owned()], ..Registries::default() };
        registries.add_text(TEXT, "it").expect("is valid");
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (name, wanted) in [
            ("example.com/foo/a:1", "mirror.example/foo/a internal.example:5000/bar/a!"),
            ("example.com/foo:1", "mirror.example/foo internal.example:5000/bar!"),
            ("example.com/foobar:1", "example.com/foobar"),
            ("example.com:5000/foo:1", "example.com:5000/foo"),
            ("example.com/foo/secret/x", "example.com/foo/secret is blocked by it"),
            ("a.wild.example/x/y", "tame.example/wild/x/y"),
            ("wild.example/x", "wild.example/x"),
            ("alpine", "docker.io/library/alpine"),
            (&format!("alpine{digest}"), "hub.example/hub/library/alpine docker.io/library/alpine"),
            (
                &format!("example.com/foo/a{digest}"),
                "mirror.example/foo/a digests.example/a internal.example:5000/bar/a!",
            ),
            ("lab:5000/x", "lab:5000/x!"),
        ] {
            assert_eq!(places(&registries, name), wanted, "{name}");
        }
    }

    #[test]
    fn short_names() {
        let names = |registries: &Registries, text: &str| -> Vec<String> {
            registries.candidates(text).expect("is valid").iter().map(ToString::to_string).collect()
        };
        let mut registries = Registries::default();
        assert_eq!(names(&registries, "a"), ["docker.io/library/a:latest"]);
        registries.add_text(TEXT, "it").expect("is valid");
        assert_eq!(names(&registries, "fedora:41"), ["registry.fedoraproject.org/fedora:41"]);
        assert_eq!(names(&registries, "a/b"), ["docker.io/a/b:latest", "quay.io/a/b:latest"]);
        assert_eq!(names(&registries, "localhost/b"), ["localhost/b:latest"]);
        assert_eq!(names(&registries, "x.y/b:1"), ["x.y/b:1"]);
    }

    #[test]
    fn what_is_not_valid_is_said() {
        for (text, part) in [
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\ninsecure = true", "neither prefix nor location"),
            ("[[registry]]\nlocation = \"https://x\"", "scheme"),
            ("][", "TOML"),
        ] {
            let error = Registries::default().add_text(text, "it").expect_err(text).to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        let later = "[[registry]]\nlocation = \"docker.io\"\nblocked = true";
        let mut registries = Registries::default();
        registries.add_text(TEXT, "it").expect("is valid");
        registries.add_text(later, "later").expect("is valid");
        assert_eq!(places(&registries, "alpine"), "docker.io is blocked by later");
    }
}
