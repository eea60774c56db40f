//! `-v [SRC:]DST[:OPTIONS]`: what Docker's command line makes of it, before the engine judges it.

use std::path::Path;

use estiba_engine::{Bind, VolumeUse};

/// What is shown inside of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mount {
    /// A folder or file of this machine.
    Bind(Bind),
    /// A volume; one without a name is the container's own.
    Volume(VolumeUse),
}

/// Parses a volume as Docker's command line does: a source that starts with `.` is relative to `directory`, one without a
/// slash is a volume's name, and without a source the container gets a volume of its own. `z` and `Z` (relabel for SELinux)
/// mean nothing where SELinux is off.
pub(crate) fn parse(text: &str, directory: &Path, selinux: SeLinux) -> Result<Mount, String> {
    let invalid = |reason: &str| format!("the volume {text:?} is refused: {reason}");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts.as_slice() {
        [destination] => (None, *destination, ""),
        [source, destination] => (Some(*source), *destination, ""),
        [source, destination, options] => (Some(*source), *destination, *options),
        _ => return Err(invalid("it must be SRC:DST, SRC:DST:ro, NAME:DST or DST")),
    };
    if !destination.starts_with('/') || destination.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(invalid("the destination must be an absolute path other than /"));
    }
    let (mut read_only, mut no_copy) = (false, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "nocopy" => no_copy = true,
            "z" | "Z" if selinux == SeLinux::Off => {}
            "z" | "Z" => return Err(invalid("relabelling (z, Z) is not supported yet, and SELinux is on here")),
            "rprivate" | "private" => {}
            _ => return Err(invalid("only the options ro, rw and nocopy are supported")),
        }
    }
    let destination = destination.to_owned();
    let volume = |name: &str| {
        let anonymous = name.is_empty();
        Mount::Volume(VolumeUse {
            name: name.to_owned(),
            destination: destination.clone(),
            read_only,
            anonymous,
            no_copy,
        })
    };
    let Some(source) = source else { return Ok(volume("")) };
    let is_relative = source == "." || source == ".." || source.starts_with("./") || source.starts_with("../");
    if !is_relative && !source.starts_with('/') {
        return match source {
            "" => Err(invalid("the source is empty")),
            name if name.contains('/') => {
                Err(invalid("the source must be an absolute path, or one that starts with ./"))
            }
            name => Ok(volume(name)),
        };
    }
    if no_copy {
        return Err(invalid("nocopy is for volumes, and this is a folder"));
    }
    Ok(Mount::Bind(Bind { source: directory.join(source), destination, read_only }))
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
        match parse(text, Path::new("/here"), SeLinux::Off).ok()? {
            Mount::Bind(bind) => Some((bind.source.to_str()?.to_owned(), bind.destination, bind.read_only)),
            Mount::Volume(volume) => Some((volume.name, volume.destination, volume.read_only)),
        }
    }

    #[test]
    fn volumes_are_read() {
        for (text, expected) in [
            ("/a:/b", Some(("/a", "/b", false))),
            ("/a:/b:ro", Some(("/a", "/b", true))),
            ("/a:/b:rw", Some(("/a", "/b", false))),
            ("/a:/b:z", Some(("/a", "/b", false))),
            ("/a:/b:ro,Z", Some(("/a", "/b", true))),
            ("./a:/b", Some(("/here/./a", "/b", false))),
            ("../a:/b:ro", Some(("/here/../a", "/b", true))),
            (".:/b", Some(("/here/.", "/b", false))),
            ("name:/b", Some(("name", "/b", false))),
            ("name:/b:ro,nocopy", Some(("name", "/b", true))),
            (".hidden:/b", Some((".hidden", "/b", false))),
            ("/data", Some(("", "/data", false))),
            ("/a:/b:nocopy", None),
            ("a/b:/c", None),
            (":/b", None),
            ("a", None),
            ("/a:b", None),
            ("/a:/", None),
            ("/a:/.", None),
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
        assert!(parse("/a:/b:z", Path::new("/"), SeLinux::On).is_err());
        assert!(parse("/a:/b:ro", Path::new("/"), SeLinux::On).is_ok());
    }
}
