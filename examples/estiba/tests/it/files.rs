//! Files and images that go in and out: cp, diff, export, commit, import, save, load, volumes.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Trial;

use crate::home::{Home, Result, finish};
use crate::lifecycle::{IMAGE, background, inspected, load};
use crate::need::{Need, text, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("cp_both_ways", &[Need::Busybox], cp),
        trial("cp_follows_dockers_table", &[Need::Busybox], cp_table),
        trial("cp_of_hostile_links_stays_inside", &[Need::Busybox], cp_hostile),
        trial("cp_of_streams", &[Need::Busybox, Need::Program("tar")], cp_streams),
        trial("diff_and_commit", &[Need::Busybox], diff_and_commit),
        trial("export_and_import", &[Need::Busybox], export_and_import),
        trial("save_and_load", &[Need::Busybox], save_and_load),
        trial("volumes_outlive_containers", &[Need::Busybox], volumes),
    ]
}

fn cp(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    home.run(&["create", "--name", "idle", IMAGE, "cat", "/in/file"])?.expect_status(0)?;
    let folder = home.folder().join("in");
    fs::create_dir_all(folder.join("sub"))?;
    fs::write(folder.join("file"), "content\n")?;
    fs::write(folder.join("sub/other"), vec![7; 200_000])?;
    std::os::unix::fs::symlink("file", folder.join("link"))?;
    let source = text(&folder);
    for name in ["one", "idle"] {
        home.run(&["cp", &source, &format!("{name}:/")])?.expect_out("")?;
        let back = home.folder().join(format!("back-{name}"));
        home.run(&["cp", &format!("{name}:/in"), &text(&back)])?.expect_out("")?;
        assert_eq!(fs::read_to_string(back.join("file"))?, "content\n");
        assert_eq!(fs::read(back.join("sub/other"))?, vec![7; 200_000]);
        assert_eq!(fs::read_link(back.join("link"))?, Path::new("file"));
    }
    home.run(&["exec", "one", "sh", "-c", "cat /in/link; stat -c %u:%g /in/file"])?.expect_out("content\n0:0\n")?;
    // What was copied into one that did not run is there when it does.
    home.run(&["start", "-a", "idle"])?.expect_out("content\n")?;
    home.run(&["rm", "-f", "one", "idle"])?.expect_status(0)?;
    Ok(())
}

/// The rules that `docker cp` documents.
fn cp_table(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "mkdir /dir /src; echo x > /src/file; echo y > /old; sleep 1000"])?;
    let file = home.folder().join("file");
    fs::write(&file, "from outside\n")?;
    let file = text(&file);
    let out = home.folder().join("out");
    fs::create_dir(&out)?;
    let out = text(&out);
    for (from, to, status) in [
        (file.as_str(), "one:/new", 0),
        (&file, "one:/old", 0),
        (&file, "one:/dir", 0),
        (&file, "one:/dir/", 0),
        (&file, "one:/none/", 1),
        (&file, "one:/none/new", 1),
        (&out, "one:/old", 1),
        ("one:/src", &format!("{out}/copied"), 0),
        ("one:/src", &out, 0),
        ("one:/src/.", &out, 0),
        ("one:/src/file", &format!("{out}/none/"), 1),
        ("one:/nothing", &out, 1),
        ("nothing:/src", &out, 1),
        ("one:/src", "one:/dst", 1),
        (&out, &out, 1),
    ] {
        home.run(&["cp", from, to])?.expect_status(status).map_err(|error| format!("cp {from} {to}: {error}"))?;
    }
    home.run(&["exec", "one", "cat", "/new", "/old", "/dir/file"])?.expect_out(&"from outside\n".repeat(3))?;
    for name in ["copied/file", "src/file", "file"] {
        assert_eq!(fs::read_to_string(Path::new(&out).join(name))?, "x\n", "{name}");
    }
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

/// CVE-2018-15664, CVE-2019-14271: links that a container has made lead nowhere outside of it.
fn cp_hostile(home: &Home) -> Result {
    load(home)?;
    let outside = home.folder().join("outside");
    fs::create_dir(&outside)?;
    fs::write(outside.join("secret"), "secret")?;
    let target = text(&outside);
    let up = format!("{}{target}", "../".repeat(12));
    background(
        home,
        "one",
        &["sh", "-c", &format!("ln -s {target} /way; ln -s {up} /up; ln -s {target}/secret /secret; sleep 1000")],
    )?;
    let here = home.folder().join("here");
    fs::write(&here, "from here")?;
    for way in ["/way", "/up"] {
        // Followed inside of the container, where there is no such folder.
        home.run(&["cp", &format!("one:{way}/secret"), &text(&home.folder().join("stolen"))])?.expect_status(1)?;
        home.run(&["cp", &text(&here), &format!("one:{way}/secret")])?.expect_status(1)?;
        home.run(&["cp", &text(&here), &format!("one:{way}/new")])?.expect_status(1)?;
    }
    home.run(&["cp", "-L", "one:/secret", &text(&home.folder().join("stolen"))])?.expect_status(1)?;
    assert!(!home.folder().join("stolen").exists());
    let names: Vec<_> = fs::read_dir(&outside)?.flatten().map(|entry| entry.file_name()).collect();
    assert!(names == ["secret"] && fs::read(outside.join("secret"))? == b"secret", "{names:?}");
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn cp_streams(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "mkdir /dir; echo x > /dir/file; sleep 1000"])?;
    let file = home.folder().join("dir.tar");
    let ended = home.command(&["cp", "one:/dir", "-"]).stdout(fs::File::create(&file)?).status()?;
    assert!(ended.success());
    let listed = finish(Command::new("tar").arg("tf").arg(&file))?;
    assert_eq!(listed.out, "dir/\ndir/file\n");
    let ended = home.command(&["cp", "-", "one:/tmp"]).stdin(fs::File::open(&file)?).status()?;
    assert!(ended.success());
    home.run(&["exec", "one", "cat", "/tmp/dir/file"])?.expect_out("x\n")?;
    home.run(&["cp", "-", "one:/dir/file"])?.expect_status(1)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn diff_and_commit(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    home.run(&["diff", "one"])?.expect_out("")?;
    home.run(&["exec", "one", "sh", "-c", "echo new > /new; rm /etc/os-release; mkdir /made; touch /made/inside"])?
        .expect_status(0)?;
    home.run(&["diff", "one"])?.expect_out("C /etc\nD /etc/os-release\nA /made\nA /made/inside\nA /new\n")?;
    let words =
        ["commit", "-m", "said", "-a", "me", "-c", "ENV X=1", "-c", "CMD [\"cat\", \"/new\"]", "one", "changed:1"];
    let id = home.run(&words)?.expect_status(0)?.out;
    assert!(id.starts_with("sha256:"), "{id}");
    home.run(&["run", "--rm", "changed:1"])?.expect_out("new\n")?;
    home.run(&["run", "--rm", "changed:1", "sh", "-c", "echo $X; test -e /etc/os-release || echo gone"])?
        .expect_out("1\ngone\n")?;
    home.run(&["image", "inspect", "-f", "{{.Id}} {{.Author}} {{.Comment}} {{json .Config.Cmd}}", "changed:1"])?
        .expect_out(&format!("{} me said [\"cat\",\"/new\"]\n", id.trim()))?;
    // It goes on meanwhile and after.
    assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "running");
    home.run(&["commit", "-c", "RUN true", "one", "x"])?.expect_status(1)?;
    home.run(&["commit", "nothing", "x"])?.expect_status(1)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    home.run(&["rmi", "changed:1"])?.expect_status(0)?;
    Ok(())
}

fn export_and_import(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "echo x > /file; sleep 1000"])?;
    let file = home.folder().join("one.tar");
    home.run(&["export", "-o", &text(&file), "one"])?.expect_out("")?;
    let id = home.run(&["import", "-c", "CMD [\"cat\", \"/file\"]", "-c", "ENV PATH=/bin", &text(&file), "flat:1"])?;
    assert!(id.expect_status(0)?.out.starts_with("sha256:"));
    home.run(&["run", "--rm", "flat:1"])?.expect_out("x\n")?;
    let history = home.run(&["history", "-q", "flat:1"])?.expect_status(0)?;
    assert_eq!(history.out.lines().count(), 1);
    // From one to the other.
    let mut import = home.command(&["import", "-", "flat:2"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let ended = home.command(&["export", "one"]).stdout(import.stdin.take().ok_or("no stdin")?).status()?;
    assert!(ended.success() && import.wait()?.success());
    home.run(&["run", "--rm", "flat:2", "/bin/cat", "/file"])?.expect_out("x\n")?;
    // A file that cannot be written is not half there.
    home.run(&["export", "-o", "/no/such/folder/file", "one"])?.expect_status(1)?;
    home.run(&["import", "/no/such/file", "x"])?.expect_status(1)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    home.run(&["rmi", "flat:1", "flat:2"])?.expect_status(0)?;
    Ok(())
}

fn save_and_load(home: &Home) -> Result {
    load(home)?;
    home.run(&["tag", IMAGE, "other:2"])?.expect_status(0)?;
    let file = home.folder().join("saved.tar");
    home.run(&["save", "-o", &text(&file), IMAGE, "other:2", "embedded:hello"])?.expect_out("")?;
    let id =
        |name: &str| -> Result<String> { Ok(home.run(&["images", "-q", "--no-trunc", name])?.expect_status(0)?.out) };
    let before = id("other:2")?;
    home.run(&["rmi", IMAGE, "other:2"])?.expect_status(0)?;
    assert_eq!(id("other")?, "");
    let loaded = home.run(&["load", "-i", &text(&file)])?.expect_status(0)?.out;
    assert!(
        loaded.contains("Loaded image: other:2\n") && loaded.contains("Loaded image: test/busybox:1\n"),
        "{loaded}"
    );
    assert_eq!(id("other:2")?, before);
    home.run(&["run", "--rm", "other:2", "true"])?.expect_status(0)?;
    // Through a pipe.
    let mut loading = home.command(&["load"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    loading.stdin.take().ok_or("no stdin")?.write_all(&fs::read(&file)?)?;
    assert!(loading.wait()?.success());
    home.run(&["save", "-o", &text(&home.folder().join("not")), "nothing"])?.expect_status(1)?;
    assert!(!home.folder().join("not").exists());
    home.run(&["load", "-i", "/no/such/file"])?.expect_status(1)?;
    home.run(&["rmi", IMAGE, "other:2"])?.expect_status(0)?;
    Ok(())
}

fn volumes(home: &Home) -> Result {
    load(home)?;
    home.run(&["volume", "create", "--label", "a=b", "data"])?.expect_out("data\n")?;
    home.run(&["run", "--rm", "-v", "data:/data", IMAGE, "sh", "-c", "echo kept > /data/file"])?.expect_status(0)?;
    home.run(&["run", "--rm", "--mount", "type=volume,src=data,dst=/x,readonly", IMAGE, "cat", "/x/file"])?
        .expect_out("kept\n")?;
    home.run(&["run", "--name", "own", "-v", "/own", IMAGE, "touch", "/own/file"])?.expect_status(0)?;
    let own = inspected(home, "own", "{{range .Mounts}}{{.Name}}{{end}}")?;
    assert_eq!(own.len(), 64, "{own}");
    home.run(&["volume", "ls", "-q"])?.expect_status(0)?;
    home.run(&["volume", "ls", "-q", "-f", "label=a"])?.expect_out("data\n")?;
    home.run(&["volume", "ls", "-q", "-f", "dangling=true"])?.expect_out("data\n")?;
    let path = home.run(&["volume", "inspect", "-f", "{{.Mountpoint}} {{.Labels}}", "data"])?.expect_status(0)?.out;
    let (path, labels) = path.trim().split_once(' ').ok_or("no path")?;
    assert_eq!((labels, fs::metadata(Path::new(path).join("file"))?.size()), ("map[a:b]", 5));
    home.run(&["ps", "-a", "--filter", &format!("volume={own}"), "--format", "{{.Names}} {{.LocalVolumes}}"])?
        .expect_out("own 1\n")?;
    home.run(&["volume", "rm", &own])?.expect_status(1)?;
    home.run(&["rm", "-v", "own"])?.expect_status(0)?;
    home.run(&["volume", "inspect", &own])?.expect_status(1)?;
    home.run(&["volume", "prune", "-f"])?.expect_out("Total reclaimed space: 0B\n")?;
    home.run(&["volume", "prune", "-af"])?.expect_status(0)?;
    home.run(&["volume", "ls", "-q"])?.expect_out("")?;
    home.run(&["volume", "rm", "-f", "nothing"])?.expect_status(0)?;
    home.run(&["volume", "rm", "nothing"])?.expect_status(1)?;
    Ok(())
}
