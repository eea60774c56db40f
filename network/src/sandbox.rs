//! A network namespace, held by a file descriptor.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{fstat, stat};

use crate::error::{Error, Result};
use crate::netlink::Netlink;

/// A network namespace ([network_namespaces(7)](https://man7.org/linux/man-pages/man7/network_namespaces.7.html)).
///
/// It lives as long as this descriptor, another one, or a process in it. The last one to go takes every interface in it
/// along, which costs the caller microseconds: the kernel clears up by itself.
#[derive(Debug)]
pub struct Sandbox {
    namespace: OwnedFd,
}

impl Sandbox {
    /// Makes a new, empty namespace. Needs `CAP_SYS_ADMIN`.
    pub fn new() -> Result<Self> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace {
                operation: "make",
                path: PathBuf::from("(new)"),
                source: errno.into(),
            })?;
            Self::open(Path::new(CURRENT))
        })
    }

    /// The namespace at `path`: `/proc/PID/ns/net`, or a file that one is mounted on.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Namespace { operation: "open", path: path.to_owned(), source };
        let namespace = OwnedFd::from(File::open(path).map_err(failed)?);
        Ok(Self { namespace })
    }

    /// Another descriptor of the same namespace.
    pub fn try_clone(&self) -> Result<Self> {
        let namespace = self.namespace.try_clone().map_err(|source| Error::Namespace {
            operation: "hold",
            path: PathBuf::from(format!("/proc/self/fd/{}", self.namespace.as_raw_fd())),
            source,
        })?;
        Ok(Self { namespace })
    }

    /// A route socket inside the namespace, which the calling thread can use without entering it. Needs
    /// `CAP_SYS_ADMIN`.
    pub fn netlink(&self) -> Result<Netlink> {
        self.run(Netlink::open)?
    }

    pub(crate) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Runs `work` on a thread that enters the namespace and ends there.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started or the namespace not be entered; what `work` returns is handed through.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.namespace.as_fd();
        on_a_thread(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace {
                operation: "enter",
                path: PathBuf::from(format!("/proc/self/fd/{}", namespace.as_raw_fd())),
                source: errno.into(),
            })?;
            Ok(work())
        })
    }

    /// Whether it is the namespace that the calling thread is in.
    pub fn is_current(&self) -> Result<bool> {
        Ok(identity(Some(self))? == identity(None)?)
    }
}

/// What tells a namespace from every other that there is: device and inode.
pub(crate) type Identity = (u64, u64);

/// The identity of a host's namespace; without one, of the one that the calling thread is in.
pub(crate) fn identity(host: Option<&Sandbox>) -> Result<Identity> {
    let failed =
        |path: PathBuf| move |errno: Errno| Error::Namespace { operation: "look at", path, source: errno.into() };
    let found = match host {
        Some(host) => {
            fstat(&host.namespace).map_err(failed(format!("/proc/self/fd/{}", host.namespace.as_raw_fd()).into()))
        }
        None => stat(CURRENT).map_err(failed(CURRENT.into())),
    }?;
    Ok((found.st_dev, found.st_ino))
}

/// The namespace of the thread that looks.
const CURRENT: &str = "/proc/thread-self/ns/net";

impl AsFd for Sandbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl From<OwnedFd> for Sandbox {
    /// Takes a descriptor of a network namespace, such as one that another process sent.
    fn from(namespace: OwnedFd) -> Self {
        Self { namespace }
    }
}

/// Runs `work` in a host's namespace: on a thread that enters it and ends there, or here if it is the caller's.
pub(crate) fn within<T: Send>(host: Option<&Sandbox>, work: impl FnOnce() -> T + Send) -> Result<T> {
    match host {
        Some(host) => host.run(work),
        None => Ok(work()),
    }
}

/// Runs `work` on a thread of its own, whose namespace nobody else shares, and waits for it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("estiba-netns".to_owned())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Thread { source })?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
