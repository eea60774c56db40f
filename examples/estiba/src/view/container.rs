//! Containers: what `inspect` shows, and the words of `ps` for their state.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use estiba_engine::{
    DeviceKind, DeviceLimitKind, DeviceRule, Exit, Health, HealthStatus, Healthcheck, IpcMode, LogConfig, Namespace,
    Record as Container, RestartPolicy, Status, Summary,
};

use super::image::Config;
use super::network;
use crate::moment;
use crate::signals;
use crate::template::{Record, Value};

/// What of a container is not in its summary.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// Its image's configuration.
    pub(crate) image: Config,
    /// The engine's folder.
    pub(crate) root: &'a Path,
    /// Bytes of its own files, and of all; if they were asked for.
    pub(crate) sizes: Option<(u64, u64)>,
}

/// The labels of image and request.
pub(crate) fn labels(record: &Container, image: &Config) -> BTreeMap<String, String> {
    let mut labels = image.labels();
    labels.extend(record.request.labels.clone());
    labels
}

/// The exit status and the moment of a container's last end.
fn last_end(summary: &Summary) -> (Option<&Exit>, Option<SystemTime>) {
    let ended = summary.record.ended.as_ref();
    let exit = match &summary.status {
        Status::Exited(exit) | Status::Restarting(exit) => exit.as_ref(),
        _ => ended.and_then(|ended| ended.exit.as_ref()),
    };
    (exit, ended.map(|ended| ended.at))
}

/// The exit status that `ps` and `inspect` show: of one whose shim has died it is lost, which is no success.
pub(crate) fn exit_code(summary: &Summary) -> i32 {
    match (&summary.status, last_end(summary).0) {
        (Status::Running | Status::Paused, _) => 0,
        (Status::Exited(None) | Status::Restarting(None), _) => match &summary.record.ended {
            Some(ended) if ended.error.is_some() => 127,
            _ => 255,
        },
        (_, exit) => exit.map_or(0, |exit| exit.status),
    }
}

/// The status column: `Up 3 minutes (healthy)`, `Exited (0) 2 hours ago`.
pub(crate) fn status(summary: &Summary) -> String {
    let since = |time: Option<SystemTime>| time.map(moment::span).unwrap_or_default();
    let (exit, ended) = last_end(summary);
    let up = || since(summary.record.started);
    match &summary.status {
        Status::Created => "Created".to_owned(),
        Status::Paused => format!("Up {} (Paused)", up()),
        Status::Running => match &summary.health {
            Some(health) if health.status == HealthStatus::Starting => format!("Up {} (health: starting)", up()),
            Some(health) => format!("Up {} ({})", up(), health.status.name()),
            None => format!("Up {}", up()),
        },
        Status::Restarting(_) => format!("Restarting ({}) {} ago", exit_code(summary), since(ended)),
        Status::Exited(_)
            if exit.is_none() && summary.record.ended.as_ref().is_none_or(|ended| ended.error.is_none()) =>
        {
            // Its shim died with it.
            "Exited (status lost)".to_owned()
        }
        Status::Exited(_) => format!("Exited ({}) {} ago", exit_code(summary), since(ended)),
        Status::Removing => "Removal In Progress".to_owned(),
        Status::Dead => "Dead".to_owned(),
    }
}

/// The command line: arguments with spaces are in quotes.
pub(crate) fn command(record: &Container) -> String {
    let word = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let Some((program, arguments)) = record.command.split_first() else { return String::new() };
    std::iter::once(program.clone()).chain(arguments.iter().map(word)).collect::<Vec<_>>().join(" ")
}

fn namespace(namespace: &Namespace) -> String {
    match namespace {
        Namespace::Own => String::new(),
        Namespace::Host => "host".to_owned(),
        Namespace::Container(id) => format!("container:{id}"),
    }
}

/// What it may do with devices of the host, and how much.
fn device_limits(record: &Container, kind: DeviceLimitKind) -> Value {
    let limits = record.request.device_limits.iter().filter(|limit| limit.kind == kind);
    Value::list(limits.map(|limit| {
        let name = if kind == DeviceLimitKind::Weight { "Weight" } else { "Rate" };
        Record::new("blkiodev").with("Path", limit.device.display().to_string()).with(name, limit.value)
    }))
}

fn device_rule(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let kind = match rule.kind {
        None => 'a',
        Some(DeviceKind::Char) => 'c',
        Some(DeviceKind::Block) => 'b',
    };
    format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access)
}

fn time(time: Option<SystemTime>) -> Value {
    Value::from(time.map_or_else(|| moment::NEVER.to_owned(), moment::rfc3339))
}

fn health(health: &Health) -> Value {
    let probes = health.log.iter().map(|probe| {
        Record::new("container.HealthcheckResult")
            .with("Start", moment::rfc3339(probe.start))
            .with("End", moment::rfc3339(probe.end))
            .with("ExitCode", probe.exit_code)
            .with("Output", &probe.output)
    });
    Record::new("container.Health")
        .with("Status", health.status.name())
        .with("FailingStreak", health.failing_streak)
        .with("Log", Value::list(probes))
        .into()
}

fn state(summary: &Summary) -> Record {
    let record = &summary.record;
    let runs = summary.status.is_running();
    let (exit, ended) = last_end(summary);
    let error = record.ended.as_ref().and_then(|ended| ended.error.clone()).filter(|_| !runs);
    Record::new("container.State")
        .with("Status", summary.status.name())
        // What is going to be started again counts as running.
        .with("Running", runs || matches!(summary.status, Status::Restarting(_)))
        .with("Paused", summary.status == Status::Paused)
        .with("Restarting", matches!(summary.status, Status::Restarting(_)))
        .with("OOMKilled", !runs && exit.is_some_and(|exit| exit.oom_killed))
        .with("Dead", matches!(summary.status, Status::Dead))
        .with("Pid", if runs { record.pid } else { 0 })
        .with("ExitCode", exit_code(summary))
        .with("Error", error.unwrap_or_default())
        .with("StartedAt", time(record.started))
        .with("FinishedAt", time(ended))
        .with_some("Health", summary.health.as_ref().map(health))
}

fn restart_policy(policy: RestartPolicy) -> Record {
    let retries = match policy {
        RestartPolicy::OnFailure { retries } => retries.unwrap_or(0),
        _ => 0,
    };
    Record::new("container.RestartPolicy").with("Name", policy.name()).with("MaximumRetryCount", retries)
}

fn log_config(log: LogConfig) -> Record {
    let (kind, config) = match log {
        LogConfig::None => ("none", BTreeMap::new()),
        LogConfig::JsonFile { max_size, max_files } => {
            let size = max_size.map(|size| ("max-size".to_owned(), size.to_string()));
            let files = max_files.map(|files| ("max-file".to_owned(), files.to_string()));
            ("json-file", size.into_iter().chain(files).collect())
        }
    };
    Record::new("container.LogConfig").with("Type", kind).with("Config", &config)
}

fn healthcheck(check: &Healthcheck) -> Value {
    let nanos = |duration: Option<std::time::Duration>| {
        duration.map_or(0, |duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    };
    Record::new("container.HealthConfig")
        .with_some("Test", check.test.clone())
        .with_some("Interval", nanos(check.interval))
        .with_some("Timeout", nanos(check.timeout))
        .with_some("StartPeriod", nanos(check.start_period))
        .with_some("StartInterval", nanos(check.start_interval))
        .with_some("Retries", check.retries.unwrap_or(0))
        .into()
}

fn host_config(record: &Container) -> Record {
    let request = &record.request;
    let limits = &request.limits;
    let binds = request.binds.iter().map(|bind| {
        format!("{}:{}{}", bind.source.display(), bind.destination, if bind.read_only { ":ro" } else { "" })
    });
    let volumes =
        request.volumes.iter().filter(|volume| !volume.name.is_empty()).map(|volume| {
            format!("{}:{}{}", volume.name, volume.destination, if volume.read_only { ":ro" } else { "" })
        });
    let tmpfs = request.tmpfs.iter().map(|tmpfs| (tmpfs.destination.clone(), Value::from(tmpfs.options.join(","))));
    let ulimits = request.ulimits.iter().map(|limit| {
        let number = |value: u64| i64::try_from(value).unwrap_or(-1);
        Record::new("container.Ulimit")
            .with("Name", &limit.name)
            .with("Hard", number(limit.hard))
            .with("Soft", number(limit.soft))
    });
    let memory = limits.memory.unwrap_or(0);
    // Without a word the container gets as much swap as memory.
    let swap = limits.memory_swap.unwrap_or_else(|| i64::try_from(memory.saturating_mul(2)).unwrap_or(i64::MAX));
    let security =
        [(request.new_privileges, "no-new-privileges=false"), (request.seccomp_unconfined, "seccomp=unconfined")];
    let security = security.into_iter().filter(|(is, _)| *is).map(|(_, option)| option);
    let addresses = request.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let hosts = request.extra_hosts.iter().map(|host| format!("{}:{}", host.name, host.address));
    let devices = request.devices.iter().map(|device| {
        Record::new("container.DeviceMapping")
            .with("PathOnHost", device.source.display().to_string())
            .with("PathInContainer", device.destination.display().to_string())
            .with("CgroupPermissions", device.access.to_string())
    });
    let ipc = match request.ipc {
        IpcMode::Private => "private",
        IpcMode::None => "none",
        IpcMode::Host => "host",
    };
    let cgroups = if request.cgroup_namespace == Namespace::Host { "host" } else { "private" };
    let (width, height) = request.console_size.unwrap_or_default();
    let runtime = request.runtime.as_deref().map_or_else(|| "native".to_owned(), |path| path.display().to_string());
    Record::new("container.HostConfig")
        .with("Binds", Value::list_or_nil(binds.chain(volumes)))
        .with("ContainerIDFile", "")
        .with("LogConfig", log_config(request.log))
        .with("NetworkMode", network::mode(record))
        .with("PortBindings", network::bindings(record))
        .with("RestartPolicy", restart_policy(request.restart))
        .with("AutoRemove", request.auto_remove)
        .with("VolumeDriver", "")
        .with("VolumesFrom", Value::nil_list())
        .with("ConsoleSize", vec![u64::from(height), u64::from(width)])
        .with("CapAdd", Value::list_or_nil(request.cap_add.clone()))
        .with("CapDrop", Value::list_or_nil(request.cap_drop.clone()))
        .with("CgroupnsMode", cgroups)
        .with("Dns", Value::list(addresses))
        .with("DnsOptions", Value::list(request.dns.options.clone()))
        .with("DnsSearch", Value::list(request.dns.search.clone()))
        .with("ExtraHosts", Value::list_or_nil(hosts))
        .with("GroupAdd", Value::list_or_nil(request.group_add.clone()))
        .with("IpcMode", ipc)
        .with("Cgroup", "")
        .with("Links", Value::nil_list())
        .with("OomScoreAdj", request.oom_score_adj.unwrap_or(0))
        .with("PidMode", namespace(&request.pid))
        .with("Privileged", request.privileged)
        .with("PublishAllPorts", false)
        .with("ReadonlyRootfs", request.read_only)
        .with("SecurityOpt", Value::list_or_nil(security))
        .with_some("Tmpfs", Value::map(tmpfs))
        .with("UTSMode", namespace(&request.uts))
        .with("UsernsMode", "")
        .with("ShmSize", request.shm_size.unwrap_or(64 << 20))
        .with_some("Sysctls", Value::from(&request.sysctls))
        .with("Runtime", runtime)
        .with("Isolation", "")
        .with("CpuShares", limits.cpu_shares.unwrap_or(0))
        .with("Memory", memory)
        .with("NanoCpus", limits.nano_cpus.unwrap_or(0))
        .with("CgroupParent", record.cgroup.rsplit_once('/').map_or("", |(parent, _)| parent))
        .with("BlkioWeight", limits.blkio_weight.unwrap_or(0))
        .with("BlkioWeightDevice", device_limits(record, DeviceLimitKind::Weight))
        .with("BlkioDeviceReadBps", device_limits(record, DeviceLimitKind::ReadBps))
        .with("BlkioDeviceWriteBps", device_limits(record, DeviceLimitKind::WriteBps))
        .with("BlkioDeviceReadIOps", device_limits(record, DeviceLimitKind::ReadIops))
        .with("BlkioDeviceWriteIOps", device_limits(record, DeviceLimitKind::WriteIops))
        .with("CpuPeriod", limits.cpu_period.unwrap_or(0))
        .with("CpuQuota", limits.cpu_quota.unwrap_or(0))
        .with("CpuRealtimePeriod", 0)
        .with("CpuRealtimeRuntime", 0)
        .with("CpusetCpus", limits.cpuset_cpus.clone().unwrap_or_default())
        .with("CpusetMems", limits.cpuset_mems.clone().unwrap_or_default())
        .with("Devices", Value::list(devices))
        .with("DeviceCgroupRules", Value::list_or_nil(request.device_rules.iter().map(device_rule)))
        .with("DeviceRequests", Value::nil_list())
        .with("MemoryReservation", limits.memory_reservation.unwrap_or(0))
        .with("MemorySwap", swap)
        .with("MemorySwappiness", limits.memory_swappiness)
        .with("OomKillDisable", limits.oom_kill_disable)
        .with("PidsLimit", limits.pids_limit)
        .with("Ulimits", Value::list(ulimits))
        .with("CpuCount", 0)
        .with("CpuPercent", 0)
        .with("IOMaximumIOps", 0)
        .with("IOMaximumBandwidth", 0)
        .with("MaskedPaths", Value::nil_list())
        .with("ReadonlyPaths", Value::nil_list())
}

fn mounts(record: &Container, root: &Path) -> Value {
    let volumes = record.volumes.iter().map(|volume| {
        Record::new("container.MountPoint")
            .with("Type", "volume")
            .with("Name", &volume.name)
            .with("Source", root.join("volumes").join(&volume.name).join("_data").display().to_string())
            .with("Destination", &volume.destination)
            .with("Driver", "local")
            .with("Mode", if volume.read_only { "ro" } else { "" })
            .with("RW", !volume.read_only)
            .with("Propagation", "")
    });
    let binds = record.request.binds.iter().map(|bind| {
        Record::new("container.MountPoint")
            .with("Type", "bind")
            .hidden("Name", "")
            .with("Source", bind.source.display().to_string())
            .with("Destination", &bind.destination)
            .hidden("Driver", "")
            .with("Mode", if bind.read_only { "ro" } else { "" })
            .with("RW", !bind.read_only)
            .with("Propagation", "rprivate")
    });
    Value::list(binds.chain(volumes))
}

fn config(record: &Container, image: &Config) -> Record {
    let request = &record.request;
    let list = |key: &str| image.list(key).map_or_else(Value::nil_list, Value::from);
    let entrypoint = match &request.entrypoint {
        Some(words) => Value::list_or_nil(words.clone()),
        None => list("Entrypoint"),
    };
    // A replaced entrypoint drops the image's arguments.
    let command = match (request.command.is_empty(), &request.entrypoint) {
        (false, _) => Value::from(request.command.clone()),
        (true, Some(_)) => Value::nil_list(),
        (true, None) => list("Cmd"),
    };
    // The image's come after those that were asked for, as Docker merges them.
    let key = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut env = request.env.clone();
    for variable in image.list("Env").unwrap_or_default() {
        if !request.env.iter().any(|asked| key(asked) == key(&variable)) {
            env.push(variable);
        }
    }
    let stop_signal = request.stop_signal.map_or_else(|| image.string("StopSignal").to_owned(), signals::name);
    Record::new("container.Config")
        .with("Hostname", request.hostname.clone().unwrap_or_else(|| record.id.short().to_owned()))
        .with("Domainname", request.domainname.clone().unwrap_or_default())
        .with("User", request.user.clone().unwrap_or_else(|| image.string("User").to_owned()))
        .with("AttachStdin", request.interactive)
        .with("AttachStdout", true)
        .with("AttachStderr", true)
        .with_some("ExposedPorts", image.set_value("ExposedPorts"))
        .with("Tty", request.tty)
        .with("OpenStdin", request.interactive)
        .with("StdinOnce", request.interactive)
        .with("Env", env)
        .with("Cmd", command)
        .with_some("Healthcheck", record.health.as_ref().map(healthcheck))
        .with("Image", super::image::familiar(&request.image.name))
        .with("Volumes", image.set_value("Volumes").or_nil())
        .with("WorkingDir", request.workdir.clone().unwrap_or_else(|| image.string("WorkingDir").to_owned()))
        .with("Entrypoint", entrypoint)
        .with("OnBuild", Value::nil_list())
        .with("Labels", &labels(record, image))
        .with_some("StopSignal", stop_signal)
        .with_some("StopTimeout", request.stop_timeout)
}

/// What `inspect` shows.
pub(crate) fn inspect(summary: &Summary, around: &Surroundings<'_>) -> Value {
    let record = &summary.record;
    let (program, arguments) = match record.command.split_first() {
        Some((program, arguments)) => (program.clone(), arguments.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let folder = around.root.join("containers").join(record.id.as_str());
    let file = |name: &str| folder.join(name).display().to_string();
    let log = if record.request.log == LogConfig::None { String::new() } else { file("log") };
    let mut object = Record::new("container.InspectResponse")
        .with("Id", record.id.as_str())
        .with("Created", moment::rfc3339(record.created))
        .with("Path", program)
        .with("Args", arguments)
        .with("State", state(summary))
        .with("Image", &record.image_id)
        .with("ResolvConfPath", file("resolv.conf"))
        .with("HostnamePath", file("hostname"))
        .with("HostsPath", file("hosts"))
        .with("LogPath", log)
        .with("Name", format!("/{}", record.name))
        .with("RestartCount", record.restarts)
        .with("Driver", &record.snapshotter)
        .with("Platform", "linux")
        .with("MountLabel", "")
        .with("ProcessLabel", "")
        .with("AppArmorProfile", "")
        .with("ExecIDs", Value::nil_list())
        .with("HostConfig", host_config(record))
        .with(
            "GraphDriver",
            Record::new("storage.DriverData").with("Data", Value::nil_map()).with("Name", &record.snapshotter),
        );
    if let Some((own, all)) = around.sizes {
        object = object.with("SizeRw", own).with("SizeRootFs", all);
    }
    object
        .with("Mounts", mounts(record, around.root))
        .with("Config", config(record, &around.image))
        .with("NetworkSettings", network::settings(record, summary.status.is_running()))
        .into()
}
