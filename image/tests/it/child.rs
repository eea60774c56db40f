//! What this program does when a test runs it again.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use estiba_image::media::Compression;
use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{Commit, ContentStore, DockerArchive, Export, Image, LayerWriter, Layout, Reference, digest_of};

use crate::fixture::{layer as layer_tar, platform};

const VARIABLE: &str = "ESTIBA_IMAGE_TEST_CHILD";

/// A blob that is a bit larger than any buffer.
pub(crate) fn big_blob() -> (Vec<u8>, Descriptor) {
    let bytes: Vec<u8> = (0..1_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(&bytes));
    (bytes, descriptor)
}

/// This program, to be run as a child that does `job` in `folder`.
pub(crate) fn command(job: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.env(VARIABLE, job).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

pub(crate) fn spawn(job: &str, folder: &Path) -> Child {
    command(job, folder).spawn().expect("spawn")
}

/// Waits until the child says that it is where the test wants it.
pub(crate) fn wait_ready(child: &mut Child) {
    let mut ready = [0; 6];
    child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("the child gets there");
    assert_eq!(&ready, b"ready\n");
}

fn ready() {
    println!("ready");
}

/// A layer and an image of it, with the name `made:NUMBER`.
fn commit(store: &Layout, parent: &Descriptor, number: u32) {
    let lease = store.lease().expect("is given");
    lease.hold(parent).expect("is there");
    let parent = Image::load(store, parent, &platform()).expect("loads");
    let mut layer = LayerWriter::begin(&lease, Compression::Gzip).expect("begins");
    layer.write_all(&layer_tar(&format!("{} {number}", std::process::id()))).expect("writes");
    let layer = layer.finish().expect("finishes");
    let name: Reference = format!("made-{}:{number}", std::process::id()).parse().expect("a name");
    let commit = Commit { parent: Some(&parent), layer: Some(&layer), ..Commit::default() };
    commit.write(&lease, Some(&name)).expect("commits");
}

pub(crate) fn run() -> Option<ExitCode> {
    let job = std::env::var(VARIABLE).ok()?;
    let folder = std::env::args().nth(1).expect("a folder");
    let store = Layout::open_or_create(folder).expect("opens");
    let (bytes, descriptor) = big_blob();
    match job.split_once(' ').map_or((job.as_str(), ""), |(job, rest)| (job, rest)) {
        ("ingest", _) => {
            let mut ingest = store.ingest().expect("begins");
            ingest.write_all(&bytes).expect("writes");
            ingest.commit(&descriptor).expect("commits");
        }
        // Waits in the middle of an ingest until its standard input ends, then goes on.
        ("half", _) => {
            let mut ingest = store.ingest().expect("begins");
            ingest.write_all(&bytes[..1_000_000]).expect("writes");
            ready();
            std::io::stdin().read_to_end(&mut Vec::new()).expect("waits");
            ingest.write_all(&bytes[1_000_000..]).expect("writes");
            ingest.commit(&descriptor).expect("commits");
        }
        ("names", prefix) => {
            let mut ingest = store.ingest().expect("begins");
            ingest.write_all(&bytes).expect("writes");
            ingest.commit(&descriptor).expect("commits");
            for number in 0..20 {
                store.tag(&format!("{prefix}-{number}"), &descriptor).expect("sets");
            }
        }
        // The jobs that a test kills somewhere on their way: each goes on until then.
        ("load", archive) => loop {
            store.load(archive, &platform()).expect("loads");
        },
        ("save", _) => {
            ready();
            let exports: Vec<Export> = store
                .stored()
                .expect("lists")
                .into_iter()
                .map(|stored| {
                    let names = stored.references();
                    Export { root: stored.root, names }
                })
                .collect();
            loop {
                DockerArchive::write(&store, &exports, &platform(), std::io::sink()).expect("writes");
            }
        }
        ("commit", name) => {
            let parent = store.find(name).expect("is there").root;
            for number in 0.. {
                commit(&store, &parent, number);
            }
        }
        ("collect", _) => loop {
            store.collect(&[]).expect("collects");
            // Who asks for a lock again at once leaves it to nobody.
            std::thread::sleep(std::time::Duration::from_millis(1));
        },
        // Loads, takes the names away again and collects, a number of times.
        ("churn", rest) => {
            let (count, archive) = rest.split_once(' ').expect("two arguments");
            for _ in 0..count.parse().expect("a number") {
                let loaded = store.load(archive, &platform()).expect("loads");
                for name in loaded.iter().flat_map(|image| &image.names) {
                    store.untag(name).expect("untags");
                }
                store.collect(&[]).expect("collects");
            }
        }
        ("commits", rest) => {
            let (count, name) = rest.split_once(' ').expect("two arguments");
            let parent = store.find(name).expect("is there").root;
            for number in 0..count.parse().expect("a number") {
                commit(&store, &parent, number);
            }
        }
        // Holds a lease on whatever has this id, until its standard input ends.
        ("lease", id) => {
            let lease = store.lease().expect("is given");
            lease.hold(&store.find(id).expect("is there").root).expect("holds");
            ready();
            std::io::stdin().read_to_end(&mut Vec::new()).expect("waits");
        }
        // Takes a blob in where there is no space, and says what came of it.
        ("full", _) => {
            let mut ingest = store.ingest().expect("begins");
            let outcome = ingest.write_all(&bytes).map_err(std::io::Error::downcast::<estiba_image::Error>);
            drop(ingest);
            let left = std::fs::read_dir(store.path().join("ingest")).expect("list").count();
            println!("{outcome:?} left {left}");
        }
        #[cfg(feature = "registry")]
        ("pull", name) => crate::registry_faults::pull_into(&store, name),
        #[cfg(feature = "registry")]
        ("credentials", _) => crate::registry_peers::use_helpers(store.path().parent().expect("a folder")),
        (other, _) => panic!("no such job: {other}"),
    }
    Some(ExitCode::SUCCESS)
}
