//! An image's configuration and a request become an OCI runtime configuration. Pure: nothing of the host is read or
//! changed here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    BoxBuilder, Capability, Linux, LinuxBlockIo, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, LinuxThrottleDeviceBuilder,
    LinuxWeightDeviceBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use estiba_runtime::rootless::Ids;

use crate::error::{Error, Result};
use crate::identity::Id;
use crate::request::{
    CreateRequest, DeviceKind, DeviceLimitKind, DeviceRule, IpcMode, Limits, Namespace, NetworkMode, Ulimit,
};
use crate::user::Identity;

/// What the image says of how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageDefaults {
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
    pub(crate) user: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) stop_timeout: Option<i64>,
    pub(crate) health: Option<estiba_image::Healthcheck>,
    pub(crate) volumes: Vec<String>,
    /// The ports that it serves, as `80/tcp`.
    pub(crate) exposed: Vec<String>,
    /// Digest of the configuration.
    pub(crate) id: String,
}

/// A folder of the host that a volume of the container is.
#[derive(Debug, Clone)]
pub(crate) struct VolumeFolder {
    pub(crate) path: PathBuf,
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

/// Files and folders of the host that the container is given beside what the request names.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostFiles {
    pub(crate) volumes: Vec<VolumeFolder>,
    /// Devices: all of the host's, or those that were asked for.
    pub(crate) devices: Vec<LinuxDevice>,
    /// What may be done with those that were asked for.
    pub(crate) device_rules: Vec<DeviceRule>,
    /// Limits of devices by their numbers.
    pub(crate) device_limits: Vec<(DeviceLimitKind, (u32, u32), u64)>,
    /// The network namespace that it joins.
    pub(crate) network: Option<PathBuf>,
    /// The pid namespace that it joins.
    pub(crate) pid: Option<PathBuf>,
    pub(crate) hostname: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) resolv_conf: PathBuf,
    /// The users and groups that there are.
    pub(crate) ids: Ids,
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

/// All capabilities that there are.
const ALL: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
                   DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD \
                   NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN \
                   SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME \
                   SYS_TTY_CONFIG WAKE_ALARM";

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
    let mut annotations: HashMap<String, String> = request.annotations.clone().into_iter().collect();
    annotations.insert("org.estiba.container.id".to_owned(), id.to_string());
    let mut spec = built(
        "config",
        SpecBuilder::default()
            // The oldest that has all that is used, for the sake of older runtimes.
            .version("1.0.2")
            .root(root)
            .mounts(mounts(cgroup, request, files)?)
            .process(process(request, image, identity, hostname)?)
            .linux(linux(cgroup, request, files)?)
            .annotations(annotations)
            .build(),
    )?;
    let names = if request.uts == Namespace::Own {
        (Some(hostname.to_owned()), request.domainname.clone())
    } else {
        (None, None)
    };
    spec.set_hostname(names.0).set_domainname(names.1);
    Ok(spec)
}

pub(crate) fn built<T>(field: &'static str, result: Result<T, OciSpecError>) -> Result<T> {
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
    set_variables(&mut variables, &configured(&request.env, &image.env));
    variables
}

/// The environment that was asked for, before the image's, as Docker has them.
pub(crate) fn configured(asked: &[String], image: &[String]) -> Vec<String> {
    let mut variables = Vec::new();
    set_variables(&mut variables, asked);
    let key = |variable: &String| variable.split('=').next().map(str::to_owned);
    let known: HashSet<_> = variables.iter().map(key).collect();
    let mut rest = Vec::new();
    set_variables(&mut rest, image);
    variables.extend(rest.into_iter().filter(|variable| !known.contains(&key(variable))));
    variables
}

/// Sets variables over those that are there.
pub(crate) fn set_variables<'a>(variables: &mut Vec<String>, changes: impl IntoIterator<Item = &'a String>) {
    for variable in changes {
        let key = variable.split('=').next().unwrap_or_default();
        let same = variables.iter_mut().find(|known| known.split('=').next() == Some(key));
        match same {
            Some(known) => variable.clone_into(known),
            None => variables.push(variable.clone()),
        }
    }
}

fn process(request: &CreateRequest, image: &ImageDefaults, identity: &Identity, hostname: &str) -> Result<Process> {
    let mut user = UserBuilder::default().uid(identity.uid).gid(identity.gid);
    if !identity.groups.is_empty() {
        user = user.additional_gids(identity.groups.clone());
    }
    let capabilities = capabilities(request)?;
    let allowed = || capabilities.iter().copied().collect::<HashSet<_>>();
    // Nobody but root is given capabilities; its bounding set is what a set-uid program could get (nothing, with
    // no_new_privs).
    let held = || if identity.uid == 0 { allowed() } else { HashSet::new() };
    let sets = LinuxCapabilitiesBuilder::default()
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
            .capabilities(built("process.capabilities", sets)?)
            .no_new_privileges(!(request.new_privileges || request.privileged))
            .rlimits(request.ulimits.iter().map(rlimit).collect::<Result<Vec<_>>>()?)
            .build(),
    )
}

/// The capabilities that root has in the container: the default ones, with what the request adds and takes away.
fn capabilities(request: &CreateRequest) -> Result<Vec<Capability>> {
    let parse = |field, name: &String| -> Result<Option<Capability>> {
        let name = name.to_ascii_uppercase();
        let bare = name.strip_prefix("CAP_").unwrap_or(&name);
        if bare == "ALL" {
            return Ok(None);
        }
        let reason = "there is no such capability: use a name such as NET_ADMIN, or ALL";
        bare.parse().map(Some).map_err(|_| Error::Request { field, value: name.clone(), reason })
    };
    let list = |field, names: &[String]| -> Result<Vec<Option<Capability>>> {
        names.iter().map(|name| parse(field, name)).collect()
    };
    let (added, dropped) = (list("the capability", &request.cap_add)?, list("the capability", &request.cap_drop)?);
    if request.privileged {
        return Ok(all_capabilities());
    }
    let base: Vec<Capability> = match (added.contains(&None), dropped.contains(&None)) {
        (true, _) => all_capabilities(),
        (false, true) => Vec::new(),
        (false, false) => CAPABILITIES.to_vec(),
    };
    let gone: HashSet<Capability> = dropped.into_iter().flatten().collect();
    let mut capabilities: Vec<Capability> = base.into_iter().filter(|one| !gone.contains(one)).collect();
    for capability in added.into_iter().flatten() {
        if !capabilities.contains(&capability) {
            capabilities.push(capability);
        }
    }
    Ok(capabilities)
}

/// All capabilities that there are.
pub(crate) fn all_capabilities() -> Vec<Capability> {
    ALL.split_ascii_whitespace().filter_map(|name| name.parse().ok()).collect()
}

fn rlimit(ulimit: &Ulimit) -> Result<PosixRlimit> {
    let name = format!("\"RLIMIT_{}\"", ulimit.name.to_ascii_uppercase());
    let typ: PosixRlimitType = serde_json::from_str(&name).map_err(|_| Error::Request {
        field: "the ulimit",
        value: ulimit.name.clone(),
        reason: "there is no such limit: use a name such as nofile, nproc or core",
    })?;
    if ulimit.soft > ulimit.hard {
        let value = format!("{}={}:{}", ulimit.name, ulimit.soft, ulimit.hard);
        return Err(Error::Request {
            field: "the ulimit",
            value,
            reason: "the first number must not be above the second",
        });
    }
    built("process.rlimits", PosixRlimitBuilder::default().typ(typ).soft(ulimit.soft).hard(ulimit.hard).build())
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    built("mounts", MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build())
}

fn mounts(cgroup: &str, request: &CreateRequest, files: &HostFiles) -> Result<Vec<Mount>> {
    let kernel = if request.privileged { "rw" } else { "ro" };
    let shm_size = format!("size={}", request.shm_size.unwrap_or(64 << 20));
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if files.ids != Ids::Single {
        terminals.push("gid=5");
    }
    let sys = if files.ids != Ids::Host && request.network == NetworkMode::Host {
        // A sysfs shows a network, and may be mounted by the root of that network's user namespace alone.
        mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"])?
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", kernel])?
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount("/dev/pts", "devpts", "devpts", &terminals)?,
        sys,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
    ];
    // One of the caller's is mounted later, with the others.
    let is_there = |path: &str| {
        let same = |other: &str| Path::new(other) == Path::new(path);
        request.binds.iter().any(|bind| same(&bind.destination))
            || request.tmpfs.iter().any(|tmpfs| same(&tmpfs.destination))
    };
    match request.ipc {
        _ if is_there("/dev/shm") => {}
        IpcMode::Private => {
            mounts.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size])?);
        }
        IpcMode::None => {}
        IpcMode::Host => mounts.push(mount("/dev/shm", "bind", "/dev/shm", &["rbind", "rprivate", "rw"])?),
    }

    if !cgroup.is_empty() {
        let options = &["nosuid", "noexec", "nodev", "relatime", kernel];
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", options)?);
    }

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
    let mut asked = Vec::new();
    for tmpfs in &request.tmpfs {
        let mut options = vec!["nosuid", "nodev", "noexec"];
        options.extend(tmpfs.options.iter().map(String::as_str));
        asked.push(mount(&tmpfs.destination, "tmpfs", "tmpfs", &options)?);
    }
    let bind = |destination: &str, source: &Path, read_only: bool| {
        let options: &[&str] =
            if read_only { &["rbind", "rprivate", "ro", "rro"] } else { &["rbind", "rprivate", "rw"] };
        mount(destination, "bind", &source.to_string_lossy(), options)
    };
    for volume in &files.volumes {
        asked.push(bind(&volume.destination, &volume.path, volume.read_only)?);
    }
    for one in &request.binds {
        asked.push(bind(&one.destination, &one.source, one.read_only)?);
    }
    // What is mounted inside another comes after it, as with Docker.
    asked.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(asked);
    Ok(mounts)
}

fn linux(cgroup: &str, request: &CreateRequest, files: &HostFiles) -> Result<Linux> {
    let namespaces = [
        (LinuxNamespaceType::Mount, true, None),
        (LinuxNamespaceType::Pid, request.pid != Namespace::Host, files.pid.as_ref()),
        (LinuxNamespaceType::Ipc, request.ipc != IpcMode::Host, None),
        (LinuxNamespaceType::Uts, request.uts != Namespace::Host, None),
        (LinuxNamespaceType::Cgroup, request.cgroup_namespace != Namespace::Host, None),
        (LinuxNamespaceType::Network, request.network != NetworkMode::Host, files.network.as_ref()),
    ];
    let namespaces = namespaces
        .into_iter()
        .filter(|(_, not_the_hosts, _)| *not_the_hosts)
        .map(|(kind, _, path)| {
            let namespace = LinuxNamespaceBuilder::default().typ(kind);
            let namespace = match path {
                Some(path) => namespace.path(path),
                None => namespace,
            };
            built("linux.namespaces", namespace.build())
        })
        .collect::<Result<Vec<_>>>()?;
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .sysctl(request.sysctls.clone().into_iter().collect::<HashMap<_, _>>());
    if !cgroup.is_empty() {
        linux = linux.resources(with_devices(resources(&request.limits)?, request, files)?).cgroups_path(cgroup);
    }
    if !files.devices.is_empty() {
        linux = linux.devices(files.devices.clone());
    }
    // Nothing is kept from one that is privileged.
    if !request.privileged && !request.seccomp_unconfined {
        linux = linux.seccomp(estiba_runtime::seccomp::default_profile(&capabilities(request)?));
    }
    // Left unsaid, they would be the builder's own.
    let (masked, readonly) = if request.privileged || request.paths_unmasked {
        (Vec::new(), Vec::new())
    } else {
        (owned(&MASKED_PATHS), owned(&READONLY_PATHS))
    };
    linux = linux.masked_paths(masked).readonly_paths(readonly);
    let mut linux = built("linux", linux.build())?;
    if cgroup.is_empty() {
        // What the builder takes where nothing is said.
        linux.set_resources(None);
    }
    Ok(linux)
}

/// Refuses limits where no cgroup would hold them.
pub(crate) fn refuse_limits(limits: &Limits) -> Result<()> {
    if resources(limits)? == LinuxResources::default() {
        return Ok(());
    }
    Err(Error::NoCgroup)
}

/// Limits in the words of the specification; those that cannot hold are refused.
pub(crate) fn resources(limits: &Limits) -> Result<LinuxResources> {
    const FIELD: &str = "linux.resources";
    let refused = |field, value: String, reason| Error::Request { field, value, reason };
    let mut resources = LinuxResourcesBuilder::default();
    if let Some(memory) = memory(limits)? {
        resources = resources.memory(memory);
    }
    let mut cpu = LinuxCpuBuilder::default();
    if let Some(nano_cpus) = limits.nano_cpus {
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            return Err(refused("the number of CPUs", cpus(nano_cpus), "it cannot be combined with a quota or period"));
        }
        // 0.01 CPU is the least that the kernel takes (a quota of 1 ms in 100 ms).
        let quota = i64::try_from(nano_cpus / 10_000)
            .ok()
            .filter(|quota| *quota >= 1_000)
            .ok_or_else(|| refused("the number of CPUs", cpus(nano_cpus), "it must be at least 0.01"))?;
        cpu = cpu.period(100_000_u64).quota(quota);
    }
    if let Some(shares) = limits.cpu_shares {
        cpu = cpu.shares(shares);
    }
    if let Some(quota) = limits.cpu_quota {
        cpu = cpu.quota(quota);
    }
    if let Some(period) = limits.cpu_period {
        cpu = cpu.period(period);
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu = cpu.cpus(cpus.clone());
    }
    if let Some(mems) = &limits.cpuset_mems {
        cpu = cpu.mems(mems.clone());
    }
    let cpu = built("linux.resources.cpu", cpu.build())?;
    if cpu != oci_spec::runtime::LinuxCpu::default() {
        resources = resources.cpu(cpu);
    }
    if let Some(limit) = limits.pids_limit.filter(|limit| *limit > 0) {
        resources = resources.pids(built("linux.resources.pids", LinuxPidsBuilder::default().limit(limit).build())?);
    }
    if let Some(weight) = limits.blkio_weight.filter(|weight| *weight != 0) {
        if !(10..=1000).contains(&weight) {
            return Err(refused("the weight of block I/O", weight.to_string(), "it must be from 10 to 1000"));
        }
        let block = oci_spec::runtime::LinuxBlockIoBuilder::default().weight(weight).build();
        resources = resources.block_io(built("linux.resources.blockIO", block)?);
    }
    built(FIELD, resources.build())
}

/// A number of CPUs as people write it.
fn cpus(nano_cpus: u64) -> String {
    let text = format!("{}.{:09}", nano_cpus / 1_000_000_000, nano_cpus % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn memory(limits: &Limits) -> Result<Option<oci_spec::runtime::LinuxMemory>> {
    let refused = |field, value: String, reason| Error::Request { field, value, reason };
    let Limits { memory, memory_swap, memory_reservation, memory_swappiness, oom_kill_disable, .. } = *limits;
    let is_said = memory.is_some() || memory_swap.is_some() || memory_reservation.is_some();
    if !is_said && memory_swappiness.is_none() && oom_kill_disable.is_none() {
        return Ok(None);
    }
    let mut built_memory = LinuxMemoryBuilder::default();
    let limit = match memory {
        // Docker's zero is no limit.
        None | Some(0) => None,
        Some(bytes) => Some(
            i64::try_from(bytes)
                .ok()
                .filter(|limit| *limit >= 1 << 19)
                .ok_or_else(|| refused("the memory limit", bytes.to_string(), "it must be at least 512k"))?,
        ),
    };
    if let Some(limit) = limit {
        built_memory = built_memory.limit(limit);
    }
    if let Some(swap) = memory_swap.filter(|swap| *swap != 0) {
        let Some(limit) = limit else {
            return Err(refused("the swap limit", swap.to_string(), "it needs a memory limit"));
        };
        if swap != -1 && swap < limit {
            return Err(refused(
                "the swap limit",
                swap.to_string(),
                "it includes memory, and must not be below that limit",
            ));
        }
        built_memory = built_memory.swap(swap);
    }
    if let Some(bytes) = memory_reservation.filter(|bytes| *bytes != 0) {
        let reservation = i64::try_from(bytes)
            .map_err(|_| refused("the memory reservation", bytes.to_string(), "it is more than there can be"))?;
        if limit.is_some_and(|limit| limit < reservation) {
            return Err(refused("the memory reservation", bytes.to_string(), "it must not be above the memory limit"));
        }
        built_memory = built_memory.reservation(reservation);
    }
    if let Some(swappiness) = memory_swappiness {
        if swappiness > 100 {
            return Err(refused("the memory swappiness", swappiness.to_string(), "it must be from 0 to 100"));
        }
        built_memory = built_memory.swappiness(swappiness);
    }
    if oom_kill_disable == Some(true) {
        built_memory = built_memory.disable_oom_killer(true);
    }
    built("linux.resources.memory", built_memory.build()).map(Some)
}

/// What of `changed` has to be told to a container that runs, when `asked` is what was asked for.
pub(crate) fn changes(asked: &Limits, changed: &Limits) -> Result<LinuxResources> {
    // Memory and swap hang together, and so do quota and period.
    let told = |any: bool, limits: &Limits| if any { limits.clone() } else { Limits::default() };
    let memory =
        told(asked.memory.is_some() || asked.memory_swap.is_some() || asked.memory_reservation.is_some(), changed);
    let cpu = told(asked.nano_cpus.is_some() || asked.cpu_quota.is_some() || asked.cpu_period.is_some(), changed);
    resources(&Limits {
        memory: memory.memory,
        memory_swap: memory.memory_swap,
        memory_reservation: memory.memory_reservation,
        nano_cpus: cpu.nano_cpus,
        cpu_quota: cpu.cpu_quota,
        cpu_period: cpu.cpu_period,
        ..asked.clone()
    })
}

fn with_devices(mut resources: LinuxResources, request: &CreateRequest, files: &HostFiles) -> Result<LinuxResources> {
    let rules = if request.privileged {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).access("rwm").build();
        vec![built("linux.resources.devices", rule)?]
    } else {
        let mut rules = device_rules()?;
        for rule in files.device_rules.iter().chain(&request.device_rules) {
            rules.push(device_rule(rule)?);
        }
        rules
    };
    resources.set_devices(Some(rules));
    if !files.device_limits.is_empty() {
        let block = resources.block_io().clone().unwrap_or_default();
        resources.set_block_io(Some(device_limits(block, &files.device_limits)?));
    }
    Ok(resources)
}

fn device_rule(rule: &DeviceRule) -> Result<LinuxDeviceCgroup> {
    let typ = match rule.kind {
        None => LinuxDeviceType::A,
        Some(DeviceKind::Char) => LinuxDeviceType::C,
        Some(DeviceKind::Block) => LinuxDeviceType::B,
    };
    let mut allowed = LinuxDeviceCgroupBuilder::default().allow(true).typ(typ).access(rule.access.to_string());
    if let Some(major) = rule.major {
        allowed = allowed.major(i64::from(major));
    }
    if let Some(minor) = rule.minor {
        allowed = allowed.minor(i64::from(minor));
    }
    built("linux.resources.devices", allowed.build())
}

/// Limits of single devices.
fn device_limits(mut block: LinuxBlockIo, limits: &[(DeviceLimitKind, (u32, u32), u64)]) -> Result<LinuxBlockIo> {
    const FIELD: &str = "linux.resources.blockIO";
    let mut weights = Vec::new();
    let mut rates: [(DeviceLimitKind, Vec<_>); 4] =
        [DeviceLimitKind::ReadBps, DeviceLimitKind::WriteBps, DeviceLimitKind::ReadIops, DeviceLimitKind::WriteIops]
            .map(|kind| (kind, Vec::new()));
    for (kind, (major, minor), value) in limits {
        if *kind == DeviceLimitKind::Weight {
            let weight = u16::try_from(*value).ok().filter(|weight| (10..=1000).contains(weight));
            let weight = weight.ok_or_else(|| Error::Request {
                field: "the weight of block I/O",
                value: value.to_string(),
                reason: "it must be from 10 to 1000",
            })?;
            let device = LinuxWeightDeviceBuilder::default().major(*major).minor(*minor).weight(weight).build();
            weights.push(built(FIELD, device)?);
        } else if let Some((_, list)) = rates.iter_mut().find(|(of, _)| of == kind) {
            let device = LinuxThrottleDeviceBuilder::default().major(*major).minor(*minor).rate(*value).build();
            list.push(built(FIELD, device)?);
        }
    }
    if !weights.is_empty() {
        block.set_weight_device(Some(weights));
    }
    for (kind, list) in rates {
        let list = Some(list).filter(|list| !list.is_empty());
        match kind {
            DeviceLimitKind::ReadBps => block.set_throttle_read_bps_device(list),
            DeviceLimitKind::WriteBps => block.set_throttle_write_bps_device(list),
            DeviceLimitKind::ReadIops => block.set_throttle_read_iops_device(list),
            DeviceLimitKind::WriteIops => block.set_throttle_write_iops_device(list),
            DeviceLimitKind::Weight => &mut block,
        };
    }
    Ok(block)
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
            limits: Limits {
                memory: Some(64 << 20),
                nano_cpus: Some(1_500_000_000),
                pids_limit: Some(7),
                ..Limits::default()
            },
            binds: vec![Bind { source: "/a".into(), destination: "/etc/hosts".into(), read_only: true }],
            ..request()
        };
        let files = HostFiles {
            ids: Ids::Host,
            hostname: "/h".into(),
            hosts: "/hosts".into(),
            resolv_conf: "/r".into(),
            ..HostFiles::default()
        };
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
        let limits = Limits::default;
        for refused in [
            Limits { memory: Some(1), ..limits() },
            Limits { memory: Some(u64::MAX), ..limits() },
            Limits { memory: Some(64 << 20), memory_swap: Some(1 << 20), ..limits() },
            Limits { memory_swap: Some(1 << 20), ..limits() },
            Limits { memory: Some(1 << 20), memory_reservation: Some(2 << 20), ..limits() },
            Limits { nano_cpus: Some(1), ..limits() },
            Limits { nano_cpus: Some(1_000_000_000), cpu_quota: Some(5000), ..limits() },
            Limits { blkio_weight: Some(5), ..limits() },
        ] {
            assert!(resources(&refused).is_err(), "{refused:?}");
        }
        let none = resources(&Limits { pids_limit: Some(-1), memory: Some(0), ..limits() }).expect("no limit");
        assert!(none.pids().is_none());
        let swap = Limits { memory: Some(64 << 20), memory_swap: Some(-1), ..limits() };
        assert_eq!(resources(&swap).expect("swap").memory().expect("memory").swap(), Some(-1));
    }

    #[test]
    fn changes_carry_what_hangs_together() {
        let before = Limits { memory: Some(64 << 20), cpu_shares: Some(5), ..Limits::default() };
        let asked = Limits { memory_swap: Some(128 << 20), ..Limits::default() };
        let told = changes(&asked, &before.changed(&asked)).expect("told");
        let memory = told.memory().expect("memory");
        assert_eq!((memory.limit(), memory.swap()), (Some(64 << 20), Some(128 << 20)));
        assert!(told.cpu().is_none());
    }

    #[test]
    fn capabilities_are_added_and_taken_away() {
        let with = |add: &str, drop: &str| {
            capabilities(&CreateRequest { cap_add: words(add), cap_drop: words(drop), ..request() })
        };
        assert_eq!(with("", "").expect("default"), CAPABILITIES);
        assert!(with("NET_ADMIN", "").expect("one more").contains(&Capability::NetAdmin));
        assert!(!with("", "cap_chown").expect("one less").contains(&Capability::Chown));
        assert_eq!(with("cap_sys_ptrace", "ALL").expect("one"), [Capability::SysPtrace]);
        assert!(with("ALL", "").expect("all").len() > 35);
        assert!(with("NOTHING", "").is_err());
    }

    #[test]
    fn the_hosts_network_has_no_namespace() {
        let linux = linux("/x", &CreateRequest { network: NetworkMode::Host, ..request() }, &HostFiles::default());
        let has_network = |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::Network;
        assert!(!linux.expect("built").namespaces().as_ref().expect("namespaces").iter().any(has_network));
    }

    #[test]
    fn namespaces_are_the_hosts_or_another_containers() {
        let files = HostFiles { pid: Some("/proc/7/ns/pid".into()), ..HostFiles::default() };
        let request = CreateRequest {
            pid: Namespace::Container("x".into()),
            uts: Namespace::Host,
            cgroup_namespace: Namespace::Host,
            ipc: IpcMode::Host,
            ..request()
        };
        let built = linux("/x", &request, &files).expect("built");
        let namespaces = built.namespaces().as_ref().expect("namespaces").iter();
        let found: Vec<_> = namespaces.map(|one| (one.typ(), one.path().clone())).collect();
        let expected = [
            (LinuxNamespaceType::Mount, None),
            (LinuxNamespaceType::Pid, Some(PathBuf::from("/proc/7/ns/pid"))),
            (LinuxNamespaceType::Network, None),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn devices_and_their_limits_are_told_to_the_cgroup() {
        let rule = "c 10:200 rw".parse().expect("a rule");
        let request = CreateRequest { device_rules: vec![rule], ..request() };
        let limits = vec![(DeviceLimitKind::ReadBps, (8, 0), 5), (DeviceLimitKind::Weight, (8, 0), 100)];
        let files = HostFiles { device_limits: limits, ..HostFiles::default() };
        let built = with_devices(LinuxResources::default(), &request, &files).expect("built");
        let last = built.devices().as_ref().expect("devices").last().cloned().expect("a rule");
        assert_eq!((last.major(), last.minor(), last.access().as_deref()), (Some(10), Some(200), Some("rw")));
        let block = built.block_io().as_ref().expect("limits");
        let throttle = block.throttle_read_bps_device().as_ref().expect("a rate");
        assert_eq!((throttle[0].major(), throttle[0].rate()), (8, 5));
        assert_eq!(block.weight_device().as_ref().map(Vec::len), Some(1));
        let heavy = HostFiles { device_limits: vec![(DeviceLimitKind::Weight, (8, 0), 5)], ..HostFiles::default() };
        assert!(with_devices(LinuxResources::default(), &request, &heavy).is_err());
    }
}
