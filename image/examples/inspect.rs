//! Shows what is in an image: its platform, its configuration, its layers. Needs no root.
//!
//! ```console
//! $ cargo run -p estiba-image --example inspect -- oci:/srv/debian:12
//! ```

use estiba_image::{Image, Layout, Platform, Source};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source =
        std::env::args().nth(1).ok_or("usage: inspect oci:DIR[:TAG] | oci-archive:FILE | docker-archive:FILE")?;
    let source: Source = source.parse()?;

    // A content store of our own: an OCI layout that skopeo and umoci can read, too.
    let folder = tempfile::tempdir()?;
    let store = Layout::open_or_create(folder.path().join("content"))?;
    let imported = source.import(&store)?;

    let image = Image::load(&store, &imported.manifest, &Platform::host())?;
    println!("name      {}", imported.name);
    println!("id        {}", image.id());
    println!("manifest  {}", image.descriptor().digest());
    if let Some(config) = image.config().oci.config() {
        println!("entry     {:?} {:?}", config.entrypoint(), config.cmd());
    }
    for (layer, chain) in image.layers().iter().zip(image.chain_ids()) {
        println!("layer     {} ({} bytes)", layer.descriptor.digest(), layer.descriptor.size());
        println!("  unpacked as {chain}");
    }
    Ok(())
}
