//! `estiba cp`: copies files between a container and this machine.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use clap::Args;
use estiba_engine::storage::archive::{self, Kind, Link, Owner, PackOptions, Root, Stat, UnpackOptions};
use estiba_engine::{Container, Engine};

use crate::failure::{Failure, Result};

/// Copy files between a container and this machine
#[derive(Debug, Args)]
#[command(
    override_usage = "estiba cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       estiba cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
)]
#[command(after_help = "Examples:\n  estiba cp web:/etc/nginx/nginx.conf .\n  estiba cp site/. web:/srv/www\n  \
                        estiba cp web:/var/log - | tar t\n\n\
                        A folder's name with /. at its end stands for what is in it. - is a tar archive on standard input or output.\n")]
pub(crate) struct Cp {
    /// Keep the numbers of users and groups
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link at the end of SRC_PATH
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not show the progress (none is shown anyhow)
    #[arg(short, long)]
    quiet: bool,
    /// What to copy
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to
    #[arg(value_name = "DEST")]
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Container(&'a str, &'a str),
    Here(&'a str),
    Stream,
}

impl<'a> Side<'a> {
    /// `CONTAINER:PATH`; a path of this machine that has a colon begins with `/` or `.`.
    fn read(text: &'a str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((container, path)) if !text.starts_with(['/', '.']) && !container.contains('/') => {
                Self::Container(container, path)
            }
            _ => Self::Here(text),
        }
    }
}

/// A place that files are copied to.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// The folder that the archive is unpacked into.
    folder: PathBuf,
    /// What the first entry of the archive is called.
    root: Root,
}

impl Cp {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        match (Side::read(&self.source), Side::read(&self.destination)) {
            (Side::Container(name, path), Side::Here(to)) => {
                let container = engine.container(name).await?;
                self.out(&container, name, path, to).await
            }
            (Side::Container(name, path), Side::Stream) => {
                let container = engine.container(name).await?;
                if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                    return Err(Failure::new(
                        "refusing to write an archive to a terminal: redirect it, or name a file",
                    ));
                }
                stat(&container, name, path, self.link()).await?;
                let options = PackOptions { link: self.link(), ..PackOptions::default() };
                container.copy_out(inside(path), options, std::io::stdout()).await?;
                Ok(0)
            }
            (Side::Here(from), Side::Container(name, path)) => {
                let container = engine.container(name).await?;
                self.inwards(&container, name, from, path).await
            }
            (Side::Stream, Side::Container(name, path)) => {
                let container = engine.container(name).await?;
                let there = stat(&container, name, path, Link::Followed).await?;
                if there.kind != Kind::Folder {
                    return Err(Failure::new(format!(
                        "destination {name}:{path} must be a folder: an archive is unpacked into it"
                    )));
                }
                container.copy_in(inside(path), UnpackOptions::default(), std::io::stdin()).await?;
                Ok(0)
            }
            (Side::Container(..), Side::Container(..)) => {
                Err(Failure::new("copying between containers is not supported: copy to this machine first"))
            }
            _ => Err(Failure::new("must specify at least one container source: CONTAINER:PATH on one of the sides")),
        }
    }

    fn link(&self) -> Link {
        if self.follow_link { Link::Followed } else { Link::Itself }
    }

    async fn out(&self, container: &Container, name: &str, path: &str, to: &str) -> Result<u8> {
        let source = stat(container, name, path, self.link()).await?;
        let to = here(to)?;
        let is_folder = std::fs::metadata(&to).ok().map(|metadata| metadata.is_dir());
        let target = target(&source, path, &to, is_folder, Path::is_dir)?;
        let options = PackOptions { root: target.root, link: self.link(), ..PackOptions::default() };
        let owner = self.owner(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (reader, writer) = pipe()?;
        let root = root_of_this_machine()?;
        let unpacking = std::thread::spawn(move || {
            let options = UnpackOptions { owner, ..UnpackOptions::default() };
            archive::unpack(root.as_fd(), &target.folder, reader, &options)
        });
        let packed = container.copy_out(inside(path), options, writer).await;
        finish(packed.map(|_| ()).map_err(Failure::from), unpacking)
    }

    async fn inwards(&self, container: &Container, name: &str, from: &str, path: &str) -> Result<u8> {
        let root = root_of_this_machine()?;
        let there = here(from)?;
        let source = archive::stat(root.as_fd(), &there, self.link())
            .map_err(|error| Failure::caused(format!("cannot copy {from}"), error))?;
        let found = container.stat_path(inside(path), Link::Followed).await;
        let is_folder = found.ok().map(|stat| stat.kind == Kind::Folder);
        let to = inside(path);
        let parent = to.parent().unwrap_or(Path::new("/")).to_owned();
        let has_parent = match is_folder {
            None => container.stat_path(parent, Link::Followed).await.is_ok_and(|stat| stat.kind == Kind::Folder),
            Some(_) => true,
        };
        let target = target(&source, from, &PathBuf::from(keep_slash(&to, path)), is_folder, |_| has_parent)
            .map_err(|failure| Failure::new(format!("{name}:{path}: {failure}")))?;
        let (reader, writer) = pipe()?;
        let options = PackOptions { root: target.root, link: self.link(), ..PackOptions::default() };
        let packing = std::thread::spawn(move || archive::pack(root.as_fd(), &there, writer, &options));
        let options = UnpackOptions { owner: self.owner(0, 0), ..UnpackOptions::default() };
        let unpacked = container.copy_in(target.folder, options, reader).await;
        finish(unpacked.map(|_| ()).map_err(Failure::from), packing)
    }

    fn owner(&self, uid: u32, gid: u32) -> Owner {
        if self.archive { Owner::Archived } else { Owner::Given { uid, gid } }
    }
}

/// What of the two halves has failed. If one stopped early, the other's broken pipe is its doing.
fn finish<T>(
    result: Result<()>,
    other: std::thread::JoinHandle<Result<T, estiba_engine::storage::Error>>,
) -> Result<u8> {
    let other = other.join().map_err(|_| Failure::new("a thread of the copy panicked"))?;
    match (result, other) {
        (Ok(()), Ok(_)) => Ok(0),
        (Err(failure), Ok(_)) => Err(failure),
        (Ok(()), Err(error)) => Err(Failure::caused("cannot copy", error)),
        (Err(failure), Err(error)) => {
            let error = Failure::caused("cannot copy", error);
            let is_pipe = |failure: &Failure| failure.to_string().to_lowercase().contains("broken pipe");
            Err(if is_pipe(&failure) { error } else { failure })
        }
    }
}

async fn stat(container: &Container, name: &str, path: &str, link: Link) -> Result<Stat> {
    // A folder's contents are those of what a link leads to.
    let link = if has_contents(path) || path.ends_with('/') { Link::Followed } else { link };
    container.stat_path(inside(path), link).await.map_err(|error| {
        let failure = Failure::from(error);
        if failure.to_string().to_lowercase().contains("no such file") {
            return Failure::new(format!("Could not find the file {path} in container {name}"));
        }
        failure
    })
}

/// A path in a container: from its root, whether it says so or not.
fn inside(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// A path of this machine from the root.
fn here(path: &str) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(path).map_err(|error| Failure::caused(format!("cannot use the path {path}"), error))?;
    Ok(PathBuf::from(keep_slash(&absolute, path)))
}

/// The path with a slash or `/.` at its end if the text has one: both say that it is a folder.
fn keep_slash(path: &Path, text: &str) -> OsString {
    let mut whole = path.as_os_str().to_owned();
    if has_contents(text) && !ends_with(&whole, "/.") {
        whole.push("/.");
    } else if text.ends_with('/') && !ends_with(&whole, "/") {
        whole.push("/");
    }
    whole
}

fn ends_with(text: &OsStr, end: &str) -> bool {
    text.as_encoded_bytes().ends_with(end.as_bytes())
}

/// Whether a path stands for what is in the folder.
fn has_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// Where a copy goes, by the rules of `docker cp`. `is_folder`: what the destination is; `None` if it is not there.
fn target(
    source: &Stat,
    from: &str,
    to: &Path,
    is_folder: Option<bool>,
    is_there: impl Fn(&Path) -> bool,
) -> Result<Target> {
    let asks_for_folder = ends_with(to.as_os_str(), "/") || ends_with(to.as_os_str(), "/.");
    match is_folder {
        Some(true) => {
            let root =
                if source.kind == Kind::Folder && has_contents(from) { Root::Contents } else { own_name(source, from) };
            return Ok(Target { folder: to.to_owned(), root });
        }
        Some(false) if source.kind == Kind::Folder => {
            return Err(Failure::new("cannot copy a folder over a file: name a folder"));
        }
        Some(false) if asks_for_folder => return Err(Failure::new("the destination is a file, and no folder")),
        None if asks_for_folder && source.kind != Kind::Folder => {
            return Err(Failure::new("the destination folder must exist: make it first"));
        }
        Some(false) | None => {}
    }
    let (Some(folder), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(Failure::new("the destination has no name"));
    };
    if is_folder.is_none() && !is_there(folder) {
        return Err(Failure::new(format!("the folder {} does not exist: make it first", folder.display())));
    }
    Ok(Target { folder: folder.to_owned(), root: Root::Named(name.to_owned()) })
}

/// The name that the source has itself.
fn own_name(source: &Stat, from: &str) -> Root {
    // Of a path such as `.` or `..` it is what is found there.
    if Path::new(from).file_name().is_none() { Root::Contents } else { Root::Named(source.name.clone()) }
}

fn pipe() -> Result<(impl Read + Send + 'static, impl Write + Send + 'static)> {
    std::io::pipe().map_err(|error| Failure::caused("cannot make a pipe", error))
}

fn root_of_this_machine() -> Result<OwnedFd> {
    File::open("/").map(Into::into).map_err(|error| Failure::caused("cannot open /", error))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn sides_are_told_apart() {
        for (text, expected) in [
            ("web:/etc", Side::Container("web", "/etc")),
            ("web:etc", Side::Container("web", "etc")),
            ("web:", Side::Container("web", "")),
            ("/a:b", Side::Here("/a:b")),
            ("./a:b", Side::Here("./a:b")),
            ("file", Side::Here("file")),
            ("dir/a:b", Side::Here("dir/a:b")),
            ("-", Side::Stream),
        ] {
            assert_eq!(Side::read(text), expected, "{text}");
        }
    }

    /// The table of `docker cp`'s documentation.
    #[test]
    fn targets_are_dockers() {
        let stat = |kind| Stat {
            name: "src".into(),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            modified: SystemTime::UNIX_EPOCH,
            target: None,
        };
        let named = |name: &str| Root::Named(name.into());
        for (kind, from, to, is_folder, expected) in [
            (Kind::File, "/a/src", "/d/new", None, Some(("/d", named("new")))),
            (Kind::File, "/a/src", "/d/new/", None, None),
            (Kind::File, "/a/src", "/d/old", Some(false), Some(("/d", named("old")))),
            (Kind::File, "/a/src", "/d", Some(true), Some(("/d", named("src")))),
            (Kind::File, "/a/src", "/none/new", None, None),
            (Kind::Folder, "/a/src", "/d/new", None, Some(("/d", named("new")))),
            (Kind::Folder, "/a/src/.", "/d/new", None, Some(("/d", named("new")))),
            (Kind::Folder, "/a/src", "/d/new/", None, Some(("/d", named("new")))),
            (Kind::Folder, "/a/src", "/d/old", Some(false), None),
            (Kind::Folder, "/a/src", "/d", Some(true), Some(("/d", named("src")))),
            (Kind::Folder, "/a/src/.", "/d", Some(true), Some(("/d", Root::Contents))),
            (Kind::Folder, ".", "/d", Some(true), Some(("/d", Root::Contents))),
        ] {
            let found = target(&stat(kind), from, Path::new(to), is_folder, |path| path == Path::new("/d")).ok();
            let expected = expected.map(|(folder, root)| Target { folder: folder.into(), root });
            assert_eq!(found, expected, "{kind:?} {from} {to}");
        }
    }
}
