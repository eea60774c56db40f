//! `-v SRC:DST[:OPTIONS]`: what Docker's command line adds to a bind, before the engine judges it.

use std::path::Path;

use estiba_engine::Bind;

/// Parses a volume as Docker's command line does: a source that starts with `.` is relative to `directory`, and `z`
/// and `Z` (relabel for SELinux) mean nothing where SELinux is off.
pub(crate) fn bind(text: &str, directory: &Path, selinux: SeLinux) -> Result<Bind, String> {
    let mut parts: Vec<String> = text.split(':').map(str::to_owned).collect();
    if let Some(source) = parts.first_mut()
        && (source == "." || source == ".." || source.starts_with("./") || source.starts_with("../"))
    {
        let absolute = directory.join(&source);
        absolute.to_str().ok_or("the current folder's path is not UTF-8")?.clone_into(source);
    }
    if let [_, _, options] = parts.as_mut_slice() {
        let (labels, others): (Vec<&str>, Vec<&str>) =
            options.split(',').partition(|option| matches!(*option, "z" | "Z"));
        if !labels.is_empty() && selinux == SeLinux::On {
            return Err("relabelling (z, Z) is not supported yet, and SELinux is on here".into());
        }
        *options = others.join(",");
    }
    parts.join(":").parse().map_err(|error: estiba_engine::Error| error.to_string())
}

/// Whether the kernel enforces or logs SELinux's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeLinux {
    On,
    Off,
}

impl SeLinux {
    /// Asks the kernel: selinuxfs is there when SELinux is enabled.
    pub(crate) fn detect() -> Self {
        if Path::new("/sys/fs/selinux/enforce").exists() { Self::On } else { Self::Off }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, String, bool)> {
        let bind = bind(text, Path::new("/work"), SeLinux::Off).ok()?;
        Some((bind.source.to_str()?.to_owned(), bind.destination, bind.read_only))
    }

    #[test]
    fn volumes_are_read() {
        for (text, expected) in [
            ("/a:/b", Some(("/a", "/b", false))),
            ("/a:/b:ro", Some(("/a", "/b", true))),
            ("/a:/b:rw", Some(("/a", "/b", false))),
            ("/a:/b:z", Some(("/a", "/b", false))),
            ("/a:/b:ro,Z", Some(("/a", "/b", true))),
            ("./a:/b", Some(("/work/./a", "/b", false))),
            ("../a:/b:ro", Some(("/work/../a", "/b", true))),
            (".:/b", Some(("/work/.", "/b", false))),
            ("name:/b", None),
            (".hidden:/b", None),
            ("/a", None),
            ("/a:b", None),
            ("/a:/", None),
            ("/a:/b:exec", None),
            ("/a:/b:ro:z", None),
            ("", None),
        ] {
            let expected =
                expected.map(|(source, target, read_only)| (source.to_owned(), target.to_owned(), read_only));
            assert_eq!(read(text), expected, "{text:?}");
        }
    }

    #[test]
    fn labels_are_refused_where_they_mean_something() {
        assert!(bind("/a:/b:z", Path::new("/"), SeLinux::On).is_err());
        assert!(bind("/a:/b:ro", Path::new("/"), SeLinux::On).is_ok());
    }
}
