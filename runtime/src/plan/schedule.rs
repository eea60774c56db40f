//! Where and when the process runs: its scheduling, its processors, its memory nodes.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use super::{Step, invalid, unsupported};
use crate::Result;
use crate::sys::schedule::Attributes;

/// More processors or nodes than any machine has; the kernel's own limits are 8192 and 1024.
const MOST: u32 = 8192;

/// What only those with the host's privileges may do, for a process and by its number.
pub(crate) fn priorities(process: &Process) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some(scheduler) = process.scheduler() {
        steps.push(Step::Scheduler(attributes(scheduler)?));
    }
    if let Some(priority) = process.io_priority() {
        steps.push(Step::IoPriority(io_priority(*priority)?));
    }
    Ok(steps)
}

fn attributes(scheduler: &Scheduler) -> Result<Attributes> {
    use LinuxSchedulerPolicy as P;
    let field = "process.scheduler";
    let policy = match scheduler.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        // Linux reserves the number and has no such policy.
        P::SchedIso => return Err(unsupported(format!("{field}.policy"), "Linux has no SCHED_ISO")),
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
    };
    let real_time = matches!(policy, 1 | 2);
    let nice = scheduler.nice().unwrap_or(0);
    if nice != 0 && !matches!(policy, 0 | 3) {
        return Err(invalid(format!("{field}.nice"), "only SCHED_OTHER and SCHED_BATCH have one"));
    }
    if !(-20..=19).contains(&nice) {
        return Err(invalid(format!("{field}.nice"), format!("{nice} is not from -20 to 19")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !real_time {
        return Err(invalid(format!("{field}.priority"), "only SCHED_FIFO and SCHED_RR have one"));
    }
    let priority = u32::try_from(priority)
        .map_err(|_| invalid(format!("{field}.priority"), format!("{priority} is below zero")))?;
    let times =
        [("runtime", *scheduler.runtime()), ("deadline", *scheduler.deadline()), ("period", *scheduler.period())]
            .map(|(name, time)| (name, time.unwrap_or(0)));
    if let Some((name, _)) = times.iter().find(|(_, time)| *time != 0 && policy != 6) {
        return Err(invalid(format!("{field}.{name}"), "only SCHED_DEADLINE has one"));
    }
    let flags = scheduler.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 0x01,
                LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
                LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
            }
    });
    if flags & 0x60 != 0 {
        return Err(unsupported(
            format!("{field}.flags"),
            "a clamp without a value: the specification has no field for it",
        ));
    }
    let [(_, runtime), (_, deadline), (_, period)] = times;
    Ok(Attributes { size: 0, policy, flags, nice, priority, runtime, deadline, period })
}

fn io_priority(priority: LinuxIOPriority) -> Result<u32> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(invalid("process.ioPriority.priority", format!("{} is not from 0 to 7", priority.priority()))),
    }
}

/// Which processors a process that is added runs on: before it is in the container's cgroup, and once it is.
pub(super) fn affinity(process: &Process) -> Result<(Option<Step>, Option<Step>)> {
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok((None, None)) };
    let step = |name: &str, list: &Option<String>| match list.as_deref() {
        None | Some("") => Ok(None),
        Some(list) => set(list, &format!("process.execCPUAffinity.{name}")).map(|set| Some(Step::Affinity(set))),
    };
    Ok((step("initial", affinity.initial())?, step("final", affinity.cpu_affinity_final())?))
}

pub(super) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<Step> {
    use MemoryPolicyModeType as M;
    let field = "linux.memoryPolicy";
    let mode = match policy.mode() {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    };
    let nodes = match policy.nodes().as_deref() {
        None | Some("") => Vec::new(),
        Some(list) => set(list, &format!("{field}.nodes"))?,
    };
    match (mode, nodes.is_empty()) {
        (0 | 4, false) => return Err(invalid(format!("{field}.nodes"), format!("{} takes none", policy.mode()))),
        (2 | 3 | 5 | 6, true) => {
            return Err(invalid(format!("{field}.nodes"), format!("{} needs some", policy.mode())));
        }
        _ => {}
    }
    let flags = policy.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            }
    });
    Ok(Step::MemoryPolicy { mode: mode | flags, nodes })
}

pub(super) fn personality(personality: &LinuxPersonality) -> Result<Step> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(unsupported("linux.personality.flags", "the specification defines none"));
    }
    Ok(Step::Personality(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

/// A list such as `0-3,7` as a set of bits.
fn set(list: &str, field: &str) -> Result<Vec<u64>> {
    let wrong = || invalid(field, format!("{list:?} is no list such as 0-3,7"));
    let mut words: Vec<u64> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < MOST).ok_or_else(wrong);
        let (from, to) = (number(from)?, number(to)?);
        if from > to {
            return Err(wrong());
        }
        for bit in from..=to {
            let word = bit as usize / 64;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            if let Some(word) = words.get_mut(word) {
                *word |= 1 << (bit % 64);
            }
        }
    }
    if words.is_empty() { Err(wrong()) } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_sets() {
        for (list, want) in
            [("0", vec![1]), ("0-3,7", vec![0x8f]), (" 64 , 1", vec![2, 1]), ("63-64", vec![1 << 63, 1])]
        {
            assert_eq!(set(list, "f").ok(), Some(want), "{list}");
        }
        for list in ["", "a", "3-1", "-1", "1-", "8192", "4294967296", "0x1", "1,,a"] {
            assert!(set(list, "f").is_err(), "{list:?}");
        }
    }

    #[test]
    fn what_a_policy_does_not_have_is_refused() {
        for (text, field) in [
            (r#"{"policy": "SCHED_ISO"}"#, "process.scheduler.policy"),
            (r#"{"policy": "SCHED_FIFO", "nice": 1}"#, "process.scheduler.nice"),
            (r#"{"policy": "SCHED_OTHER", "nice": 20}"#, "process.scheduler.nice"),
            (r#"{"policy": "SCHED_OTHER", "priority": 1}"#, "process.scheduler.priority"),
            (r#"{"policy": "SCHED_RR", "priority": -1}"#, "process.scheduler.priority"),
            (r#"{"policy": "SCHED_RR", "period": 1}"#, "process.scheduler.period"),
        ] {
            let scheduler: Scheduler = serde_json::from_str(text).expect("a scheduler");
            match attributes(&scheduler) {
                Err(
                    crate::Error::InvalidSpec { field: found, .. }
                    | crate::Error::UnsupportedField { field: found, .. },
                ) => {
                    assert_eq!(found, field);
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
