//! Pulls an image from a registry into an OCI layout, and says how far it is. Needs no root.
//!
//! ```console
//! $ cargo run -p estiba-image --features registry --example pull -- alpine /tmp/content
//! ```

use std::time::Instant;

use estiba_image::{BlobState, Event, Layout, Platform, Progress, Registry, RegistrySettings, short_id};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: pull REFERENCE FOLDER".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(pull(&name, &folder))
}

async fn pull(name: &str, folder: &str) -> Result<(), Box<dyn std::error::Error>> {
    let registry = Registry::new(RegistrySettings::of_system()?);
    let store = Layout::open_or_create(folder)?;

    // The lease holds what comes in until it has a name.
    let lease = store.lease()?;
    let begun = Instant::now();
    let progress = Progress::to(|event| match event {
        Event::Resolved { root, image } => println!("{}: {} layers", root.digest(), image.layers().len()),
        Event::Blob { state: BlobState::Moving { .. }, .. } => {}
        Event::Blob { digest, state } => println!("{}: {state:?}", short_id(&digest)),
        _ => {}
    });
    let pulled = registry.pull(&name.parse()?, &lease, &Platform::host(), &progress).await?;
    store.tag(&pulled.name, &pulled.root)?;
    println!("{} is {} ({:.2} s)", pulled.name, pulled.manifest.digest(), begun.elapsed().as_secs_f64());
    Ok(())
}
