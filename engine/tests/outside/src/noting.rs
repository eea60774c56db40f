//! A runtime that notes what it is asked and lets the native one do it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use estiba_engine::runtime::{
    Bundle, ContainerId, CreateOptions, Created, DeleteMode, KillTarget, Native, Result, Runtime, State,
};

#[derive(Debug)]
struct Noting(Native);

pub fn make(state: PathBuf) -> Box<dyn Runtime> {
    Box::new(Noting(Native::new(state)))
}

/// Beside the program, which the shim is, too.
fn file() -> PathBuf {
    std::env::temp_dir().join("estiba-outside.notes")
}

fn note(word: &str) {
    let file = OpenOptions::new().append(true).create(true).open(file());
    let _ = file.and_then(|mut file| write!(file, "{word} "));
}

/// What was noted since the last time.
pub fn notes() -> std::io::Result<String> {
    let text = std::fs::read_to_string(file())?;
    std::fs::remove_file(file())?;
    Ok(text.trim_end().replace(' ', ", "))
}

impl Runtime for Noting {
    fn create(&self, id: &ContainerId, bundle: &Bundle, options: &CreateOptions<'_>) -> Result<Created> {
        note("create");
        self.0.create(id, bundle, options)
    }

    fn start(&self, id: &ContainerId) -> Result<()> {
        note("start");
        self.0.start(id)
    }

    fn state(&self, id: &ContainerId) -> Result<State> {
        self.0.state(id)
    }

    fn kill(&self, id: &ContainerId, signal: i32, target: KillTarget) -> Result<()> {
        note("kill");
        self.0.kill(id, signal, target)
    }

    fn delete(&self, id: &ContainerId, mode: DeleteMode) -> Result<()> {
        note("delete");
        self.0.delete(id, mode)
    }
}
