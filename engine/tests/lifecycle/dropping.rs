//! Futures that are dropped at any moment: what is left is no worse than a crash, and another engine brings it to rest.

use std::time::Duration;

use estiba_engine::{
    CommitRequest, Container, CreateRequest, Engine, Error, ExecRequest, Force, Kill, Status, Streams,
};

use crate::place::Place;
use crate::{Result, on, shell};

/// The moments: close to each other at first, and the last ones later than most operations need.
fn moments() -> impl Iterator<Item = Duration> {
    (0..24_u64).map(|step| Duration::from_micros(step * step * 60))
}

/// Polls a future for a while, and drops it.
async fn dropped<T>(moment: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(moment, future).await.ok()
}

fn kept(place: &Place, script: &str) -> CreateRequest {
    CreateRequest { auto_remove: false, ..shell(place, script) }
}

async fn running(engine: &Engine, place: &Place, script: &str) -> Result<Container> {
    let running = engine.run_with(kept(place, script), Streams::NONE).await?;
    Ok(engine.container(running.id().as_str()).await?)
}

/// The same container as another command sees it.
async fn elsewhere(place: &Place, container: &Container) -> Result<Container> {
    Ok(place.open().await?.container(container.id().as_str()).await?)
}

/// Does it again for as long as whoever was dropped still holds the container.
async fn patiently<T>(mut work: impl AsyncFnMut() -> estiba_engine::Result<T>) -> Result<T> {
    for _ in 0..500 {
        match work().await {
            Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            done => return Ok(done?),
        }
    }
    Ok(work().await?)
}

async fn removed(place: &Place, container: &Container) -> Result {
    let other = place.open().await?;
    match other.container(container.id().as_str()).await {
        Ok(found) => patiently(async || found.remove(Kill::Yes).await).await?,
        Err(Error::NoContainer { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    place.settles(async || drop(place.open().await)).await
}

/// It runs and does what it is told.
async fn answers(container: &Container) -> Result {
    let status = container.status().await?;
    if status != Status::Running {
        return Err(format!("it does not run: {status:?}").into());
    }
    let request = ExecRequest { command: vec!["true".to_owned()], ..ExecRequest::default() };
    let exec = container.exec(request, Streams::NONE).await?;
    assert_eq!(exec.wait().await?, 0);
    Ok(exec.finish(0).await?)
}

pub(crate) fn start() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        for moment in moments() {
            let container = engine.create(kept(place, "sleep 100")).await?;
            drop(dropped(moment, Box::pin(container.start())).await.transpose()?);
            let other = elsewhere(place, &container).await?;
            // A shim whose client has gone before the start ends by itself, and then it can be started.
            let begin = std::time::Instant::now();
            loop {
                let started = other.start_with(Streams::NONE).await.map(drop);
                let Err(error) = answers(&other).await else { break };
                if begin.elapsed() > Duration::from_secs(10) {
                    return Err(format!("dropped after {moment:?}: {started:?}, then {error}").into());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            removed(place, &container).await?;
        }
        Ok(())
    })
}

pub(crate) fn stop() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        for moment in moments() {
            let container = running(&engine, place, "sleep 100").await?;
            Box::pin(dropped(moment, container.stop(None, Some(0)))).await.transpose()?;
            let other = elsewhere(place, &container).await?;
            patiently(async || other.stop(None, Some(0)).await).await?;
            assert!(matches!(other.status().await?, Status::Exited(_)), "{:?}", other.status().await?);
            removed(place, &container).await?;
        }
        Ok(())
    })
}

pub(crate) fn exec_and_attach() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = running(&engine, place, "while :; do echo line; sleep 0.01; done").await?;
        let bundle = place.run().join(container.id().as_str());
        let request = || ExecRequest {
            command: ["sh", "-c", "echo out; sleep 0.2"].map(str::to_owned).to_vec(),
            interactive: true,
            ..ExecRequest::default()
        };
        for moment in moments() {
            drop(dropped(moment, container.exec(request(), Streams::ALL)).await.transpose()?);
            drop(dropped(moment, container.attach(Streams::ALL)).await.transpose()?);
            answers(&elsewhere(place, &container).await?).await?;
        }
        // All of them have gone, and no reader that is gone holds up the container's own output.
        let other = elsewhere(place, &container).await?;
        let begin = std::time::Instant::now();
        loop {
            let fifos = std::fs::read_dir(&bundle)?.flatten().filter(|entry| {
                let name = entry.file_name();
                name.to_string_lossy().contains("-std")
            });
            let (fifos, processes) = (fifos.count(), other.processes().await?.len());
            // The shell and its `sleep`.
            if fifos == 0 && processes <= 2 {
                break;
            }
            if begin.elapsed() > Duration::from_secs(10) {
                return Err(format!("{fifos} fifos and {processes} processes are left").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = place.root().join("containers").join(container.id().as_str()).join("log");
        let length = std::fs::metadata(&log)?.len();
        let begin = std::time::Instant::now();
        while std::fs::metadata(&log)?.len() == length {
            assert!(begin.elapsed() < Duration::from_secs(10), "its output stands");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        removed(place, &container).await
    })
}

/// Brings it to a state that does not change any more, whatever calls that were dropped still come to their end.
async fn settled(place: &Place, container: &Container, is_wanted: bool) -> Result {
    let begin = std::time::Instant::now();
    loop {
        let done = if is_wanted { container.pause().await } else { container.unpause().await };
        match done {
            Ok(()) | Err(Error::Paused { .. } | Error::NotPaused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        let (status, is_frozen) = (container.status().await?, place.is_frozen(container.id().as_str())?);
        if (status == Status::Paused, is_frozen) == (is_wanted, is_wanted) {
            return Ok(());
        }
        if begin.elapsed() > Duration::from_secs(10) {
            return Err(format!("{status:?}, frozen: {is_frozen}").into());
        }
    }
}

pub(crate) fn pause() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = running(&engine, place, "sleep 100").await?;
        let other = elsewhere(place, &container).await?;
        for moment in moments() {
            let _ = dropped(moment / 4, container.pause()).await;
            settled(place, &other, true).await.map_err(|error| format!("pause, dropped after {moment:?}: {error}"))?;
            let _ = dropped(moment / 4, container.unpause()).await;
            settled(place, &other, false)
                .await
                .map_err(|error| format!("unpause, dropped after {moment:?}: {error}"))?;
            answers(&other).await?;
        }
        removed(place, &container).await
    })
}

pub(crate) fn remove() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        for moment in moments() {
            let container = running(&engine, place, "sleep 100").await?;
            dropped(moment, container.remove(Kill::Yes)).await.transpose()?;
            removed(place, &container).await?;
        }
        Ok(())
    })
}

pub(crate) fn commit() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = running(&engine, place, "echo x > /file; sleep 100").await?;
        for moment in moments() {
            let request = CommitRequest { name: Some("made:1".parse()?), ..CommitRequest::default() };
            drop(dropped(moment, container.commit(request)).await.transpose()?);
            goes_on(place, &container).await.map_err(|error| format!("dropped after {moment:?}: {error}"))?;
            let _ = engine.remove_image("made:1", Force::No).await;
        }
        let request = CommitRequest { name: Some("made:1".parse()?), ..CommitRequest::default() };
        container.commit(request).await?;
        goes_on(place, &container).await?;
        engine.remove_image("made:1", Force::No).await?;
        removed(place, &container).await
    })
}

/// It was stopped for the moment of the commit only: the next command lets it go on, once what was dropped has come to its end.
async fn goes_on(place: &Place, container: &Container) -> Result {
    let begin = std::time::Instant::now();
    loop {
        let other = elsewhere(place, container).await?;
        match answers(&other).await {
            Err(_) if begin.elapsed() < Duration::from_secs(10) => tokio::time::sleep(Duration::from_millis(5)).await,
            answered => return answered,
        }
    }
}
