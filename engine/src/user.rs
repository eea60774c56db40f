//! `USER[:GROUP]` of an image or request against the image's own `/etc/passwd` and `/etc/group`, as Docker reads it.
//!
//! The files come from an image and are hostile: they are bounded, lines that do not parse are passed over, and a
//! number never falls back to a name (CVE-2024-40635: `4294967296` must not become 0).

use crate::error::{Error, Result};

/// The greatest size of `/etc/passwd` or `/etc/group` that is read.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Finds the identity that `user` names; an empty one is root.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user_part, group_part) = match user.split_once(':') {
        Some((user_part, group_part)) => (user_part, Some(group_part).filter(|part| !part.is_empty())),
        None => (user, None),
    };
    let wanted = if user_part.is_empty() { "0" } else { user_part };
    let number = as_number(wanted)?;
    let entry = passwd.lines().filter_map(Account::parse).find(|account| match number {
        Some(uid) => account.uid == uid,
        None => account.name == wanted,
    });
    let (uid, primary) = match (&entry, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(Error::NoUser { user: wanted.to_owned() }),
    };
    if let Some(group_part) = group_part {
        let gid = group_id(group_part, group)?;
        // As Docker: a group that is named replaces the supplementary ones.
        return Ok(Identity { uid, gid, groups: vec![gid] });
    }
    let name = entry.map(|account| account.name);
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(Group::parse)
        .filter(|g| name.is_some_and(|name| g.members.split(',').any(|member| member == name)))
        .map(|g| g.gid)
        .take(1024)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    // The primary one is among them and comes first: else a program that changes it would leave the group without having
    // left it (CVE-2022-36109).
    groups.retain(|gid| *gid != primary);
    groups.insert(0, primary);
    Ok(Identity { uid, gid: primary, groups })
}

/// Adds supplementary groups, by number or by the image's names.
pub(crate) fn add_groups(identity: &mut Identity, wanted: &[String], group: &str) -> Result<()> {
    for name in wanted {
        let gid = group_id(name, group)?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

/// A group by its number or its name.
fn group_id(wanted: &str, group: &str) -> Result<u32> {
    if let Some(gid) = as_number(wanted)? {
        return Ok(gid);
    }
    let found = group.lines().filter_map(Group::parse).find(|g| g.name == wanted);
    found.map(|g| g.gid).ok_or_else(|| Error::NoGroup { group: wanted.to_owned() })
}

/// The number if the text is one; an error if it is one that is no uid.
fn as_number(text: &str) -> Result<Option<u32>> {
    let out_of_range = || Error::IdRange { id: text.to_owned() };
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return if text.starts_with('-') { Err(out_of_range()) } else { Ok(None) };
    }
    // (uid_t) -1 means "no change" to the kernel.
    text.parse().ok().filter(|number| *number < u32::MAX).map(Some).ok_or_else(out_of_range)
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Self { name, uid: fields.nth(1)?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Self { name, gid: fields.nth(1)?.parse().ok()?, members: fields.next().unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nweb:x:33:34::/:\nbig:x:4294967296:1::/:\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nwww:x:34:\nextra:x:50:web\n";

    #[test]
    fn users_are_resolved_as_docker_does() {
        type Case = (&'static str, (u32, u32, &'static [u32]));
        let table: &[Case] = &[
            ("", (0, 0, &[0, 4])),
            ("0", (0, 0, &[0, 4])),
            ("root", (0, 0, &[0, 4])),
            ("web", (33, 34, &[34, 4, 50])),
            ("33", (33, 34, &[34, 4, 50])),
            ("web:www", (33, 34, &[34])),
            ("web:7", (33, 7, &[7])),
            ("web:", (33, 34, &[34, 4, 50])),
            ("1000", (1000, 0, &[0])),
            ("1000:1000", (1000, 1000, &[1000])),
            (":50", (0, 50, &[50])),
        ];
        for (user, (uid, gid, groups)) in table {
            let found = resolve(user, PASSWD, GROUP).unwrap_or_else(|error| panic!("{user}: {error}"));
            assert_eq!(found, Identity { uid: *uid, gid: *gid, groups: groups.to_vec() }, "{user}");
        }
    }

    #[test]
    fn cve_2024_40635_numbers_out_of_range_are_refused() {
        for user in
            ["4294967296", "4294967295", "-1", "0:4294967296", "99999999999999999999", "nobody", "root:none", "big"]
        {
            assert!(resolve(user, PASSWD, GROUP).is_err(), "{user} was taken");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (user, expected) in [
            ("nobody", "no user \"nobody\""),
            ("0:none", "no group \"none\""),
            ("99999999999", "99999999999 is out of range"),
            ("0:99999999999", "99999999999 is out of range"),
        ] {
            let said = resolve(user, PASSWD, GROUP).expect_err(user).to_string();
            assert!(said.contains(expected), "{user}: {said}");
        }
    }
}
