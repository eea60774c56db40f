//! One request: found connection, shown credentials, followed redirects, repeated tries.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Uri};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::auth::{Auth, Scope};
use super::connection::{Answer, Body, Connections, Reach, Target};
use super::endpoint::{Endpoint, Scheme};
use super::problem::{RegistryProblem as Problem, spoken};
use super::tls::{TlsSettings, Verify};
use super::url::{Origin, Url};

/// How often a registry may send on.
const MAX_HOPS: usize = 8;
/// The most that is read of what a registry says about an error.
const MAX_MESSAGE: u64 = 16 << 10;
const USER_AGENT: &str = concat!("estiba/", env!("CARGO_PKG_VERSION"));

/// How patient a client is.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    pub(super) attempts: u32,
    pub(super) backoff: Duration,
    pub(super) longest_wait: Duration,
    pub(super) idle: Duration,
    pub(super) document: Duration,
}

/// What is sent.
#[derive(Debug, Default)]
pub(super) enum Content {
    #[default]
    None,
    Bytes(Bytes),
    /// From a channel, once: such a request is not repeated here.
    Stream(mpsc::Receiver<io::Result<Bytes>>, u64),
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) content: Content,
    /// Statuses beyond 2xx that are answers and not errors.
    pub(super) expected: &'static [u16],
}

impl Request {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: Vec::new(), content: Content::None, expected: &[] }
    }

    /// Adds a header; one that HTTP cannot carry is left out.
    pub(super) fn header(&mut self, name: &str, value: &str) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            self.headers.push((name, value));
        }
    }
}

#[derive(Debug)]
pub(super) struct Transport {
    pub(super) connections: Arc<Connections>,
    pub(super) auth: Auth,
    pub(super) patience: Patience,
    /// Hosts that may speak either, and what they were found to speak.
    schemes: Mutex<HashMap<Origin, bool>>,
}

impl Transport {
    pub(super) fn new(connections: Connections, auth: Auth, patience: Patience) -> Self {
        Self { connections: Arc::new(connections), auth, patience, schemes: Mutex::default() }
    }

    /// The origin of an endpoint, with the scheme that it speaks.
    pub(super) async fn origin(&self, endpoint: &Endpoint) -> Result<Origin, Problem> {
        let https = Origin { https: true, ..endpoint.origin.clone() };
        let http = || {
            // Without a port each scheme has its own.
            let port = if https.port == 443 { 80 } else { https.port };
            Origin { https: false, host: https.host.clone(), port }
        };
        match endpoint.scheme {
            Scheme::Https => return Ok(https),
            Scheme::Http => return Ok(Origin { https: false, ..https }),
            Scheme::Either => {}
        }
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(&https).copied();
        let tls = if let Some(tls) = known {
            tls
        } else {
            // The cheapest question that every registry answers, whatever the answer.
            let target = Target { origin: https.clone(), tls: endpoint.tls.clone() };
            let request = Request::new(Method::GET, Url::new(&https, format!("{}/", endpoint.base)));
            let tls = match self.once(&target, Reach::Any, &request, None, None).await {
                Ok(mut answer) => {
                    // Read to its end, the connection can be used again.
                    let _ = self.read(&mut answer, MAX_MESSAGE).await;
                    true
                }
                Err(Problem::PlainHttp { .. }) => false,
                Err(Problem::Unreachable { .. } | Problem::Stalled { .. }) if https.port == 443 => false,
                Err(error) => return Err(error),
            };
            self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(https.clone(), tls);
            tls
        };
        Ok(if tls { https } else { http() })
    }

    /// Sends a request until there is an answer: 2xx, or one of those that are expected.
    pub(super) async fn call(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        mut request: Request,
    ) -> Result<Answer, Problem> {
        request.header("user-agent", USER_AGENT);
        let streamed = matches!(request.content, Content::Stream(..));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let outcome = self.try_call(endpoint, scopes, &mut request).await;
            match outcome {
                Err(error) if error.is_transient() && !streamed && attempt < self.patience.attempts => {
                    self.wait(&error, attempt).await?;
                }
                other => return other,
            }
        }
    }

    /// Waits before the next attempt, as long as the server says or ever longer.
    ///
    /// Returns the error if the server wants more patience than there is.
    pub(super) async fn wait(&self, error: &Problem, attempt: u32) -> Result<(), Problem> {
        let wait = if let Problem::RateLimited { host, retry_after: Some(wait), message } = error {
            if *wait > self.patience.longest_wait {
                let (host, message) = (host.clone(), message.clone());
                return Err(Problem::RateLimited { host, retry_after: Some(*wait), message });
            }
            *wait
        } else {
            let doubled = self.patience.backoff * 2_u32.saturating_pow(attempt.min(16) - 1);
            // Between half and all of it: many clients shall not come back at once.
            let part = RandomState::new().hash_one(attempt) % 512;
            (doubled * (512 + part as u32) / 1024).min(self.patience.longest_wait)
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }

    async fn try_call(&self, endpoint: &Endpoint, scopes: &[Scope], request: &mut Request) -> Result<Answer, Problem> {
        let home = self.origin(endpoint).await?;
        let mut url = request.url.clone();
        // The caller does not know which of two schemes is spoken.
        if url.origin.host == home.host && url.origin.port == home.port {
            url.origin = home.clone();
        }
        let mut shown = self.auth.ready(self, endpoint, &home, scopes).await?;
        let (mut hops, mut asked, mut method) = (0, false, request.method.clone());
        loop {
            let at_home = url.origin == home;
            // Credentials and certificates are for the registry's own origin (CVE-2020-15157).
            let authorization = shown.as_deref().filter(|_| at_home);
            let target = Target { origin: url.origin.clone(), tls: Self::tls(endpoint, &home, &url.origin) };
            let reach = self.reach(&home, &url.origin);
            let content = std::mem::take(&mut request.content);
            let mut to_send = Request {
                method: method.clone(),
                url: url.clone(),
                headers: request.headers.clone(),
                content: Content::None,
                expected: request.expected,
            };
            if at_home {
                for (name, value) in &endpoint.headers {
                    to_send.header(name, value);
                }
            }
            let stream = match content {
                Content::Stream(receiver, size) => Some((receiver, size)),
                Content::Bytes(bytes) => {
                    if method == request.method {
                        to_send.content = Content::Bytes(bytes.clone());
                    }
                    request.content = Content::Bytes(bytes);
                    None
                }
                Content::None => None,
            };
            let was_stream = stream.is_some();
            let mut answer = self.once(&target, reach, &to_send, authorization, stream).await?;
            let status = answer.status();
            match status {
                200..=299 => return Ok(answer),
                _ if request.expected.contains(&status) => return Ok(answer),
                301 | 302 | 303 | 307 | 308 if !was_stream && answer.header("location").is_some() => {
                    hops += 1;
                    let location = answer.header("location").unwrap_or_default();
                    url = Self::follow(endpoint, &home, &url, location, hops)?;
                    if status == 303 && method != Method::HEAD {
                        method = Method::GET;
                    }
                    if method != Method::GET && method != Method::HEAD && url.origin != home {
                        let location = url.to_string();
                        let reason = "uploads stay with the registry";
                        return Err(Problem::Redirect { host: home.authority(), location, reason });
                    }
                    // Read to its end, the connection can be used again.
                    let _ = self.read(&mut answer, MAX_MESSAGE).await;
                }
                401 if at_home && !asked && !was_stream => {
                    asked = true;
                    let values = answer.head.headers.get_all("www-authenticate").iter();
                    let headers: Vec<String> =
                        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
                    let body = self.read(&mut answer, MAX_MESSAGE).await.unwrap_or_default();
                    shown = self.auth.answer(self, endpoint, &home, &headers, scopes, shown.as_deref()).await?;
                    if shown.is_none() {
                        let message = message(&body);
                        return Err(Problem::Denied { host: endpoint.registry.clone(), message });
                    }
                }
                _ => return Err(self.refused(endpoint, answer).await),
            }
        }
    }

    /// Asks a token server, which gets nothing of what is for the registry.
    pub(super) async fn ask_realm(
        &self,
        endpoint: &Endpoint,
        home: &Origin,
        mut request: Request,
    ) -> Result<Answer, Problem> {
        request.header("user-agent", USER_AGENT);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let target =
                Target { origin: request.url.origin.clone(), tls: Self::tls(endpoint, home, &request.url.origin) };
            let reach = self.reach(home, &request.url.origin);
            // No redirect is followed: it would take the password elsewhere.
            match self.once(&target, reach, &request, None, None).await {
                Ok(answer)
                    if matches!(answer.status(), 429 | 500 | 502 | 503 | 504) && attempt < self.patience.attempts =>
                {
                    let error = self.refused(endpoint, answer).await;
                    self.wait(&error, attempt).await?;
                }
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_transient() && attempt < self.patience.attempts => {
                    self.wait(&error, attempt).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn once(
        &self,
        target: &Target,
        reach: Reach,
        request: &Request,
        authorization: Option<&str>,
        stream: Option<(mpsc::Receiver<io::Result<Bytes>>, u64)>,
    ) -> Result<Answer, Problem> {
        let host = target.origin.authority();
        let invalid = |_| Problem::answer(&host, "it sent a URL that is not valid");
        // Through a proxy a plain request names the whole URL; otherwise the path will do.
        let proxy = if target.origin.https { None } else { self.connections.proxies.find(&target.origin) };
        let text = match proxy {
            Some(_) => format!("http://{}{}", target.origin.authority(), request.url.path),
            None => request.url.path.clone(),
        };
        let uri: Uri = text.parse().map_err(invalid)?;
        let build = |body: Body| {
            let mut built = hyper::Request::new(body);
            *built.method_mut() = request.method.clone();
            *built.uri_mut() = uri.clone();
            let headers = built.headers_mut();
            let mut set = |name: &'static str, value: &str| {
                if let Ok(mut value) = HeaderValue::try_from(value) {
                    value.set_sensitive(name != "host");
                    headers.insert(name, value);
                }
            };
            set("host", &host);
            if let Some(authorization) = authorization {
                set("authorization", authorization);
            }
            if let Some(authorization) = proxy.and_then(|proxy| proxy.authorization.as_deref()) {
                set("proxy-authorization", authorization);
            }
            for (name, value) in &request.headers {
                headers.append(name.clone(), value.clone());
            }
            if matches!(request.method, Method::POST | Method::PUT | Method::PATCH)
                && matches!(built.body(), Body::Whole(None))
            {
                built.headers_mut().insert("content-length", HeaderValue::from_static("0"));
            }
            built
        };
        let whole = || {
            build(Body::Whole(match &request.content {
                Content::Bytes(bytes) => Some(bytes.clone()),
                _ => None,
            }))
        };
        let streamed =
            stream.map(|(receiver, left)| build(Body::Stream { receiver, left, sent: Arc::new(AtomicU64::new(0)) }));
        self.connections.exchange(target, reach, whole, streamed).await
    }

    fn tls(endpoint: &Endpoint, home: &Origin, origin: &Origin) -> TlsSettings {
        if origin.host == home.host && origin.port == home.port {
            return endpoint.tls.clone();
        }
        // Another host is trusted by the same authorities, and is never shown who we are.
        TlsSettings { verify: endpoint.tls.verify, authorities: endpoint.tls.authorities.clone(), clients: Vec::new() }
    }

    fn reach(&self, home: &Origin, origin: &Origin) -> Reach {
        if origin.host == home.host || home.is_loopback() || self.connections.is_private(home) {
            Reach::Any
        } else {
            Reach::Public
        }
    }

    fn follow(endpoint: &Endpoint, home: &Origin, from: &Url, location: &str, hops: usize) -> Result<Url, Problem> {
        let refuse = |reason| {
            let location = spoken(location.split('?').next().unwrap_or_default());
            Problem::Redirect { host: home.authority(), location, reason }
        };
        if hops > MAX_HOPS {
            return Err(refuse("it has sent on too often"));
        }
        let url = from.join(location).map_err(refuse)?;
        let may_be_plain = !home.https || (endpoint.tls.verify == Verify::No && endpoint.is_insecure());
        if !url.origin.https && !may_be_plain {
            return Err(refuse("that is without TLS"));
        }
        Ok(url)
    }

    /// The error that an answer is.
    async fn refused(&self, endpoint: &Endpoint, mut answer: Answer) -> Problem {
        let status = answer.status();
        let retry_after = answer.header("retry-after").and_then(retry_after);
        let body = self.read(&mut answer, MAX_MESSAGE).await.unwrap_or_default();
        let (host, message) = (endpoint.registry.clone(), message(&body));
        match status {
            401 | 403 => Problem::Denied { host, message },
            404 => Problem::NotFound { message },
            429 => Problem::RateLimited { host, retry_after, message },
            503 if retry_after.is_some() => Problem::RateLimited { host, retry_after, message },
            _ => Problem::Status { host, status, message },
        }
    }

    /// Reads a small body to its end.
    pub(super) async fn read(&self, answer: &mut Answer, limit: u64) -> Result<Vec<u8>, Problem> {
        let host = "the registry";
        let too_large = || Problem::answer(host, format!("it is larger than {limit} bytes"));
        let announced: Option<u64> = answer.header("content-length").and_then(|text| text.parse().ok());
        if announced.is_some_and(|size| size > limit) {
            return Err(too_large());
        }
        // Byte after byte for ever would be no silence: so all of it has a time, too.
        let deadline = Instant::now() + self.patience.document;
        let mut bytes = Vec::new();
        loop {
            let next = timeout_at(deadline, self.frame(answer)).await;
            let next = next.unwrap_or_else(|_| {
                Err(Problem::Stalled { address: host.to_owned(), waited: self.patience.document })
            })?;
            let Some(frame) = next else { return Ok(bytes) };
            if bytes.len() as u64 + frame.len() as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&frame);
        }
    }

    /// The next part of a body.
    pub(super) async fn frame(&self, answer: &mut Answer) -> Result<Option<Bytes>, Problem> {
        let waited = self.patience.idle;
        timeout(waited, answer.frame())
            .await
            .unwrap_or_else(|_| Err(Problem::Stalled { address: "the registry".to_owned(), waited }))
    }
}

/// What an error's body says (the distribution specification, "Error Codes"); nothing if it is a web page.
pub(super) fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Item>,
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(body) else {
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        return match text.chars().next() {
            None => "it gave no reason".to_owned(),
            Some('<') => "it sent a web page: is that a registry?".to_owned(),
            Some(_) => format!("it says: {}", spoken(text)),
        };
    };
    let parts: Vec<String> = errors
        .errors
        .iter()
        .take(4)
        .map(|item| if item.message.is_empty() { item.code.clone() } else { item.message.clone() })
        .chain(errors.details)
        .collect();
    if parts.is_empty() { "it gave no reason".to_owned() } else { format!("it says: {}", spoken(&parts.join(", "))) }
}

/// `Retry-After` in seconds; its form with a date is taken for a minute, since our clock may be wrong.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(60)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_fits_on_a_line() {
        for (body, wanted) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\nway"},{"code":"X"}]}"#, "it says: no way, X"),
            ("<html><script>", "it sent a web page: is that a registry?"),
            ("", "it gave no reason"),
            ("slow\x1b[2Jdown", "it says: slow [2Jdown"),
            (r#"{"details":"incorrect username"}"#, "it says: incorrect username"),
        ] {
            assert_eq!(message(body.as_bytes()), wanted);
        }
        assert!(message("x".repeat(10_000).as_bytes()).len() < 300);
        assert_eq!(retry_after("3"), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
    }
}
