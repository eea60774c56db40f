//! Go's `fmt.Sprint`, `Sprintln` and `Sprintf` for the values of templates.

use std::fmt::Write as _;

use super::value::{Value, float};

/// The widest field that a format may ask for.
const MAX_WIDTH: u64 = 10_000;

/// No longer than this is a value printed before a bound looks at it.
const ROOM: usize = 16 << 20;

/// A value that is passed to a function: no value is nil there.
fn shown(value: &Value) -> String {
    if *value == Value::Missing {
        return "<nil>".to_owned();
    }
    let mut out = String::new();
    value.print(&mut out, ROOM);
    out
}

/// The values, with a space between two of which neither is a string.
pub(super) fn print(values: &[Value]) -> String {
    let mut out = String::new();
    for (index, value) in values.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::String(_));
        if index > 0 && !is_text(value) && !is_text(&values[index - 1]) {
            out.push(' ');
        }
        out.push_str(&shown(value));
    }
    out
}

/// The values with spaces between, and a line feed.
pub(super) fn println(values: &[Value]) -> String {
    let mut out = values.iter().map(shown).collect::<Vec<_>>().join(" ");
    out.push('\n');
    out
}

/// Flags, width and precision of one verb.
#[derive(Debug, Default, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Form {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Formats as Go's `Sprintf` does; stops when `room` bytes were written.
pub(super) fn printf(format: &str, values: &[Value], room: usize) -> String {
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    let mut next = 0;
    while let Some(c) = rest.next() {
        if out.len() > room {
            return out;
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut form = Form::default();
        while let Some(flag) = rest.peek() {
            match flag {
                '-' => form.minus = true,
                '+' => form.plus = true,
                '#' => form.sharp = true,
                ' ' => form.space = true,
                '0' => form.zero = true,
                _ => break,
            }
            rest.next();
        }
        match number(&mut rest, values, &mut next) {
            Some(Err(())) => out.push_str("%!(BADWIDTH)"),
            Some(Ok(width)) => {
                // A negative one is a flag and a width.
                form.minus |= width < 0;
                form.width = Some(width.unsigned_abs() as usize);
            }
            None => {}
        }
        if rest.next_if_eq(&'.').is_some() {
            form.precision = match number(&mut rest, values, &mut next) {
                Some(Ok(precision)) if precision >= 0 => Some(precision as usize),
                Some(_) => {
                    out.push_str("%!(BADPREC)");
                    None
                }
                None => Some(0),
            };
        }
        let Some(verb) = rest.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.get(next) else {
            let _ = write!(out, "%!{verb}(MISSING)");
            continue;
        };
        next += 1;
        write_value(&mut out, &form, verb, value);
    }
    if next < values.len() {
        out.push_str("%!(EXTRA ");
        for (index, value) in values[next..].iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            match value {
                Value::Missing | Value::Nil => out.push_str("<nil>"),
                value => _ = write!(out, "{}={}", value.type_name(), shown(value)),
            }
        }
        out.push(')');
    }
    out
}

/// A width or precision: digits, or `*` for the next value.
fn number(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &[Value],
    next: &mut usize,
) -> Option<Result<i64, ()>> {
    if rest.next_if_eq(&'*').is_some() {
        let value = values.get(*next);
        *next += 1;
        return Some(match value {
            Some(Value::Int(number)) if number.unsigned_abs() <= MAX_WIDTH => Ok(*number),
            _ => Err(()),
        });
    }
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        number = Some((number.unwrap_or(0) * 10 + i64::from(digit)).min(MAX_WIDTH as i64));
        rest.next();
    }
    number.map(Ok)
}

fn pad(out: &mut String, form: &Form, text: &str, zeros: bool) {
    let missing = form.width.unwrap_or(0).saturating_sub(text.chars().count());
    if form.minus {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if zeros && form.zero {
        let sign = usize::from(text.starts_with(['-', '+', ' ']));
        out.push_str(&text[..sign]);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(&text[sign..]);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(text);
    }
}

fn bad_verb(out: &mut String, verb: char, value: &Value) {
    match value {
        Value::Missing | Value::Nil => _ = write!(out, "%!{verb}(<nil>)"),
        value => _ = write!(out, "%!{verb}({}={})", value.type_name(), shown(value)),
    }
}

fn write_value(out: &mut String, form: &Form, verb: char, value: &Value) {
    if verb == 'T' {
        let name = if matches!(value, Value::Missing | Value::Nil) { "<nil>".to_owned() } else { value.type_name() };
        return pad(out, form, &name, false);
    }
    match value {
        Value::Missing | Value::Nil if verb == 'v' => pad(out, form, "<nil>", false),
        Value::Bool(flag) if matches!(verb, 't' | 'v') => pad(out, form, if *flag { "true" } else { "false" }, false),
        Value::Int(number) => integer(out, form, verb, (*number).into(), value),
        Value::Uint(number) => integer(out, form, verb, (*number).into(), value),
        Value::Float(number) => real(out, form, verb, *number, value),
        Value::String(content) => text(out, form, verb, content, value),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.items.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                write_value(out, form, verb, item);
            }
            out.push(']');
        }
        Value::Map(map) => {
            out.push_str("map[");
            for (index, (key, item)) in map.entries.iter().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                text(out, form, verb, key, &Value::from(key));
                out.push(':');
                write_value(out, form, verb, item);
            }
            out.push(']');
        }
        Value::Record(record) => {
            out.push('{');
            for (index, name) in record.names().enumerate() {
                if index > 0 {
                    out.push(' ');
                }
                if form.plus && verb == 'v' {
                    let _ = write!(out, "{name}:");
                }
                write_value(out, form, verb, record.get(name).unwrap_or(&Value::Nil));
            }
            out.push('}');
        }
        value => bad_verb(out, verb, value),
    }
}

fn integer(out: &mut String, form: &Form, verb: char, number: i128, value: &Value) {
    let magnitude = number.unsigned_abs();
    let prefix = |prefix| if form.sharp { prefix } else { "" };
    let mut digits = match verb {
        'd' | 'v' => magnitude.to_string(),
        'b' => format!("{}{magnitude:b}", prefix("0b")),
        'o' => format!("{}{magnitude:o}", prefix("0")),
        'O' => format!("0o{magnitude:o}"),
        'x' => format!("{}{magnitude:x}", prefix("0x")),
        'X' => format!("{}{magnitude:X}", prefix("0X")),
        'c' | 'q' | 'U' => {
            let c = u32::try_from(magnitude).ok().filter(|_| number >= 0).and_then(char::from_u32);
            let shown = match verb {
                'c' => c.unwrap_or('\u{fffd}').to_string(),
                'q' => format!("{:?}", c.unwrap_or('\u{fffd}')),
                _ => format!("U+{magnitude:04X}"),
            };
            return pad(out, form, &shown, false);
        }
        _ => return bad_verb(out, verb, value),
    };
    if let Some(precision) = form.precision {
        if digits.len() < precision {
            digits.insert_str(0, &"0".repeat(precision - digits.len()));
        }
        if precision == 0 && number == 0 {
            digits.clear();
        }
    }
    let sign = if number < 0 {
        "-"
    } else if form.plus && verb != 'v' {
        "+"
    } else if form.space {
        " "
    } else {
        ""
    };
    pad(out, form, &format!("{sign}{digits}"), form.precision.is_none());
}

fn real(out: &mut String, form: &Form, verb: char, number: f64, value: &Value) {
    let exponent = |text: String| -> String {
        // Go writes two digits of the exponent at least, and its sign.
        let Some((digits, power)) = text.split_once('e') else { return text };
        let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
        format!("{digits}e{sign}{power:0>2}")
    };
    let text = match verb {
        'v' => form.precision.map_or_else(|| float(number), |precision| general(number, precision)),
        'g' | 'G' => form.precision.map_or_else(|| float(number), |precision| general(number, precision)),
        'f' | 'F' => format!("{number:.*}", form.precision.unwrap_or(6)),
        'e' | 'E' => exponent(format!("{number:.*e}", form.precision.unwrap_or(6))),
        _ => return bad_verb(out, verb, value),
    };
    let text = if matches!(verb, 'E' | 'G') { text.to_uppercase() } else { text };
    let sign = match (text.starts_with(['-', '+']), form.plus && verb != 'v', form.space) {
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    pad(out, form, &format!("{sign}{text}"), number.is_finite());
}

/// `%.Ng`: that many significant digits, without zeros at the end.
fn general(number: f64, precision: usize) -> String {
    let precision = precision.max(1);
    let scientific = format!("{number:.*e}", precision - 1);
    let Some((digits, power)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = power.parse().unwrap_or(0);
    let trimmed = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    if exponent < -4 || exponent >= i32::try_from(precision).unwrap_or(i32::MAX) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(digits), exponent.abs());
    }
    let decimals = i64::try_from(precision).unwrap_or(0) - 1 - i64::from(exponent);
    trimmed(&format!("{number:.*}", usize::try_from(decimals).unwrap_or(0)))
}

fn text(out: &mut String, form: &Form, verb: char, content: &str, value: &Value) {
    let cut: String = match form.precision {
        Some(precision) if matches!(verb, 's' | 'v' | 'q') => content.chars().take(precision).collect(),
        _ => content.to_owned(),
    };
    match verb {
        'v' if form.sharp => pad(out, form, &quoted(&cut), false),
        's' | 'v' => pad(out, form, &cut, true),
        'q' if form.sharp && !cut.contains('`') => pad(out, form, &format!("`{cut}`"), false),
        'q' => pad(out, form, &quoted(&cut), false),
        'x' | 'X' => {
            let mut hex = String::new();
            for byte in content.bytes() {
                let _ = if verb == 'x' { write!(hex, "{byte:02x}") } else { write!(hex, "{byte:02X}") };
            }
            pad(out, form, &hex, false);
        }
        _ => bad_verb(out, verb, value),
    }
}

/// A string in Go's quotes.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c if c.is_control() || matches!(c, '\u{ad}' | '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
