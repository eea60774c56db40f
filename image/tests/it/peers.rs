//! skopeo and umoci read what this crate writes, and it reads what they write.

use std::path::{Path, PathBuf};
use std::process::Command;

use estiba_image::{
    Commit, DockerArchive, Export, Image, Imported, Layout, Provider, Reference, Source, digest_of, import_layer,
};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::fixture::{Files, check_stored, platform};

/// A test's name, the programs that it needs, and itself.
type Test = (&'static str, &'static [&'static str], fn());

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [Test; 8] = [
        ("peers::skopeo_reads_our_layout", &["skopeo"], skopeo_reads_our_layout),
        ("peers::umoci_reads_and_changes_our_layout", &["umoci"], umoci_reads_and_changes_our_layout),
        ("peers::we_read_what_umoci_writes", &["umoci", "busybox"], we_read_what_umoci_writes),
        ("peers::we_read_skopeos_archives", &["umoci", "busybox", "skopeo"], we_read_skopeos_archives),
        ("peers::skopeo_reads_our_archives", &["skopeo"], skopeo_reads_our_archives),
        ("peers::gnu_tar_and_umoci_read_our_archives", &["tar", "umoci"], gnu_tar_and_umoci_read_our_archives),
        ("peers::skopeo_and_umoci_read_what_we_commit", &["skopeo", "umoci"], skopeo_and_umoci_read_what_we_commit),
        ("peers::we_read_what_gnu_tar_packs", &["tar"], we_read_what_gnu_tar_packs),
    ];
    let trial = |(name, tools, test): Test| {
        let missing: Vec<&str> = tools.iter().copied().filter(|tool| find(tool).is_none()).collect();
        let kind = if missing.is_empty() { String::new() } else { format!("needs {}", missing.join(" and ")) };
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_kind(kind)
        .with_ignored_flag(!missing.is_empty())
    };
    tests.into_iter().map(trial).collect()
}

pub(crate) fn find(tool: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(tool)).find(|path| path.is_file())
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    output.stdout
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn import(source: &str, store: &Layout) -> Imported {
    source
        .parse::<Source>()
        .expect("a source")
        .import_for(&platform(), store)
        .unwrap_or_else(|error| panic!("{source}: {error}"))
}

/// A store with two images, one with a full name.
fn store(folder: &TempDir) -> (Layout, Imported, Imported) {
    let mut files = Files::default();
    let (one, two) = (files.image("one", "amd64"), files.image("two", "amd64"));
    files.list(&[(Some("docker.io/library/one:1"), one.manifest), (Some("two"), two.manifest)]);
    let dir = folder.path().join("dir");
    files.write(&dir);
    let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
    let one = import(&format!("oci:{}:docker.io/library/one:1", text(&dir)), &store);
    let two = import(&format!("oci:{}:two", text(&dir)), &store);
    (store, one, two)
}

fn skopeo_reads_our_layout() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, one, two) = store(&folder);
    // By a name of ours that has the grammar that skopeo wants: a reference, or a plain word.
    store.tag("word", &two.manifest).expect("sets");
    for (imported, name) in [(&one, "docker.io/library/one:1"), (&two, "word")] {
        let source = format!("oci:{}:{name}", text(store.path()));
        let raw = run("skopeo", &["inspect", "--raw", &source]);
        assert_eq!(digest_of(&raw), *imported.manifest.digest());
        let target = format!("oci:{}:copy", text(&folder.path().join("copy")));
        run("skopeo", &["copy", "--insecure-policy", "--preserve-digests", "--quiet", &source, &target]);
        let copied = run("skopeo", &["inspect", "--raw", &target]);
        assert_eq!(digest_of(&copied), *imported.manifest.digest());
        std::fs::remove_dir_all(folder.path().join("copy")).expect("remove");
    }
    // skopeo adds an image to our store; ours stay, and we see its.
    let theirs = format!("oci:{}:theirs", text(store.path()));
    run("skopeo", &["copy", "--insecure-policy", "--quiet", &format!("oci:{}:word", text(store.path())), &theirs]);
    let names = store.names().expect("lists");
    assert!(["theirs", &one.name, &two.name].iter().all(|name| names.iter().any(|there| there == name)), "{names:?}");
}

fn umoci_reads_and_changes_our_layout() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, one, two) = store(&folder);
    let listed = String::from_utf8(run("umoci", &["ls", "--layout", text(store.path())])).expect("UTF-8");
    for imported in [&one, &two] {
        assert!(listed.lines().any(|line| line == imported.name), "{listed}");
    }
    let image = format!("{}:{}", text(store.path()), one.name);
    let said = String::from_utf8(run("umoci", &["stat", "--json", "--image", &image])).expect("UTF-8");
    assert!(said.contains("history"), "{said}");
    run("umoci", &["tag", "--image", &image, "theirs"]);
    assert_eq!(store.resolve("theirs").expect("looks").expect("is there").digest(), one.manifest.digest());
    store.tag("again", &two.manifest).expect("sets");
    let listed = String::from_utf8(run("umoci", &["ls", "--layout", text(store.path())])).expect("UTF-8");
    assert_eq!(listed.lines().count(), 4, "{listed}");
    run("umoci", &["gc", "--layout", text(store.path())]);
    check_stored(&store, &one.manifest);
    check_stored(&store, &two.manifest);
    Layout::open_or_create(store.path()).expect("is still one of ours");
}

/// A layout that umoci made, with an image of busybox.
fn umoci_busybox(folder: &Path) -> PathBuf {
    let layout = folder.join("umoci");
    let image = format!("{}:busybox", text(&layout));
    run("umoci", &["init", "--layout", text(&layout)]);
    run("umoci", &["new", "--image", &image]);
    let busybox = find("busybox").expect("is there");
    run("umoci", &["insert", "--rootless", "--image", &image, text(&busybox), "/bin/busybox"]);
    run("umoci", &["insert", "--rootless", "--image", &image, text(&busybox), "/bin/sh"]);
    let arguments =
        ["--config.cmd", "/bin/sh", "--config.env", "A=b", "--config.label", "x=y", "--architecture", "amd64"];
    run("umoci", &[&["config", "--image", &image], &arguments[..]].concat());
    layout
}

fn we_read_what_umoci_writes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = umoci_busybox(folder.path());
    let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
    for tag in [":busybox", ""] {
        let imported = import(&format!("oci:{}{tag}", text(&layout)), &store);
        assert_eq!(check_stored(&store, &imported.manifest), 4);
        let listed = Layout::open(&layout).expect("opens").resolve("busybox").expect("looks").expect("is there");
        assert_eq!(imported.manifest.digest(), listed.digest());
        let image = Image::load(&store, &imported.manifest, &platform()).expect("loads");
        let config = image.config().oci.config().as_ref().expect("is there");
        assert_eq!(config.cmd().as_deref(), Some(&["/bin/sh".to_owned()][..]));
    }
}

fn we_read_skopeos_archives() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let layout = umoci_busybox(folder.path());
    let from = format!("oci:{}:busybox", text(&layout));
    let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
    let original = import(&from, &store);

    let archive = folder.path().join("oci.tar");
    run("skopeo", &["copy", "--insecure-policy", "--quiet", &from, &format!("oci-archive:{}:b", text(&archive))]);
    let imported = import(&format!("oci-archive:{}:b", text(&archive)), &store);
    assert_eq!(imported.manifest.digest(), original.manifest.digest());

    // In Docker's format skopeo converts; what it says the config is, we must say too.
    let archive = folder.path().join("docker.tar");
    let target = format!("docker-archive:{}", text(&archive));
    run("skopeo", &["copy", "--insecure-policy", "--quiet", &from, &format!("{target}:busybox:1")]);
    let imported = import(&target, &store);
    assert_eq!(imported.name, "docker.io/library/busybox:1");
    let image = Image::load(&store, &imported.manifest, &platform()).expect("loads");
    let config = run("skopeo", &["inspect", "--raw", "--config", &format!("{target}:busybox:1")]);
    assert_eq!(*image.id(), digest_of(&config));
    let before = Image::load(&store, &original.manifest, &platform()).expect("loads");
    assert_eq!(image.chain_ids(), before.chain_ids(), "the same tars, so the same chain");
    assert_eq!(check_stored(&store, &imported.manifest), 4);
    let opened = DockerArchive::open(&archive).expect("opens");
    assert!(opened.location().ends_with("docker.tar"));
}

fn we_read_what_gnu_tar_packs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, one, _) = store(&folder);
    let dir = folder.path().join("dir");
    for format in ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"] {
        for compress in ["--no-auto-compress", "--gzip"] {
            let archive = folder.path().join("packed");
            let format = format!("--format={format}");
            run("tar", &["-C", text(&dir), &format, compress, "-cf", text(&archive), "."]);
            let imported = import(&format!("oci-archive:{}:docker.io/library/one:1", text(&archive)), &store);
            assert_eq!(imported.manifest.digest(), one.manifest.digest(), "{format} {compress}");
        }
    }
}

/// Archives of a store, of each kind, with what is in them.
fn archives(folder: &Path) -> (Layout, Vec<Export>, Vec<(&'static str, PathBuf)>) {
    let (store, exports) = crate::save::store(folder);
    let mut files = Vec::new();
    for (kind, writer) in crate::save::WRITERS {
        let mut bytes = Vec::new();
        writer(&store, &exports, &platform(), &mut bytes).expect("writes");
        let path = folder.join(format!("{kind}.tar"));
        std::fs::write(&path, bytes).expect("write");
        files.push((kind, path));
    }
    (store, exports, files)
}

fn skopeo_reads_our_archives() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, exports, archives) = archives(folder.path());
    let target = folder.path().join("target");
    for (kind, path) in archives {
        for (position, export) in exports.iter().enumerate() {
            let mut names: Vec<String> = export.names.iter().map(ToString::to_string).collect();
            // skopeo 1.9 knows images without a name only in Docker's archive.
            if kind == "docker" {
                names.push(format!("@{position}"));
            }
            for name in names {
                let source = format!("{kind}-archive:{}:{name}", text(&path));
                let image = Image::load(&store, &export.root, &platform()).expect("loads");
                let config = run("skopeo", &["inspect", "--raw", "--config", &source]);
                assert_eq!(digest_of(&config), *image.id(), "{source}");
                if kind == "oci" {
                    assert_eq!(digest_of(&run("skopeo", &["inspect", "--raw", &source])), *export.root.digest());
                }
                let copied = format!("oci:{}:copied", text(&target));
                run("skopeo", &["copy", "--insecure-policy", "--quiet", &source, &copied]);
                let copied = import(&copied, &store);
                let copied = Image::load(&store, &copied.manifest, &platform()).expect("loads");
                assert_eq!(copied.chain_ids(), image.chain_ids(), "{source}");
                // From Docker's format it converts the config.
                assert!(kind == "docker" || copied.id() == image.id(), "{source}");
                std::fs::remove_dir_all(&target).expect("remove");
            }
        }
    }
}

fn gnu_tar_and_umoci_read_our_archives() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_, exports, archives) = archives(folder.path());
    for (kind, path) in archives {
        let target = folder.path().join(format!("{kind}-unpacked"));
        std::fs::create_dir(&target).expect("mkdir");
        let output = Command::new("tar").args(["-C", text(&target), "-xvf", text(&path)]).output().expect("runs");
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let layout = Layout::open(&target).expect("is a layout");
        assert!(layout.verify().expect("verifies").problems.is_empty());
        let listed = String::from_utf8(run("umoci", &["ls", "--layout", text(&target)])).expect("UTF-8");
        let name = if kind == "oci" { "docker.io/library/two:2" } else { "2" };
        assert!(listed.lines().any(|line| line == name), "{listed}");
        let bundle = folder.path().join(format!("{kind}-bundle"));
        let image = format!("{}:{name}", text(&target));
        run("umoci", &["unpack", "--rootless", "--image", &image, text(&bundle)]);
        assert!(bundle.join("rootfs/etc/content").exists());
        assert_eq!(layout.find("two:2").expect("is there").root.digest(), exports[1].root.digest());
    }
}

fn skopeo_and_umoci_read_what_we_commit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (store, exports) = crate::save::store(folder.path());
    let lease = store.lease().expect("is given");
    let parent = Image::load(&store, &exports[0].root, &platform()).expect("loads");
    let layer = import_layer(&crate::fixture::layer("committed")[..], &lease).expect("imports");
    let changes =
        ["ENV A=b", "LABEL x=y", "EXPOSE 80", "ENTRYPOINT [\"/e\"]"].map(|text| text.parse().expect("is right"));
    for (name, parent) in [("child", Some(&parent)), ("orphan", None)] {
        let commit = Commit {
            parent,
            platform: platform(),
            layer: Some(&layer),
            changes: changes.to_vec(),
            ..Commit::default()
        };
        let name: Reference = name.parse().expect("a name");
        let committed = commit.write(&lease, Some(&name)).expect("commits");
        let source = format!("oci:{}:{name}", text(store.path()));
        assert_eq!(digest_of(&run("skopeo", &["inspect", "--raw", &source])), *committed.manifest.digest());
        let said = String::from_utf8(run("skopeo", &["inspect", "--config", &source])).expect("UTF-8");
        for part in ["\"A=b\"", "\"80/tcp\"", "\"/e\""] {
            assert!(said.contains(part), "{said}");
        }
        let bundle = folder.path().join(name.familiar());
        run("umoci", &["unpack", "--rootless", "--image", &format!("{}:{name}", text(store.path())), text(&bundle)]);
        assert!(std::fs::read_to_string(bundle.join("rootfs/etc/content")).expect("read").starts_with("committed"));
    }
}
