//! The file of `--cidfile`.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Made before the container, so that two never share one, and removed if there will be none.
#[derive(Debug)]
pub(crate) struct IdFile {
    path: PathBuf,
    file: Option<File>,
}

impl IdFile {
    pub(crate) fn make(path: &Path) -> Result<Self> {
        match File::create_new(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file: Some(file) }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::new(format!(
                "the container ID file {} exists: make sure that its container is not in use, and delete it",
                path.display()
            ))),
            Err(error) => Err(Failure::caused(format!("cannot make the container ID file {}", path.display()), error)),
        }
    }

    pub(crate) fn write(&mut self, id: &str) -> Result<()> {
        if let Some(mut file) = self.file.take() {
            file.write_all(id.as_bytes()).map_err(|error| {
                Failure::caused(format!("cannot write the container ID file {}", self.path.display()), error)
            })?;
        }
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Empty, and so of no use to anybody; the failure that led here is what is told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_file_is_never_shared_and_never_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("id");
        drop(IdFile::make(&path).expect("made"));
        assert!(!path.exists(), "an empty file was left");
        IdFile::make(&path).and_then(|mut file| file.write("abc")).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "abc");
        assert!(IdFile::make(&path).is_err());
    }
}
