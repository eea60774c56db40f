//! How a program becomes a shim.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use crate::arguments::Arguments;
use crate::error::{Error, Result, chain};
use crate::runtimes::Runtimes;
use crate::server::{Ending, Server};
use crate::sys;
use crate::task::Task;

/// The name, as `argv[0]`, under which a program that calls [`reexec`] is a shim.
pub const REEXEC_NAME: &str = "estiba-shim";

/// The socket's name in the bundle's folder.
pub const SOCKET: &str = "shim.sock";

/// The lock's name in the bundle's folder: locked, by [flock(2)](https://man7.org/linux/man-pages/man2/flock.2.html), as long
/// as the shim lives.
pub const LOCK: &str = "shim.lock";

/// How long a shim takes at most to end once it has said so.
const LEAVING: Duration = Duration::from_millis(500);

/// The log's name in the bundle's folder.
pub const LOG: &str = "shim.log";

/// Serves as a shim and never returns, if the program was started as one; else does nothing.
///
/// A program that starts shims with [`Program::Reexec`](crate::Program::Reexec) calls this first in its `main`, before it
/// opens files or starts threads:
///
/// ```
/// // At the start of `main`:
/// estiba_shim::reexec();
/// ```
pub fn reexec() {
    reexec_with(&Runtimes::default());
}

/// As [`reexec`], with runtimes of the program's own.
pub fn reexec_with(runtimes: &Runtimes) {
    let mut arguments = std::env::args_os();
    if arguments.next().is_some_and(|name| name == REEXEC_NAME) {
        serve_with(arguments, runtimes);
    }
}

/// Serves as a shim: the `main` of a shim's program. `arguments` are those that follow the program's name:
/// `serve --id ID [--exit-file PATH] [--cgroup-root PATH] [-- EXIT COMMAND…]`.
///
/// Standard input is the listening socket, the working directory the bundle's folder, and standard error the log, as
/// [`Launch`](crate::Launch) sets them up. Call it first in `main`: every other descriptor is closed.
pub fn serve_from_args(arguments: impl IntoIterator<Item = OsString>) -> ! {
    serve_with(arguments, &Runtimes::default())
}

/// As [`serve_from_args`], with runtimes of the program's own.
pub fn serve_with(arguments: impl IntoIterator<Item = OsString>, runtimes: &Runtimes) -> ! {
    sys::close_from(3);
    sys::reset_signals();
    let Err(error) = serve(arguments, runtimes);
    log(&chain(&error));
    std::process::exit(1)
}

/// Says something to the log. A log that cannot be written is no reason to stop. Returns whether it is there.
pub(crate) fn log(line: &str) -> bool {
    writeln!(io::stderr(), "estiba-shim: {line}").is_ok()
}

fn serve(arguments: impl IntoIterator<Item = OsString>, runtimes: &Runtimes) -> Result<Infallible> {
    let arguments = Arguments::parse(arguments)?;
    let folder = std::env::current_dir().map_err(|error| Error::system("find the working directory", error))?;
    let listener = listener()?;
    let lock = lock(Path::new(LOCK), &folder)?;
    if sys::fork().map_err(|error| Error::system("fork", error))?.is_some() {
        sys::exit_now(0);
    }
    nix::unistd::setsid().map_err(|error| Error::system("start a session", error))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|error| Error::system("become a subreaper", error))?;
    umask(Mode::from_bits_truncate(0o022));
    let wake = sys::watch_children().map_err(|error| Error::system("watch children", error))?;
    let mut server = Server::new(listener, wake, Task::new(arguments, folder, runtimes.clone()));
    let ending = server.run()?;
    leave(server, ending, lock)
}

/// The listening socket, moved away from standard input.
fn listener() -> Result<UnixListener> {
    let fail = |error: io::Error| Error::system("take over the listening socket from standard input", error);
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(fail)?;
    let listener = UnixListener::from(socket);
    // Refused if it is no socket.
    listener.local_addr().map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let null = File::open("/dev/null").map_err(|error| Error::file("open", "/dev/null", error))?;
    nix::unistd::dup2_stdin(&null).map_err(|error| fail(error.into()))?;
    Ok(listener)
}

/// Takes the lock of a shim, which is tried for a moment: one that has answered `Shutdown` may still be about to end, and whoever
/// asks whether there is a shim holds it for as long as that takes.
pub(crate) fn lock(path: &Path, bundle: &Path) -> Result<Flock<File>> {
    let fail = |operation, error| Error::file(operation, bundle.join(LOCK), error);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = file.map_err(|error| fail("open", error))?;
    let deadline = Instant::now() + LEAVING;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Err(Error::Busy { bundle: bundle.to_owned() });
            }
            Err((unlocked, Errno::EWOULDBLOCK)) => file = unlocked,
            Err((_, error)) => return Err(fail("lock", error.into())),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Ends the shim: after `Shutdown` just so, else by what it was told to become.
fn leave(mut server: Server, ending: Ending, lock: Flock<File>) -> Result<Infallible> {
    if let Err(error) = server.task.destroy() {
        log(&chain(&error));
    }
    let command = server.task.arguments().exit_command.clone();
    let last = ending == Ending::Shutdown || command.is_empty();
    if last {
        // While clients still see it alive: afterwards the folder is theirs to remove.
        let _ = std::fs::remove_file(server.task.arguments().socket.as_deref().unwrap_or(Path::new(SOCKET)));
    }
    // Not before: it takes the working folder away.
    server.task.return_home();
    // The socket is closed first, so that whoever connects from now on is refused and not forgotten.
    drop(server);
    if last {
        drop(lock);
        std::process::exit(0);
    }
    let _ = nix::sys::prctl::set_child_subreaper(false);
    let [program, arguments @ ..] = command.as_slice() else { std::process::exit(0) };
    // In place of the shim: its descriptors close and so its lock is released. The handlers are the default again.
    let error = Command::new(program).args(arguments).current_dir("/").stdin(Stdio::null()).exec();
    Err(Error::file("execute the exit command", Path::new(program), error))
}

/// A path to `name` in an open folder, short enough for a socket's address whatever the folder's own path.
pub(crate) fn short_path(folder: &OwnedFd, name: &str) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())
}

/// Opens a folder to find things in.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    debug_assert!(!path.as_os_str().as_bytes().is_empty());
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path);
    folder.map(OwnedFd::from).map_err(|error| Error::file("open", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_looked_at_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LOCK);
        let looking = Flock::lock(File::create(&path).expect("made"), FlockArg::LockShared).expect("locked");
        let looker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(looking);
        });
        let held = lock(&path, folder.path()).expect("locked");
        looker.join().expect("no panic");
        assert!(matches!(lock(&path, folder.path()), Err(Error::Busy { .. })));
        drop(held);
    }
}
