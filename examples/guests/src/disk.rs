//! Disks: ext4 file systems that are made from folders, without mounting anything.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::Result;
use crate::build::Built;
use crate::command;
use crate::plan::Plan;

/// Room beside what is in the folder.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spare {
    Little,
    Gigabytes(u64),
}

/// Makes a file system with the contents of `folder` at `to`.
pub(crate) fn make(folder: &Path, to: &Path, spare: Spare) -> Result {
    let (used, entries) = weigh(folder)?;
    let spare = match spare {
        Spare::Little => 16 << 20,
        Spare::Gigabytes(number) => number << 30,
    };
    let size = (used + used / 10 + entries * 512 + spare).next_multiple_of(1 << 20);
    File::create(to)?.set_len(size)?;
    let options = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    command::run(
        command::system("mke2fs").args(["-q", "-t", "ext4", "-F", "-m", "0", "-E", options, "-d"]).arg(folder).arg(to),
    )?;
    Ok(())
}

/// Bytes and entries.
fn weigh(folder: &Path) -> Result<(u64, u64)> {
    let mut sum = (0, 1);
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            let (bytes, entries) = weigh(&entry.path())?;
            sum = (sum.0 + bytes, sum.1 + entries);
        }
        sum = (sum.0 + (metadata.blocks() * 512).max(metadata.size()), sum.1 + 1);
    }
    Ok(sum)
}

/// The disk with the tests, what they need, and the plan.
pub(crate) fn payload(to: &Path, built: &Built, plan: &Plan) -> Result {
    let folder = tempfile::tempdir()?;
    built.copy(folder.path())?;
    fs::write(folder.path().join("plan.json"), serde_json::to_vec_pretty(plan)?)?;
    make(folder.path(), to, Spare::Little)
}
