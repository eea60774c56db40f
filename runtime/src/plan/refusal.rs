//! What a configuration can ask for and this runtime does not do.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};

use super::{invalid, unsupported};
use crate::Result;

/// Refuses a configuration that would not have its effect.
pub(super) fn check(spec: &Spec) -> Result<()> {
    let major = spec.version().split('.').next().unwrap_or_default();
    if major != "1" {
        return Err(unsupported("ociVersion", format!("version {:?}; versions 1.x are", spec.version())));
    }
    let others = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    if let Some((field, _)) = others.into_iter().find(|(_, present)| *present) {
        return Err(unsupported(field, "this is Linux"));
    }
    process(spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?)?;
    linux(spec.linux().as_ref().ok_or_else(|| invalid("linux", "is missing"))?)
}

pub(super) fn process(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(invalid("process.args", "is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(invalid("process.cwd", format!("{} is not absolute", process.cwd().display())));
    }
    let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        ("process.commandLine", filled(process.command_line())),
        ("process.user.username", filled(process.user().username())),
    ];
    first(&refused)
}

fn linux(linux: &Linux) -> Result<()> {
    let mappings = [linux.uid_mappings(), linux.gid_mappings()];
    let mapped = mappings.map(|list| list.as_ref().is_some_and(|list| !list.is_empty()));
    let user = linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    match (user.map(|namespace| super::joined(namespace).map(PathBuf::as_path)), mapped) {
        (Some(None), [true, true]) | (Some(Some(_)) | None, [false, false]) => Ok(()),
        (Some(None), _) => Err(invalid("linux.uidMappings", "a new user namespace needs uid and gid mappings")),
        (Some(Some(path)), _) => Err(joined(path)),
        (None, _) => Err(invalid("linux.uidMappings", "mappings need a new user namespace")),
    }
}

fn joined(path: &Path) -> crate::Error {
    invalid("linux.uidMappings", format!("the user namespace {} has its mappings already", path.display()))
}

fn first(refused: &[(&str, bool)]) -> Result<()> {
    match refused.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(unsupported(*field, "this runtime has no effect for it yet")),
        None => Ok(()),
    }
}
