//! The plan of a process that is added to a container.

use std::path::PathBuf;

use oci_spec::runtime::Process;

use super::process::{Pause, Program};
use super::{Filter, Host, NEW_MOUNT, NEW_PID, NEW_USER, Plan, Slot, Step, refusal, schedule};
use crate::Result;
use crate::rights::Common;

impl Plan {
    /// The slot of the pidfd of the container's first process, whose namespaces are joined.
    pub(crate) const FIRST_PROCESS: Slot = Slot(Slot::FIXED);

    /// Works out how `process` gets into the `namespaces` (`CLONE_NEW…`) of the process with the number `pid`, or refuses what it
    /// asks for.
    ///
    /// What the host alone can grant comes first: the score and the limits, then the cgroups. From the moment on in which the
    /// container's processes can see the child it is not dumpable (CVE-2016-9962): the child that they see, number and all, is only
    /// made by one that was so before.
    pub(crate) fn exec(
        process: &Process,
        common: Common<'_>,
        host: &Host<'_>,
        namespaces: u64,
        pid: i32,
    ) -> Result<Self> {
        refusal::process(process)?;
        let in_user_namespace = namespaces & NEW_USER != 0;
        let program = Program { process, common, host, in_user_namespace, has_groups: !host.rootless && host.groups };
        let mut early = program.early()?;
        let mut steps = Vec::new();
        if host.rootless {
            // Afterwards its files in /proc are root's. Nobody sees it yet.
            steps.append(&mut early);
        }
        steps.push(Step::NotDumpable);
        let (before, after) = schedule::affinity(process)?;
        steps.extend(before);
        steps.append(&mut early);
        if host.tasks > 0 {
            steps.push(Step::JoinCgroups { count: host.tasks });
        }
        steps.extend(after);
        let mut priorities = schedule::priorities(process)?;
        if in_user_namespace {
            // Only the host's privileges raise them.
            steps.append(&mut priorities);
        }
        let path = PathBuf::from(format!("/proc/{pid}/ns"));
        if namespaces != 0 {
            steps.push(Step::Enter { slot: Self::FIRST_PROCESS, kind: namespaces, path });
        }
        // Only a new process is in another pid namespace.
        let forks = namespaces & NEW_PID != 0;
        if forks {
            steps.push(Step::Fork { flags: 0 });
        }
        // A deadline does not survive the making of a process.
        steps.append(&mut priorities);
        if in_user_namespace {
            steps.push(Step::BecomeRoot { groups: !host.rootless });
        }
        if namespaces & NEW_MOUNT == 0 {
            steps.extend([Step::TakeRoot, Step::Chroot { elsewhere: false }]);
        }
        steps.push(Step::OpenRoot);
        if host.terminal {
            steps.push(program.console(None)?);
        }
        steps.append(&mut program.late(Pause::None)?);
        let (candidates, arguments, environment) = program.texts()?;
        Ok(Self {
            flags: 0,
            opens: Vec::new(),
            steps,
            candidates,
            arguments,
            environment,
            mappings: false,
            forks,
            in_user_namespace,
            asks: host.filter == Some(Filter::Asks),
            clocks: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::super::tests::host;
    use super::*;
    use crate::Error;

    fn process() -> Process {
        Spec::default().process().clone().expect("a default")
    }

    fn place(plan: &Plan, wanted: impl Fn(&Step) -> bool) -> usize {
        plan.steps.iter().position(wanted).expect("the step is in the plan")
    }

    /// CVE-2016-9962: whatever the container can see of the child is closed to it.
    #[test]
    fn the_child_is_closed_before_it_is_seen() {
        for namespaces in [NEW_MOUNT, NEW_MOUNT | NEW_PID, NEW_MOUNT | NEW_PID | NEW_USER] {
            let plan = Plan::exec(&process(), Common::default(), &host(), namespaces, 7).expect("a plan");
            assert_eq!(plan.steps.first(), Some(&Step::NotDumpable));
            assert_eq!(plan.forks, namespaces & NEW_PID != 0);
            assert_eq!(plan.flags, 0, "it is made outside");
            let joined = place(&plan, |step| matches!(step, Step::JoinCgroups { count: 1 }));
            let entered = place(&plan, |step| matches!(step, Step::Enter { kind, .. } if *kind == namespaces));
            assert!(joined < entered, "the files are the host's");
            let root = place(&plan, |step| *step == Step::OpenRoot);
            assert!(entered < root);
            assert!(root < place(&plan, |step| matches!(step, Step::WorkingDirectory(_))));
            assert_eq!(plan.steps.contains(&Step::BecomeRoot { groups: true }), plan.in_user_namespace);
        }
    }

    #[test]
    fn limits_are_set_where_the_host_can_raise_them() {
        let plan = Plan::exec(&process(), Common::default(), &host(), NEW_MOUNT | NEW_USER, 7).expect("a plan");
        let limit = place(&plan, |step| matches!(step, Step::Limit { .. }));
        assert!(limit < place(&plan, |step| matches!(step, Step::Enter { .. })));
    }

    #[test]
    fn nothing_waits_for_a_start() {
        let plan = Plan::exec(&process(), Common::default(), &host(), NEW_MOUNT, 7).expect("a plan");
        assert!(!plan.steps.iter().any(|step| matches!(step, Step::Gate | Step::Ready)));
        let prepared = place(&plan, |step| *step == Step::Prepared);
        assert!(place(&plan, |step| *step == Step::FindExecutable) < prepared);
        assert_eq!(plan.steps.last(), Some(&Step::Execute));
    }

    #[test]
    fn what_has_no_effect_is_refused() {
        let mut labelled = process();
        labelled.set_apparmor_profile(Some("x".into()));
        let mut empty = process();
        empty.set_args(None);
        for (process, field) in [(labelled, "process.apparmorProfile"), (empty, "process.args")] {
            match Plan::exec(&process, Common::default(), &host(), NEW_MOUNT, 7) {
                Err(Error::InvalidSpec { field: found, .. } | Error::UnsupportedField { field: found, .. }) => {
                    assert_eq!(found, field);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
