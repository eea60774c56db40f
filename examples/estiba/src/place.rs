//! Where state is kept, and what can be had there: the machine's for root, a user's own for anybody else.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use estiba_engine::SnapshotterKind;
use estiba_engine::runtime::rootless;
use rustix::process::geteuid;

use crate::failure::Result;

/// Where root keeps everything that outlives a reboot.
pub(crate) const ROOT: &str = "/var/lib/estiba";
/// Where root keeps what does not.
const RUN: &str = "/run/estiba";
/// Below which root's containers get their cgroups.
const CGROUP: &str = "/estiba";
/// The first kernel on which the root of a user namespace may mount overlay.
const OVERLAY: (u32, u32) = (5, 11);

/// What is taken where the command line does not say.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    /// `None`: a folder of the root.
    pub(crate) run: Option<PathBuf>,
    pub(crate) snapshotter: SnapshotterKind,
    /// Empty if there is none.
    pub(crate) cgroup_parent: String,
    /// The network of a container of which nothing is said.
    pub(crate) network: &'static str,
    /// Whether this is a user's own place.
    pub(crate) rootless: bool,
    /// What a user does not have, a line each.
    pub(crate) missing: Vec<String>,
}

static PLACE: OnceLock<Place> = OnceLock::new();

/// The place of this process.
pub(crate) fn place() -> &'static Place {
    PLACE.get_or_init(Place::of_the_machine)
}

/// Makes a user root of what is his. Done before there are any threads; for root there is nothing to do.
pub(crate) fn enter() -> Result<()> {
    if !geteuid().is_root() {
        let place = Place::of_the_user()?;
        if !place.root.exists() && !place.missing.is_empty() {
            // Said once; `info` says it again.
            // Where even stderr is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "estiba: without root: {}", place.missing.join("; "));
        }
        let _ = PLACE.set(place);
    }
    Ok(())
}

impl Place {
    fn of_the_machine() -> Self {
        Self {
            root: ROOT.into(),
            run: Some(RUN.into()),
            snapshotter: SnapshotterKind::Overlay,
            cgroup_parent: CGROUP.to_owned(),
            network: "bridge",
            rootless: false,
            missing: Vec::new(),
        }
    }

    fn of_the_user() -> Result<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
        let data = data.ok_or_else(|| {
            crate::failure::Failure::new("there is no place for images: set HOME or XDG_DATA_HOME, or give --root")
        })?;
        let run = folder("XDG_RUNTIME_DIR").filter(|path| path.is_dir()).map(|path| path.join("estiba"));
        let mut missing = Vec::new();
        let cgroup = rootless::delegated_cgroup();
        if cgroup.is_none() {
            missing.push(
                "no cgroup was delegated, so there are no limits, no pause and no stats \
                 (systemd-run --user --scope -p Delegate=yes estiba ...)"
                    .to_owned(),
            );
        }
        let entered =
            rootless::enter().map_err(|source| estiba_engine::Error::Rootless { source: Box::new(source) })?;
        if let Some(reason) = entered.single {
            missing.push(format!("root is the only user in a container, since {reason}"));
        }
        let mut snapshotter = SnapshotterKind::Overlay;
        if !has_overlay(&rustix::system::uname().release().to_string_lossy()) {
            snapshotter = SnapshotterKind::Native;
            let (major, minor) = OVERLAY;
            missing.push(format!("root file systems are copied, since overlay takes Linux {major}.{minor}"));
        }
        let cgroup_parent = cgroup.map(|parent| format!("{}{CGROUP}", parent.trim_end_matches('/')));
        Ok(Self {
            root: data.join("estiba"),
            run,
            snapshotter,
            cgroup_parent: cgroup_parent.unwrap_or_default(),
            network: "none",
            rootless: true,
            missing,
        })
    }

    /// The folder of sockets and bundles that belongs to a root.
    pub(crate) fn run_of(&self, root: &Path) -> PathBuf {
        match &self.run {
            Some(run) if root == self.root => run.clone(),
            _ => root.join("run"),
        }
    }
}

/// Whether a user's overlay works on the kernel of that release.
fn has_overlay(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= OVERLAY,
        // A kernel that counts otherwise is a new one.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_known() {
        for (release, has) in
            [("5.10.0-46-cloud-amd64", false), ("5.11", true), ("6.1.0", true), ("4.19.1", false), ("x", true)]
        {
            assert_eq!(has_overlay(release), has, "{release}");
        }
    }

    #[test]
    fn another_root_has_its_own_run_folder() {
        let place = Place::of_the_machine();
        assert_eq!(place.run_of(Path::new(ROOT)), Path::new(RUN));
        assert_eq!(place.run_of(Path::new("/x")), Path::new("/x/run"));
    }
}
