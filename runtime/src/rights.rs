//! What a container's processes may, unless one says otherwise.

use oci_spec::runtime::{
    ExecCPUAffinity, LinuxCapabilities, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, PosixRlimit, Process,
    Scheduler, Spec,
};
use serde::{Deserialize, Serialize};

/// What the container's first process may.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Rights {
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<LinuxCapabilities>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimits: Option<Vec<PosixRlimit>>,
    no_new_privileges: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_score_adj: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<Scheduler>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io_priority: Option<LinuxIOPriority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_cpu_affinity: Option<ExecCPUAffinity>,
}

/// What of `linux` is a matter of each of the container's processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Common<'a> {
    pub(crate) personality: Option<&'a LinuxPersonality>,
    pub(crate) memory_policy: Option<&'a LinuxMemoryPolicy>,
}

impl<'a> Common<'a> {
    pub(crate) fn of(spec: &'a Spec) -> Self {
        let linux = spec.linux().as_ref();
        Self {
            personality: linux.and_then(|linux| linux.personality().as_ref()),
            memory_policy: linux.and_then(|linux| linux.memory_policy().as_ref()),
        }
    }
}

impl Rights {
    pub(crate) fn of(process: &Process) -> Self {
        Self {
            capabilities: process.capabilities().clone(),
            rlimits: process.rlimits().clone(),
            no_new_privileges: process.no_new_privileges() == Some(true),
            oom_score_adj: process.oom_score_adj(),
            scheduler: process.scheduler().clone(),
            io_priority: *process.io_priority(),
            exec_cpu_affinity: process.exec_cpu_affinity().clone(),
        }
    }

    /// Whether a process says all of it itself.
    pub(crate) fn are_named(process: &Process) -> bool {
        process.capabilities().is_some()
            && process.rlimits().as_ref().is_some_and(|limits| !limits.is_empty())
            && process.no_new_privileges().is_some()
            && process.oom_score_adj().is_some()
    }

    /// The process with these rights where it does not say.
    pub(crate) fn complete(&self, process: &Process) -> Process {
        let mut process = process.clone();
        if process.capabilities().is_none() {
            process.set_capabilities(self.capabilities.clone());
        }
        if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
            process.set_rlimits(self.rlimits.clone());
        }
        if process.no_new_privileges().is_none() {
            process.set_no_new_privileges(Some(self.no_new_privileges));
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(self.oom_score_adj);
        }
        if process.scheduler().is_none() {
            process.set_scheduler(self.scheduler.clone());
        }
        if process.io_priority().is_none() {
            process.set_io_priority(self.io_priority);
        }
        if process.exec_cpu_affinity().is_none() {
            process.set_exec_cpu_affinity(self.exec_cpu_affinity.clone());
        }
        process
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn what_is_said_stays_and_the_rest_is_the_containers() {
        let mut first = Spec::default().process().clone().expect("a default");
        first.set_no_new_privileges(Some(true)).set_oom_score_adj(Some(7));
        let rights = Rights::of(&first);
        let silent: Process = serde_json::from_str(r#"{"user": {"uid": 0, "gid": 0}, "cwd": "/"}"#).expect("a process");
        let whole = rights.complete(&silent);
        assert!(Rights::are_named(&whole) && !Rights::are_named(&silent));
        assert_eq!(whole.capabilities(), first.capabilities());
        assert_eq!((whole.rlimits(), whole.oom_score_adj()), (first.rlimits(), Some(7)));
        assert_eq!(whole.no_new_privileges(), Some(true));
        let mut said = silent.clone();
        said.set_no_new_privileges(Some(false)).set_oom_score_adj(Some(0));
        let whole = rights.complete(&said);
        assert_eq!((whole.no_new_privileges(), whole.oom_score_adj()), (Some(false), Some(0)));
    }
}
