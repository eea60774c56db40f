//! Words of a Dockerfile's instruction: quotes, backslashes, and what begins with a dollar sign.

/// How deep `${A:-${B:-…}}` may go.
const MAX_DEPTH: usize = 16;
/// The longest word that may come of an expansion, in bytes: each can double the ones before it.
const MAX_WORD: usize = 1 << 20;

/// Splits at spaces that are neither quoted nor escaped. The words keep their quotes.
pub(super) struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text.trim_start() }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (mut quote, mut escaped) = (None, false);
        let end = self.rest.char_indices().find(|(_, c)| {
            if escaped {
                escaped = false;
                return false;
            }
            match (quote, c) {
                (None | Some('"'), '\\') => escaped = true,
                (None, '"' | '\'') => quote = Some(*c),
                (Some(open), c) if open == *c => quote = None,
                (None, c) => return c.is_whitespace(),
                _ => {}
            }
            false
        });
        let end = end.map_or(self.rest.len(), |(position, _)| position);
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        Some(word)
    }
}

/// Takes the quotes away and puts variables in, as the Dockerfile reference has it under "Environment replacement".
pub(super) fn expand(text: &str, env: &[String]) -> Result<String, &'static str> {
    let mut reader = Reader { rest: text, env, depth: 0 };
    reader.read(None)
}

struct Reader<'a> {
    rest: &'a str,
    env: &'a [String],
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// Reads to the end, or to and with the closing character.
    fn read(&mut self, close: Option<char>) -> Result<String, &'static str> {
        let mut out = String::new();
        loop {
            if out.len() > MAX_WORD {
                return Err("it grows too long");
            }
            let Some(c) = self.next() else {
                return match close {
                    None => Ok(out),
                    Some('"') => Err("a quote is not closed"),
                    Some(_) => Err("a brace is not closed"),
                };
            };
            match c {
                c if close == Some(c) => return Ok(out),
                '\'' if close != Some('"') => {
                    let (inside, rest) = self.rest.split_once('\'').ok_or("a quote is not closed")?;
                    out.push_str(inside);
                    self.rest = rest;
                }
                '"' => out.push_str(&self.read(Some('"'))?),
                '\\' => match self.next() {
                    // In double quotes a backslash is one, but before these.
                    Some(c) if close != Some('"') || matches!(c, '"' | '$' | '\\') => out.push(c),
                    Some(c) => out.extend(['\\', c]),
                    None => out.push('\\'),
                },
                '$' => out.push_str(&self.variable()?),
                c => out.push(c),
            }
        }
    }

    /// What comes after a dollar sign.
    fn variable(&mut self) -> Result<String, &'static str> {
        if !self.rest.starts_with('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.value(name).unwrap_or_default().to_owned());
        }
        self.next();
        let name = self.name();
        if name.is_empty() {
            return Err("a variable has no name");
        }
        let value = self.value(name).map(str::to_owned);
        let mut modifier = self.next().ok_or("a brace is not closed")?;
        if modifier == '}' {
            return Ok(value.unwrap_or_default());
        }
        // With a colon, an empty value counts as none.
        let mut value = value;
        if modifier == ':' {
            value = value.filter(|value| !value.is_empty());
            modifier = self.next().ok_or("a brace is not closed")?;
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("braces are nested too deep");
        }
        let other = self.read(Some('}'))?;
        self.depth -= 1;
        match modifier {
            '-' => Ok(value.unwrap_or(other)),
            '+' => Ok(value.map_or_else(String::new, |_| other)),
            '?' => value.ok_or("a variable is not set that must be"),
            _ => Err("after a variable's name only :-, :+, :? and the same without colon are known"),
        }
    }

    /// A name; or what is one in a shell: a number, or a single odd character, which here stand for nothing.
    fn name(&mut self) -> &'a str {
        let end = |rest: &str, belongs: fn(char) -> bool| rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let end = match self.rest.chars().next() {
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            Some('0'..='9') => end(self.rest, |c| c.is_ascii_digit()),
            _ => end(self.rest, |c| c.is_ascii_alphanumeric() || c == '_'),
        };
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        name
    }

    fn value(&self, name: &str) -> Option<&'a str> {
        self.env.iter().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_where_a_shell_would() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("a", &["a"]),
            ("  a  b ", &["a", "b"]),
            ("a='b c' d", &["a='b c'", "d"]),
            ("a=\"b \\\" c\" d", &["a=\"b \\\" c\"", "d"]),
            ("a=b\\ c d", &["a=b\\ c", "d"]),
            ("a='b\\' c", &["a='b\\'", "c"]),
            ("ä=ö ü", &["ä=ö", "ü"]),
        ];
        for (text, wanted) in cases {
            assert_eq!(Words::new(text).collect::<Vec<_>>(), *wanted, "{text}");
        }
    }

    #[test]
    fn expands_as_the_reference_says() {
        let env = ["A=1".to_owned(), "E=".to_owned(), "P=/a:/b".to_owned()];
        let cases = [
            ("x", Ok("x")),
            ("$A", Ok("1")),
            ("${A}", Ok("1")),
            ("$AB", Ok("")),
            ("${A}B", Ok("1B")),
            ("\\$A", Ok("$A")),
            ("'$A'", Ok("$A")),
            ("\"$A\"", Ok("1")),
            ("\"\\$A\\x\"", Ok("$A\\x")),
            ("\"'$A'\"", Ok("'1'")),
            ("${X:-d}", Ok("d")),
            ("${E:-d}", Ok("d")),
            ("${E-d}", Ok("")),
            ("${A:+o}", Ok("o")),
            ("${E:+o}", Ok("")),
            ("${E+o}", Ok("o")),
            ("${X:-${A}2}", Ok("12")),
            ("${A:?x}", Ok("1")),
            ("${X:?x}", Err(())),
            ("${E?x}", Ok("")),
            ("$", Ok("$")),
            ("$$x", Ok("x")),
            ("$1a", Ok("a")),
            ("a$/b", Ok("a$/b")),
            ("/x:$P", Ok("/x:/a:/b")),
            ("${", Err(())),
            ("${}", Err(())),
            ("${A", Err(())),
            ("${A:", Err(())),
            ("${A#x}", Err(())),
            ("'x", Err(())),
            ("\"x", Err(())),
            ("\\", Ok("\\")),
        ];
        for (text, wanted) in cases {
            assert_eq!(expand(text, &env).as_deref().map_err(|_| ()), wanted, "{text}");
        }
    }

    #[test]
    fn is_bounded() {
        assert!(expand(&"${A:-".repeat(1000), &[]).is_err());
        let long = format!("A={}", "x".repeat(1 << 16));
        assert!(expand(&"$A".repeat(1 << 10), &[long]).is_err());
    }
}
