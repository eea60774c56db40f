//! Bytes that somebody else wrote, taken as far as they go without a kernel: for the fuzz targets in `fuzz/`, and for the test below,
//! which damages good ones.

use std::path::Path;

use oci_spec::runtime::LinuxSeccomp;

use crate::plan::{Filter, Host, Plan};
use crate::{Features, Keyring, Labels, Root, RootSwitch, bundle, cgroup, native, seccomp};

/// A `config.json`: parsed, and a plan made of it, with and without root's privileges.
pub fn config(bytes: &[u8]) {
    let Ok(spec) = bundle::parse(bytes) else { return };
    let spec_of = bundle::Bundle { path: "/bundle".into(), spec, root: Root::Path("/bundle/rootfs".into()) };
    let spec = &spec_of.spec;
    let _ = spec_of.warnings();
    let filter = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let filter = filter.and_then(|profile| seccomp::compile_uncached(profile).ok());
    if let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) {
        cgroup::plan_only(resources);
    }
    for (rootless, module, terminal) in [(false, true, false), (true, false, true)] {
        let host = Host {
            features: Features::probe(),
            bundle: Path::new("/bundle"),
            id: "fuzz",
            permitted: u64::MAX,
            cgroups: vec![("cpu,cpuacct".into(), "/sys/fs/cgroup/cpu,cpuacct/fuzz".into())],
            tasks: 1,
            terminal,
            preserved: 0,
            keyring: Keyring::New,
            root_switch: RootSwitch::Pivot,
            root_path: Some(Path::new("/bundle/rootfs")),
            filter: filter.as_ref().map(Filter::of),
            rootless,
            apparmor: module,
            selinux: module,
            labels: Labels::Required,
            nested: true,
            confined: rootless,
            groups: module,
            kcore: false,
        };
        if let Ok(plan) = Plan::new(spec, &host) {
            // What an error would say.
            for step in &plan.steps {
                let _ = step.to_string();
            }
        }
    }
}

/// A container's `state.json`.
pub fn state(bytes: &[u8]) {
    native::read_state(bytes);
}

/// A seccomp profile, as `linux.seccomp` has it, and the file that a filter is kept in.
pub fn profile(bytes: &[u8]) {
    if let Some(program) = seccomp::Program::from_bytes(bytes) {
        assert_eq!(program.to_bytes(), bytes);
    }
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(bytes) else { return };
    if let Ok(program) = seccomp::compile_uncached(&profile) {
        assert!(program.instructions.len() <= 4096, "the kernel takes no more");
        // Every jump lands on an instruction.
        for (at, instruction) in program.instructions.iter().enumerate() {
            if instruction.code & 7 == 5 {
                let far = if instruction.code & 0xf0 == 0 {
                    instruction.k as usize
                } else {
                    instruction.jt.max(instruction.jf).into()
                };
                assert!(at + 1 + far < program.instructions.len(), "{at}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator: the same damage with the same seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit.max(1) as u64) as usize
        }
    }

    /// Words that mean something somewhere, or are on an edge.
    const WORDS: [&[u8]; 18] = [
        b"null",
        b"-1",
        b"0",
        b"9223372036854775807",
        b"18446744073709551616",
        b"1e400",
        b"\"\"",
        b"\"../../..\"",
        b"\"/\"",
        b"[]",
        b"{}",
        b"true",
        b"\"\\u0000\"",
        b"\"user\"",
        b"\"SCMP_ACT_NOTIFY\"",
        b"\"SCMP_CMP_MASKED_EQ\"",
        b"\"ridmap\"",
        b"\xff\xfe",
    ];

    fn damaged(good: &[u8], dice: &mut Dice) -> Vec<u8> {
        let mut bytes = good.to_vec();
        for _ in 0..=dice.below(4) {
            let at = dice.below(bytes.len());
            match dice.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = dice.below(256) as u8;
                    }
                }
                2 => {
                    let end = (at + dice.below(40)).min(bytes.len());
                    bytes.drain(at..end);
                }
                3 => {
                    let end = (at + dice.below(200)).min(bytes.len());
                    let piece = bytes.get(at..end).unwrap_or_default().to_vec();
                    let to = dice.below(bytes.len());
                    bytes.splice(to..to, piece);
                }
                // In the place of a whole value, so that it is JSON still.
                _ => {
                    let start = bytes.iter().skip(at).position(|byte| *byte == b':').map_or(at, |found| at + found + 1);
                    let end = bytes
                        .iter()
                        .skip(start)
                        .position(|byte| b",}]".contains(byte))
                        .map_or(bytes.len(), |found| start + found);
                    let word = WORDS.get(dice.below(WORDS.len())).copied().unwrap_or_default();
                    bytes.splice(start.min(end)..end, word.iter().copied());
                }
            }
        }
        bytes
    }

    fn trial(good: &[&[u8]], take: fn(&[u8])) {
        let rounds = std::env::var("ESTIBA_RANDOM_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
        for seed in 1..=rounds {
            let mut dice = Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
            let good = good.get(dice.below(good.len())).copied().unwrap_or_default();
            let bytes = damaged(good, &mut dice);
            let result = std::panic::catch_unwind(|| take(&bytes));
            assert!(result.is_ok(), "seed {seed}: {}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn damaged_configurations() {
        let default = serde_json::to_vec(&oci_spec::runtime::Spec::default()).expect("a configuration");
        trial(&[&default, include_bytes!("../fuzz/seeds/config.json")], config);
    }

    #[test]
    fn damaged_states() {
        trial(&[include_bytes!("../fuzz/seeds/state.json")], state);
    }

    #[test]
    fn damaged_profiles() {
        let default = serde_json::to_vec(&seccomp::default_profile(&[])).expect("a profile");
        let filter = seccomp::compile_uncached(&seccomp::default_profile(&[])).expect("a filter").to_bytes();
        trial(&[&default, include_bytes!("../fuzz/seeds/profile.json"), &filter], profile);
    }
}
