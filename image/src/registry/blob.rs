//! Blobs on their way in: from the network through a channel to a thread that hashes and writes.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use oci_spec::image::Descriptor;
use tokio::sync::mpsc;

use super::auth::scope;
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::progress::{BlobState, Meter, Progress, Tap};
use super::transport::{Request, Transport};
use crate::{ContentStore, Error, Lease, Result};

/// How many parts of a body wait for the disk.
const QUEUE: usize = 16;
/// Less than this for as long as the idle timeout is as good as silence, in bytes a second.
const SLOWEST: u64 = 64;
/// A connection that brought this many bytes before it broke was worth the try.
const PROGRESS: u64 = 64 << 10;
/// How often a download that makes progress may break.
const MAX_BREAKS: u32 = 200;

/// Fetches a blob from one place. A connection that breaks is taken up where it broke.
pub(super) async fn fetch(
    transport: &Transport,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    lease: &Lease,
    tap: Option<Box<dyn Tap>>,
    progress: &Progress,
) -> Result<()> {
    let what = format!("fetch blob {} of {} from {}", descriptor.digest(), endpoint.repository, endpoint.registry);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writing = {
        let (lease, descriptor, location) = (lease.clone(), descriptor.clone(), endpoint.registry.clone());
        tokio::task::spawn_blocking(move || write(receiver, &lease, &descriptor, tap, &location))
    };
    let came = receive(transport, endpoint, descriptor, sender, progress).await;
    if came.is_ok() {
        progress.blob(descriptor.digest(), BlobState::Verifying);
    }
    let written = writing
        .await
        .unwrap_or_else(|error| Err(Error::io("write", lease.layout().path(), io::Error::other(error.to_string()))));
    match (came, written) {
        // A network that failed made the writer stop; a writer that failed made the network stop.
        (Ok(_), Ok(true)) => Ok(()),
        (Err(Failure::Problem(problem)), Ok(_)) => Err(Error::registry(&what, problem)),
        (_, Err(error)) | (Err(Failure::Wrong(error)), Ok(_)) => Err(error),
        (Ok(actual), Ok(false)) | (Err(Failure::Stopped(actual)), Ok(_)) => Err(Error::SizeMismatch {
            location: endpoint.registry.clone(),
            digest: descriptor.digest().clone(),
            expected: descriptor.size(),
            actual,
        }),
    }
}

enum Failure {
    Problem(Problem),
    Wrong(Error),
    /// The writer takes no more.
    Stopped(u64),
}

/// Writes what comes; true if it was all, and is in the store now.
fn write(
    mut receiver: mpsc::Receiver<Bytes>,
    lease: &Lease,
    descriptor: &Descriptor,
    mut tap: Option<Box<dyn Tap>>,
    location: &str,
) -> Result<bool> {
    let mut ingest = lease.ingest()?;
    let mut written = 0;
    while let Some(bytes) = receiver.blocking_recv() {
        ingest.write_all(&bytes).map_err(|error| {
            error.downcast::<Error>().unwrap_or_else(|source| Error::io("write to", lease.layout().path(), source))
        })?;
        written += bytes.len() as u64;
        if tap.as_mut().is_some_and(|tap| tap.write(&bytes).is_err()) {
            tap = None;
        }
    }
    if written != descriptor.size() {
        return Ok(false);
    }
    ingest.commit(descriptor).map_err(|error| match error {
        Error::DigestMismatch { expected, actual, .. } => {
            Error::DigestMismatch { location: location.to_owned(), expected, actual }
        }
        other => other,
    })?;
    if let Some(tap) = tap {
        tap.verified();
    }
    Ok(true)
}

/// Receives the whole blob, over as many connections as it takes; the number of bytes.
async fn receive(
    transport: &Transport,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    sender: mpsc::Sender<Bytes>,
    progress: &Progress,
) -> Result<u64, Failure> {
    let mut meter = Meter::new(progress, descriptor);
    meter.at(0);
    let (mut done, mut attempt, mut breaks) = (0, 0, 0);
    loop {
        let before = done;
        match once(transport, endpoint, descriptor, &sender, &mut done, &mut meter).await {
            Ok(()) => return Ok(done),
            Err(Failure::Problem(problem)) if problem.is_transient() => {
                attempt = if done - before >= PROGRESS { 1 } else { attempt + 1 };
                breaks += 1;
                if attempt >= transport.patience.attempts || breaks > MAX_BREAKS {
                    return Err(Failure::Problem(problem));
                }
                progress.blob(descriptor.digest(), BlobState::Retrying { reason: problem.to_string() });
                transport.wait(&problem, attempt).await.map_err(Failure::Problem)?;
            }
            Err(other) => return Err(other),
        }
    }
}

/// One connection's part of it.
async fn once(
    transport: &Transport,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    sender: &mpsc::Sender<Bytes>,
    done: &mut u64,
    meter: &mut Meter,
) -> Result<(), Failure> {
    let size = descriptor.size();
    if *done == size && size > 0 {
        return Ok(());
    }
    let wrong = |actual| {
        Failure::Wrong(Error::SizeMismatch {
            location: endpoint.registry.clone(),
            digest: descriptor.digest().clone(),
            expected: size,
            actual,
        })
    };
    let origin = transport.origin(endpoint).await.map_err(Failure::Problem)?;
    let url = endpoint.url(&origin, &format!("blobs/{}", descriptor.digest()));
    let mut request = Request::new(Method::GET, url);
    if *done > 0 {
        request.header("range", &format!("bytes={done}-"));
    }
    let scopes = [scope(&endpoint.repository, "pull")];
    let mut answer = transport.call(endpoint, &scopes, request).await.map_err(Failure::Problem)?;
    // Who does not know of ranges sends all of it again.
    let mut skip = if answer.status() == 206 { 0 } else { *done };
    if answer.status() == 206 {
        let range = answer.header("content-range").unwrap_or_default();
        if *done == 0 || !range.starts_with(&format!("bytes {done}-")) {
            let reason = "it sent another part of the blob than was asked for";
            return Err(Failure::Problem(Problem::answer(&endpoint.registry, reason)));
        }
    }
    if let Some(length) = answer.header("content-length").and_then(|text| text.parse::<u64>().ok()) {
        let whole = length.saturating_add(*done - skip);
        if whole != size {
            return Err(wrong(whole));
        }
    }
    let (mut waited, mut since) = (Duration::ZERO, 0);
    loop {
        let begun = Instant::now();
        let next = transport.frame(&mut answer).await.map_err(Failure::Problem)?;
        waited += begun.elapsed();
        let Some(mut bytes) = next else {
            return if *done == size { Ok(()) } else { Err(wrong(*done)) };
        };
        since += bytes.len() as u64;
        let idle = transport.patience.idle;
        if waited >= idle {
            if since < SLOWEST * idle.as_secs().max(1) {
                return Err(Failure::Problem(Problem::Stalled { address: endpoint.registry.clone(), waited: idle }));
            }
            (waited, since) = (Duration::ZERO, 0);
        }
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        let _ = bytes.split_to(skipped as usize);
        if bytes.is_empty() {
            continue;
        }
        if *done + bytes.len() as u64 > size {
            return Err(wrong(*done + bytes.len() as u64));
        }
        let count = bytes.len() as u64;
        if sender.send(bytes).await.is_err() {
            return Err(Failure::Stopped(*done));
        }
        *done += count;
        meter.at(*done);
    }
}
