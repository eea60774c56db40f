//! The device rules: which device nodes the processes of a cgroup may open and make.
//!
//! The specification gives a list of rules, of which the last that matches wins, for each kind of access by itself. The two
//! versions of cgroups ask for something else: version 1 for a set of exceptions to "none" or "all", version 2 for a program. Both
//! are made from one table in which every rule stands with its whole verdict and the narrowest match decides.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

/// More rules than anyone writes, and few enough for the kernel's limits.
const MOST_RULES: usize = 1024;
const FIELD: &str = "linux.resources.devices";

/// A set of kinds of access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Access(u8);

impl Access {
    pub(super) const NONE: Self = Self(0);
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    pub(super) const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    /// As `BPF_DEVCG_ACC_*` of `linux/bpf.h` has them.
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn with(self, other: Self, allowed: bool) -> Self {
        Self(if allowed { self.0 | other.0 } else { self.0 & !other.0 })
    }

    fn parse(text: &str) -> Option<Self> {
        text.bytes().try_fold(Self::NONE, |access, letter| {
            let one = match letter {
                b'r' => Self::READ,
                b'w' => Self::WRITE,
                b'm' => Self::MKNOD,
                _ => return None,
            };
            Some(Self(access.0 | one.0))
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (one, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.contains(one) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Char,
}

/// A device node or a family of them: `None` is any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Nodes {
    pub(super) kind: Kind,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Nodes {
    const fn all(kind: Kind) -> Self {
        Self { kind, major: None, minor: None }
    }

    fn covers(self, other: Self) -> bool {
        let one = |mine: Option<u32>, its: Option<u32>| mine.is_none() || mine == its;
        self.kind == other.kind && one(self.major, other.major) && one(self.minor, other.minor)
    }

    fn intersection(self, other: Self) -> Option<Self> {
        let one = |a: Option<u32>, b: Option<u32>| match (a, b) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => Some(a.or(b)),
        };
        (self.kind == other.kind).then(|| {
            Some(Self { kind: self.kind, major: one(self.major, other.major)?, minor: one(self.minor, other.minor)? })
        })?
    }

    /// The narrower, the more.
    fn narrowness(self) -> u8 {
        u8::from(self.major.is_some()) * 2 + u8::from(self.minor.is_some())
    }
}

impl fmt::Display for Nodes {
    /// As in the files of version 1: `c 1:3`, `b *:*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = match self.kind {
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// What a container may always do: make any node (opening it is another matter), and use those that the
/// [specification](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices) supplies.
const ALWAYS: [(Nodes, Access); 10] = {
    const fn char(major: u32, minor: Option<u32>) -> (Nodes, Access) {
        (Nodes { kind: Kind::Char, major: Some(major), minor }, Access::ALL)
    }
    [
        (Nodes::all(Kind::Char), Access::MKNOD),
        (Nodes::all(Kind::Block), Access::MKNOD),
        char(1, Some(3)), // null
        char(1, Some(5)), // zero
        char(1, Some(7)), // full
        char(1, Some(8)), // random
        char(1, Some(9)), // urandom
        char(5, Some(0)), // tty
        char(5, Some(2)), // ptmx
        char(136, None),  // pts/*
    ]
};

/// Who may do what: the narrowest entry that matches a node has the whole verdict on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Devices {
    /// Closed under intersection, so that there is always exactly one narrowest entry.
    entries: BTreeMap<Nodes, Access>,
    /// What the rules name and what they allow of it, in their order.
    listed: Vec<(Nodes, Access)>,
}

impl Devices {
    /// The table for `rules` on top of "nothing", with what is always allowed.
    pub(super) fn new(rules: &[LinuxDeviceCgroup]) -> Result<Self> {
        let none = [(Nodes::all(Kind::Block), Access::NONE), (Nodes::all(Kind::Char), Access::NONE)];
        let mut devices = Self { entries: none.into(), listed: Vec::new() };
        for rule in rules {
            let (kinds, nodes, access) = parse(rule)?;
            for kind in kinds {
                devices.add(Nodes { kind: *kind, ..nodes }, access, rule.allow())?;
            }
        }
        for (nodes, access) in ALWAYS {
            devices.add(nodes, access, true)?;
        }
        Ok(devices)
    }

    fn add(&mut self, nodes: Nodes, access: Access, allow: bool) -> Result<()> {
        // Where the new rule cuts an older one, the part that both cover gets an entry.
        let mut cuts: Vec<Nodes> = self.entries.keys().filter_map(|e| e.intersection(nodes)).collect();
        cuts.push(nodes);
        // All by the old entries, among which the narrowest is one alone.
        let cuts: Vec<_> = cuts.into_iter().map(|cut| (cut, self.verdict(cut))).collect();
        for (cut, verdict) in cuts {
            self.entries.entry(cut).or_insert(verdict);
        }
        self.listed.push((nodes, if allow { access } else { Access::NONE }));
        for (_, verdict) in self.entries.iter_mut().filter(|(entry, _)| nodes.covers(**entry)) {
            *verdict = verdict.with(access, allow);
        }
        if self.entries.len() > MOST_RULES {
            return Err(Error::InvalidSpec {
                field: FIELD.to_owned(),
                reason: format!("the rules have more than {MOST_RULES} combinations"),
            });
        }
        Ok(())
    }

    /// What may be done with `nodes`, by the narrowest entry.
    fn verdict(&self, nodes: Nodes) -> Access {
        let covering = self.entries.iter().filter(|(entry, _)| entry.covers(nodes));
        covering.max_by_key(|(entry, _)| entry.narrowness()).map_or(Access::NONE, |(_, access)| *access)
    }

    /// Whether everything is allowed, so that nothing needs to be filtered.
    pub(super) fn is_everything(&self) -> bool {
        self.entries.values().all(|access| *access == Access::ALL)
    }

    /// The entries, the narrowest first and among their like as they were listed, without those that say what a wider one says
    /// anyway.
    pub(super) fn entries(&self) -> Vec<(Nodes, Access)> {
        let mut entries: Vec<_> = self.entries.iter().map(|(n, a)| (*n, *a)).collect();
        let place = |nodes: &Nodes| self.listed.iter().position(|(listed, _)| listed == nodes);
        entries.sort_by_cached_key(|(nodes, _)| {
            (u8::MAX - nodes.narrowness(), place(nodes).unwrap_or(usize::MAX), *nodes)
        });
        let mut kept: Vec<(Nodes, Access)> = Vec::with_capacity(entries.len());
        // From the widest on: an entry says nothing new if what would decide in its place covers all of it and says the same.
        for (nodes, access) in entries.into_iter().rev() {
            let next = kept.iter().rev().find(|(wider, _)| wider.intersection(nodes).is_some());
            if next.is_none_or(|(wider, verdict)| *verdict != access || !wider.covers(nodes)) {
                kept.push((nodes, access));
            }
        }
        kept.reverse();
        kept
    }

    /// Without the right to make the nodes, if no rule names it and a wider entry gives it anyway: the kernel asks for that right
    /// by itself, and so the list reads as it was written.
    fn as_listed(&self, nodes: Nodes, access: Access) -> Access {
        let listed =
            self.listed.iter().rev().find(|(listed, _)| *listed == nodes).map_or(Access::NONE, |(_, access)| *access);
        let without = Access(access.0 & !Access::MKNOD.0);
        let wide = Nodes::all(nodes.kind);
        let given = nodes != wide && self.verdict(wide).contains(Access::MKNOD);
        if given && listed == without && without != Access::NONE { without } else { access }
    }

    /// The state of a version 1 cgroup that has the same effect.
    pub(super) fn v1(&self) -> Result<Exceptions> {
        let entries: Vec<_> = self.entries.iter().map(|(n, a)| (*n, *a)).collect();
        let narrower = || {
            let pairs = entries.iter().flat_map(|a| entries.iter().map(move |b| (a, b)));
            pairs.filter(|(wide, narrow)| wide.0 != narrow.0 && wide.0.covers(narrow.0))
        };
        // It is refused if one exception to "all" touches it: right if all is allowed and narrower entries only take away.
        let all = [Kind::Block, Kind::Char].into_iter().all(|k| self.verdict(Nodes::all(k)) == Access::ALL);
        if all && narrower().all(|(wide, narrow)| wide.1.contains(narrow.1)) {
            let taken = |(nodes, access): (Nodes, Access)| (nodes, Access(Access::ALL.0 & !access.0));
            let exceptions = self.entries().into_iter().map(taken).filter(|(_, access)| *access != Access::NONE);
            return Ok(Exceptions { to: Basis::Everything, exceptions: exceptions.collect() });
        }
        // An access is allowed if one exception to "none" covers all of it: right if narrower entries only add.
        if narrower().all(|(wide, narrow)| narrow.1.contains(wide.1)) {
            let exceptions = self.entries().into_iter().map(|(nodes, access)| (nodes, self.as_listed(nodes, access)));
            let exceptions = exceptions.filter(|(_, access)| *access != Access::NONE);
            return Ok(Exceptions { to: Basis::Nothing, exceptions: exceptions.collect() });
        }
        Err(Error::UnsupportedField {
            field: FIELD.to_owned(),
            reason: "cgroup version 1 has exceptions to none or to all devices, and none to those: these rules need it"
                .to_owned(),
        })
    }
}

/// What the `devices` controller of version 1 holds: exceptions to a basis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exceptions {
    to: Basis,
    exceptions: Vec<(Nodes, Access)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Basis {
    Nothing,
    Everything,
}

/// A line for one of the two files of version 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Allow(String),
    Deny(String),
}

impl Exceptions {
    /// The lines that bring a new cgroup there, whatever its parent has.
    pub(super) fn lines(&self) -> Vec<Line> {
        let all = || "a".to_owned();
        let mut lines = vec![match self.to {
            Basis::Nothing => Line::Deny(all()),
            Basis::Everything => Line::Allow(all()),
        }];
        lines.extend(self.exceptions.iter().map(|(nodes, access)| {
            let line = format!("{nodes} {access}");
            match self.to {
                Basis::Nothing => Line::Allow(line),
                Basis::Everything => Line::Deny(line),
            }
        }));
        lines
    }

    /// The lines that bring a cgroup there whose `devices.list` reads as `list`, without a moment in which a device is refused
    /// that is allowed before and after.
    pub(super) fn lines_from(&self, list: &str) -> Vec<Line> {
        if self.to == Basis::Everything || list.lines().any(|l| l.starts_with('a')) {
            return self.lines();
        }
        let wanted: Vec<String> = self.exceptions.iter().map(|(nodes, access)| format!("{nodes} {access}")).collect();
        let now: Vec<&str> = list.lines().collect();
        let allow = wanted.iter().filter(|w| !now.contains(&w.as_str())).map(|w| Line::Allow(w.clone()));
        // What is denied goes first: an exception of the same nodes with more access is merged with that which is there.
        let deny = now.iter().filter(|n| !wanted.iter().any(|w| w == *n)).map(|n| Line::Deny((*n).to_owned()));
        deny.chain(allow).collect()
    }
}

/// A rule that denies may say `a` for all kinds of access; one that allows has to name them.
fn parse(rule: &LinuxDeviceCgroup) -> Result<(&'static [Kind], Nodes, Access)> {
    let refuse = |reason: String| Error::InvalidSpec { field: FIELD.to_owned(), reason };
    let kinds: &[Kind] = match rule.typ() {
        None | Some(LinuxDeviceType::A) => &[Kind::Block, Kind::Char],
        Some(LinuxDeviceType::B) => &[Kind::Block],
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[Kind::Char],
        Some(LinuxDeviceType::P) => return Err(refuse("a rule cannot be about a FIFO, which is no device".to_owned())),
    };
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => match u32::try_from(value) {
            Ok(value) if i32::try_from(value).is_ok() => Ok(Some(value)),
            _ => Err(refuse(format!("{name} {value} is not a device number"))),
        },
    };
    let nodes =
        Nodes { kind: Kind::Char, major: number("major", rule.major())?, minor: number("minor", rule.minor())? };
    let access = match rule.access() {
        None => Access::ALL,
        Some(text) if !rule.allow() && text.contains('a') => Access::ALL,
        Some(text) => {
            Access::parse(text).ok_or_else(|| refuse(format!("access {text:?} is not of the letters r, w and m")))?
        }
    };
    Ok((kinds, nodes, access))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `+c 1:3 rw`, `-a *:* rwm`.
    pub(in crate::cgroup) fn rules(text: &[&str]) -> Vec<LinuxDeviceCgroup> {
        text.iter()
            .map(|rule| {
                let fields: Vec<&str> = rule[1..].split([' ', ':']).collect();
                let number = |text: &str| text.parse::<i64>().ok();
                let mut out = LinuxDeviceCgroup::default();
                out.set_allow(rule.starts_with('+'))
                    .set_typ(Some(fields[0].parse().expect("type")))
                    .set_major(number(fields[1]))
                    .set_minor(number(fields[2]))
                    .set_access(Some(fields[3].to_owned()));
                out
            })
            .collect()
    }

    /// The specification's own meaning: for each kind of access the last rule that matches wins.
    pub(in crate::cgroup) fn by_the_book(rules: &[LinuxDeviceCgroup], node: Nodes) -> Access {
        let mut verdict = Access::NONE;
        let one = |rule: Option<i64>, node: Option<u32>| rule.is_none() || rule == node.map(i64::from);
        for rule in rules {
            let kind = match rule.typ() {
                None | Some(LinuxDeviceType::A) => true,
                Some(LinuxDeviceType::B) => node.kind == Kind::Block,
                _ => node.kind == Kind::Char,
            };
            if kind && one(rule.major(), node.major) && one(rule.minor(), node.minor) {
                let access = rule.access().as_deref().map_or(Some(Access::ALL), Access::parse);
                verdict = verdict.with(access.expect("letters"), rule.allow());
            }
        }
        let always = ALWAYS.into_iter().filter(|(n, _)| n.covers(node));
        always.fold(verdict, |verdict, (_, access)| verdict.with(access, true))
    }

    /// Nodes that the generated rules and the default ones are about, and some that none is about.
    pub(in crate::cgroup) fn grid() -> Vec<Nodes> {
        let mut nodes = Vec::new();
        for kind in [Kind::Block, Kind::Char] {
            for major in [0, 1, 2, 5, 7, 136, 254] {
                for minor in [0, 1, 2, 3, 5, 9, 200] {
                    nodes.push(Nodes { kind, major: Some(major), minor: Some(minor) });
                }
            }
        }
        nodes
    }

    /// Pseudo-random rule lists over few numbers, so that they overlap in every way.
    pub(in crate::cgroup) fn generated() -> impl Iterator<Item = Vec<LinuxDeviceCgroup>> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        };
        (0..300).map(move |_| {
            (0..next(9))
                .map(|_| {
                    let text = format!(
                        "{}{} {}:{} {}",
                        ["+", "-"][next(2)],
                        ["a", "b", "c"][next(3)],
                        ["*", "1", "2", "7"][next(4)],
                        ["*", "1", "2", "3"][next(4)],
                        ["r", "w", "m", "rw", "rwm", "rm"][next(6)],
                    );
                    rules(&[&text]).remove(0)
                })
                .collect()
        })
    }

    #[test]
    fn the_table_means_what_the_rules_mean() {
        for rules in generated() {
            let table = Devices::new(&rules).expect("table");
            for node in grid() {
                assert_eq!(table.verdict(node), by_the_book(&rules, node), "{node} of {rules:?}");
            }
        }
    }

    /// What the kernel's version 1 controller answers (`security/device_cgroup.c`).
    fn v1_allows(state: &Exceptions, node: Nodes, access: Access) -> bool {
        let mut matching = state.exceptions.iter().filter(|(n, _)| n.covers(node));
        match state.to {
            Basis::Nothing => matching.any(|(_, a)| a.contains(access)),
            Basis::Everything => !matching.any(|(_, a)| a.bits() & access.bits() != 0),
        }
    }

    #[test]
    fn version_1_means_the_same_or_refuses() {
        let (mut expressed, mut refused) = (0, 0);
        for rules in generated() {
            let Ok(state) = Devices::new(&rules).expect("table").v1() else {
                refused += 1;
                continue;
            };
            expressed += 1;
            for node in grid() {
                // The kernel asks for the making of a node by itself: devcgroup_inode_mknod().
                for bits in [1, 2, 4, 6] {
                    let want = by_the_book(&rules, node).contains(Access(bits));
                    assert_eq!(v1_allows(&state, node, Access(bits)), want, "{node} {} of {rules:?}", Access(bits));
                }
            }
        }
        assert!(
            expressed > 50 && refused > 10,
            "{expressed} expressed, {refused} refused: the test has lost its point"
        );
    }

    #[test]
    fn version_1_lines_of_usual_lists() {
        let lines = |list: &[&str]| {
            let state = Devices::new(&rules(list)).expect("table").v1().expect("version 1");
            let text = |line: Line| match line {
                Line::Allow(l) => format!("+{l}"),
                Line::Deny(l) => format!("-{l}"),
            };
            state.lines().into_iter().map(text).collect::<Vec<_>>()
        };
        let usual = lines(&["-a *:* rwm", "+c 10:229 rw"]);
        assert_eq!(usual[0], "-a");
        assert!(usual[1] == "+c 10:229 rw", "{usual:?}");
        assert!(usual.contains(&"+c 1:3 rwm".to_owned()), "{usual:?}");
        assert!(usual.contains(&"+b *:* m".to_owned()), "{usual:?}");
        assert_eq!(lines(&["+a *:* rwm"]), ["+a"]);
        assert_eq!(lines(&["+a *:* rwm", "-b 8:* w"]), ["+a", "-b 8:* w"]);
    }

    #[test]
    fn changing_version_1_touches_only_what_changes() {
        let state = |list: &[&str]| Devices::new(&rules(list)).expect("table").v1().expect("version 1");
        let list = |state: &Exceptions| {
            let lines: Vec<String> = state.exceptions.iter().map(|(n, a)| format!("{n} {a}")).collect();
            lines.join("\n")
        };
        let (before, after) = (state(&["+c 10:229 rw"]), state(&["+b 7:0 r"]));
        let lines = after.lines_from(&list(&before));
        assert_eq!(lines, [Line::Deny("c 10:229 rw".into()), Line::Allow("b 7:0 r".into())]);
        assert_eq!(after.lines_from(&list(&after)), []);
        assert_eq!(after.lines_from("a *:* rwm\n"), after.lines());
    }

    #[test]
    fn bad_rules_are_refused() {
        let mut fifo = rules(&["+c 1:1 r"]);
        fifo[0].set_typ(Some(LinuxDeviceType::P));
        let mut negative = rules(&["+c 1:1 r"]);
        negative[0].set_major(Some(-2));
        let mut large = rules(&["+c 1:1 r"]);
        large[0].set_minor(Some(1 << 40));
        for bad in [fifo, negative, large, rules(&["+c 1:1 rx"])] {
            assert!(matches!(Devices::new(&bad), Err(Error::InvalidSpec { .. })), "{bad:?}");
        }
        // Rows and columns that all cross each other.
        let many: Vec<String> = (0..60).flat_map(|n| [format!("+c {n}:* r"), format!("+c *:{n} w")]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(Devices::new(&rules(&many)), Err(Error::InvalidSpec { .. })));
    }

    #[test]
    fn everything_needs_no_filter() {
        assert!(Devices::new(&rules(&["+a *:* rwm"])).expect("table").is_everything());
        assert!(!Devices::new(&[]).expect("table").is_everything());
        assert!(!Devices::new(&rules(&["+a *:* rwm", "-c 1:1 r"])).expect("table").is_everything());
    }
}
