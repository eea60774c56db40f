//! Amounts as Docker's options write them: memory in bytes with a unit, CPUs as a decimal number.

/// Parses an amount of memory: a number with an optional unit (`b`, `k`, `m`, `g`, `t`, `p`; also `kb`, `KiB` …), all
/// of them powers of 1024, as in `docker run --memory`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if !unit.ends_with("ib") => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err("it must be a number with b, k, m, g, t or p, such as 512m".into()),
    };
    let unit: u64 = 1 << shift;
    let (whole, fraction) = decimal(number).ok_or("it must be a number with a unit, such as 512m or 1.5g")?;
    // The fraction is in billionths; what it leaves below one byte is dropped.
    let fraction = u64::try_from(u128::from(fraction) * u128::from(unit) / 1_000_000_000).unwrap_or(u64::MAX);
    let total = whole.checked_mul(unit).and_then(|bytes| bytes.checked_add(fraction));
    match total {
        Some(0) => Err("it must be more than nothing".into()),
        Some(bytes) if i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err("it is more than the kernel can count".into()),
    }
}

/// Parses an amount of memory that may be unlimited (-1).
pub(crate) fn bytes_or_any(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    bytes(text).and_then(|bytes| i64::try_from(bytes).map_err(|_| "it is more than the kernel can count".into()))
}

/// The least share of a CPU that the kernel can give: a millisecond in each tenth of a second.
const LEAST_NANO_CPUS: u64 = 10_000_000;

/// Parses a number of CPUs (`1.5`) to billionths of one.
pub(crate) fn nano_cpus(text: &str) -> Result<u64, String> {
    let (whole, fraction) = decimal(text).ok_or("it must be a decimal number, such as 1.5")?;
    match whole.checked_mul(1_000_000_000).and_then(|nanos| nanos.checked_add(fraction)) {
        Some(nanos) if nanos < LEAST_NANO_CPUS => Err("it must be 0.01 or more".into()),
        Some(nanos) if i64::try_from(nanos).is_ok() => Ok(nanos),
        _ => Err("it is more than the kernel can count".into()),
    }
}

/// A decimal number as its whole part and billionths: exact, unlike a float.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    Some((whole, format!("{fraction:0<9}").parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_docker_reads_it() {
        for (text, expected) in [
            ("1", Some(1)),
            ("4096", Some(4096)),
            ("100b", Some(100)),
            ("512k", Some(512 << 10)),
            ("512m", Some(512 << 20)),
            ("512M", Some(512 << 20)),
            ("512mb", Some(512 << 20)),
            ("512MiB", Some(512 << 20)),
            ("512 m", Some(512 << 20)),
            ("1g", Some(1 << 30)),
            ("1.5g", Some(3 << 29)),
            (".5g", Some(1 << 29)),
            ("1t", Some(1 << 40)),
            ("1p", Some(1 << 50)),
            ("", None),
            ("0", None),
            ("0.1b", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1ib", None),
            ("1mm", None),
            ("1..5m", None),
            ("1e3", None),
            ("99999p", None),
            ("18446744073709551615", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn cpus_are_exact() {
        for (text, expected) in [
            ("1", Some(1_000_000_000)),
            ("1.5", Some(1_500_000_000)),
            (".25", Some(250_000_000)),
            ("2.", Some(2_000_000_000)),
            ("0.01", Some(10_000_000)),
            ("0.010000001", Some(10_000_001)),
            ("0.001", None),
            ("0.009999999", None),
            ("0", None),
            ("0.0", None),
            (".", None),
            ("", None),
            ("-1", None),
            ("1,5", None),
            ("0.0000000001", None),
            ("99999999999", None),
        ] {
            assert_eq!(nano_cpus(text).ok(), expected, "{text:?}");
        }
    }
}
