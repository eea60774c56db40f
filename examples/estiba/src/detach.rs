//! The keys that leave a container without ending it.

use std::str::FromStr;

/// A sequence of keys (`ctrl-p,ctrl-q`). An empty one never comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys(Vec<u8>);

impl Keys {
    /// A sequence that never comes.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self(vec![16, 17])
    }
}

impl FromStr for Keys {
    type Err = String;

    /// Keys between commas: a character, or `ctrl-` and a letter or one of `@`, `[`, `\`, `]`, `^`, `_`.
    fn from_str(text: &str) -> Result<Self, String> {
        let key = |key: &str| -> Result<u8, String> {
            if let [byte] = key.as_bytes()
                && byte.is_ascii()
            {
                return Ok(*byte);
            }
            let control = key.get(..5).filter(|prefix| prefix.eq_ignore_ascii_case("ctrl-")).map(|_| &key[5..]);
            match control.map(str::as_bytes) {
                Some([byte @ (b'a'..=b'z' | b'A'..=b'Z')]) => Ok(byte.to_ascii_lowercase() - b'a' + 1),
                Some([byte @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(byte - b'@'),
                _ => {
                    Err(format!("the key {key:?} is unknown: give a character or ctrl- and one, such as ctrl-p,ctrl-q"))
                }
            }
        };
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// Looks through what is typed for the keys.
#[derive(Debug)]
pub(crate) struct Watch {
    keys: Keys,
    /// How many of the keys the input ends with so far; they are held back.
    held: usize,
}

/// What is to be done with a piece of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the container: what turned out not to be the keys, and all else.
    pub(crate) passed: Vec<u8>,
    /// The keys have come. What was typed after them is nobody's.
    pub(crate) detach: bool,
}

impl Watch {
    pub(crate) fn new(keys: Keys) -> Self {
        Self { keys, held: 0 }
    }

    pub(crate) fn type_in(&mut self, input: &[u8]) -> Typed {
        let keys = &self.keys.0;
        if keys.is_empty() {
            return Typed { passed: input.to_vec(), detach: false };
        }
        let mut passed = Vec::with_capacity(input.len() + self.held);
        for byte in input {
            if *byte == keys[self.held] {
                self.held += 1;
                if self.held == keys.len() {
                    self.held = 0;
                    return Typed { passed, detach: true };
                }
                continue;
            }
            // It was something else: the shortest part of what was held back is passed on with which the rest is still a
            // beginning of the keys.
            let mut seen = keys[..self.held].to_vec();
            seen.push(*byte);
            self.held = (0..seen.len()).rev().find(|length| seen.ends_with(&keys[..*length])).unwrap_or(0);
            passed.extend(&seen[..seen.len() - self.held]);
        }
        Typed { passed, detach: false }
    }

    /// What is held back when nothing more will be typed.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        let held = self.keys.0[..self.held].to_vec();
        self.held = 0;
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read() {
        for (text, expected) in [
            ("ctrl-p,ctrl-q", Some(vec![16, 17])),
            ("CTRL-P,a", Some(vec![16, b'a'])),
            ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", Some(vec![0, 27, 28, 29, 30, 31])),
            ("x", Some(vec![b'x'])),
            ("", Some(vec![])),
            ("ctrl-", None),
            ("ctrl-1", None),
            ("ab", None),
            ("a,,b", None),
            ("é", None),
        ] {
            assert_eq!(text.parse().ok(), expected.map(Keys), "{text}");
        }
    }

    #[test]
    fn the_keys_are_swallowed_and_all_else_is_passed() {
        for (keys, pieces, passed, detach) in [
            ("ctrl-p,ctrl-q", vec!["abc"], "abc", false),
            ("ctrl-p,ctrl-q", vec!["ab\x10\x11cd"], "ab", true),
            ("ctrl-p,ctrl-q", vec!["ab\x10", "\x11cd"], "ab", true),
            ("ctrl-p,ctrl-q", vec!["\x10", "x"], "\x10x", false),
            ("ctrl-p,ctrl-q", vec!["\x10\x10\x11"], "\x10", true),
            ("ctrl-p,ctrl-q", vec!["\x11\x10"], "\x11", false),
            ("a,a,b", vec!["aaab"], "a", true),
            ("a,b,a,c", vec!["ababac"], "ab", true),
            ("a,b,a,c", vec!["aba", "bac"], "ab", true),
            ("q", vec!["xyq"], "xy", true),
            ("", vec!["\x10\x11"], "\x10\x11", false),
        ] {
            let mut watch = Watch::new(keys.parse().expect("keys"));
            let mut all = Vec::new();
            let mut detached = false;
            for piece in &pieces {
                let typed = watch.type_in(piece.as_bytes());
                all.extend(typed.passed);
                detached |= typed.detach;
            }
            assert_eq!((all.as_slice(), detached), (passed.as_bytes(), detach), "{keys} {pieces:?}");
        }
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        let mut watch = Watch::new(Keys::default());
        assert_eq!(watch.type_in(b"a\x10").passed, b"a");
        assert_eq!(watch.end(), b"\x10");
        assert_eq!(watch.end(), b"");
    }
}
