//! Moves images between a content store and archives: `archive save STORE docker|oci FILE NAME...`, `archive load STORE FILE`, `archive list STORE`,
//! and makes them: `archive commit STORE NAME NEW CHANGE...`, `archive import STORE TAR NEW`, `archive collect STORE`.

use std::error::Error;
use std::fs::File;

use estiba_image::{
    Change, Commit, DockerArchive, Export, Image, Layout, OciArchive, Platform, Stored, import_layer, short_id,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let platform = Platform::host();
    match arguments.as_slice() {
        ["save", store, kind, file, names @ ..] => {
            let store = Layout::open(store)?;
            let mut exports: Vec<Export> = Vec::new();
            for name in names {
                let found = store.find(name)?;
                let names = found.name.and_then(|name| name.parse().ok()).into_iter().collect();
                exports.push(Export { root: found.root, names });
            }
            let out = File::create(file)?;
            match *kind {
                "docker" => DockerArchive::write(&store, &exports, &platform, out)?,
                _ => OciArchive::write(&store, &exports, &platform, out)?,
            }
        }
        ["load", store, file] => {
            for image in Layout::open_or_create(store)?.load(file, &platform)? {
                println!("{} {}", image.id, image.names.join(" "));
            }
        }
        ["list", store] => {
            for Stored { names, platforms, .. } in Layout::open(store)?.stored()? {
                for image in platforms {
                    println!("{} {} {} {}", short_id(&image.id), image.platform, image.size, names.join(" "));
                }
            }
        }
        ["commit", store, name, new, changes @ ..] => {
            let store = Layout::open(store)?;
            let lease = store.lease()?;
            let found = store.find(name)?;
            lease.hold(&found.root)?;
            let parent = Image::load(&store, &found.root, &platform)?;
            let changes = changes.iter().map(|text| text.parse()).collect::<Result<Vec<Change>, _>>()?;
            let commit = Commit { parent: Some(&parent), changes, ..Commit::default() };
            let committed = commit.write(&lease, Some(&new.parse()?))?;
            let image = Image::load(&store, &committed.manifest, &platform)?;
            println!("{}", String::from_utf8_lossy(image.raw_config()));
        }
        ["import", store, tar, new] => {
            let lease = Layout::open_or_create(store)?.lease()?;
            let layer = import_layer(File::open(tar)?, &lease)?;
            println!("{}", Commit { layer: Some(&layer), ..Commit::default() }.write(&lease, Some(&new.parse()?))?.id);
        }
        ["collect", store] => {
            let collected = Layout::open(store)?.collect(&[])?;
            println!("{} blobs, {} bytes", collected.blobs, collected.bytes);
        }
        _ => return Err("write: save STORE docker|oci FILE NAME..., load STORE FILE, list STORE, commit STORE NAME NEW CHANGE..., import STORE TAR NEW or collect STORE".into()),
    }
    Ok(())
}
