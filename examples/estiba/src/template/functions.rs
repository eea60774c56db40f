//! The functions of Go's templates, and those that Docker adds.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::sync::Arc;

use super::evaluate::MAX_OUTPUT;
use super::printf;
use super::value::{Json, List, Value};

/// What the template is executed for, where that makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// An object of `inspect`.
    Object,
    /// A row of a listing.
    Row,
    /// The column heads of a table: what would change them does not.
    Head,
}

/// Why a function was not called, or what it said.
pub(super) enum Refusal {
    /// It takes another number of arguments.
    Count(String),
    /// The argument of that index is of another type.
    Argument(usize, Expected),
    /// It failed.
    Call(String),
}

/// What an argument should have been.
pub(super) struct Expected {
    /// The name of the type in Go.
    pub(super) kind: &'static str,
    /// What to call it where a constant was given.
    pub(super) word: &'static str,
    /// The type that it has; `None`: it is nothing.
    pub(super) found: Option<String>,
}

type Answer = Result<Value, Refusal>;

const KNOWN: [&str; 27] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "join", "js", "json", "le", "len", "lower", "lt", "ne", "not",
    "or", "pad", "print", "printf", "println", "slice", "split", "title", "truncate", "upper", "urlquery",
];

pub(super) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name)
}

pub(super) fn call(name: &str, arguments: &[Value], dialect: Dialect) -> Answer {
    if dialect == Dialect::Head
        && let ("json" | "title" | "lower" | "upper" | "truncate", Some(first)) = (name, arguments.first())
    {
        return Ok(first.clone());
    }
    match name {
        "not" => one(name, arguments).map(|value| Value::Bool(!value.truth())),
        "eq" => eq(arguments).map(Value::Bool),
        "ne" => two(name, arguments).and_then(|[a, b]| Ok(Value::Bool(!is_equal(a, b)?))),
        "lt" => two(name, arguments).and_then(|[a, b]| Ok(Value::Bool(is_less(a, b)?))),
        "le" => two(name, arguments).and_then(|[a, b]| Ok(Value::Bool(is_less(a, b)? || is_equal(a, b)?))),
        "gt" => two(name, arguments).and_then(|[a, b]| Ok(Value::Bool(!(is_less(a, b)? || is_equal(a, b)?)))),
        "ge" => two(name, arguments).and_then(|[a, b]| Ok(Value::Bool(!is_less(a, b)?))),
        "len" => one(name, arguments).and_then(len),
        "index" => index(arguments),
        "slice" => slice(arguments),
        "html" => Ok(html(&printf::print(arguments)).into()),
        "js" => Ok(js(&printf::print(arguments)).into()),
        "urlquery" => Ok(urlquery(&printf::print(arguments)).into()),
        "print" => Ok(printf::print(arguments).into()),
        "println" => Ok(printf::println(arguments).into()),
        "printf" => {
            let Some((format, rest)) = arguments.split_first() else {
                return Err(Refusal::Count("wrong number of args for printf: want at least 1 got 0".into()));
            };
            Ok(printf::printf(text(0, format)?, rest, MAX_OUTPUT).into())
        }
        "json" => one(name, arguments).map(|value| value.json(Json::Compact).into()),
        "upper" => one(name, arguments).and_then(|value| Ok(each(text(0, value)?, char::to_uppercase).into())),
        "lower" => one(name, arguments).and_then(|value| Ok(each(text(0, value)?, char::to_lowercase).into())),
        "title" => one(name, arguments).and_then(|value| Ok(title(text(0, value)?).into())),
        "join" => two(name, arguments).and_then(|[list, separator]| join(list, text(1, separator)?)),
        "split" => two(name, arguments).and_then(|[whole, separator]| {
            let (whole, separator) = (text(0, whole)?, text(1, separator)?);
            if separator.is_empty() {
                return Ok(Value::list(whole.chars().map(String::from)));
            }
            Ok(Value::list(whole.split(separator)))
        }),
        "truncate" => two(name, arguments).and_then(|[whole, length]| {
            let (whole, length) = (text(0, whole)?, integer(1, length)?);
            let Ok(length) = usize::try_from(length) else {
                return Err(Refusal::Call("slice bounds out of range".into()));
            };
            Ok(whole.get(..length).map_or_else(|| cut(whole, length), Value::from))
        }),
        "pad" => pad(arguments),
        "call" => Err(Refusal::Call(match arguments.first() {
            None => return Err(Refusal::Count("wrong number of args for call: want at least 1 got 0".into())),
            Some(value) => format!("non-function of type {}", value.type_name()),
        })),
        _ => Err(Refusal::Call("not a defined function".into())),
    }
}

fn wrong_count(name: &str, want: usize, got: usize) -> Refusal {
    Refusal::Count(format!("wrong number of args for {name}: want {want} got {got}"))
}

fn one<'a>(name: &str, arguments: &'a [Value]) -> Result<&'a Value, Refusal> {
    match arguments {
        [value] => Ok(value),
        other => Err(wrong_count(name, 1, other.len())),
    }
}

fn two<'a>(name: &str, arguments: &'a [Value]) -> Result<[&'a Value; 2], Refusal> {
    match arguments {
        [first, second] => Ok([first, second]),
        other => Err(wrong_count(name, 2, other.len())),
    }
}

fn wrong_type(index: usize, kind: &'static str, word: &'static str, value: &Value) -> Refusal {
    let found = (!matches!(value, Value::Missing | Value::Nil)).then(|| value.type_name());
    Refusal::Argument(index, Expected { kind, word, found })
}

/// The argument of that index as a text.
fn text(index: usize, value: &Value) -> Result<&str, Refusal> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(index, "string", "string", other)),
    }
}

/// The argument of that index as a number.
fn integer(index: usize, value: &Value) -> Result<i64, Refusal> {
    match value {
        Value::Int(value) => Ok(*value),
        Value::Uint(value) => i64::try_from(*value).map_err(|_| Refusal::Call("the number is too large".into())),
        other => Err(wrong_type(index, "int", "integer", other)),
    }
}

/// The text up to a byte, which may be in the middle of a character.
fn cut(text: &str, length: usize) -> Value {
    let end = length.min(text.len());
    String::from_utf8_lossy(&text.as_bytes()[..end]).into_owned().into()
}

fn pad(arguments: &[Value]) -> Answer {
    const MAX: i64 = 10_000;
    let [whole, before, after] = arguments else { return Err(wrong_count("pad", 3, arguments.len())) };
    let (whole, before, after) = (text(0, whole)?, integer(1, before)?, integer(2, after)?);
    if before < 0 || after < 0 {
        return Err(Refusal::Call("strings: negative Repeat count".into()));
    }
    if before > MAX || after > MAX {
        return Err(Refusal::Call(format!("more than {MAX} spaces")));
    }
    if whole.is_empty() {
        return Ok(whole.into());
    }
    Ok(format!("{}{whole}{}", " ".repeat(before as usize), " ".repeat(after as usize)).into())
}

fn join(list: &Value, separator: &str) -> Answer {
    let Value::List(list) = list else { return Err(wrong_type(0, "[]string", "list", list)) };
    let items: Result<Vec<&str>, Refusal> = list.items.iter().map(|item| text(0, item)).collect();
    Ok(items?.join(separator).into())
}

/// A character that has no single other case stays as it is, as in Go.
fn single(c: char, mut other: impl Iterator<Item = char>) -> char {
    match (other.next(), other.next()) {
        (Some(other), None) => other,
        _ => c,
    }
}

fn each<T: Iterator<Item = char>>(text: &str, case: impl Fn(char) -> T) -> String {
    text.chars().map(|c| single(c, case(c))).collect()
}

/// Every word with a capital first letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.chars() {
        let in_word = before.is_alphanumeric() || before == '_' || !(before.is_ascii() || before.is_whitespace());
        out.push(if in_word { c } else { single(c, c.to_uppercase()) });
        before = c;
    }
    out
}

fn len(value: &Value) -> Answer {
    match value {
        Value::String(text) => Ok(text.len().into()),
        Value::List(list) => Ok(list.items.len().into()),
        Value::Map(map) => Ok(map.entries.len().into()),
        Value::Missing | Value::Nil => Err(Refusal::Call("len of nil pointer".into())),
        other => Err(Refusal::Call(format!("len of type {}", other.type_name()))),
    }
}

/// An index as a place in something of that length; `may_end`: it may be the length itself.
fn place(value: &Value, length: usize, may_end: bool) -> Result<usize, Refusal> {
    let number = match value {
        Value::Int(number) => *number,
        Value::Uint(number) => i64::try_from(*number).unwrap_or(i64::MAX),
        Value::Missing | Value::Nil => return Err(Refusal::Call("cannot index slice/array with nil".into())),
        other => {
            return Err(Refusal::Call(format!("cannot index slice/array with type {}", other.type_name())));
        }
    };
    match usize::try_from(number) {
        Ok(place) if place < length || may_end && place == length => Ok(place),
        _ => Err(Refusal::Call(format!("index out of range: {number}"))),
    }
}

fn index(arguments: &[Value]) -> Answer {
    let Some((item, keys)) = arguments.split_first() else {
        return Err(Refusal::Count("wrong number of args for index: want at least 1 got 0".into()));
    };
    let mut item = item.clone();
    for key in keys {
        item = match &item {
            Value::List(list) => list.items[place(key, list.items.len(), false)?].clone(),
            Value::String(text) => Value::Int(text.as_bytes()[place(key, text.len(), false)?].into()),
            Value::Map(map) => {
                let Value::String(key) = key else {
                    return Err(Refusal::Call(format!("value has type {}; should be string", key.type_name())));
                };
                map.entries.get(&**key).cloned().unwrap_or_else(|| (*map.zero).clone())
            }
            Value::Missing | Value::Nil => return Err(Refusal::Call("index of untyped nil".into())),
            other => return Err(Refusal::Call(format!("can't index item of type {}", other.type_name()))),
        };
    }
    // What is null in JSON is nothing to print.
    Ok(if matches!(item, Value::Nil) { Value::Missing } else { item })
}

fn slice(arguments: &[Value]) -> Answer {
    let Some((item, places)) = arguments.split_first() else {
        return Err(Refusal::Count("wrong number of args for slice: want at least 1 got 0".into()));
    };
    let length = match item {
        Value::String(text) => text.len(),
        Value::List(list) => list.items.len(),
        Value::Missing | Value::Nil => return Err(Refusal::Call("slice of untyped nil".into())),
        other => return Err(Refusal::Call(format!("can't slice item of type {}", other.type_name()))),
    };
    let is_text = matches!(item, Value::String(_));
    if places.len() > 3 {
        return Err(Refusal::Call(format!("too many slice indexes: {}", places.len())));
    }
    if places.len() == 3 && is_text {
        return Err(Refusal::Call("cannot 3-index slice a string".into()));
    }
    let mut bounds = [0, length, length];
    for (bound, value) in bounds.iter_mut().zip(places) {
        *bound = place(value, length, true)?;
    }
    let [start, end, most] = bounds;
    if start > end {
        return Err(Refusal::Call(format!("invalid slice index: {start} > {end}")));
    }
    if places.len() == 3 && end > most {
        return Err(Refusal::Call(format!("invalid slice index: {end} > {most}")));
    }
    Ok(match item {
        Value::List(list) => Value::List(List { items: Arc::from(&list.items[start..end]), is_nil: false }),
        Value::String(text) => String::from_utf8_lossy(&text.as_bytes()[start..end]).into_owned().into(),
        _ => Value::Missing,
    })
}

fn incomparable(a: &Value, b: &Value) -> Refusal {
    Refusal::Call(format!("incompatible types for comparison: {} and {}", a.type_name(), b.type_name()))
}

fn eq(arguments: &[Value]) -> Result<bool, Refusal> {
    let Some((first, others)) = arguments.split_first() else {
        return Err(Refusal::Count("wrong number of args for eq: want at least 1 got 0".into()));
    };
    if others.is_empty() {
        return Err(Refusal::Call("missing argument for comparison".into()));
    }
    for other in others {
        if is_equal(first, other)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_nil(value: &Value) -> bool {
    match value {
        Value::Missing | Value::Nil => true,
        Value::List(list) => list.is_nil,
        Value::Map(map) => map.is_nil,
        _ => false,
    }
}

fn is_equal(a: &Value, b: &Value) -> Result<bool, Refusal> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::String(a), Value::String(b)) => Ok(a == b),
        (Value::Float(a), Value::Float(b)) => Ok(a.partial_cmp(b) == Some(Ordering::Equal)),
        (Value::Int(_) | Value::Uint(_), Value::Int(_) | Value::Uint(_)) => Ok(wide(a) == wide(b)),
        _ if is_nil(a) || is_nil(b) => Ok(is_nil(a) && is_nil(b)),
        (Value::List(_) | Value::Map(_), Value::List(_) | Value::Map(_)) => Err(Refusal::Call(format!(
            "non-comparable type {}: {}",
            printf::print(std::slice::from_ref(a)),
            a.type_name()
        ))),
        (Value::Record(a), Value::Record(b)) => Ok(a == b),
        _ => Err(incomparable(a, b)),
    }
}

fn wide(value: &Value) -> Option<i128> {
    match value {
        Value::Int(value) => Some((*value).into()),
        Value::Uint(value) => Some((*value).into()),
        _ => None,
    }
}

fn is_less(a: &Value, b: &Value) -> Result<bool, Refusal> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Ok(a < b),
        (Value::Float(a), Value::Float(b)) => Ok(a < b),
        (Value::Int(_) | Value::Uint(_), Value::Int(_) | Value::Uint(_)) => Ok(wide(a) < wide(b)),
        (Value::Bool(_), Value::Bool(_)) => Err(Refusal::Call("invalid type for comparison".into())),
        _ => {
            let basic = |value: &Value| {
                matches!(value, Value::Bool(_) | Value::String(_) | Value::Float(_)) || wide(value).is_some()
            };
            let is_basic = basic(a) && basic(b);
            Err(if is_basic { incomparable(a, b) } else { Refusal::Call("invalid type for comparison".into()) })
        }
    }
}

fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '\'' | '"' => {
                out.push('\\');
                out.push(c);
            }
            '<' | '>' | '&' | '=' | '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn urlquery(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            byte if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            byte => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}
