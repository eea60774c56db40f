//! The profile, checked, as one verdict for each system call of an architecture.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall};

use super::architecture::Architecture;
use super::syscalls::Syscall;
use crate::error::{Error, Result};

/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What the kernel is to do: `SECCOMP_RET_*` with its data.
pub(super) type Action = u32;

#[derive(Debug)]
pub(super) struct Profile {
    pub(super) otherwise: Action,
    /// What becomes of calls that are newer than the profile.
    pub(super) newer: Option<Action>,
    /// Whether anything is asked of a listener.
    pub(super) asks: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Those that any architecture has.
    calls: Vec<Syscall>,
    action: Action,
    /// Any of these; none is no condition.
    alternatives: Vec<Vec<Condition>>,
}

/// A comparison of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal after a bitwise and with this mask.
    MaskedEqual(u64),
}

/// What becomes of one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Always(Action),
    /// The action of the first whose conditions all hold.
    Depends(Vec<(Vec<Condition>, Action)>),
}

impl Profile {
    pub(super) fn new(profile: &LinuxSeccomp) -> Result<Self> {
        let otherwise = action("linux.seccomp.defaultAction", profile.default_action(), profile.default_errno_ret())?;
        let lets_through = matches!(
            profile.default_action(),
            LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
        );
        let newer = (!lets_through && otherwise != NO_SUCH_CALL).then_some(NO_SUCH_CALL);
        let rules = profile.syscalls().iter().flatten().map(Rule::new).collect::<Result<Vec<_>>>()?;
        let asks = rules.iter().map(|rule| rule.action).chain([otherwise]).any(|a| a == libc::SECCOMP_RET_USER_NOTIF);
        if asks && profile.listener_path().as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
            return Err(Error::InvalidSpec {
                field: "linux.seccomp.listenerPath".to_owned(),
                reason: "is missing, and SCMP_ACT_NOTIFY needs somebody to ask".to_owned(),
            });
        }
        Ok(Self { otherwise, newer, asks, rules })
    }

    /// The verdicts by number. What is not there gets the default action.
    pub(super) fn verdicts(&self, architecture: Architecture) -> BTreeMap<u32, Verdict> {
        let mut verdicts = BTreeMap::new();
        for rule in &self.rules {
            if rule.action == self.otherwise {
                continue;
            }
            for call in &rule.calls {
                if let Some(number) = architecture.number(*call) {
                    let alternatives = rule.alternatives.clone();
                    add(&mut verdicts, number, rule.action, alternatives);
                }
                if let Some((number, first)) = architecture.multiplexed(*call) {
                    let which = Condition { argument: 0, comparison: Comparison::Equal, value: first };
                    let alternatives = if rule.alternatives.is_empty() {
                        vec![vec![which]]
                    } else {
                        let with = |conditions: &Vec<Condition>| {
                            let others = conditions.iter().filter(|c| c.argument != 0);
                            std::iter::once(which).chain(others.copied()).collect()
                        };
                        rule.alternatives.iter().map(with).collect()
                    };
                    add(&mut verdicts, number, rule.action, alternatives);
                }
            }
        }
        verdicts
    }

    /// The highest number that the profile names in any rule.
    pub(super) fn newest(&self, architecture: Architecture) -> Option<u32> {
        self.rules.iter().flat_map(|rule| &rule.calls).filter_map(|call| architecture.number(*call)).max()
    }
}

fn add(verdicts: &mut BTreeMap<u32, Verdict>, number: u32, action: Action, alternatives: Vec<Vec<Condition>>) {
    let verdict = verdicts.entry(number).or_insert_with(|| Verdict::Depends(Vec::new()));
    match verdict {
        Verdict::Always(_) => {}
        Verdict::Depends(_) if alternatives.is_empty() => *verdict = Verdict::Always(action),
        Verdict::Depends(known) => known.extend(alternatives.into_iter().map(|conditions| (conditions, action))),
    }
}

impl Rule {
    fn new(syscall: &LinuxSyscall) -> Result<Self> {
        let action = action("linux.seccomp.syscalls.action", syscall.action(), syscall.errno_ret())?;
        let arguments = syscall.args().as_deref().unwrap_or_default();
        let conditions: Vec<Condition> = arguments.iter().map(condition).collect::<Result<_>>()?;
        let repeats = |c: &Condition| conditions.iter().filter(|o| o.argument == c.argument).count() > 1;
        let alternatives = if conditions.is_empty() {
            Vec::new()
        } else if conditions.iter().any(repeats) {
            conditions.iter().map(|c| vec![*c]).collect()
        } else {
            vec![conditions]
        };
        let calls = syscall.names().iter().filter_map(|name| Syscall::find(name)).collect();
        Ok(Self { calls, action, alternatives })
    }
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition> {
    let index = argument.index();
    if index > 5 {
        return Err(Error::InvalidSpec {
            field: "linux.seccomp.syscalls.args.index".to_owned(),
            reason: format!("{index} is not from 0 to 5"),
        });
    }
    let value = argument.value();
    let (comparison, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => (Comparison::Equal, value),
        LinuxSeccompOperator::ScmpCmpNe => (Comparison::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => (Comparison::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => (Comparison::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => (Comparison::Greater, value),
        LinuxSeccompOperator::ScmpCmpGe => (Comparison::GreaterOrEqual, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // The mask is `value`; bits outside of it cannot be compared and do not count.
            (Comparison::MaskedEqual(value), argument.value_two().unwrap_or(0) & value)
        }
    };
    Ok(Condition { argument: index as u32, comparison, value })
}

/// The action as the kernel takes it.
fn action(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action> {
    let data = |most: u32| match errno.unwrap_or(libc::EPERM as u32) {
        data if data <= most => Ok(data),
        data => Err(Error::InvalidSpec { field: field.to_owned(), reason: format!("errnoRet {data} is above {most}") }),
    };
    if errno.is_some() && !matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace) {
        return Err(Error::InvalidSpec { field: field.to_owned(), reason: format!("{action} takes no errnoRet") });
    }
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        // The kernel's largest errno.
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data(4095)?,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | data(0xffff)?,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    })
}
