//! Starts a shim.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use estiba_runtime::ContainerId;
use estiba_runtime::mount::Tree;
use estiba_runtime::oci_spec::runtime::Mount;

use crate::arguments::Arguments;
use crate::client::{Client, log_tail};
use crate::daemon::{LOCK, LOG, REEXEC_NAME, SOCKET, lock, open_folder, short_path};
use crate::error::{Error, Result};

/// Which program is the shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// A program of its own, such as `containerd-shim-estiba-v2`: the smallest in memory.
    Path(PathBuf),
    /// The running program itself, whose `main` calls [`reexec`](crate::reexec).
    #[default]
    Reexec,
}

impl Program {
    fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Reexec => Path::new("/proc/self/exe"),
        }
    }

    /// The program's file in a read-only mount that is attached nowhere, for the shim to be executed from: through
    /// `/proc/PID/exe` nobody in a container can write to it then, even after the shim has died (CVE-2019-5736).
    ///
    /// `None` where it cannot be had: before Linux 5.12, or without `CAP_SYS_ADMIN`.
    fn sealed(&self) -> Option<Tree> {
        let path = std::fs::canonicalize(self.path()).ok()?;
        // A script would be opened by its interpreter, by a path that is gone by then.
        let mut magic = [0; 4];
        File::open(&path).and_then(|mut file| file.read_exact(&mut magic)).ok().filter(|()| magic == *b"\x7fELF")?;
        let mut mount = Mount::default();
        mount
            .set_destination("/".into())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(path))
            .set_options(Some(vec!["bind".to_owned(), "ro".to_owned()]));
        Tree::new(&[mount]).ok()
    }
}

/// A shim that is starting. Dropping it waits until the shim has left this process, too.
#[derive(Debug)]
pub struct Launching {
    client: Option<Client>,
    /// The process that was started: it forks the shim and ends.
    first: Child,
    program: PathBuf,
    log: PathBuf,
}

impl Launching {
    /// Waits until the shim is no child of this process any more.
    ///
    /// # Errors
    ///
    /// [`Error::EarlyExit`] if it did not start.
    pub fn finish(mut self) -> Result<Client> {
        let status = self.first.wait().map_err(|source| Error::Spawn { program: self.program.clone(), source })?;
        match self.client.take() {
            Some(client) if status.success() => Ok(client),
            _ => Err(Error::EarlyExit { status, log: log_tail(&self.log) }),
        }
    }
}

impl Drop for Launching {
    fn drop(&mut self) {
        // Reaped already, if it was finished; else it ends at once, and must not stay as a zombie.
        let _ = self.first.wait();
    }
}

/// What is needed to start the shim of one container.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Which program.
    pub program: Program,
    /// The container.
    pub id: ContainerId,
    /// The bundle's folder, which exists: the shim works there, and its socket, lock and log lie there.
    pub bundle_dir: PathBuf,
    /// Where the [`ExitRecord`](crate::ExitRecord) is written when the container has ended.
    pub exit_file: Option<PathBuf>,
    /// Where the cgroup hierarchies are; `None` finds them.
    pub cgroup_root: Option<PathBuf>,
    /// What the shim executes in its own place once its container is gone and nobody is connected.
    pub exit_command: Vec<OsString>,
}

impl Launch {
    /// Starts the shim and connects to it. Blocks until the shim has left this process: it is no child of the caller then.
    ///
    /// The connection exists before the shim does, so the shim never sees itself abandoned by a caller that is slow; if the
    /// caller dies, it does.
    ///
    /// The shim gets an environment of `PATH` and `XDG_RUNTIME_DIR` only.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if a shim lives in that folder, [`Error::Spawn`] and [`Error::EarlyExit`] if it does not start,
    /// [`Error::File`] for what cannot be made in the folder.
    pub fn spawn(&self) -> Result<Client> {
        self.begin()?.finish()
    }

    /// The first half of [`spawn`](Self::spawn), which does not wait for the shim: the caller has time to write the bundle,
    /// which is read when `Create` is called.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn begin(&self) -> Result<Launching> {
        let folder = open_folder(&self.bundle_dir)?;
        // Held until the shim is started, which inherits nothing of it: two callers cannot take each other's socket away.
        let lock = lock(Path::new(&short_path(&folder, LOCK)), &self.bundle_dir)?;
        let socket = short_path(&folder, SOCKET);
        let fail = |operation| move |error| Error::file(operation, self.bundle_dir.join(SOCKET), error);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail("remove")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(fail("bind"))?;
        let stream = UnixStream::connect(&socket).map_err(fail("connect to"))?;
        drop(lock);
        let first = self.start(listener)?;
        let client = Client::new(stream, self.id.to_string(), Some(self.bundle_dir.join(LOG)));
        Ok(Launching {
            client: Some(client),
            first,
            program: self.program.path().to_owned(),
            log: self.bundle_dir.join(LOG),
        })
    }

    fn start(&self, listener: UnixListener) -> Result<Child> {
        let arguments = Arguments {
            id: self.id.clone(),
            exit_file: self.exit_file.clone(),
            cgroup_root: self.cgroup_root.clone(),
            socket: None,
            events: None,
            namespace: None,
            exit_command: self.exit_command.clone(),
        };
        serve_elsewhere(&self.program, &arguments, &self.bundle_dir, listener)
    }
}

/// Starts a program as a shim in `folder`, with a socket that listens. It forks the shim and ends.
pub(crate) fn serve_elsewhere(
    program: &Program,
    arguments: &Arguments,
    folder: &Path,
    listener: UnixListener,
) -> Result<Child> {
    let log = folder.join(LOG);
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
    let file = file.map_err(|error| Error::file("open", &log, error))?;
    let sealed = program.sealed();
    let path = match &sealed {
        Some(tree) => PathBuf::from(format!("/proc/self/fd/{}", tree.as_fd().as_raw_fd())),
        None => program.path().to_owned(),
    };
    let mut command = Command::new(path);
    command
        .arg0(match program {
            Program::Path(path) => path.as_os_str(),
            Program::Reexec => OsStr::new(REEXEC_NAME),
        })
        .args(arguments.to_vec())
        .env_clear()
        .envs(["PATH", "XDG_RUNTIME_DIR"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .current_dir(folder)
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(file);
    // The command keeps its copies of the descriptors until it is dropped.
    command.spawn().map_err(|source| Error::Spawn { program: program.path().to_owned(), source })
}
