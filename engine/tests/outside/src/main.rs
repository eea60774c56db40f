//! The engine on parts that it has never heard of: a snapshotter that keeps plain folders, and a runtime under a name.
//!
//! ```console
//! # cargo run --manifest-path engine/tests/outside/Cargo.toml -- oci:DIR:TAG COMMAND…
//! ```

mod folders;
mod noting;

use std::path::PathBuf;
use std::sync::Arc;

use estiba_engine::image::{Layout, Source};
use estiba_engine::shim::Runtimes;
use estiba_engine::{Config, CreateRequest, Engine, Parts};
use tokio::io::AsyncReadExt;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let mut runtimes = Runtimes::default();
    runtimes.register("noting", noting::make);
    // In a process that was started as a container's shim, this serves and never returns.
    estiba_engine::reexec_with(&runtimes);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(runtimes))
}

async fn run(runtimes: Runtimes) -> Result {
    let mut arguments = std::env::args().skip(1);
    let source: Source = arguments.next().ok_or("usage: outside oci:DIR[:TAG] COMMAND…")?.parse()?;
    let root = std::env::temp_dir().join(format!("estiba-outside-{}", std::process::id()));
    let parts = Parts {
        content: Arc::new(Layout::open_or_create(root.join("content"))?),
        snapshotter: Arc::new(folders::Folders::open(root.join("snapshots/folders"))?),
        snapshotter_name: "folders".to_owned(),
        drivers: std::collections::BTreeMap::new(),
        runtimes,
    };
    let cgroup_parent = format!("/estiba-outside-{}", std::process::id());
    let config =
        Config { root: root.clone(), run: root.join("run"), cgroup_parent: cgroup_parent.clone(), ..Config::default() };
    let engine = Engine::with_parts(config, parts).await?;
    let image = engine.import(source).await?;
    let request = CreateRequest {
        command: arguments.collect(),
        runtime: Some(PathBuf::from("noting")),
        auto_remove: true,
        ..CreateRequest::new(image)
    };
    let mut running = engine.run(request).await?;
    let mut text = String::new();
    running.stdout.take().ok_or("no output")?.read_to_string(&mut text).await?;
    let exit = running.wait().await?;
    running.finish().await?;
    print!("{text}");
    println!("status {}; the runtime noted {}", exit.status, noting::notes()?);
    std::fs::remove_dir_all(root)?;
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(cgroup_parent.trim_start_matches('/')));
    }
    Ok(())
}
