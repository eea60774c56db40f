//! Points in time: as Docker prints them, and as `--since` and `--until` name them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::duration;

/// The time that Go takes for none.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// RFC 3339 in UTC, with the nanoseconds that are not zero: what `inspect` shows.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let time = timestamp(time);
    let text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    let nanos = format!("{:09}", time.subsec_nanosecond());
    match nanos.trim_end_matches('0') {
        "" => format!("{text}Z"),
        nanos => format!("{text}.{nanos}Z"),
    }
}

/// RFC 3339 in UTC, with nine digits of nanoseconds: the form of `logs -t`.
pub(crate) fn rfc3339_nano(time: SystemTime) -> String {
    timestamp(time).strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

/// RFC 3339 in the local time zone, with nine digits: the form of `events`.
pub(crate) fn rfc3339_local(time: SystemTime) -> String {
    let zoned = timestamp(time).to_zoned(TimeZone::system());
    let text = zoned.strftime("%Y-%m-%dT%H:%M:%S.%9f").to_string();
    if zoned.offset().is_zero() { format!("{text}Z") } else { format!("{text}{}", zoned.strftime("%:z")) }
}

/// RFC 3339 in the local time zone, to the second: the form of `history`.
pub(crate) fn rfc3339_seconds(time: SystemTime) -> String {
    let zoned = timestamp(time).to_zoned(TimeZone::system());
    let text = zoned.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    if zoned.offset().is_zero() { format!("{text}Z") } else { format!("{text}{}", zoned.strftime("%:z")) }
}

/// Go's `time.String()` of a time with whole seconds, in the local time zone: `2006-01-02 15:04:05 -0700 MST`.
pub(crate) fn listed(time: SystemTime) -> String {
    timestamp(time).to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string()
}

/// How long ago a time was, in Docker's words. A time in the future (the clock was set back) was just now.
pub(crate) fn ago(time: SystemTime) -> String {
    format!("{} ago", span(time))
}

/// The time from then to now, in Docker's words.
pub(crate) fn span(time: SystemTime) -> String {
    duration::human(SystemTime::now().duration_since(time).unwrap_or_default())
}

/// Reads a time that an image or a log names. What cannot be read, and Go's year 1, is none.
pub(crate) fn read(text: &str) -> Option<SystemTime> {
    let time: Timestamp = text.parse().ok()?;
    (time.as_second() > -60_000_000_000).then(|| time.into())
}

/// Parses what `--since` and `--until` take: a duration before `now` (`10m`), seconds since 1970 with a fraction, or a
/// date with or without time and zone.
pub(crate) fn parse(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    parse_in(text, now, &TimeZone::system())
}

fn parse_in(text: &str, now: SystemTime, zone: &TimeZone) -> Result<SystemTime, String> {
    let invalid = || format!("{text:?} is not a time: give 10m, 2006-01-02T15:04:05 or seconds since 1970");
    if let Some(time) = unix(text) {
        return time.ok_or_else(invalid);
    }
    // A duration before now; a negative one lies ahead.
    if let Some(ahead) = text.strip_prefix('-').and_then(|text| duration::parse(text).ok()) {
        return now.checked_add(ahead).ok_or_else(invalid);
    }
    if let Ok(back) = duration::parse(text) {
        return Ok(now.checked_sub(back).unwrap_or(UNIX_EPOCH));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.into());
    }
    if let Ok(zoned) = text.parse::<Zoned>() {
        return Ok(zoned.timestamp().into());
    }
    let forms = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H"];
    let civil = forms.iter().find_map(|form| civil::DateTime::strptime(form, text).ok());
    let civil = civil.or_else(|| civil::Date::strptime("%Y-%m-%d", text).ok().map(Into::into));
    if let Some(civil) = civil {
        return civil.to_zoned(zone.clone()).map(|zoned| zoned.timestamp().into()).map_err(|_| invalid());
    }
    // A date with a zone but without a time of the day, or without seconds.
    let forms = ["%Y-%m-%dT%H:%M%:z", "%Y-%m-%dT%H%:z"];
    let zoned = forms.iter().find_map(|form| Timestamp::strptime(form, text).ok());
    let date = text.strip_suffix('Z').unwrap_or(text);
    let zoned = zoned.or_else(|| {
        let forms = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H"];
        let civil = forms.iter().find_map(|form| civil::DateTime::strptime(form, date).ok());
        let civil = civil.or_else(|| civil::Date::strptime("%Y-%m-%d", date).ok().map(Into::into))?;
        (date.len() < text.len()).then(|| civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp()))?
    });
    zoned.map(Into::into).ok_or_else(invalid)
}

/// Seconds since 1970, with a fraction of up to nine digits. The outer `None`: it is something else.
#[expect(clippy::option_option, reason = "it is no number, or one that is no time")]
fn unix(text: &str) -> Option<Option<SystemTime>> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    let time = seconds.parse().ok().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::new(seconds, nanos)));
    Some(time.filter(|time| Timestamp::try_from(*time).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        let time = at(1_795_734_026, 548_354_994);
        assert_eq!(rfc3339(time), "2026-11-26T23:00:26.548354994Z");
        assert_eq!(rfc3339(at(1_795_734_026, 541_413_860)), "2026-11-26T23:00:26.54141386Z");
        assert_eq!(rfc3339(at(1_795_734_026, 0)), "2026-11-26T23:00:26Z");
        assert_eq!(rfc3339_nano(at(1_795_734_026, 0)), "2026-11-26T23:00:26.000000000Z");
        assert_eq!(read("2026-11-26T23:00:26.548354994Z"), Some(time));
        assert_eq!(read("2026-11-26T23:00:26.548354994+00:00"), Some(time));
        assert_eq!(read(NEVER), None);
        assert_eq!(read("yesterday"), None);
    }

    #[test]
    fn since_and_until_are_read() {
        let now = at(1_000_000, 0);
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        for (text, expected) in [
            ("10m", at(1_000_000 - 600, 0)),
            ("1h30m", at(1_000_000 - 5400, 0)),
            ("0s", now),
            ("-10s", at(1_000_010, 0)),
            ("0", UNIX_EPOCH),
            ("1136073600", at(1_136_073_600, 0)),
            ("1136073600.5", at(1_136_073_600, 500_000_000)),
            ("1136073600.000000001", at(1_136_073_600, 1)),
            ("2006-01-02T15:04:05Z", at(1_136_214_245, 0)),
            ("2006-01-02T15:04:05.5Z", at(1_136_214_245, 500_000_000)),
            ("2006-01-02T15:04:05+02:00", at(1_136_214_245 - 7200, 0)),
            ("2006-01-02T15:04:05", at(1_136_214_245 - 7200, 0)),
            ("2006-01-02T15:04:05.25", at(1_136_214_245 - 7200, 250_000_000)),
            ("2006-01-02T15:04", at(1_136_214_240 - 7200, 0)),
            ("2006-01-02T15", at(1_136_214_000 - 7200, 0)),
            ("2006-01-02", at(1_136_160_000 - 7200, 0)),
            ("2006-01-02Z", at(1_136_160_000, 0)),
            ("2006-01-02T15:04Z", at(1_136_214_240, 0)),
        ] {
            assert_eq!(parse_in(text, now, &zone), Ok(expected), "{text}");
        }
        for text in ["", "x", "2006-13-01", "yesterday", "1.2.3", "99999999999999999999", "2006-01-02T25:00:00"] {
            assert!(parse_in(text, now, &zone).is_err(), "{text:?}");
        }
    }
}
