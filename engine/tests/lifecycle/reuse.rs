//! Numbers of processes that are other processes' by now: nothing is done to those.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use estiba_engine::storage::archive::{Link, UnpackOptions};
use estiba_engine::{Container, CreateRequest, Error, ExecRequest, Kill, Status, Streams};

use crate::place::{self, Place};
use crate::{Result, on, shell};

/// A process that is no container's, ended with the test.
struct Stranger(Child);

impl Stranger {
    fn new() -> Result<Self> {
        Ok(Self(Command::new("sleep").arg("100").stdin(Stdio::null()).spawn()?))
    }

    fn lives(&mut self) -> Result<bool> {
        // What was sent to it needs a moment.
        std::thread::sleep(std::time::Duration::from_millis(50));
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts another number wherever a file below a folder names a process so; how often it did.
fn renumber(path: &Path, from: u32, to: u32) -> Result<usize> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path)?.flatten();
        return entries.map(|entry| renumber(&entry.path(), from, to)).sum();
    }
    if !path.is_file() {
        return Ok(0);
    }
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(0) };
    let (old, new) = (format!("\"pid\":{from},"), format!("\"pid\":{to},"));
    let count = text.matches(&old).count();
    if count > 0 {
        std::fs::write(path, text.replace(&old, &new))?;
    }
    Ok(count)
}

async fn made(place: &Place) -> Result<(Container, u32)> {
    let engine = place.open().await?;
    let request = CreateRequest { auto_remove: false, ..shell(place, "exec sleep 100") };
    let running = engine.run_with(request, Streams::NONE).await?;
    let container = engine.container(running.id().as_str()).await?;
    let pid = running.record().pid;
    Ok((container, pid))
}

/// The container has ended and its shim lives, since a client has not said that it is done; its number is given away.
pub(crate) fn of_a_record() -> Result {
    on(async |place| {
        let mut stranger = Stranger::new()?;
        let (container, pid) = made(place).await?;
        let folder = place.root().join("containers").join(container.id().as_str());
        assert_eq!(renumber(&folder, pid, stranger.0.id())?, 1);
        let gone = |error: &Error| matches!(error, Error::NotRunning { .. });
        let refused = container.stat_path("/etc", Link::Itself).await.err().ok_or("it looked at a stranger's files")?;
        assert!(gone(&refused), "{refused}");
        let name = format!("estiba-test-{}", container.id().short());
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        archive.append_data(&mut header, &name, std::io::empty())?;
        let archive = std::io::Cursor::new(archive.into_inner()?);
        let refused = container.copy_in("/tmp", UnpackOptions::default(), archive).await;
        let written = std::fs::remove_file(Path::new("/tmp").join(name)).is_ok();
        assert!(!written, "it wrote to a stranger's files");
        assert!(gone(&refused.err().ok_or("it copied into a stranger's files")?));
        let request = ExecRequest { command: vec!["true".into()], user: Some("root".into()), ..ExecRequest::default() };
        let refused = container.exec(request, Streams::NONE).await.err().ok_or("it asked a stranger for its users")?;
        assert!(gone(&refused), "{refused}");
        container.kill(10).await?;
        container.stop(None, Some(0)).await?;
        assert!(matches!(container.status().await?, Status::Exited(_)));
        container.remove(Kill::Yes).await?;
        assert!(stranger.lives()?);
        Ok(())
    })
}

/// The shim was killed, and what it and the runtime have left names another process.
pub(crate) fn of_a_dead_shim() -> Result {
    on(async |place| {
        for by_force in [false, true] {
            let mut stranger = Stranger::new()?;
            let (container, pid) = made(place).await?;
            place::kill_shim(container.id().as_str())?;
            place.without_shims();
            let folder = place.root().join("containers").join(container.id().as_str());
            let bundle = place.run().join(container.id().as_str());
            assert_eq!(renumber(&folder, pid, stranger.0.id())?, 1);
            assert!(renumber(&bundle, pid, stranger.0.id())? > 0, "the runtime keeps the number elsewhere");
            if by_force {
                container.remove(Kill::Yes).await?;
            } else {
                let again = place.open().await?.container(container.id().as_str()).await?;
                assert_eq!(again.status().await?, Status::Exited(None));
                assert!(matches!(again.kill(9).await, Err(Error::NotRunning { .. })));
                again.stop(None, Some(0)).await?;
                again.remove(Kill::No).await?;
            }
            assert!(stranger.lives()?);
            // What was the container's has gone, though nothing named it any more: else its cgroup would be there.
            place.is_clean()?;
        }
        Ok(())
    })
}
