//! The root and what is mounted in it.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::option::{Attributes, Options, parse};
use super::{Filesystem, IdMap, Late, Open, Planner, Step, Target, c_path, c_string, invalid, label, unsupported};
use crate::sys::mount::{Depth, attribute};
use crate::{Error, Result, RootSwitch};

/// Files of /proc that a container may be shown in another version, as lxcfs makes them. A mount over any other part of it could
/// make security settings go elsewhere.
const OVER_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Parameters of a tmpfs.
const OF_TMPFS: [&str; 7] = ["mode", "size", "nr_blocks", "nr_inodes", "uid", "gid", "huge"];

impl Planner<'_> {
    /// Everything from the first mount to the switched root.
    pub(super) fn root(&mut self) -> Result<()> {
        let root_propagation = self.root_propagation()?;
        let hooked = self.hooked();
        self.steps.push(Step::Umask(0));
        if self.unattached() {
            if root_propagation.is_some() {
                return Err(invalid("linux.rootfsPropagation", "it needs a mount namespace"));
            }
            self.steps.push(Step::TakeRoot);
        } else {
            if !self.host.features.mount_setattr {
                self.steps.push(Step::PrivateProc);
            }
            self.steps.push(Step::PrivateMounts);
        }
        // Anywhere will do, and "/" needs no lookup; but hooks want to find it at its path.
        let at = match self.host.root_path {
            Some(path) if hooked => c_path(path, "root.path")?,
            _ => c"/".to_owned(),
        };
        let elsewhere = at.as_c_str() != c"/";
        let from = match self.host.root_path {
            Some(path) if self.host.rootless => Some(c_path(path, "root.path")?),
            None if self.host.rootless => return Err(invalid("root.path", "without root, a folder is needed")),
            _ => None,
        };
        if !self.unattached() {
            self.steps.push(Step::AttachRoot { at, from });
        }
        let mut deferred = Vec::new();
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        for (at, mount) in mounts.iter().enumerate() {
            self.mount(mount, &format!("mounts[{at}]"), root_propagation, &mut deferred)?;
        }
        if !mounts.iter().any(is_dev_bind) {
            self.devices()?;
        }
        self.listed_devices()?;
        if hooked {
            self.steps.push(Step::Hooks);
        }
        self.steps.push(match self.host.root_switch {
            _ if self.unattached() => Step::Chroot { elsewhere: false },
            RootSwitch::Pivot => Step::Pivot,
            RootSwitch::Chroot => Step::Chroot { elsewhere },
        });
        // Slave is what it is from the start.
        if let Some(propagation) = root_propagation.filter(|kind| *kind != libc::MS_SLAVE) {
            self.steps.push(Step::RootPropagation(propagation));
        }
        self.steps.push(Step::Directory(self.program()?.cwd()?));
        if self.unattached() {
            // The kernel changes no mount there that lies on another: a read-only copy goes over it.
            deferred = deferred.into_iter().map(Step::laid_over).collect();
        }
        self.steps.append(&mut deferred);
        if self.spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true)) {
            self.steps.push(Step::Readonly(Target::new(Path::new("/"), "root.readonly")?));
        }
        self.hidden_paths()
    }

    /// Hooks that run when the root is made but not yet switched.
    fn hooked(&self) -> bool {
        self.spec.hooks().as_ref().is_some_and(|hooks| {
            #[allow(deprecated, reason = "prestart is still what many hooks are")]
            let lists = [hooks.prestart(), hooks.create_runtime(), hooks.create_container()];
            lists.into_iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
        })
    }

    fn root_propagation(&self) -> Result<Option<u64>> {
        let field = "linux.rootfsPropagation";
        let text = self.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or("");
        match text {
            "" => Ok(None),
            "shared" | "rshared" => Ok(Some(libc::MS_SHARED)),
            "slave" | "rslave" => Ok(Some(libc::MS_SLAVE)),
            "private" | "rprivate" => Ok(Some(libc::MS_PRIVATE)),
            "unbindable" | "runbindable" => Ok(Some(libc::MS_UNBINDABLE)),
            other => Err(invalid(field, format!("{other:?} is none of shared, slave, private, unbindable"))),
        }
    }

    fn mount(
        &mut self,
        mount: &Mount,
        field: &str,
        root_propagation: Option<u64>,
        deferred: &mut Vec<Step>,
    ) -> Result<()> {
        let destination = self.inside(&clean(mount.destination()));
        let target = Target::new(&destination, field)?;
        let mut options = parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|option| unsupported(field, format!("option {option:?}")))?;
        let kind = mount.typ().as_deref().unwrap_or("none");
        if kind == "bind" && options.bind.is_none() {
            options.bind = Some(Depth::Top);
        }
        let idmap = self.idmap(mount, &options, field)?;
        if idmap.is_some() && options.bind.is_none() {
            return Err(unsupported(field, "idmap of a mount that is no bind"));
        }
        if options.copy_up && (kind != "tmpfs" || options.bind.is_some()) {
            return Err(unsupported(field, "tmpcopyup of a mount that is no tmpfs"));
        }
        if target.len() == 0 {
            return Err(unsupported(field, "a mount over the root"));
        }
        self.check_proc(&destination, kind, &options, field)?;
        if options.bind.is_some() {
            let source = mount.source().as_ref().ok_or_else(|| invalid(field, "a bind needs a source"))?;
            let source = self.host.bundle.join(source);
            self.mounted.push(destination);
            return self.bind(source, target, options, idmap, field, root_propagation);
        }
        self.mounted.push(destination);
        if matches!(kind, "cgroup" | "cgroup2") {
            return self.cgroups(&target, options, field, deferred);
        }
        if kind == "none" {
            return Err(invalid(field, "has neither a type nor the option bind"));
        }
        // What is filled is so first.
        if (target.path() == c"dev" || options.copy_up) && options.top.set & attribute::RDONLY != 0 {
            options.top.set &= !attribute::RDONLY;
            deferred.push(Step::Readonly(target.clone()));
        }
        let source = mount.source().as_deref().unwrap_or(Path::new(kind));
        let mut parameters = vec![(c"source".to_owned(), Some(c_path(source, field)?))];
        // As mount(2) does it: the filesystem, and not only its mount.
        if options.top.set & attribute::RDONLY != 0 {
            parameters.push((c"ro".to_owned(), None));
        }
        if let Some(context) = label::context(self.spec, self.host, kind)? {
            parameters.push((c"context".to_owned(), Some(context)));
        }
        for (key, value) in &options.data {
            let value = value.as_ref().map(|value| c_string(value.as_bytes(), field)).transpose()?;
            if value.as_ref().is_some_and(|value| value.as_bytes().len() > 255) {
                return Err(unsupported(field, format!("option {key:?} with more than 255 bytes")));
            }
            parameters.push((c_string(key.as_bytes(), field)?, value));
        }
        self.steps.push(Step::Mount(Filesystem {
            kind: c_string(kind.as_bytes(), field)?,
            parameters,
            attributes: options.top.set | options.recursive.set,
            target,
            no_links: matches!(kind, "proc" | "sysfs"),
            same_mode: kind == "tmpfs" && !options.data.iter().any(|(key, _)| key == "mode"),
            copy_up: options.copy_up,
            // What is attached nowhere has no peers.
            propagation: options.propagation.filter(|_| !self.unattached()).map(|(kind, _)| kind),
        }));
        Ok(())
    }

    /// How the owners of a mount's files are shown. Mappings without an option are for the one mount.
    fn idmap(&self, mount: &Mount, options: &Options, field: &str) -> Result<Option<(IdMap, Depth)>> {
        let list = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
        let (uids, gids) = (list(mount.uid_mappings()), list(mount.gid_mappings()));
        let depth = match (options.idmap, uids.is_empty() && gids.is_empty()) {
            (None, true) => return Ok(None),
            (depth, _) => depth.unwrap_or_default(),
        };
        if !self.host.features.mount_setattr {
            return Err(Error::Kernel { feature: "mount_setattr (5.12)", purpose: format!("{field}: an idmap") });
        }
        let map = match (uids.is_empty(), gids.is_empty()) {
            (false, false) => IdMap::Mappings(id_map(&uids), id_map(&gids)),
            (true, true) => self.container_ids(field)?,
            _ => return Err(invalid(field, "uidMappings and gidMappings go together")),
        };
        Ok(Some((map, depth)))
    }

    /// The container's own ids.
    fn container_ids(&self, field: &str) -> Result<IdMap> {
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let user = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User);
        match (user, linux) {
            (None, _) | (_, None) => Err(invalid(field, "an idmap without mappings needs a user namespace")),
            (Some(user), Some(linux)) => Ok(if let Some(path) = super::joined(user) {
                IdMap::Namespace(path.clone())
            } else {
                let text = |list: &Option<Vec<LinuxIdMapping>>| id_map(list.as_deref().unwrap_or_default());
                IdMap::Mappings(text(linux.uid_mappings()), text(linux.gid_mappings()))
            }),
        }
    }

    /// What looks like the kernel's /proc must be it.
    fn check_proc(&self, destination: &Path, kind: &str, options: &Options, field: &str) -> Result<()> {
        let Ok(below) = destination.strip_prefix("/proc") else { return Ok(()) };
        if below.as_os_str().is_empty() {
            let shared = options.bind.is_some() && !self.own_or_joined(super::NEW_PID);
            if kind == "proc" && options.bind.is_none() || shared {
                return Ok(());
            }
            return Err(invalid(field, "only proc can be mounted at /proc"));
        }
        if OVER_PROC.iter().any(|allowed| Path::new(allowed) == destination) {
            return Ok(());
        }
        Err(invalid(field, format!("nothing can be mounted at {}", destination.display())))
    }

    fn bind(
        &mut self,
        source: PathBuf,
        target: Target,
        mut options: Options,
        idmap: Option<(IdMap, Depth)>,
        field: &str,
        root_propagation: Option<u64>,
    ) -> Result<()> {
        // Those of a filesystem that is made are for nobody here, and are often copied from one list to another.
        let of_a_new_one = |key: &str| OF_TMPFS.contains(&key);
        if let Some((key, _)) = options.data.iter().find(|(key, _)| !of_a_new_one(key)) {
            return Err(unsupported(field, format!("option {key:?} of a bind")));
        }
        // The copy of a shared mount is its peer: what the container mounts below it would appear on the host.
        options.propagation = options.propagation.or(match root_propagation {
            Some(libc::MS_SHARED) => None,
            Some(libc::MS_PRIVATE | libc::MS_UNBINDABLE) => Some((libc::MS_PRIVATE, Depth::Recursive)),
            _ => Some((libc::MS_SLAVE, Depth::Recursive)),
        });
        let late = if self.host.features.mount_setattr {
            None
        } else {
            if !options.recursive.none() {
                return Err(Error::Kernel {
                    feature: "mount_setattr (5.12)",
                    purpose: format!("{field}: a recursive option"),
                });
            }
            let (set, clear) = options.top.flags();
            let recursive = |(kind, depth)| if depth == Depth::Recursive { kind | libc::MS_REC } else { kind };
            let late = Late { set, clear, propagation: options.propagation.map(recursive) };
            options.top = Attributes::default();
            options.propagation = None;
            Some(late)
        };
        let depth = options.bind.unwrap_or_default();
        let proc = target.path().to_bytes().starts_with(b"proc/") || target.path() == c"proc";
        if let Some(own) = self.own(&source)
            && (idmap.is_none() || !self.in_user_namespace())
        {
            let source = Target::new(&own, field)?;
            let idmap = idmap.map(|(map, depth)| (self.open(Open::Ids(map)), depth));
            self.steps.push(Step::BindOwn { source, depth, options, idmap, target, late });
            return Ok(());
        }
        if self.host.rootless {
            if idmap.is_some() {
                return Err(unsupported(field, "an idmap takes root"));
            }
            let source = c_path(&source, field)?;
            self.steps.push(Step::BindHost { source, depth, options, target, guarded: !proc, late });
            return Ok(());
        }
        let slot = self.open(Open::Bind { source, depth, options, idmap, field: field.to_owned() });
        self.steps.push(Step::Bind { slot, target, guarded: !proc, late });
        Ok(())
    }

    /// A destination that names the root's place on the host as well, as old configurations do, is one inside it.
    fn inside(&self, destination: &Path) -> PathBuf {
        let root = self.host.root_path.map(clean).filter(|root| root != Path::new("/"));
        let below = root.and_then(|root| destination.strip_prefix(root).ok().map(clean));
        below.filter(|below| below != Path::new("/")).unwrap_or_else(|| destination.to_owned())
    }

    /// A source that lies in the container's root, and there in what was mounted before: it is found once that is.
    fn own(&self, source: &Path) -> Option<PathBuf> {
        let inner = clean(source).strip_prefix(clean(self.host.root_path?)).ok().map(clean)?;
        // The one that is being made is the last.
        let (_, before) = self.mounted.split_last()?;
        before.iter().any(|place| inner.starts_with(place)).then_some(inner)
    }

    /// The container's own folders of the cgroup hierarchies. Whether there is a cgroup namespace or not, they are its roots.
    fn cgroups(&mut self, target: &Target, mut options: Options, field: &str, deferred: &mut Vec<Step>) -> Result<()> {
        let place = target.show();
        options.bind = Some(Depth::Top);
        options.data.clear();
        let readonly = (options.top.set | options.recursive.set) & attribute::RDONLY != 0;
        let cgroups = self.host.cgroups.clone();
        if cgroups.is_empty() {
            return Err(invalid(field, "there is no cgroup to show; linux.cgroupsPath is needed"));
        }
        if let [(name, folder)] = cgroups.as_slice()
            && name.is_empty()
        {
            return self.bind(folder.clone(), target.clone(), options, None, field, None);
        }
        self.steps.push(Step::Mount(Filesystem {
            kind: c"tmpfs".to_owned(),
            parameters: vec![
                (c"source".to_owned(), Some(c"tmpfs".to_owned())),
                (c"mode".to_owned(), Some(c"755".to_owned())),
            ],
            attributes: (options.top.set | options.recursive.set) & !attribute::RDONLY,
            target: target.clone(),
            no_links: false,
            same_mode: false,
            copy_up: false,
            propagation: None,
        }));
        for (name, folder) in cgroups {
            let name = if name.is_empty() { "unified" } else { &name };
            let inner = Target::new(&Path::new(&place).join(name), field)?;
            self.bind(folder, inner, options.clone(), None, field, None)?;
            for part in name.split(',').filter(|part| *part != name) {
                let link = Target::new(&Path::new(&place).join(part), field)?;
                self.steps.push(Step::Link { target: link, to: c_string(name.as_bytes(), field)?, replace: false });
            }
        }
        if readonly {
            deferred.push(Step::Readonly(target.clone()));
        }
        Ok(())
    }

    fn hidden_paths(&mut self) -> Result<()> {
        let Some(linux) = self.spec.linux() else { return Ok(()) };
        let lists = [("linux.readonlyPaths", linux.readonly_paths()), ("linux.maskedPaths", linux.masked_paths())];
        for (field, paths) in lists {
            let mut seen = Vec::new();
            for (at, path) in paths.iter().flatten().enumerate() {
                let field = format!("{field}[{at}]");
                if !path.starts_with('/') {
                    return Err(invalid(field, format!("{path:?} is not absolute")));
                }
                let target = Target::new(Path::new(path), &field)?;
                if seen.contains(&target) {
                    continue;
                }
                seen.push(target.clone());
                self.steps.push(if field.starts_with("linux.r") {
                    Step::ReadonlyPath(target)
                } else {
                    Step::MaskPath(target)
                });
            }
        }
        Ok(())
    }
}

/// Whether the container's /dev is a folder of the host, which is then not touched.
fn is_dev_bind(mount: &Mount) -> bool {
    let bind = mount.typ().as_deref() == Some("bind")
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    bind && clean(mount.destination()) == Path::new("/dev")
}

/// Mappings in the form of `/proc/PID/uid_map`.
pub(crate) fn id_map(mappings: &[LinuxIdMapping]) -> String {
    let line =
        |mapping: &LinuxIdMapping| format!("{} {} {}\n", mapping.container_id(), mapping.host_id(), mapping.size());
    mappings.iter().map(line).collect()
}

/// A destination as an absolute path without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}
