//! Blobs on their way in: from the network through a channel to a thread that hashes and writes.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::body::Bytes;
use oci_spec::image::Descriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::Registry;
use super::auth::scope;
use super::connection::Answer;
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::progress::{BlobState, Meter, Progress, Taps};
use super::transport::{Request, Transport};
use crate::layout::Part;
use crate::{Error, Result};

/// How many parts of a body wait for the disk.
const QUEUE: usize = 8;
/// Less than this for as long as the idle timeout is as good as silence, in bytes a second.
const SLOWEST: u64 = 64;
/// A connection that brought this many bytes before it broke was worth the try.
const PROGRESS: u64 = 64 << 10;
/// How often a download that makes progress may break.
const MAX_BREAKS: u32 = 200;
/// Bytes that a connection of several fetches at once. They wait in memory for those before them.
const RANGE: u64 = 4 << 20;
/// With less than this to come one connection is enough.
const RANGES_FROM: u64 = 4 * RANGE;

/// Fetches a blob from one place, or what is missing of it. A connection that breaks is taken up where it broke. While there are
/// permits, more connections help.
pub(super) async fn fetch(
    registry: &Registry,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    part: Box<Part>,
    taps: Option<&dyn Taps>,
    progress: &Progress,
    permits: &Arc<Semaphore>,
) -> Result<()> {
    let what = format!("fetch blob {} of {} from {}", descriptor.digest(), endpoint.repository, endpoint.registry);
    let mut part = part;
    loop {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (found, begin) = (part.found(), part.written());
        if let Some(taps) = taps {
            taps.coming(descriptor, part.follow()?);
        }
        let writing = {
            let (descriptor, location) = (descriptor.clone(), endpoint.registry.clone());
            tokio::task::spawn_blocking(move || write(receiver, part, &descriptor, &location))
        };
        let mut download = Download { registry, endpoint, descriptor, sender, done: begin, permits };
        let came = download.receive(progress).await;
        let actual = download.done;
        drop(download);
        if came.is_ok() {
            progress.blob(descriptor.digest(), BlobState::Verifying);
        }
        let written = writing
            .await
            .unwrap_or_else(|error| Err(Error::io("write", "the content store", io::Error::other(error.to_string()))));
        return match (came, written) {
            // A network that failed made the writer stop; a writer that failed made the network stop.
            (Ok(()), Ok(Written::All)) => Ok(()),
            // What a killed process had left may have been damaged by whatever ended it: once more, from nothing.
            (Ok(()), Ok(Written::Wrong(mut wrong, _))) if found > 0 => {
                wrong.start_over()?;
                part = wrong;
                continue;
            }
            (Err(Failure::Problem(problem)), Ok(_)) => Err(Error::registry(&what, problem)),
            (Ok(()), Ok(Written::Wrong(_, error))) | (_, Err(error)) | (Err(Failure::Wrong(error)), Ok(_)) => {
                Err(error)
            }
            (Ok(()), Ok(Written::Less)) | (Err(Failure::Stopped), Ok(_)) => Err(Error::SizeMismatch {
                location: endpoint.registry.clone(),
                digest: descriptor.digest().clone(),
                expected: descriptor.size(),
                actual,
            }),
        };
    }
}

enum Failure {
    Problem(Problem),
    Wrong(Error),
    /// The writer takes no more.
    Stopped,
}

/// What has become of a blob.
enum Written {
    /// It is in the store.
    All,
    /// It did not come whole.
    Less,
    /// It is another one.
    Wrong(Box<Part>, Error),
}

/// Writes what comes.
fn write(
    mut receiver: mpsc::Receiver<Bytes>,
    mut part: Box<Part>,
    descriptor: &Descriptor,
    location: &str,
) -> Result<Written> {
    while let Some(bytes) = receiver.blocking_recv() {
        part.add(&bytes)?;
    }
    if part.written() != descriptor.size() {
        return Ok(Written::Less);
    }
    match part.commit(descriptor) {
        Ok(()) => Ok(Written::All),
        Err(Error::DigestMismatch { expected, actual, .. }) => {
            Ok(Written::Wrong(part, Error::DigestMismatch { location: location.to_owned(), expected, actual }))
        }
        Err(error) => Err(error),
    }
}

/// A blob that is being received.
struct Download<'a> {
    registry: &'a Registry,
    endpoint: &'a Endpoint,
    descriptor: &'a Descriptor,
    sender: mpsc::Sender<Bytes>,
    /// Bytes that were handed to the writer, and those before them.
    done: u64,
    permits: &'a Arc<Semaphore>,
}

impl Download<'_> {
    fn transport(&self) -> &Transport {
        self.registry.transport()
    }

    /// Receives what is missing, over as many connections as it takes.
    async fn receive(&mut self, progress: &Progress) -> Result<(), Failure> {
        let mut meter = Meter::new(progress, self.descriptor);
        meter.at(self.done);
        let (mut attempt, mut breaks, mut ranges) = (0, 0, true);
        loop {
            let before = self.done;
            let came = if ranges
                && self.descriptor.size() - self.done >= RANGES_FROM
                && self.permits.available_permits() > 0
            {
                self.ranges(&mut meter).await
            } else {
                self.rest(&mut meter).await.map(|()| Came::All)
            };
            match came {
                Ok(Came::All) => return Ok(()),
                Ok(Came::NoRanges) => ranges = false,
                Err(Failure::Problem(problem)) if problem.is_transient() => {
                    let patience = &self.transport().patience;
                    attempt = if self.done - before >= PROGRESS { 1 } else { attempt + 1 };
                    breaks += 1;
                    if attempt >= patience.attempts || breaks > MAX_BREAKS {
                        return Err(Failure::Problem(problem));
                    }
                    progress.blob(self.descriptor.digest(), BlobState::Retrying { reason: problem.to_string() });
                    self.transport().wait(&problem, attempt).await.map_err(Failure::Problem)?;
                }
                Err(other) => return Err(other),
            }
        }
    }

    /// Hands bytes to the writer.
    async fn hand_on(&mut self, bytes: Bytes, meter: &mut Meter) -> Result<(), Failure> {
        let count = bytes.len() as u64;
        if self.sender.send(bytes).await.is_err() {
            return Err(Failure::Stopped);
        }
        self.done += count;
        meter.at(self.done);
        Ok(())
    }

    /// Fetches ranges side by side: one that this layer may always have, and one for each permit that nobody else wants.
    async fn ranges(&mut self, meter: &mut Meter) -> Result<Came, Failure> {
        let size = self.descriptor.size();
        let mut moving: VecDeque<Range> = VecDeque::new();
        let mut next = self.done;
        while self.done < size {
            while next < size {
                let permit = match moving.front() {
                    None => None,
                    Some(_) => match Arc::clone(self.permits).try_acquire_owned() {
                        Ok(permit) => Some(permit),
                        Err(_) => break,
                    },
                };
                let end = (next + RANGE).min(size);
                let (registry, endpoint, descriptor) =
                    (self.registry.clone(), self.endpoint.clone(), self.descriptor.clone());
                let task = tokio::spawn(async move { range(&registry, &endpoint, &descriptor, next, end).await });
                moving.push_back(Range { task, _permit: permit });
                next = end;
            }
            let Some(mut first) = moving.pop_front() else { break };
            let came = (&mut first.task).await.unwrap_or_else(|error| {
                Err(Failure::Wrong(Error::io("run", "a download", io::Error::other(error.to_string()))))
            });
            match came? {
                Some(bytes) => self.hand_on(bytes, meter).await?,
                None => return Ok(Came::NoRanges),
            }
        }
        Ok(Came::All)
    }

    fn wrong_size(&self, actual: u64) -> Failure {
        wrong_size(self.endpoint, self.descriptor, actual)
    }

    /// All that is missing, by one connection.
    async fn rest(&mut self, meter: &mut Meter) -> Result<(), Failure> {
        let size = self.descriptor.size();
        if self.done == size && size > 0 {
            return Ok(());
        }
        let (registry, endpoint) = (self.registry, self.endpoint);
        let range = if self.done > 0 { Some(format!("bytes={}-", self.done)) } else { None };
        let mut answer = ask(registry, endpoint, self.descriptor, range).await?;
        // Who does not know of ranges sends all of it again.
        let mut skip = if answer.status() == 206 { 0 } else { self.done };
        if answer.status() == 206 {
            let range = answer.header("content-range").unwrap_or_default();
            if self.done == 0 || !range.starts_with(&format!("bytes {}-", self.done)) {
                return Err(other_part(endpoint));
            }
        }
        if let Some(length) = answer.header("content-length").and_then(|text| text.parse::<u64>().ok()) {
            let whole = length.saturating_add(self.done - skip);
            if whole != size {
                return Err(self.wrong_size(whole));
            }
        }
        let mut pace = Pace::default();
        loop {
            let Some(mut bytes) = pace.frame(registry.transport(), endpoint, &mut answer).await? else {
                return if self.done == size { Ok(()) } else { Err(self.wrong_size(self.done)) };
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let _ = bytes.split_to(skipped as usize);
            if bytes.is_empty() {
                continue;
            }
            if self.done + bytes.len() as u64 > size {
                return Err(self.wrong_size(self.done + bytes.len() as u64));
            }
            self.hand_on(bytes, meter).await?;
        }
    }
}

/// What came of ranges.
enum Came {
    All,
    /// The place knows no ranges.
    NoRanges,
}

/// A range on its way; dropped, it is given up.
struct Range {
    task: JoinHandle<Result<Option<Bytes>, Failure>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Drop for Range {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Fetches a range whole; `None` if the place knows no ranges.
async fn range(
    registry: &Registry,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    begin: u64,
    end: u64,
) -> Result<Option<Bytes>, Failure> {
    let mut answer = ask(registry, endpoint, descriptor, Some(format!("bytes={begin}-{}", end - 1))).await?;
    if answer.status() != 206 {
        return Ok(None);
    }
    let expected = format!("bytes {begin}-{}/", end - 1);
    if !answer.header("content-range").unwrap_or_default().starts_with(&expected) {
        return Err(other_part(endpoint));
    }
    let wanted = (end - begin) as usize;
    let mut whole = Vec::with_capacity(wanted);
    let mut pace = Pace::default();
    while let Some(bytes) = pace.frame(registry.transport(), endpoint, &mut answer).await? {
        if whole.len() + bytes.len() > wanted {
            return Err(other_part(endpoint));
        }
        whole.extend_from_slice(&bytes);
    }
    if whole.len() < wanted {
        return Err(other_part(endpoint));
    }
    Ok(Some(whole.into()))
}

/// Asks for a blob, or for a range of it.
async fn ask(
    registry: &Registry,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    range: Option<String>,
) -> Result<Answer, Failure> {
    let transport = registry.transport();
    let origin = transport.origin(endpoint).await.map_err(Failure::Problem)?;
    let url = endpoint.url(&origin, &format!("blobs/{}", descriptor.digest()));
    let mut request = Request::new(Method::GET, url);
    if let Some(range) = range {
        request.header("range", &range);
    }
    let scopes = [scope(&endpoint.repository, "pull")];
    transport.call(endpoint, &scopes, request).await.map_err(Failure::Problem)
}

fn other_part(endpoint: &Endpoint) -> Failure {
    let reason = "it sent another part of the blob than was asked for";
    Failure::Problem(Problem::answer(&endpoint.registry, reason))
}

fn wrong_size(endpoint: &Endpoint, descriptor: &Descriptor, actual: u64) -> Failure {
    Failure::Wrong(Error::SizeMismatch {
        location: endpoint.registry.clone(),
        digest: descriptor.digest().clone(),
        expected: descriptor.size(),
        actual,
    })
}

/// How fast an answer comes.
#[derive(Default)]
struct Pace {
    waited: Duration,
    since: u64,
}

impl Pace {
    /// The next bytes. Who sends next to nothing for long counts as silent.
    async fn frame(
        &mut self,
        transport: &Transport,
        endpoint: &Endpoint,
        answer: &mut Answer,
    ) -> Result<Option<Bytes>, Failure> {
        let begun = Instant::now();
        let next = transport.frame(answer).await.map_err(Failure::Problem)?;
        self.waited += begun.elapsed();
        self.since += next.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let idle = transport.patience.idle;
        if self.waited >= idle {
            if next.is_some() && self.since < SLOWEST * idle.as_secs().max(1) {
                return Err(Failure::Problem(Problem::Stalled { address: endpoint.registry.clone(), waited: idle }));
            }
            *self = Self::default();
        }
        Ok(next)
    }
}
