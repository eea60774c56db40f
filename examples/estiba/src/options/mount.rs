//! `--mount` and `--tmpfs`.

use std::path::{Path, PathBuf};

use estiba_engine::{Bind, Engine, Tmpfs, VolumeUse};

use crate::failure::Failure;
use crate::volume::Mount;

/// All that is shown inside.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    pub(super) binds: Vec<Bind>,
    pub(super) volumes: Vec<VolumeUse>,
    pub(super) tmpfs: Vec<Tmpfs>,
}

impl Mounts {
    pub(super) fn add(&mut self, mount: Mount) {
        match mount {
            Mount::Bind(bind) => self.binds.push(bind),
            Mount::Volume(volume) => self.volumes.push(volume),
        }
    }

    /// Adds what another container has, but for places where something is already: `NAME[:ro]`.
    pub(super) async fn take_from(&mut self, engine: &Engine, text: &str) -> Result<(), Failure> {
        let (name, read_only) = match text.rsplit_once(':') {
            Some((name, "ro")) => (name, true),
            Some((name, "rw")) => (name, false),
            Some((_, mode)) => {
                return Err(Failure::new(format!("--volumes-from {text}: the mode {mode:?} must be ro or rw")));
            }
            None => (text, false),
        };
        let other = engine.container(name).await?.record().await?;
        for bind in other.request.binds {
            if !self.has(&bind.destination) {
                self.binds.push(Bind { read_only: bind.read_only || read_only, ..bind });
            }
        }
        for volume in other.volumes {
            if !self.has(&volume.destination) {
                // It goes with the container that it was made for.
                let read_only = volume.read_only || read_only;
                self.volumes.push(VolumeUse { read_only, anonymous: false, ..volume });
            }
        }
        Ok(())
    }

    fn has(&self, place: &str) -> bool {
        let is_it = |other: &String| Path::new(other) == Path::new(place);
        self.binds.iter().any(|bind| is_it(&bind.destination))
            || self.volumes.iter().any(|volume| is_it(&volume.destination))
            || self.tmpfs.iter().any(|tmpfs| is_it(&tmpfs.destination))
    }

    /// Adds what a `--mount` asks for.
    pub(super) fn parse(&mut self, text: &str) -> Result<(), String> {
        match parse(text)? {
            Parsed::Mount(mount) => self.add(mount),
            Parsed::Tmpfs(tmpfs) => self.tmpfs.push(tmpfs),
        }
        Ok(())
    }
}

/// What `--mount` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Mount(Mount),
    Tmpfs(Tmpfs),
}

/// Parses `type=bind,source=/a,target=/b,readonly`, as Docker's command line does.
fn parse(text: &str) -> Result<Parsed, String> {
    let (mut kind, mut source, mut target) = ("volume".to_owned(), None, None);
    let (mut read_only, mut no_copy) = (false, false);
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
            ("volume-nocopy", None) => no_copy = true,
            ("volume-nocopy", Some(value)) => no_copy = crate::flags::boolean(value)?,
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
            Ok(Parsed::Mount(Mount::Bind(Bind { source: PathBuf::from(source), destination, read_only })))
        }
        "tmpfs" if source.is_some() => Err("a memory file system has no source".to_owned()),
        "tmpfs" => {
            if read_only {
                options.push("ro".to_owned());
            }
            Ok(Parsed::Tmpfs(Tmpfs { destination, options }))
        }
        "volume" => {
            if !options.is_empty() {
                return Err("options of tmpfs need type=tmpfs".to_owned());
            }
            let name = source.unwrap_or_default();
            if name.contains('/') {
                return Err("a volume has a name, not a path: use type=bind for a folder".to_owned());
            }
            let anonymous = name.is_empty();
            Ok(Parsed::Mount(Mount::Volume(VolumeUse { name, destination, read_only, anonymous, no_copy })))
        }
        other => Err(format!("the type {other:?} is not supported: use bind, volume or tmpfs")),
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
        let bind =
            |read_only| Parsed::Mount(Mount::Bind(Bind { source: "/tmp".into(), destination: "/b".into(), read_only }));
        let volume = |name: &str, read_only| {
            let anonymous = name.is_empty();
            let volume =
                VolumeUse { name: name.into(), destination: "/b".into(), read_only, anonymous, no_copy: false };
            Parsed::Mount(Mount::Volume(volume))
        };
        for (text, expected) in [
            ("type=bind,source=/tmp,target=/b", Some(bind(false))),
            ("type=bind,src=/tmp,dst=/b,readonly", Some(bind(true))),
            ("type=bind,src=/tmp,destination=/b,ro=false", Some(bind(false))),
            (
                "type=tmpfs,dst=/b,tmpfs-size=1m",
                Some(Parsed::Tmpfs(Tmpfs { destination: "/b".into(), options: vec!["size=1048576".into()] })),
            ),
            ("type=bind,src=/no/such/folder,dst=/b", None),
            ("type=bind,src=tmp,dst=/b", None),
            ("type=bind,src=/tmp", None),
            ("src=x,dst=/b", Some(volume("x", false))),
            ("type=volume,dst=/b,readonly", Some(volume("", true))),
            ("type=volume,src=/x,dst=/b", None),
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
