//! Changing the limits of a cgroup that is in use.

use std::io;
use std::os::fd::AsFd;

use oci_spec::runtime::LinuxResources;

use super::devices::Devices;
use super::folder::Folder;
use super::hierarchies::{Controller, Home};
use super::limits::{self, Change, Plan, Setting};
use super::{Cgroup, CgroupPath, attach_filter, readable, v1, words, write_devices};
use crate::error::{Error, Result};
use crate::rootless;
use crate::sys::bpf;

impl Cgroup {
    /// Changes the limits that `resources` names, and the device rules if it has any; all others stay.
    ///
    /// A limit whose controller this cgroup was made without is an error. If one fails, those before it are put back to what they
    /// were, as far as the kernel lets them; device rules come last.
    pub fn set(&self, resources: &LinuxResources) -> Result<()> {
        let folders: Vec<Folder> = self.paths.iter().map(CgroupPath::open).collect::<Result<_>>()?;
        let unified = self.paths.iter().position(CgroupPath::is_unified);
        let enabled = match unified {
            Some(at) => words(&folders[at], "cgroup.controllers")
                .map_err(self.paths[at].io("read the controllers of cgroup"))?,
            None => Vec::new(),
        };
        let only_v2 = self.paths.iter().all(CgroupPath::is_unified);
        let home = |controller: Controller| {
            if self.paths.iter().any(|p| p.has(controller)) {
                return Home::V1;
            }
            match controller.v2_name() {
                Some(name) if enabled.iter().any(|e| e == name) => Home::V2,
                None if only_v2 && controller == Controller::Devices => Home::V2,
                _ => Home::Nowhere,
            }
        };
        let current = |file: &str| match unified {
            Some(at) => folders[at].read(file),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let plan = limits::plan(resources, &home, &current)?;
        if let (Some(memory), Some(at)) = (resources.memory(), unified)
            && memory.check_before_update() == Some(true)
            && home(Controller::Memory) == Home::V2
        {
            check_usage(&folders[at], memory.limit())?;
        }
        // An empty list of rules would deny everything; nobody who changes a limit means that.
        let rules = resources.devices().as_ref().filter(|rules| !rules.is_empty());
        let devices = rules.map(|rules| Devices::new(rules)).transpose()?;
        let mut changes = Vec::new();
        let result = self.change(&plan, &folders, &mut changes).and_then(|()| match &devices {
            Some(devices) => self.set_devices(devices, &folders, only_v2),
            None => Ok(()),
        });
        if result.is_err() {
            // The error is what made it necessary; what is refused here was in force a moment ago, and no remedy is left.
            limits::undo(&changes);
        }
        result
    }

    fn change<'a>(&'a self, plan: &'a Plan, folders: &'a [Folder], changes: &mut Vec<Change<'a>>) -> Result<()> {
        let v1 = |setting: &Setting| {
            let place = self.paths.iter().position(|place| place.has(setting.controller))?;
            folders.get(place)
        };
        limits::change(plan.v1.iter().filter_map(|setting| Some((setting, v1(setting)?))), changes)?;
        let unified = self.paths.iter().zip(folders).find(|(place, _)| place.is_unified()).map(|(_, folder)| folder);
        match (unified, plan.v2.first()) {
            (Some(unified), _) => limits::change(plan.v2.iter().map(|setting| (setting, unified)), changes),
            (None, Some(setting)) => Err(no_unified(setting)),
            (None, None) => Ok(()),
        }
    }

    fn set_devices(&self, devices: &Devices, folders: &[Folder], only_v2: bool) -> Result<()> {
        for (place, folder) in self.paths.iter().zip(folders) {
            if place.has(Controller::Devices) {
                let list = folder.read("devices.list").map_err(place.io("read the devices of cgroup"))?;
                write_devices(folder, &devices.v1()?.lines_from(&list))?;
            } else if place.is_unified() && only_v2 {
                replace_filter(devices, folder).map_err(place.io("attach a device filter to cgroup"))?;
            }
        }
        Ok(())
    }
}

pub(super) fn no_unified(setting: &Setting) -> Error {
    Error::UnsupportedField {
        field: setting.field.to_string(),
        reason: "this container has no cgroup of version 2".to_owned(),
    }
}

/// Attaches the new filter, then detaches the old ones: meanwhile both have to agree.
fn replace_filter(devices: &Devices, folder: &Folder) -> io::Result<()> {
    if rootless::ids() != rootless::Ids::Host {
        // There is none.
        return Ok(());
    }
    let cgroup = readable(folder)?;
    let cgroup = cgroup.as_fd();
    let old = bpf::device_filters(cgroup).map_err(io::Error::from_raw_os_error)?;
    if !devices.is_everything() {
        attach_filter(devices, folder)?;
    }
    old.iter().try_for_each(|program| bpf::detach_device_filter(cgroup, program).map_err(io::Error::from_raw_os_error))
}

fn check_usage(folder: &Folder, limit: Option<i64>) -> Result<()> {
    let usage = folder.read("memory.current").ok().and_then(|text| text.trim().parse::<i64>().ok());
    match (v1::set(limit), usage) {
        (Some(limit), Some(usage)) if limit >= 0 && limit <= usage => Err(Error::MemoryInUse { limit, usage }),
        _ => Ok(()),
    }
}
