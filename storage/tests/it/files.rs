//! Files out of a root and into it, while the root changes.

use std::ffi::OsString;
use std::fs;
use std::io::Cursor;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use estiba_storage::Error;
use estiba_storage::archive::{
    Kind, Link, Mounts, Owner, PackOptions, Packed, Replace, Root, UnpackOptions, Unpacked, pack, stat, unpack,
};
use estiba_storage::layer::{Compression, Limits, Target, apply};
use libtest_mimic::Trial;

use crate::archive::Tar;
use crate::differential::{TREE, bash, tar};
use crate::tree::{self, Times};
use crate::{mounts, plain, privileged};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("packed_trees_are_read_alike", &["tar", "bash", "setfattr", "umoci"], read_alike),
        privileged("mounts_in_a_root", &[], mounts_in_a_root),
        privileged("a_detached_root", &[], detached),
        plain("files_are_looked_at", looked_at),
        plain("the_first_entry_has_the_name_that_is_asked_for", names),
        plain("what_no_archive_holds_is_left_out", left_out),
        plain("pack_has_limits", limits),
        plain("unpack_goes_where_links_lead_inside_the_root", follows_inside),
        plain("unpack_replaces_what_it_may", replaces),
        plain("unpack_into_nothing_is_an_error", nowhere),
        privileged("unpack_gives_files_to_one_owner", &[], one_owner),
        plain("cve_2018_15664_folders_that_become_links", cve_2018_15664),
        plain("cve_2019_14271_owners_are_numbers", cve_2019_14271),
        plain("files_that_become_pipes_do_not_block", pipes),
        plain("files_that_change_their_length", lengths),
        plain("folders_that_move_while_they_are_packed", moving),
    ]
}

fn open(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("a root")
}

fn packed(root: &Path, path: &str, options: &PackOptions) -> (Vec<u8>, Packed) {
    let mut bytes = Vec::new();
    let packed = pack(open(root).as_fd(), path, &mut bytes, options).expect("packed");
    assert_eq!(packed.bytes, bytes.len() as u64);
    (bytes, packed)
}

fn contents() -> PackOptions {
    PackOptions { root: Root::Contents, ..PackOptions::default() }
}

fn put(root: &Path, dir: &str, archive: Vec<u8>, options: &UnpackOptions) -> Result<Unpacked, Error> {
    unpack(open(root).as_fd(), dir, Cursor::new(archive), options)
}

fn listed(archive: &[u8]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("a.tar"), archive).expect("write");
    let done = Command::new("tar").args(["-tf", "a.tar"]).current_dir(folder.path()).output().expect("tar");
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
}

/// By GNU tar, by umoci, as a layer, and as files: the same tree, and of that the same archive.
fn read_alike() {
    let work = tempfile::tempdir().expect("a folder");
    for folder in ["tree", "gnu", "layer", "files"] {
        fs::create_dir(work.path().join(folder)).expect("folder");
    }
    let at = |folder: &str| work.path().join(folder);
    bash(&at("tree"), TREE);
    bash(&at("tree"), "ln dev-null dev-null-too; ln usr/bin/dash dash; touch -d 1950-01-01T00:00:00.25 'with space'");
    let whole = PackOptions { root: Root::Named(".".into()), ..PackOptions::default() };
    let (archive, _) = packed(&at("tree"), "/", &whole);
    fs::write(at("archive.tar"), &archive).expect("write");
    let arguments = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-pxf", "../archive.tar"];
    tar(&at("gnu"), &arguments);
    let target = Target::folder(at("layer")).expect("a target");
    apply(Cursor::new(&archive), Compression::None, &target, &Limits::default()).expect("applied");
    put(&at("files"), "/", archive.clone(), &UnpackOptions::default()).expect("unpacked");
    bash(
        work.path(),
        "umoci init --layout image >/dev/null && umoci new --image image:t >/dev/null && \
         umoci raw add-layer --image image:t archive.tar >/dev/null && umoci unpack --image image:t umoci >/dev/null",
    );
    // The folder into which files are unpacked keeps what it had; umoci gives it a time of its own.
    let list = |folder: &str| {
        let mut list = tree::list(&at(folder), Times::All);
        list.remove("");
        list
    };
    let expected = list("tree");
    assert!(expected.len() > 30, "{expected:?}");
    for reader in ["gnu", "layer", "files", "umoci/rootfs"] {
        tree::assert_same(&expected, &list(reader), reader);
    }
    for reader in ["gnu", "layer"] {
        assert!(packed(&at(reader), "/", &whole).0 == archive, "the archive of {reader} is another");
    }
}

fn mounts_in_a_root() {
    let root = tempfile::tempdir().expect("a folder");
    for folder in ["volume", "proc", "other"] {
        fs::create_dir(root.path().join(folder)).expect("folder");
    }
    fs::write(root.path().join("hosts"), "below").expect("write");
    fs::create_dir(root.path().join("volume/below")).expect("folder");
    let source = tempfile::tempdir().expect("a folder");
    fs::create_dir(source.path().join("in")).expect("folder");
    fs::write(source.path().join("in/file"), "mounted").expect("write");
    fs::write(source.path().join("hosts"), "mounted").expect("write");
    mounts::private(|| {
        let none: Option<&str> = None;
        let bind = |from: PathBuf, to: &str| {
            nix::mount::mount(Some(&from), &root.path().join(to), none, nix::mount::MsFlags::MS_BIND, none)
                .expect("bind");
        };
        bind(source.path().to_owned(), "volume");
        bind(source.path().join("hosts"), "hosts");
        bind("/proc".into(), "proc");
        let (stay, _) = packed(root.path(), "/", &contents());
        assert_eq!(listed(&stay), ["other/", "proc/", "volume/"]);
        let (cross, _) = packed(root.path(), "/", &PackOptions { mounts: Mounts::Cross, ..contents() });
        let all = ["hosts", "other/", "proc/", "volume/", "volume/hosts", "volume/in/", "volume/in/file"];
        assert_eq!(listed(&cross), all);
        // What the kernel makes up has no files to copy, even if it is asked for.
        assert_eq!(listed(&packed(root.path(), "proc", &PackOptions::default()).0), ["proc/"]);
        // A path that leads into a mount is meant.
        assert_eq!(listed(&packed(root.path(), "volume/in", &PackOptions::default()).0), ["in/", "in/file"]);
        let layer = || Tar::new().dir("volume", 0o755).file("volume/in/new", b"new").finish();
        put(root.path(), "/", layer(), &UnpackOptions::default()).expect("unpacked");
        assert_eq!(fs::read_to_string(source.path().join("in/new")).expect("read"), "new");
        let stay = UnpackOptions { mounts: Mounts::Stay, ..UnpackOptions::default() };
        put(root.path(), "/", layer(), &stay).expect_err("it leads into a mount");
        // What is mounted over a file cannot be replaced.
        let error = put(root.path(), "/", Tar::new().file("hosts", b"x").finish(), &UnpackOptions::default());
        assert!(error.expect_err("busy").to_string().contains("hosts"));
    });
    assert_eq!(fs::read_to_string(source.path().join("hosts")).expect("read"), "mounted");
}

/// As the engine has the root of a container that does not run.
fn detached() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(root.path().join("a/b")).expect("folder");
    symlink("/a/b", root.path().join("link")).expect("a link");
    symlink("../../../..", root.path().join("up")).expect("a link");
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, root.path(), flags).expect("a detached mount");
    unpack(tree.as_fd(), "link", Cursor::new(Tar::new().file("f", b"x").finish()), &UnpackOptions::default())
        .expect("unpacked");
    assert_eq!(fs::read_to_string(root.path().join("a/b/f")).expect("read"), "x");
    for path in ["up", "up/up", "/", "../..", "a/../.."] {
        let mut bytes = Vec::new();
        let options = PackOptions { link: Link::Followed, ..contents() };
        pack(tree.as_fd(), path, &mut bytes, &options).expect("packed");
        assert_eq!(listed(&bytes), ["a/", "a/b/", "a/b/f", "link", "up"], "{path}");
    }
    assert_eq!(stat(tree.as_fd(), "link/f", Link::Itself).expect("there").size, 1);
}

fn looked_at() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(root.path().join("etc/dir")).expect("folder");
    fs::write(root.path().join("etc/file"), "12345").expect("write");
    fs::set_permissions(root.path().join("etc/file"), fs::Permissions::from_mode(0o4711)).expect("mode");
    let time = SystemTime::UNIX_EPOCH - Duration::from_millis(1250);
    fs::File::open(root.path().join("etc/file")).expect("open").set_modified(time).expect("time");
    for (link, target) in [
        ("absolute", "/etc/file"),
        ("up", "../../../etc/file"),
        ("folder", "/etc"),
        ("etc/relative", "dir/../file"),
        ("dead", "/etc/none/../other"),
        ("loop", "loop"),
        ("outside", "/../../../../../../../../etc/passwd"),
        ("to-root", "/.."),
    ] {
        symlink(target, root.path().join(link)).expect("a link");
    }
    let root_fd = open(root.path());
    let look = |path: &str, link| stat(root_fd.as_fd(), path, link);
    let file = look("/etc/file", Link::Itself).expect("there");
    assert_eq!((file.name.to_str(), file.kind, file.mode, file.size), (Some("file"), Kind::File, 0o4711, 5));
    assert_eq!((file.modified, file.target, file.uid), (time, None, nix::unistd::geteuid().as_raw()));
    for (path, name, target) in [
        ("absolute", "absolute", "/etc/file"),
        ("up", "up", "/etc/file"),
        ("folder", "folder", "/etc"),
        ("folder/relative", "relative", "/etc/file"),
        ("dead", "dead", "/etc/other"),
        ("outside", "outside", "/etc/passwd"),
        ("to-root", "to-root", "/"),
    ] {
        let found = look(path, Link::Itself).expect("there");
        assert_eq!((found.kind, found.name.to_str()), (Kind::Symlink, Some(name)), "{path}");
        assert_eq!(found.target, Some(PathBuf::from(target)), "{path}");
    }
    for path in ["absolute", "up", "folder/relative", "../../etc/file", "etc/dir/../file"] {
        assert_eq!(look(path, Link::Followed).expect("there").size, 5, "{path}");
    }
    for path in ["folder/", "folder/.", "etc/dir/..", "/etc", "etc/"] {
        assert_eq!(look(path, Link::Itself).expect("there").kind, Kind::Folder, "{path}");
    }
    for path in ["", "/", "..", ".", "/../.."] {
        let found = look(path, Link::Itself).expect("there");
        assert_eq!((found.kind, found.name.to_str()), (Kind::Folder, Some("/")), "{path}");
    }
    for (path, link, code) in [
        ("none", Link::Itself, libc::ENOENT),
        ("outside", Link::Followed, libc::ENOENT),
        ("loop", Link::Followed, libc::ELOOP),
        ("etc/file/", Link::Itself, libc::ENOTDIR),
        ("etc/file/..", Link::Itself, libc::ENOTDIR),
        ("etc/file/x", Link::Itself, libc::ENOTDIR),
        ("dead", Link::Followed, libc::ENOENT),
    ] {
        let Err(Error::Io { source, .. }) = look(path, link) else { panic!("{path}") };
        assert_eq!(source.raw_os_error(), Some(code), "{path}");
    }
}

fn names() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(root.path().join("a/b")).expect("folder");
    fs::write(root.path().join("a/b/f"), "x").expect("write");
    fs::hard_link(root.path().join("a/b/f"), root.path().join("a/b/g")).expect("a link");
    symlink("a", root.path().join("link")).expect("a link");
    let named = |name: &str| Root::Named(OsString::from(name));
    for (path, link, name, expected) in [
        ("a/b", Link::Itself, Root::Own, &["b/", "b/f", "b/g"][..]),
        ("/a/b/", Link::Itself, Root::Own, &["b/", "b/f", "b/g"]),
        ("a/b", Link::Itself, Root::Contents, &["f", "g"]),
        ("a/b", Link::Itself, named("new"), &["new/", "new/f", "new/g"]),
        ("a/b", Link::Itself, named("new/name/"), &["new/name/", "new/name/f", "new/name/g"]),
        ("a/b", Link::Itself, named("."), &["./", "./f", "./g"]),
        ("a/b/f", Link::Itself, Root::Own, &["f"]),
        ("a/b/f", Link::Itself, Root::Contents, &["f"]),
        ("a/b/f", Link::Itself, named("other"), &["other"]),
        ("link", Link::Itself, Root::Own, &["link"]),
        ("link", Link::Followed, Root::Own, &["link/", "link/b/", "link/b/f", "link/b/g"]),
        ("link/", Link::Itself, Root::Own, &["link/", "link/b/", "link/b/f", "link/b/g"]),
    ] {
        let options = PackOptions { root: name.clone(), link, ..PackOptions::default() };
        assert_eq!(listed(&packed(root.path(), path, &options).0), expected, "{path} {link:?} {name:?}");
    }
    let error = pack(open(root.path()).as_fd(), "none", std::io::sink(), &PackOptions::default());
    assert!(error.expect_err("nothing is there").to_string().contains("none"));
}

fn left_out() {
    let root = tempfile::tempdir().expect("a folder");
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).expect("a socket");
    fs::write(root.path().join("file"), "").expect("write");
    for name in ["user.a=b", "user.overlay.opaque", "user.kept"] {
        rustix::fs::setxattr(root.path().join("file"), name, b"y", rustix::fs::XattrFlags::empty()).expect("set");
    }
    let (archive, done) = packed(root.path(), "/", &contents());
    assert_eq!((listed(&archive), done.entries, done.skipped), (vec!["file".to_owned()], 1, 2));
    let text = String::from_utf8_lossy(&archive);
    assert!(text.contains("SCHILY.xattr.user.kept=y\n") && !text.contains("user.a") && !text.contains("overlay"));
}

fn limits() {
    let root = tempfile::tempdir().expect("a folder");
    // Eight exbibytes of nothing, which the container has for free.
    let huge = fs::File::create(root.path().join("huge")).expect("a file");
    if huge.set_len(1 << 50).is_err() {
        huge.set_len(1 << 40).expect("sparse");
    }
    fs::create_dir_all(root.path().join("a/b/c")).expect("folder");
    for folder in ["many", "linked"] {
        fs::create_dir(root.path().join(folder)).expect("folder");
    }
    for at in 0..100 {
        fs::write(root.path().join(format!("many/{at}")), "").expect("write");
    }
    // A long path, and few names at a time.
    let long = root.path().join("linked").join("long".repeat(50));
    fs::create_dir(&long).expect("folder");
    for at in 0..2 {
        fs::write(long.join(format!("{at}")), "").expect("write");
        fs::hard_link(long.join(format!("{at}")), long.join(format!("{at}-"))).expect("a link");
    }
    for (path, limits, what) in [
        ("huge", Limits::default(), "bytes"),
        ("a", Limits { entries: 2, ..Limits::default() }, "entries"),
        ("a", Limits { depth: 2, ..Limits::default() }, "folders in a path"),
        ("a", Limits { path: 4, ..Limits::default() }, "bytes in a path"),
        ("many", Limits { names: 3000, ..Limits::default() }, "bytes of names in memory"),
        ("linked", Limits { names: 300, ..Limits::default() }, "bytes of names in memory"),
    ] {
        let options = PackOptions { limits, ..PackOptions::default() };
        let error = pack(open(root.path()).as_fd(), path, std::io::sink(), &options).expect_err("too much");
        assert!(matches!(&error, Error::LimitExceeded { what: found, .. } if *found == what), "{error}");
    }
}

fn follows_inside() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("etc/conf")).expect("folder");
    fs::create_dir_all(root.join("home/me")).expect("folder");
    fs::create_dir(outer.path().join("etc")).expect("folder");
    for (link, target) in [("home/me/etc", "/etc"), ("home/me/up", "../../../etc"), ("dest", "home/me")] {
        symlink(target, root.join(link)).expect("a link");
    }
    let archive = Tar::new()
        .dir("./", 0o700)
        .file("etc/absolute", b"1")
        .file("up/relative", b"2")
        .file("../../../letter", b"3")
        .link("etc/linked", "etc/absolute")
        .file(".wh.kept", b"4")
        .file("new/parent/file", b"5")
        .finish();
    let before = fs::metadata(root.join("home/me")).expect("stat").mode();
    let done = put(&root, "dest", archive, &UnpackOptions::default()).expect("unpacked");
    assert_eq!((done.entries, done.skipped_xattrs), (7, 0));
    for (path, content) in [
        ("etc/absolute", "1"),
        ("etc/relative", "2"),
        ("home/me/letter", "3"),
        ("etc/linked", "1"),
        ("home/me/.wh.kept", "4"),
        ("home/me/new/parent/file", "5"),
    ] {
        assert_eq!(fs::read_to_string(root.join(path)).expect("read"), content, "{path}");
    }
    assert_eq!(fs::metadata(root.join("home/me")).expect("stat").mode(), before, "the folder itself stays as it was");
    assert_eq!(fs::metadata(root.join("etc/linked")).expect("stat").nlink(), 2);
    assert_eq!(fs::read_dir(outer.path().join("etc")).expect("read").count(), 0, "it got out");
    assert_eq!(fs::read_dir(outer.path()).expect("read").count(), 2, "it got out");
}

fn replaces() {
    let fresh = || {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(root.path().join("d/folder/in")).expect("folder");
        fs::write(root.path().join("d/file"), "old").expect("write");
        symlink("folder", root.path().join("d/link")).expect("a link");
        root
    };
    let same = UnpackOptions { replace: Replace::SameKind, ..UnpackOptions::default() };
    let tars: [(Tar, &str); 3] = [
        (Tar::new().file("folder", b"new"), "cannot replace the folder \"folder\" with a file"),
        (Tar::new().dir("file", 0o755), "cannot replace the file \"file\" with a folder"),
        (Tar::new().dir("link", 0o755), "cannot replace the file \"link\" with a folder"),
    ];
    for (tar, message) in tars {
        let root = fresh();
        let error = put(root.path(), "d", tar.clone().finish(), &same).expect_err("another kind");
        assert_eq!(error.to_string(), message);
        assert!(root.path().join("d/folder/in").is_dir() && root.path().join("d/file").is_file());
        put(root.path(), "d", tar.finish(), &UnpackOptions::default()).expect("replaced");
    }
    let root = fresh();
    let archive = Tar::new().file("file", b"new").dir("folder", 0o700).file("folder/x", b"x").file("link", b"l");
    put(root.path(), "d", archive.finish(), &same).expect("of a kind");
    assert_eq!(fs::read_to_string(root.path().join("d/file")).expect("read"), "new");
    assert!(root.path().join("d/folder/in").is_dir() && root.path().join("d/folder/x").is_file());
    assert_eq!(fs::metadata(root.path().join("d/folder")).expect("stat").mode() & 0o777, 0o700);
    assert!(root.path().join("d/link").symlink_metadata().expect("there").is_file());
}

fn nowhere() {
    let root = tempfile::tempdir().expect("a folder");
    fs::write(root.path().join("file"), "").expect("write");
    for (dir, code) in [("none", libc::ENOENT), ("file", libc::ENOTDIR), ("file/x", libc::ENOTDIR)] {
        let error = put(root.path(), dir, Tar::new().finish(), &UnpackOptions::default()).expect_err("no folder");
        let Error::Io { source, path, .. } = error else { panic!("{error}") };
        assert_eq!((source.raw_os_error(), path), (Some(code), PathBuf::from(dir)));
    }
    let limits = Limits { bytes: 100_000, ..Limits::default() };
    let archive = Tar::new().file("big", &vec![0; 200_000]).finish();
    let error = put(root.path(), "/", archive, &UnpackOptions { limits, ..UnpackOptions::default() });
    assert!(matches!(error, Err(Error::LimitExceeded { what: "bytes", .. })), "{error:?}");
}

fn one_owner() {
    let root = tempfile::tempdir().expect("a folder");
    let owner = Owner::Given { uid: 1234, gid: 5678 };
    let archive = Tar::new().owned(7, 8).dir("d", 0o755).file("d/f", b"").symlink("l", "d").device("p", b'6', 0, 0);
    put(root.path(), "/", archive.finish(), &UnpackOptions { owner, ..UnpackOptions::default() }).expect("unpacked");
    for path in ["d", "d/f", "l", "p"] {
        let stat = root.path().join(path).symlink_metadata().expect("stat");
        assert_eq!((stat.uid(), stat.gid()), (1234, 5678), "{path}");
    }
    assert!(root.path().join("p").symlink_metadata().expect("stat").file_type().is_fifo());
}

/// Calls `change` again and again on a thread of its own while `work` runs.
pub(crate) fn meanwhile(change: impl Fn() + Send + Sync, work: impl FnOnce()) {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                change();
            }
        });
        let _stop = Stop(&done);
        work();
    });
}

pub(crate) fn exchange(left: &Path, right: &Path) {
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, left, cwd, right, rustix::fs::RenameFlags::EXCHANGE).expect("exchanged");
}

/// A container swaps a folder for a link that leads out, and back, while files are copied.
fn cve_2018_15664() {
    let outer = tempfile::tempdir().expect("a folder");
    let root = outer.path().join("root");
    fs::create_dir_all(root.join("work/dir/sub")).expect("folder");
    fs::write(root.join("work/dir/sub/data"), "inside").expect("write");
    fs::create_dir_all(outer.path().join("secret/sub")).expect("folder");
    fs::write(outer.path().join("secret/sub/data"), "SECRET").expect("write");
    symlink(outer.path().join("secret"), root.join("work/swapped")).expect("a link");
    let (dir, link) = (root.join("work/dir"), root.join("work/swapped"));
    let (mut folders, mut links) = (0, 0);
    meanwhile(
        || exchange(&dir, &link),
        || {
            for _ in 0..300 {
                for (path, follow) in [("work", Link::Itself), ("work/dir/sub", Link::Followed)] {
                    let mut bytes = Vec::new();
                    let options = PackOptions { link: follow, ..PackOptions::default() };
                    // Inside the root the link leads nowhere, or to what was unpacked there.
                    let done = pack(open(&root).as_fd(), path, &mut bytes, &options);
                    assert!(matches!(done, Ok(_) | Err(Error::Io { .. })), "{done:?}");
                    assert!(!bytes.windows(6).any(|window| window == b"SECRET"), "it got out");
                }
                match stat(open(&root).as_fd(), "work/dir", Link::Itself).expect("always there").kind {
                    Kind::Folder => folders += 1,
                    _ => links += 1,
                }
                let archive = || Tar::new().dir("sub", 0o755).file("sub/new", b"new").symlink("sub/l", "data").finish();
                let _ = put(&root, "work/dir", archive(), &UnpackOptions::default());
                let archive = Tar::new().file("dir/sub/new", b"new").link("dir/sub/hard", "dir/sub/data").finish();
                let _ = put(&root, "work", archive, &UnpackOptions::default());
            }
        },
    );
    assert!(folders > 0 && links > 0, "nothing was swapped: {folders} {links}");
    let names: Vec<_> = fs::read_dir(outer.path().join("secret/sub")).expect("read").collect();
    assert_eq!(names.len(), 1, "it got out: {names:?}");
    let secret = outer.path().join("secret/sub/data");
    assert_eq!(fs::read_to_string(&secret).expect("read"), "SECRET");
    assert_eq!(fs::metadata(&secret).expect("stat").nlink(), 1);
}

/// The names of users would be looked up by libraries of the container.
fn cve_2019_14271() {
    let root = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(root.path().join("etc")).expect("folder");
    let owner = nix::unistd::geteuid();
    fs::write(root.path().join("etc/passwd"), format!("evil:x:{owner}:0::/:/bin/sh\n")).expect("write");
    fs::write(root.path().join("etc/nsswitch.conf"), "passwd: evil\n").expect("write");
    let (archive, _) = packed(root.path(), "/", &contents());
    let mut headers = 0;
    for block in archive.chunks_exact(512).filter(|block| block[257..265] == *b"ustar\x0000") {
        assert!(block[265..329].iter().all(|byte| *byte == 0), "an owner has a name");
        headers += 1;
    }
    assert!(headers >= 3);
}

/// A pipe has no writer: who opened it would wait for ever.
fn pipes() {
    let root = tempfile::tempdir().expect("a folder");
    let (file, pipe) = (root.path().join("a"), root.path().join("b"));
    fs::write(&file, "content").expect("write");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600), 0)
        .expect("a pipe");
    meanwhile(
        || exchange(&file, &pipe),
        || {
            for _ in 0..200 {
                let (archive, _) = packed(root.path(), "/", &contents());
                // Either, each time whole: a header of one and the content of the other would be a broken archive.
                let target = tempfile::tempdir().expect("a folder");
                put(target.path(), "/", archive, &UnpackOptions::default()).expect("unpacked");
                for name in ["a", "b"] {
                    let stat = target.path().join(name).symlink_metadata().expect("there");
                    assert!(stat.file_type().is_fifo() || stat.len() == 7);
                }
            }
        },
    );
}

fn lengths() {
    let root = tempfile::tempdir().expect("a folder");
    let path = root.path().join("file");
    fs::write(&path, vec![b'x'; 300_000]).expect("write");
    let file = fs::File::options().write(true).open(&path).expect("open");
    let length = std::sync::atomic::AtomicU64::new(0);
    meanwhile(
        || {
            let next = (length.load(Ordering::Relaxed) + 123_457) % 1_000_000;
            length.store(next, Ordering::Relaxed);
            file.set_len(next).expect("length");
        },
        || {
            for _ in 0..300 {
                let (archive, _) = packed(root.path(), "/", &contents());
                assert_eq!(archive.len() % 512, 0);
                assert_eq!(listed_plain(&archive), 1);
            }
        },
    );
}

/// The number of entries that this crate itself reads in an archive, which is whole.
fn listed_plain(archive: &[u8]) -> usize {
    let target = tempfile::tempdir().expect("a folder");
    put(target.path(), "/", archive.to_vec(), &UnpackOptions::default()).expect("a whole archive");
    fs::read_dir(target.path()).expect("read").count()
}

/// A folder goes to another place and comes back: what is packed is always below the path, and the rest is not lost.
fn moving() {
    let outer = tempfile::tempdir().expect("a folder");
    let tree = outer.path().join("tree");
    fs::create_dir_all(tree.join("m/deep/er")).expect("folder");
    fs::create_dir_all(outer.path().join("elsewhere")).expect("folder");
    fs::write(outer.path().join("elsewhere/n"), "").expect("write");
    for name in ["a", "m/f", "m/deep/f", "m/deep/er/f", "z"] {
        fs::write(tree.join(name), "").expect("write");
    }
    let (deep, away) = (tree.join("m/deep"), outer.path().join("elsewhere/deep"));
    meanwhile(
        || {
            fs::rename(&deep, &away).expect("away");
            fs::rename(&away, &deep).expect("back");
        },
        || {
            for _ in 0..800 {
                let (archive, _) = packed(outer.path(), "tree", &PackOptions::default());
                let names: Vec<_> =
                    archive.chunks_exact(512).filter(|block| block[257..263] == *b"ustar\0").map(name).collect();
                for always in ["tree/", "tree/a", "tree/m/", "tree/m/f", "tree/z"] {
                    assert!(names.iter().any(|name| name == always), "{always} is lost: {names:?}");
                }
                assert!(names.iter().all(|name| name.starts_with("tree/") || name.starts_with("Pax")), "{names:?}");
                assert!(!names.iter().any(|name| name.ends_with('n')), "it got out: {names:?}");
            }
        },
    );
}

fn name(block: &[u8]) -> String {
    String::from_utf8_lossy(block[..100].split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
