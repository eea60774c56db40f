//! Platforms, and which image of an index fits one.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// An operating system, a CPU architecture and its variant, in Go's words: `linux/amd64`, `linux/arm/v7`.
///
/// Parsing normalises as containerd does: `x86_64` is `amd64`, `aarch64` and `arm64/v8` are `arm64`, `armhf` is `arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// A platform, normalised.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("i386" | "i686" | "x86", _) => ("386", None),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The platform that this program runs on.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, host_variant())
    }

    /// The operating system: `linux`.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture as Go names it: `amd64`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The architecture's variant, if it is not the common one: `v7`.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `candidate` runs on this platform: 0 is best, `None` is not at all.
    ///
    /// A processor runs what was built for lesser variants of its own (`arm/v7` runs `v6` and `v5`, `amd64/v3` runs `v2`),
    /// and, after those, its 32-bit forebear's programs, as containerd has it.
    #[must_use]
    pub fn rank(&self, candidate: &Self) -> Option<u32> {
        if self.os != candidate.os {
            return None;
        }
        let wanted = candidate.level();
        let forebear = match (self.architecture.as_str(), candidate.architecture.as_str()) {
            ("amd64", "386") => return Some(1000),
            ("arm64", "arm") => (8, 1000),
            (ours, theirs) if ours == theirs => (self.level()?, 0),
            _ => return None,
        };
        if self.architecture == candidate.architecture && self.variant == candidate.variant {
            return Some(0);
        }
        let (ours, base) = forebear;
        ours.checked_sub(wanted?).map(|distance| base + distance)
    }

    /// The variant as a number that grows with the processor's abilities; `None` for a variant without order.
    fn level(&self) -> Option<u32> {
        let Some(variant) = self.variant.as_deref() else {
            return Some(if self.architecture == "arm64" { 80 } else { 1 });
        };
        let digits = variant.strip_prefix('v')?;
        if self.architecture != "arm64" {
            return digits.parse().ok().filter(|level| *level < 100);
        }
        let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        (major < 100 && minor < 10).then_some(major * 10 + minor)
    }
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    let v2 =
        is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt") && is_x86_feature_detected!("ssse3");
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (true, true, true) => Some("v4"),
        (true, true, false) => Some("v3"),
        (true, false, _) => Some("v2"),
        (false, ..) => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = parts.iter().all(|part| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        });
        match parts.as_slice() {
            [os, architecture] if valid => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if valid => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(Error::InvalidPlatform { text: text.to_owned() }),
        }
    }
}

impl From<&oci_spec::image::Platform> for Platform {
    fn from(platform: &oci_spec::image::Platform) -> Self {
        Self::new(&platform.os().to_string(), &platform.architecture().to_string(), platform.variant().as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn normalises_as_containerd_does() {
        let cases = [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/riscv64", "linux/riscv64"),
        ];
        for (text, wanted) in cases {
            assert_eq!(platform(text).to_string(), wanted, "{text}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/a/b/c", "linux/a b"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ranks_what_runs() {
        // For each host the candidates in the order of preference; then those that do not run.
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "linux/amd64/v3",
                &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"],
                &["linux/amd64/v4", "linux/arm64", "windows/amd64", "linux/amd64/odd"],
            ),
            ("linux/amd64", &["linux/amd64", "linux/386"], &["linux/amd64/v2"]),
            ("linux/arm/v7", &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"], &["linux/arm/v8", "linux/arm64"]),
            ("linux/arm64", &["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v5"], &["linux/arm64/v9"]),
            ("linux/arm64/v9", &["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64"], &["linux/amd64"]),
            ("linux/ppc64le", &["linux/ppc64le"], &["linux/ppc64"]),
        ];
        for (host, run, not) in cases {
            let host = platform(host);
            let ranks: Vec<_> = run.iter().map(|text| host.rank(&platform(text))).collect();
            assert!(ranks.iter().all(Option::is_some), "{host}: {ranks:?}");
            assert!(ranks.is_sorted() && ranks.windows(2).all(|pair| pair[0] != pair[1]), "{host}: {ranks:?}");
            for text in *not {
                assert_eq!(host.rank(&platform(text)), None, "{host} and {text}");
            }
        }
        assert_eq!(Platform::host().rank(&Platform::host()), Some(0));
    }
}
