//! The OCI bundle of a container: `config.json` and the files that stand in for the container's own.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use estiba_runtime::mount::Tree;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::folder::{self, Durability};
use crate::identity::Id;
use crate::record::Record;
use crate::request::{CreateRequest, NetworkMode};
use crate::spec::{self, HostFiles, ImageDefaults};
use crate::user;

/// Writes `config.json` and the files that stand in for the container's own. `mounts` make the root, to be looked at only.
pub(crate) fn write(
    inner: &Inner,
    record: &Record,
    image: &ImageDefaults,
    bundle: &Path,
    mounts: &[oci_spec::runtime::Mount],
) -> Result<()> {
    let request = &record.request;
    let wanted = request.user.as_deref().unwrap_or(&image.user);
    let [passwd, group] = if let Some(accounts) = only_accounts(mounts) {
        accounts
    } else {
        let root = |source| Error::Root { id: record.id.clone(), source: Box::new(source) };
        let tree = Tree::new(mounts).map_err(root)?;
        ACCOUNTS.map(|name| read(&tree, &format!("etc/{name}")))
    };
    let mut identity = user::resolve(wanted, &passwd, &group)?;
    user::add_groups(&mut identity, &request.group_add, &group)?;
    for bind in &request.binds {
        if let Err(error) = fs::symlink_metadata(&bind.source) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(Error::io("use the volume", &bind.source)(error));
            }
            fs::create_dir_all(&bind.source).map_err(Error::io("make the folder", &bind.source))?;
        }
    }
    let hostname = hostname(request, &record.id)?;
    // They can be written from inside, so they lie where the container's other changes do: not in RUN, which may be memory.
    let mut files = host_files(&inner.records.folder(&record.id), request, &hostname)?;
    files.volumes = inner.volume_folders(record)?;
    if request.privileged {
        devices(Path::new("/dev"), &mut files.devices)?;
    }
    let spec = spec::build(&record.id, &record.cgroup, request, image, &identity, &hostname, &files)?;
    let bytes = serde_json::to_vec(&spec).map_err(|source| Error::Spec { field: "config", source: source.into() })?;
    folder::replace(bundle, "config.json", &bytes, Durability::Lazy)
}

/// The host's devices below a folder, but for terminals and what every container has of its own.
fn devices(folder: &Path, found: &mut Vec<LinuxDevice>) -> Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    const OWN: [&str; 7] = ["pts", "shm", "mqueue", "console", "fd", "ptmx", "tty"];
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
        let path = entry.path();
        if OWN.iter().any(|name| path == Path::new("/dev").join(name)) {
            continue;
        }
        // What goes away meanwhile is not there.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let kind = metadata.file_type();
        let typ = match () {
            () if kind.is_dir() => {
                devices(&path, found)?;
                continue;
            }
            () if kind.is_char_device() => LinuxDeviceType::C,
            () if kind.is_block_device() => LinuxDeviceType::B,
            () => continue,
        };
        let device = LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(i64::try_from(nix::sys::stat::major(metadata.rdev())).unwrap_or_default())
            .minor(i64::try_from(nix::sys::stat::minor(metadata.rdev())).unwrap_or_default())
            .file_mode(metadata.mode() & 0o7777)
            .uid(metadata.uid())
            .gid(metadata.gid());
        found.push(spec::built("linux.devices", device.build())?);
    }
    Ok(())
}

/// The files of `/etc` that tell users and groups.
const ACCOUNTS: [&str; 2] = ["passwd", "group"];

/// The same from an overlay's folders, without a mount, which takes a millisecond: where no more than one of them has an
/// `/etc` at all, and both files in it are files or not there, they are what the overlay would show.
fn only_accounts(mounts: &[oci_spec::runtime::Mount]) -> Option<[String; 2]> {
    let [mount] = mounts else { return None };
    if mount.typ().as_deref() != Some("overlay") {
        return None;
    }
    let lower = mount.options().as_ref()?.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    // A colon that is part of a path is escaped.
    if lower.contains('\\') {
        return None;
    }
    let mut found = None;
    for folder in lower.split(':') {
        let path = Path::new(folder).join("etc");
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(metadata) if metadata.is_dir() && found.is_none() => found = Some(path),
            _ => return None,
        }
    }
    let Some(folder) = found else { return Some([const { String::new() }; 2]) };
    let folder =
        fs::File::options().read(true).custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits()).open(folder);
    let folder = folder.ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH);
    let text = |name: &str| match openat2(&folder, name, how).map(fs::File::from) {
        Ok(place) if place.metadata().is_ok_and(|metadata| metadata.is_file()) => Some(text_of(&place)),
        Err(Errno::ENOENT) => Some(String::new()),
        _ => None,
    };
    Some([text(ACCOUNTS[0])?, text(ACCOUNTS[1])?])
}

/// A file of the root, bounded; empty if it is not there or not a text.
fn read(tree: &Tree, path: &str) -> String {
    // Looked at before it is opened: to open a device, which an image can have here, may already do something.
    tree.open(path, OFlag::O_PATH.bits()).map(|place| text_of(&place)).unwrap_or_default()
}

/// The text of a file that was opened with `O_PATH`, bounded; empty if it is not a text or no ordinary file.
pub(crate) fn text_of(place: &fs::File) -> String {
    use std::io::Read;
    let mut text = String::new();
    if place.metadata().is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = fs::File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
        && file.take(user::MAX_FILE).read_to_string(&mut text).is_err()
    {
        text.clear();
    }
    text
}

fn hostname(request: &CreateRequest, id: &Id) -> Result<String> {
    match (&request.hostname, request.network) {
        (Some(name), _) => {
            let fits = (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            if fits {
                Ok(name.clone())
            } else {
                let reason = "it must be 1 to 63 of [a-zA-Z0-9._-]";
                Err(Error::Request { field: "the host name", value: name.clone(), reason })
            }
        }
        (None, NetworkMode::Host) => {
            let name = nix::unistd::gethostname().map_err(Error::errno("read the host name from", "/proc"))?;
            Ok(name.to_string_lossy().into_owned())
        }
        (None, NetworkMode::None | NetworkMode::Connected) => Ok(id.short().to_owned()),
    }
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the container.
fn host_files(folder: &Path, request: &CreateRequest, hostname: &str) -> Result<HostFiles> {
    const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    let host = |path| fs::read_to_string(path).unwrap_or_default();
    let (hosts, resolv_conf) = match request.network {
        NetworkMode::None => (LOCALHOST.to_owned(), String::new()),
        // Its own names follow when it has addresses.
        NetworkMode::Connected => (LOCALHOST.to_owned(), reachable(&host("/etc/resolv.conf"))),
        NetworkMode::Host => (host("/etc/hosts"), host("/etc/resolv.conf")),
    };
    let write = |name: &str, content: &str| -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(Error::io("write", &path))?;
        Ok(path)
    };
    Ok(HostFiles {
        volumes: Vec::new(),
        devices: Vec::new(),
        hostname: write("hostname", &format!("{hostname}\n"))?,
        hosts: write("hosts", &hosts)?,
        resolv_conf: write("resolv.conf", &resolv_conf)?,
    })
}

/// The host's name servers as a container reaches them: not those that listen on the host's own loopback.
fn reachable(resolv_conf: &str) -> String {
    let of_loopback = |line: &str| {
        let server = line.trim().strip_prefix("nameserver").map(str::trim);
        server.and_then(|server| server.parse::<std::net::IpAddr>().ok()).is_some_and(|server| server.is_loopback())
    };
    resolv_conf.lines().filter(|line| !of_loopback(line)).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_the_loopback_are_left_out() {
        let text = "search a\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.1\noptions edns0\n";
        assert_eq!(reachable(text), "search a\nnameserver 10.0.0.1\noptions edns0\n");
    }

    #[test]
    fn accounts_are_read_without_a_mount_only_where_that_is_certain() {
        type Make = fn(&Path);
        let file = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        let shown = |text: &str| Some([text.to_owned(), String::new()]);
        let cases: [(&str, Make, Option<[String; 2]>); 7] = [
            ("none", |_| {}, shown("")),
            ("no file", |root| fs::create_dir_all(root.join("a/etc")).expect("made"), shown("")),
            ("the lower", |_| {}, shown("b")),
            ("both", |root| fs::create_dir_all(root.join("a/etc")).expect("made"), None),
            ("a link", |root| std::os::unix::fs::symlink("x", root.join("b/etc/group")).expect("made"), None),
            ("a folder", |root| fs::create_dir_all(root.join("b/etc/group")).expect("made"), None),
            ("a linked folder", |root| std::os::unix::fs::symlink("b", root.join("a/etc")).expect("made"), None),
        ];
        for (what, make, expected) in cases {
            let root = tempfile::tempdir().expect("a folder");
            for name in ["a", "b"] {
                fs::create_dir(root.path().join(name)).expect("made");
            }
            if !what.starts_with("no") {
                file(&root.path().join("b/etc/passwd"), "b");
            }
            make(root.path());
            let lower = format!("lowerdir={0}/a:{0}/b", root.path().display());
            let mut mount = oci_spec::runtime::Mount::default();
            mount.set_typ(Some("overlay".to_owned()));
            mount.set_options(Some(vec![lower, "ro".to_owned()]));
            assert_eq!(only_accounts(&[mount]), expected, "{what}");
        }
        assert_eq!(only_accounts(&[oci_spec::runtime::Mount::default()]), None);
    }
}
