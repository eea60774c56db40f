//! What a registry wants to be shown: the `WWW-Authenticate` header (RFC 9110, section 11.6.1).

/// The longest header that is read, in bytes.
const MAX_HEADER: usize = 8 << 10;

/// A challenge that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges in one header, in order; those of schemes that are not known are left out.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if header.len() > MAX_HEADER {
        return found;
    }
    let mut rest = header;
    while let Some((scheme, after)) = token(rest.trim_start_matches([' ', '\t', ','])) {
        rest = after;
        let mut parameters: Vec<(String, String)> = Vec::new();
        // A parameter is NAME=VALUE; a word that no `=` follows is the next scheme.
        loop {
            let start = rest.trim_start_matches([' ', '\t', ',']);
            let Some((name, after)) = token(start) else { break };
            let Some(after) = after.trim_start_matches([' ', '\t']).strip_prefix('=') else { break };
            let Some((value, after)) = value(after.trim_start_matches([' ', '\t'])) else { break };
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after;
        }
        let get = |wanted: &str| parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                if let Some(realm) = get("realm") {
                    found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
                }
            }
            _ => {}
        }
    }
    found
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut out = String::new();
    let mut chars = quoted.char_indices();
    while let Some((position, c)) = chars.next() {
        match c {
            '"' => return Some((out, &quoted[position + 1..])),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn reads_what_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:samalba/my-app:pull,push""#;
        let scope = Some("repository:samalba/my-app:pull,push");
        let cases = [
            (hub, vec![bearer("https://auth.docker.io/token", Some("registry.docker.io"), scope)]),
            (r#"bearer realm="https://a/",error="insufficient_scope""#, vec![bearer("https://a/", None, None)]),
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (r#"BASIC realm=x, Bearer realm = "y\"z""#, vec![Challenge::Basic, bearer("y\"z", None, None)]),
            (r#"Negotiate, Basic realm="x""#, vec![Challenge::Basic]),
            (r#"Bearer service="x""#, vec![]),
            (r#"Bearer realm="unterminated"#, vec![]),
            ("", vec![]),
            (",,,", vec![]),
        ];
        for (header, wanted) in cases {
            assert_eq!(parse(header), wanted, "{header}");
        }
        assert!(parse(&format!("Basic {}", "a".repeat(10_000))).is_empty());
    }

    #[test]
    fn any_bytes_end() {
        // All short words over the characters that mean something.
        let letters = ['"', '\\', '=', ',', ' ', 'a', '(', 'é'];
        for number in 0..letters.len().pow(6) {
            let mut left = number;
            let text: String = (0..6)
                .map(|_| {
                    let letter = letters[left % letters.len()];
                    left /= letters.len();
                    letter
                })
                .collect();
            assert!(parse(&text).is_empty());
        }
    }
}
