//! Moments as text: [RFC 3339](https://www.rfc-editor.org/rfc/rfc3339), in UTC, with nanoseconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment in RFC 3339, in UTC, with nine digits of the second: always 30 bytes long until the year 9999.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// Reads a moment in RFC 3339, with any number of digits of the second and any offset; `None` if it is none, or before 1970.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, wanted: &[u8]| text.as_bytes().get(at).is_some_and(|byte| wanted.contains(byte));
    let signs = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":");
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    // A leap second is 60.
    if !signs || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let nine: String = fraction[..digits].chars().chain("000000000".chars()).take(9).collect();
        nanos = nine.parse().ok().filter(|_| digits > 0)?;
        rest = &fraction[digits..];
    }
    let (east, offset) = match rest.as_bytes() {
        [b'Z' | b'z'] => (true, 0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] if [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()) => {
            let two = |tens: &u8, ones: &u8| u64::from(tens - b'0') * 10 + u64::from(ones - b'0');
            (*sign == b'+', two(h1, h2) * 3600 + two(m1, m2) * 60)
        }
        _ => return None,
    };
    let local = days(year, month, day)?.checked_mul(86_400)? + hour * 3600 + minute * 60 + second;
    let seconds = if east { local.checked_sub(offset)? } else { local.checked_add(offset)? };
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Year, month and day of a number of days since 1970 in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from March of the year 0, so that the leap day comes last: 400 years have 146,097 days.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`]; `None` before 1970.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted = (month + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (1_795_470_306, 5, "2026-11-23T21:45:06.000000005Z"),
        ];
        for (seconds, nanos, expected) in cases {
            let moment = UNIX_EPOCH + Duration::new(seconds, nanos);
            assert_eq!(rfc3339(moment), expected);
            assert_eq!(parse_rfc3339(expected), Some(moment));
        }
    }

    #[test]
    fn other_ways_to_write_a_moment_are_read_and_nonsense_is_not() {
        let moment = UNIX_EPOCH + Duration::new(1_795_470_306, 500_000_000);
        for text in
            ["2026-11-23T21:45:06.5Z", "2026-11-23t23:45:06.50+02:00", "2026-11-23 20:15:06.5000000000001-01:30"]
        {
            assert_eq!(parse_rfc3339(text), Some(moment), "{text}");
        }
        assert!(parse_rfc3339("2026-11-23T21:45:06Z").is_some());
        for text in [
            "",
            "2026",
            "2026-11-23T21:45:06",
            "2026-11-23T21:45:06.Z",
            "2026-13-23T21:45:06Z",
            "2026-00-23T21:45:06Z",
            "2026-11-23T24:45:06Z",
            "2026-11-23T21:45:06+0200",
            "1969-12-31T23:59:59Z",
            "+026-11-23T21:45:06Z",
            "2026-11-23T21:45:06Zx",
            "日本語日本語日本語日本語",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
