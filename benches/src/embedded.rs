//! The engine in a program that stays up.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use estiba_engine::image::Source;
use estiba_engine::{Config, Container, CreateRequest, Engine, ExecRequest, ShimProgram, Streams};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;

use crate::library::told;
use crate::sys;

/// What is measured of the engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EngineCall {
    pub(crate) kind: CallKind,
    /// The folder of all that the engine keeps.
    pub(crate) home: PathBuf,
    pub(crate) cgroup_parent: String,
    pub(crate) shim: PathBuf,
    /// The image, as `docker save` writes it.
    pub(crate) archive: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CallKind {
    /// A container from its creation to its removal.
    Run,
    /// A process in a container that runs.
    Exec,
}

/// An engine that was opened once, and a container that runs in it.
#[derive(Debug, Default)]
pub(crate) struct Embedded(Option<Opened>);

#[derive(Debug)]
struct Opened {
    tokio: Runtime,
    engine: Engine,
    request: CreateRequest,
    stays: Container,
}

impl Embedded {
    pub(crate) fn call(&mut self, call: &EngineCall) -> io::Result<Duration> {
        let opened = match self.0.take() {
            Some(opened) => opened,
            None => Opened::new(call)?,
        };
        let opened = self.0.insert(opened);
        let begin = sys::monotonic();
        let status = match call.kind {
            CallKind::Run => opened.tokio.block_on(run(&opened.engine, opened.request.clone())),
            CallKind::Exec => opened.tokio.block_on(exec(&opened.stays)),
        };
        let took = sys::monotonic().saturating_sub(begin);
        match status.map_err(told)? {
            0 => Ok(took),
            status => Err(io::Error::other(format!("ended with status {status}"))),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(opened) = self.0.take() {
            let _ = opened.tokio.block_on(opened.stays.remove(estiba_engine::Kill::Yes));
        }
    }
}

impl Opened {
    fn new(call: &EngineCall) -> io::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let config = Config {
            root: call.home.join("root"),
            run: call.home.join("run"),
            shim: ShimProgram::Path(call.shim.clone()),
            cgroup_parent: call.cgroup_parent.clone(),
            ..Config::default()
        };
        let archive = format!("docker-archive:{}", call.archive.display());
        let source: Source = archive.parse().map_err(told)?;
        let (engine, image, stays) = tokio
            .block_on(async {
                let engine = Engine::open(config).await?;
                let image = engine.import(source).await?;
                let command = ["sleep", "1000"].map(str::to_owned).into();
                let stays = engine.create(CreateRequest { command, ..CreateRequest::new(image.clone()) }).await?;
                stays.start_with(Streams::NONE).await?.detach().await?;
                Ok::<_, estiba_engine::Error>((engine, image, stays))
            })
            .map_err(told)?;
        let request = CreateRequest { command: vec!["true".into()], auto_remove: true, ..CreateRequest::new(image) };
        Ok(Self { tokio, engine, request, stays })
    }
}

async fn run(engine: &Engine, request: CreateRequest) -> estiba_engine::Result<i32> {
    let mut running = engine.run(request).await?;
    drain(running.stdout.take(), running.stderr.take()).await;
    let exit = running.wait().await?;
    running.finish().await?;
    Ok(exit.status)
}

async fn exec(container: &Container) -> estiba_engine::Result<i32> {
    let request = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    let mut process = container.exec(request, Streams::OUTPUT).await?;
    drain(process.stdout.take(), process.stderr.take()).await;
    let status = process.wait().await?;
    process.finish(status).await?;
    Ok(status)
}

/// Reads both outputs to their ends, as a program that wants them does.
async fn drain(mut out: Option<impl AsyncReadExt + Unpin>, mut err: Option<impl AsyncReadExt + Unpin>) {
    let (mut bytes, mut more) = (Vec::new(), Vec::new());
    if let Some(out) = &mut out {
        let _ = out.read_to_end(&mut bytes).await;
    }
    if let Some(err) = &mut err {
        let _ = err.read_to_end(&mut more).await;
    }
}
