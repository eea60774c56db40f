//! An archive becomes files below a folder of the root.

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::{Link, UnpackOptions, Unpacked, root};
use crate::layer::archive::Archive;
use crate::layer::extract::{self, Rules};
use crate::layer::stream;
use crate::layer::target::{Target, Whiteouts};
use crate::{Error, Result, sys};

/// Unpacks a tar archive (plain, gzip or zstd) below the folder `dir` of the root, which must be there.
///
/// Paths and link targets of the archive are meant from `dir` and never lead out of the root; symbolic links on the way are
/// followed as a process in the root would follow them. An entry for `dir` itself changes nothing. A file whose name
/// looks like a layer's whiteout is a file. Entries are checked as those of a [layer](crate::layer) are.
///
/// What was written before an error stays. Blocks.
pub fn unpack(
    root: BorrowedFd<'_>,
    dir: impl AsRef<Path>,
    input: impl Read,
    options: &UnpackOptions,
) -> Result<Unpacked> {
    let dir = dir.as_ref();
    let failed = || Error::io("open folder", dir);
    let walked = root::walk(root, dir, Link::Followed).map_err(failed())?;
    let folder = walked.found.ok_or_else(|| failed()(Errno::NOENT))?;
    if sys::file_type(&rustix::fs::fstat(&folder).map_err(failed())?) != FileType::Directory {
        return Err(failed()(Errno::NOTDIR));
    }
    drop(folder);
    let upper = rustix::fs::openat(root, c".", sys::PLACE, Mode::empty()).map_err(Error::io("open", "/"))?;
    let target = Target::new(upper, Vec::new(), Whiteouts::Literal, options.mounts);
    let rules = Rules { base: walked.names, owner: options.owner, replace: options.replace };
    let limits = &options.limits;
    stream::run(input, options.compression, limits, |input| {
        let mut archive = Archive::new(input, limits);
        let skipped_xattrs = extract::all(&mut archive, &target, limits, &rules)?;
        let entries = archive.entries;
        let (_, bytes) = archive.into_source().finish()?;
        Ok(Unpacked { bytes, entries, skipped_xattrs })
    })
}
