//! Names of images in registries, by Docker's rules.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

use crate::Error;

const DEFAULT_REGISTRY: &str = "docker.io";
const LEGACY_DEFAULT_REGISTRY: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The longest repository, in bytes (`RepositoryNameTotalLengthMax` of the distribution project).
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image in a registry, normalised as Docker does: `alpine` is `docker.io/library/alpine:latest`.
///
/// A reference has a tag, a digest or both; if the text has neither, the tag is `latest`. `Display` writes the full name,
/// [`familiar`](Self::familiar) the short one.
///
/// The grammar is that of the distribution project's `reference` package. It is parsed by hand: `oci_spec`'s type, to which this
/// one converts, refuses IPv6 hosts (`[::1]:5000/a`) and compiles a regular expression first, which takes longer than starting a container.
///
/// ```
/// let reference: estiba_image::Reference = "alpine".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/alpine:latest");
/// assert_eq!(reference.familiar(), "alpine:latest");
/// # Ok::<(), estiba_image::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// The registry's host and port: `docker.io`, `[::1]:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry: `library/alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only if there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the image must have.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest.as_deref().and_then(|text| text.parse().ok())
    }

    /// The short form that Docker shows: without `docker.io/` and `library/`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut out = String::new();
        if self.registry == DEFAULT_REGISTRY {
            match self.repository.strip_prefix(OFFICIAL) {
                Some(name) if !name.contains('/') => out.push_str(name),
                _ => out.push_str(&self.repository),
            }
        } else {
            out.push_str(&self.registry);
            out.push('/');
            out.push_str(&self.repository);
        }
        self.push_suffix(&mut out);
        out
    }

    /// The familiar form of its repository with a digest instead of tag and digest: `alpine@sha256:…`.
    pub(crate) fn familiar_at(&self, digest: &Digest) -> String {
        Self { tag: None, digest: Some(digest.to_string()), ..self.clone() }.familiar()
    }

    /// The reference that `text` is, if it is written in full: nothing in it was filled in.
    pub(crate) fn from_full(text: &str) -> Option<Self> {
        text.parse().ok().filter(|reference: &Self| reference.to_string() == text)
    }

    /// The same with the tag alone; `None` if there is only a digest.
    pub(crate) fn tagged(&self) -> Option<Self> {
        self.tag.is_some().then(|| Self { digest: None, ..self.clone() })
    }

    fn push_suffix(&self, out: &mut String) {
        if let Some(tag) = &self.tag {
            out.push(':');
            out.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            out.push('@');
            out.push_str(digest);
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}/{}", self.registry, self.repository);
        self.push_suffix(&mut text);
        f.pad(&text)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::InvalidReference { reference: text.to_owned(), reason })
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl From<&Reference> for oci_spec::distribution::Reference {
    fn from(reference: &Reference) -> Self {
        let (registry, repository) = (reference.registry.clone(), reference.repository.clone());
        match (reference.tag.clone(), reference.digest.clone()) {
            (Some(tag), Some(digest)) => Self::with_tag_and_digest(registry, repository, tag, digest),
            (None, Some(digest)) => Self::with_digest(registry, repository, digest),
            (tag, None) => Self::with_tag(registry, repository, tag.unwrap_or_else(|| DEFAULT_TAG.to_owned())),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && text.bytes().all(is_lower_hex) {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    // A colon after the last slash begins the tag; one before it belongs to the host.
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].split_once(':') {
        Some((last, tag)) => (&rest[..path_start + last.len()], Some(parse_tag(tag)?)),
        None => (rest, None),
    };
    let (registry, repository) = split_registry(name);
    check_registry(registry)?;
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("{OFFICIAL}{repository}")
    } else {
        repository.to_owned()
    };
    check_repository(&repository)?;
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG),
        (tag, _) => tag,
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag: tag.map(str::to_owned),
        digest: digest.map(str::to_owned),
    })
}

/// `splitDockerDomain`: the first part is a host if it looks like one, else the whole is a repository of Docker Hub.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DEFAULT_REGISTRY, rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const INVALID: &str = "the registry is not a host name or address, with or without a port";
    let port = if let Some(rest) = registry.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(INVALID)?;
        // An IPv4 address at the end of it is one to Rust, and not to Docker.
        if address.contains('.') || address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(INVALID);
        }
        port
    } else {
        let (host, port) = registry.find(':').map_or((registry, ""), |colon| registry.split_at(colon));
        let valid = host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
        if !valid {
            return Err(INVALID);
        }
        port
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(INVALID),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.len() > MAX_REPOSITORY {
        return Err("the repository is longer than 255 characters");
    }
    for component in repository.split('/') {
        if component.is_empty() {
            return Err("a part of the repository is empty");
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the repository must be in lower case");
        }
        // Words of letters and digits, joined by `.`, `_`, `__` or any number of `-`.
        let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let joined_well = component
            .split(|c: char| c.is_ascii() && is_word(c as u8))
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'));
        let bytes = component.as_bytes();
        if !joined_well || !is_word(bytes[0]) || !is_word(bytes[bytes.len() - 1]) {
            return Err("the repository may have lower-case letters and digits, joined by '.', '_', '__' or '-'");
        }
    }
    Ok(())
}

fn parse_tag(tag: &str) -> Result<&str, &'static str> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    let valid =
        bytes.first().is_some_and(|b| is_word(*b)) && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'));
    if valid && tag.len() <= MAX_TAG {
        Ok(tag)
    } else {
        Err("the tag must be 1 to 128 letters, digits, '_', '.' or '-', and not begin with '.' or '-'")
    }
}

fn parse_digest(text: &str) -> Result<&str, &'static str> {
    const INVALID: &str = "the digest must be sha256: or sha512: and as many lower-case hexadecimal digits as that has";
    let digest: Digest = text.parse().map_err(|_| INVALID)?;
    crate::digest::path_parts(&digest).map_err(|_| INVALID)?;
    Ok(text)
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn normalises_as_docker_does() {
        let with_digest = format!("alpine@sha256:{HEX}");
        let with_both = format!("quay.io/a/b:v1@sha256:{HEX}");
        let long = "a".repeat(128);
        let cases: &[(&str, &str, &str)] = &[
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("alpine:3.19", "docker.io/library/alpine:3.19", "alpine:3.19"),
            ("org/name", "docker.io/org/name:latest", "org/name:latest"),
            ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b"),
            ("127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[2001:db8::1]/a/b:c", "[2001:db8::1]/a/b:c", "[2001:db8::1]/a/b:c"),
            ("test.com:5000", "docker.io/library/test.com:5000", "test.com:5000"),
            ("Upper/name", "Upper/name:latest", "Upper/name:latest"),
            ("a.b/c__d/e---f", "a.b/c__d/e---f:latest", "a.b/c__d/e---f:latest"),
            (&with_digest, &format!("docker.io/library/alpine@sha256:{HEX}"), &with_digest),
            (&with_both, &with_both, &with_both),
            (&format!("a:{long}"), &format!("docker.io/library/a:{long}"), &format!("a:{long}")),
        ];
        for (text, full, familiar) in cases {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), *full, "{text}");
            assert_eq!(reference.familiar(), *familiar, "{text}");
            let again: Reference = full.parse().expect("the full form parses");
            assert_eq!(again, reference, "{text}: the full form is stable");
            assert_eq!(familiar.parse::<Reference>().expect("the familiar form parses"), reference, "{text}");
        }
    }

    #[test]
    fn refuses_what_docker_refuses() {
        let cases = [
            String::new(),
            HEX.to_owned(),
            ":tag".to_owned(),
            "a:".to_owned(),
            "a:.b".to_owned(),
            "a:b:c".to_owned(),
            "a@".to_owned(),
            "a@sha256:abc".to_owned(),
            format!("a@sha256:{}", HEX.to_uppercase()),
            format!("a@md5:{}", &HEX[..32]),
            "a@sha256:../../../../etc/passwd".to_owned(),
            "aA/Bb/C".to_owned(),
            "Alpine".to_owned(),
            "-a/b".to_owned(),
            "a//b".to_owned(),
            "a/".to_owned(),
            "/a".to_owned(),
            "a..b".to_owned(),
            "a___b".to_owned(),
            "a._b".to_owned(),
            "a-".to_owned(),
            "a b".to_owned(),
            "ä".to_owned(),
            "a:ä".to_owned(),
            "host.com:port/a".to_owned(),
            "-host.com/a".to_owned(),
            "[::1:5000/a".to_owned(),
            "[::1]x/a".to_owned(),
            "[fe80::1%25eth0]:5000/a".to_owned(),
            "[]:5000/a".to_owned(),
            "../a".to_owned(),
            "a/../b".to_owned(),
            format!("a:{}", "b".repeat(129)),
            "a/".repeat(128) + "a",
        ];
        for text in cases {
            let parsed = text.parse::<Reference>();
            assert!(matches!(&parsed, Err(Error::InvalidReference { .. })), "{text}: {parsed:?}");
        }
    }

    #[test]
    fn agrees_with_oci_spec_where_that_can() {
        let alphabet = ["a", "B", "0", ".", "-", "_", "/", ":", "@", "localhost", "a.b", "latest", "sha256:", HEX];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut agreed = 0;
        for _ in 0..20_000 {
            let mut text = String::new();
            loop {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push_str(alphabet[(state >> 20) as usize % alphabet.len()]);
                if (state >> 60) < 4 {
                    break;
                }
            }
            let ours = text.parse::<Reference>().ok();
            let theirs = text.parse::<oci_spec::distribution::Reference>().ok();
            if let (Some(ours), Some(theirs)) = (&ours, &theirs) {
                // It does not know the rule that a first part in upper case is a host.
                if ours.registry().bytes().any(|b| b.is_ascii_uppercase()) {
                    continue;
                }
                assert_eq!(oci_spec::distribution::Reference::from(ours).whole(), theirs.whole(), "{text}");
                agreed += 1;
            }
            if let (Some(ours), None) = (&ours, &theirs) {
                panic!("{text} is {ours} to us and nothing to oci-spec");
            }
        }
        assert!(agreed > 500, "the generator makes references: {agreed}");
    }

    #[test]
    fn is_a_string_in_json() {
        let reference: Reference = serde_json::from_str("\"alpine\"").expect("parses");
        assert_eq!(serde_json::to_string(&reference).expect("writes"), "\"docker.io/library/alpine:latest\"");
        serde_json::from_str::<Reference>("\"a b\"").expect_err("is checked");
    }
}
