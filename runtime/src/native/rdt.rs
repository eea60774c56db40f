//! Shares of the processor's caches and memory bandwidth (`linux.intelRdt`), through the
//! [resctrl](https://docs.kernel.org/filesystems/resctrl.html) filesystem.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};
use serde::{Deserialize, Serialize};

use crate::{ContainerId, Error, Result};

/// The groups of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Groups {
    /// Where the process is written to.
    joined: Vec<PathBuf>,
    /// What goes with the container, the inner ones first.
    made: Vec<PathBuf>,
}

impl Groups {
    /// Makes what a configuration asks for; `None` if it asks for nothing.
    pub(super) fn make(spec: &Spec, id: &ContainerId) -> Result<Option<Self>> {
        let Some(rdt) = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref()) else { return Ok(None) };
        let root = mounted(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()).ok_or_else(|| {
            Error::UnsupportedField {
                field: "linux.intelRdt".into(),
                reason: "no resctrl filesystem is mounted on this host".into(),
            }
        })?;
        let mut groups = Self::default();
        match groups.fill(rdt, &root, id) {
            Ok(()) => Ok(Some(groups)),
            Err(error) => {
                groups.remove();
                Err(error)
            }
        }
    }

    fn fill(&mut self, rdt: &LinuxIntelRdt, root: &Path, id: &ContainerId) -> Result<()> {
        let invalid =
            |reason: &str| Error::InvalidSpec { field: "linux.intelRdt.closID".into(), reason: reason.into() };
        let class = match rdt.clos_id().as_deref().filter(|class| !class.is_empty()) {
            // The root's own class.
            Some("/") => root.to_owned(),
            Some(class) if class.contains('/') || matches!(class, "." | ".." | "info" | "mon_groups" | "mon_data") => {
                return Err(invalid("is no name of a class"));
            }
            Some(class) => root.join(class),
            None => root.join(id.as_str()),
        };
        let schemata: Vec<&str> = match rdt.schemata().as_deref() {
            Some(lines) if !lines.is_empty() => lines.iter().map(String::as_str).collect(),
            _ => [rdt.l3_cache_schema(), rdt.mem_bw_schema()].into_iter().filter_map(|line| line.as_deref()).collect(),
        };
        if !class.is_dir() {
            if schemata.is_empty() && rdt.clos_id().is_some() {
                return Err(invalid("names a class that is not there, and there is no schema for it"));
            }
            self.folder(class.clone())?;
        }
        if !schemata.is_empty() {
            let path = class.join("schemata");
            write(&path, &format!("{}\n", schemata.join("\n")))?;
        }
        self.joined.push(class.join("tasks"));
        if [rdt.enable_monitoring(), rdt.enable_cmt(), rdt.enable_mbm()].contains(&&Some(true)) {
            let group = class.join("mon_groups").join(id.as_str());
            self.folder(group.clone())?;
            self.joined.push(group.join("tasks"));
        }
        Ok(())
    }

    fn folder(&mut self, path: PathBuf) -> Result<()> {
        fs::create_dir(&path).map_err(|source| Error::Io {
            operation: "make the folder",
            path: path.clone(),
            source,
        })?;
        self.made.insert(0, path);
        Ok(())
    }

    /// Puts a process in.
    pub(super) fn add(&self, pid: i32) -> Result<()> {
        self.joined.iter().try_for_each(|path| write(path, &pid.to_string()))
    }

    /// Removes what was made, and returns what failed.
    pub(super) fn remove(&self) -> Vec<Error> {
        let remove = |path: &PathBuf| match fs::remove_dir(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Some(Error::Io { operation: "remove", path: path.clone(), source })
            }
            _ => None,
        };
        self.made.iter().filter_map(remove).collect()
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::Io { operation: "write", path: path.to_owned(), source })
}

/// Where resctrl is mounted, by `/proc/self/mountinfo`.
fn mounted(mounts: &str) -> Option<PathBuf> {
    let line = mounts.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("resctrl ")))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of a class in it stands for the filesystem.
    #[test]
    fn classes_are_made_used_and_removed() {
        let root = tempfile::tempdir().expect("a folder");
        let shared = root.path().join("shared");
        fs::create_dir_all(shared.join("mon_groups")).expect("a folder");
        for file in ["schemata", "tasks"] {
            fs::write(shared.join(file), "").expect("a file");
        }
        let id: ContainerId = "c".parse().expect("a name");
        let parse = |text: &str| serde_json::from_str::<LinuxIntelRdt>(text).expect("settings");
        let rdt = parse(r#"{"closID": "shared", "schemata": ["L3:0=f", "MB:0=20"], "l3CacheSchema": "no"}"#);
        let mut groups = Groups::default();
        groups.fill(&rdt, root.path(), &id).expect("a class");
        groups.add(7).expect("a process");
        let read = |file: &str| fs::read_to_string(shared.join(file)).expect("a file");
        assert_eq!((read("schemata").as_str(), read("tasks").as_str()), ("L3:0=f\nMB:0=20\n", "7"));
        assert!(groups.remove().is_empty() && shared.exists(), "it was there before");
        let mut groups = Groups::default();
        groups.fill(&parse("{}"), root.path(), &id).expect("a class of its own");
        assert!(root.path().join("c").is_dir());
        assert!(groups.remove().is_empty() && !root.path().join("c").exists());
        let mut groups = Groups::default();
        groups.fill(&parse(r#"{"closID": "shared", "enableMonitoring": true}"#), root.path(), &id).expect("a group");
        assert!(shared.join("mon_groups/c").is_dir());
        assert!(groups.remove().is_empty() && !shared.join("mon_groups/c").exists());
        for bad in [r#"{"closID": "none"}"#, r#"{"closID": "../x"}"#, r#"{"closID": ".."}"#] {
            assert!(Groups::default().fill(&parse(bad), root.path(), &id).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_filesystem_is_found() {
        let mounts = "30 1 0:5 / /proc rw - proc proc rw\n31 1 0:9 / /sys/fs/resctrl rw,relatime shared:1 - resctrl resctrl rw\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/resctrl".into()));
        assert_eq!(mounted("30 1 0:5 / /proc rw - proc proc rw\n"), None);
    }
}
