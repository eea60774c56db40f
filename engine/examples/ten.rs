//! Ten containers at once in a threaded program, their output as it comes. Needs root.
//!
//! ```console
//! # cargo run -p estiba-engine --example ten -- oci:/srv/debian:12 [ROOT]
//! ```

use estiba_engine::image::Source;
use estiba_engine::{Config, CreateRequest, Engine};
use tokio::io::{AsyncBufReadExt, BufReader};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Result<()> {
    // The engine starts this program again as each container's shim, which then serves here and never returns.
    estiba_engine::reexec();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let source: Source = arguments.next().ok_or("usage: ten oci:DIR[:TAG] [ROOT]")?.parse()?;
    let config = match arguments.next() {
        Some(root) => Config { run: format!("{root}/run").into(), root: root.into(), ..Config::default() },
        None => Config::default(),
    };
    let engine = Engine::open(config).await?;
    let image = engine.import(source).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..10 {
        let script = format!("echo container {number} is $HOSTNAME; exit {number}");
        let command = vec!["sh".to_owned(), "-c".to_owned(), script];
        let request = CreateRequest { command, auto_remove: true, ..CreateRequest::new(image.clone()) };
        tasks.spawn(watch(engine.clone(), request));
    }
    while let Some(ended) = tasks.join_next().await {
        println!("one ended with status {}", ended??);
    }
    Ok(())
}

async fn watch(engine: Engine, request: CreateRequest) -> Result<i32> {
    let mut running = engine.run(request).await?;
    let mut lines = BufReader::new(running.stdout.take().ok_or("no output is connected")?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{line}");
    }
    let exit = running.wait().await?;
    running.finish().await?;
    Ok(exit.status)
}
