//! Runs a command in an image, from a program that is its own shim. Needs root.
//!
//! ```console
//! # cargo run -p estiba-engine --example run -- oci:/srv/debian:12 cat /etc/os-release
//! ```

use std::process::ExitCode;

use estiba_engine::image::Source;
use estiba_engine::{Config, CreateRequest, Engine};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    // The engine starts this program again as the container's shim, which then serves here and never returns.
    estiba_engine::reexec();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let source: Source = arguments.next().ok_or("usage: run oci:DIR[:TAG] [COMMAND…]")?.parse()?;

    let engine = Engine::open(Config::default()).await?;
    let image = engine.import(source).await?;
    let request = CreateRequest { command: arguments.collect(), auto_remove: true, ..CreateRequest::new(image) };

    let mut running = engine.run(request).await?;
    let (Some(mut stdout), Some(mut stderr)) = (running.stdout.take(), running.stderr.take()) else {
        return Err("no output is connected".into());
    };
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let copied = tokio::try_join!(tokio::io::copy(&mut stdout, &mut out), tokio::io::copy(&mut stderr, &mut err));
    let exit = running.wait().await?;
    running.finish().await?;
    copied?;
    Ok(ExitCode::from(u8::try_from(exit.status).unwrap_or(255)))
}
