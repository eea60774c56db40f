//! Kernel modules: which a module needs is said in the file itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::command;

/// The modules below a folder, by their names. A dash and an underscore are the same in them.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    pub(crate) fn find(folder: &Path) -> Result<Self> {
        let mut modules = Self { files: BTreeMap::new() };
        modules.add(folder)?;
        Ok(modules)
    }

    fn add(&mut self, folder: &Path) -> Result {
        for entry in fs::read_dir(folder).map_err(|error| format!("cannot list {}: {error}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                self.add(&entry.path())?;
            } else if let Some((name, _)) = name.split_once(".ko") {
                self.files.insert(name.replace('-', "_"), entry.path());
            }
        }
        Ok(())
    }

    /// The contents of the wanted modules and of those that they need, in the order in which they can be loaded. One that
    /// the kernel does not have as a module is part of it, or not needed there.
    pub(crate) fn ordered(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in wanted {
            self.push(name, &mut found)?;
        }
        Ok(found)
    }

    fn push(&self, name: &str, found: &mut Vec<(String, Vec<u8>)>) -> Result {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if found.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let bytes = content(path)?;
        for needed in needs(&bytes) {
            self.push(&needed, found)?;
        }
        found.push((name.to_owned(), bytes));
        Ok(())
    }
}

fn content(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let folder = tempfile::tempdir()?;
        let copy = folder.path().join("module.xz");
        fs::copy(path, &copy)?;
        command::run(command::system("xz").arg("-d").arg(&copy))?;
        return Ok(fs::read(copy.with_extension(""))?);
    }
    Ok(fs::read(path)?)
}

/// The names after `depends=` in the section `.modinfo`, which holds strings that end with a zero.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read_and_put_first() {
        assert_eq!(needs(b"ELF\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"), ["virtio", "virtio_ring"]);
        assert_eq!(needs(b"ELF\0depends=\0"), [""; 0]);
        let folder = tempfile::tempdir().expect("a folder");
        let below = folder.path().join("drivers");
        fs::create_dir(&below).expect("a folder");
        fs::write(below.join("virtio-blk.ko"), b"\0depends=virtio\0").expect("written");
        fs::write(folder.path().join("virtio.ko"), b"\0depends=\0").expect("written");
        let modules = Modules::find(folder.path()).expect("found");
        let ordered = modules.ordered(&["virtio_blk", "virtio", "none"]).expect("ordered");
        assert_eq!(ordered.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["virtio", "virtio_blk"]);
    }
}
