//! Where a repository is asked for: the registry's own place, its mirrors, and what `hosts.toml` says (containerd's `docs/hosts.md`).

use std::path::{Path, PathBuf};

use super::problem::RegistryProblem as Problem;
use super::registries::{Place, Registries, one_line, read};
use super::tls::{TlsSettings, Verify};
use super::url::{Origin, Url};
use crate::Reference;

/// Docker Hub's name is not its host.
const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    pub(super) pull: bool,
    /// What a tag stands for.
    pub(super) resolve: bool,
    pub(super) push: bool,
}

/// Whether plain HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// HTTPS and nothing else.
    Https,
    /// HTTP and nothing else: a file says so.
    Http,
    /// HTTPS, and HTTP if the host does not speak TLS.
    Either,
}

/// One place where a repository is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Host and port, as in a reference: by this credentials are found.
    pub(super) registry: String,
    pub(super) repository: String,
    /// The host, with https; see `scheme`.
    pub(super) origin: Origin,
    pub(super) scheme: Scheme,
    /// `/v2`, or what `override_path` has instead.
    pub(super) base: String,
    pub(super) tls: TlsSettings,
    pub(super) abilities: Abilities,
    /// More headers, from `hosts.toml`.
    pub(super) headers: Vec<(String, String)>,
    /// The registry that a mirror stands for: it may be one for several.
    pub(super) namespace: Option<String>,
}

impl Endpoint {
    /// The URL of something in the repository: `manifests/latest`.
    pub(super) fn url(&self, origin: &Origin, path: &str) -> Url {
        let url = Url::new(origin, format!("{}/{}/{path}", self.base, self.repository));
        match &self.namespace {
            Some(namespace) => url.with_query("ns", namespace),
            None => url,
        }
    }

    /// Whether it may be asked without TLS, or with a certificate that nobody looked at.
    pub(super) fn is_insecure(&self) -> bool {
        self.scheme != Scheme::Https || self.tls.verify == Verify::No
    }
}

/// All places where the reference's repository is asked for, best first.
pub(super) fn endpoints(registries: &Registries, reference: &Reference) -> Result<Vec<Endpoint>, Problem> {
    let mut found = Vec::new();
    for place in registries.places(reference)? {
        match hosts_file(&registries.hosts, &place.registry) {
            Some(path) => found.extend(with_hosts(registries, &place, &path)?),
            None => found.push(plain(registries, &place)?),
        }
    }
    Ok(found)
}

/// The place of a registry's own, for a login: there no mirror will do.
pub(super) fn of_registry(registries: &Registries, registry: &str) -> Result<Endpoint, Problem> {
    let insecure = registries.insecure.iter().any(|name| name == registry)
        || registries.rules.iter().any(|rule| rule.prefix == registry && rule.insecure);
    plain(registries, &Place { registry: registry.to_owned(), repository: String::new(), insecure })
}

fn plain(registries: &Registries, place: &Place) -> Result<Endpoint, Problem> {
    let host = if place.registry == HUB { HUB_HOST } else { &place.registry };
    let invalid = |reason: &str| Problem::Configuration { path: host.to_owned(), reason: reason.to_owned() };
    let origin = Url::origin(true, host).map_err(invalid)?;
    let mut tls =
        TlsSettings { verify: if place.insecure { Verify::No } else { Verify::Yes }, ..TlsSettings::default() };
    tls.add_folders(&registries.certificates, &place.registry)?;
    Ok(Endpoint {
        registry: place.registry.clone(),
        repository: place.repository.clone(),
        scheme: if place.insecure || origin.is_loopback() { Scheme::Either } else { Scheme::Https },
        origin,
        base: "/v2".to_owned(),
        tls,
        abilities: Abilities { pull: true, resolve: true, push: true },
        headers: Vec::new(),
        namespace: None,
    })
}

/// containerd's order: the host with its port, the same without a colon, and what is for all.
fn hosts_file(folders: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), port, Some("_default".to_owned())];
    let mut paths =
        folders.iter().flat_map(|folder| names.iter().flatten().map(move |name| folder.join(name).join("hosts.toml")));
    paths.find(|path| path.is_file())
}

fn with_hosts(registries: &Registries, place: &Place, path: &Path) -> Result<Vec<Endpoint>, Problem> {
    parse_hosts(&read(path)?, path, place, plain(registries, place)?)
}

fn parse_hosts(text: &str, path: &Path, place: &Place, own: Endpoint) -> Result<Vec<Endpoint>, Problem> {
    let fail = |reason: String| Problem::Configuration { path: path.display().to_string(), reason };
    let document: toml::Table = toml::from_str(text).map_err(|error| fail(one_line(&error.to_string())))?;
    let mut found = Vec::new();
    // The order in the file is the order in which they are asked, and the parser sorts by name.
    let mut hosts: Vec<(&String, &toml::Value)> =
        document.get("host").and_then(toml::Value::as_table).into_iter().flatten().collect();
    hosts.sort_by_key(|(name, _)| position(text, name));
    for (name, value) in hosts {
        let table = value.as_table().ok_or_else(|| fail(format!("host.{name:?} is not a table")))?;
        found.push(host(name, table, path, place, &own)?);
    }
    let server = document.get("server").and_then(toml::Value::as_str).filter(|server| !server.is_empty());
    let last = match server {
        Some(server) => host(server, &document, path, place, &own)?,
        None => own,
    };
    // As containerd has it: the registry itself comes last.
    if !found.iter().any(|endpoint: &Endpoint| endpoint.origin == last.origin && endpoint.scheme == last.scheme) {
        found.push(last);
    }
    Ok(found)
}

fn position(text: &str, name: &str) -> usize {
    text.find(&format!("host.\"{name}\"")).or_else(|| text.find(&format!("host.'{name}'"))).unwrap_or(usize::MAX)
}

fn host(name: &str, table: &toml::Table, path: &Path, place: &Place, own: &Endpoint) -> Result<Endpoint, Problem> {
    let fail = |reason: String| Problem::Configuration { path: path.display().to_string(), reason };
    let text = if name.contains("://") { name.to_owned() } else { format!("https://{name}") };
    let url = Url::parse(&text).map_err(|reason| fail(format!("the host {name:?} is not valid: {reason}")))?;
    let flag = |key: &str| table.get(key).and_then(toml::Value::as_bool).unwrap_or(false);
    let verify = if flag("skip_verify") { Verify::No } else { own.tls.verify };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut tls = TlsSettings { verify, ..own.tls.clone() };
    for text in strings(table.get("ca")).into_iter().flatten() {
        tls.authorities.push(folder.join(text));
    }
    match table.get("client") {
        Some(toml::Value::String(both)) => tls.clients.push((folder.join(both), folder.join(both))),
        Some(toml::Value::Array(entries)) => {
            for entry in entries {
                let pair = strings(Some(entry)).filter(|pair| !pair.is_empty());
                let pair = pair.ok_or_else(|| fail("`client` is not a list of files".to_owned()))?;
                let key = pair.get(1).filter(|key| !key.is_empty()).unwrap_or(&pair[0]);
                tls.clients.push((folder.join(&pair[0]), folder.join(key)));
            }
        }
        _ => {}
    }
    let capabilities = strings(table.get("capabilities"));
    let can = |wanted: &str| capabilities.as_ref().is_none_or(|all| all.iter().any(|ability| ability == wanted));
    let mut headers = Vec::new();
    for (name, value) in table.get("header").and_then(toml::Value::as_table).into_iter().flatten() {
        for value in strings(Some(value)).into_iter().flatten() {
            headers.push((name.clone(), value));
        }
    }
    let path_part = url.path.split('?').next().unwrap_or_default().trim_end_matches('/');
    let base = if flag("override_path") || path_part.ends_with("/v2") {
        path_part.to_owned()
    } else {
        format!("{path_part}/v2")
    };
    let authority = url.origin.authority();
    let is_own = authority == own.origin.authority() || authority == place.registry;
    Ok(Endpoint {
        registry: if is_own { place.registry.clone() } else { authority },
        repository: place.repository.clone(),
        scheme: if !url.origin.https {
            Scheme::Http
        } else if verify == Verify::No {
            Scheme::Either
        } else {
            Scheme::Https
        },
        origin: Origin { https: true, ..url.origin },
        base,
        tls,
        abilities: Abilities { pull: can("pull"), resolve: can("resolve"), push: can("push") },
        headers,
        namespace: (!is_own).then(|| place.registry.clone()),
    })
}

fn strings(value: Option<&toml::Value>) -> Option<Vec<String>> {
    match value? {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Array(entries) => {
            Some(entries.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(registry: &str) -> Place {
        Place { registry: registry.to_owned(), repository: "library/a".to_owned(), insecure: false }
    }

    fn urls(endpoints: &[Endpoint]) -> Vec<String> {
        let url = |endpoint: &Endpoint| {
            let https = endpoint.scheme != Scheme::Http;
            let url = endpoint.url(&Origin { https, ..endpoint.origin.clone() }, "x");
            format!("{url} {}", endpoint.namespace.as_deref().unwrap_or("-"))
        };
        endpoints.iter().map(url).collect()
    }

    #[test]
    fn hubs_host_and_plain_loopback() {
        let registries = Registries::default();
        for (name, url, scheme) in [
            ("alpine", "https://registry-1.docker.io/v2/library/alpine/x -", Scheme::Https),
            ("quay.io/a/b", "https://quay.io/v2/a/b/x -", Scheme::Https),
            ("localhost:5000/a", "https://localhost:5000/v2/a/x -", Scheme::Either),
            ("[::1]:5000/a", "https://[::1]:5000/v2/a/x -", Scheme::Either),
            ("127.0.0.1.evil.example/a", "https://127.0.0.1.evil.example/v2/a/x -", Scheme::Https),
            ("localhost.evil.example/a", "https://localhost.evil.example/v2/a/x -", Scheme::Https),
        ] {
            let found = endpoints(&registries, &name.parse().expect("a reference")).expect("is valid");
            assert_eq!(urls(&found), [url], "{name}");
            assert_eq!(found[0].scheme, scheme, "{name}");
        }
    }

    #[test]
    fn hosts_toml_says_who_is_asked_first() {
        let text = r#"
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
  ca = "z.crt"
  client = [["z.cert", "z.key"]]
  [host."https://z.example".header]
    x-custom = ["one", "two"]
[host."http://a.example:5000/cache"]
  capabilities = ["pull"]
[host."https://b.example/own/v2/path"]
  override_path = true
  skip_verify = true
"#;
        let path = Path::new("/certs/docker.io/hosts.toml");
        let own = plain(&Registries::default(), &place("docker.io")).expect("is valid");
        let found = parse_hosts(text, path, &place("docker.io"), own.clone()).expect("is valid");
        assert_eq!(
            urls(&found),
            [
                "https://z.example/v2/library/a/x docker.io",
                "http://a.example:5000/cache/v2/library/a/x docker.io",
                "https://b.example/own/v2/path/library/a/x docker.io",
                "https://registry-1.docker.io/v2/library/a/x -",
            ]
        );
        assert_eq!(found[0].abilities, Abilities { pull: true, resolve: true, push: false });
        assert_eq!(found[0].tls.authorities, [Path::new("/certs/docker.io/z.crt")]);
        assert_eq!(found[0].tls.clients.len(), 1);
        assert_eq!(found[0].headers.len(), 2);
        assert!(!found[1].abilities.resolve && found[2].tls.verify == Verify::No);
        assert_eq!(found[3].registry, "docker.io", "its credentials are docker.io's");
        assert!(parse_hosts("[[", path, &place("docker.io"), own.clone()).is_err());
        assert!(parse_hosts("server = \"ftp://x\"", path, &place("docker.io"), own).is_err());
    }
}
