//! What a caller asks of a new container.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use estiba_network::PortMapping;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::images::Image;
use crate::networks::Connection;
use crate::volumes::VolumeUse;

/// A container to be made: an image and what differs from the image's own configuration.
///
/// ```
/// use estiba_engine::{CreateRequest, Image, Limits};
/// # fn request(image: Image) -> CreateRequest {
/// CreateRequest {
///     command: vec!["true".into()],
///     limits: Limits { memory: Some(64 << 20), ..Limits::default() },
///     ..CreateRequest::new(image)
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, set by name")]
pub struct CreateRequest {
    /// The image, as [`Engine::import`](crate::Engine::import) returned it.
    pub image: Image,
    /// The container's name; one is made up if there is none.
    pub name: Option<String>,
    /// Arguments: they replace the image's `Cmd`.
    pub command: Vec<String>,
    /// Replaces the image's `Entrypoint` and drops its `Cmd`. An empty list clears it.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE`, over the image's.
    pub env: Vec<String>,
    /// Working directory, instead of the image's.
    pub workdir: Option<String>,
    /// `UID[:GID]` or `NAME[:GROUP]`, instead of the image's.
    pub user: Option<String>,
    /// Supplementary groups, by number or by the image's names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_add: Vec<String>,
    /// Host name; the first 12 characters of the id if there is none.
    pub hostname: Option<String>,
    /// NIS domain name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// Marks of the user's own, over the image's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Folders and files of the host shown inside.
    pub binds: Vec<Bind>,
    /// Volumes inside. One without a name is made for this container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeUse>,
    /// Memory file systems inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` in bytes; 64 MiB if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// What the container may use.
    #[serde(default)]
    pub limits: Limits,
    /// Limits of each process, such as `nofile`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters of the container's own namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// How ready the kernel is to end its processes when memory runs out, from -1000 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Capabilities beyond the default ones (`NET_ADMIN`, `CAP_NET_ADMIN`, `ALL`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Default capabilities that it does not get.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// It has all capabilities and devices, and nothing is hidden from it or read-only: root in it is root on the host.
    #[serde(default)]
    pub privileged: bool,
    /// Programs with a set-user-id bit or capabilities of their own get them (`sudo`, `su`), which by default they do not.
    #[serde(default)]
    pub new_privileges: bool,
    /// Its system calls are not filtered.
    #[serde(default, skip_serializing_if = "is_false")]
    pub seccomp_unconfined: bool,
    /// Nothing in `/proc` and `/sys` is hidden from it or read-only.
    #[serde(default, skip_serializing_if = "is_false")]
    pub paths_unmasked: bool,
    /// Devices of the host that it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Devices that it may use if it has or makes a node for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_rules: Vec<DeviceRule>,
    /// Limits of its traffic with block devices of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_limits: Vec<DeviceLimit>,
    /// The container's network.
    pub network: NetworkMode,
    /// Its places in networks. The first one is the way to everywhere else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Connection>,
    /// Ports of the host that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// The ports that the image says it serves are published, too, at free ports of the host.
    #[serde(default)]
    pub publish_all: bool,
    /// Whose processes it sees.
    #[serde(default, skip_serializing_if = "Namespace::is_own")]
    pub pid: Namespace,
    /// Whose host name it has; a container's cannot be had.
    #[serde(default, skip_serializing_if = "Namespace::is_own")]
    pub uts: Namespace,
    /// Where its cgroups begin; at a container's they cannot.
    #[serde(default, skip_serializing_if = "Namespace::is_own")]
    pub cgroup_namespace: Namespace,
    /// Its shared memory and message queues.
    #[serde(default)]
    pub ipc: IpcMode,
    /// Whom it asks for names, instead of what its network says.
    #[serde(default)]
    pub dns: Dns,
    /// Names that are in its `/etc/hosts` besides the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<ExtraHost>,
    /// What hooks and other runtimes are told of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The root file system is read-only.
    pub read_only: bool,
    /// A terminal is allocated for the process.
    pub tty: bool,
    /// The terminal's first size: columns and rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_size: Option<(u16, u16)>,
    /// Standard input is connected; without it the process reads from `/dev/null`.
    pub interactive: bool,
    /// Record, root and all that is the container's are removed when it has ended.
    pub auto_remove: bool,
    /// Whether it is started again when it has ended.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// The signal that asks it to end; the image's, or SIGTERM, if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// Seconds between that signal and SIGKILL; the image's, or 10. Negative: no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// How to find out whether it is well, over what the image says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Healthcheck>,
    /// Where its output is kept.
    #[serde(default)]
    pub log: LogConfig,
    /// An OCI runtime's program file, or a name that the program has registered ([`Runtimes`](crate::shim::Runtimes)); the
    /// built-in runtime if there is none.
    pub runtime: Option<PathBuf>,
}

impl CreateRequest {
    /// A request for `image` that changes nothing of the image's configuration.
    #[must_use]
    pub fn new(image: Image) -> Self {
        Self {
            image,
            name: None,
            command: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            workdir: None,
            user: None,
            group_add: Vec::new(),
            hostname: None,
            domainname: None,
            labels: BTreeMap::new(),
            binds: Vec::new(),
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            shm_size: None,
            limits: Limits::default(),
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            oom_score_adj: None,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            privileged: false,
            new_privileges: false,
            seccomp_unconfined: false,
            paths_unmasked: false,
            devices: Vec::new(),
            device_rules: Vec::new(),
            device_limits: Vec::new(),
            network: NetworkMode::None,
            connections: Vec::new(),
            ports: Vec::new(),
            publish_all: false,
            pid: Namespace::Own,
            uts: Namespace::Own,
            cgroup_namespace: Namespace::Own,
            ipc: IpcMode::Private,
            dns: Dns::default(),
            extra_hosts: Vec::new(),
            annotations: BTreeMap::new(),
            read_only: false,
            tty: false,
            console_size: None,
            interactive: false,
            auto_remove: false,
            restart: RestartPolicy::No,
            stop_signal: None,
            stop_timeout: None,
            health: None,
            log: LogConfig::default(),
            runtime: None,
        }
    }
}

/// What a container may use. `None` is no limit of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; -1 is any amount of swap. Without it a limited container gets as much swap as memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Bytes of memory that the kernel tries to leave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// CPU time per wall time, in units of 0.000000001 CPU (Docker's `NanoCpus`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Weight against other containers; 1024 is the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// The CPUs that it may run on (`0-2,4`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// The memory nodes that it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Greatest number of processes and threads; 0 and less are any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<i64>,
    /// Weight of its block I/O, from 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blkio_weight: Option<u16>,
    /// How ready the kernel is to swap its memory out, from 0 to 100. Version 1 of cgroups only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swappiness: Option<u64>,
    /// It waits when its memory runs out, and nothing is killed. Version 1 of cgroups only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill_disable: Option<bool>,
}

impl Limits {
    /// These limits, with those of `changes` that are there in their place.
    #[must_use]
    pub fn changed(&self, changes: &Self) -> Self {
        Self {
            memory: changes.memory.or(self.memory),
            memory_swap: changes.memory_swap.or(self.memory_swap),
            memory_reservation: changes.memory_reservation.or(self.memory_reservation),
            nano_cpus: changes.nano_cpus.or(self.nano_cpus),
            cpu_shares: changes.cpu_shares.or(self.cpu_shares),
            cpu_quota: changes.cpu_quota.or(self.cpu_quota),
            cpu_period: changes.cpu_period.or(self.cpu_period),
            cpuset_cpus: changes.cpuset_cpus.clone().or_else(|| self.cpuset_cpus.clone()),
            cpuset_mems: changes.cpuset_mems.clone().or_else(|| self.cpuset_mems.clone()),
            pids_limit: changes.pids_limit.or(self.pids_limit),
            blkio_weight: changes.blkio_weight.or(self.blkio_weight),
            memory_swappiness: changes.memory_swappiness.or(self.memory_swappiness),
            oom_kill_disable: changes.oom_kill_disable.or(self.oom_kill_disable),
        }
    }
}

/// A limit of each process: [getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Docker's name for it, in lower case and without `RLIMIT_`: `nofile`, `nproc`, `core` …
    pub name: String,
    /// What holds now; `u64::MAX` is no limit.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// A memory file system in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path inside.
    pub destination: String,
    /// Options of [tmpfs(5)](https://man7.org/linux/man-pages/man5/tmpfs.5.html) and of the mount (`size=64m`, `mode=1777`, `exec`).
    pub options: Vec<String>,
}

/// Whether a container is started again when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It is not.
    #[default]
    No,
    /// If it ended with another status than 0; that often at most, if a number is given.
    OnFailure {
        /// The greatest number of times.
        retries: Option<u32>,
    },
    /// Whatever it ended with, unless somebody has stopped it; after a reboot in any case.
    Always,
    /// As `Always`, but one that somebody has stopped stays so after a reboot, too.
    UnlessStopped,
}

impl RestartPolicy {
    /// The policy's name as Docker writes it, without the number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure { .. } => "on-failure",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |reason| Error::Request { field: "the restart policy", value: text.to_owned(), reason };
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        match (name, number) {
            ("" | "no", None) => Ok(Self::No),
            ("always", None) => Ok(Self::Always),
            ("unless-stopped", None) => Ok(Self::UnlessStopped),
            ("on-failure", None) => Ok(Self::OnFailure { retries: None }),
            ("on-failure", Some(number)) => {
                let retries = number.parse().map_err(|_| refused("the number of retries must be 0 or more"))?;
                Ok(Self::OnFailure { retries: Some(retries).filter(|retries| *retries > 0) })
            }
            ("no" | "always" | "unless-stopped", Some(_)) => Err(refused("only on-failure takes a number of retries")),
            _ => Err(refused("use no, on-failure[:RETRIES], always or unless-stopped")),
        }
    }
}

/// How to find out whether a container is well. What is not said is the image's, or else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` and its arguments, or `CMD-SHELL` and a command line. Empty is the image's.
    pub test: Vec<String>,
    /// Time between checks; 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// Time after which a check has failed; 30 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Time from the start in which failures do not count; none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Duration>,
    /// Time between checks in the start period; 5 seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy; 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// Where a container's output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogConfig {
    /// In Docker's json-file format, beside the record.
    JsonFile {
        /// Bytes after which a new file is begun.
        max_size: Option<u64>,
        /// Number of files that are kept.
        max_files: Option<u32>,
    },
    /// Nowhere.
    None,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self::JsonFile { max_size: None, max_files: None }
    }
}

/// A folder or file of the host that is shown inside a container (`SRC:DST[:ro]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host. Made as a folder if it is not there, as Docker does for `-v`.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: String,
    /// Not writable inside; mounts below it included.
    pub read_only: bool,
}

/// The network that a container is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// A network namespace of its own with the loopback interface only.
    #[default]
    None,
    /// The host's network namespace.
    Host,
    /// A network namespace of its own, connected to the networks that [`CreateRequest::connections`] name, or to
    /// [`DEFAULT_NETWORK`](crate::DEFAULT_NETWORK).
    Connected,
    /// That of another container, by name or id, which has to run when this one is started. Its host name and the files that go
    /// with it are the other one's, too.
    Container(String),
}

/// Whose namespace of a kind a container is in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Its own.
    #[default]
    Own,
    /// The host's.
    Host,
    /// That of another container, by name or id, which has to run when this one is started.
    Container(String),
}

impl Namespace {
    fn is_own(&self) -> bool {
        *self == Self::Own
    }
}

/// A container's shared memory and message queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcMode {
    /// Its own, with a `/dev/shm`.
    #[default]
    Private,
    /// Its own, without a `/dev/shm`.
    None,
    /// The host's.
    Host,
}

/// A device of the host that a container may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its file on the host; a folder is all devices below it.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// What it may do with it.
    pub access: DeviceAccess,
}

/// Devices that a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Character or block devices; all if it is not said.
    pub kind: Option<DeviceKind>,
    /// All if it is not said.
    pub major: Option<u32>,
    /// All if it is not said.
    pub minor: Option<u32>,
    /// What it may do with them.
    pub access: DeviceAccess,
}

/// A kind of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAccess {
    /// Read from it.
    pub read: bool,
    /// Write to it.
    pub write: bool,
    /// Make nodes for it.
    pub make: bool,
}

impl fmt::Display for DeviceAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.read, "r"), (self.write, "w"), (self.make, "m")];
        letters.into_iter().filter(|(is, _)| *is).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

impl FromStr for DeviceAccess {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = text.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm')) && !text.is_empty() && text.len() <= 3;
        let reason = "it must be of r, w and m";
        let refused = || Error::Request { field: "the access to a device", value: text.to_owned(), reason };
        let has = |letter| text.contains(letter);
        if known { Ok(Self { read: has('r'), write: has('w'), make: has('m') }) } else { Err(refused()) }
    }
}

impl FromStr for DeviceRule {
    type Err = Error;

    /// `TYPE MAJOR:MINOR ACCESS`, such as `c 1:* rwm`; the type is `a`, `b` or `c`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let reason = "it must be TYPE MAJOR:MINOR ACCESS, such as 'c 42:* rmw'";
        let refused = || Error::Request { field: "the device rule", value: text.to_owned(), reason };
        let words: Vec<&str> = text.split(' ').collect();
        let &[kind, numbers, access] = words.as_slice() else { return Err(refused()) };
        let (major, minor) = numbers.split_once(':').ok_or_else(refused)?;
        let number = |text: &str| match text {
            "*" => Ok(None),
            text => text.parse().map(Some).map_err(|_| refused()),
        };
        Ok(Self {
            kind: match kind {
                "a" => None,
                "b" => Some(DeviceKind::Block),
                "c" => Some(DeviceKind::Char),
                _ => return Err(refused()),
            },
            major: number(major)?,
            minor: number(minor)?,
            access: access.parse()?,
        })
    }
}

/// A limit of a container's traffic with a block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimit {
    /// The device's file on the host.
    pub device: PathBuf,
    /// Of what.
    pub kind: DeviceLimitKind,
    /// Bytes or operations a second, or a weight from 10 to 1000.
    pub value: u64,
}

/// What of the traffic with a block device is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceLimitKind {
    /// Its weight against that of other containers.
    Weight,
    /// Bytes read in a second.
    ReadBps,
    /// Bytes written in a second.
    WriteBps,
    /// Reads in a second.
    ReadIops,
    /// Writes in a second.
    WriteIops,
}

/// Whom a container asks for names: `/etc/resolv.conf`. What is empty is as without it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<IpAddr>,
    /// Domains in which names are looked up; `.` alone is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of [resolv.conf(5)](https://man7.org/linux/man-pages/man5/resolv.conf.5.html).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A name in a container's `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl FromStr for NetworkMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match (text, text.strip_prefix("container:")) {
            ("none", _) => Ok(Self::None),
            ("host", _) => Ok(Self::Host),
            ("", _) | (_, Some("")) => Err(Error::NetworkMode { mode: text.to_owned() }),
            (_, Some(name)) => Ok(Self::Container(name.to_owned())),
            (_, None) => Ok(Self::Connected),
        }
    }
}

impl FromStr for Bind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |reason| Error::Bind { bind: text.to_owned(), reason };
        let mut parts = text.split(':');
        let (Some(source), Some(destination), options, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("it must be SRC:DST or SRC:DST:ro"));
        };
        if !source.starts_with('/') {
            return Err(invalid("the source must be an absolute path (named volumes are not supported yet)"));
        }
        if !destination.starts_with('/') || destination.split('/').all(|part| part.is_empty() || part == ".") {
            return Err(invalid("the destination must be an absolute path other than /"));
        }
        let mut read_only = false;
        for option in options.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "rw" => read_only = false,
                _ => return Err(invalid("only the options ro and rw are supported")),
            }
        }
        Ok(Self { source: PathBuf::from(source), destination: destination.to_owned(), read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_are_parsed_or_refused() {
        let bind: Bind = "/a:/b:ro".parse().expect("a bind");
        assert_eq!(bind, Bind { source: "/a".into(), destination: "/b".into(), read_only: true });
        assert!(!"/a:/b".parse::<Bind>().expect("a bind").read_only);
        for bad in ["", "/a", "a:/b", "/a:b", "/a:/", "/a:/.", "/a:/b:ro:x", "/a:/b:exec"] {
            assert!(bad.parse::<Bind>().is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn restart_policies() {
        for (text, expected) in [
            ("no", Some(RestartPolicy::No)),
            ("", Some(RestartPolicy::No)),
            ("always", Some(RestartPolicy::Always)),
            ("unless-stopped", Some(RestartPolicy::UnlessStopped)),
            ("on-failure", Some(RestartPolicy::OnFailure { retries: None })),
            ("on-failure:0", Some(RestartPolicy::OnFailure { retries: None })),
            ("on-failure:3", Some(RestartPolicy::OnFailure { retries: Some(3) })),
            ("on-failure:-1", None),
            ("on-failure:", None),
            ("always:3", None),
            ("sometimes", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }

    #[test]
    fn network_modes() {
        assert_eq!("none".parse::<NetworkMode>().expect("a mode"), NetworkMode::None);
        let other = NetworkMode::Container("web".into());
        assert_eq!("container:web".parse::<NetworkMode>().expect("a mode"), other);
        assert_eq!("bridge".parse::<NetworkMode>().expect("a mode"), NetworkMode::Connected);
        for refused in ["", "container:"] {
            assert!(refused.parse::<NetworkMode>().is_err(), "{refused}");
        }
        // As records had it before there were others.
        assert_eq!(serde_json::to_string(&NetworkMode::Host).expect("text"), "\"host\"");
        let text = serde_json::to_string(&other).expect("text");
        assert_eq!(serde_json::from_str::<NetworkMode>(&text).expect("a mode"), other);
    }

    #[test]
    fn device_rules() {
        let rule: DeviceRule = "c 1:* rm".parse().expect("a rule");
        let access = DeviceAccess { read: true, write: false, make: true };
        assert_eq!(rule, DeviceRule { kind: Some(DeviceKind::Char), major: Some(1), minor: None, access });
        assert!("a *:* rwm".parse::<DeviceRule>().is_ok());
        for refused in ["", "c 1:* q", "x 1:1 r", "c 1 r", "c 1:1", "c 1:1  r", "c -1:1 r", "c 1:1 rrrr"] {
            assert!(refused.parse::<DeviceRule>().is_err(), "{refused}");
        }
    }
}
