//! What is shown to a registry that asks: Basic, and bearer tokens from the place that it names (the distribution project's
//! `spec/auth/token.md` and `oauth.md`).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::Method;
use serde::Deserialize;

use super::base64;
use super::challenge::{Challenge, parse};
use super::credentials::{Credential, Credentials};
use super::endpoint::Endpoint;
use super::problem::{RegistryProblem as Problem, spoken};
use super::transport::{Content, Request, Transport};
use super::url::{Origin, Url, percent};

/// The largest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// What a token without a lifetime has (token.md), and the least that is believed.
const LIFETIME: u64 = 60;
const CLIENT: &str = "estiba";

/// Which right is asked for, in the words of a scope: `repository:library/alpine:pull`.
pub(super) type Scope = String;

/// The rights in repositories that are needed: the first is the one that is asked for, others are for mounts.
pub(super) fn scope(repository: &str, actions: &str) -> Scope {
    format!("repository:{repository}:{actions}")
}

#[derive(Clone)]
struct Token {
    header: String,
    ends: Instant,
}

/// All that was learnt of who wants to be shown what.
#[derive(Default)]
pub(super) struct Auth {
    credentials: Credentials,
    /// Instead of what the files have: for a login that is to be tried.
    given: HashMap<String, Credential>,
    trusted_realms: Vec<String>,
    found: Mutex<HashMap<(String, String), Option<Credential>>>,
    challenges: Mutex<HashMap<Origin, Vec<Challenge>>>,
    /// By registry and scopes: a token is shown where it is for and nowhere else. The lock is held while one is fetched, so that
    /// parallel layers ask once.
    tokens: tokio::sync::Mutex<HashMap<(Origin, String), Token>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Auth {
    pub(super) fn new(
        credentials: Credentials,
        given: HashMap<String, Credential>,
        trusted_realms: Vec<String>,
    ) -> Self {
        Self { credentials, given, trusted_realms, ..Self::default() }
    }

    /// What to show before being asked: what was wanted the last time.
    pub(super) async fn ready(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        origin: &Origin,
        scopes: &[Scope],
    ) -> Result<Option<String>, Problem> {
        let known = {
            let challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
            challenges.get(origin).cloned()
        };
        match known {
            Some(challenges) => self.show(transport, endpoint, origin, &challenges, scopes, None).await,
            None => Ok(None),
        }
    }

    /// What to show to a registry that refused `shown`; `None` if there is nothing (more) to show.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        origin: &Origin,
        headers: &[String],
        scopes: &[Scope],
        shown: Option<&str>,
    ) -> Result<Option<String>, Problem> {
        let challenges: Vec<Challenge> = headers.iter().take(8).flat_map(|header| parse(header)).collect();
        if challenges.is_empty() {
            return Ok(None);
        }
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner).insert(origin.clone(), challenges.clone());
        let header = self.show(transport, endpoint, origin, &challenges, scopes, shown).await?;
        Ok(header.filter(|header| Some(header.as_str()) != shown))
    }

    async fn show(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        origin: &Origin,
        challenges: &[Challenge],
        scopes: &[Scope],
        shown: Option<&str>,
    ) -> Result<Option<String>, Problem> {
        let credential = self.credential(endpoint).await?;
        if let Some(Credential::RegistryToken(token)) = &credential {
            return Ok(Some(format!("Bearer {token}")));
        }
        // Who offers tokens wants them rather than the password.
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, wanted)) = bearer {
            let mut scopes = scopes.to_vec();
            if scopes.is_empty() {
                scopes.extend(wanted.clone());
            }
            let key = (origin.clone(), scopes.join(" "));
            let mut tokens = self.tokens.lock().await;
            if let Some(token) = tokens.get(&key)
                && token.ends > Instant::now()
                && shown != Some(token.header.as_str())
            {
                return Ok(Some(token.header.clone()));
            }
            let asking = Asking { endpoint, origin, realm, service: service.as_deref(), scopes: &scopes };
            let token = self.fetch(transport, &asking, credential.as_ref()).await?;
            tokens.insert(key, token.clone());
            return Ok(Some(token.header));
        }
        match credential {
            Some(Credential::Password { username, password }) if challenges.contains(&Challenge::Basic) => {
                Ok(Some(basic(&username, &password)))
            }
            _ => Ok(None),
        }
    }

    async fn credential(&self, endpoint: &Endpoint) -> Result<Option<Credential>, Problem> {
        if let Some(given) = self.given.get(&endpoint.registry) {
            return Ok(Some(given.clone()));
        }
        let key = (endpoint.registry.clone(), endpoint.repository.clone());
        if let Some(found) = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(found.clone());
        }
        let (credentials, (registry, repository)) = (self.credentials.clone(), key.clone());
        let looked = tokio::task::spawn_blocking(move || credentials.find(&registry, &repository)).await;
        let found = looked.map_err(|error| Problem::Credentials {
            place: "the credential files".to_owned(),
            reason: error.to_string(),
        })??;
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        Ok(found)
    }

    async fn fetch(
        &self,
        transport: &Transport,
        asking: &Asking<'_>,
        credential: Option<&Credential>,
    ) -> Result<Token, Problem> {
        let realm = asking.realm(credential.is_some(), &self.trusted_realms)?;
        let service = asking.service;
        let (mut request, mut url) = (Request::new(Method::GET, realm.clone()), realm);
        if let Some(Credential::IdentityToken(token)) = credential {
            let mut form = vec![("grant_type", "refresh_token"), ("client_id", CLIENT), ("refresh_token", token)];
            form.extend(service.map(|service| ("service", service)));
            let scopes = asking.scopes.join(" ");
            form.push(("scope", &scopes));
            let pairs: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
            request.method = Method::POST;
            request.content = Content::Bytes(pairs.join("&").into_bytes().into());
            request.header("content-type", "application/x-www-form-urlencoded");
        } else {
            if let Some(service) = service {
                url = url.with_query("service", service);
            }
            for scope in asking.scopes {
                url = url.with_query("scope", scope);
            }
            if let Some(Credential::Password { username, password }) = credential {
                url = url.with_query("account", username);
                request.header("authorization", &basic(username, password));
            }
        }
        request.url = url;
        let fail = |reason: String| asking.fail(reason);
        let begun = Instant::now();
        let mut answer = transport.ask_realm(asking.endpoint, asking.origin, request).await?;
        let body = transport.read(&mut answer, MAX_TOKEN).await?;
        match answer.status() {
            200..=299 => {}
            400 | 401 | 403 => {
                let said = super::transport::message(&body);
                let message = match credential {
                    Some(_) => format!("the user name or the password is wrong, or has no such right; {said}"),
                    None => said,
                };
                return Err(Problem::Denied { host: asking.endpoint.registry.clone(), message });
            }
            status => return Err(fail(format!("it answered with status {status}"))),
        }
        let answer: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| fail("its answer is not valid JSON".to_owned()))?;
        let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).unwrap_or_default();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(fail("there is no token in its answer".to_owned()));
        }
        // A little less, so that it does not end on its way.
        let lifetime = answer.expires_in.unwrap_or(LIFETIME).clamp(LIFETIME, 24 * 3600) * 9 / 10;
        Ok(Token { header: format!("Bearer {token}"), ends: begun + Duration::from_secs(lifetime) })
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", base64::encode(format!("{username}:{password}").as_bytes()))
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

struct Asking<'a> {
    endpoint: &'a Endpoint,
    origin: &'a Origin,
    realm: &'a str,
    service: Option<&'a str>,
    scopes: &'a [Scope],
}

impl Asking<'_> {
    fn fail(&self, reason: String) -> Problem {
        Problem::Token { host: self.endpoint.registry.clone(), realm: spoken(self.realm), reason }
    }

    /// Where the token is asked for. The registry chooses it: so credentials go there only under TLS, and to nobody but the registry's
    /// own domain, unless the user trusts another.
    fn realm(&self, secret: bool, trusted: &[String]) -> Result<Url, Problem> {
        let url = Url::parse(self.realm).map_err(|reason| self.fail(reason.to_owned()))?;
        let same = url.origin.host == self.origin.host;
        let may_be_plain = same && (!self.origin.https || self.endpoint.is_insecure());
        if !url.origin.https && !may_be_plain {
            return Err(self.fail("a token server must speak HTTPS".to_owned()));
        }
        let trusted = trusted.contains(&url.origin.host);
        if secret && !trusted && !same_domain(&self.origin.host, &url.origin.host) {
            return Err(self.fail(format!(
                "it is of another domain, and would get the password for {}; name {} among the trusted token servers if that is meant",
                self.endpoint.registry, url.origin.host
            )));
        }
        Ok(url)
    }
}

/// Whether two hosts belong to the same owner, as far as names tell: one is below the other's parent.
fn same_domain(registry: &str, realm: &str) -> bool {
    if registry == realm {
        return true;
    }
    if registry.parse::<std::net::IpAddr>().is_ok() || realm.parse::<std::net::IpAddr>().is_ok() {
        return false;
    }
    let below =
        |host: &str, domain: &str| host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    let labels: Vec<&str> = registry.split('.').collect();
    let domain = match labels.as_slice() {
        [] | [_] => return false,
        // `registry.example` itself may be where everyone can have a name.
        [_, _] => registry.to_owned(),
        // As `co.uk`: below it there is anybody.
        [_, second, first] if first.len() == 2 && second.len() <= 3 => registry.to_owned(),
        [_, rest @ ..] => rest.join("."),
    };
    below(realm, &domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_in_the_registrys_domain() {
        for (registry, realm, same) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("ghcr.io", "ghcr.io", true),
            ("ghcr.io", "token.ghcr.io", true),
            ("ghcr.io", "evil.io", false),
            ("ghcr.io", "evilghcr.io", false),
            ("registry.example.com", "auth.example.com", true),
            ("registry.example.com", "example.com.evil.org", false),
            ("registry.example.com", "com", false),
            ("example.co.uk", "evil.co.uk", false),
            ("registry.example.co.uk", "auth.example.co.uk", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("localhost", "evil.example", false),
            ("localhost", "localhost", true),
        ] {
            assert_eq!(same_domain(registry, realm), same, "{registry} {realm}");
        }
    }
}
