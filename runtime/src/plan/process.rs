//! The process: its rights, its place, its program.

use std::ffi::CString;

use oci_spec::runtime::{Capabilities, Capability, PosixRlimitType, Process};

use super::{Filter, Host, Step, Target, c_string, invalid, label, schedule};
use crate::rights::Common;
use crate::sys::process::{CapabilitySets, Strings};
use crate::{Keyring, Result};

/// Where programs are looked for if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `CAP_SYS_ADMIN`.
const SYS_ADMIN: u64 = 1 << 21;

/// Room for `HOME=` and a path.
const HOME: usize = 5 + 4096;

/// A process that is to be: the container's first, or one that is added later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program<'a> {
    pub(super) process: &'a Process,
    pub(super) common: Common<'a>,
    pub(super) host: &'a Host<'a>,
    pub(super) in_user_namespace: bool,
    pub(super) has_groups: bool,
}

/// What lies between the preparations and the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The child waits until it is on record, and then for `start`.
    UntilStart,
    /// None: the parent is told, and that is all.
    None,
}

impl Program<'_> {
    pub(super) fn cwd(&self) -> Result<Target> {
        Target::new(self.process.cwd(), "process.cwd")
    }

    /// What needs the host's /proc or its privileges.
    pub(super) fn early(&self) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        if let Some(score) = self.process.oom_score_adj() {
            steps.push(Step::OomScore(c_string(score.to_string().as_bytes(), "process.oomScoreAdj")?));
        }
        steps.extend(limits(self.process)?.into_iter().map(|(resource, name, soft, hard)| Step::Limit {
            resource,
            name,
            soft,
            hard,
        }));
        Ok(steps)
    }

    /// Its terminal, shown as `/dev/console` if there is a `place` for that.
    pub(super) fn console(&self, target: Option<Target>) -> Result<Step> {
        let length =
            |value: u64| u16::try_from(value).map_err(|_| invalid("process.consoleSize", "is larger than 65535"));
        let size = self.process.console_size();
        let (columns, rows) = size.map_or(Ok((0, 0)), |size| Ok((length(size.width())?, length(size.height())?)))?;
        Ok(Step::Console { columns, rows, uid: self.process.user().uid(), target })
    }

    /// From the switched root to the program.
    pub(super) fn late(&self, pause: Pause) -> Result<Vec<Step>> {
        let process = self.process;
        let user = process.user();
        let mut steps = Vec::new();
        if self.host.keyring == Keyring::New {
            steps.push(Step::Keyring(c_string(format!("_ses.{}", self.host.id).as_bytes(), "id")?));
        }
        if let Some(policy) = self.common.memory_policy {
            steps.push(schedule::memory_policy(policy)?);
        }
        if let Some(personality) = self.common.personality {
            steps.push(schedule::personality(personality)?);
        }
        steps.push(Step::Session);
        if self.host.terminal {
            steps.push(Step::ControllingTerminal);
        }
        steps.push(Step::Descriptors);
        let confined = process.no_new_privileges() == Some(true);
        let set = |set: &Option<Capabilities>| set.as_ref().map_or(0, mask);
        // What the calling process does not have it cannot give. A user namespace starts with all.
        let given = if self.in_user_namespace { u64::MAX } else { self.host.permitted };
        let capabilities = process.capabilities().as_ref();
        let bounding = capabilities.map_or(0, |sets| set(sets.bounding()));
        let permitted = capabilities.map_or(0, |sets| set(sets.permitted())) & given;
        let sets = CapabilitySets {
            permitted,
            effective: capabilities.map_or(0, |sets| set(sets.effective())) & permitted,
            inheritable: capabilities.map_or(0, |sets| set(sets.inheritable())) & given & bounding,
        };
        // What cannot be given is left out, as the specification has it.
        let ambient = capabilities.map_or(0, |sets| set(sets.ambient())) & sets.permitted & sets.inheritable;
        steps.append(&mut label::labels(process, self.host)?);
        steps.push(Step::Bounding(bounding));
        steps.push(Step::WorkingDirectory(self.cwd()?));
        steps.push(Step::KeepCapabilities);
        let groups = user.additional_gids().clone().unwrap_or_default();
        if self.has_groups {
            steps.push(Step::Groups(groups));
        } else if !groups.is_empty() {
            return Err(invalid("process.user.additionalGids", "without root there are none"));
        }
        steps.push(Step::Gid(user.gid()));
        steps.push(Step::Uid(user.uid()));
        // The filter comes last: it need not allow what is done here. Without noNewPrivileges only CAP_SYS_ADMIN loads one, so that
        // is kept for it, and goes afterwards.
        let mut filter: Vec<Step> = self.host.filter.map(Filter::step).into_iter().collect();
        let mut rights = vec![Step::Capabilities(sets), Step::Ambient(ambient)];
        if confined || filter.is_empty() {
            steps.append(&mut rights);
        } else {
            let (effective, permitted) = (sets.effective | SYS_ADMIN, sets.permitted | SYS_ADMIN);
            steps.push(Step::Capabilities(CapabilitySets { effective, permitted, ..sets }));
            filter.append(&mut rights);
        }
        steps.push(Step::Umask(user.umask().unwrap_or(0o022)));
        if confined {
            steps.push(Step::NoNewPrivileges);
        }
        if !has_home(process) {
            steps.push(Step::Home { uid: user.uid() });
        }
        steps.push(Step::FindExecutable);
        // Whoever starts the container does not speak with its process.
        if self.host.filter == Some(Filter::Asks) {
            steps.append(&mut filter);
        }
        match pause {
            Pause::UntilStart => {
                steps.extend([Step::Ready, Step::Gate]);
                if self.host.filter != Some(Filter::Asks) {
                    // Others may have changed a shared folder during the wait (CVE-2019-5736).
                    steps.push(Step::FindExecutable);
                }
            }
            Pause::None => steps.push(Step::Prepared),
        }
        steps.push(Step::Signals);
        steps.append(&mut filter);
        steps.push(Step::Execute);
        Ok(steps)
    }

    /// What may be the program, its arguments, its environment.
    pub(super) fn texts(&self) -> Result<(Vec<CString>, Strings, Strings)> {
        let process = self.process;
        let arguments = process.args().as_deref().unwrap_or_default();
        let environment = process.env().as_deref().unwrap_or_default();
        let program = arguments.first().map(String::as_str).unwrap_or_default();
        if program.is_empty() {
            return Err(invalid("process.args", "has an empty program"));
        }
        let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
        let candidates: Vec<String> = if program.contains('/') {
            vec![program.to_owned()]
        } else {
            path.split(':')
                .map(|folder| {
                    let folder = if folder.is_empty() { "." } else { folder };
                    format!("{}/{program}", folder.trim_end_matches('/'))
                })
                .collect()
        };
        let texts = |list: &[String], field: &str| -> Result<Vec<CString>> {
            list.iter().map(|text| c_string(text.as_bytes(), field)).collect()
        };
        let mut environment = texts(environment, "process.env")?;
        if self.host.preserved > 0 && !environment.iter().any(|entry| entry.to_bytes().starts_with(b"LISTEN_FDS=")) {
            // What systemd's socket activation hands over.
            if let Ok(count) = std::env::var("LISTEN_FDS") {
                environment.push(c_string(format!("LISTEN_FDS={count}").as_bytes(), "LISTEN_FDS")?);
                environment.push(c"LISTEN_PID=1".to_owned());
            }
        }
        let spare = if has_home(process) { None } else { Some(vec![0; HOME]) };
        Ok((
            texts(&candidates, "process.args")?,
            Strings::new(texts(arguments, "process.args")?, None),
            Strings::new(environment, spare),
        ))
    }
}

/// The capabilities that a process will not have though its configuration names them.
pub(crate) fn capability_warnings(process: &Process, given: u64) -> Vec<String> {
    let Some(sets) = process.capabilities() else { return Vec::new() };
    let set = |set: &Option<Capabilities>| set.as_ref().map_or(0, mask);
    let permitted = set(sets.permitted()) & given;
    let inheritable = set(sets.inheritable()) & given & set(sets.bounding());
    let names = |wanted: &Option<Capabilities>, lacking: u64| {
        let mut names: Vec<String> =
            wanted.iter().flatten().filter(|c| lacking & 1 << number(**c) != 0).map(|c| format!("CAP_{c}")).collect();
        names.sort_unstable();
        names
    };
    let lacking = names(sets.permitted(), set(sets.permitted()) & !given);
    let lacking =
        lacking.into_iter().map(|name| format!("can't give capability {name}: this process does not have it"));
    let ambient = names(sets.ambient(), set(sets.ambient()) & !(permitted & inheritable));
    let ambient = ambient
        .into_iter()
        .map(|name| format!("can't raise ambient capability {name}: it is not both permitted and inheritable"));
    lacking.chain(ambient).collect()
}

fn has_home(process: &Process) -> bool {
    process.env().iter().flatten().any(|entry| entry.starts_with("HOME="))
}

/// The limits: number, name, soft, hard.
pub(crate) fn limits(process: &Process) -> Result<Vec<(u32, String, u64, u64)>> {
    let mut limits: Vec<(u32, String, u64, u64)> = Vec::new();
    for (at, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{at}]");
        let (resource, name) = resource(limit.typ());
        if limits.iter().any(|(known, ..)| *known == resource) {
            return Err(invalid(field, format!("{name} is listed twice")));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(field, format!("{name}: the soft limit is above the hard one")));
        }
        limits.push((resource, name.to_owned(), limit.soft(), limit.hard()));
    }
    Ok(limits)
}

#[allow(clippy::unnecessary_cast, reason = "the constants' type differs between C libraries")]
fn resource(kind: PosixRlimitType) -> (u32, &'static str) {
    match kind {
        PosixRlimitType::RlimitCpu => (libc::RLIMIT_CPU as u32, "RLIMIT_CPU"),
        PosixRlimitType::RlimitFsize => (libc::RLIMIT_FSIZE as u32, "RLIMIT_FSIZE"),
        PosixRlimitType::RlimitData => (libc::RLIMIT_DATA as u32, "RLIMIT_DATA"),
        PosixRlimitType::RlimitStack => (libc::RLIMIT_STACK as u32, "RLIMIT_STACK"),
        PosixRlimitType::RlimitCore => (libc::RLIMIT_CORE as u32, "RLIMIT_CORE"),
        PosixRlimitType::RlimitRss => (libc::RLIMIT_RSS as u32, "RLIMIT_RSS"),
        PosixRlimitType::RlimitNproc => (libc::RLIMIT_NPROC as u32, "RLIMIT_NPROC"),
        PosixRlimitType::RlimitNofile => (libc::RLIMIT_NOFILE as u32, "RLIMIT_NOFILE"),
        PosixRlimitType::RlimitMemlock => (libc::RLIMIT_MEMLOCK as u32, "RLIMIT_MEMLOCK"),
        PosixRlimitType::RlimitAs => (libc::RLIMIT_AS as u32, "RLIMIT_AS"),
        PosixRlimitType::RlimitLocks => (libc::RLIMIT_LOCKS as u32, "RLIMIT_LOCKS"),
        PosixRlimitType::RlimitSigpending => (libc::RLIMIT_SIGPENDING as u32, "RLIMIT_SIGPENDING"),
        PosixRlimitType::RlimitMsgqueue => (libc::RLIMIT_MSGQUEUE as u32, "RLIMIT_MSGQUEUE"),
        PosixRlimitType::RlimitNice => (libc::RLIMIT_NICE as u32, "RLIMIT_NICE"),
        PosixRlimitType::RlimitRtprio => (libc::RLIMIT_RTPRIO as u32, "RLIMIT_RTPRIO"),
        PosixRlimitType::RlimitRttime => (libc::RLIMIT_RTTIME as u32, "RLIMIT_RTTIME"),
    }
}

fn mask(capabilities: &Capabilities) -> u64 {
    capabilities.iter().fold(0, |mask, capability| mask | 1 << number(*capability))
}

/// The number of a capability in [`capabilities(7)`](https://man7.org/linux/man-pages/man7/capabilities.7.html).
fn number(capability: Capability) -> u8 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}
