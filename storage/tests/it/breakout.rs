//! Layers that try to get out of their root, or to hide what is not theirs: the cases of containerd's `TestBreakouts`.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use estiba_storage::Error;
use estiba_storage::layer::{Applied, Compression, Limits, Target, apply};
use libtest_mimic::Trial;

use crate::archive::Tar;
use crate::plain;

/// What must hold afterwards.
enum Then {
    /// The file inside has this content.
    Content(&'static str, &'static str),
    /// Both are one inode, links followed inside the root.
    Same(&'static str, &'static str),
    /// They are not.
    Different(&'static str, &'static str),
    /// Both are the same symbolic link.
    SameLink(&'static str, &'static str),
    /// There is nothing of that name.
    Absent(&'static str),
    /// The layer is refused with this reason.
    Refused(&'static str),
}

struct Case {
    name: &'static str,
    before: fn(&Path),
    layer: fn(Tar) -> Tar,
    then: &'static [Then],
}

fn nothing(_: &Path) {}

fn etc(root: &Path) {
    fs::create_dir(root.join("etc")).expect("folder");
    fs::write(root.join("etc/passwd"), "inside").expect("write");
}

fn etc_and_link(root: &Path) {
    etc(root);
    fs::write(root.join("etc/whitedout"), "ahhhh").expect("write");
    symlink("/etc", root.join("localetc")).expect("link");
}

fn etc_and_folder(root: &Path) {
    etc(root);
    fs::create_dir(root.join("localetc")).expect("folder");
}

fn etc_and_links(root: &Path) {
    etc(root);
    symlink("etc", root.join("localetc")).expect("link");
    fs::hard_link(root.join("etc/passwd"), root.join("etc/localpasswd")).expect("link");
}

fn dead_link(root: &Path) {
    etc(root);
    symlink("/dne", root.join("localetc")).expect("link");
}

use Then::{Absent, Content, Different, Refused, Same, SameLink};

const CASES: &[Case] = &[
    Case {
        name: "symlink_absolute",
        before: nothing,
        layer: |t| t.dir("etc", 0o755).symlink("localetc", "/etc").file("/localetc/unbroken", b"unbroken"),
        then: &[Content("etc/unbroken", "unbroken")],
    },
    Case {
        name: "symlink_up_and_out",
        before: nothing,
        layer: |t| {
            t.dir("etc", 0o755)
                .dir("dummy", 0o755)
                .symlink("localetc", "/dummy/../etc")
                .file("/localetc/unbroken", b"u")
        },
        then: &[Content("etc/unbroken", "u")],
    },
    Case {
        name: "symlink_multiple_absolute",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o755).dir("dummy", 0o755).symlink("/dummy/etc", "/etc");
            t.symlink("localetc", "/dummy/etc").file("/dummy/etc/unbroken", b"u").file("localetc/second", b"s")
        },
        then: &[Content("etc/unbroken", "u"), Content("etc/second", "s")],
    },
    Case {
        name: "symlink_multiple_relative",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o755).dir("dummy", 0o755).symlink("/dummy/etc", "/etc");
            t.symlink("localetc", "./dummy/etc").file("/dummy/etc/unbroken", b"u").file("localetc/second", b"s")
        },
        then: &[Content("etc/unbroken", "u"), Content("etc/second", "s")],
    },
    Case {
        name: "symlink_empty_file",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o755).file("etc/emptied", b"notempty");
            t.symlink("localetc", "/etc").file("/localetc/emptied", b"")
        },
        then: &[Content("etc/emptied", "")],
    },
    Case {
        name: "hardlink_relative",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside").dir("breakouts", 0o755);
            t.symlink("breakouts/d1", "../../etc").link("breakouts/mypasswd", "/breakouts/d1/passwd")
        },
        then: &[Same("breakouts/mypasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_down_and_out",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside").dir("breakouts", 0o755).dir("downandout", 0o755);
            let t = t.symlink("breakouts/d1", "../downandout/../../etc");
            t.link("breakouts/mypasswd", "/breakouts/d1/passwd")
        },
        then: &[Same("breakouts/mypasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_absolute",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside").symlink("localetc", "/etc");
            t.link("localpasswd", "/localetc/passwd")
        },
        then: &[Same("localpasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_relative_long",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside");
            t.symlink("localetc", "../../../../../../../etc").link("localpasswd", "/localetc/passwd")
        },
        then: &[Same("localpasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_relative_up_and_out",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside");
            t.symlink("localetc", "upandout/../../../etc").link("localpasswd", "/localetc/passwd")
        },
        then: &[Same("localpasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_direct_relative",
        before: nothing,
        layer: |t| t.dir("etc", 0o770).file("/etc/passwd", b"inside").link("localpasswd", "../../../../../etc/passwd"),
        then: &[Same("localpasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_direct_absolute",
        before: nothing,
        layer: |t| t.dir("etc", 0o770).file("/etc/passwd", b"inside").link("localpasswd", "/etc/passwd"),
        then: &[Same("localpasswd", "etc/passwd")],
    },
    // containerd ignores these two entries; a link in the root's place is refused here (CVE-2021-29136).
    Case {
        name: "symlink_parent_directory",
        before: nothing,
        layer: |t| t.dir("etc", 0o770).symlink("..", "/etc/"),
        then: &[Refused("the root can only be a folder")],
    },
    Case {
        name: "symlink_empty_filename",
        before: nothing,
        layer: |t| t.dir("etc", 0o770).symlink("", "/etc/"),
        then: &[Refused("the root can only be a folder")],
    },
    Case {
        name: "symlink_parent_relative",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside");
            t.symlink("localetc/sub/..", "/etc/").link("/localetc/localpasswd", "/etc/passwd")
        },
        then: &[Same("localetc/localpasswd", "etc/passwd")],
    },
    Case {
        name: "symlink_slash_ended",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside").dir("localetc/", 0o770);
            t.link("/localetc/localpasswd", "/etc/passwd")
        },
        then: &[Same("localetc/localpasswd", "etc/passwd")],
    },
    Case {
        name: "symlink_override_directory",
        before: etc_and_folder,
        layer: |t| t.symlink("localetc", "/etc").link("/localetc/localpasswd", "/etc/passwd"),
        then: &[Same("localetc/localpasswd", "etc/passwd"), Same("etc/localpasswd", "etc/passwd")],
    },
    Case {
        name: "symlink_override_directory_relative",
        before: etc_and_folder,
        layer: |t| t.symlink("localetc", "../../etc").link("/localetc/localpasswd", "/etc/passwd"),
        then: &[Same("localetc/localpasswd", "etc/passwd")],
    },
    Case {
        name: "directory_override_symlink",
        before: etc_and_link,
        layer: |t| t.dir("/localetc/", 0o755).link("/localetc/localpasswd", "/etc/passwd"),
        then: &[Same("localetc/localpasswd", "etc/passwd"), Absent("etc/localpasswd")],
    },
    Case {
        name: "directory_override_symlink_and_hardlink",
        before: etc_and_links,
        layer: |t| t.dir("/localetc/", 0o755).file("/localetc/localpasswd", b"different"),
        then: &[Different("localetc/localpasswd", "etc/passwd"), Content("etc/localpasswd", "inside")],
    },
    Case {
        name: "whiteout_root_parent",
        before: etc,
        layer: |t| t.file(".wh...", b""),
        then: &[Refused("names nothing"), Content("etc/passwd", "inside")],
    },
    Case {
        name: "whiteout_parent",
        before: etc,
        layer: |t| t.file("etc/.wh...", b""),
        then: &[Refused("names nothing"), Content("etc/passwd", "inside")],
    },
    Case {
        name: "whiteout_root",
        before: etc,
        layer: |t| t.file(".wh..", b""),
        then: &[Refused("names nothing"), Content("etc/passwd", "inside")],
    },
    Case {
        name: "whiteout_current_directory",
        before: etc,
        layer: |t| t.file("etc/.wh..", b""),
        then: &[Refused("names nothing"), Content("etc/passwd", "inside")],
    },
    Case {
        name: "whiteout_symlink",
        before: etc_and_link,
        layer: |t| t.file(".wh.localetc", b""),
        then: &[Content("etc/passwd", "inside"), Absent("localetc")],
    },
    Case {
        name: "whiteout_symlink_path",
        before: etc_and_link,
        layer: |t| t.file("localetc/.wh.whitedout", b""),
        then: &[Content("etc/passwd", "inside"), Absent("etc/whitedout")],
    },
    Case {
        name: "whiteout_directory_name",
        before: etc_and_link,
        layer: |t| t.file(".wh.etc/somefile", b"non-empty"),
        then: &[Content("etc/passwd", "inside"), Content(".wh.etc/somefile", "non-empty")],
    },
    Case {
        name: "whiteout_dead_symlink_parent",
        before: dead_link,
        layer: |t| t.file("localetc/.wh.etc", b""),
        then: &[Content("etc/passwd", "inside"), Absent("dne")],
    },
    Case {
        name: "whiteout_relative_path",
        before: dead_link,
        layer: |t| t.file("dne/../.wh.etc", b""),
        then: &[Absent("etc")],
    },
    Case {
        name: "hardlink_symlink_before_create_target",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).symlink("localpasswd", "/etc/passwd");
            t.link("localpasswd-dup", "localpasswd").file("/etc/passwd", b"after")
        },
        then: &[Same("localpasswd-dup", "etc/passwd"), SameLink("localpasswd", "localpasswd-dup")],
    },
    Case {
        name: "hardlink_symlink_relative",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside");
            t.symlink("passwdlink", "../../../../../etc/passwd").link("localpasswd", "/passwdlink")
        },
        then: &[SameLink("localpasswd", "passwdlink"), Same("localpasswd", "etc/passwd")],
    },
    Case {
        name: "hardlink_symlink_absolute",
        before: nothing,
        layer: |t| {
            let t = t.dir("etc", 0o770).file("/etc/passwd", b"inside");
            t.symlink("passwdlink", "/etc/passwd").link("localpasswd", "/passwdlink")
        },
        then: &[SameLink("localpasswd", "passwdlink"), Same("localpasswd", "etc/passwd")],
    },
];

pub(crate) fn apply_to(root: &Path, archive: Vec<u8>) -> Result<Applied, Error> {
    apply(Cursor::new(archive), Compression::None, &Target::folder(root).expect("a target"), &Limits::default())
}

/// Where a path of the image leads: symbolic links are followed inside the root, without the call that is under test.
fn inside(root: &Path, path: &str) -> std::path::PathBuf {
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut done: Vec<String> = Vec::new();
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => {}
            ".." => drop(done.pop()),
            name => {
                let here = done.iter().fold(root.to_owned(), |path, part| path.join(part)).join(name);
                match fs::read_link(&here) {
                    Ok(target) => {
                        let target = target.to_str().expect("text").to_owned();
                        if target.starts_with('/') {
                            done.clear();
                        }
                        todo.extend(target.split('/').rev().map(str::to_owned));
                    }
                    Err(_) => done.push(part),
                }
            }
        }
    }
    done.iter().fold(root.to_owned(), |path, part| path.join(part))
}

fn check(root: &Path, then: &Then, result: &Result<Applied, Error>) {
    let inode = |path: &str| fs::metadata(inside(root, path)).expect("stat").ino();
    if let Refused(reason) = then {
        let error = result.as_ref().expect_err("it must be refused");
        assert!(matches!(error, Error::InvalidLayer { .. }) && error.to_string().contains(reason), "{error}");
        return;
    }
    match then {
        Content(path, content) => {
            assert_eq!(fs::read_to_string(inside(root, path)).expect("read"), *content, "{path}");
        }
        Same(left, right) => assert_eq!(inode(left), inode(right), "{left} {right}"),
        Different(left, right) => assert_ne!(inode(left), inode(right), "{left} {right}"),
        SameLink(left, right) => {
            let target = |path: &str| fs::read_link(root.join(path)).expect("a link");
            assert_eq!(target(left), target(right));
        }
        Absent(path) => assert!(root.join(path).symlink_metadata().is_err(), "{path} is there"),
        Refused(_) => {}
    }
}

fn run(case: &Case) {
    let outer = tempfile::tempdir().expect("a folder");
    // What a layer that gets out would find.
    fs::create_dir(outer.path().join("etc")).expect("folder");
    fs::write(outer.path().join("etc/passwd"), "outside").expect("write");
    let root = outer.path().join("root");
    fs::create_dir(&root).expect("folder");
    (case.before)(&root);
    let result = apply_to(&root, (case.layer)(Tar::new()).finish());
    if !case.then.iter().any(|then| matches!(then, Refused(_))) {
        result.as_ref().expect("applied");
    }
    for then in case.then {
        check(&root, then, &result);
    }
    let mut names: Vec<_> = fs::read_dir(outer.path()).expect("read").map(|e| e.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["etc", "root"], "the layer got out");
    assert_eq!(fs::read_dir(outer.path().join("etc")).expect("read").count(), 1, "the layer got out");
    assert_eq!(fs::read_to_string(outer.path().join("etc/passwd")).expect("read"), "outside");
    assert_eq!(fs::metadata(outer.path().join("etc/passwd")).expect("stat").nlink(), 1);
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = CASES.iter().map(|case| plain(format!("breakout_{}", case.name), || run(case))).collect();
    trials.push(plain("breakout_hardlink_symlink_chmod", || {
        // The paths of the archive are those of real files outside.
        let outside = tempfile::tempdir().expect("a folder");
        let private = outside.path().join("perm400");
        let second = outside.path().join("also-exists-outside-root");
        for (path, mode) in [(&private, 0o400), (&second, 0o640)] {
            fs::write(path, "...").expect("write");
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("mode");
        }
        let root = tempfile::tempdir().expect("a folder");
        let (link, target) = (second.display().to_string(), private.display().to_string());
        let layer = Tar::new().symlink(&link, &target).link("sketchylink", &link).file(&link, b"changed");
        apply_to(root.path(), layer.finish()).expect("applied");
        assert_eq!(fs::metadata(&private).expect("stat").mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(&second).expect("stat").mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&second).expect("read"), "...");
        let inside = root.path().join(second.strip_prefix("/").expect("absolute"));
        assert_eq!(fs::read_to_string(inside).expect("read"), "changed");
    }));
    trials
}
