//! Registries: images come and go over HTTP (the OCI distribution specification 1.1).
//!
//! HTTP is hyper's and TLS is rustls', with nothing between: what a registry client must decide by itself (who is shown credentials after
//! a redirect, how much of an answer is read, what is tried again) is what a larger client would decide for it.

mod auth;
mod base64;
mod blob;
mod challenge;
mod connection;
mod credentials;
mod document;
mod endpoint;
mod helper;
mod problem;
mod progress;
mod proxy;
mod pull;
mod push;
mod referrers;
mod registries;
mod tls;
mod transport;
mod upload;
mod url;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;

use self::auth::Auth;
use self::connection::Connections;
use self::endpoint::Endpoint;
use self::transport::{Patience, Request, Transport};
use self::url::Url;
use crate::{Error, Reference, Result};

pub use self::credentials::{Credential, Credentials};
pub use self::problem::RegistryProblem;
pub use self::progress::{BlobState, Event, Progress, Taps};
pub use self::proxy::Proxies;
pub use self::pull::Pulled;
pub use self::push::Push;
pub use self::registries::{Mirror, Pulls, Registries, Rule};

/// How registries are reached. `Default` knows nothing of the machine; [`of_system`](Self::of_system) reads what users expect.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Mirrors, rewritten and insecure registries, certificates.
    pub registries: Registries,
    /// Files with credentials.
    pub credentials: Credentials,
    /// Credentials by registry, which go before those in files.
    pub given: HashMap<String, Credential>,
    /// Proxies.
    pub proxies: Proxies,
    /// Token servers of another domain than their registry's that may be shown a password.
    pub trusted_realms: Vec<String>,
    /// The file with the certificate authorities to trust; `None` is the distribution's.
    pub authorities: Option<PathBuf>,
    /// A folder of more such files.
    pub authorities_folder: Option<PathBuf>,
    /// How many layers of an image move at once. A large layer may use the connections that no other layer needs.
    pub parallel: usize,
    /// How often a thing is tried that may go better the next time.
    pub attempts: u32,
    /// How long it is waited after the first failure; doubled after each, less a random part.
    pub backoff: Duration,
    /// The longest wait that a registry may ask for.
    pub longest_wait: Duration,
    /// For a connection, with TLS.
    pub connect_timeout: Duration,
    /// For the next bytes of an answer. Who sends next to nothing for as long counts as silent, too.
    pub idle_timeout: Duration,
    /// For the whole of a document.
    pub document_timeout: Duration,
    /// Uploads in parts of so many bytes; `None` sends each blob at once.
    pub chunk: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: Registries::default(),
            credentials: Credentials::default(),
            given: HashMap::new(),
            proxies: Proxies::default(),
            trusted_realms: Vec::new(),
            authorities: None,
            authorities_folder: None,
            parallel: 3,
            attempts: 5,
            backoff: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(30),
            document_timeout: Duration::from_secs(120),
            chunk: None,
        }
    }
}

impl Settings {
    /// What this machine and its user have set: `registries.conf`, certificates, credential files, proxies, `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR`.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`] for a file or a variable that is not valid.
    pub fn of_system() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let wrong = |problem| Error::registry("read the settings for registries", problem);
        Ok(Self {
            registries: Registries::of_system().map_err(wrong)?,
            credentials: Credentials::of_user(),
            proxies: Proxies::from_environment().map_err(wrong)?,
            authorities: variable("SSL_CERT_FILE"),
            authorities_folder: variable("SSL_CERT_DIR"),
            ..Self::default()
        })
    }
}

/// A client of registries, of any number of them. Clones share connections, tokens and what was learnt.
///
/// Its methods are to be called in a tokio runtime with I/O and time. A future that is dropped leaves nothing behind.
///
/// ```no_run
/// # async fn pull() -> Result<(), estiba_image::Error> {
/// use estiba_image::{Layout, Platform, Progress, Registry, RegistrySettings};
///
/// let registry = Registry::new(RegistrySettings::of_system()?);
/// let store = Layout::open_or_create("/var/lib/estiba/content")?;
/// let lease = store.lease()?;
/// let pulled = registry.pull(&"alpine".parse()?, &lease, &Platform::host(), &Progress::none()).await?;
/// store.tag(&pulled.name, &pulled.root)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    transport: Transport,
}

impl Registry {
    /// A client. Nothing is read or connected before it is needed.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let connections = Connections::new(
            settings.proxies.clone(),
            settings.connect_timeout,
            settings.idle_timeout,
            (settings.authorities.clone(), settings.authorities_folder.clone()),
        );
        let auth = Auth::new(settings.credentials.clone(), settings.given.clone(), settings.trusted_realms.clone());
        let patience = Patience {
            attempts: settings.attempts.max(1),
            backoff: settings.backoff,
            longest_wait: settings.longest_wait,
            idle: settings.idle_timeout,
            document: settings.document_timeout,
        };
        let transport = Transport::new(connections, auth, patience);
        Self { inner: Arc::new(Inner { settings, transport }) }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// The places that have the reference's repository.
    fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistryProblem> {
        endpoint::endpoints(&self.inner.settings.registries, reference)
    }

    /// The one place that takes what is pushed: the last, which is the registry's own.
    fn home(&self, reference: &Reference) -> Result<Endpoint, RegistryProblem> {
        let endpoints = self.endpoints(reference)?;
        endpoints.into_iter().rfind(|endpoint| endpoint.abilities.push).ok_or_else(|| RegistryProblem::Configuration {
            path: "hosts.toml".to_owned(),
            reason: "no host in it may be pushed to".to_owned(),
        })
    }

    /// Shows a credential to a registry and, if it is accepted, keeps it where [`Credentials::store`] does. Returns where that is.
    ///
    /// # Errors
    ///
    /// [`RegistryProblem::Denied`] within [`Error::Registry`] if the registry does not accept it.
    pub async fn login(&self, registry: &str, credential: &Credential) -> Result<String> {
        let registry = normal(registry)?;
        let what = format!("log in to {registry}");
        self.verify(&registry, credential).await.map_err(|problem| Error::registry(&what, problem))?;
        let (credentials, credential) = (self.inner.settings.credentials.clone(), credential.clone());
        let stored = blocking(move || credentials.store(&registry, &credential)).await;
        stored.map_err(|problem| Error::registry(&what, problem))
    }

    async fn verify(&self, registry: &str, credential: &Credential) -> Result<(), RegistryProblem> {
        let given = HashMap::from([(registry.to_owned(), credential.clone())]);
        // A client of its own: what others were shown must not answer for this one.
        let probe = Self::new(Settings { given, ..self.inner.settings.clone() });
        let endpoint = endpoint::of_registry(&self.inner.settings.registries, registry)?;
        let origin = probe.transport().origin(&endpoint).await?;
        let url = Url::new(&origin, format!("{}/", endpoint.base));
        let mut answer = probe.transport().call(&endpoint, &[], Request::new(Method::GET, url)).await?;
        probe.transport().read(&mut answer, 64 << 10).await?;
        Ok(())
    }

    /// Forgets what is kept for a registry; whether there was anything.
    ///
    /// # Errors
    ///
    /// [`RegistryProblem::Credentials`] within [`Error::Registry`].
    pub async fn logout(&self, registry: &str) -> Result<bool> {
        let registry = normal(registry)?;
        let what = format!("log out from {registry}");
        let credentials = self.inner.settings.credentials.clone();
        let erased = blocking(move || credentials.erase(&registry)).await;
        erased.map_err(|problem| Error::registry(&what, problem))
    }
}

/// Docker takes a URL for a registry's name, too, and has several for its own.
fn normal(registry: &str) -> Result<String> {
    let rest = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let host = rest.split('/').next().unwrap_or_default();
    if matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io") {
        return Ok("docker.io".to_owned());
    }
    let invalid = |reason| Error::InvalidReference { reference: registry.to_owned(), reason };
    Url::origin(true, host).map_err(|_| invalid("it is not a registry's host, with or without a port"))?;
    Ok(host.to_owned())
}

/// Runs what blocks where that holds nobody up.
async fn blocking<T, F>(work: F) -> Result<T, RegistryProblem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, RegistryProblem> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RegistryProblem::Credentials { place: "the credential files".to_owned(), reason: error.to_string() })
    })
}
