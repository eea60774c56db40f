//! `--mount` and `--tmpfs`.

use std::path::{Path, PathBuf};

use estiba_engine::{Bind, Tmpfs};

/// What `--mount` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mount {
    Bind(Bind),
    Tmpfs(Tmpfs),
}

/// Parses `type=bind,source=/a,target=/b,readonly`, as Docker's command line does.
pub(super) fn parse(text: &str) -> Result<Mount, String> {
    let (mut kind, mut source, mut target, mut read_only) = ("volume".to_owned(), None, None, false);
    let mut options = Vec::new();
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value)),
            None => (field.to_ascii_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("type", Some(value)) => kind = value.to_ascii_lowercase(),
            ("source" | "src", Some(value)) => source = Some(value.to_owned()),
            ("target" | "destination" | "dst", Some(value)) => target = Some(value.to_owned()),
            ("readonly" | "ro", None) => read_only = true,
            ("readonly" | "ro", Some(value)) => read_only = crate::flags::boolean(value)?,
            ("tmpfs-size", Some(value)) => options.push(format!("size={}", crate::quantity::bytes(value)?)),
            ("tmpfs-mode", Some(value)) => options.push(format!("mode={value}")),
            ("bind-propagation", Some("rprivate" | "private")) => {}
            (key, _) => {
                return Err(format!(
                    "{key:?} is not supported: use type, source, target, readonly, tmpfs-size and tmpfs-mode"
                ));
            }
        }
    }
    let destination = target.ok_or("the target is missing: add target=/PATH")?;
    if !destination.starts_with('/') {
        return Err("the target must be an absolute path".to_owned());
    }
    match kind.as_str() {
        "bind" => {
            let source = source.ok_or("the source is missing: add source=/PATH")?;
            if !source.starts_with('/') {
                return Err("the source must be an absolute path".to_owned());
            }
            // Unlike -v it makes nothing on the host.
            if !Path::new(&source).exists() {
                return Err(format!("the source {source} does not exist: make it first"));
            }
            if !options.is_empty() {
                return Err("options of tmpfs need type=tmpfs".to_owned());
            }
            Ok(Mount::Bind(Bind { source: PathBuf::from(source), destination, read_only }))
        }
        "tmpfs" if source.is_some() => Err("a memory file system has no source".to_owned()),
        "tmpfs" => {
            if read_only {
                options.push("ro".to_owned());
            }
            Ok(Mount::Tmpfs(Tmpfs { destination, options }))
        }
        "volume" => Err("named volumes are not supported yet: use type=bind,source=/PATH".to_owned()),
        other => Err(format!("the type {other:?} is not supported: use bind or tmpfs")),
    }
}

/// Parses `DIR[:OPTIONS]`.
pub(super) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') {
        return Err("it must be an absolute path, with options after a colon: /tmp:size=64m".to_owned());
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Tmpfs { destination: destination.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        let bind = |read_only| Mount::Bind(Bind { source: "/tmp".into(), destination: "/b".into(), read_only });
        for (text, expected) in [
            ("type=bind,source=/tmp,target=/b", Some(bind(false))),
            ("type=bind,src=/tmp,dst=/b,readonly", Some(bind(true))),
            ("type=bind,src=/tmp,destination=/b,ro=false", Some(bind(false))),
            (
                "type=tmpfs,dst=/b,tmpfs-size=1m",
                Some(Mount::Tmpfs(Tmpfs { destination: "/b".into(), options: vec!["size=1048576".into()] })),
            ),
            ("type=bind,src=/no/such/folder,dst=/b", None),
            ("type=bind,src=tmp,dst=/b", None),
            ("type=bind,src=/tmp", None),
            ("src=x,dst=/b", None),
            ("type=tmpfs,src=/tmp,dst=/b", None),
            ("type=bind,src=/tmp,dst=b", None),
            ("type=npipe,dst=/b", None),
            ("nonsense", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
        assert_eq!(tmpfs("/x:size=1m,exec").map(|tmpfs| tmpfs.options.len()), Ok(2));
        assert!(tmpfs("x").is_err());
    }
}
