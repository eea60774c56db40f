//! Credentials: what is shown to a registry, and the files of Docker and of containers/image that keep it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value, json};

use super::problem::RegistryProblem as Problem;
use super::{base64, helper};

/// The largest credential file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// What Docker calls Docker Hub in its files.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The user's name.
        username: String,
        /// The password, or an access token that is used like one.
        password: String,
    },
    /// A refresh token (OAuth 2), for which the token server gives access tokens.
    IdentityToken(String),
    /// A bearer token that is shown to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password {{ username: {username:?}, .. }}"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(..)"),
            Self::RegistryToken(_) => f.write_str("RegistryToken(..)"),
        }
    }
}

/// The credential files of Docker (`config.json`) and of containers/image (`auth.json`), in the order in which they are asked.
///
/// Both have the same form; `auths`, `credHelpers` and `credsStore` are read in either, and keys may be a host or a host and the beginning of a
/// repository, of which the longest counts (containers-auth.json(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The files; the first is the one that logins are written to.
    pub files: Vec<PathBuf>,
}

impl Credentials {
    /// The files of this user: `$REGISTRY_AUTH_FILE` alone if it is set; else Docker's (`$DOCKER_CONFIG/config.json` or
    /// `~/.docker/config.json`), then Podman's (`$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`).
    #[must_use]
    pub fn of_user() -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = folder("REGISTRY_AUTH_FILE") {
            return Self { files: vec![file] };
        }
        let home = folder("HOME");
        let docker = folder("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let config = folder("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
        let runtime = folder("XDG_RUNTIME_DIR").or_else(|| {
            let uid = nix::unistd::geteuid();
            (!uid.is_root()).then(|| PathBuf::from(format!("/run/user/{uid}")))
        });
        let files = [
            docker.map(|folder| folder.join("config.json")),
            runtime.map(|folder| folder.join("containers/auth.json")),
            // Where Podman keeps root's.
            nix::unistd::geteuid().is_root().then(|| PathBuf::from("/run/containers/0/auth.json")),
            config.map(|folder| folder.join("containers/auth.json")),
        ];
        Self { files: files.into_iter().flatten().collect() }
    }

    /// What there is for a registry (`docker.io`, `localhost:5000`) and a repository in it. This blocks, and may execute a helper.
    ///
    /// # Errors
    ///
    /// [`Problem::Credentials`] for a file that cannot be read or a helper that fails.
    pub fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Problem> {
        for path in &self.files {
            let Some(document) = read(path)? else { continue };
            if let Some(found) = find(&document, path, registry, repository)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps a credential for a registry, as Docker does: with the helper that the file names, or else in the file, which only its owner
    /// can read then. What else is in the file stays. Returns where it is now.
    ///
    /// # Errors
    ///
    /// [`Problem::Credentials`] if there is no file to write to, or it cannot be written.
    pub fn store(&self, registry: &str, credential: &Credential) -> Result<String, Problem> {
        let path = self.primary()?;
        let _lock = lock(path)?;
        let mut document = read(path)?.unwrap_or_default();
        if let Some(name) = helper_for(&document, registry) {
            let (username, secret) = match credential {
                Credential::Password { username, password } => (username.as_str(), password.as_str()),
                Credential::IdentityToken(token) => (TOKEN_USER, token.as_str()),
                Credential::RegistryToken(_) => {
                    return Err(fail(path, "a helper cannot keep a registry token".to_owned()));
                }
            };
            helper::store(&name, &server_key(registry), username, secret)?;
            return Ok(format!("the helper docker-credential-{name}"));
        }
        let entry = match credential {
            Credential::Password { username, password } => {
                if username.contains(':') {
                    return Err(fail(path, "a user name cannot have a colon in it".to_owned()));
                }
                json!({ "auth": base64::encode(format!("{username}:{password}").as_bytes()) })
            }
            Credential::IdentityToken(token) => {
                json!({ "auth": base64::encode(b"00000000-0000-0000-0000-000000000000:"), "identitytoken": token })
            }
            Credential::RegistryToken(token) => json!({ "registrytoken": token }),
        };
        let auths = document.entry("auths").or_insert_with(|| json!({}));
        let auths = auths.as_object_mut().ok_or_else(|| fail(path, "its `auths` is not an object".to_owned()))?;
        auths.insert(server_key(registry), entry);
        write(path, &document)?;
        Ok(path.display().to_string())
    }

    /// Forgets what is kept for a registry, in every file and its helpers; whether there was anything.
    ///
    /// # Errors
    ///
    /// [`Problem::Credentials`] if a file cannot be written.
    pub fn erase(&self, registry: &str) -> Result<bool, Problem> {
        let mut erased = false;
        for path in &self.files {
            let Some(document) = read(path)? else { continue };
            if let Some(name) = helper_for(&document, registry) {
                let key = server_key(registry);
                if helper::get(&name, &key)?.is_some() {
                    helper::erase(&name, &key)?;
                    erased = true;
                }
            }
            let _lock = lock(path)?;
            let Some(mut document) = read(path)? else { continue };
            let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else { continue };
            let before = auths.len();
            auths.retain(|key, _| !same_host(host_of(key), registry));
            if auths.len() < before {
                erased = true;
                write(path, &document)?;
            }
        }
        Ok(erased)
    }

    fn primary(&self) -> Result<&Path, Problem> {
        self.files.first().map(PathBuf::as_path).ok_or_else(|| Problem::Credentials {
            place: "the home folder".to_owned(),
            reason: "there is none: set HOME or DOCKER_CONFIG".to_owned(),
        })
    }
}

fn fail(path: &Path, reason: String) -> Problem {
    Problem::Credentials { place: path.display().to_string(), reason }
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, Problem> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(fail(path, error.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| fail(path, error.to_string()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(fail(path, format!("it is larger than {MAX_FILE} bytes")));
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| fail(path, error.to_string()))
}

/// Two logins at once shall not lose each other's entry.
fn lock(path: &Path) -> Result<Flock<File>, Problem> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = |error: std::io::Error| fail(folder, error.to_string());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(wrong)?;
    let file = File::open(folder).map_err(wrong)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| wrong(errno.into()))
}

/// Replaces the file at once. A link stays one, as with Docker.
fn write(path: &Path, document: &Map<String, Value>) -> Result<(), Problem> {
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = target.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(document)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&beside, &target)
    })();
    written.map_err(|error: std::io::Error| {
        // The first error tells more than one of this would.
        let _ = std::fs::remove_file(&beside);
        fail(path, error.to_string())
    })
}

fn find(
    document: &Map<String, Value>,
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<Credential>, Problem> {
    // A helper of its own for the registry goes before all else, the store for all goes before the entries, as with Docker.
    if let Some(name) = helper_for(document, registry) {
        if let Some(found) = helper::get(&name, &server_key(registry))? {
            return Ok(Some(found));
        }
        if is_hub(registry) {
            // Podman's form of the same.
            if let Some(found) = helper::get(&name, "docker.io")? {
                return Ok(Some(found));
            }
        }
    }
    let Some(auths) = document.get("auths").and_then(Value::as_object) else { return Ok(None) };
    // From the whole repository to the host alone.
    let mut scope = format!("{registry}/{repository}");
    while let Some(slash) = scope.rfind('/') {
        if let Some(entry) = auths.get(&scope)
            && let Some(found) = entry_credential(entry, path, &scope)?
        {
            return Ok(Some(found));
        }
        scope.truncate(slash);
    }
    let exact = auths.iter().find(|(key, _)| key.as_str() == registry || (is_hub(registry) && key.as_str() == HUB_KEY));
    let alike = || auths.iter().find(|(key, _)| !names_repository(key) && same_host(host_of(key), registry));
    match exact.or_else(alike) {
        Some((key, entry)) => entry_credential(entry, path, key),
        None => Ok(None),
    }
}

fn entry_credential(entry: &Value, path: &Path, key: &str) -> Result<Option<Credential>, Problem> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::RegistryToken(token.to_owned())));
    }
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::IdentityToken(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        let decoded = base64::decode(auth).and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((username, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
            return Err(fail(path, format!("the `auth` of {key:?} is not valid: log in again")));
        };
        let password = password.trim_end_matches('\0');
        return Ok(Some(password_of(username, password)));
    }
    match (text("username"), text("password")) {
        (Some(username), Some(password)) => Ok(Some(password_of(username, password))),
        // Docker leaves empty entries for what a helper keeps.
        _ => Ok(None),
    }
}

pub(super) fn password_of(username: &str, password: &str) -> Credential {
    if username == TOKEN_USER {
        return Credential::IdentityToken(password.to_owned());
    }
    Credential::Password { username: username.to_owned(), password: password.to_owned() }
}

fn helper_for(document: &Map<String, Value>, registry: &str) -> Option<String> {
    let helpers = document.get("credHelpers").and_then(Value::as_object);
    let own = helpers.and_then(|helpers| {
        helpers.iter().find(|(key, _)| same_host(host_of(key), registry)).and_then(|(_, name)| name.as_str())
    });
    let name = own.or_else(|| document.get("credsStore").and_then(Value::as_str))?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn is_hub(registry: &str) -> bool {
    HUB.contains(&registry)
}

/// The key that Docker writes for a registry.
fn server_key(registry: &str) -> String {
    if is_hub(registry) { HUB_KEY.to_owned() } else { registry.to_owned() }
}

fn same_host(key: &str, registry: &str) -> bool {
    key == registry || (is_hub(key) && is_hub(registry))
}

/// The host of a key, of which old Dockers made a URL.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

/// Whether a key is of the form `host/namespace`: then it is for nothing else.
fn names_repository(key: &str) -> bool {
    !key.contains("://") && key.contains('/') && !key.ends_with("/v1/") && !key.ends_with("/v2/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, document: &Value) -> Credentials {
        let path = folder.join("config.json");
        std::fs::write(&path, document.to_string()).expect("write");
        Credentials { files: vec![path] }
    }

    fn user(found: Option<Credential>) -> Option<String> {
        found.map(|credential| match credential {
            Credential::Password { username, password } => format!("{username}/{password}"),
            Credential::IdentityToken(token) => format!("identity {token}"),
            Credential::RegistryToken(token) => format!("registry {token}"),
        })
    }

    #[test]
    fn finds_what_docker_and_podman_keep() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let auth = |text: &str| json!({ "auth": base64::encode(text.as_bytes()) });
        let files = file(
            folder.path(),
            &json!({
                "auths": {
                    "https://index.docker.io/v1/": auth("hub:one"),
                    "quay.io": auth("quay:two:with:colons"),
                    "quay.io/team": auth("team:three"),
                    "quay.io/team/app": auth("app:four"),
                    "http://old.example/v1/": auth("old:five"),
                    "id.example": { "auth": base64::encode(b"x:"), "identitytoken": "six" },
                    "reg.example": { "registrytoken": "seven" },
                    "plain.example:5000": { "username": "u", "password": "eight" },
                    "empty.example": {},
                    "only.example/part": auth("part:nine"),
                    "bad.example": { "auth": "!!!" },
                },
                "HttpHeaders": { "X": "y" },
            }),
        );
        for (registry, repository, wanted) in [
            ("docker.io", "library/alpine", Some("hub/one")),
            ("quay.io", "other/thing", Some("quay/two:with:colons")),
            ("quay.io", "team/x", Some("team/three")),
            ("quay.io", "team/app", Some("app/four")),
            ("quay.io", "teamster/app", Some("quay/two:with:colons")),
            ("old.example", "a", Some("old/five")),
            ("id.example", "a", Some("identity six")),
            ("reg.example", "a", Some("registry seven")),
            ("plain.example:5000", "a", Some("u/eight")),
            ("plain.example", "a", None),
            ("empty.example", "a", None),
            ("only.example", "other", None),
            ("only.example", "part/x", Some("part/nine")),
            ("evil-quay.io", "a", None),
            ("none.example", "a", None),
        ] {
            let found = files.find(registry, repository).unwrap_or_else(|error| panic!("{registry}: {error}"));
            assert_eq!(user(found).as_deref(), wanted, "{registry}/{repository}");
        }
        let error = files.find("bad.example", "a").expect_err("is not base 64").to_string();
        assert!(error.contains("bad.example") && !error.contains("!!!"), "{error}");
    }

    #[test]
    fn a_login_is_kept_and_forgotten_and_the_rest_stays() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/docker/config.json");
        let files = Credentials { files: vec![path.clone()] };
        let secret = Credential::Password { username: "me".to_owned(), password: "p:w".to_owned() };
        assert_eq!(format!("{secret:?}"), "Password { username: \"me\", .. }");
        assert_eq!(files.find("docker.io", "a").expect("no file is no error"), None);
        assert_eq!(files.store("docker.io", &secret).expect("is kept"), path.display().to_string());
        assert_eq!(std::fs::metadata(&path).expect("is there").permissions().mode() & 0o777, 0o600);
        let mut document: Value = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
        assert_eq!(document["auths"][HUB_KEY]["auth"], json!("bWU6cDp3"), "as Docker has it");
        document["detachKeys"] = json!("ctrl-x");
        std::fs::write(&path, document.to_string()).expect("write");
        files.store("localhost:5000", &Credential::IdentityToken("t".to_owned())).expect("is kept");
        assert_eq!(files.find("docker.io", "x").expect("reads"), Some(secret));
        assert_eq!(files.find("localhost:5000", "x").expect("reads"), Some(Credential::IdentityToken("t".to_owned())));
        assert!(files.erase("docker.io").expect("is forgotten") && !files.erase("docker.io").expect("is gone"));
        let document: Value = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
        assert_eq!(document["detachKeys"], json!("ctrl-x"));
        assert!(document["auths"].get(HUB_KEY).is_none() && document["auths"].get("localhost:5000").is_some());
        assert_eq!(std::fs::read_dir(path.parent().expect("a folder")).expect("lists").count(), 1);
    }
}
