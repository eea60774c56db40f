//! Proxies, by the variables that Go's programs read.

use std::net::IpAddr;

use super::base64;
use super::problem::RegistryProblem as Problem;
use super::url::{Origin, Url};

/// Which proxy leads to which host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    except: Vec<Exception>,
}

impl std::fmt::Debug for Proxies {
    /// Without the proxies' passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = |proxy: &Option<Proxy>| proxy.as_ref().map(|proxy| proxy.origin.address());
        f.debug_struct("Proxies")
            .field("https", &address(&self.https))
            .field("http", &address(&self.http))
            .field("except", &self.except)
            .finish()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) origin: Origin,
    /// The value of `Proxy-Authorization`.
    pub(super) authorization: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    Network(IpAddr, u8),
    /// The host or any below it; with a dot before it only those below.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// What `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say, or their lower-case forms.
    ///
    /// # Errors
    ///
    /// [`Problem::InvalidProxy`] for what is not the address of an HTTP proxy.
    pub fn from_environment() -> Result<Self, Problem> {
        let get = |upper: &str| {
            let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            value(upper).or_else(|| value(&upper.to_ascii_lowercase()))
        };
        Self::new(get("HTTPS_PROXY").as_deref(), get("HTTP_PROXY").as_deref(), get("NO_PROXY").as_deref())
    }

    /// From values as those variables have them.
    ///
    /// # Errors
    ///
    /// [`Problem::InvalidProxy`] for what is not the address of an HTTP proxy.
    pub fn new(https: Option<&str>, http: Option<&str>, except: Option<&str>) -> Result<Self, Problem> {
        let read = |variable: &str, value: Option<&str>| {
            let invalid = |reason| Problem::InvalidProxy { variable: variable.to_owned(), reason };
            value.filter(|value| !value.is_empty()).map(|value| parse(value).map_err(invalid)).transpose()
        };
        Ok(Self {
            https: read("HTTPS_PROXY", https)?,
            http: read("HTTP_PROXY", http)?,
            except: except.unwrap_or_default().split(',').filter_map(|text| exception(text.trim())).collect(),
        })
    }

    /// The proxy for a host, if there is one. This machine itself is never asked for through one.
    pub(super) fn find(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = if origin.https { self.https.as_ref()? } else { self.http.as_ref()? };
        let excepted = origin.is_loopback() || self.except.iter().any(|exception| exception.covers(origin));
        (!excepted).then_some(proxy)
    }
}

impl Exception {
    fn covers(&self, origin: &Origin) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(network, length) => {
                origin.host.parse().is_ok_and(|address: IpAddr| prefix(address, *length) == prefix(*network, *length))
            }
            Self::Domain { name, itself, port } => {
                port.is_none_or(|port| port == origin.port)
                    && ((*itself && origin.host == *name)
                        || origin.host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')))
            }
        }
    }
}

fn prefix(address: IpAddr, length: u8) -> Option<u128> {
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    // The width tells the families apart.
    let shift = u32::from(width - length.min(width));
    Some(bits.checked_shr(shift).unwrap_or(0).wrapping_mul(2) + u128::from(width == 32)).filter(|_| length <= width)
}

fn exception(text: &str) -> Option<Exception> {
    if text.is_empty() {
        return None;
    }
    if text == "*" {
        return Some(Exception::Everything);
    }
    if let Some((address, length)) = text.split_once('/') {
        return Some(Exception::Network(address.parse().ok()?, length.parse().ok()?));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Exception::Network(address, if address.is_ipv4() { 32 } else { 128 }));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().ok()?)),
        None => (text, None),
    };
    let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
    let name = below.unwrap_or(name).trim_matches(['[', ']']).to_ascii_lowercase();
    Some(Exception::Domain { name, itself: below.is_none(), port })
}

fn parse(text: &str) -> Result<Proxy, &'static str> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !matches!(scheme, "http" | "https") {
        return Err("only http:// and https:// proxies are supported");
    }
    let end = rest.find('/').unwrap_or(rest.len());
    let (user, host) = match rest[..end].rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, &rest[..end]),
    };
    let origin = Url::parse(&format!("{scheme}://{host}/"))?.origin;
    let authorization = user.map(|user| {
        let user = if user.contains(':') { user.to_owned() } else { format!("{user}:") };
        format!("Basic {}", base64::encode(&decode(&user)))
    });
    Ok(Proxy { origin, authorization })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_chosen_as_go_does() {
        let except = "internal.example, .below.example,10.0.0.0/8,192.0.2.1,port.example:81,fd00::/8";
        let proxies = Proxies::new(Some("http://u:p%40@proxy:3128"), Some("proxy.example:8080"), Some(except))
            .expect("are valid");
        let cases = [
            ("https://a.example", Some("proxy:3128")),
            ("http://a.example", Some("proxy.example:8080")),
            ("https://internal.example", None),
            ("https://x.internal.example", None),
            ("https://notinternal.example", Some("proxy:3128")),
            ("https://below.example", Some("proxy:3128")),
            ("https://x.below.example", None),
            ("https://10.1.2.3", None),
            ("https://11.1.2.3", Some("proxy:3128")),
            ("https://192.0.2.1:5000", None),
            ("https://192.0.2.2:5000", Some("proxy:3128")),
            ("https://port.example:81", None),
            ("https://port.example", Some("proxy:3128")),
            ("https://[fd00::1]", None),
            ("https://[fe00::1]", Some("proxy:3128")),
            ("http://localhost:5000", None),
            ("http://127.0.0.1:5000", None),
            ("http://[::1]:5000", None),
        ];
        for (url, wanted) in cases {
            let origin = Url::parse(url).expect("a URL").origin;
            assert_eq!(proxies.find(&origin).map(|proxy| proxy.origin.address()).as_deref(), wanted, "{url}");
        }
        let authorization = proxies.https.as_ref().and_then(|proxy| proxy.authorization.clone());
        assert_eq!(authorization.as_deref(), Some("Basic dTpwQA=="));
        assert!(!format!("{proxies:?}").contains("dTpwQA"), "passwords are not shown");
        assert!(Proxies::new(Some("socks5://x:1"), None, None).is_err());
        let all = Proxies::new(Some("p:1"), None, Some("*")).expect("is valid");
        assert!(all.find(&Url::parse("https://a.example").expect("a URL").origin).is_none());
    }
}
