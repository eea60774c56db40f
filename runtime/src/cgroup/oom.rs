//! Being told when the kernel kills for want of memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::fs::{Mode, OFlags, inotify};

use super::Cgroup;
use super::folder::Folder;
use super::hierarchies::Controller;
use crate::error::{Error, Result};

/// How long a kill may take that was announced. With a disabled killer it does not come at all.
const KILLING: Duration = Duration::from_millis(50);

/// A descriptor that can be read when something has happened to a cgroup's memory; see [`Cgroup::oom_events`].
#[derive(Debug)]
pub struct OomEvents {
    cgroup: Cgroup,
    source: Source,
    /// What was there the last time.
    seen: u64,
}

#[derive(Debug)]
enum Source {
    /// Version 1: the kernel adds to it when the limit is reached. The other descriptor keeps the registration.
    Counter(EventFd, #[expect(dead_code, reason = "held open")] OwnedFd),
    /// Version 2: `memory.events` is modified, whatever the event.
    Watch(OwnedFd),
}

impl Cgroup {
    /// Watches for processes that the kernel kills because the memory limit is reached. `None` if the cgroup has no memory
    /// controller.
    ///
    /// Poll the descriptor for reading; when there is something, [`OomEvents::kills`] tells how many there were. The end of the
    /// cgroup wakes the poll, too.
    pub fn oom_events(&self) -> Result<Option<OomEvents>> {
        let io = |path: &std::path::Path| {
            let path = path.to_owned();
            move |source: io::Error| Error::Io { operation: "watch the memory of cgroup", path, source }
        };
        let seen = self.oom_kills()?;
        if let Some(place) = self.paths.iter().find(|p| p.has(Controller::Memory)) {
            let source = place.open().and_then(|folder| counter(&folder).map_err(io(&place.path)))?;
            return Ok(Some(OomEvents { cgroup: self.clone(), source, seen }));
        }
        let Some(place) = self.paths.iter().find(|p| p.is_unified()) else { return Ok(None) };
        let file = place.path.join("memory.events");
        if !file.exists() {
            return Ok(None);
        }
        let watch = || -> rustix::io::Result<OwnedFd> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            inotify::add_watch(&watch, &file, inotify::WatchFlags::MODIFY | inotify::WatchFlags::DONT_FOLLOW)?;
            Ok(watch)
        };
        let source = watch().map(Source::Watch).map_err(|errno| io(&place.path)(errno.into()))?;
        Ok(Some(OomEvents { cgroup: self.clone(), source, seen }))
    }
}

fn counter(folder: &Folder) -> io::Result<Source> {
    use std::os::fd::AsRawFd;
    let counter = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let control = rustix::fs::openat(folder.fd(), "memory.oom_control", flags, Mode::empty())?;
    let line = format!("{} {}", counter.as_fd().as_raw_fd(), control.as_raw_fd());
    folder.write("cgroup.event_control", &line)?;
    Ok(Source::Counter(counter, control))
}

impl OomEvents {
    /// How many processes were killed since the last call, or since the beginning. Takes what is there to be read.
    pub fn kills(&mut self) -> Result<u64> {
        let mut buffer = [0u8; 4096];
        let mut woken = false;
        loop {
            let taken = match &self.source {
                Source::Counter(counter, _) => rustix::io::read(counter, &mut buffer[..8]),
                Source::Watch(watch) => rustix::io::read(watch, &mut buffer),
            };
            match taken {
                Ok(1..) => woken = true,
                // Nothing more is there.
                _ => break,
            }
        }
        let mut now = self.cgroup.oom_kills()?;
        // Version 1 tells before it kills.
        let deadline = Instant::now() + KILLING;
        while woken && now <= self.seen && matches!(self.source, Source::Counter(..)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
            now = self.cgroup.oom_kills()?;
        }
        let new = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        Ok(new)
    }
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Counter(counter, _) => counter.as_fd(),
            Source::Watch(watch) => watch.as_fd(),
        }
    }
}
