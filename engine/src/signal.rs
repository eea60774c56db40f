//! Signals by name or number.

/// The number of a signal that is written as a number (`15`) or a name (`SIGTERM`, `term`, `RTMIN+3`).
pub(crate) fn parse(text: &str) -> Option<i32> {
    use nix::libc::{SIGRTMAX, SIGRTMIN};
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| text.parse::<i32>().ok().filter(|offset| (0..=30).contains(offset));
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return if rest.is_empty() {
            Some(SIGRTMIN())
        } else {
            offset(rest.strip_prefix('+')?).map(|n| SIGRTMIN() + n)
        };
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return if rest.is_empty() {
            Some(SIGRTMAX())
        } else {
            offset(rest.strip_prefix('-')?).map(|n| SIGRTMAX() - n)
        };
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("15", Some(15)),
            ("TERM", Some(15)),
            ("sigterm", Some(15)),
            ("SIGKILL", Some(9)),
            ("64", Some(64)),
            ("65", None),
            ("0", None),
            ("RTMIN+1", Some(nix::libc::SIGRTMIN() + 1)),
            ("SIGRTMAX-1", Some(nix::libc::SIGRTMAX() - 1)),
            ("RTMIN1", None),
            ("NOTHING", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
