//! The device rules as an eBPF program, which is how cgroup version 2 filters devices
//! (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15).

use super::devices::{Access, Devices, Kind};
use crate::sys::bpf::Instruction;

// Opcodes of `linux/bpf.h` and `linux/bpf_common.h`, class and operation together. All arithmetic is on 32 bits.
const LOAD_WORD: u8 = 0x61; // LDX | W | MEM
const MOVE: u8 = 0xbc; // ALU | MOV | X
const MOVE_NUMBER: u8 = 0xb4; // ALU | MOV | K
const AND: u8 = 0x54; // ALU | AND | K
const SHIFT_RIGHT: u8 = 0x74; // ALU | RSH | K
const JUMP_IF_EQUAL: u8 = 0x16; // JMP32 | JEQ | K
const JUMP_UNLESS_EQUAL: u8 = 0x56; // JMP32 | JNE | K
const EXIT: u8 = 0x95; // JMP | EXIT

// Registers: the verdict, the context, and what is loaded from the context.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, number }
}

/// The program for a table of rules: the narrowest entry that matches decides.
pub(super) fn program(devices: &Devices) -> Vec<Instruction> {
    // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }, access << 16 | kind.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for (nodes, access) in devices.entries() {
        let verdict = verdict(access);
        let kind = match nodes.kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        let wanted = [(KIND, Some(kind)), (MAJOR, nodes.major), (MINOR, nodes.minor)];
        let checks: Vec<_> = wanted.into_iter().filter_map(|(register, n)| n.map(|n| (register, n))).collect();
        for (at, (register, number)) in checks.iter().enumerate() {
            let past = checks.len() - 1 - at + verdict.len();
            program.push(instruction(JUMP_UNLESS_EQUAL, *register, 0, past as i16, *number as i32));
        }
        program.extend(verdict);
    }
    // No other kind of device exists; it would be refused.
    program.extend(verdict(Access::NONE));
    program
}

/// Ends the program with whether all of the wanted access is in `access`.
fn verdict(access: Access) -> Vec<Instruction> {
    let yes = instruction(MOVE_NUMBER, VERDICT, 0, 0, 1);
    let no = instruction(MOVE_NUMBER, VERDICT, 0, 0, 0);
    let exit = instruction(EXIT, 0, 0, 0, 0);
    if access == Access::ALL {
        return vec![yes, exit];
    }
    if access == Access::NONE {
        return vec![no, exit];
    }
    let others = i32::from(Access::ALL.bits() & !access.bits());
    vec![instruction(AND, ACCESS, 0, 0, others), yes, instruction(JUMP_IF_EQUAL, ACCESS, 0, 1, 0), no, exit]
}

#[cfg(test)]
mod tests {
    use super::super::devices::Nodes;
    use super::super::devices::tests::{by_the_book, generated, grid, rules};
    use super::*;

    /// Runs a program as the kernel would, and refuses what its verifier would refuse: jumps back or out, unknown instructions,
    /// registers that were not written, the context used as a number.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut registers: [Option<u32>; 11] = [None; 11];
        let mut at = 0;
        for _ in 0..=program.len() {
            let Instruction { code, registers: which, offset, number } = program[at];
            let (to, from) = (usize::from(which & 15), usize::from(which >> 4));
            at += 1;
            let read = |r: usize| registers[r].expect("a register that was written");
            match code {
                LOAD_WORD => {
                    assert_eq!(from, usize::from(CONTEXT));
                    assert_eq!(offset % 4, 0);
                    registers[to] = Some(context[offset as usize / 4]);
                }
                MOVE => registers[to] = Some(read(from)),
                MOVE_NUMBER => registers[to] = Some(number as u32),
                AND => registers[to] = Some(read(to) & number as u32),
                SHIFT_RIGHT => registers[to] = Some(read(to) >> number),
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {
                    assert!(offset > 0, "a jump back or nowhere");
                    if (read(to) == number as u32) == (code == JUMP_IF_EQUAL) {
                        at += offset as usize;
                    }
                }
                EXIT => return read(usize::from(VERDICT)),
                other => panic!("unknown instruction {other:#x}"),
            }
        }
        panic!("the program does not end");
    }

    fn allows(program: &[Instruction], node: Nodes, access: u32) -> bool {
        let kind = match node.kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        run(program, kind, access, node.major.expect("major"), node.minor.expect("minor")) == 1
    }

    #[test]
    fn the_program_means_what_the_rules_mean() {
        for rules in generated() {
            let program = program(&Devices::new(&rules).expect("table"));
            for node in grid() {
                for access in 1..=7_u32 {
                    let want = by_the_book(&rules, node).bits() & access as u8 == access as u8;
                    assert_eq!(allows(&program, node, access), want, "{node} {access} of {rules:?}");
                }
            }
        }
    }

    #[test]
    fn the_usual_rules_make_a_short_program() {
        let program = program(&Devices::new(&rules(&["-a *:* rwm"])).expect("table"));
        assert!(program.len() <= 64, "{} instructions", program.len());
        assert_eq!(run(&program, 3, 1, 1, 3), 0, "an unknown kind of device");
    }
}
