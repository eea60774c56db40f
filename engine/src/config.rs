//! Where an engine keeps its state, and which parts it is made of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use estiba_image::Layout;
use estiba_network::Driver;
use estiba_shim::Runtimes;
use estiba_storage::Snapshotter;

/// How an [`Engine`](crate::Engine) is opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of everything that outlives a reboot: images, snapshots, container records.
    pub root: PathBuf,
    /// Folder of what may vanish with a reboot: bundles and sockets. On a tmpfs where there is one.
    pub run: PathBuf,
    /// The program that becomes the parent of each container.
    pub shim: ShimProgram,
    /// Which snapshotter holds the root file systems.
    pub snapshotter: SnapshotterKind,
    /// Folder below which each container gets its cgroup, from the root of the hierarchies (`/estiba`). Empty: containers have
    /// none, and no limits, for a user to whom no part of the tree was delegated.
    pub cgroup_parent: String,
    /// Program and arguments to which the container's id is appended: run by a shim that ends when no client is there
    /// to clean up after it. Without one, the next ordinary command on the same root does it.
    pub exit_command: Vec<String>,
    /// Program and arguments that run the root's monitor, which [`Engine::monitor`](crate::Engine::monitor) is: started when a
    /// container wants to be restarted or checked, and expected to return once the monitor stands. Without one, such
    /// containers are watched only while some program on the same root calls that method.
    pub monitor_command: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/estiba"),
            run: PathBuf::from("/run/estiba"),
            shim: ShimProgram::Reexec,
            snapshotter: SnapshotterKind::Overlay,
            cgroup_parent: "/estiba".to_owned(),
            exit_command: Vec::new(),
            monitor_command: Vec::new(),
        }
    }
}

/// The program that is started as a container's shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimProgram {
    /// A program file, such as `containerd-shim-estiba-v2`.
    Path(PathBuf),
    /// The running program itself, whose `main` calls [`reexec`](crate::reexec) first.
    Reexec,
}

/// The snapshotters that the engine can open by itself. Any other is given in [`Parts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnapshotterKind {
    /// overlayfs: layers are shared, a container's own changes are an upper folder.
    #[default]
    Overlay,
    /// Plain copies: works on any file system, and costs a copy of the tree per container.
    Native,
}

impl SnapshotterKind {
    /// The kind of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Overlay, Self::Native].into_iter().find(|kind| kind.name() == name)
    }

    /// The name of the snapshotter's folder below `ROOT/snapshots` and in configuration (`overlay`, `native`).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Native => "native",
        }
    }
}

/// The parts that an engine composes, for an embedder that brings its own.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The content store: an OCI layout.
    pub content: Arc<Layout>,
    /// The snapshots of image layers and of containers.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// What records call the snapshotter. A container whose record names another one is left alone, unless it is one
    /// that the engine can open by itself.
    pub snapshotter_name: String,
    /// Runtimes by the names that [`CreateRequest::runtime`](crate::CreateRequest::runtime) may say; the same that the program
    /// gives to [`reexec_with`](crate::reexec_with).
    pub runtimes: Runtimes,
    /// Drivers of networks by their names, beside the engine's own (`bridge`), or in their place.
    pub drivers: BTreeMap<String, Arc<dyn Driver>>,
}
