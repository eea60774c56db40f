//! What can go wrong between here and a registry.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

/// What is wrong with a registry, the way to it, or its answers.
///
/// `Display` is one line and tells of this level only. Whatever a registry said is cut short and has no control characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryProblem {
    /// No connection.
    #[error("cannot connect to {address}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {address} broke")]
    Broken {
        /// Host and port.
        address: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The certificate was not accepted, or TLS failed otherwise.
    #[error(
        "no trusted TLS connection to {address}; a private certificate authority goes to /etc/docker/certs.d/{address}/ca.crt"
    )]
    Tls {
        /// Host and port.
        address: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server does not speak TLS.
    #[error(
        "{address} speaks plain HTTP where HTTPS is wanted; declare it insecure in registries.conf if that is meant"
    )]
    PlainHttp {
        /// Host and port.
        address: String,
    },
    /// A file with certificates or keys cannot be used.
    #[error("cannot use {path}: {reason}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{address} sent nothing of use for {} s", .waited.as_secs())]
    Stalled {
        /// Host and port.
        address: String,
        /// How long it was waited.
        waited: Duration,
    },
    /// The proxy did not let through.
    #[error("the proxy {proxy} refused the connection to {address}: {status}")]
    Proxy {
        /// The proxy's host and port.
        proxy: String,
        /// The host and port behind it.
        address: String,
        /// What it said.
        status: String,
    },
    /// A variable in the environment is no proxy's address.
    #[error("{variable} is not the address of an HTTP proxy: {reason}")]
    InvalidProxy {
        /// The variable.
        variable: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The registry has no such thing.
    #[error("not found; is the name right? {message}")]
    NotFound {
        /// What the registry said.
        message: String,
    },
    /// The registry wants (other) credentials.
    #[error("access denied: {host} has no such image for this user, or wants a login; {message}")]
    Denied {
        /// The registry's host.
        host: String,
        /// What the registry said.
        message: String,
    },
    /// Too many requests.
    #[error("{host} lets no more requests through for now{}; {message}", After(*.retry_after))]
    RateLimited {
        /// The registry's host.
        host: String,
        /// How long to wait, if it said so.
        retry_after: Option<Duration>,
        /// What the registry said.
        message: String,
    },
    /// Another status than the ones that are understood.
    #[error("{host} answered with status {status}; {message}")]
    Status {
        /// The registry's host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// An answer that no honest registry gives.
    #[error("the answer of {host} is refused: {reason}")]
    Answer {
        /// The registry's host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry sends to a place that is not followed.
    #[error("{host} sends on to {location:?}: {reason}")]
    Redirect {
        /// The registry's host.
        host: String,
        /// Where it sends to, without a query.
        location: String,
        /// Why it is not followed.
        reason: &'static str,
    },
    /// A token server that must not be asked, or that gives no token.
    #[error("no token for {host} from {realm:?}: {reason}")]
    Token {
        /// The registry's host.
        host: String,
        /// The token server.
        realm: String,
        /// What is wrong.
        reason: String,
    },
    /// A credential file or helper failed.
    #[error("cannot use the credentials in {place}: {reason}")]
    Credentials {
        /// The file or the helper.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// `registries.conf` says that the registry is not to be used.
    #[error("{prefix} is blocked by {file}")]
    Blocked {
        /// The prefix of the entry.
        prefix: String,
        /// The file that says so.
        file: String,
    },
    /// A configuration file is not valid.
    #[error("cannot use {path}: {reason}")]
    Configuration {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// None of several mirrors could deliver.
    #[error("none of the {tried} places that have it could be used; the last one failed")]
    Exhausted {
        /// How many.
        tried: usize,
        /// What the last one said.
        source: Box<RegistryProblem>,
    },
}

impl RegistryProblem {
    /// Whether another try may go better.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::InvalidInput
            ),
            Self::Broken { .. } | Self::Stalled { .. } | Self::RateLimited { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }

    pub(super) fn answer(host: &str, reason: impl Into<String>) -> Self {
        Self::Answer { host: host.to_owned(), reason: reason.into() }
    }
}

struct After(Option<Duration>);

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(wait) => write!(f, " (it says to wait {} s)", wait.as_secs()),
            None => Ok(()),
        }
    }
}

/// What a registry said, fit for one line of a message.
pub(super) fn spoken(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut line: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN).is_some() {
        line.push('…');
    }
    line.trim().to_owned()
}
