//! Adding a process to a container.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::Process;

use super::label;
use super::launch::{self, Event, Launch, Started};
use super::record::{Folder, Record};
use super::{Joining, Native, permitted, privileged};
use crate::plan::{Filter, Host, Plan, Slot};
use crate::rootless::{self, Ids};
use crate::sys::{self, process as sys_process};
use crate::{ContainerId, Created, Error, ExecOptions, Keyring, Paused, Result, RootSwitch, Status, Stdio};

impl Native {
    /// Adds `process` to the container, and returns when it has executed its program.
    ///
    /// The child is made outside, joins the cgroups and the namespaces, and, as only a new process is in another pid namespace, makes
    /// the one that goes on: its sibling, so a child of the caller.
    pub(super) fn add(&self, id: &ContainerId, process: &Process, options: &ExecOptions<'_>) -> Result<Created> {
        let folder = Folder::open(&self.state_root, id)?;
        let record = folder.load()?;
        let wrong = |status| Error::WrongStatus { id: id.clone(), operation: "add a process to", status };
        let status = folder.status(&record);
        let awaited = options.paused == Paused::Awaited;
        let there = matches!(status, Status::Created | Status::Running) || status == Status::Paused && awaited;
        let (true, Some(first)) = (there, record.identity.open()) else {
            return Err(wrong(if there { Status::Stopped } else { status }));
        };
        let cgroup = match (record.cgroup(), options.cgroups) {
            (Some(cgroup), wanted @ [_, ..]) => Some(cgroup.below(wanted)?),
            (None, [sub, ..]) => {
                let reason = "the container has no cgroup".to_owned();
                return Err(Error::SubCgroup { path: sub.path.clone(), reason });
            }
            (cgroup, []) => cgroup,
        };
        // The child would stop on its way, and this call with it.
        if !awaited && cgroup.as_ref().map(crate::Cgroup::is_frozen).transpose()? == Some(true) {
            return Err(wrong(Status::Paused));
        }
        let process = record.rights.complete(process);
        let terminal = process.terminal() == Some(true);
        if terminal != matches!(options.stdio, Stdio::Terminal) {
            return Err(Error::InvalidSpec {
                field: "process.terminal".into(),
                reason: format!("is {terminal}, and the streams are given otherwise"),
            });
        }
        let filter = folder.filter(&record)?;
        let Joining { tasks, unified } = Joining::new(cgroup.as_ref(), self.features)?;
        let host = Host {
            features: self.features,
            bundle: self.state_root.as_path(),
            id: id.as_str(),
            permitted: permitted()?,
            cgroups: Vec::new(),
            tasks: tasks.len(),
            terminal,
            // No socket activation: the process is not the first of its namespace.
            preserved: 0,
            keyring: if record.keyring { Keyring::New } else { Keyring::Inherit },
            root_switch: RootSwitch::Pivot,
            root_path: None,
            filter: filter.as_ref().map(Filter::of),
            rootless: !privileged()?,
            confined: rootless::ids() != Ids::Host,
            groups: rootless::can_set_groups(),
            apparmor: label::apparmor(),
            selinux: label::selinux(),
            labels: options.labels,
            nested: false,
            kcore: false,
        };
        let mut plan = Plan::exec(&process, record.common(), &host, record.namespaces, record.identity.pid)?;
        let (socket, inner) = sys::socket::pair().map_err(launch::system("make a pair of sockets"))?;
        // Without a mount namespace to join, the root is the process's alone.
        let root = match record.namespaces & libc::CLONE_NEWNS as u64 {
            0 => Some(launch::root_of(record.identity.pid)?),
            _ => None,
        };
        // No gate.
        let mut table = vec![inner.as_raw_fd(), -1, root.as_ref().map_or(-1, AsRawFd::as_raw_fd)];
        debug_assert_eq!(table.len(), Slot::FIXED, "the plan counts on it");
        table.extend(std::iter::once(first.as_fd()).chain(tasks.iter().map(AsFd::as_fd)).map(|fd| fd.as_raw_fd()));
        let standard: [BorrowedFd<'_>; 3] = match options.stdio {
            Stdio::Fds { stdin, stdout, stderr } => [stdin, stdout, stderr],
            // Their places; the terminal is put there by the child.
            Stdio::Terminal => [inner.as_fd(), inner.as_fd(), inner.as_fd()],
        };
        let descriptors: Vec<i32> = standard.iter().chain(options.preserve_fds).map(AsRawFd::as_raw_fd).collect();
        let mut launch = Launch {
            features: self.features,
            cgroup: unified.as_ref().map(AsFd::as_fd),
            fds: &table,
            filter: filter.as_ref().map(|filter| (filter.instructions.as_slice(), u64::from(filter.flags))),
        };
        let mut started = launch.spawn(&mut plan, descriptors.clone());
        let beside;
        if let (Err(Error::System { source, .. }), Some(cgroup)) = (&started, &cgroup)
            && source.raw_os_error() == Some(libc::EBUSY)
            && options.cgroups.is_empty()
        {
            beside = cgroup.dir_of(record.identity.pid)?;
            if let Some(beside) = &beside {
                launch.cgroup = Some(beside.as_fd());
                started = launch.spawn(&mut plan, descriptors);
            }
        }
        let mut child = Added { process: Some(started?), forks: plan.forks };
        // The child's ends; with them open, its end would not be seen.
        drop((inner, tasks, unified, first));
        let console = child.prepared(&socket, &plan, &record)?;
        launch::executed(&socket, &plan)?;
        let Some(Started { pid, pidfd }) = child.process.take() else {
            return Err(Error::SetupDied { status: 125 });
        };
        Ok(Created { pid, pidfd, console })
    }
}

/// A process that is on its way. Dropped, it is killed and reaped.
#[derive(Debug)]
struct Added {
    process: Option<Started>,
    /// Whether the process is still the one that makes another.
    forks: bool,
}

impl Added {
    /// Listens until all is prepared but the program's execution. Returns the terminal.
    fn prepared(&mut self, socket: &OwnedFd, plan: &Plan, record: &Record) -> Result<Option<OwnedFd>> {
        let mut console = None;
        let mut ready = false;
        while !ready || self.forks {
            let Some(process) = &self.process else { break };
            match launch::receive(socket, plan, process) {
                Ok(Event::Forked(pid)) => self.replace(pid)?,
                Ok(Event::Console(fd)) => console = Some(fd),
                Ok(Event::Ready) => ready = true,
                Ok(Event::Listener(number)) => {
                    if let Some(listener) = &record.listener {
                        listener.inform(socket, process, number, &record.state(Status::Running))?;
                    }
                    launch::answer(socket)?;
                }
                // None of them is planned.
                Ok(Event::Hooks | Event::Clocks | Event::Network(_)) => {}
                Err(error) => {
                    if self.forks
                        && let Some(pid) = launch::unheard(socket)
                    {
                        self.replace(pid)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(console)
    }

    /// The one in between has done its part.
    fn replace(&mut self, pid: i32) -> Result<()> {
        self.forks = false;
        let pidfd = sys_process::pidfd_open(pid).map_err(launch::system("open a pidfd"))?;
        if let Some(between) = self.process.replace(Started { pid, pidfd }) {
            crate::wait(between.pidfd.as_fd(), between.pid)?;
        }
        Ok(())
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        let Some(process) = &self.process else { return };
        // It is our child, and nobody else will reap it.
        let _ = sys_process::signal(process.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys_process::wait(process.pidfd.as_fd());
    }
}
