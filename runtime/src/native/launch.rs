//! Making the child and listening to it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oci_spec::runtime::{LinuxIdMapping, Process, Spec};

use crate::child::{self, Child, LENGTH, Message, NAME, Part};
use crate::plan::{IdMap, Open, Options, Plan, Step, alone, id_map, limits, priorities};
use crate::sys::mount::{self, Depth};
use crate::sys::process::{self, CloneRequest, Strings};
use crate::sys::{self, file, own, schedule, socket};
use crate::{Error, Features, Result};

/// Everything that a child gets, beside its plan.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) features: Features,
    /// The version 2 cgroup to be born in.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// The table of descriptors.
    pub(super) fds: &'a [i32],
    /// The seccomp filter and its flags.
    pub(super) filter: Option<(&'a [libc::sock_filter], u64)>,
}

/// A child.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

impl Launch<'_> {
    /// Clones the child, which follows the plan. `descriptors` are what its program gets as 0, 1, 2 and so on.
    pub(super) fn spawn(&self, plan: &mut Plan, mut descriptors: Vec<i32>) -> Result<Started> {
        // The low numbers are the program's: nothing that the child works with may lie where its streams are put.
        let least = descriptors.len() as i32;
        let mut moved = Vec::new();
        let mut fds = self.fds.to_vec();
        for fd in fds.iter_mut().filter(|fd| (0..least).contains(*fd)) {
            let above = own(file::dup_above(*fd, least).map_err(system("duplicate a descriptor"))?);
            *fd = above.as_raw_fd();
            moved.push(above);
        }
        let others = others(fds.iter().chain(&descriptors).copied());
        let request = CloneRequest {
            flags: plan.flags,
            cgroup: self.cgroup.map(|fd| fd.as_raw_fd()),
            clone3: self.features.clone3,
        };
        let mut child = Child {
            plan,
            features: self.features,
            fds: &fds,
            descriptors: &mut descriptors,
            others: &others,
            filter: self.filter,
            made: child::Made::default(),
        };
        let (pid, pidfd) = process::spawn(request, &mut child, child::run).map_err(|errno| match errno {
            libc::EPERM => Error::System {
                operation: "clone a process into new namespaces (this takes root)",
                source: io::Error::from_raw_os_error(errno),
            },
            errno => system("clone a process into new namespaces")(errno),
        })?;
        Ok(Started { pid, pidfd })
    }
}

/// The numbers of descriptors that are not in a list, as ranges.
fn others(listed: impl Iterator<Item = i32>) -> Vec<(u32, u32)> {
    let mut listed: Vec<u32> = listed.filter_map(|fd| u32::try_from(fd).ok()).collect();
    listed.sort_unstable();
    listed.dedup();
    let mut ranges = Vec::with_capacity(listed.len() + 1);
    let mut next = 0;
    for fd in listed {
        if fd > next {
            ranges.push((next, fd - 1));
        }
        next = fd + 1;
    }
    ranges.push((next, u32::MAX));
    ranges
}

/// What a child said.
#[derive(Debug)]
pub(super) enum Event {
    Forked(i32),
    Console(OwnedFd),
    Hooks,
    Clocks,
    Network(OwnedFd),
    Listener(i32),
    Ready,
}

/// The next word of a child that is being set up.
pub(super) fn receive(socket: &OwnedFd, plan: &Plan, started: &Started) -> Result<Event> {
    let Heard { message, name, fd } = hear(socket)?;
    match (message, fd) {
        (Some(Message::Forked { pid }), _) => Ok(Event::Forked(pid)),
        (Some(Message::Console), Some(fd)) => Ok(Event::Console(fd)),
        (Some(Message::Hooks), _) => Ok(Event::Hooks),
        (Some(Message::Clocks), _) => Ok(Event::Clocks),
        (Some(Message::Network), Some(fd)) => Ok(Event::Network(fd)),
        (Some(Message::Listener { number }), _) => Ok(Event::Listener(number)),
        (Some(Message::Ready), _) => Ok(Event::Ready),
        (Some(Message::Failed { step, part, errno }), _) => Err(failed(plan, step, part, errno, name)),
        (Some(Message::Console | Message::Network) | None, _) => {
            let status = crate::wait(started.pidfd.as_fd(), started.pid)?;
            Err(Error::SetupDied { status: status.code() })
        }
    }
}

/// What came over the socket.
#[derive(Debug)]
pub(super) struct Heard {
    /// `None` at the end.
    pub(super) message: Option<Message>,
    /// The interpreter that a failure is about; else empty.
    name: String,
    fd: Option<OwnedFd>,
}

/// Waits for a message, or for the end.
pub(super) fn hear(socket: &OwnedFd) -> Result<Heard> {
    let mut buffer = [0u8; LENGTH + NAME];
    let mut received = socket::receive(socket.as_fd(), &mut buffer);
    if received.as_ref().err() == Some(&libc::ECONNRESET) {
        // It ended without reading our answer. That is said once, and then what it said itself.
        received = socket::receive(socket.as_fd(), &mut buffer);
    }
    let (length, fd) = received.map_err(system("hear from the child"))?;
    let (message, name) = buffer.get(..length).unwrap_or_default().split_at(length.min(LENGTH));
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Heard { message: Message::decode(message), name: String::from_utf8_lossy(name).into_owned(), fd })
}

/// Lets the child go on.
pub(super) fn answer(socket: &OwnedFd) -> Result<()> {
    match socket::send(socket.as_raw_fd(), b"a", None) {
        // It has died, and what it said of that is heard next.
        Ok(()) | Err(libc::EPIPE | libc::ECONNRESET) => Ok(()),
        Err(errno) => Err(system("answer the child")(errno)),
    }
}

/// What the program is called in errors.
fn program(plan: &Plan) -> String {
    plan.arguments.texts().first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn failed(plan: &Plan, step: u32, part: Part, errno: i32, name: String) -> Error {
    let step = plan.steps.get(step as usize);
    let text = step.map_or_else(|| "follow the plan".to_owned(), ToString::to_string);
    failure(text, &program(plan), part, errno, name)
}

fn failure(step: String, program: &str, part: Part, errno: i32, interpreter: String) -> Error {
    let source = io::Error::from_raw_os_error(errno);
    if !matches!(part, Part::Find | Part::Interpreter | Part::Execute) {
        return Error::Setup { step, call: part.text(), source };
    }
    let executable = program.to_owned();
    match errno {
        // That the program itself is there was found before.
        libc::ENOENT | libc::ENOTDIR if part != Part::Find => Error::InterpreterNotFound { executable, interpreter },
        libc::ENOENT | libc::ENOTDIR => Error::ExecutableNotFound { executable, source },
        libc::E2BIG | libc::ENOMEM | libc::EAGAIN | libc::EIO | libc::EMFILE | libc::ENFILE => {
            Error::Setup { step, call: part.text(), source }
        }
        _ => Error::NotExecutable { executable, source },
    }
}

/// After an error: the process that was made by another, and has failed before it was heard of. Somebody has to reap it.
pub(super) fn unheard(socket: &OwnedFd) -> Option<i32> {
    while let Ok(Heard { message: Some(message), .. }) = hear(socket) {
        if let Message::Forked { pid } = message {
            return Some(pid);
        }
    }
    None
}

/// Waits until the program is executed, or could not be.
pub(super) fn executed(socket: &OwnedFd, plan: &Plan) -> Result<()> {
    let Heard { message, name, .. } = hear(socket)?;
    match message {
        Some(Message::Failed { step, part, errno }) => Err(failed(plan, step, part, errno, name)),
        // The exec has closed the other side.
        _ => Ok(()),
    }
}

/// A child that waits for its start: how to learn what became of it.
#[derive(Debug)]
pub(super) struct Waiting {
    socket: OwnedFd,
    program: String,
    /// The steps that are left, by their place.
    left: Vec<(u32, String)>,
}

impl Waiting {
    pub(super) fn new(socket: OwnedFd, plan: &Plan) -> Self {
        let ready = plan.steps.iter().position(|step| *step == Step::Ready).unwrap_or_default();
        let left = (0..).zip(&plan.steps).skip(ready).map(|(at, step)| (at, step.to_string())).collect();
        Self { socket, program: program(plan), left }
    }

    /// Waits until the program is executed, or could not be.
    pub(super) fn executed(self) -> Result<()> {
        let Heard { message, name, .. } = hear(&self.socket)?;
        match message {
            Some(Message::Failed { step, part, errno }) => {
                let step = self.left.into_iter().find(|(at, _)| *at == step);
                let step = step.map_or_else(|| "follow the plan".to_owned(), |(_, text)| text);
                Err(failure(step, &self.program, part, errno, name))
            }
            // The exec has closed the other side.
            _ => Ok(()),
        }
    }
}

/// Opens what a plan wants open.
#[derive(Debug)]
pub(super) struct Opener {
    features: Features,
    /// User namespaces that were made for mounts: often all of a container have the same.
    users: Vec<(IdMap, OwnedFd)>,
}

impl Opener {
    pub(super) fn new(features: Features) -> Self {
        Self { features, users: Vec::new() }
    }

    pub(super) fn open(&mut self, wanted: &Open) -> Result<OwnedFd> {
        let opened = match wanted {
            Open::Ids(map) => return self.ids(map),
            Open::Namespace { path, .. } => open_namespace(path)?,
            Open::Bind { source, depth, options, field, .. } => {
                open_tree(source, *depth, options, field, self.features)?
            }
        };
        if let Open::Bind { idmap: Some((map, depth)), source, field, .. } = wanted {
            mount::set_idmap(opened.as_raw_fd(), *depth, self.ids(map)?.as_raw_fd()).map_err(|errno| Error::Mount {
                what: format!("{} ({field}) with an idmap", source.display()),
                call: "mount_setattr",
                source: io::Error::from_raw_os_error(errno),
            })?;
        }
        Ok(opened)
    }

    fn ids(&mut self, map: &IdMap) -> Result<OwnedFd> {
        let copy = |users: &OwnedFd| {
            users.try_clone().map_err(|source| Error::System { operation: "copy a descriptor", source })
        };
        if let Some((_, users)) = self.users.iter().find(|(known, _)| known == map) {
            return copy(users);
        }
        let users = users(map, self.features)?;
        let result = copy(&users);
        self.users.push((map.clone(), users));
        result
    }
}

/// A user namespace with these mappings. A process has to be in it for a moment.
fn users(map: &IdMap, features: Features) -> Result<OwnedFd> {
    let (uids, gids) = match map {
        IdMap::Namespace(path) => return open_namespace(path),
        IdMap::Mappings(uids, gids) => (uids, gids),
    };
    let (socket, inner) = socket::pair().map_err(system("make a pair of sockets"))?;
    let nothing = || Strings::new(Vec::new(), None);
    let mut plan = Plan::of_steps(vec![Step::AwaitMappings], CString::default(), nothing(), nothing());
    plan.flags = libc::CLONE_NEWUSER as u64;
    let launch = Launch { features, cgroup: None, fds: &[inner.as_raw_fd(), -1, -1], filter: None };
    let started = launch.spawn(&mut plan, Vec::new())?;
    drop(inner);
    let namespace = write_proc(started.pid, "uid_map", uids)
        .and_then(|()| write_proc(started.pid, "gid_map", gids))
        .and_then(|()| open_namespace(Path::new(&format!("/proc/{}/ns/user", started.pid))));
    // Without a parent it ends.
    drop(socket);
    crate::wait(started.pidfd.as_fd(), started.pid)?;
    namespace
}

fn open_namespace(path: &Path) -> Result<OwnedFd> {
    match fs::File::open(path) {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(Error::Io { operation: "open the namespace", path: path.to_owned(), source }),
    }
}

/// The root of a process.
pub(super) fn root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path);
    match opened {
        Ok(file) => Ok(file.into()),
        Err(source) => Err(Error::Io { operation: "open", path: path.into(), source }),
    }
}

fn open_tree(source: &Path, depth: Depth, options: &Options, field: &str, features: Features) -> Result<OwnedFd> {
    let tree = clone_tree(source, depth, field)?;
    if features.mount_setattr {
        crate::mount::set_options(tree.as_raw_fd(), options).map_err(|errno| Error::Mount {
            what: format!("{} ({field})", source.display()),
            call: "mount_setattr",
            source: io::Error::from_raw_os_error(errno),
        })?;
    }
    Ok(tree)
}

/// A detached copy of a part of the host's tree.
pub(super) fn clone_tree(path: &Path, depth: Depth, field: &str) -> Result<OwnedFd> {
    let error = |source| match field {
        "root" => Error::Io { operation: "open the root", path: path.to_owned(), source },
        _ => Error::Mount { what: format!("{} ({field})", path.display()), call: "open_tree", source },
    };
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| error(io::ErrorKind::InvalidInput.into()))?;
    mount::clone_tree(libc::AT_FDCWD, &text, depth)
        .map(sys::own)
        .map_err(|errno| error(io::Error::from_raw_os_error(errno)))
}

/// Writes the mappings of the child's user namespace.
///
/// Without root one may map one's own user and group; all else is done by `newuidmap` and `newgidmap`, as far as `/etc/subuid` and
/// `/etc/subgid` allow it.
pub(super) fn write_mappings(spec: &Spec, pid: i32, rootless: bool) -> Result<()> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let lists = [
        ("uid_map", "newuidmap", "linux.uidMappings", linux.uid_mappings()),
        ("gid_map", "newgidmap", "linux.gidMappings", linux.gid_mappings()),
    ];
    for (name, program, field, mappings) in lists {
        let mappings = mappings.as_deref().unwrap_or_default();
        if rootless && !alone(mappings) {
            map_by(program, field, pid, mappings)?;
            continue;
        }
        if rootless && name == "gid_map" {
            write_proc(pid, "setgroups", "deny")?;
        }
        write_proc(pid, name, &id_map(mappings))?;
    }
    Ok(())
}

/// [`newuidmap(1)`](https://man7.org/linux/man-pages/man1/newuidmap.1.html).
fn map_by(program: &'static str, field: &str, pid: i32, mappings: &[LinuxIdMapping]) -> Result<()> {
    let numbers = mappings.iter().flat_map(|one| [one.container_id(), one.host_id(), one.size()]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Io { operation: "execute", path: program.into(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::InvalidSpec { field: field.into(), reason: format!("{program} refuses it: {complaint}") })
}

/// What only the host's privileges can do for a child in a user namespace.
pub(super) fn privileged(process: &Process, pid: i32) -> Result<()> {
    let (score, limits) = (process.oom_score_adj(), limits(process)?);
    if let Some(score) = score {
        write_proc(pid, "oom_score_adj", &score.to_string())?;
    }
    for (resource, name, soft, hard) in &limits {
        process::set_limit(pid, *resource, *soft, *hard).map_err(|errno| Error::Setup {
            step: format!("process.rlimits: set {name} to {soft}:{hard}"),
            call: "",
            source: io::Error::from_raw_os_error(errno),
        })?;
    }
    for step in priorities(process)? {
        let set = match &step {
            Step::Scheduler(attributes) => schedule::set_attributes(pid, attributes),
            Step::IoPriority(value) => schedule::set_io_priority(pid, *value),
            _ => Ok(()),
        };
        set.map_err(|errno| Error::Setup {
            step: step.to_string(),
            call: "",
            source: io::Error::from_raw_os_error(errno),
        })?;
    }
    Ok(())
}

/// Sets the clocks of the time namespace that the child has made.
pub(super) fn set_clocks(pid: i32, offsets: &str) -> Result<()> {
    write_proc(pid, "timens_offsets", offsets)
}

fn write_proc(pid: i32, name: &str, text: &str) -> Result<()> {
    let path = PathBuf::from(format!("/proc/{pid}/{name}"));
    fs::write(&path, text).map_err(|source| Error::Io { operation: "write", path, source })
}

/// An error of a system call.
pub(super) fn system(operation: &'static str) -> impl FnOnce(i32) -> Error {
    move |errno| Error::System { operation, source: io::Error::from_raw_os_error(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_is_not_listed() {
        type Case<'a> = (&'a [i32], &'a [(u32, u32)]);
        let cases: [Case<'_>; 4] = [
            (&[], &[(0, u32::MAX)]),
            (&[0, 1, 2], &[(3, u32::MAX)]),
            (&[7, 2, 2, 3], &[(0, 1), (4, 6), (8, u32::MAX)]),
            (&[-1, 0], &[(1, u32::MAX)]),
        ];
        for (listed, expected) in cases {
            assert_eq!(others(listed.iter().copied()), expected);
        }
    }
}
