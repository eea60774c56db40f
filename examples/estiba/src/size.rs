//! Sizes as Docker prints them.

/// A size in decimal units with `digits` significant digits, as go-units' `HumanSizeWithPrecision` writes it: `2.06MB`.
pub(crate) fn human_with(digits: usize, bytes: u64) -> String {
    const UNITS: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    scaled(digits, bytes, 1000.0, &UNITS)
}

/// A size in decimal units with four significant digits: `2.063MB`.
pub(crate) fn human(bytes: u64) -> String {
    human_with(4, bytes)
}

/// A size in binary units with four significant digits: `23.54GiB`.
pub(crate) fn binary(bytes: u64) -> String {
    const UNITS: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    scaled(4, bytes, 1024.0, &UNITS)
}

#[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
fn scaled(digits: usize, bytes: u64, base: f64, units: &[&str]) -> String {
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= base && unit + 1 < units.len() {
        size /= base;
        unit += 1;
    }
    format!("{}{}", significant(digits, size), units[unit])
}

/// C's `%.Ng` of a number that is not negative and has no more digits before its point than `digits`.
fn significant(digits: usize, number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{number:.*e}", digits.saturating_sub(1));
    let exponent: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    if exponent >= i32::try_from(digits).unwrap_or(i32::MAX) {
        // 1000 with three digits is 1e+03.
        let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e+{power:0>2}");
    }
    let decimals = usize::try_from(i32::try_from(digits).unwrap_or(0) - 1 - exponent).unwrap_or(0);
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_go_units() {
        for (bytes, three, four, powers_of_two) in [
            (0, "0B", "0B", "0B"),
            (1, "1B", "1B", "1B"),
            (999, "999B", "999B", "999B"),
            (1000, "1kB", "1kB", "1000B"),
            (1024, "1.02kB", "1.024kB", "1KiB"),
            (1500, "1.5kB", "1.5kB", "1.465KiB"),
            (999_999, "1e+03kB", "1000kB", "976.6KiB"),
            (1_000_000, "1MB", "1MB", "976.6KiB"),
            (2_063_232, "2.06MB", "2.063MB", "1.968MiB"),
            (651_264, "651kB", "651.3kB", "636KiB"),
            (25_276_502_016, "25.3GB", "25.28GB", "23.54GiB"),
            (67_108_864, "67.1MB", "67.11MB", "64MiB"),
            (u64::MAX, "18.4EB", "18.45EB", "16EiB"),
        ] {
            assert_eq!(human_with(3, bytes), three, "{bytes}");
            assert_eq!(human(bytes), four, "{bytes}");
            assert_eq!(binary(bytes), powers_of_two, "{bytes}");
        }
    }
}
