//! Hooks: programs that run beside the container's at certain moments of its life
//! ([`config.md`](https://github.com/opencontainers/runtime-spec/blob/main/config.md#posix-platform-hooks)).

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use oci_spec::runtime::Hook;

use super::launch::{self, Launch, Started};
use super::record::{Identity, Record};
use crate::child::Message;
use crate::plan::{Plan, Slot, Step};
use crate::sys::process::{self, Strings};
use crate::sys::{self, file, socket};
use crate::{Error, ExitStatus, Features, Result, Status, seccomp};

/// What a hook says on its way out, as far as it goes into an error.
const LONGEST_COMPLAINT: u64 = 4096;

/// The hooks of a container.
#[derive(Debug)]
pub(super) struct Hooks<'a> {
    record: &'a Record,
    features: Features,
    /// What the container's own processes are under.
    filter: Option<seccomp::Program>,
}

/// Where a hook runs.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// Where this process does.
    Host,
    /// In the namespaces of the container's process.
    Container(&'a OwnedFd),
    /// There, and under its seccomp filter.
    Started(&'a OwnedFd),
}

impl<'a> Hooks<'a> {
    pub(super) fn of(record: &'a Record, features: Features) -> Self {
        Self { record, features, filter: None }
    }

    /// The hook in the container may do no more than its program.
    pub(super) fn under(self, filter: Option<seccomp::Program>) -> Self {
        // A filter that asks would be answered by nobody who knows of this process.
        Self { filter: filter.filter(|filter| !filter.asks()), ..self }
    }

    /// The hooks that run when the root is made and not yet switched, in the order of the specification.
    pub(super) fn while_created(&self, pidfd: &OwnedFd) -> Result<()> {
        let Some(hooks) = &self.record.hooks else { return Ok(()) };
        #[allow(deprecated, reason = "prestart is still what many hooks are")]
        let prestart = hooks.prestart();
        // What is left of version 1.0, where they ran before the start of a container that was created.
        self.all("prestart", prestart.as_ref(), Status::Created, Place::Host)?;
        self.all("createRuntime", hooks.create_runtime().as_ref(), Status::Creating, Place::Host)?;
        self.all("createContainer", hooks.create_container().as_ref(), Status::Creating, Place::Container(pidfd))
    }

    /// In the container, before its program.
    pub(super) fn start_container(&self, identity: &Identity) -> Result<()> {
        let Some(list) = self.record.hooks.as_ref().and_then(|hooks| hooks.start_container().as_ref()) else {
            return Ok(());
        };
        match identity.open() {
            Some(pidfd) => self.all("startContainer", Some(list), Status::Created, Place::Started(&pidfd)),
            None => Ok(()),
        }
    }

    /// On the host, once the program runs.
    pub(super) fn poststart(&self) -> Result<()> {
        let list = self.record.hooks.as_ref().and_then(|hooks| hooks.poststart().as_ref());
        self.all("poststart", list, Status::Running, Place::Host)
    }

    /// On the host, once all is gone. Each runs, even if one before it failed.
    pub(super) fn poststop(&self) -> Vec<Error> {
        let list = self.record.hooks.as_ref().and_then(|hooks| hooks.poststop().as_ref());
        let run = |(number, hook)| self.run("poststop", number, hook, Status::Stopped, Place::Host).err();
        list.into_iter().flatten().enumerate().filter_map(run).collect()
    }

    fn all(&self, kind: &'static str, list: Option<&Vec<Hook>>, status: Status, place: Place<'_>) -> Result<()> {
        let mut numbered = list.into_iter().flatten().enumerate();
        numbered.try_for_each(|(number, hook)| self.run(kind, number, hook, status, place))
    }

    fn run(&self, kind: &'static str, number: usize, hook: &Hook, status: Status, place: Place<'_>) -> Result<()> {
        let error = |source| Error::Hook { kind, number, path: hook.path().clone(), source };
        if !hook.path().is_absolute() {
            return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "the path is not absolute")));
        }
        let (mut plan, table) = self.plan(hook, place).map_err(error)?;
        let state = serde_json::to_vec(&self.record.state(status)).map_err(io::Error::from).map_err(error)?;
        let mut stdin = memory().map_err(error)?;
        stdin.write_all(&state).and_then(|()| stdin.rewind()).map_err(error)?;
        let stdout = OpenOptions::new().write(true).open("/dev/null").map_err(error)?;
        let mut stderr = memory().map_err(error)?;
        let (socket, inner) = socket::pair().map_err(io::Error::from_raw_os_error).map_err(error)?;
        let root = if self.rooted(place) { Some(launch::root_of(self.record.identity.pid)?) } else { None };
        let mut fds = vec![inner.as_raw_fd(), -1, root.as_ref().map_or(-1, AsRawFd::as_raw_fd)];
        fds.extend(table);
        let filter = self.filter.as_ref().map(|filter| (filter.instructions.as_slice(), u64::from(filter.flags)));
        let launch = Launch { features: self.features, cgroup: None, fds: &fds, filter };
        let descriptors = vec![stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
        let mut started = launch.spawn(&mut plan, descriptors)?;
        drop(inner);
        // The end of the talk means that the hook was executed, or died on its way there.
        loop {
            match launch::hear(&socket)?.message {
                Some(Message::Forked { pid }) => {
                    crate::wait(started.pidfd.as_fd(), started.pid)?;
                    let pidfd = process::pidfd_open(pid).map_err(launch::system("open a pidfd"))?;
                    started = Started { pid, pidfd };
                }
                Some(Message::Failed { errno, .. }) => {
                    crate::wait(started.pidfd.as_fd(), started.pid)?;
                    return Err(error(io::Error::from_raw_os_error(errno)));
                }
                _ => break,
            }
        }
        let timeout = hook.timeout().map_or(-1, |seconds| {
            i32::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(1000)).unwrap_or(i32::MAX)
        });
        let failed = |outcome| Error::HookFailed { kind, number, path: hook.path().clone(), outcome };
        let ended = process::ended(started.pidfd.as_fd(), timeout).map_err(launch::system("wait for a hook"))?;
        if !ended {
            let _ = process::signal(started.pidfd.as_fd(), libc::SIGKILL);
            crate::wait(started.pidfd.as_fd(), started.pid)?;
            return Err(failed(format!("did not end within {} s", timeout / 1000)));
        }
        let outcome = match crate::wait(started.pidfd.as_fd(), started.pid)? {
            ExitStatus::Exited(0) => return Ok(()),
            ExitStatus::Exited(status) => format!("ended with status {status}"),
            ExitStatus::Signaled(libc::SIGSYS) => "was killed by signal 31 (bad system call)".to_owned(),
            ExitStatus::Signaled(signal) => format!("was killed by signal {signal}"),
        };
        let mut complaint = Vec::new();
        // Without it the error says less.
        let _ = stderr.rewind().and_then(|()| stderr.take(LONGEST_COMPLAINT).read_to_end(&mut complaint));
        let complaint = String::from_utf8_lossy(&complaint).trim().replace('\n', "; ");
        Err(failed(if complaint.is_empty() { outcome } else { format!("{outcome}: {complaint}") }))
    }

    /// Whether the hook has to go to the container's root by itself, which comes with the mount namespace else.
    fn rooted(&self, place: Place<'_>) -> bool {
        matches!(place, Place::Started(_)) && self.record.namespaces & libc::CLONE_NEWNS as u64 == 0
    }

    /// What the hook's process does, and the descriptors for it.
    fn plan(&self, hook: &Hook, place: Place<'_>) -> io::Result<(Plan, Option<i32>)> {
        let text = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let texts = |list: &[String]| list.iter().map(|entry| text(entry.as_bytes())).collect::<io::Result<Vec<_>>>();
        let path = text(hook.path().as_os_str().as_bytes())?;
        let mut arguments = texts(hook.args().as_deref().unwrap_or_default())?;
        if arguments.is_empty() {
            arguments.push(path.clone());
        }
        let mut steps = Vec::new();
        let mut table = None;
        if let Place::Container(pidfd) | Place::Started(pidfd) = place {
            table = Some(pidfd.as_raw_fd());
            let path = format!("/proc/{}/ns", self.record.identity.pid).into();
            // Others may be there who see it (CVE-2016-9962).
            steps.push(Step::NotDumpable);
            if self.record.namespaces != 0 {
                steps.push(Step::Enter { slot: Slot(Slot::FIXED), kind: self.record.namespaces, path });
            }
            // Only a new process is in another pid namespace.
            steps.push(Step::Fork { flags: 0 });
            if self.rooted(place) {
                steps.extend([Step::TakeRoot, Step::Chroot { elsewhere: false }]);
            }
        }
        steps.extend([Step::Descriptors, Step::Signals]);
        if matches!(place, Place::Started(_)) && self.filter.is_some() {
            steps.push(Step::Filter);
        }
        steps.push(Step::Execute);
        let inherited = if matches!(place, Place::Started(_)) { self.record.environment.as_slice() } else { &[] };
        let mut environment = texts(hook.env().as_deref().unwrap_or(inherited))?;
        if hook.env().is_none() && !inherited.is_empty() && !inherited.iter().any(|entry| entry.starts_with("HOME=")) {
            environment.push(c"HOME=/".to_owned());
        }
        let plan = Plan::of_steps(steps, path, Strings::new(arguments, None), Strings::new(environment, None));
        Ok((plan, table))
    }
}

fn memory() -> io::Result<File> {
    file::memory(c"hook").map(sys::own).map(File::from).map_err(io::Error::from_raw_os_error)
}
