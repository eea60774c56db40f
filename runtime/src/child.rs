//! The child between clone and exec: it follows the plan.
//!
//! Nothing here allocates, takes a lock or panics. The child is a copy of a process that may have had any number of threads, and
//! any of them may have held any lock.

mod copy;
mod device;
mod executable;
mod mount;
mod report;
mod target;

pub(crate) use report::{LENGTH, Message, NAME, Part};

use crate::Features;
use crate::child::mount::Way;
use crate::child::report::Failure;
use crate::mount::set_options;
use crate::plan::{Plan, Slot, Step};
use crate::resolve::Resolver;
use crate::sys::mount::Depth;
use crate::sys::process::CLONE_NEWTIME;
use crate::sys::{self, Call, file, process, schedule, socket, terminal};

/// What the child has, beside the plan.
#[derive(Debug)]
pub(crate) struct Child<'a> {
    /// What to do.
    pub(crate) plan: &'a mut Plan,
    /// What the kernel offers.
    pub(crate) features: Features,
    /// The table of descriptors.
    pub(crate) fds: &'a [i32],
    /// Where the program's descriptors come from: what becomes 0, 1, 2 and so on.
    pub(crate) descriptors: &'a mut [i32],
    /// The numbers that are in none of the lists above, as ranges.
    pub(crate) others: &'a [(u32, u32)],
    /// The seccomp filter and its flags.
    pub(crate) filter: Option<(&'a [libc::sock_filter], u64)>,
    /// What the steps leave for later ones.
    pub(crate) made: Made,
}

/// What steps leave for later ones: descriptors, -1 if there is none yet.
#[derive(Debug)]
pub(crate) struct Made {
    root: i32,
    proc: i32,
    mask: i32,
    null: i32,
    console: i32,
    program: usize,
    /// The interpreter that was looked for last: its path, and zeroes.
    interpreter: [u8; NAME],
}

impl Default for Made {
    fn default() -> Self {
        Self { root: -1, proc: -1, mask: -1, null: -1, console: -1, program: 0, interpreter: [0; NAME] }
    }
}

impl Made {
    /// Closes what the program's start does not need.
    fn close(&mut self) {
        for unneeded in [&mut self.proc, &mut self.mask, &mut self.null, &mut self.console] {
            if *unneeded >= 0 {
                file::close(*unneeded);
                *unneeded = -1;
            }
        }
    }
}

/// The exit status of a child that could not do its steps; nobody sees it but through an orphaned process.
const FAILED: i32 = 125;

/// Runs the child. For [`process::spawn`].
pub(crate) fn run(child: &mut Child<'_>) -> ! {
    process::reset_signals();
    child.close_others();
    child.fill_low_numbers();
    for at in 0..child.plan.steps.len() {
        if let Err(failure) = child.step(at) {
            let message = Message::Failed { step: at as u32, part: failure.part, errno: failure.errno };
            let mut packet = [0u8; LENGTH + NAME];
            let (told, name) = packet.split_at_mut(LENGTH);
            told.copy_from_slice(&message.encode());
            name.copy_from_slice(&child.made.interpreter);
            let packet = if failure.part == Part::Interpreter { packet.as_slice() } else { &packet[..LENGTH] };
            let _ = socket::send(child.fd(Slot::SOCKET), packet, None);
            let status = match failure.errno {
                libc::ENOENT if failure.part == Part::Execute => 127,
                _ if failure.part == Part::Execute => 126,
                _ => FAILED,
            };
            process::exit(status);
        }
    }
    process::exit(FAILED)
}

impl Child<'_> {
    fn fd(&self, slot: Slot) -> i32 {
        self.fds.get(slot.0).copied().unwrap_or(-1)
    }

    fn resolver(&self) -> Resolver {
        Resolver { openat2: self.features.openat2 }
    }

    /// Descriptors that another thread of the host program opened a moment ago are in no list.
    fn close_others(&self) {
        for &(first, last) in self.others {
            if self.features.close_range && file::close_range(first, last).is_ok() {
                continue;
            }
            // Nothing is open beyond this, as the parent has looked.
            for fd in first..=last.min(1 << 16) {
                file::close(fd as i32);
            }
        }
    }

    /// Occupies the numbers that the program's descriptors will have, so that nothing the steps open lies there and is
    /// lost, or closes a stream by being closed.
    fn fill_low_numbers(&self) {
        for number in 0..self.descriptors.len() as i32 {
            if !self.descriptors.contains(&number) {
                // A failure would show as a failure of the step that places the descriptors.
                let _ = file::dup_to(self.fd(Slot::SOCKET), number);
            }
        }
    }

    fn step(&mut self, at: usize) -> Result<(), Failure> {
        let features = self.features;
        let resolver = self.resolver();
        let socket = self.fd(Slot::SOCKET);
        let plan = &mut *self.plan;
        let fds = self.fds;
        let fd = |slot: Slot| fds.get(slot.0).copied().unwrap_or(-1);
        let made = &mut self.made;
        let Some(step) = plan.steps.get(at) else { return Ok(()) };
        match step {
            Step::NotDumpable => process::not_dumpable()?,
            Step::JoinCgroups { count } => {
                for tasks in fds.iter().rev().take(*count) {
                    file::write(*tasks, b"0")?;
                    // The wait for the start may be long, and they are not the container's.
                    file::close(*tasks);
                }
            }
            Step::Enter { slot, kind, .. } => process::setns(fd(*slot), *kind)?,
            Step::Fork { flags } => {
                let pid = process::sibling(*flags, features.clone3)?;
                if pid != 0 {
                    let _ = socket::send(socket, &Message::Forked { pid }.encode(), None);
                    process::exit(0);
                }
            }
            Step::AwaitMappings => wait(socket)?,
            Step::BecomeRoot { groups } => {
                process::setgid(0)?;
                process::setuid(0)?;
                if *groups {
                    process::setgroups(&[])?;
                }
            }
            Step::UnshareCgroup => process::unshare(libc::CLONE_NEWCGROUP as u64)?,
            Step::OomScore(value) => {
                let file = file::openat(libc::AT_FDCWD, c"/proc/self/oom_score_adj", libc::O_WRONLY, 0)?;
                let written = file::write(file, value.to_bytes());
                file::close(file);
                written?;
            }
            Step::Limit { resource, soft, hard, .. } => process::set_limit(0, *resource, *soft, *hard)?,
            Step::Scheduler(attributes) => schedule::set_attributes(0, attributes)?,
            Step::IoPriority(value) => schedule::set_io_priority(0, *value)?,
            Step::Affinity(processors) => schedule::set_affinity(processors)?,
            Step::MemoryPolicy { mode, nodes } => schedule::set_memory_policy(*mode, nodes)?,
            Step::Personality(domain) => schedule::set_personality(*domain)?,
            Step::Clocks => {
                process::unshare(CLONE_NEWTIME)?;
                socket::send(socket, &Message::Clocks.encode(), None)?;
                wait(socket)?;
                // Whoever makes a time namespace is not in it yet.
                let path = c"/proc/self/ns/time_for_children";
                let namespace = file::openat(libc::AT_FDCWD, path, libc::O_RDONLY, 0)?;
                let joined = process::setns(namespace, CLONE_NEWTIME);
                file::close(namespace);
                joined?;
            }
            Step::Network => {
                let network = socket::netlink()?;
                let sent = socket::send(socket, &Message::Network.encode(), Some(network));
                file::close(network);
                sent?;
                wait(socket)?;
            }
            Step::Hostname(name) => process::set_hostname(name)?,
            Step::Domainname(name) => process::set_domainname(name)?,
            Step::Sysctl { path, value } => mount::sysctl(resolver, &mut made.proc, path, value)?,
            Step::PrivateProc => mount::private_proc(&mut made.proc)?,
            Step::PrivateMounts => mount::private()?,
            Step::TakeRoot => made.root = file::dup_above(fd(Slot::ROOT), 0)?,
            Step::AttachRoot { at, from } => {
                let tree = match from {
                    Some(path) => mount::host_tree(path, Depth::Recursive)?,
                    None => fd(Slot::ROOT),
                };
                made.root = mount::attach_root(tree, at)?;
            }
            Step::Mount(filesystem) => mount::filesystem(resolver, made.root, filesystem)?,
            Step::Bind { slot, target, guarded, late } => {
                mount::bind(resolver, made.root, fd(*slot), target, *guarded, late.map(|late| (made.proc, late)))?;
            }
            Step::BindHost { source, depth, options, target, guarded, late } => {
                let tree = mount::host_tree(source, *depth)?;
                if features.mount_setattr {
                    set_options(tree, options).map_err(Part::Attributes.of())?;
                }
                mount::bind(resolver, made.root, tree, target, *guarded, late.map(|late| (made.proc, late)))?;
            }
            Step::BindOwn { source, depth, options, idmap, target, late } => {
                let tree = mount::own_tree(resolver, made.root, source, *depth, options, features)?;
                if let Some((users, depth)) = idmap {
                    sys::mount::set_idmap(tree, *depth, fd(*users)).map_err(Part::Attributes.of())?;
                }
                mount::bind(resolver, made.root, tree, target, true, late.map(|late| (made.proc, late)))?;
            }
            Step::Device { target, mode, rdev, uid, gid } => {
                device::node(resolver, made.root, target, *mode, *rdev, (*uid, *gid))?;
            }
            Step::Link { target, to, replace } => device::link(resolver, made.root, target, to, *replace)?,
            Step::OpenRoot => made.root = file::openat(libc::AT_FDCWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?,
            Step::Console { columns, rows, uid, target } => {
                let (master, peer) = device::console(resolver, made.root, (*columns, *rows), *uid, target.as_ref())?;
                socket::send(socket, &Message::Console.encode(), Some(master))?;
                file::close(master);
                made.console = peer;
                for place in self.descriptors.iter_mut().take(3) {
                    *place = peer;
                }
            }
            Step::Hooks => {
                socket::send(socket, &Message::Hooks.encode(), None)?;
                wait(socket)?;
            }
            Step::Pivot => mount::pivot(made.root)?,
            Step::Chroot { elsewhere } => mount::chroot(made.root, *elsewhere)?,
            Step::RootPropagation(kind) => mount::propagate(made.root, *kind)?,
            Step::Directory(target) => file::close(target::directory(resolver, made.root, target)?),
            Step::Readonly(target) => mount::readonly(Way::new(features, made.proc), resolver, made.root, target)?,
            Step::ReadonlyPath(target) => {
                mount::readonly_path(Way::new(features, made.proc), resolver, made.root, target)?;
            }
            Step::MaskPath(target) => {
                mount::mask(resolver, made.root, target, &mut made.mask, &mut made.null)?;
            }
            Step::Label { file, value, .. } => mount::label(resolver, &mut made.proc, file, value.to_bytes())?,
            Step::Keyring(name) => match process::join_session_keyring(name) {
                // A kernel without keys has none to hide.
                Err(libc::ENOSYS) => {}
                result => result?,
            },
            Step::Session => process::setsid()?,
            Step::ControllingTerminal => terminal::control(made.console)?,
            Step::Descriptors => place(self.descriptors)?,
            Step::Filter => {
                if let Some((program, flags)) = self.filter {
                    process::load_filter(program, flags)?;
                }
            }
            Step::AskingFilter => {
                if let Some((program, flags)) = self.filter {
                    // The lowest free number is what comes next, and the filter may be about what would tell of it later.
                    let number = file::dup_above(socket, 0)?;
                    file::close(number);
                    socket::send(socket, &Message::Listener { number }.encode(), None)?;
                    process::load_filter(program, flags)?;
                    wait(socket)?;
                }
            }
            Step::Bounding(keep) => {
                for capability in (0..64u8).filter(|capability| keep & 1 << capability == 0) {
                    process::drop_bounding(capability)?;
                }
            }
            Step::KeepCapabilities => process::keep_capabilities(true)?,
            Step::WorkingDirectory(target) => executable::change_directory(resolver, made.root, target)?,
            Step::Groups(groups) => process::setgroups(groups)?,
            Step::Gid(gid) => process::setgid(*gid)?,
            Step::Uid(uid) => process::setuid(*uid)?,
            Step::Capabilities(sets) => process::set_capabilities(sets)?,
            Step::Ambient(set) => {
                process::clear_ambient()?;
                for capability in (0..64u8).filter(|capability| set & 1 << capability != 0) {
                    process::raise_ambient(capability)?;
                }
            }
            Step::Umask(mask) => file::umask(*mask),
            Step::NoNewPrivileges => process::no_new_privileges()?,
            Step::Home { uid } => executable::home(resolver, made.root, *uid, &mut plan.environment),
            Step::FindExecutable => {
                made.program = executable::find(resolver, made.root, &plan.candidates, &mut made.interpreter)?;
            }
            Step::Ready => {
                // What is not needed by the program is closed by the exec, but the wait for the start may be long.
                made.close();
                socket::send(socket, &Message::Ready.encode(), None)?;
                wait(socket)?;
            }
            Step::Prepared => socket::send(socket, &Message::Ready.encode(), None)?,
            Step::Gate => {
                let mut byte = [0u8; 1];
                let gate = fd(Slot::GATE);
                file::read(gate, &mut byte)?;
                // From now on nobody can open it for writing: the container is started.
                file::close(gate);
            }
            Step::Signals => process::unblock_signals()?,
            Step::Execute => {
                let Some(program) = plan.candidates.get(made.program) else { return Err(libc::ENOENT.into()) };
                let errno = process::execve(program, &plan.arguments, &plan.environment);
                return Err(Failure { part: Part::Execute, errno });
            }
        }
        Ok(())
    }
}

/// Waits for a byte from the parent. Without a parent there is nothing to go on for.
fn wait(socket: i32) -> Call {
    match socket::receive_byte(socket)? {
        Some(_) => Ok(()),
        None => process::exit(FAILED),
    }
}

/// Puts the program's descriptors to 0, 1, 2 and so on. All are taken out of the way first, since one may lie where another goes.
fn place(descriptors: &mut [i32]) -> Call {
    let least = descriptors.len() as i32;
    for source in descriptors.iter_mut() {
        *source = file::dup_above(*source, least)?;
    }
    for (target, source) in descriptors.iter().enumerate() {
        file::dup_to(*source, target as i32)?;
        file::close(*source);
    }
    Ok(())
}
