//! Text with all that differs from one run to the next replaced.

/// Lines in which identifiers, times, sizes and the width of columns say nothing any more. `folder` is the run's own.
pub(crate) fn lines(text: &str, folder: &str) -> Vec<String> {
    let text = text.replace(folder, "<folder>").replace('\r', "");
    // Of the machine on which the transcript was written.
    text.lines().filter(|line| !line.contains("IPv4 forwarding is disabled")).map(line).collect()
}

fn line(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !is_of_a_word(c)).unwrap_or(rest.len());
        if end == 0 {
            let length = rest.chars().next().map_or(1, char::len_utf8);
            plain.push_str(&rest[..length]);
            rest = &rest[length..];
        } else {
            plain.push_str(&word(&rest[..end]));
            rest = &rest[end..];
        }
    }
    columns(&spans(&plain))
}

fn is_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._:+-".contains(c)
}

fn word(word: &str) -> String {
    let bare = word.trim_end_matches(['.', ':']);
    let tail = &word[bare.len()..];
    let (algorithm, hash) = bare.split_once(':').unwrap_or(("", bare));
    let of_hash = (algorithm.is_empty() || algorithm == "sha256") && matches!(hash.len(), 12 | 64);
    if of_hash && hash.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f')) {
        let colon = if algorithm.is_empty() { "" } else { ":" };
        return format!("{algorithm}{colon}<id {}>{tail}", hash.len());
    }
    if is_time(bare) {
        return format!("<time>{tail}");
    }
    match shape(bare).as_str() {
        "0000-00-00" => return format!("<date>{tail}"),
        "00:00:00" => return format!("<clock>{tail}"),
        _ => {}
    }
    if is_size(bare) { format!("<size>{tail}") } else { word.to_owned() }
}

/// RFC 3339, but for Go's zero, which means never.
fn is_time(word: &str) -> bool {
    shape(word).starts_with("0000-00-00T") && !word.starts_with("0001-")
}

fn shape(word: &str) -> String {
    word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

fn is_size(word: &str) -> bool {
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &word[number.len()..];
    let units = ["B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB"];
    units.contains(&unit) && number.parse::<f64>().is_ok()
}

/// How long ago something was.
fn spans(line: &str) -> String {
    let mut plain = line.to_owned();
    for phrase in ["Less than a second", "About a minute", "About an hour"] {
        plain = plain.replace(phrase, "<span>");
    }
    for unit in ["seconds", "second", "minutes", "minute", "hours"] {
        let mut from = 0;
        while let Some(at) = plain[from..].find(&format!(" {unit}")).map(|at| at + from) {
            let start = plain[..at].trim_end_matches(|c: char| c.is_ascii_digit()).len();
            if start < at {
                plain.replace_range(start..at + 1 + unit.len(), "<span>");
                from = start + "<span>".len();
            } else {
                from = at + 1;
            }
        }
    }
    plain
}

/// Columns are as wide as what is in them: two spaces say the same.
fn columns(line: &str) -> String {
    let mut plain = String::new();
    let mut spaces = 0;
    for c in line.trim_end().chars() {
        if c == ' ' {
            spaces += 1;
            continue;
        }
        plain.push_str(match spaces {
            0 => "",
            1 => " ",
            _ => "  ",
        });
        spaces = 0;
        plain.push(c);
    }
    plain
}

/// What this module does to examples, checked as a trial of its own (the binary has no harness that finds tests).
pub(crate) fn examples() -> Result<(), String> {
    let hash = "0123456789abcdef".repeat(4);
    for (text, expected) in [
        (hash.clone(), "<id 64>"),
        (format!("sha256:{hash}"), "sha256:<id 64>"),
        ("0123456789ab   image:1    Up 3 seconds".to_owned(), "<id 12>  image:1  Up <span>"),
        ("Exited (3) Less than a second ago".to_owned(), "Exited (3) <span> ago"),
        ("at 2026-01-02T03:04:05.6Z, never 0001-01-01T00:00:00Z".to_owned(), "at <time>, never 0001-01-01T00:00:00Z"),
        ("4.26MB and 0B, but 12 B".to_owned(), "<size> and <size>, but 12 B"),
        ("/tmp/x/file".to_owned(), "<folder>/file"),
        ("00000000a80425fb".to_owned(), "00000000a80425fb"),
    ] {
        let plain = lines(&text, "/tmp/x").concat();
        if plain != expected {
            return Err(format!("{text:?} became {plain:?} instead of {expected:?}"));
        }
    }
    Ok(())
}
