//! What entries become: types, owners, modes, attributes, times, links; whiteouts in both forms; packings.

use std::fs;
use std::io::{Cursor, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use estiba_storage::layer::{Applied, Compression, Limits, Target, apply};
use estiba_storage::{Durability, Error, Key, Name, Overlay, OverlayOptions, Snapshotter};
use libtest_mimic::Trial;

use crate::archive::{Header, Tar};
use crate::breakout::apply_to;
use crate::hostile::zstd_of;
use crate::{plain, privileged, tree};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("entries_of_all_kinds", &[], all_kinds),
        privileged("overlay_whiteouts", &[], overlay_whiteouts),
        privileged("parents_come_from_the_layer_below", &[], parents_from_below),
        privileged("hard_links_to_files_of_lower_layers", &[], links_to_below),
        privileged("types_are_replaced", &[], types_are_replaced),
        plain("whiteouts_hide_only_what_lies_below", whiteouts_hide_below),
        plain("packings", packings),
        plain("media_types", media_types),
        plain("targets_that_cannot_be", bad_targets),
        plain("errors_name_the_entry", errors_name_the_entry),
    ]
}

fn stat(path: &Path) -> fs::Metadata {
    path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn all_kinds() {
    let root = tempfile::tempdir().expect("a folder");
    // A capability as the kernel stores it: version 2, cap_net_raw, effective.
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let layer = Tar::new()
        .owned(1000, 2000)
        .header(Header::new("dir/", b'5', 0).octal(100, 8, 0o2751).octal(136, 12, 1_000_000), b"")
        .header(Header::new("dir/suid", b'0', 2).octal(100, 8, 0o4755), b"hi")
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"n\0te")])
        .file("dir/ping", b"ping")
        .pax(&[
            ("mtime", b"1234567890.987654321"),
            ("uid", b"3000000"),
            ("gid", b"3000001"),
            ("path", "dir/ñ".as_bytes()),
        ])
        .file("short", b"")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.overlay.redirect", b"/etc")])
        .dir("dropped", 0o755)
        .symlink("link", "/no/where")
        .link("hard", "dir/suid")
        .link("hardlink-to-link", "link")
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 259, 70000)
        .device("fifo", b'6', 0, 0)
        .file("implied/parents/file", b"x");
    let applied = apply_to(root.path(), layer.finish()).expect("applied");
    assert_eq!(applied.skipped_xattrs, 2);
    let at = |path: &str| stat(&root.path().join(path));
    let owner = |path: &str| (at(path).uid(), at(path).gid());
    assert_eq!((at("dir").mode() & 0o7777, at("dir").mtime(), owner("dir")), (0o2751, 1_000_000, (1000, 2000)));
    assert_eq!((at("dir/suid").mode() & 0o7777, owner("dir/suid")), (0o4755, (1000, 2000)));
    assert_eq!((at("dir/ñ").mtime(), at("dir/ñ").mtime_nsec()), (1_234_567_890, 987_654_321));
    assert_eq!(owner("dir/ñ"), (3_000_000, 3_000_001));
    let attributes = tree::xattrs(&root.path().join("dir/ping"));
    assert_eq!(attributes.get("security.capability").map(Vec::as_slice), Some(&capability[..]));
    assert_eq!(attributes.get("user.note").map(Vec::as_slice), Some(&b"n\0te"[..]));
    assert!(tree::xattrs(&root.path().join("dropped")).is_empty());
    assert_eq!(fs::read_link(root.path().join("link")).expect("a link"), Path::new("/no/where"));
    assert_eq!((owner("link"), at("link").mtime()), ((1000, 2000), 1_500_000_000));
    assert_eq!((at("hard").ino(), at("hard").nlink()), (at("dir/suid").ino(), 2));
    assert_eq!(at("hardlink-to-link").ino(), at("link").ino());
    assert!(at("null").file_type().is_char_device() && at("disk").file_type().is_block_device());
    assert_eq!((at("null").rdev(), at("disk").rdev()), (rustix::fs::makedev(1, 3), rustix::fs::makedev(259, 70000)));
    assert!(at("fifo").file_type().is_fifo());
    assert_eq!((at("fifo").mode() & 0o7777, owner("fifo")), (0o644, (1000, 2000)));
    assert_eq!((at("implied/parents").mode() & 0o7777, owner("implied")), (0o755, (0, 0)));
}

struct Stack {
    root: tempfile::TempDir,
    overlay: Overlay,
    layers: usize,
}

impl Stack {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let options = OverlayOptions { durability: Durability::None, ..OverlayOptions::default() };
        let overlay = Overlay::with_options(root.path(), options).expect("open");
        Stack { root, overlay, layers: 0 }
    }

    /// Applies a layer; returns its own folder.
    fn put(&mut self, layer: Tar) -> Result<PathBuf, Error> {
        let parent: Option<Name> = self.layers.checked_sub(1).map(|at| format!("l{at}").parse().expect("a name"));
        let key: Key = "k".parse().expect("a key");
        let mounts = self.overlay.prepare(&key, parent.as_ref())?;
        let target = Target::from_mounts(&mounts)?;
        let result = apply(Cursor::new(layer.finish()), Compression::None, &target, &Limits::default());
        if let Err(error) = result {
            self.overlay.remove(&key.into())?;
            return Err(error);
        }
        let name: Name = format!("l{}", self.layers).parse().expect("a name");
        self.overlay.commit(&name, &key)?;
        self.layers += 1;
        Ok(self.root.path().join("committed").join(name.as_str()).join("fs"))
    }
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    tree::xattrs(path).get("trusted.overlay.opaque").is_some_and(|value| value == b"y")
}

fn overlay_whiteouts() {
    let mut stack = Stack::new();
    let base = Tar::new().dir("d", 0o755).file("d/a", b"1").file("d/b", b"2").dir("e", 0o755).file("e/a", b"3");
    stack.put(base.file("f", b"4").dir("g", 0o755).file("g/a", b"5")).expect("applied");
    let upper = stack
        .put(
            Tar::new()
                .file("d/.wh.a", b"")
                .file("d/.wh.none", b"")
                .file("none/.wh.a", b"")
                .dir("e", 0o755)
                .file("e/new", b"")
                .file("e/.wh..wh..opq", b"")
                .file(".wh.f", b"")
                .dir("f", 0o755)
                .file(".wh.g", b""),
        )
        .expect("applied");
    assert!(is_whiteout(&upper.join("d/a")));
    assert!(upper.join("d/none").symlink_metadata().is_err(), "nothing lies below to be hidden");
    assert!(upper.join("none").symlink_metadata().is_err());
    assert!(is_opaque(&upper.join("e")) && upper.join("e/new").is_file());
    assert!(!is_opaque(&upper.join("d")));
    assert!(upper.join("f").is_dir() && is_opaque(&upper.join("f")));
    assert!(is_whiteout(&upper.join("g")));
    // What a lower layer has hidden already is not there.
    let third = stack.put(Tar::new().file("d/.wh.a", b"").file("g/.wh.a", b"").file(".wh.e", b"")).expect("applied");
    assert!(third.join("d/a").symlink_metadata().is_err());
    assert!(third.join("g").symlink_metadata().is_err());
    assert!(is_whiteout(&third.join("e")));
    // The kernel does not ask whether the root is opaque.
    let fourth = stack.put(Tar::new().file("d/kept", b"").file(".wh..wh..opq", b"")).expect("applied");
    assert!(is_opaque(&fourth.join("d")) && fourth.join("d/kept").is_file());
    assert!(is_whiteout(&fourth.join("f")));
    assert!(fourth.join("e").symlink_metadata().is_err());
}

fn parents_from_below() {
    let mut stack = Stack::new();
    let base = Tar::new().owned(5, 6).header(Header::new("usr", b'5', 0).octal(100, 8, 0o1711), b"");
    let base = base.pax(&[("SCHILY.xattr.user.a", b"b")]).dir("usr/lib", 0o750).symlink("lib", "usr/lib");
    stack.put(base).expect("applied");
    // Through a symbolic link of the layer below, into its folder.
    let upper = stack.put(Tar::new().file("lib/new", b"x")).expect("applied");
    assert!(upper.join("lib").symlink_metadata().is_err(), "the link stays where it is");
    assert!(upper.join("usr/lib/new").is_file());
    let (usr, lib) = (stat(&upper.join("usr")), stat(&upper.join("usr/lib")));
    assert_eq!((usr.mode() & 0o7777, usr.uid(), usr.gid(), usr.mtime()), (0o1711, 5, 6, 1_500_000_000));
    assert_eq!((lib.mode() & 0o7777, lib.mtime()), (0o750, 1_500_000_000));
    assert_eq!(tree::xattrs(&upper.join("usr/lib")).get("user.a").map(Vec::as_slice), Some(&b"b"[..]));
    // A folder takes the link's place.
    let third = stack.put(Tar::new().dir("lib", 0o700).file("lib/own", b"x")).expect("applied");
    assert!(third.join("lib/own").is_file() && third.join("usr").symlink_metadata().is_err());
    let error = stack.put(Tar::new().file("usr/lib/new/below", b"")).expect_err("a file is no parent");
    assert!(error.to_string().contains("a parent is not a folder"), "{error}");
}

fn links_to_below() {
    let mut stack = Stack::new();
    let base = Tar::new().dir("d", 0o710).pax(&[("SCHILY.xattr.user.a", b"b")]);
    let base =
        base.owned(7, 8).header(Header::new("d/file", b'0', 7).octal(100, 8, 0o4755), b"content").file("gone", b"");
    stack.put(base).expect("applied");
    let upper = stack.put(Tar::new().file(".wh.gone", b"").link("name", "d/file").link("second", "/d/../d/file"));
    let upper = upper.expect("applied");
    let (file, name) = (stat(&upper.join("d/file")), stat(&upper.join("name")));
    assert_eq!((file.ino(), file.nlink()), (name.ino(), 3));
    assert_eq!((name.mode() & 0o7777, name.uid(), name.gid(), name.mtime()), (0o4755, 7, 8, 1_500_000_000));
    assert_eq!(fs::read(upper.join("second")).expect("read"), b"content");
    assert_eq!(tree::xattrs(&upper.join("name")).get("user.a").map(Vec::as_slice), Some(&b"b"[..]));
    assert_eq!(stat(&upper.join("d")).mode() & 0o7777, 0o710);
    for hidden in ["gone", "none", "d", ".", "name/x"] {
        let error = stack.put(Tar::new().link("new", hidden)).expect_err("no target");
        assert!(matches!(error, Error::InvalidLayer { .. }), "{hidden}: {error:?}");
    }
    let error =
        stack.put(Tar::new().file(".wh.name", b"").link("new", "name")).expect_err("hidden by the layer itself");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

fn types_are_replaced() {
    let kinds: [fn(Tar) -> Tar; 5] = [
        |t| t.file("x", b"file"),
        |t| t.dir("x", 0o755).file("x/below", b""),
        |t| t.symlink("x", "y"),
        |t| t.device("x", b'6', 0, 0),
        |t| t.file("y", b"y").link("x", "y"),
    ];
    for first in kinds {
        for second in kinds {
            for apart in [true, false] {
                let root = tempfile::tempdir().expect("a folder");
                let wanted = tempfile::tempdir().expect("a folder");
                if apart {
                    apply_to(root.path(), first(Tar::new()).finish()).expect("applied");
                    apply_to(root.path(), second(Tar::new()).finish()).expect("applied");
                } else {
                    apply_to(root.path(), second(first(Tar::new())).finish()).expect("applied");
                }
                apply_to(wanted.path(), second(Tar::new()).finish()).expect("applied");
                let _ = fs::remove_file(root.path().join("y"));
                let _ = fs::remove_file(wanted.path().join("y"));
                let list = |root: &Path| tree::list(root, tree::Times::NotOfFolders);
                tree::assert_same(&list(root.path()), &list(wanted.path()), "the second kind");
            }
        }
    }
}

/// Whiteouts are for lower layers, wherever in the archive they stand.
fn whiteouts_hide_below() {
    for whiteouts_first in [true, false] {
        let root = tempfile::tempdir().expect("a folder");
        let below =
            Tar::new().file("a", b"old").dir("d", 0o755).file("d/old", b"").file("d/both", b"old").file("e/x", b"");
        apply_to(root.path(), below.finish()).expect("applied");
        let whiteouts = |t: Tar| t.file(".wh.a", b"").file("d/.wh..wh..opq", b"").file(".wh.e", b"");
        let entries = |t: Tar| t.file("a", b"new").file("d/both", b"new").file("d/sub/new", b"new");
        let layer = if whiteouts_first { entries(whiteouts(Tar::new())) } else { whiteouts(entries(Tar::new())) };
        apply_to(root.path(), layer.finish()).expect("applied");
        let list = tree::list(root.path(), tree::Times::NotOfFolders);
        let names: Vec<_> = list.keys().map(String::as_str).collect();
        assert_eq!(names, ["", "a", "d", "d/both", "d/sub", "d/sub/new"], "whiteouts first: {whiteouts_first}");
        assert_eq!(fs::read(root.path().join("a")).expect("read"), b"new");
    }
    for bad in [".wh..wh.plnk", ".wh..wh.aufs", "d/.wh..wh.x"] {
        let root = tempfile::tempdir().expect("a folder");
        let error = apply_to(root.path(), Tar::new().file(bad, b"").finish()).expect_err("unknown");
        assert!(error.to_string().contains("unknown kind of whiteout"), "{error}");
    }
}

fn gzip_of(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("compressed");
    encoder.finish().expect("compressed")
}

fn packings() {
    let content = vec![b'z'; 300_000];
    // What follows the archive's end belongs to the digest.
    let archive = [Tar::new().file("a", &content).dir("d", 0o755).finish(), vec![0; 9000]].concat();
    let (front, back) = archive.split_at(100_000);
    let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let cases = [
        ("plain", Compression::None, archive.clone()),
        ("gzip", Compression::Gzip, gzip_of(&archive)),
        ("gzip members", Compression::Gzip, [gzip_of(front), gzip_of(back), gzip_of(b"")].concat()),
        ("zstd", Compression::Zstd, zstd_of(&archive)),
        ("zstd frames", Compression::Zstd, [zstd_of(front), skippable.clone(), zstd_of(back)].concat()),
        ("zstd skippable first", Compression::Zstd, [skippable.clone(), zstd_of(&archive), skippable].concat()),
    ];
    let mut seen: Option<Applied> = None;
    for (name, compression, bytes) in cases {
        for compression in [compression, Compression::Sniff] {
            let root = tempfile::tempdir().expect("a folder");
            let target = Target::folder(root.path()).expect("a target");
            let applied = apply(Dribble(&bytes), compression, &target, &Limits::default());
            let applied = applied.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!((applied.bytes, applied.entries), (archive.len() as u64, 2), "{name}");
            assert_eq!(*seen.get_or_insert_with(|| applied.clone()), applied, "{name}");
            assert_eq!(fs::read(root.path().join("a")).expect("read"), content, "{name}");
        }
    }
    // SHA-256 of 1024 zeros, which every image tool knows as the empty layer.
    let root = tempfile::tempdir().expect("a folder");
    let empty = apply_to(root.path(), vec![0; 1024]).expect("applied");
    assert_eq!(empty.diff_id(), "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef");
}

/// A reader that gives few bytes at a time, as networks do.
struct Dribble<'a>(&'a [u8]);

impl std::io::Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(self.0.len()).min(777);
        buffer[..length].copy_from_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Ok(length)
    }
}

fn media_types() {
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.config.v1+json", None),
        ("", None),
    ] {
        assert_eq!(Compression::from_media_type(media_type), expected, "{media_type}");
    }
}

fn bad_targets() {
    use estiba_storage::oci_spec::runtime::Mount;
    let mount = |kind: &str, source: &str, options: &[&str]| {
        let mut mount = Mount::default();
        mount.set_typ(Some(kind.into())).set_source(Some(source.into()));
        mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        mount
    };
    for mounts in [
        vec![],
        vec![mount("bind", "/", &["bind"]), mount("bind", "/", &["bind"])],
        vec![mount("bind", "/tmp", &["bind", "ro"])],
        vec![mount("overlay", "overlay", &["lowerdir=/tmp"])],
        vec![mount("overlay", "overlay", &["lowerdir=/a\\:b", "upperdir=/tmp"])],
        vec![mount("tmpfs", "tmpfs", &[])],
    ] {
        let error = Target::from_mounts(&mounts).expect_err("not a target");
        assert!(matches!(error, Error::UnsupportedMounts { .. }), "{error:?}");
    }
    let error = Target::from_mounts(&[mount("bind", "/no/such", &["bind"])]).expect_err("not there");
    assert!(error.to_string().contains("/no/such"), "{error}");
}

fn errors_name_the_entry() {
    let root = tempfile::tempdir().expect("a folder");
    let name = "x".repeat(300);
    let error = apply_to(root.path(), Tar::new().pax(&[("path", name.as_bytes())]).file("a", b"").finish());
    let error = error.expect_err("too long a name");
    assert!(matches!(&error, Error::Extract { .. }), "{error:?}");
    assert!(error.to_string().contains("xxx") && error.to_string().len() < 300, "{error}");
    assert!(std::error::Error::source(&error).is_some());
    assert!(!error.to_string().contains("os error"), "the cause is its own level: {error}");
    for compression in [Compression::Sniff, Compression::Gzip] {
        let target = Target::folder(root.path()).expect("a target");
        let reader = std::io::Read::chain(&b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..], Broken);
        let error = apply(reader, compression, &target, &Limits::default()).expect_err("broken");
        assert!(matches!(error, Error::ReadLayer { .. }), "{error:?}");
    }
}

/// A reader that fails.
struct Broken;

impl std::io::Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("the network"))
    }
}
