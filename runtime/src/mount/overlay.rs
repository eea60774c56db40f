//! The two kinds of mounts that a snapshot has.

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{failed, invalid, set_options, text};
use crate::plan::Options;
use crate::sys::mount::{self as sys, Depth};
use crate::sys::{Call, file, own, process, socket};
use crate::{Error, Features, Result};

/// What `fsconfig` takes as a value, with the zero.
const LONGEST_VALUE: usize = 256;
/// What `mount(2)` takes as options, with the zero: a page.
const LONGEST_OPTIONS: usize = 4096;

/// The paths of an overlay.
struct Layers<'a> {
    /// From the top down.
    lower: Vec<String>,
    /// `upperdir`, `workdir` and what else is for the filesystem.
    others: Vec<(&'a str, Option<&'a str>)>,
    /// The folders that are named by descriptor.
    open: Vec<(CString, File)>,
}

/// Mounts an overlay that is attached nowhere.
pub(super) fn mount(options: &Options, features: Features) -> Result<OwnedFd> {
    let mut layers = Layers { lower: Vec::new(), others: Vec::new(), open: Vec::new() };
    for (key, value) in &options.data {
        match (key.as_str(), value.as_deref()) {
            ("lowerdir", Some(value)) => layers.lower.extend(split(value)),
            ("lowerdir+", Some(value)) => layers.lower.push(value.to_owned()),
            (key, value) => layers.others.push((key, value)),
        }
    }
    if layers.lower.is_empty() {
        return Err(invalid("an overlay needs lowerdir".into()));
    }
    if features.lowerdir_append
        && let Some(tree) = append(&mut layers, options)?
    {
        return Ok(tree);
    }
    whole(&mut layers, options)
}

/// The layers of `lowerdir`, in which a backslash takes the meaning from a colon.
fn split(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            ':' => {
                parts.push(String::new());
                continue;
            }
            '\\' => characters.next().unwrap_or('\\'),
            character => character,
        };
        if let Some(part) = parts.last_mut() {
            part.push(literal);
        }
    }
    parts
}

impl Layers<'_> {
    /// A path, or if it is longer than `room`, the descriptor that stands for it.
    fn short(&mut self, path: &str, room: usize) -> Result<CString> {
        if path.len() < room {
            return text(Path::new(path));
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(path)
            .map_err(|source| Error::Io { operation: "open the layer", path: path.into(), source })?;
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.open.push((text(Path::new(path))?, file));
        text(Path::new(&name))
    }

    fn what(&self) -> String {
        let upper = self.others.iter().find(|(key, _)| *key == "upperdir").and_then(|(_, value)| *value);
        format!(
            "an overlay of {} layers{}",
            self.lower.len(),
            upper.map(|path| format!(" at {path}")).unwrap_or_default()
        )
    }
}

/// One layer at a time, Linux 6.7; `None` if the kernel does not know that.
fn append(layers: &mut Layers<'_>, options: &Options) -> Result<Option<OwnedFd>> {
    let what = layers.what();
    let context = sys::fsopen(c"overlay").map(own).map_err(failed(what.clone(), "fsopen"))?;
    let set = |key: &CStr, value: Option<&CStr>| sys::fsconfig(context.as_raw_fd(), key, value);
    if set(c"no-such-option", Some(c"1")).is_ok() {
        // Before Linux 6.5 all options are taken unseen, and the mount fails.
        return Ok(None);
    }
    for (at, path) in layers.lower.clone().iter().enumerate() {
        let value = layers.short(path, LONGEST_VALUE)?;
        match set(c"lowerdir+", Some(&value)) {
            Ok(()) => {}
            Err(libc::EINVAL) if at == 0 => return Ok(None),
            Err(errno) => return Err(failed(format!("{what}: layer {path}"), "fsconfig")(errno)),
        }
    }
    for (key, value) in layers.others.clone() {
        let name = text(Path::new(key))?;
        let value = value.map(|value| layers.short(value, LONGEST_VALUE)).transpose()?;
        set(&name, value.as_deref()).map_err(failed(format!("{what}: option {key}"), "fsconfig"))?;
    }
    sys::fsconfig_create(context.as_raw_fd()).map_err(failed(what.clone(), "fsconfig"))?;
    sys::fsmount(context.as_raw_fd(), options.top.set).map(|fd| Some(own(fd))).map_err(failed(what, "fsmount"))
}

/// All layers in one option of `mount(2)`, in a mount namespace that nobody else sees.
fn whole(layers: &mut Layers<'_>, options: &Options) -> Result<OwnedFd> {
    let what = layers.what();
    let mut data = data(layers, usize::MAX)?;
    if data.as_bytes_with_nul().len() > LONGEST_OPTIONS {
        data = self::data(layers, 0)?;
    }
    if data.as_bytes_with_nul().len() > LONGEST_OPTIONS {
        return Err(Error::Kernel {
            feature: "lowerdir+ (6.7)",
            purpose: format!("{what}: their names take more than a page"),
        });
    }
    let (flags, _) = options.top.flags();
    let open: Vec<_> = layers.open.iter().map(|(path, file)| (path.as_c_str(), file.as_raw_fd())).collect();
    apart(&mut Apart { socket: -1, job: Job::Overlay { data: &data, open: &open }, flags })
        .map_err(failed(what, "mount"))
}

/// The options as one text. Paths of `room` bytes or more are replaced by descriptors.
fn data(layers: &mut Layers<'_>, room: usize) -> Result<CString> {
    let mut data = Vec::new();
    for (at, path) in layers.lower.clone().iter().enumerate() {
        data.extend_from_slice(if at == 0 { b"lowerdir=" } else { b":" });
        escape(layers.short(path, room)?.to_bytes(), &mut data);
    }
    for (key, value) in layers.others.clone() {
        data.push(b',');
        data.extend_from_slice(key.as_bytes());
        if let Some(value) = value {
            data.push(b'=');
            let path = matches!(key, "upperdir" | "workdir");
            let value = if path { layers.short(value, room)? } else { text(Path::new(value))? };
            escape(value.to_bytes(), &mut data);
        }
    }
    CString::new(data).map_err(|_| invalid("a path contains a zero byte".into()))
}

/// A comma would end the option, a colon the layer.
fn escape(text: &[u8], data: &mut Vec<u8>) {
    for &byte in text {
        if matches!(byte, b',' | b':' | b'\\') {
            data.push(b'\\');
        }
        data.push(byte);
    }
}

/// A copy of a folder that is attached nowhere.
pub(super) fn bind(source: &Path, options: &Options, features: Features) -> Result<OwnedFd> {
    let what = source.display().to_string();
    if let Some((key, _)) = options.data.first() {
        return Err(invalid(format!("option {key:?} of a bind")));
    }
    let depth = options.bind.unwrap_or_default();
    let tree =
        sys::clone_tree(libc::AT_FDCWD, &text(source)?, depth).map(own).map_err(failed(what.clone(), "open_tree"))?;
    if features.mount_setattr {
        set_options(tree.as_raw_fd(), options).map_err(failed(what, "mount_setattr"))?;
        return Ok(tree);
    }
    if !options.recursive.none() {
        return Err(Error::Kernel { feature: "mount_setattr (5.12)", purpose: format!("{what}: a recursive option") });
    }
    let (flags, _) = options.top.flags();
    if flags == 0 {
        return Ok(tree);
    }
    // Only an attached mount can be remounted.
    let tree = tree.as_fd().as_raw_fd();
    apart(&mut Apart { socket: -1, job: Job::Remount { tree, depth }, flags }).map_err(failed(what, "mount"))
}

/// What is done in a mount namespace of its own.
struct Apart<'a> {
    socket: i32,
    job: Job<'a>,
    flags: u64,
}

enum Job<'a> {
    Overlay { data: &'a CStr, open: &'a [(&'a CStr, i32)] },
    Remount { tree: i32, depth: Depth },
}

/// Lets a child in a mount namespace of its own make a mount, and hand over a copy that is attached nowhere.
fn apart(job: &mut Apart<'_>) -> Call<OwnedFd> {
    let (socket, inner) = socket::pair()?;
    job.socket = inner.as_raw_fd();
    let request =
        process::CloneRequest { flags: libc::CLONE_NEWNS as u64, cgroup: None, clone3: process::has_clone3() };
    let (_, pidfd) = process::spawn(request, job, make_apart)?;
    drop(inner);
    let mut errno = [0u8; 4];
    let received = socket::receive(socket.as_fd(), &mut errno);
    // The child is done, or dead.
    process::wait(pidfd.as_fd())?;
    match received? {
        (_, Some(tree)) => Ok(tree),
        (4, None) => Err(i32::from_ne_bytes(errno)),
        _ => Err(libc::EIO),
    }
}

fn make_apart(apart: &mut Apart<'_>) -> ! {
    match do_apart(apart) {
        Ok(tree) => drop_result(socket::send(apart.socket, b"tree", Some(tree))),
        Err(errno) => drop_result(socket::send(apart.socket, &errno.to_ne_bytes(), None)),
    }
    process::exit(0)
}

fn drop_result(_: Call) {}

/// Runs in the child: nothing here allocates. Any folder will do to mount on; nobody sees it.
fn do_apart(apart: &Apart<'_>) -> Call<i32> {
    const PLACE: &CStr = c"/proc";
    sys::mount(None, c"/", None, libc::MS_PRIVATE | libc::MS_REC, None)?;
    let depth = match apart.job {
        Job::Overlay { data, open } => {
            // An overlay takes layers of its own mount namespace only, so they are opened once more, under the same numbers.
            for (path, number) in open {
                let fd = file::openat(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY, 0)?;
                file::dup_to(fd, *number)?;
                file::close(fd);
            }
            // Names in the options may go through /proc/self/fd, so it stays until the overlay is made.
            sys::mount(Some(c"overlay"), PLACE, Some(c"overlay"), apart.flags, Some(data))?;
            Depth::Top
        }
        Job::Remount { tree, depth } => {
            sys::attach_at(tree, PLACE)?;
            file::fchdir(tree)?;
            sys::mount(None, c".", None, libc::MS_REMOUNT | libc::MS_BIND | apart.flags, None)?;
            depth
        }
    };
    sys::clone_tree(libc::AT_FDCWD, PLACE, depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_split_at_colons() {
        assert_eq!(split("/a:/b"), ["/a", "/b"]);
        assert_eq!(split(r"/a\:b:/c\\d"), ["/a:b", r"/c\d"]);
        assert_eq!(split("/a"), ["/a"]);
    }

    #[test]
    fn odd_names_are_escaped() {
        let mut data = Vec::new();
        escape(br"/a,b:c\d", &mut data);
        assert_eq!(data, br"/a\,b\:c\\d");
    }
}
