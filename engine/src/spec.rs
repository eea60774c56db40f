//! An image's configuration and a request become an OCI runtime configuration. Pure: nothing of the host is read or
//! changed here.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capability, Linux, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, Process, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

use crate::error::{Error, Result};
use crate::identity::Id;
use crate::request::{CreateRequest, NetworkMode};
use crate::user::Identity;

/// What the image says of how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
    pub(crate) user: String,
}

/// Files of the host that stand in for the container's own.
#[derive(Debug, Clone)]
pub(crate) struct HostFiles {
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) resolv_conf: PathBuf,
}

/// The capabilities that Docker leaves to a container's root.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// What of /proc and /sys tells of the host or acts on it; hidden, as Docker 28 does.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Builds the configuration of `config.json`.
pub(crate) fn build(
    id: &Id,
    cgroup: &str,
    request: &CreateRequest,
    image: &ImageDefaults,
    identity: &Identity,
    hostname: &str,
    files: &HostFiles,
) -> Result<Spec> {
    let root = built("root", RootBuilder::default().path("rootfs").readonly(request.read_only).build())?;
    let annotations = HashMap::from([("org.estiba.container.id".to_owned(), id.to_string())]);
    built(
        "config",
        SpecBuilder::default()
            // The oldest that has all that is used, for the sake of older runtimes.
            .version("1.0.2")
            .root(root)
            .hostname(hostname)
            .mounts(mounts(request, files)?)
            .process(process(request, image, identity, hostname)?)
            .linux(linux(cgroup, request)?)
            .annotations(annotations)
            .build(),
    )
}

fn built<T>(field: &'static str, result: Result<T, OciSpecError>) -> Result<T> {
    result.map_err(|source| Error::Spec { field, source: source.into() })
}

/// What is executed: the request's entrypoint and command over the image's, as Docker combines them.
pub(crate) fn arguments(request: &CreateRequest, image: &ImageDefaults) -> Result<Vec<String>> {
    let (entrypoint, command) = match &request.entrypoint {
        Some(entrypoint) => (entrypoint, &request.command),
        None if request.command.is_empty() => (&image.entrypoint, &image.command),
        None => (&image.entrypoint, &request.command),
    };
    let arguments: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() {
        return Err(Error::NoCommand { image: request.image.name.clone() });
    }
    Ok(arguments)
}

/// The environment: later settings of a key win, the order of first mention is kept.
fn environment(request: &CreateRequest, image: &ImageDefaults, hostname: &str) -> Vec<String> {
    let mut variables: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if request.tty {
        variables.push("TERM=xterm".to_owned());
    }
    for variable in image.env.iter().chain(&request.env) {
        let key = variable.split('=').next().unwrap_or_default();
        let same = variables.iter_mut().find(|known| known.split('=').next() == Some(key));
        match same {
            Some(known) => variable.clone_into(known),
            None => variables.push(variable.clone()),
        }
    }
    variables
}

fn process(request: &CreateRequest, image: &ImageDefaults, identity: &Identity, hostname: &str) -> Result<Process> {
    let mut user = UserBuilder::default().uid(identity.uid).gid(identity.gid);
    if !identity.groups.is_empty() {
        user = user.additional_gids(identity.groups.clone());
    }
    let allowed = || CAPABILITIES.into_iter().collect::<HashSet<_>>();
    // Nobody but root is given capabilities; its bounding set is what a set-uid program could get (nothing, with
    // no_new_privs).
    let held = || if identity.uid == 0 { allowed() } else { HashSet::new() };
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(allowed())
        .effective(held())
        .permitted(held())
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build();
    let workdir = request.workdir.as_deref().unwrap_or(&image.workdir);
    let workdir = if workdir.is_empty() { "/" } else { workdir };
    if !workdir.starts_with('/') {
        return Err(Error::Request {
            field: "the working directory",
            value: workdir.to_owned(),
            reason: "it must be an absolute path",
        });
    }
    let mut process = ProcessBuilder::default();
    if let Some((width, height)) = request.console_size.filter(|_| request.tty) {
        let size = BoxBuilder::default().width(width).height(height).build();
        process = process.console_size(built("process.consoleSize", size)?);
    }
    built(
        "process",
        process
            .terminal(request.tty)
            .user(built("process.user", user.build())?)
            .args(arguments(request, image)?)
            .env(environment(request, image, hostname))
            .cwd(workdir)
            .capabilities(built("process.capabilities", capabilities)?)
            .no_new_privileges(true)
            .rlimits(Vec::new())
            .build(),
    )
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    built("mounts", MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build())
}

fn mounts(request: &CreateRequest, files: &HostFiles) -> Result<Vec<Mount>> {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"])?,
    ];
    let access = if request.read_only { "ro" } else { "rw" };
    let options = &["bind", "rprivate", "nosuid", "nodev", "noexec", access];
    for (destination, source) in
        [("/etc/resolv.conf", &files.resolv_conf), ("/etc/hostname", &files.hostname), ("/etc/hosts", &files.hosts)]
    {
        // A bind of the request on the same path takes the place of ours.
        if !request.binds.iter().any(|bind| Path::new(&bind.destination) == Path::new(destination)) {
            mounts.push(mount(destination, "bind", &source.to_string_lossy(), options)?);
        }
    }
    for bind in &request.binds {
        let access = if bind.read_only { "ro" } else { "rw" };
        let options =
            if bind.read_only { vec!["rbind", "rprivate", access, "rro"] } else { vec!["rbind", "rprivate", access] };
        mounts.push(mount(&bind.destination, "bind", &bind.source.to_string_lossy(), &options)?);
    }
    Ok(mounts)
}

fn linux(cgroup: &str, request: &CreateRequest) -> Result<Linux> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    if request.network == NetworkMode::None {
        kinds.push(LinuxNamespaceType::Network);
    }
    let namespaces = kinds
        .into_iter()
        .map(|kind| built("linux.namespaces", LinuxNamespaceBuilder::default().typ(kind).build()))
        .collect::<Result<Vec<_>>>()?;
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    built(
        "linux",
        LinuxBuilder::default()
            .namespaces(namespaces)
            .resources(resources(request)?)
            .cgroups_path(cgroup)
            .seccomp(estiba_runtime::seccomp::default_profile(&CAPABILITIES))
            .masked_paths(owned(&MASKED_PATHS))
            .readonly_paths(owned(&READONLY_PATHS))
            .build(),
    )
}

fn resources(request: &CreateRequest) -> Result<LinuxResources> {
    let refused = |field, value: String, reason| Error::Request { field, value, reason };
    let mut resources = LinuxResourcesBuilder::default().devices(device_rules()?);
    if let Some(bytes) = request.memory {
        let limit = i64::try_from(bytes)
            .ok()
            .filter(|limit| *limit >= 1 << 19)
            .ok_or_else(|| refused("the memory limit", bytes.to_string(), "it must be at least 512k"))?;
        resources =
            resources.memory(built("linux.resources.memory", LinuxMemoryBuilder::default().limit(limit).build())?);
    }
    if let Some(nano_cpus) = request.nano_cpus {
        // 0.01 CPU is the least that the kernel takes (a quota of 1 ms in 100 ms).
        let quota = i64::try_from(nano_cpus / 10_000)
            .ok()
            .filter(|quota| *quota >= 1_000)
            .ok_or_else(|| refused("the number of CPUs", nano_cpus.to_string(), "it must be at least 0.01"))?;
        resources = resources
            .cpu(built("linux.resources.cpu", LinuxCpuBuilder::default().period(100_000_u64).quota(quota).build())?);
    }
    if let Some(limit) = request.pids_limit.filter(|limit| *limit > 0) {
        resources = resources.pids(built("linux.resources.pids", LinuxPidsBuilder::default().limit(limit).build())?);
    }
    built("linux.resources", resources.build())
}

/// All devices denied but those that every container has (and the making of nodes, which gives no access).
fn device_rules() -> Result<Vec<LinuxDeviceCgroup>> {
    const ALLOWED: [(i64, Option<i64>); 10] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
        (10, Some(200)),
    ];
    let rule = || LinuxDeviceCgroupBuilder::default();
    let mut rules = vec![built("linux.resources.devices", rule().allow(false).access("rwm").build())?];
    for typ in [LinuxDeviceType::C, LinuxDeviceType::B] {
        rules.push(built("linux.resources.devices", rule().allow(true).typ(typ).access("m").build())?);
    }
    for (major, minor) in ALLOWED {
        let mut allowed = rule().allow(true).typ(LinuxDeviceType::C).major(major).access("rwm");
        if let Some(minor) = minor {
            allowed = allowed.minor(minor);
        }
        rules.push(built("linux.resources.devices", allowed.build())?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Image;
    use crate::request::Bind;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn request() -> CreateRequest {
        CreateRequest::new(Image::for_tests())
    }

    #[test]
    fn entrypoint_and_command_combine_as_dockers() {
        // Request's entrypoint and command, image's entrypoint and command, result.
        type Case = (Option<&'static str>, &'static str, &'static str, &'static str, Option<&'static str>);
        let table: &[Case] = &[
            (None, "", "", "sh", Some("sh")),
            (None, "ls -l", "", "sh", Some("ls -l")),
            (None, "", "tini --", "sh", Some("tini -- sh")),
            (None, "ls", "tini --", "sh", Some("tini -- ls")),
            (Some("env"), "", "tini --", "sh", Some("env")),
            (Some("env"), "-i ls", "tini --", "sh", Some("env -i ls")),
            (Some(""), "ls", "tini --", "sh", Some("ls")),
            (Some(""), "", "tini --", "sh", None),
            (None, "", "", "", None),
        ];
        for (entrypoint, command, image_entrypoint, image_command, expected) in table {
            let request = CreateRequest { entrypoint: entrypoint.map(words), command: words(command), ..request() };
            let image = ImageDefaults {
                entrypoint: words(image_entrypoint),
                command: words(image_command),
                ..ImageDefaults::default()
            };
            assert_eq!(arguments(&request, &image).ok(), expected.map(words), "{entrypoint:?} {command}");
        }
    }

    #[test]
    fn later_variables_win() {
        let request = CreateRequest { env: words("A=2 PATH=/x"), tty: true, ..request() };
        let image = ImageDefaults { env: words("A=1 B=1"), ..ImageDefaults::default() };
        assert_eq!(environment(&request, &image, "h"), words("PATH=/x HOSTNAME=h TERM=xterm A=2 B=1"));
    }

    #[test]
    fn the_configuration_is_isolated_and_limited() {
        let request = CreateRequest {
            command: words("true"),
            memory: Some(64 << 20),
            nano_cpus: Some(1_500_000_000),
            pids_limit: Some(7),
            binds: vec![Bind { source: "/a".into(), destination: "/etc/hosts".into(), read_only: true }],
            ..request()
        };
        let files = HostFiles { hostname: "/h".into(), hosts: "/hosts".into(), resolv_conf: "/r".into() };
        let id = Id::random().expect("random");
        let identity = Identity { uid: 5, gid: 6, groups: vec![7] };
        let spec = build(&id, "/estiba/x", &request, &ImageDefaults::default(), &identity, "h", &files).expect("built");
        let linux = spec.linux().as_ref().expect("linux");
        assert_eq!(linux.namespaces().as_ref().expect("namespaces").len(), 6);
        let resources = linux.resources().as_ref().expect("resources");
        assert_eq!(resources.memory().expect("memory").limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().expect("cpu").quota(), Some(150_000));
        assert_eq!(resources.pids().expect("pids").limit(), 7);
        assert!(!resources.devices().as_ref().expect("devices")[0].allow());
        let process = spec.process().as_ref().expect("process");
        assert_eq!(process.no_new_privileges(), Some(true));
        let capabilities = process.capabilities().as_ref().expect("capabilities");
        assert!(capabilities.effective().as_ref().is_none_or(HashSet::is_empty), "a user has no capabilities");
        let mounts = spec.mounts().as_ref().expect("mounts");
        let hosts: Vec<_> = mounts.iter().filter(|m| m.destination() == Path::new("/etc/hosts")).collect();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].source().as_deref(), Some(Path::new("/a")));
    }

    #[test]
    fn limits_that_cannot_hold_are_refused() {
        assert!(resources(&CreateRequest { memory: Some(1), ..request() }).is_err());
        assert!(resources(&CreateRequest { memory: Some(u64::MAX), ..request() }).is_err());
        assert!(resources(&CreateRequest { nano_cpus: Some(1), ..request() }).is_err());
        assert!(resources(&CreateRequest { pids_limit: Some(-1), ..request() }).expect("no limit").pids().is_none());
    }

    #[test]
    fn the_hosts_network_has_no_namespace() {
        let linux = linux("/x", &CreateRequest { network: NetworkMode::Host, ..request() }).expect("built");
        let has_network = |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::Network;
        assert!(!linux.namespaces().as_ref().expect("namespaces").iter().any(has_network));
    }
}
