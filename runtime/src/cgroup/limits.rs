//! From `linux.resources` to the list of control files that are to be written, and their writing.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;

use oci_spec::runtime::LinuxResources;

use super::folder::Folder;
use super::hierarchies::{Controller, Home};
use super::{v1, v2};
use crate::error::{Error, Result};

/// One control file and the value that it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The field that asked for it, by its path in `config.json`.
    pub(super) field: Cow<'static, str>,
    pub(super) controller: Controller,
    pub(super) file: Cow<'static, str>,
    /// The same control's name on other kernels.
    pub(super) otherwise: Option<&'static str>,
    pub(super) value: String,
    pub(super) absent: Absent,
}

/// What it means that the host has no such file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// The limit cannot be had: an error.
    Refuse,
    /// What is asked for is how things are anyway.
    Accept,
}

impl Setting {
    pub(super) fn new(
        field: impl Into<Cow<'static, str>>,
        controller: Controller,
        file: impl Into<Cow<'static, str>>,
        value: impl Display,
    ) -> Self {
        Self {
            field: field.into(),
            controller,
            file: file.into(),
            otherwise: None,
            value: value.to_string(),
            absent: Absent::Refuse,
        }
    }

    pub(super) fn or_file(self, otherwise: &'static str) -> Self {
        Self { otherwise: Some(otherwise), ..self }
    }

    pub(super) fn accept_absent(self) -> Self {
        Self { absent: Absent::Accept, ..self }
    }

    /// Whether it asks for no more than what a cgroup without the controller has.
    fn is_unlimited(&self) -> bool {
        matches!(self.value.as_str(), "max" | "-1") || self.absent == Absent::Accept
    }
}

/// The settings of both versions.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) v1: Vec<Setting>,
    pub(super) v2: Vec<Setting>,
}

/// What a cgroup's settings are now, where a value depends on it: the text of a version 2 file.
pub(super) type Current<'a> = &'a dyn Fn(&str) -> io::Result<String>;

/// Every setting that `resources` asks for but the device rules, each on the version where its controller lives.
pub(super) fn plan(
    resources: &LinuxResources,
    home: &dyn Fn(Controller) -> Home,
    current: Current<'_>,
) -> Result<Plan> {
    use Controller::{Blkio, Cpu, Cpuset, Hugetlb, Memory, NetCls, NetPrio, Pids, Rdma};
    let mut plan = Plan::default();
    let mut add = |controller, settings: Part<'_>| -> Result<()> {
        match home(controller) {
            Home::V1 => plan.v1.extend((settings.v1)()?),
            Home::V2 => plan.v2.extend((settings.v2)()?),
            // The version 1 side tells what is asked for; on a host of version 2 alone it is the other.
            Home::Nowhere => {
                let asked = (settings.v1)().or_else(|_| (settings.v2)())?;
                if let Some(setting) = asked.iter().find(|s| !s.is_unlimited()) {
                    return Err(Error::UnsupportedField {
                        field: setting.field.to_string(),
                        reason: format!("this host has no {} controller", controller.v1_name()),
                    });
                }
            }
        }
        Ok(())
    };
    if let Some(memory) = resources.memory() {
        add(Memory, Part { v1: &|| v1::memory(memory), v2: &|| v2::memory(memory, current) })?;
    }
    if let Some(cpu) = resources.cpu() {
        add(Cpu, Part { v1: &|| v1::cpu(cpu), v2: &|| v2::cpu(cpu, current) })?;
        add(Cpuset, Part { v1: &|| Ok(v1::cpuset(cpu)), v2: &|| Ok(v2::cpuset(cpu)) })?;
    }
    if let Some(pids) = resources.pids() {
        add(Pids, Part { v1: &|| Ok(v1::pids(*pids)), v2: &|| Ok(v1::pids(*pids)) })?;
    }
    if let Some(io) = resources.block_io() {
        add(Blkio, Part { v1: &|| v1::block_io(io), v2: &|| v2::block_io(io) })?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        add(Hugetlb, Part { v1: &|| v1::hugetlb(limits), v2: &|| v2::hugetlb(limits) })?;
    }
    if let Some(network) = resources.network() {
        add(NetCls, Part { v1: &|| Ok(v1::net_cls(network)), v2: &|| Ok(v1::net_cls(network)) })?;
        add(NetPrio, Part { v1: &|| Ok(v1::net_prio(network)), v2: &|| Ok(v1::net_prio(network)) })?;
    }
    if let Some(rdma) = resources.rdma() {
        add(Rdma, Part { v1: &|| Ok(v1::rdma(rdma)), v2: &|| Ok(v1::rdma(rdma)) })?;
    }
    if let Some(unified) = resources.unified() {
        plan.v2.extend(v2::unified(unified)?);
    }
    Ok(plan)
}

/// How one part of the resources is written in each version.
struct Part<'a> {
    v1: &'a dyn Fn() -> Result<Vec<Setting>>,
    v2: &'a dyn Fn() -> Result<Vec<Setting>>,
}

/// Writes the settings in their order.
///
/// Some pairs constrain each other (a memory limit may not be above that of memory and swap, a burst not above the quota), so which
/// goes first depends on what was there. One that is refused as invalid is therefore tried once more when the others are written.
pub(super) fn apply<'a>(settings: impl Iterator<Item = (&'a Setting, &'a Folder)>) -> Result<()> {
    let mut again = Vec::new();
    for (setting, folder) in settings {
        match write(setting, folder) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => again.push((setting, folder)),
            Err(source) => return Err(failed(setting, folder, source)),
            Ok(()) => {}
        }
    }
    for (setting, folder) in again {
        write(setting, folder).map_err(|source| failed(setting, folder, source))?;
    }
    Ok(())
}

/// A file that was written, and how to put it back.
#[derive(Debug)]
pub(super) struct Change<'a> {
    folder: &'a Folder,
    file: &'a str,
    before: String,
}

/// As [`apply`], in a cgroup that is in use: what was there before goes to `changes`, also if it fails.
pub(super) fn change<'a>(
    settings: impl Iterator<Item = (&'a Setting, &'a Folder)> + Clone,
    changes: &mut Vec<Change<'a>>,
) -> Result<()> {
    for (setting, folder) in settings.clone() {
        let files = std::iter::once(&*setting.file).chain(setting.otherwise);
        // What cannot be read cannot be put back; the attempt to write tells what is wrong with it.
        let found = files.into_iter().find_map(|file| Some((file, folder.read(file).ok()?)));
        changes.extend(found.map(|(file, text)| Change { folder, file, before: before(file, &setting.value, &text) }));
    }
    apply(settings)
}

/// Puts back what was changed, the last one first. Pairs that constrain each other are tried twice, as when they were written.
pub(super) fn undo(changes: &[Change<'_>]) {
    let refused = changes.iter().rev().filter(|change| change.folder.write(change.file, &change.before).is_err());
    for change in refused.collect::<Vec<_>>() {
        let _ = change.folder.write(change.file, &change.before);
    }
}

/// What to write so that a file is as its text says, where `value` is about to be written.
fn before(file: &str, value: &str, text: &str) -> String {
    let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    // Some files have a line for each device, and are written a line at a time.
    let keyed = value.split_once(' ').map(|(key, _)| key).filter(|key| key.contains(':') || *key == "default");
    if let Some(key) = keyed {
        let there = text.lines().find(|line| first(line) == key);
        let none = match file {
            "io.max" => "rbps=max wbps=max riops=max wiops=max",
            "io.weight" => "default",
            _ => "0",
        };
        return there.map_or_else(|| format!("{key} {none}"), |line| line.trim().to_owned());
    }
    if file == "memory.oom_control" {
        let disabled = text.lines().find_map(|line| line.strip_prefix("oom_kill_disable "));
        return disabled.unwrap_or("0").to_owned();
    }
    // An empty write would not reach the kernel; a line break empties a list.
    let text = text.trim();
    if text.is_empty() { "\n".to_owned() } else { text.to_owned() }
}

fn write(setting: &Setting, folder: &Folder) -> io::Result<()> {
    let mut done = folder.write(&setting.file, &setting.value);
    if let (Err(e), Some(otherwise)) = (&done, setting.otherwise)
        && e.kind() == io::ErrorKind::NotFound
    {
        done = folder.write(otherwise, &setting.value);
    }
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound && setting.absent == Absent::Accept => Ok(()),
        other => other,
    }
}

fn failed(setting: &Setting, folder: &Folder, source: io::Error) -> Error {
    let path = folder.path.join(&*setting.file);
    if source.kind() == io::ErrorKind::NotFound {
        return Error::UnsupportedField {
            field: setting.field.to_string(),
            reason: format!("this host has no {}", path.display()),
        };
    }
    Error::Limit { field: setting.field.to_string(), value: setting.value.clone(), path, source }
}

#[cfg(test)]
mod tests {
    use super::before;

    #[test]
    fn what_was_there_is_put_back_as_it_is_written() {
        for (file, value, text, want) in [
            ("memory.max", "5", "max\n", "max"),
            ("cpu.max", "5", "max 100000\n", "max 100000"),
            ("cpuset.cpus", "0", "\n", "\n"),
            ("io.max", "8:0 rbps=5", "8:16 rbps=1\n8:0 rbps=7 wbps=max\n", "8:0 rbps=7 wbps=max"),
            ("io.max", "8:0 rbps=5", "", "8:0 rbps=max wbps=max riops=max wiops=max"),
            ("io.weight", "default 9", "default 100\n8:0 50\n", "default 100"),
            ("io.weight", "8:0 9", "default 100\n", "8:0 default"),
            ("blkio.throttle.read_bps_device", "8:0 9", "", "8:0 0"),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\n", "0"),
        ] {
            assert_eq!(before(file, value, text), want, "{file} {value}");
        }
    }
}
