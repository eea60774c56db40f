//! What containers leave and take: files, images made of them, volumes.

use std::io::Write;
use std::path::PathBuf;

use estiba_engine::storage::archive::{Kind, Link, PackOptions, UnpackOptions};
use estiba_engine::storage::layer::ChangeKind;
use estiba_engine::{CommitRequest, CreateRequest, Error, Force, Kill, OwnVolumes, Streams, Until, VolumeUse};

use crate::{Result, attend, on, shell};

/// A tar archive of one file.
fn archive(name: &str, content: &str) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content.as_bytes())?;
    Ok(builder.into_inner()?)
}

/// Bytes that somebody else writes.
#[derive(Clone, Default)]
struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn names(shared: &Shared) -> Result<Vec<PathBuf>> {
    let bytes = shared.0.lock().expect("not poisoned").clone();
    let mut names = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries()? {
        names.push(entry?.path()?.into_owned());
    }
    Ok(names)
}

pub(crate) fn files_go_in_and_out() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let script = "while [ ! -e /tmp/in ]; do sleep 0.02; done; cat /tmp/in; sleep 100";
        let request = CreateRequest { auto_remove: false, ..shell(place, script) };
        let running = engine.run_with(request, Streams::NONE).await?;
        let container = engine.container(running.id().as_str()).await?;
        drop(running);
        let input = archive("in", "put in\n")?;
        container.copy_in("/tmp", UnpackOptions::default(), std::io::Cursor::new(input.clone())).await?;
        let mut logs = container.logs(estiba_engine::LogsRequest { follow: true, ..Default::default() }).await?;
        assert_eq!(logs.next().await.ok_or("no output")??.bytes, b"put in\n");
        let stat = container.stat_path("/tmp/in", Link::Itself).await?;
        assert_eq!((stat.kind, stat.size), (Kind::File, 7));
        let error = container.stat_path("/nowhere", Link::Itself).await.err().ok_or("it is there")?;
        assert!(matches!(error, Error::Files { .. }), "{error}");

        let changes = container.changes().await?;
        assert!(changes.iter().any(|one| one.path.ends_with("tmp/in") && one.kind == ChangeKind::Added), "{changes:?}");
        // The same when it has ended.
        container.stop(None, Some(0)).await?;
        container.copy_in("/tmp", UnpackOptions::default(), std::io::Cursor::new(archive("later", "x")?)).await?;
        let out = Shared::default();
        container.copy_out("/tmp", PackOptions::default(), out.clone()).await?;
        assert_eq!(names(&out)?, ["tmp", "tmp/in", "tmp/later"].map(PathBuf::from));
        let whole = Shared::default();
        container.export(whole.clone()).await?;
        assert!(names(&whole)?.contains(&PathBuf::from("bin/busybox")));

        let name = "made:1".parse()?;
        let request =
            CommitRequest { name: Some(name), changes: vec!["CMD cat /tmp/in".parse()?], ..Default::default() };
        let image = container.commit(request).await?;
        let made = CreateRequest { auto_remove: true, ..CreateRequest::new(image) };
        assert_eq!(attend(engine.run(made).await?).await?.0, "put in\n");
        let refused = engine.remove_image("busybox", Force::No).await.err().ok_or("an image in use was removed")?;
        assert!(matches!(refused, Error::ImageInUse { .. }), "{refused}");
        container.remove(Kill::No).await?;
        let removed = engine.remove_image("made:1", Force::No).await?;
        assert_eq!(removed.deleted.len(), 1);
        assert!(removed.bytes > 0);
        // What the other image has, too, is still there.
        assert_eq!(attend(engine.run(shell(place, "echo whole")).await?).await?.0, "whole\n");

        let tree = Shared::default();
        let container = engine.create(CreateRequest { auto_remove: false, ..shell(place, "true") }).await?;
        container.export(tree.clone()).await?;
        container.remove(Kill::No).await?;
        let bytes = tree.0.lock().expect("not poisoned").clone();
        let request = CommitRequest { name: Some("flat:1".parse()?), ..Default::default() };
        let image = engine.import_tree(std::io::Cursor::new(bytes), request).await?;
        let command = ["/bin/busybox", "echo", "flat"].map(str::to_owned).to_vec();
        let flat = CreateRequest { command, auto_remove: true, ..CreateRequest::new(image) };
        assert_eq!(attend(engine.run(flat).await?).await?.0, "flat\n");
        engine.remove_image("flat:1", Force::No).await?;
        Ok(())
    })
}

pub(crate) fn images_are_saved_and_loaded() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let file = tempfile::NamedTempFile::new()?;
        engine.tag("busybox", &"other/name:2".parse()?).await?;
        engine.save(vec!["other/name:2".into()], file.reopen()?).await?;
        engine.remove_image("other/name:2", Force::No).await?;
        assert!(engine.image("other/name:2").await.is_err());
        let loaded = engine.load(file.path().to_owned()).await?;
        assert_eq!(loaded[0].names, ["docker.io/other/name:2"]);
        let again = engine.load_stream(file.reopen()?).await?;
        assert_eq!(again[0].id, loaded[0].id);
        let image = engine.image(&loaded[0].id.to_string()[..19]).await?;
        assert_eq!(
            attend(engine.run(CreateRequest { image, ..shell(place, "echo by id") }).await?).await?.0,
            "by id\n"
        );
        Ok(())
    })
}

pub(crate) fn volumes_outlive_containers() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let volume = |name: &str, destination: &str| VolumeUse {
            name: name.into(),
            destination: destination.into(),
            read_only: false,
            anonymous: false,
            no_copy: false,
        };
        let with = |script: &str, volumes: Vec<VolumeUse>| CreateRequest { volumes, ..shell(place, script) };
        let script = "ls /bin/busybox; echo kept > /data/file";
        let (text, _) = attend(engine.run(with(script, vec![volume("named", "/data")])).await?).await?;
        assert_eq!(text, "/bin/busybox\n");
        let (text, _) = attend(engine.run(with("cat /data/file", vec![volume("named", "/data")])).await?).await?;
        assert_eq!(text, "kept\n");
        // An empty volume shows what the image has there.
        let (text, _) = attend(engine.run(with("ls /x/etc", vec![volume("copied", "/x")])).await?).await?;
        assert_eq!(text, "");
        let (text, _) = attend(engine.run(with("cat /etc/passwd", vec![volume("etc", "/etc")])).await?).await?;
        assert!(text.contains("root"), "{text}");

        let kept =
            CreateRequest { auto_remove: false, ..with("true", vec![volume("", "/own"), volume("named", "/n")]) };
        let container = engine.create(kept).await?;
        let own = container.record().await?.volumes[0].clone();
        assert!(own.anonymous && own.name.len() == 64);
        let refused = engine.remove_volume("named").await.err().ok_or("a volume in use was removed")?;
        assert!(matches!(refused, Error::VolumeInUse { .. }), "{refused}");
        container.start_with(Streams::NONE).await?;
        container.wait(Until::NotRunning).await?;
        container.remove_with(Kill::Yes, OwnVolumes::Remove).await?;
        assert!(engine.volume(&own.name).await.is_err());
        let mut names: Vec<_> = engine.volumes().await?.into_iter().map(|volume| volume.name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["copied", "etc", "named"]);
        let (pruned, _) = engine.prune_volumes(true).await?;
        assert_eq!(pruned.len(), 3);
        Ok(())
    })
}
