//! Verdicts become instructions: a branch for each architecture, then a binary search over the numbers.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::architecture::{Architecture, X32_BIT};
use super::rules::{Action, Comparison, Condition, Profile, Verdict};

// Opcodes of `linux/bpf_common.h`, class and operation together.
const LOAD: u16 = 0x20; // LD | W | ABS
const AND: u16 = 0x54; // ALU | AND | K
const JUMP: u16 = 0x05; // JMP | JA
const IF_EQUAL: u16 = 0x15; // JMP | JEQ | K
const IF_GREATER: u16 = 0x25; // JMP | JGT | K
const IF_GREATER_OR_EQUAL: u16 = 0x35; // JMP | JGE | K
const RETURN: u16 = 0x06; // RET | K

// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

type Code = Vec<sock_filter>;

/// The program for a profile on the given architectures.
pub(super) fn program(profile: &Profile<'_>, architectures: &[Architecture]) -> Code {
    // As libseccomp: a call of an architecture that the profile does not know kills the thread.
    let mut code = kill();
    for audit in audits(architectures) {
        let here = |a: Architecture| architectures.contains(&a) && a.audit() == audit;
        let mut block = vec![instruction(LOAD, NUMBER)];
        let main = [Architecture::X86_64, Architecture::X86, Architecture::Aarch64, Architecture::Arm];
        let main = main.into_iter().find(|a| here(*a)).map(|a| search(profile, a));
        let main = main.unwrap_or_else(kill);
        if audit == Architecture::X32.audit() {
            if here(Architecture::X32) {
                let x32 = search(profile, Architecture::X32);
                block.extend(branch(IF_GREATER_OR_EQUAL, X32_BIT, x32, main));
            } else {
                // -1, which stands for a call that a tracer took away, has the bit too, and is no reason to kill.
                let kill = branch(IF_EQUAL, u32::MAX, vec![give(profile.newer.unwrap_or(profile.otherwise))], kill());
                block.extend(branch(IF_GREATER_OR_EQUAL, X32_BIT, kill, main));
            }
        } else {
            block.extend(main);
        }
        code = branch(IF_EQUAL, audit, block, code);
    }
    code.insert(0, instruction(LOAD, ARCHITECTURE));
    code
}

/// The architectures as the kernel reports them, the last one first: the native one is then asked for first.
fn audits(architectures: &[Architecture]) -> Vec<u32> {
    let mut audits = Vec::new();
    for audit in architectures.iter().map(|a| a.audit()) {
        if !audits.contains(&audit) {
            audits.push(audit);
        }
    }
    audits.reverse();
    audits
}

/// The search for the number's verdict.
fn search(profile: &Profile<'_>, architecture: Architecture) -> Code {
    let mut ranges: BTreeMap<u32, Code> = BTreeMap::from([(0, vec![give(profile.otherwise)])]);
    let mut next = 0;
    for (number, verdict) in profile.verdicts(architecture) {
        if number > next {
            ranges.insert(next, vec![give(profile.otherwise)]);
        }
        ranges.insert(number, leaf(&verdict, profile.otherwise, architecture));
        next = number + 1;
    }
    ranges.insert(next, vec![give(profile.otherwise)]);
    if let (Some(newer), Some(newest)) = (profile.newer, profile.newest(architecture)) {
        // The numbers that the profile names have the default action up to the newest one.
        ranges.insert(newest + 1, vec![give(newer)]);
    }
    let mut ranges: Vec<(u32, Code)> = ranges.into_iter().collect();
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    tree(&ranges)
}

/// A binary search over ranges, each given by its first number.
fn tree(ranges: &[(u32, Code)]) -> Code {
    if let [(_, code)] = ranges {
        return code.clone();
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    branch(IF_GREATER_OR_EQUAL, high[0].0, tree(high), tree(low))
}

/// Both blocks must end by returning.
fn branch(test: u16, value: u32, yes: Code, no: Code) -> Code {
    let mut code = Vec::with_capacity(yes.len() + no.len() + 2);
    if let Ok(past) = u8::try_from(yes.len()) {
        code.push(sock_filter { code: test, jt: 0, jf: past, k: value });
    } else {
        // Conditional jumps reach 255 instructions, others as far as one likes.
        code.push(sock_filter { code: test, jt: 1, jf: 0, k: value });
        code.push(instruction(JUMP, yes.len() as u32));
    }
    code.extend(yes);
    code.extend(no);
    code
}

fn leaf(verdict: &Verdict, otherwise: Action, architecture: Architecture) -> Code {
    let alternatives = match verdict {
        Verdict::Always(action) => return vec![give(*action)],
        Verdict::Depends(alternatives) => alternatives,
    };
    let mut code = Code::new();
    for (conditions, action) in alternatives {
        let blocks: Vec<Vec<Step>> = conditions.iter().map(|c| compare(*c, architecture)).collect();
        let mut left: usize = blocks.iter().map(Vec::len).sum();
        for block in blocks {
            // Six conditions of six steps at most: every jump is short.
            for (at, step) in block.iter().enumerate() {
                left -= 1;
                let distance = |to| match to {
                    To::Next => 0,
                    To::Holds => (block.len() - 1 - at) as u8,
                    // Past the return that follows the last condition.
                    To::Fails => (left + 1) as u8,
                };
                code.push(sock_filter {
                    code: step.code,
                    jt: distance(step.yes),
                    jf: distance(step.no),
                    k: step.value,
                });
            }
        }
        code.push(give(*action));
    }
    code.push(give(otherwise));
    code
}

/// Where a comparison's step goes.
#[derive(Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

struct Step {
    code: u16,
    value: u32,
    yes: To,
    no: To,
}

fn compare(condition: Condition, architecture: Architecture) -> Vec<Step> {
    let plain = |code, value| Step { code, value, yes: To::Next, no: To::Next };
    let test = |code, value, yes, no| Step { code, value, yes, no };
    let at = ARGUMENTS + 8 * condition.argument;
    let (low, high) = if cfg!(target_endian = "little") { (at, at + 4) } else { (at + 4, at) };
    let (low_value, high_value) = (condition.value as u32, (condition.value >> 32) as u32);
    let wide = architecture.is_wide();
    let mut steps = Vec::with_capacity(6);
    // The upper half decides if it differs; otherwise the lower half does.
    match condition.comparison {
        Comparison::Equal => {
            if wide {
                steps.extend([plain(LOAD, high), test(IF_EQUAL, high_value, To::Next, To::Fails)]);
            }
            steps.extend([plain(LOAD, low), test(IF_EQUAL, low_value, To::Next, To::Fails)]);
        }
        Comparison::NotEqual => {
            if wide {
                steps.extend([plain(LOAD, high), test(IF_EQUAL, high_value, To::Next, To::Holds)]);
            }
            steps.extend([plain(LOAD, low), test(IF_EQUAL, low_value, To::Fails, To::Next)]);
        }
        Comparison::MaskedEqual(mask) => {
            if wide {
                steps.extend([
                    plain(LOAD, high),
                    plain(AND, (mask >> 32) as u32),
                    test(IF_EQUAL, high_value, To::Next, To::Fails),
                ]);
            }
            steps.extend([plain(LOAD, low), plain(AND, mask as u32), test(IF_EQUAL, low_value, To::Next, To::Fails)]);
        }
        Comparison::Greater | Comparison::GreaterOrEqual | Comparison::Less | Comparison::LessOrEqual => {
            let (above, below) = match condition.comparison {
                Comparison::Greater | Comparison::GreaterOrEqual => (To::Holds, To::Fails),
                _ => (To::Fails, To::Holds),
            };
            if wide {
                steps.extend([
                    plain(LOAD, high),
                    test(IF_GREATER, high_value, above, To::Next),
                    test(IF_EQUAL, high_value, To::Next, below),
                ]);
            }
            let code = match condition.comparison {
                Comparison::Greater | Comparison::LessOrEqual => IF_GREATER,
                _ => IF_GREATER_OR_EQUAL,
            };
            steps.extend([plain(LOAD, low), test(code, low_value, above, below)]);
        }
    }
    steps
}

fn kill() -> Code {
    vec![give(libc::SECCOMP_RET_KILL_THREAD)]
}

fn give(action: Action) -> sock_filter {
    instruction(RETURN, action)
}

const fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}
