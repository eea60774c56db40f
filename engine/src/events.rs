//! Events to those who want to hear of them.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::journal::{Event, Reader};

/// How many events are read ahead of who takes them.
const AHEAD: usize = 256;

/// How often it is looked whether anybody still listens.
const LOOK: Duration = Duration::from_millis(250);

/// Which events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventsRequest {
    /// Those from this time on that are still in the journal; without it those from now on.
    pub since: Option<SystemTime>,
    /// Those before this time; if it is past, there is an end.
    pub until: Option<SystemTime>,
}

/// A stream of events. Dropping it ends it.
#[derive(Debug)]
pub struct Events {
    events: mpsc::Receiver<Result<Event>>,
}

impl Events {
    /// The next event; `None` once the end of what was asked for has passed.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        self.events.recv().await
    }
}

impl Engine {
    /// What happens to the containers and images of this root, whichever program does it.
    pub async fn events(&self, request: EventsRequest) -> Result<Events> {
        let (sender, events) = mpsc::channel(AHEAD);
        let (reader, watch) = self
            .blocking(move |inner| {
                // Watched before it is read: nothing is missed in between.
                let reader = inner.journal.read_new()?;
                let watch = watch(inner.config.root.as_path())?;
                Ok((if request.since.is_some() { inner.journal.read() } else { reader }, watch))
            })
            .await?;
        tokio::task::spawn_blocking(move || follow(reader, &watch, request, &sender));
        Ok(Events { events })
    }
}

/// Hears of every change of the journal.
fn watch(root: &std::path::Path) -> Result<Inotify> {
    let failed = Error::errno("watch", root);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    // The folder's journal files alone change in this way; all else in it are folders.
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    let watched = inotify.and_then(|inotify| inotify.add_watch(root, flags).map(|_| inotify));
    watched.map_err(failed)
}

fn follow(mut reader: Reader, watch: &Inotify, request: EventsRequest, events: &mpsc::Sender<Result<Event>>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        match reader.next() {
            Ok(Some(event)) => {
                if request.until.is_some_and(|until| event.time() > until) {
                    return;
                }
                let wanted = request.since.is_none_or(|since| event.time() >= since);
                if wanted && events.blocking_send(Ok(event)).is_err() {
                    return;
                }
            }
            Ok(None) => {
                let left = request.until.map(|until| until.duration_since(SystemTime::now()).unwrap_or_default());
                if events.is_closed() || left.is_some_and(|left| left.is_zero()) {
                    return;
                }
                let patience = left.map_or(LOOK, |left| left.min(LOOK));
                let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
                let _ = poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout);
                let _ = watch.read_events();
            }
            Err(error) => {
                let _ = events.blocking_send(Err(error));
                return;
            }
        }
    }
}
