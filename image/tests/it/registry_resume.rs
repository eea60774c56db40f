//! What came of a blob before is not fetched again: after a process that was killed, and over several connections at once.

use std::collections::HashMap;
use std::time::Duration;

use estiba_image::{Progress, Registry, RegistrySettings, digest_of};
use libtest_mimic::Trial;

use crate::fixture::{Files, check_stored, gzip, layer, platform, tree};
use crate::registry_faults::{Place, image, layer_path, run, settings, with_layer};
use crate::server::{Asked, Reply, Server, Then, honest};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!("registry_resume":
        what_a_given_up_pull_had_is_taken_up,
        what_was_damaged_meanwhile_is_fetched_anew,
        a_collection_removes_parts,
        one_process_fetches_and_others_wait,
        a_large_layer_comes_by_several_ranges,
        a_large_layer_comes_without_ranges,
    )
}

/// Bytes after which the registry says nothing more: enough to be kept.
const STALLED: usize = 2_000_000;

/// A store with the beginning of the big layer.
fn begun() -> Place {
    let (server, _) = with_layer(|_, reply| reply.then(Then::Stall(STALLED)));
    let place = Place::new();
    let lease = place.store.lease().expect("a lease");
    let registry = Registry::new(RegistrySettings { idle_timeout: Duration::from_secs(60), ..settings() });
    let name = format!("{}/a:1", server.host()).parse().expect("a reference");
    let enough = || parts(&place).iter().any(|(_, content)| content.len() == STALLED);
    run(async {
        let (progress, platform) = (Progress::none(), platform());
        let pull = registry.pull(&name, &lease, &platform, &progress);
        tokio::pin!(pull);
        for _ in 0..600 {
            if enough() {
                return;
            }
            assert!(tokio::time::timeout(Duration::from_millis(50), &mut pull).await.is_err(), "it stalls");
        }
        panic!("the beginning did not come");
    });
    drop(lease);
    place
}

/// Blobs that are there in part.
fn parts(place: &Place) -> Vec<(String, Vec<u8>)> {
    tree(place.store.path()).into_iter().filter(|(path, _)| path.starts_with("ingest/part-")).collect()
}

/// Where the requests for the big layer began.
fn ranges(server: &Server, path: &str) -> Vec<String> {
    let asked = server.asked();
    let layer = asked.iter().filter(|asked| asked.path.ends_with(path));
    layer.map(|asked| asked.header("range").to_owned()).collect()
}

fn what_a_given_up_pull_had_is_taken_up() {
    let place = begun();
    assert_eq!(parts(&place).len(), 1);
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    let pulled = place.pull(&server).expect("the next one succeeds");
    check_stored(&place.store, &pulled.manifest);
    assert_eq!(ranges(&server, &layer_path(&made)), [format!("bytes={STALLED}-")]);
    assert!(parts(&place).is_empty());
}

fn what_was_damaged_meanwhile_is_fetched_anew() {
    let place = begun();
    let (name, mut content) = parts(&place).remove(0);
    content[1_000_000] ^= 1;
    std::fs::write(place.store.path().join(name), content).expect("writes");
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    let pulled = place.pull(&server).expect("the next one succeeds");
    check_stored(&place.store, &pulled.manifest);
    assert_eq!(ranges(&server, &layer_path(&made)), [format!("bytes={STALLED}-"), String::new()]);
    // One that is longer than the blob is of no use from the start.
    let place = begun();
    let (name, mut content) = parts(&place).remove(0);
    content.resize(gzip(&made.tars[1]).len() + 1, 0);
    std::fs::write(place.store.path().join(name), content).expect("writes");
    server.forget();
    place.pull(&server).expect("the next one succeeds");
    assert_eq!(ranges(&server, &layer_path(&made)), [String::new()]);
}

fn a_collection_removes_parts() {
    let place = begun();
    // Whoever opens the store or takes something in leaves it.
    estiba_image::Layout::open_or_create(place.store.path()).expect("opens").lease().expect("a lease");
    assert_eq!(parts(&place).len(), 1);
    place.store.collect(&[]).expect("collects");
    assert!(parts(&place).is_empty());
}

fn one_process_fetches_and_others_wait() {
    let (server, made) = with_layer(|_, reply| {
        std::thread::sleep(Duration::from_millis(100));
        reply
    });
    let place = Place::new();
    let name = format!("{}/a:1", server.host());
    let mut children = [(); 3].map(|()| crate::child::spawn(&format!("pull {name}"), place.store.path()));
    for child in &mut children {
        assert!(child.wait().expect("ends").success());
    }
    check_stored(&place.store, &place.store.resolve(&name).expect("looks").expect("is there"));
    assert_eq!(server.count("GET", &layer_path(&made)), 1);
}

/// An image whose lowest layer has 17 MB, and that layer's path.
fn large() -> (Files, crate::fixture::Made, String) {
    let mut state = 7_u64;
    let big: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(17 << 17)
    .flatten()
    .collect();
    let mut builder = tar::Builder::new(Vec::new());
    crate::fixture::append(&mut builder, "big", &big);
    let mut files = Files::default();
    let made = files.image_of(vec![builder.into_inner().expect("a tar"), layer("small")], "amd64");
    let path = format!("/blobs/{}", digest_of(&made.tars[0]));
    (files, made, path)
}

fn pull_large(other: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static) -> Vec<String> {
    let (files, made, path) = large();
    let (content, root, layer) = (files.clone(), made.manifest.clone(), path.clone());
    let server = Server::of(&files, &made.manifest, move |asked| {
        asked.path.ends_with(&layer).then(|| other(asked, honest(&content, &root, asked)))
    });
    let place = Place::new();
    let settings = RegistrySettings { idle_timeout: Duration::from_secs(20), ..settings() };
    let pulled = place.pull_as(settings, &format!("{}/a:1", server.host())).expect("pulls");
    check_stored(&place.store, &pulled.manifest);
    ranges(&server, &path)
}

fn a_large_layer_comes_by_several_ranges() {
    // The first one is the slowest, and one of them breaks.
    let broken = std::sync::atomic::AtomicBool::new(false);
    let asked = pull_large(move |asked, reply| {
        if asked.header("range").starts_with("bytes=0-") {
            std::thread::sleep(Duration::from_millis(200));
        }
        let breaks = asked.header("range").starts_with("bytes=8388608-");
        if breaks && !broken.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return reply.then(Then::Cut(1000));
        }
        reply
    });
    for begin in [0, 4 << 20, 8 << 20, 12 << 20] {
        assert!(asked.iter().any(|range| range.starts_with(&format!("bytes={begin}-"))), "{begin}: {asked:?}");
    }
    assert!(asked.iter().all(|range| range.starts_with("bytes=")), "{asked:?}");
}

fn a_large_layer_comes_without_ranges() {
    let asked = pull_large(|asked, reply| {
        let mut whole = reply.clone();
        if asked.header("range").starts_with("bytes=") {
            let (files, made, _) = large();
            whole = honest(&files, &made.manifest, &Asked { headers: HashMap::default(), ..asked.clone() });
        }
        whole
    });
    assert_eq!(asked.iter().filter(|range| range.is_empty()).count(), 1, "{asked:?}");
}
