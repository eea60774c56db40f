//! Images as other programs write them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::home::{Home, Result, finish};
use crate::image::{Layer, Layout, OS_RELEASE, busybox, docker_archive};
use crate::need::{Need, find, text, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let skopeo = [Need::Busybox, Need::Program("skopeo")];
    vec![
        trial("image_in_an_oci_layout", &[Need::Busybox], layout),
        trial("image_in_an_oci_archive", &[Need::Busybox], oci_archive),
        trial("image_in_a_docker_archive", &[Need::Busybox], from_docker),
        trial("image_by_skopeo", &skopeo, skopeo_writes),
        trial("image_by_umoci", &[Need::Busybox, Need::Program("umoci")], umoci_writes),
        trial("layers_replace_and_remove", &[Need::Busybox], layers),
        trial("an_image_is_imported_once", &[Need::Busybox], once),
        trial("debian", &[Need::Campaign, Need::Variable("ESTIBA_DEBIAN"), Need::Program("skopeo")], debian),
    ]
}

fn prints_os_release(home: &Home, reference: &str) -> Result {
    home.run(&["run", "--rm", reference, "cat", "/etc/os-release"])?
        .expect_out(OS_RELEASE)
        .map_err(|error| format!("{reference}: {error}"))?;
    home.run(&["run", "--rm", reference, "sh", "-c", "exit 9"])?.expect_status(9)?;
    Ok(())
}

fn made(home: &Home) -> Result<Layout> {
    Layout::write(&home.folder().join("layout"), &[busybox()?])
}

fn layout(home: &Home) -> Result {
    let layout = made(home)?;
    prints_os_release(home, &layout.reference())?;
    // The only image of a layout needs no name.
    prints_os_release(home, &format!("oci:{}", text(&layout.folder)))
}

fn oci_archive(home: &Home) -> Result {
    let reference = made(home)?.archive(&home.folder().join("image.tar"))?;
    prints_os_release(home, &reference)
}

fn from_docker(home: &Home) -> Result {
    let reference = docker_archive(&home.folder().join("image.tar"), &[busybox()?])?;
    prints_os_release(home, &reference)
}

fn tool(program: &str, arguments: &[&str]) -> Result {
    let program = find(program).ok_or_else(|| format!("no {program}"))?;
    let ended = finish(Command::new(program).args(arguments))?;
    ended.expect_status(0)?;
    Ok(())
}

fn skopeo_writes(home: &Home) -> Result {
    let from = made(home)?.reference();
    for kind in ["oci", "oci-archive", "docker-archive"] {
        let path = text(&home.folder().join(format!("skopeo-{kind}")));
        let name = if kind == "docker-archive" { "test/image:1" } else { "one" };
        tool("skopeo", &["--insecure-policy", "copy", "--quiet", &from, &format!("{kind}:{path}:{name}")])?;
        prints_os_release(home, &format!("{kind}:{path}:{name}"))?;
    }
    Ok(())
}

fn umoci_writes(home: &Home) -> Result {
    let rootfs = home.folder().join("rootfs");
    for folder in ["bin", "etc"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    fs::copy(find("busybox").ok_or("no busybox")?, rootfs.join("bin/busybox"))?;
    for applet in ["sh", "cat"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    fs::write(rootfs.join("etc/os-release"), OS_RELEASE)?;
    let folder = text(&home.folder().join("umoci"));
    let image = format!("{folder}:one");
    tool("umoci", &["init", "--layout", &folder])?;
    tool("umoci", &["new", "--image", &image])?;
    tool("umoci", &["insert", "--image", &image, &text(&rootfs), "/"])?;
    tool("umoci", &["config", "--image", &image, "--config.env", "PATH=/bin"])?;
    prints_os_release(home, &format!("oci:{image}"))
}

/// Three layers: what the upper ones replace, hide one by one, and hide all at once.
fn layers(home: &Home) -> Result {
    let second = Layer::new()
        .folder("data/")?
        .file("data/a", 0o644, b"a\n")?
        .file("data/b", 0o644, b"b\n")?
        .folder("data/deep/")?
        .file("data/deep/c", 0o644, b"c\n")?
        .file("etc/os-release", 0o644, b"second\n")?
        .tar()?;
    let third = Layer::new()
        .file("data/.wh.a", 0o644, b"")?
        .folder("data/deep/")?
        .file("data/deep/.wh..wh..opq", 0o644, b"")?
        .file("data/deep/d", 0o600, b"d\n")?
        .tar()?;
    let reference = Layout::write(&home.folder().join("three"), &[busybox()?, second, third])?.reference();
    let script = "cd /data; ls; ls deep; cat b deep/d /etc/os-release";
    for snapshotter in ["overlay", "native"] {
        home.run(&["--snapshotter", snapshotter, "run", "--rm", &reference, "sh", "-c", script])?
            .expect_out("b\ndeep\nd\nb\nd\nsecond\n")
            .map_err(|error| format!("{snapshotter}: {error}"))?;
    }
    Ok(())
}

fn once(home: &Home) -> Result {
    let layout = made(home)?;
    prints_os_release(home, &layout.reference())?;
    let before = home.look();
    prints_os_release(home, &layout.reference())?;
    // The layer is not needed any more: what it held is unpacked, and its bytes are in our own content store.
    fs::remove_file(&layout.layer)?;
    prints_os_release(home, &layout.reference())?;
    home.settled_as(&before, |_| true)
}

/// A whole distribution: the folder that a debootstrap has made, packed by skopeo's and this test's own hands.
fn debian(home: &Home) -> Result {
    let tree = PathBuf::from(std::env::var_os("ESTIBA_DEBIAN").ok_or("no folder")?);
    let tar = home.folder().join("debian.tar");
    tool("tar", &["-C", &text(&tree), "--one-file-system", "--numeric-owner", "-cf", &text(&tar), "."])?;
    let layout = Layout::write(&home.folder().join("debian"), &[fs::read(&tar)?])?;
    let archive = format!("docker-archive:{}:debian:12", text(&home.folder().join("saved.tar")));
    tool("skopeo", &["--insecure-policy", "copy", "--quiet", &layout.reference(), &archive])?;
    let os_release = fs::read_to_string(tree.join("etc/os-release"))?;
    for reference in [layout.reference(), archive] {
        home.run(&["run", "--rm", &reference, "/bin/cat", "/etc/os-release"])?.expect_out(&os_release)?;
        home.run(&["run", "--rm", &reference, "/bin/bash", "-c", "exit 3"])?.expect_status(3)?;
        let packages = home.run(&["run", "--rm", &reference, "/usr/bin/dpkg", "-l"])?.expect_status(0)?;
        assert!(packages.out.lines().count() > 50, "{}", packages.out);
    }
    assert!(Path::new(&tree).join("bin").exists());
    Ok(())
}
