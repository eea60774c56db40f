//! Verdicts become instructions: a branch for each architecture, then a binary search over the numbers.

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
pub(super) fn program(profile: &Profile, architectures: &[Architecture]) -> Code {
    let mut code = vec![instruction(LOAD, ARCHITECTURE)];
    by_architecture(&mut code, profile, architectures, &audits(architectures));
    code
}

fn by_architecture(code: &mut Code, profile: &Profile, architectures: &[Architecture], audits: &[u32]) {
    let Some((audit, others)) = audits.split_first() else {
        // As libseccomp: a call of an architecture that the profile does not know kills the thread.
        code.push(KILL);
        return;
    };
    let here = |a: &Architecture| architectures.contains(a) && a.audit() == *audit;
    let main =
        [Architecture::X86_64, Architecture::X86, Architecture::Aarch64, Architecture::Arm].into_iter().find(here);
    let main = |code: &mut Code| match main {
        Some(main) => search(code, profile, main),
        None => code.push(KILL),
    };
    let x32 = |code: &mut Code| {
        if here(&Architecture::X32) {
            search(code, profile, Architecture::X32);
        } else {
            // -1, which stands for a call that a tracer took away, has the bit too, and is no reason to kill.
            let skipped = give(profile.newer.unwrap_or(profile.otherwise));
            branch(code, IF_EQUAL, u32::MAX, |code| code.push(skipped), |code| code.push(KILL));
        }
    };
    let this = |code: &mut Code| {
        code.push(instruction(LOAD, NUMBER));
        if *audit == Architecture::X32.audit() {
            branch(code, IF_GREATER_OR_EQUAL, X32_BIT, x32, main);
        } else {
            main(code);
        }
    };
    branch(code, IF_EQUAL, *audit, this, |code| by_architecture(code, profile, architectures, others));
}

/// The architectures as the kernel reports them, the native one first.
fn audits(architectures: &[Architecture]) -> Vec<u32> {
    let mut audits = Vec::new();
    for audit in architectures.iter().map(|a| a.audit()) {
        if !audits.contains(&audit) {
            audits.push(audit);
        }
    }
    audits
}

/// The search for the number's verdict.
fn search(code: &mut Code, profile: &Profile, architecture: Architecture) {
    // Each range by its first number; the numbers up to the next one have the same verdict.
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut next = 0;
    let mut add = |first: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((first, verdict));
        }
    };
    for (number, verdict) in profile.verdicts(architecture) {
        if number > next {
            add(next, Verdict::Always(profile.otherwise));
        }
        add(number, verdict);
        next = number + 1;
    }
    match (profile.newer, profile.newest(architecture)) {
        (Some(newer), Some(newest)) => {
            // The numbers that the profile does not name have the default action up to the newest one that it names.
            if newest >= next {
                add(next, Verdict::Always(profile.otherwise));
            }
            add(newest + 1, Verdict::Always(newer));
        }
        _ => add(next, Verdict::Always(profile.otherwise)),
    }
    tree(code, &ranges, profile.otherwise, architecture);
}

/// A binary search over ranges.
fn tree(code: &mut Code, ranges: &[(u32, Verdict)], otherwise: Action, architecture: Architecture) {
    if let [(_, verdict)] = ranges {
        leaf(code, verdict, otherwise, architecture);
        return;
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let side = |ranges| move |code: &mut Code| tree(code, ranges, otherwise, architecture);
    branch(code, IF_GREATER_OR_EQUAL, high[0].0, side(high), side(low));
}

/// Both blocks must end by returning.
fn branch(code: &mut Code, test: u16, value: u32, yes: impl FnOnce(&mut Code), no: impl FnOnce(&mut Code)) {
    let at = code.len();
    code.push(instruction(test, value));
    yes(code);
    let past = code.len() - at - 1;
    if let Ok(past) = u8::try_from(past) {
        code[at].jf = past;
    } else {
        // Conditional jumps reach 255 instructions, others as far as one likes.
        code[at].jt = 1;
        code.insert(at + 1, instruction(JUMP, past as u32));
    }
    no(code);
}

fn leaf(code: &mut Code, verdict: &Verdict, otherwise: Action, architecture: Architecture) {
    let alternatives = match verdict {
        Verdict::Always(action) => return code.push(give(*action)),
        Verdict::Depends(alternatives) => alternatives,
    };
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

const KILL: sock_filter = give(libc::SECCOMP_RET_KILL_THREAD);

const fn give(action: Action) -> sock_filter {
    instruction(RETURN, action)
}

const fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}
