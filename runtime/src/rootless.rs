//! Containers of a user without privileges: a user namespace in which he is root.
//!
//! A program that calls [`enter`] first in its `main` is root from then on, over what is the user's: his files, his subordinate
//! ids, and mounts that nobody else sees. All else in this crate works there as for root, with a few exceptions that it knows of:
//! devices are shown rather than made, and there is a cgroup only where a part of the tree has been delegated
//! ([`delegated_cgroup`]).

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, User, getegid, geteuid};

use crate::cgroup::{Hierarchies, Mode};
use crate::error::{Error, Result};

/// The name under which this program is executed once more, to map ids from outside.
const HELPER: &str = "estiba-map-ids";
/// What can map more than one's own id, and where it may.
const PROGRAMS: [(&str, &str); 2] = [("newuidmap", "/etc/subuid"), ("newgidmap", "/etc/subgid")];
/// The ids of a host: all but the last.
const ALL: [&str; 3] = ["0", "0", "4294967295"];

/// Which users and groups there are for this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ids {
    /// All: this is no user namespace, or one that maps each id to itself.
    #[default]
    Host,
    /// Those that a user namespace maps.
    Mapped,
    /// One alone: nobody else can own a file.
    Single,
}

/// The ids that this process has, as `/proc/self/uid_map` says.
#[must_use]
pub fn ids() -> Ids {
    // Where there is no /proc, nothing works.
    fs::read_to_string("/proc/self/uid_map").map_or(Ids::Host, |map| ids_of(&map))
}

fn ids_of(map: &str) -> Ids {
    let fields: Vec<&str> = map.split_whitespace().collect();
    match fields.as_slice() {
        all if all == ALL => Ids::Host,
        [_, _, "1"] => Ids::Single,
        _ => Ids::Mapped,
    }
}

/// Whether groups can be set: not where somebody has mapped only himself.
pub(crate) fn can_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}

/// What [`enter`] has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// Why there are no ids but the user's own, in one line; `None` if there are.
    pub single: Option<String>,
}

/// Makes the calling process root of a user namespace and of a mount namespace of its own.
///
/// The user is root there. His subordinate ids ([`subuid(5)`](https://man7.org/linux/man-pages/man5/subuid.5.html)) are the ids
/// from 1 on, if `newuidmap` and `newgidmap` are there. The process must have a single thread, and call [`helper`] in `main`
/// before anything else.
pub fn enter() -> Result<Entered> {
    let (uid, gid) = (geteuid(), getegid());
    let mut maps = Ok(Vec::new());
    for (program, file) in PROGRAMS {
        maps = maps.and_then(|mut maps: Vec<_>| {
            let path = find(program).ok_or_else(|| format!("{program} is missing (Debian's package uidmap)"))?;
            let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
            let text = fs::read_to_string(file).unwrap_or_default();
            let ranges = subordinate(&text, name.as_deref(), uid);
            if ranges.is_empty() {
                let name = name.unwrap_or_else(|| uid.to_string());
                return Err(format!("{file} gives {name} no ids (usermod --add-subuids, --add-subgids)"));
            }
            let own = if program == "newuidmap" { uid.as_raw() } else { gid.as_raw() };
            maps.push((path, lines(own, &ranges)));
            Ok(maps)
        });
    }
    let mut single = None;
    let helper = match &maps {
        Ok(maps) => Some(start_helper(maps)?),
        Err(reason) => {
            single = Some(reason.clone());
            None
        }
    };
    // Without a thread that is another one's, this process alone is elsewhere.
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| Error::System {
        operation: "make a user namespace; the host may forbid it to users (sysctl kernel.unprivileged_userns_clone, \
                    user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)",
        source: errno.into(),
    })?;
    if let Some(mut helper) = helper {
        let told = helper.stdin.take().map(|mut line| line.write_all(b"\n"));
        let output = helper.wait_with_output().map_err(|source| failed("wait for newuidmap", source))?;
        if !output.status.success() || !matches!(told, Some(Ok(()))) {
            let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(Error::InvalidSpec { field: "the subordinate ids".into(), reason: complaint });
        }
    } else {
        let write = |name: &str, text: String| {
            let path = Path::new("/proc/self").join(name);
            fs::write(&path, text).map_err(|source| Error::Io { operation: "write", path, source })
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {uid} 1\n"))?;
        write("gid_map", format!("0 {gid} 1\n"))?;
    }
    Ok(Entered { single })
}

/// In a process that [`enter`] has started to map ids this does so and never returns; in any other it returns at once.
pub fn helper() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == HELPER) {
        std::process::exit(map(arguments));
    }
}

/// Maps the ids of the process that has started this one, as soon as it says so.
fn map(arguments: impl Iterator<Item = OsString>) -> i32 {
    // A parent that fails says nothing and closes its end.
    if io::stdin().read_exact(&mut [0]).is_err() {
        return 1;
    }
    let arguments: Vec<OsString> = arguments.collect();
    for command in arguments.split(|argument| argument.is_empty()) {
        let Some((program, numbers)) = command.split_first() else { continue };
        let mut command = Command::new(program);
        command.arg(std::os::unix::process::parent_id().to_string()).args(numbers).stdin(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(_) => return 1,
            Err(error) => {
                let _ = writeln!(io::stderr(), "{}: {error}", program.display());
                return 1;
            }
        }
    }
    0
}

fn start_helper(maps: &[(PathBuf, Vec<u32>)]) -> Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(HELPER);
    for (program, numbers) in maps {
        command.arg(program).args(numbers.iter().map(u32::to_string)).arg("");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|source| failed("execute this program once more", source))
}

fn failed(operation: &'static str, source: io::Error) -> Error {
    Error::System { operation, source }
}

/// Where a program is that `PATH` leads to.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into()]);
    folders.filter(|folder| folder.is_absolute()).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The beginnings and lengths that `/etc/subuid` or `/etc/subgid` gives a user, by name or number.
fn subordinate(text: &str, name: Option<&str>, uid: Uid) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let is_his = Some(owner) == name || owner == number;
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (is_his && count > 0).then_some((start, count))
    };
    text.lines().filter_map(range).collect()
}

/// The arguments of `newuidmap`: one's own id is 0, then come the others.
fn lines(own: u32, ranges: &[(u32, u32)]) -> Vec<u32> {
    let mut numbers = vec![0, own, 1];
    let mut next = 1_u32;
    for (start, count) in ranges {
        numbers.extend([next, *start, *count]);
        next = next.saturating_add(*count);
    }
    numbers
}

/// The cgroup below which this process may make others with limits, as `linux.cgroupsPath` names it; `None` if no part of the
/// tree was delegated to it.
///
/// It is the highest one above this process that belongs to it: a process cannot move out of what was delegated.
#[must_use]
pub fn delegated_cgroup() -> Option<String> {
    let hierarchies = Hierarchies::detect().ok()?;
    if hierarchies.mode() != Mode::V2 {
        return None;
    }
    let mount = hierarchies.unified_mount()?.to_owned();
    let own = crate::Cgroup::of_process(&hierarchies, std::process::id() as i32).ok()?;
    let own = own.paths().first()?.path.clone();
    let is_ours =
        |folder: &&Path| ["cgroup.procs", "cgroup.subtree_control"].iter().all(|file| writable(&folder.join(file)));
    let inside = |folder: &&Path| **folder != mount && folder.starts_with(&mount);
    let top = own.ancestors().take_while(inside).take_while(is_ours).last()?;
    Some(format!("/{}", top.strip_prefix(&mount).ok()?.to_str()?))
}

fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_told_apart() {
        assert_eq!(ids_of("         0          0 4294967295\n"), Ids::Host);
        assert_eq!(ids_of("         0       1000          1\n"), Ids::Single);
        assert_eq!(ids_of("         0       1000          1\n         1     100000      65536\n"), Ids::Mapped);
        assert_eq!(ids_of("0 100000 65536\n"), Ids::Mapped);
    }

    #[test]
    fn subordinate_ids_are_found_by_name_and_number() {
        let text = "root:1:2\nann:100000:65536\n1000:300000:10\nann:x:1\nann:5\nann:9:0\n";
        let uid = Uid::from_raw(1000);
        assert_eq!(subordinate(text, Some("ann"), uid), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(subordinate(text, None, uid), [(300_000, 10)]);
        assert_eq!(subordinate(text, Some("bob"), Uid::from_raw(7)), []);
        assert_eq!(
            lines(1000, &[(100_000, 65_536), (300_000, 10)]),
            [0, 1000, 1, 1, 100_000, 65_536, 65_537, 300_000, 10]
        );
    }
}
