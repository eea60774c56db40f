//! What templates are executed on, and what is printed as JSON: values that know Go's difference between a struct, whose
//! fields have an order and are all that there is, and a map.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

/// A value as Go's templates see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// No value at all: what a missing key of a map is.
    Missing,
    /// A nil pointer.
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    String(Arc<str>),
    List(List),
    Map(Map),
    Record(Arc<Record>),
    /// A method with one string for its argument (`.Label "key"`).
    Lookup(Arc<Lookup>),
}

/// A slice. A nil one is `null` in JSON and otherwise an empty one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct List {
    pub(crate) items: Arc<[Value]>,
    pub(crate) is_nil: bool,
}

/// A map with strings for its keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Map {
    pub(crate) entries: Arc<BTreeMap<String, Value>>,
    /// What `index` finds under a key that is not there.
    pub(crate) zero: Arc<Value>,
    pub(crate) is_nil: bool,
}

/// A struct: its type's name, and its fields in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Record {
    name: &'static str,
    fields: Vec<Field>,
    escape_html: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    name: &'static str,
    value: Value,
    in_json: bool,
}

/// What a [`Value::Lookup`] answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lookup {
    /// The entry of that key, or the empty string.
    Entries(BTreeMap<String, String>),
    /// The column head that Docker makes of a label's key: its last part, without dashes.
    Head,
}

impl Lookup {
    pub(super) fn find(&self, key: &str) -> String {
        match self {
            Self::Entries(entries) => entries.get(key).cloned().unwrap_or_default(),
            Self::Head => key.rsplit('.').next().unwrap_or_default().replace(['-', '_'], " "),
        }
    }
}

impl Record {
    /// A struct of a type of that name, without fields so far.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// A row of one of Docker's listings: its JSON is sorted, and escaped for HTML.
    pub(crate) fn row(name: &'static str) -> Self {
        Self { name, escape_html: true, ..Self::default() }
    }

    /// Adds a field.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push(Field { name, value: value.into(), in_json: true });
        self
    }

    /// Adds a field that JSON leaves out while it is empty.
    #[must_use]
    pub(crate) fn with_some(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.fields.push(Field { name, in_json: value.truth(), value });
        self
    }

    /// Adds a field that JSON never shows.
    #[must_use]
    pub(crate) fn hidden(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push(Field { name, value: value.into(), in_json: false });
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|field| field.name == name).map(|field| &field.value)
    }

    pub(super) fn type_name(&self) -> &'static str {
        self.name
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.fields.iter().map(|field| field.name)
    }
}

/// How a value is written as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Json {
    /// On one line.
    Compact,
    /// On lines, each level indented by four spaces.
    Indented,
}

impl Value {
    /// A nil slice.
    pub(crate) fn nil_list() -> Self {
        Self::List(List { items: Arc::from([]), is_nil: true })
    }

    /// A slice, nil if it is empty.
    pub(crate) fn list_or_nil<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        let items: Arc<[Self]> = items.into_iter().map(Into::into).collect();
        Self::List(List { is_nil: items.is_empty(), items })
    }

    /// A slice.
    pub(crate) fn list<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(List { items: items.into_iter().map(Into::into).collect(), is_nil: false })
    }

    /// A map whose values are structs or anything else that has no zero to print.
    pub(crate) fn map(entries: impl IntoIterator<Item = (String, Self)>) -> Self {
        let entries = Arc::new(entries.into_iter().collect());
        Self::Map(Map { entries, zero: Arc::new(Self::Missing), is_nil: false })
    }

    /// A map from strings to strings.
    pub(crate) fn strings<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let entries = entries.into_iter().map(|(key, value)| (key.clone(), Self::from(value.as_str())));
        Self::Map(Map { entries: Arc::new(entries.collect()), zero: Arc::new(Self::from("")), is_nil: false })
    }

    /// A nil map.
    pub(crate) fn nil_map() -> Self {
        Self::Map(Map { entries: Arc::default(), zero: Arc::new(Self::from("")), is_nil: true })
    }

    /// The same map, or a nil one if it is empty.
    #[must_use]
    pub(crate) fn or_nil(mut self) -> Self {
        if let Self::Map(map) = &mut self {
            map.is_nil = map.entries.is_empty();
        }
        self
    }

    /// Whether `{{if}}` takes it for true.
    pub(crate) fn truth(&self) -> bool {
        match self {
            Self::Missing | Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Uint(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::String(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Map(map) => !map.entries.is_empty(),
            Self::Record(_) | Self::Lookup(_) => true,
        }
    }

    /// The Go type that a message names.
    pub(super) fn type_name(&self) -> String {
        match self {
            Self::Missing | Self::Nil => "nil".to_owned(),
            Self::Bool(_) => "bool".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Uint(_) => "uint64".to_owned(),
            Self::Float(_) => "float64".to_owned(),
            Self::String(_) => "string".to_owned(),
            Self::List(list) => {
                let of_strings = list.items.first().is_some_and(|item| matches!(item, Self::String(_)));
                if of_strings { "[]string" } else { "[]interface {}" }.to_owned()
            }
            Self::Map(map) if matches!(*map.zero, Self::String(_)) => "map[string]string".to_owned(),
            Self::Map(_) => "map[string]interface {}".to_owned(),
            Self::Record(record) => record.name.to_owned(),
            Self::Lookup(_) => "func(string) string".to_owned(),
        }
    }

    /// Appends the value as `{{.}}` and `%v` print it. Stops when `room` bytes were written.
    pub(super) fn print(&self, out: &mut String, room: usize) {
        if out.len() > room {
            return;
        }
        match self {
            Self::Missing => out.push_str("<no value>"),
            Self::Nil => out.push_str("<nil>"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => _ = write!(out, "{value}"),
            Self::Uint(value) => _ = write!(out, "{value}"),
            Self::Float(value) => out.push_str(&float(*value)),
            Self::String(text) => out.push_str(text),
            Self::List(list) => {
                out.push('[');
                for (index, item) in list.items.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    item.print(out, room);
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push_str("map[");
                for (index, (key, value)) in map.entries.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    out.push_str(key);
                    out.push(':');
                    value.print(out, room);
                }
                out.push(']');
            }
            Self::Record(record) => {
                out.push('{');
                for (index, field) in record.fields.iter().enumerate() {
                    if index > 0 {
                        out.push(' ');
                    }
                    field.value.print(out, room);
                }
                out.push('}');
            }
            Self::Lookup(_) => out.push_str("<func>"),
        }
    }

    /// The value as JSON.
    pub(crate) fn json(&self, form: Json) -> String {
        let mut out = String::new();
        self.write_json(&mut out, form, 0, false);
        out
    }

    fn write_json(&self, out: &mut String, form: Json, depth: usize, html: bool) {
        match self {
            Self::Missing | Self::Nil | Self::Lookup(_) => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Int(value) => _ = write!(out, "{value}"),
            Self::Uint(value) => _ = write!(out, "{value}"),
            // JSON has neither infinity nor NaN.
            Self::Float(value) if !value.is_finite() => out.push_str("null"),
            Self::Float(value) => out.push_str(&json_float(*value)),
            Self::String(text) => write_string(out, text, html),
            Self::List(list) if list.is_nil => out.push_str("null"),
            Self::List(list) => {
                let items = list.items.iter().map(|item| (None, item));
                write_all(out, ['[', ']'], items, form, depth, html);
            }
            Self::Map(map) if map.is_nil => out.push_str("null"),
            Self::Map(map) => {
                let entries = map.entries.iter().map(|(key, value)| (Some(key.as_str()), value));
                write_all(out, ['{', '}'], entries, form, depth, html);
            }
            Self::Record(record) if record.escape_html => {
                let shown: BTreeMap<&str, &Self> = record
                    .fields
                    .iter()
                    .filter(|field| field.in_json)
                    .map(|field| (field.name, &field.value))
                    .collect();
                write_all(out, ['{', '}'], shown.into_iter().map(|(key, value)| (Some(key), value)), form, depth, true);
            }
            Self::Record(record) => {
                let shown = record.fields.iter().filter(|field| field.in_json);
                let fields = shown.map(|field| (Some(field.name), &field.value));
                write_all(out, ['{', '}'], fields, form, depth, html);
            }
        }
    }
}

fn write_all<'a>(
    out: &mut String,
    brackets: [char; 2],
    items: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    form: Json,
    depth: usize,
    html: bool,
) {
    let line = |out: &mut String, depth: usize| {
        if form == Json::Indented {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str("    "));
        }
    };
    out.push(brackets[0]);
    let mut empty = true;
    for (key, value) in items {
        if !empty {
            out.push(',');
        }
        empty = false;
        line(out, depth + 1);
        if let Some(key) = key {
            write_string(out, key, html);
            out.push_str(if form == Json::Indented { ": " } else { ":" });
        }
        value.write_json(out, form, depth + 1, html);
    }
    if !empty {
        line(out, depth);
    }
    out.push(brackets[1]);
}

/// A JSON string as Go's encoder writes it.
fn write_string(out: &mut String, text: &str, html: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' if html => _ = write!(out, "\\u{:04x}", u32::from(c)),
            '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A float as Go's `%v` writes it: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e6
/// on.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value == 0.0 || (-4..6).contains(&exponent) {
        return format!("{value}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A float as Go's JSON encoder writes it: with an exponent below 1e-6 only.
fn json_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-6 {
        format!("{value:e}")
    } else if value.abs() < 1e21 {
        format!("{value}")
    } else {
        float(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

macro_rules! integers {
    ($($kind:ty => $variant:ident as $wide:ty),*) => {
        $(impl From<$kind> for Value {
            fn from(value: $kind) -> Self {
                Self::$variant(<$wide>::from(value))
            }
        })*
    };
}

integers!(i64 => Int as i64, i32 => Int as i64, u8 => Int as i64, u16 => Int as i64, u32 => Int as i64, u64 => Uint as u64);

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::String(text.as_str().into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Nil, Into::into)
    }
}

impl<T: Into<Self>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::list(items)
    }
}

impl From<&BTreeMap<String, String>> for Value {
    fn from(entries: &BTreeMap<String, String>) -> Self {
        Self::strings(entries)
    }
}

impl From<Record> for Value {
    fn from(record: Record) -> Self {
        Self::Record(Arc::new(record))
    }
}

impl From<Lookup> for Value {
    fn from(lookup: Lookup) -> Self {
        Self::Lookup(Arc::new(lookup))
    }
}

impl From<serde_json::Value> for Value {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value as Other;
        match value {
            Other::Null => Self::Nil,
            Other::Bool(value) => Self::Bool(value),
            Other::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(value), _) => Self::Int(value),
                (None, Some(value)) => Self::Uint(value),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Other::String(text) => Self::String(text.into()),
            Other::Array(items) => Self::list(items),
            Other::Object(entries) => Self::map(entries.into_iter().map(|(key, value)| (key, value.into()))),
        }
    }
}
