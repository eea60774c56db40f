//! The addresses that registries are asked at and send to.

use std::fmt;

/// Scheme, host and port: what credentials are bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) https: bool,
    /// In lower case, an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Origin {
    /// Host and port, the latter where it is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        let default = if self.https { 443 } else { 80 };
        if self.port == default { self.bracketed() } else { self.address() }
    }

    /// Host and port.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// Whether it names this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

/// An absolute `http` or `https` URL.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) origin: Origin,
    /// The path, with its `/`, and the query.
    pub(super) path: String,
}

impl fmt::Display for Url {
    /// Without the query: signed URLs have secrets in theirs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.origin.https { "https" } else { "http" };
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.origin.authority())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Url {
    pub(super) fn new(origin: &Origin, path: impl Into<String>) -> Self {
        Self { origin: origin.clone(), path: path.into() }
    }

    /// Parses an absolute URL. One with a user in it is refused: nobody else may choose our credentials.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > 16 << 10 {
            return Err("it is too long");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it has spaces or characters that no URL has");
        }
        let scheme_end = text.find("://").ok_or("it is not an absolute URL")?;
        let https = match text[..scheme_end].to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("only http and https are followed"),
        };
        let rest = &text[scheme_end + 3..];
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let origin = Self::origin(https, authority)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { origin, path })
    }

    /// Parses `host[:port]`.
    pub(super) fn origin(https: bool, authority: &str) -> Result<Origin, &'static str> {
        if authority.contains('@') {
            return Err("it has a user name in it");
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("its host is not valid")?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| "its host is not valid")?;
                (host, port)
            }
            None => authority.find(':').map_or((authority, ""), |colon| authority.split_at(colon)),
        };
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        if host.is_empty() || host.len() > 255 || !host.bytes().all(valid) {
            return Err("its host is not valid");
        }
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port: &u16| *port != 0).ok_or("its port is not valid")?)
            }
            _ => return Err("its port is not valid"),
        };
        let port = port.unwrap_or(if https { 443 } else { 80 });
        Ok(Origin { https, host: host.to_ascii_lowercase(), port })
    }

    /// What a `Location` means that was sent from here.
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let here = |path: String| {
            let graphic = path.bytes().all(|b| b.is_ascii_graphic());
            let path = path.split('#').next().unwrap_or_default().to_owned();
            if graphic { Ok(Self::new(&self.origin, path)) } else { Err("it has characters that no URL has") }
        };
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{}://{rest}", if self.origin.https { "https" } else { "http" }));
        }
        if location.starts_with('/') {
            return here(location.to_owned());
        }
        let path = self.path.split('?').next().unwrap_or_default();
        if location.starts_with('?') {
            return here(format!("{path}{location}"));
        }
        // A colon before any slash ends a scheme.
        if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
            return Self::parse(location);
        }
        let folder = &path[..=path.rfind('/').unwrap_or(0)];
        here(format!("{folder}{location}"))
    }

    /// The same with one more thing in its query.
    pub(super) fn with_query(&self, name: &str, value: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        Self::new(&self.origin, format!("{}{separator}{name}={}", self.path, percent(value)))
    }
}

/// Percent-encodes a value of a query or a form.
pub(super) fn percent(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                out.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_is_a_url_and_nothing_else() {
        let cases = [
            ("https://a.b/c?d=e", Some(("a.b", 443, "/c?d=e"))),
            ("HTTP://A.b:81", Some(("a.b", 81, "/"))),
            ("https://[::1]:5000/x#y", Some(("::1", 5000, "/x"))),
            ("https://a?x", Some(("a", 443, "/?x"))),
            ("https://u:p@a/", None),
            ("https://a@b/", None),
            ("ftp://a/", None),
            ("file:///etc/passwd", None),
            ("https://", None),
            ("https://a:0/", None),
            ("https://a:99999/", None),
            ("https://a b/", None),
            ("https://a\r\nX: y/", None),
            ("https://[::1/", None),
            ("a/b", None),
        ];
        for (text, wanted) in cases {
            let parsed = Url::parse(text).ok();
            let parts = parsed.as_ref().map(|url| (url.origin.host.as_str(), url.origin.port, url.path.as_str()));
            assert_eq!(parts, wanted, "{text:?}");
        }
    }

    #[test]
    fn joins_as_browsers_do() {
        let base = Url::parse("https://r.example:5000/v2/a/blobs/uploads/?q").expect("a URL");
        let cases = [
            ("/x?y", "https://r.example:5000/x"),
            ("https://other/z", "https://other/z"),
            ("//other/z", "https://other/z"),
            ("id", "https://r.example:5000/v2/a/blobs/uploads/id"),
            ("?state=1", "https://r.example:5000/v2/a/blobs/uploads/"),
            ("a:b", "error"),
            ("/a\r\nb", "error"),
            ("javascript:alert(1)", "error"),
        ];
        for (location, wanted) in cases {
            let joined = base.join(location).map_or_else(|_| "error".to_owned(), |url| url.to_string());
            assert_eq!(joined, wanted, "{location:?}");
        }
        assert_eq!(base.with_query("digest", "sha256:a b").path, "/v2/a/blobs/uploads/?q&digest=sha256:a%20b");
    }
}
