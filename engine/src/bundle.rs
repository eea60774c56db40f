//! The OCI bundle of a container: `config.json` and the files that stand in for the container's own.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use estiba_runtime::mount::Tree;
use estiba_runtime::rootless::{self, Ids};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::device;
use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::folder::{self, Durability};
use crate::identity::Id;
use crate::record::Record;
use crate::request::{CreateRequest, Dns, ExtraHost, Namespace, NetworkMode};
use crate::sharing::Donors;
use crate::spec::{self, HostFiles, ImageDefaults};
use crate::user;

/// Writes `config.json` and the files that stand in for the container's own. `mounts` make the root, to be looked at only. Returns
/// whose namespaces the configuration names.
pub(crate) fn write(
    inner: &Inner,
    record: &Record,
    image: &ImageDefaults,
    bundle: &Path,
    mounts: &[oci_spec::runtime::Mount],
) -> Result<Donors> {
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
    if rootless::ids() == Ids::Single {
        // The image's own groups are nobody's here. One that was asked for is refused.
        identity.groups.clear();
        if identity.uid != 0 || identity.gid != 0 {
            let reason = "there is root alone, since this user has no subordinate ids (/etc/subuid, /etc/subgid)";
            return Err(Error::Request { field: "the user", value: wanted.to_owned(), reason });
        }
    }
    user::add_groups(&mut identity, &request.group_add, &group)?;
    for bind in &request.binds {
        if let Err(error) = fs::symlink_metadata(&bind.source) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(Error::io("use the volume", &bind.source)(error));
            }
            fs::create_dir_all(&bind.source).map_err(Error::io("make the folder", &bind.source))?;
        }
    }
    let owner = inner.network_owner(record)?;
    // They can be written from inside, so they lie where the container's other changes do: not in RUN, which may be memory.
    let folder = inner.records.folder(&owner);
    let (hostname, mut files) = if owner == record.id {
        let hostname = hostname(request, &record.id)?;
        let files = host_files(&folder, request, &hostname)?;
        (hostname, files)
    } else {
        let path = folder.join("hostname");
        let hostname = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        (hostname.trim().to_owned(), HostFiles::in_folder(&folder))
    };
    files.volumes = inner.volume_folders(record)?;
    if request.privileged {
        device::below(Path::new("/dev"), Path::new("/dev"), &mut files.devices)?;
    }
    for device in &request.devices {
        device::add(device, &mut files)?;
    }
    for limit in &request.device_limits {
        files.device_limits.push((limit.kind, device::number(&limit.device)?, limit.value));
    }
    let donors = inner.donors(request)?;
    files.network = donors.network();
    files.pid = donors.pid();
    let spec = spec::build(&record.id, &record.cgroup, request, image, &identity, &hostname, &files)?;
    let bytes = serde_json::to_vec(&spec).map_err(|source| Error::Spec { field: "config", source: source.into() })?;
    folder::replace(bundle, "config.json", &bytes, Durability::Lazy)?;
    Ok(donors)
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
    if let Some(domain) = &request.domainname
        && (domain.is_empty() || domain.len() > 64)
    {
        let reason = "it must be 1 to 64 characters";
        return Err(Error::Request { field: "the domain name", value: domain.clone(), reason });
    }
    match &request.hostname {
        Some(name) => {
            let fits = (1..=63).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            if fits {
                Ok(name.clone())
            } else {
                let reason = "it must be 1 to 63 of [a-zA-Z0-9._-]";
                Err(Error::Request { field: "the host name", value: name.clone(), reason })
            }
        }
        None if request.network == NetworkMode::Host || request.uts == Namespace::Host => {
            let name = nix::unistd::gethostname().map_err(Error::errno("read the host name from", "/proc"))?;
            Ok(name.to_string_lossy().into_owned())
        }
        None => Ok(id.short().to_owned()),
    }
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of the container.
fn host_files(folder: &Path, request: &CreateRequest, hostname: &str) -> Result<HostFiles> {
    const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    let host = |path| fs::read_to_string(path).unwrap_or_default();
    let (mut hosts, resolv_conf) = match request.network {
        NetworkMode::Host => (host("/etc/hosts"), host("/etc/resolv.conf")),
        // Its own names follow when it has addresses.
        NetworkMode::Connected => (LOCALHOST.to_owned(), reachable(&host("/etc/resolv.conf"))),
        // The files of one that is in another's network are the other one's.
        NetworkMode::None | NetworkMode::Container(_) => (LOCALHOST.to_owned(), String::new()),
    };
    if !request.extra_hosts.is_empty() && !hosts.is_empty() && !hosts.ends_with('\n') {
        hosts.push('\n');
    }
    for ExtraHost { name, address } in &request.extra_hosts {
        let _ = writeln!(hosts, "{address}\t{name}");
    }
    let resolv_conf = resolver(&resolv_conf, &request.dns);
    let write = |name: &str, content: &str| -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join(name);
        fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
            .map_err(Error::io("write", &path))?;
        Ok(path)
    };
    Ok(HostFiles {
        ids: rootless::ids(),
        hostname: write("hostname", &format!("{hostname}\n"))?,
        hosts: write("hosts", &hosts)?,
        resolv_conf: write("resolv.conf", &resolv_conf)?,
        ..HostFiles::default()
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

impl HostFiles {
    /// Those that another container's start has written.
    fn in_folder(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name);
        Self { hostname: file("hostname"), hosts: file("hosts"), resolv_conf: file("resolv.conf"), ..Self::default() }
    }
}

/// `/etc/resolv.conf` with what was asked for instead of what it says of that.
fn resolver(text: &str, dns: &Dns) -> String {
    let stays = |line: &&str| match line.split_ascii_whitespace().next() {
        Some("nameserver") => dns.servers.is_empty(),
        Some("search" | "domain") => dns.search.is_empty(),
        Some("options") => dns.options.is_empty(),
        _ => true,
    };
    let mut lines: Vec<String> = text.lines().filter(stays).map(str::to_owned).collect();
    lines.extend(dns.servers.iter().map(|server| format!("nameserver {server}")));
    if !dns.search.is_empty() && dns.search != ["."] {
        lines.push(format!("search {}", dns.search.join(" ")));
    }
    if !dns.options.is_empty() {
        lines.push(format!("options {}", dns.options.join(" ")));
    }
    lines.iter().flat_map(|line| [line, "\n"]).collect()
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
    fn names_are_asked_where_it_was_said() {
        let host = "# made by hand\nnameserver 10.0.0.1\nsearch a.b\noptions ndots:1";
        let dns = |servers: &[&str], search: &[&str], options: &[&str]| Dns {
            servers: servers.iter().map(|server| server.parse().expect("an address")).collect(),
            search: search.iter().map(|domain| (*domain).to_owned()).collect(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        for (text, dns, expected) in [
            ("", dns(&[], &[], &[]), String::new()),
            (host, dns(&[], &[], &[]), format!("{host}\n")),
            (
                "",
                dns(&["1.2.3.4", "::1"], &["x.y", "z"], &["ndots:3"]),
                "nameserver 1.2.3.4\nnameserver ::1\nsearch x.y z\noptions ndots:3\n".to_owned(),
            ),
            (
                host,
                dns(&["1.2.3.4"], &[], &[]),
                "# made by hand\nsearch a.b\noptions ndots:1\nnameserver 1.2.3.4\n".to_owned(),
            ),
            (host, dns(&[], &["."], &[]), "# made by hand\nnameserver 10.0.0.1\noptions ndots:1\n".to_owned()),
        ] {
            assert_eq!(resolver(text, &dns), expected, "{dns:?}");
        }
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
