//! Applies layers to snapshots, each on the one before, and tells where the result lies. Needs root for owners and devices.
//!
//! ```console
//! # cargo run -p estiba-storage --example unpack -- /tmp/store base.tar.gz change.tar.gz
//! ```

use std::fs::File;

use estiba_storage::layer::{self, Compression, Limits, Target};
use estiba_storage::{Key, Name, Native, Snapshotter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let store = Native::open(arguments.next().ok_or("usage: unpack FOLDER LAYER…")?)?;

    let mut parent: Option<Name> = None;
    for path in arguments {
        let key: Key = "unpacking".parse()?;
        let target = Target::from_mounts(&store.prepare(&key, parent.as_ref())?)?;
        let applied = layer::apply(File::open(&path)?, Compression::Sniff, &target, &Limits::default())?;
        // A program that pulls images would compare the diff id with the image's configuration here.
        let name: Name = applied.diff_id().parse()?;
        store.commit(&name, &key)?;
        println!("{path}: {} entries, {} bytes, committed as {name}", applied.entries, applied.bytes);
        parent = Some(name);
    }

    // A view is what a container would get to read. The snapshotter says how to mount it, and mounts nothing.
    let key: Key = "look".parse()?;
    for mount in store.view(&key, parent.as_ref())? {
        println!("mount {:?} {:?} {:?}", mount.typ(), mount.source(), mount.options());
    }
    store.remove(&(&key).into())?;
    Ok(())
}
