//! Bad input: one line that names the thing, an exit status, nothing left behind.

use std::fs;
use std::os::unix::process::CommandExt;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::home::{Ended, HELLO, Home, Result, finish, wait};
use crate::image::{Layer, Layout, busybox, docker_archive};
use crate::need::{Need, find, text, trial};
use crate::running::started;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("refuses_what_is_no_image", &[], no_image),
        trial("refuses_a_damaged_image", &[], damaged),
        trial("refuses_a_damaged_docker_archive", &[], damaged_docker_archive),
        trial("a_hostile_layer_stays_inside", &[], hostile),
        trial("a_command_that_cannot_be_executed", &[Need::Busybox], commands),
        trial("refuses_a_name_that_is_taken", &[], name_taken),
        trial("refuses_wrong_options", &[], options),
        trial("refuses_a_cgroup_that_is_not_the_users", &[], not_root),
        trial("refuses_what_is_no_shim_runtime_or_folder", &[Need::Busybox], no_shim_no_runtime_no_folder),
        trial("refuses_root_without_privileges", &[Need::Program("setpriv")], capabilities),
    ]
}

/// The run was refused in one line that holds the words.
pub(crate) fn refused(ended: Ended, status: i32, words: &[&str]) -> Result {
    let ended = ended.expect_status(status)?;
    let one_line = ended.err.lines().count() == 1 && ended.err.starts_with("estiba: ");
    // What only this program's authors understand, and the id of a container that there is not any more.
    let is_short_id = |word: &str| word.len() == 12 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if ended.err.contains("(os error")
        || ended.err.split_whitespace().any(|word| is_short_id(word.trim_matches(|c: char| !c.is_alphanumeric())))
    {
        return Err(format!("a word says nothing in: {}", ended.err).into());
    }
    let lower = ended.err.to_lowercase();
    let missing: Vec<_> = words.iter().filter(|word| !lower.contains(&word.to_lowercase())).collect();
    if one_line && missing.is_empty() && ended.out.is_empty() {
        return Ok(());
    }
    Err(format!("{missing:?} is not in what it said:\n{}{}", ended.err, ended.out).into())
}

/// It is refused and leaves all as it was.
fn refused_cleanly(home: &Home, what: &str, reference: &str, words: &[&str]) -> Result {
    let before = home.look();
    refused(home.run(&["run", "--rm", reference, "true"])?, 125, words)
        .and_then(|()| home.settled_as(&before, |_| true))
        .map_err(|error| format!("{what}: {error}").into())
}

fn no_image(home: &Home) -> Result {
    let folder = text(home.folder());
    let (empty, garbage) = (home.folder().join("empty"), home.folder().join("garbage"));
    fs::create_dir(&empty)?;
    fs::write(&garbage, vec![0x5a; 4096])?;
    let (empty, garbage) = (text(&empty), text(&garbage));
    let layout = text(&Layout::write(&home.folder().join("layout"), &[layer(b"a layout")?])?.folder);
    let cases = [
        (format!("oci:{empty}"), vec![empty.as_str()]),
        (format!("oci:{folder}/nowhere"), vec!["nowhere"]),
        (format!("oci:{garbage}"), vec![garbage.as_str()]),
        (format!("oci-archive:{folder}/nowhere"), vec!["nowhere", "no such file"]),
        (format!("oci-archive:{garbage}"), vec![garbage.as_str()]),
        (format!("docker-archive:{garbage}"), vec![garbage.as_str()]),
        (format!("docker-archive:{empty}"), vec![empty.as_str()]),
        ("docker-archive:/dev/null".to_owned(), vec!["/dev/null"]),
        ("embedded:nothing".to_owned(), vec!["embedded:nothing", "embedded:hello"]),
        (layout.clone(), vec!["did you mean oci:/"]),
        ("oci:".to_owned(), vec!["oci:"]),
        ("some/UPPER".to_owned(), vec!["some/UPPER"]),
    ];
    for (reference, words) in cases {
        refused_cleanly(home, &reference, &reference, &words)?;
    }
    // Where a person would look for an image of that name, and at paths as they were typed.
    for (reference, words) in [
        ("layout", &["did you mean oci:./layout?"][..]),
        ("./layout", &["did you mean oci:./layout?"]),
        ("docker-archive:./garbage", &["./garbage"]),
        ("oci-archive:garbage", &["estiba: cannot use the image oci-archive:garbage"]),
        ("oci:./empty", &["./empty"]),
    ] {
        let ended = finish(home.command(&["run", "--rm", reference, "true"]).current_dir(home.folder()))?;
        refused(ended, 125, words).map_err(|error| format!("{reference}: {error}"))?;
    }
    Ok(())
}

fn layer(bytes: &[u8]) -> Result<Vec<u8>> {
    Layer::new().file("file", 0o644, bytes)?.tar()
}

/// What to do about a damaged image.
const AGAIN: &str = "copy the image again";

fn damaged(home: &Home) -> Result {
    type Damage = fn(&Layout) -> Result;
    let cases: [(&str, Damage, &[&str]); 9] = [
        ("a byte of the layer", |layout| flip(&layout.layer), &["sha256:", AGAIN]),
        ("a byte of the configuration", |layout| flip(&layout.config), &["sha256:", AGAIN]),
        ("a byte of the manifest", |layout| flip(&layout.manifest), &["sha256:", AGAIN]),
        ("a truncated layer", |layout| truncate(&layout.layer), &["sha256:", AGAIN]),
        ("a truncated manifest", |layout| truncate(&layout.manifest), &["sha256:", AGAIN]),
        ("a layer that is longer", |layout| lengthen(&layout.layer), &["sha256:", AGAIN]),
        ("no layer", |layout| Ok(fs::remove_file(&layout.layer)?), &["sha256:", "copy it again"]),
        ("a broken index", |layout| Ok(fs::write(layout.folder.join("index.json"), "{")?), &["index.json", AGAIN]),
        ("an index of nothing", |layout| empty_index(layout), &[]),
    ];
    for (number, (what, damage, words)) in cases.into_iter().enumerate() {
        // Bytes of its own: what an earlier case has brought in must not serve a later one.
        let layer = layer(format!("{what} {number}").repeat(1000).as_bytes())?;
        let layout = Layout::write(&home.folder().join(format!("damaged-{number}")), &[layer])?;
        damage(&layout)?;
        refused_cleanly(home, what, &layout.reference(), words)?;
    }
    let wrong = Layout::write_changed(&home.folder().join("wrong-diff-id"), &[layer(b"wrong diff id")?], |config| {
        config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "0".repeat(64)));
    })?;
    refused(home.run(&["run", "--rm", &wrong.reference(), "true"])?, 125, &["sha256:"])?;
    let few = Layout::write_changed(&home.folder().join("few-diff-ids"), &[layer(b"few diff ids")?], |config| {
        config["rootfs"]["diff_ids"] = json!([]);
    })?;
    refused(home.run(&["run", "--rm", &few.reference(), "true"])?, 125, &["layer"])
}

fn flip(path: &std::path::Path) -> Result {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(fs::write(path, bytes)?)
}

fn truncate(path: &std::path::Path) -> Result {
    let bytes = fs::read(path)?;
    Ok(fs::write(path, &bytes[..bytes.len() / 2])?)
}

fn lengthen(path: &std::path::Path) -> Result {
    let mut bytes = fs::read(path)?;
    bytes.extend([0; 100]);
    Ok(fs::write(path, bytes)?)
}

fn empty_index(layout: &Layout) -> Result {
    Ok(fs::write(layout.folder.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#)?)
}

fn damaged_docker_archive(home: &Home) -> Result {
    let file = home.folder().join("saved.tar");
    let reference = docker_archive(&file, &[layer(&b"x".repeat(50_000))?])?;
    let whole = fs::read(&file)?;
    // The manifest is the last entry; without the end nothing says what the image is.
    for (what, length) in [("half", whole.len() / 2), ("a header", 512), ("nothing", 0)] {
        fs::write(&file, &whole[..length])?;
        refused_cleanly(home, what, &reference, &["saved.tar"])?;
    }
    let mut flipped = whole.clone();
    let at = flipped.windows(100).position(|window| window == [b'x'; 100]).ok_or("the layer is not in the archive")?;
    flipped[at] = b'y';
    fs::write(&file, flipped)?;
    refused(home.run(&["run", "--rm", &reference, "true"])?, 125, &["sha256:"])
}

/// Whatever a layer says, no file outside of the container's root is made, changed or read.
fn hostile(home: &Home) -> Result {
    let outside = home.folder().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("secret"), "secret")?;
    let target = text(&outside);
    let up = format!("{}{target}", "../".repeat(12));
    // A ustar name has 100 bytes.
    assert!(up.len() < 90, "the temporary folder's path is too long for this test: {up}");
    let layers = [
        ("dot dot", Layer::new().file(&format!("{up}/written"), 0o644, b"x")?),
        ("absolute", Layer::new().file(&format!("{target}/written"), 0o644, b"x")?),
        ("through a link", Layer::new().link("way", &target)?.file("way/written", 0o644, b"x")?),
        ("through a link up", Layer::new().link("way", &up)?.file("way/written", 0o644, b"x")?),
        ("over a link", Layer::new().link("written", &format!("{target}/written"))?.file("written", 0o644, b"x")?),
        ("a whiteout outside", Layer::new().file(&format!("{up}/.wh.secret"), 0o644, b"")?),
        ("a whiteout through a link", Layer::new().link("way", &target)?.file("way/.wh.secret", 0o644, b"")?),
        ("an opaque mark outside", Layer::new().link("way", &target)?.file("way/.wh..wh..opq", 0o644, b"")?),
        ("a hard link to outside", Layer::new().hard_link("got", &format!("{up}/secret"))?.file("got", 0o644, b"x")?),
        (
            "a hard link through a link",
            Layer::new().link("way", &target)?.hard_link("got", "way/secret")?.file("got", 0o644, b"x")?,
        ),
    ];
    let program = Layer::new().file("marker", 0o644, b"")?.tar()?;
    for (number, (what, layer)) in layers.into_iter().enumerate() {
        let folder = home.folder().join(format!("hostile-{number}"));
        let layout = Layout::write(&folder, &[program.clone(), layer.tar()?])?;
        // Inside there is no program, so that it fails in any case: 127, or 125 where the layer is refused.
        let ended = home.run(&["run", "--rm", &layout.reference(), "/nothing"])?;
        let status = ended.status.code().unwrap_or_default();
        assert!(matches!(status, 125 | 127) && ended.err.lines().count() == 1, "{what}: {ended:?}");
        let names: Vec<_> = fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
        let untouched = names == ["secret"] && fs::read(outside.join("secret"))? == b"secret";
        assert!(untouched, "{what}: a layer reached outside: {names:?}");
        let links = std::os::unix::fs::MetadataExt::nlink(&fs::metadata(outside.join("secret"))?);
        assert_eq!(links, 1, "{what}: a layer linked to a file outside");
    }
    Ok(())
}

fn commands(home: &Home) -> Result {
    let scripts = Layer::new()
        .file("etc/script", 0o755, b"#! /no/such/interp -x\necho here\n")?
        .file("bin/script", 0o755, b"#!/bin/other-script\n")?
        .file("bin/other-script", 0o755, b"#!/no/other/interp\n")?
        .tar()?;
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?, scripts])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    let before = home.look();
    for (command, status, words) in [
        ("no-such-program", 127, &["cannot run no-such-program", "not found in $PATH of the image"][..]),
        ("/etc/script", 127, &["/etc/script", "interpreter /no/such/interp is not there"]),
        ("script", 127, &["script", "interpreter /no/other/interp is not there"]),
        ("/no/such/program", 127, &["/no/such/program"]),
        ("/etc/not-a-program", 126, &["/etc/not-a-program", "permission denied"]),
        ("/etc", 126, &["/etc"]),
        ("/etc/broken-program", 126, &["/etc/broken-program"]),
    ] {
        refused(home.run(&["run", "--rm", &image, command])?, status, words)
            .and_then(|()| home.settled_as(&before, |_| true))
            .map_err(|error| format!("{command}: {error}"))?;
    }
    // One that stays keeps its words, and the way to them.
    home.run(&["create", "--name", "kept", &image, "no-such-program"])?.expect_status(0)?;
    let ended = home.run(&["start", "kept"])?.expect_status(1)?;
    assert!(ended.err.contains("not found in $PATH of the image"), "{}", ended.err);
    let kept = home.run(&["inspect", "-f", "{{.State.ExitCode}} {{.State.Error}}", "kept"])?.expect_status(0)?;
    assert!(kept.out.starts_with("127 cannot run no-such-program: "), "{}", kept.out);
    home.run(&["rm", "kept"])?.expect_status(0)?;
    Ok(())
}

/// What is given as something that it is not.
fn no_shim_no_runtime_no_folder(home: &Home) -> Result {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    let before = home.look();
    let file = home.folder().join("file");
    fs::write(&file, "")?;
    let (folder_on_file, file_on_folder) =
        (format!("{}:/bin/busybox", text(home.folder())), format!("{}:/etc", text(&file)));
    let cases: [(&[&str], &[&str]); 7] = [
        (&["--shim", "/bin/true"], &["/bin/true", "does not serve as a shim", "containerd-shim-estiba-v2"]),
        (&["--shim", "/bin/false"], &["/bin/false", "shim"]),
        (&["--runtime", "/bin/true"], &["/bin/true", "as an OCI runtime would"]),
        (&["--runtime", "/bin/false"], &["/bin/false", "as an OCI runtime would"]),
        (&["-v", &folder_on_file], &["/bin/busybox", "the source is a folder, and the target is a file"]),
        (&["-v", &file_on_folder], &["/etc", "the source is a file, and the target is a folder"]),
        (&["-u", "0:nosuch"], &["no group \"nosuch\""]),
    ];
    for (options, words) in cases {
        let arguments = [&["run", "--rm"], options, &[&image, "true"]].concat();
        refused(home.run(&arguments)?, 125, words)
            .and_then(|()| home.settled_as(&before, |_| true))
            .map_err(|error| format!("{options:?}: {error}"))?;
    }
    Ok(())
}

/// Root that was left too little of its privileges is told what it lacks.
fn capabilities(home: &Home) -> Result {
    let before = home.look();
    for (missing, name) in [("sys_admin", "CAP_SYS_ADMIN"), ("mknod", "CAP_MKNOD")] {
        let mut command = std::process::Command::new(find("setpriv").ok_or("no setpriv")?);
        command.args([
            format!("--bounding-set=-{missing}"),
            format!("--inh-caps=-{missing}"),
            Home::program().to_owned(),
        ]);
        command.args(home.options()).args(["run", "--rm", HELLO, "exit", "0"]);
        refused(finish(&mut command)?, 125, &["needs", name])
            .and_then(|()| home.settled_as(&before, |_| true))
            .map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn name_taken(home: &Home) -> Result {
    let arguments = ["run", "--rm", "--name", "taken", HELLO, "signal-wait"];
    let (mut holder, _out) = started(home, &arguments, "ready")?;
    let before = home.look();
    refused(home.run(&["run", "--rm", "--name", "taken", HELLO, "exit", "0"])?, 125, &["taken"])?;
    home.settled_as(&before, |_| true)?;
    kill(Pid::from_raw(holder.id() as i32), Signal::SIGTERM)?;
    assert_eq!(wait(&mut holder)?.code(), Some(0));
    // Free again with its owner's end.
    home.run(&["run", "--rm", "--name", "taken", HELLO, "exit", "0"])?.expect_status(0)?;
    Ok(())
}

fn options(home: &Home) -> Result {
    let before = home.look();
    let cases: [(&[&str], &[&str]); 26] = [
        (&["--network", "nothing-there"], &["nothing-there"]),
        (&["--memory", "lots"], &["lots"]),
        (&["--memory", "1k"], &["memory"]),
        (&["--cpus", "-1"], &["cpus"]),
        (&["--pids-limit", "many"], &["many"]),
        (&["-v", "relative:/x:nonsense"], &["nonsense"]),
        (&["-v", "/tmp:relative"], &["relative"]),
        (&["-v", "named/path:/x"], &["named/path"]),
        (&["--cpus", "0.001"], &["cpus", "0.01"]),
        (&["-u", "99999999999"], &["99999999999", "4294967294"]),
        (&["--runtime", "/no/such/runtime"], &["/no/such/runtime", "/usr/sbin/runc"]),
        (&["--shim", "/no/such/shim"], &["/no/such/shim"]),
        (&["-p", "80:99999"], &["80:99999", "65535"]),
        (&["--gpus", "all"], &["--gpus"]),
        (&["--restart", "always"], &["--rm", "--restart"]),
        (&["--restart", "sometimes"], &["sometimes", "unless-stopped"]),
        (&["--stop-signal", "NOPE"], &["NOPE", "SIGTERM"]),
        (&["--rm=maybe"], &["maybe", "true or false", "estiba run --help"]),
        (&["-d", "-a", "stdout"], &["--attach", "--detach"]),
        (&["--log-driver", "syslog"], &["syslog", "json-file"]),
        (&["-u", "nobody-of-this-name"], &["nobody-of-this-name"]),
        (&["-w", "relative"], &["relative"]),
        (&["--name", "a/b"], &["a/b"]),
        (&["--env-file", "/no/such/file"], &["/no/such/file"]),
        (&["--runtime", "no-such-runtime"], &["no-such-runtime"]),
        (&["--no-such-option"], &["--no-such-option"]),
    ];
    for (options, words) in cases {
        let arguments = [&["run", "--rm"], options, &[HELLO, "exit", "0"]].concat();
        refused(home.run(&arguments)?, 125, words)
            .and_then(|()| home.settled_as(&before, |_| true))
            .map_err(|error| format!("{options:?}: {error}"))?;
    }
    Ok(())
}

fn not_root(home: &Home) -> Result {
    // A folder of its own, which it may write to: without root, but with a cgroup that is root's.
    let folder = tempfile::Builder::new().prefix("estiba-test-").tempdir()?;
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534))?;
    let program = folder.path().join("estiba");
    fs::copy(Home::program(), &program)?;
    let mut command = std::process::Command::new(&program);
    command.args(["--root", &text(&folder.path().join("root")), "--cgroup-parent", home.cgroup()]);
    command.args(["run", "--rm", HELLO, "exit", "0"]).uid(65534).gid(65534).current_dir("/");
    let ended = finish(&mut command)?.expect_status(125)?;
    assert!(ended.err.contains("cgroup") && ended.err.contains("Permission denied"), "{}", ended.err);
    Ok(())
}
