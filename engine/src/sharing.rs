//! Containers that are put into the namespaces of others.
//!
//! A namespace is joined by the number of a process that is in it. Its shim has not reaped the other container's first process for
//! as long as it says that it runs, so the number is that process's: it is asked before, and once more when the namespaces have been
//! joined and before anything runs in them.

use std::path::PathBuf;

use estiba_shim::proto::TaskStatus;

use crate::engine::Inner;
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::record::Record;
use crate::request::{CreateRequest, Namespace, NetworkMode};

/// The containers that another one shares namespaces with.
#[derive(Debug, Default)]
pub(crate) struct Donors {
    network: Option<Donor>,
    pid: Option<Donor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Donor {
    id: Id,
    /// Its first process.
    pid: u32,
}

impl Donors {
    /// What the network namespace is joined by.
    pub(crate) fn network(&self) -> Option<PathBuf> {
        self.network.as_ref().map(|donor| donor.namespace("net"))
    }

    /// What the pid namespace is joined by.
    pub(crate) fn pid(&self) -> Option<PathBuf> {
        self.pid.as_ref().map(|donor| donor.namespace("pid"))
    }
}

impl Donor {
    fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }
}

impl Inner {
    /// Names the containers that a request refers to by their ids: names may go to others.
    pub(crate) fn name_donors(&self, request: &mut CreateRequest) -> Result<()> {
        for name in [
            if let NetworkMode::Container(name) = &mut request.network { Some(name) } else { None },
            if let Namespace::Container(name) = &mut request.pid { Some(name) } else { None },
        ]
        .into_iter()
        .flatten()
        {
            *name = self.records.find(name)?.to_string();
        }
        Ok(())
    }

    /// The containers that a container shares namespaces with, which have to run.
    pub(crate) fn donors(&self, request: &CreateRequest) -> Result<Donors> {
        let mut donors = Donors::default();
        if let NetworkMode::Container(id) = &request.network {
            donors.network = Some(self.donor(id.parse()?)?);
        }
        if let Namespace::Container(id) = &request.pid {
            donors.pid = Some(self.donor(id.parse()?)?);
        }
        Ok(donors)
    }

    /// That they have run all the time since.
    pub(crate) fn still_run(&self, donors: &Donors) -> Result<()> {
        for donor in [&donors.network, &donors.pid].into_iter().flatten() {
            if self.donor(donor.id.clone())? != *donor {
                return Err(Error::NothingToShare { id: donor.id.clone() });
            }
        }
        Ok(())
    }

    fn donor(&self, id: Id) -> Result<Donor> {
        self.record(&id)?;
        let state =
            estiba_shim::Client::connect(self.records.bundle(&id), id.as_str()).and_then(|mut shim| shim.state());
        let runs = |status: i32| [TaskStatus::Running, TaskStatus::Paused].into_iter().any(|one| one as i32 == status);
        match state {
            Ok(state) if runs(state.status) && state.pid != 0 => Ok(Donor { id, pid: state.pid }),
            _ => Err(Error::NothingToShare { id }),
        }
    }

    /// The container whose host name and network files a container has: its own, or that whose network it is in.
    pub(crate) fn network_owner(&self, record: &Record) -> Result<Id> {
        let mut id = record.id.clone();
        let mut network = record.request.network.clone();
        // Nobody refers to one that was made later, so this comes to an end.
        while let NetworkMode::Container(other) = network {
            id = other.parse()?;
            network = self.record(&id)?.request.network;
        }
        Ok(id)
    }
}
