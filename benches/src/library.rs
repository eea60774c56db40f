//! The library in a program that stays up.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use estiba_runtime::{Bundle, ContainerId, CreateOptions, DeleteMode, ExitStatus, Native, Runtime, Stdio, wait};

use crate::sys;

/// Bundles that were read, and the runtimes that run them.
#[derive(Debug, Default)]
pub(crate) struct Library {
    known: HashMap<PathBuf, (Bundle, Native)>,
}

impl Library {
    /// One container, from its creation to its deletion.
    pub(crate) fn once(&mut self, folder: &Path, state: &Path, id: &str) -> io::Result<Duration> {
        if !self.known.contains_key(folder) {
            let bundle = Bundle::load(folder).map_err(told)?;
            self.known.insert(folder.to_owned(), (bundle, Native::new(state)));
        }
        let (bundle, runtime) = &self.known[folder];
        let id: ContainerId = id.parse().map_err(told)?;
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        let stdio = Stdio::Fds { stdin: nothing.as_fd(), stdout: nothing.as_fd(), stderr: nothing.as_fd() };
        let options = CreateOptions::new(stdio);
        let start = sys::monotonic();
        let created = runtime.create(&id, bundle, &options).map_err(told)?;
        let ended = runtime.start(&id).and_then(|()| wait(created.pidfd.as_fd(), created.pid));
        let deleted = runtime.delete(&id, DeleteMode::Force);
        let took = sys::monotonic().saturating_sub(start);
        deleted.map_err(told)?;
        match ended.map_err(told)? {
            ExitStatus::Exited(0) => Ok(took),
            other => Err(io::Error::other(format!("the container ended with {other:?}"))),
        }
    }
}

/// An error and all that it came from, in one line.
pub(crate) fn told(error: impl std::error::Error) -> io::Error {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    io::Error::other(text)
}
