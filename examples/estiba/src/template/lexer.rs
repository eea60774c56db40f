//! Splits a template into text and actions, and actions into tokens.

use super::error::Error;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) at: usize,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Text(String),
    /// `{{`.
    Open,
    /// `}}`.
    Close,
    /// `.Name`, without its dot.
    Field(String),
    /// `$` or `$name`, with its dollar.
    Variable(String),
    /// A function, a keyword, `true`, `false` or `nil`.
    Word(String),
    /// As it is written.
    Number(String),
    /// Its value, and as it is written.
    String(String, String),
    Dot,
    Pipe,
    Comma,
    Declare,
    Assign,
    OpenParen,
    CloseParen,
    /// White space between operands.
    Space,
}

impl Kind {
    /// The token as a message shows it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Open => "\"{{\"".to_owned(),
            Self::Close => "\"}}\"".to_owned(),
            Self::Field(name) => format!("<.{name}>"),
            Self::Variable(name) | Self::Word(name) => format!("<{name}>"),
            Self::Number(text) => format!("\"{text}\""),
            Self::String(_, written) => format!("{written:?}"),
            Self::Dot => "<.>".to_owned(),
            Self::Pipe => "\"|\"".to_owned(),
            Self::Comma => "\",\"".to_owned(),
            Self::Declare => "\":=\"".to_owned(),
            Self::Assign => "\"=\"".to_owned(),
            Self::OpenParen => "\"(\"".to_owned(),
            Self::CloseParen => "\")\"".to_owned(),
            Self::Space => "\" \"".to_owned(),
        }
    }
}

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// The white space that trim markers and operands know.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new() };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn push(&mut self, length: usize, kind: Kind) {
        self.tokens.push(Token { at: self.at, kind });
        self.at += length;
    }

    fn fail<T>(&self, reason: impl std::fmt::Display) -> Result<T, Error> {
        Err(Error::parse(self.text, self.at, reason))
    }

    fn run(&mut self) -> Result<(), Error> {
        let mut trim_start = false;
        loop {
            let rest = self.rest();
            let (before, found) = rest.find(OPEN).map_or((rest, false), |at| (&rest[..at], true));
            let inside = rest.get(before.len() + OPEN.len()..).unwrap_or_default();
            let trim_end = found && inside.starts_with('-') && inside[1..].starts_with(is_space);
            let mut shown = before;
            if trim_start {
                shown = shown.trim_start_matches(is_space);
            }
            if trim_end {
                shown = shown.trim_end_matches(is_space);
            }
            if shown.is_empty() {
                self.at += before.len();
            } else {
                self.push(before.len(), Kind::Text(shown.to_owned()));
            }
            if !found {
                return Ok(());
            }
            let marker = usize::from(trim_end);
            let after = &inside[marker..];
            let comment = if trim_end { after.trim_start_matches(is_space) } else { after };
            if comment.starts_with("/*") {
                self.at += OPEN.len() + inside.len() - comment.len();
                trim_start = self.comment()?;
                continue;
            }
            self.push(OPEN.len() + marker, Kind::Open);
            trim_start = self.action()?;
        }
    }

    /// Skips a comment with its closing delimiter; whether the white space after it is trimmed.
    fn comment(&mut self) -> Result<bool, Error> {
        let Some(end) = self.rest().find("*/") else { return self.fail("unclosed comment") };
        self.at += end + 2;
        let rest = self.rest();
        let (trim, marker) = trim_close(rest);
        if !rest[marker..].starts_with(CLOSE) {
            return self.fail("comment ends before closing delimiter");
        }
        self.at += marker + CLOSE.len();
        Ok(trim)
    }

    /// The tokens up to and with the closing delimiter; whether the white space after it is trimmed.
    fn action(&mut self) -> Result<bool, Error> {
        let mut depth = 0_usize;
        loop {
            let rest = self.rest();
            let (trim, marker) = trim_close(rest);
            if rest[marker..].starts_with(CLOSE) {
                if depth > 0 {
                    return self.fail("unclosed left paren");
                }
                self.at += marker;
                self.push(CLOSE.len(), Kind::Close);
                return Ok(trim);
            }
            let Some(first) = rest.chars().next() else { return self.fail("unclosed action") };
            match first {
                c if is_space(c) => {
                    let length = rest.len() - rest.trim_start_matches(is_space).len();
                    // The space of a closing trim marker belongs to the marker.
                    let (trim, marker) = trim_close(&rest[length - 1..]);
                    let is_marker = trim && rest[length - 1 + marker..].starts_with(CLOSE);
                    let length = if is_marker { length - 1 } else { length };
                    if length > 0 {
                        self.push(length, Kind::Space);
                    }
                }
                '|' => self.push(1, Kind::Pipe),
                ',' => self.push(1, Kind::Comma),
                '=' => self.push(1, Kind::Assign),
                ':' if rest.starts_with(":=") => self.push(2, Kind::Declare),
                ':' => return self.fail("expected :="),
                '(' => {
                    depth += 1;
                    self.push(1, Kind::OpenParen);
                }
                ')' => {
                    depth = match depth.checked_sub(1) {
                        Some(depth) => depth,
                        None => return self.fail("unexpected right paren"),
                    };
                    self.push(1, Kind::CloseParen);
                }
                '"' => self.quoted()?,
                '`' => {
                    let Some(end) = rest[1..].find('`') else { return self.fail("unterminated raw quoted string") };
                    self.push(end + 2, Kind::String(rest[1..=end].to_owned(), rest[..end + 2].to_owned()));
                }
                '\'' => self.character()?,
                '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => self.field()?,
                '$' => {
                    let length = 1 + word(&rest[1..]);
                    self.terminated(length)?;
                    self.push(length, Kind::Variable(rest[..length].to_owned()));
                }
                c if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => self.number()?,
                c if c == '_' || c.is_alphabetic() => {
                    let length = word(rest);
                    self.terminated(length)?;
                    self.push(length, Kind::Word(rest[..length].to_owned()));
                }
                c => return self.fail(format_args!("unrecognized character in action: {}", code_point(c))),
            }
        }
    }

    fn field(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let length = word(&rest[1..]);
        if length == 0 {
            self.push(1, Kind::Dot);
            return Ok(());
        }
        self.terminated(1 + length)?;
        self.push(1 + length, Kind::Field(rest[1..=length].to_owned()));
        Ok(())
    }

    /// What follows a name has to end it.
    fn terminated(&self, length: usize) -> Result<(), Error> {
        match self.rest()[length..].chars().next() {
            Some(c) if !is_space(c) && !matches!(c, '.' | ',' | '|' | ':' | ')' | '(' | '=') => {
                if self.rest()[length..].starts_with(CLOSE) {
                    return Ok(());
                }
                self.fail(format_args!("bad character {}", code_point(c)))
            }
            _ => Ok(()),
        }
    }

    fn number(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let sign = usize::from(rest.starts_with(['+', '-']));
        let prefixed = ["0x", "0X", "0b", "0B", "0o", "0O"].iter().any(|prefix| rest[sign..].starts_with(prefix));
        let mut length = sign;
        let mut last = ' ';
        for c in rest[sign..].chars() {
            let exponent_sign = matches!(c, '+' | '-') && matches!(last, 'e' | 'E' | 'p' | 'P') && !prefixed;
            if !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || exponent_sign) {
                break;
            }
            length += c.len_utf8();
            last = c;
        }
        if length == sign {
            return self.fail(format_args!("bad number syntax: {:?}", &rest[..sign.max(1)]));
        }
        self.push(length, Kind::Number(rest[..length].to_owned()));
        Ok(())
    }

    fn quoted(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let mut characters = rest.char_indices().skip(1);
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' if characters.next().is_some_and(|(_, c)| c != '\n') => {}
                '\n' | '\\' => break,
                '"' => {
                    let written = &rest[..=at];
                    let Some(value) = unquote(&rest[1..at]) else {
                        return self.fail("invalid syntax");
                    };
                    self.push(at + 1, Kind::String(value, written.to_owned()));
                    return Ok(());
                }
                _ => {}
            }
        }
        self.fail("unterminated quoted string")
    }

    /// A character constant, which is a number.
    fn character(&mut self) -> Result<(), Error> {
        let rest = self.rest();
        let escaped = rest[1..].starts_with('\\');
        let from = if escaped { 3 } else { 1 };
        let end = rest.char_indices().skip_while(|(at, _)| *at < from).find(|(_, c)| *c == '\'').map(|(at, _)| at);
        let Some(end) = end.filter(|end| !rest[..*end].contains('\n')) else {
            return self.fail("unterminated character constant");
        };
        let value = unquote(&rest[1..end]).filter(|value| value.chars().count() == 1);
        let Some(c) = value.and_then(|value| value.chars().next()) else {
            return self.fail(format_args!("malformed character constant: {}", &rest[..=end]));
        };
        self.push(end + 1, Kind::Number(u32::from(c).to_string()));
        Ok(())
    }
}

/// Whether a closing trim marker is here, and its length.
fn trim_close(rest: &str) -> (bool, usize) {
    let mut characters = rest.chars();
    let trim = characters.next().is_some_and(is_space) && characters.next() == Some('-');
    if trim && rest[2..].starts_with(CLOSE) { (true, 2) } else { (false, 0) }
}

/// The length of the name that the text starts with.
fn word(text: &str) -> usize {
    text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len())
}

fn code_point(c: char) -> String {
    format!("U+{:04X} {c:?}", u32::from(c))
}

/// The value of the inside of a quoted Go string.
fn unquote(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut push = |c: char| bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            push(c);
            continue;
        }
        let kind = rest.chars().next()?;
        let number = |from: usize, length: usize, radix: u32| {
            let digits = rest.get(from..from + length)?;
            let whole = digits.chars().all(|c| c.is_digit(radix));
            u32::from_str_radix(digits, radix).ok().filter(|_| whole)
        };
        let simple = |byte: u8| (u32::from(byte), 1);
        let (value, length) = match kind {
            'x' => (number(1, 2, 16)?, 3),
            'u' => (number(1, 4, 16)?, 5),
            'U' => (number(1, 8, 16)?, 9),
            '0'..='7' => (number(0, 3, 8).filter(|value| *value < 256)?, 3),
            'a' => simple(7),
            'b' => simple(8),
            'f' => simple(12),
            'n' => simple(b'\n'),
            'r' => simple(b'\r'),
            't' => simple(b'\t'),
            'v' => simple(11),
            '\\' | '\'' | '"' => simple(kind as u8),
            _ => return None,
        };
        if matches!(kind, 'u' | 'U') {
            push(char::from_u32(value)?);
        } else {
            bytes.push(u8::try_from(value).ok()?);
        }
        rest = &rest[length..];
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
