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
        add(Memory, Part { v1: &|| v1::memory(memory), v2: &|| v2::memory(memory) })?;
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
