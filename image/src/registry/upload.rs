//! Blobs on their way out: looked for, mounted, or uploaded at once or in parts.

use std::io::{self, Read};

use hyper::Method;
use hyper::body::Bytes;
use oci_spec::image::Descriptor;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::auth::scope;
use super::connection::Answer;
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::progress::{BlobState, Meter, Progress};
use super::pull::joined;
use super::transport::{Content, Request, Transport};
use super::url::Url;
use crate::{Error, Layout, Provider, Result, Verified};

const BUFFER: usize = 256 << 10;
/// The most that an answer of an upload has to say.
const MAX_ANSWER: u64 = 64 << 10;

/// A blob that is to be in a repository.
pub(super) struct Upload<'a> {
    pub(super) transport: &'a Transport,
    pub(super) endpoint: &'a Endpoint,
    pub(super) from: &'a Layout,
    pub(super) descriptor: &'a Descriptor,
    /// Repositories of the same registry that may have it.
    pub(super) mounts: &'a [String],
    pub(super) chunk: Option<u64>,
    pub(super) progress: &'a Progress,
}

impl Upload<'_> {
    pub(super) async fn run(&self) -> Result<()> {
        let digest = self.descriptor.digest();
        let what = format!("upload blob {digest} to {} at {}", self.endpoint.repository, self.endpoint.registry);
        let wrap = |problem| Error::registry(&what, problem);
        if self.exists().await.map_err(wrap)? {
            self.progress.blob(digest, BlobState::Exists);
            return Ok(());
        }
        let mut attempt = 0;
        let mut mounts = self.mounts.iter().filter(|repository| **repository != self.endpoint.repository);
        loop {
            let mount = mounts.next();
            let Some(location) = self.begin(mount.map(String::as_str)).await.map_err(wrap)? else {
                self.progress.blob(digest, BlobState::Mounted);
                return Ok(());
            };
            if mount.is_some() && mounts.clone().next().is_some() {
                // Another repository may have it; this session is for nobody, and the registry forgets it.
                self.cancel(&location).await;
                continue;
            }
            let sent = match self.chunk {
                Some(chunk) if self.descriptor.size() > chunk => self.in_parts(location, chunk.max(1)).await,
                _ => self.at_once(location).await,
            };
            match sent {
                Ok(()) => {
                    self.progress.blob(digest, BlobState::Done);
                    return Ok(());
                }
                Err(Error::Registry { problem, .. })
                    if problem.is_transient() && attempt + 1 < self.transport.patience.attempts =>
                {
                    attempt += 1;
                    self.progress.blob(digest, BlobState::Retrying { reason: problem.to_string() });
                    self.transport.wait(&problem, attempt).await.map_err(wrap)?;
                }
                Err(Error::Registry { problem, .. }) => return Err(wrap(*problem)),
                Err(error) => return Err(error),
            }
        }
    }

    async fn exists(&self) -> Result<bool, Problem> {
        let mut request = self.request(Method::HEAD, &format!("blobs/{}", self.descriptor.digest())).await?;
        request.expected = &[404];
        let mut answer = self.call(request, None).await?;
        self.transport.read(&mut answer, MAX_ANSWER).await?;
        let size: Option<u64> = answer.header("content-length").and_then(|text| text.parse().ok());
        Ok(answer.status() == 200 && size.is_none_or(|size| size == self.descriptor.size()))
    }

    /// Begins an upload; `None` if the registry took the blob from the other repository.
    async fn begin(&self, mount: Option<&str>) -> Result<Option<Url>, Problem> {
        let mut request = self.request(Method::POST, "blobs/uploads/").await?;
        if let Some(from) = mount {
            request.url = request.url.with_query("mount", self.descriptor.digest().as_ref()).with_query("from", from);
        }
        let asked = request.url.clone();
        let mut answer = self.call(request, mount).await?;
        self.transport.read(&mut answer, MAX_ANSWER).await?;
        if answer.status() == 201 && mount.is_some() {
            return Ok(None);
        }
        self.location(&asked, &answer).map(Some)
    }

    async fn cancel(&self, location: &Url) {
        let mut request = Request::new(Method::DELETE, location.clone());
        request.expected = &[400, 401, 404, 405];
        // The registry forgets it by itself, too.
        let _ = self.call(request, None).await;
    }

    async fn at_once(&self, location: Url) -> Result<()> {
        let (sender, receiver) = mpsc::channel(4);
        let reading = self.read(sender, 0, self.descriptor.size());
        let url = location.with_query("digest", self.descriptor.digest().as_ref());
        let mut request = Request::new(Method::PUT, url);
        request.header("content-type", "application/octet-stream");
        request.content =
            if self.descriptor.size() == 0 { Content::None } else { Content::Stream(receiver, self.descriptor.size()) };
        let called = self.call(request, None).await;
        // What is wrong with the blob here matters more than what the registry made of it.
        joined(reading.await)??;
        let mut answer = called.map_err(|problem| Error::registry("upload", problem))?;
        let read = self.transport.read(&mut answer, MAX_ANSWER).await;
        read.map(drop).map_err(|problem| Error::registry("upload", problem))
    }

    /// The distribution specification's "Pushing a blob in chunks". A part that failed is asked after, and taken up where it ended.
    async fn in_parts(&self, mut location: Url, chunk: u64) -> Result<()> {
        let wrap = |problem| Error::registry("upload", problem);
        let (mut done, mut attempt) = (0, 0);
        let size = self.descriptor.size();
        while done < size {
            let length = chunk.min(size - done);
            let (sender, receiver) = mpsc::channel(4);
            let reading = self.read(sender, done, length);
            let mut request = Request::new(Method::PATCH, location.clone());
            request.header("content-type", "application/octet-stream");
            request.header("content-range", &format!("{done}-{}", done + length - 1));
            request.content = Content::Stream(receiver, length);
            let called = self.call(request, None).await;
            joined(reading.await)??;
            match called {
                Ok(mut answer) => {
                    self.transport.read(&mut answer, MAX_ANSWER).await.map_err(wrap)?;
                    location = self.location(&location, &answer).map_err(wrap)?;
                    (done, attempt) = (done + length, 0);
                }
                Err(problem) if problem.is_transient() && attempt + 1 < self.transport.patience.attempts => {
                    attempt += 1;
                    let reason = problem.to_string();
                    self.progress.blob(self.descriptor.digest(), BlobState::Retrying { reason });
                    self.transport.wait(&problem, attempt).await.map_err(wrap)?;
                    let mut answer =
                        self.call(Request::new(Method::GET, location.clone()), None).await.map_err(wrap)?;
                    self.transport.read(&mut answer, MAX_ANSWER).await.map_err(wrap)?;
                    let end = answer.header("range").and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok());
                    // A registry that has one byte and one that has none say the same: so ask for little.
                    done = end.map_or(0, |end| if end == 0 { 0 } else { end + 1 });
                    if done > size {
                        let reason = "it says to have got more of the upload than there is";
                        return Err(wrap(Problem::answer(&self.endpoint.registry, reason)));
                    }
                    location = self.location(&location, &answer).map_err(wrap)?;
                }
                Err(problem) => return Err(wrap(problem)),
            }
        }
        let url = location.with_query("digest", self.descriptor.digest().as_ref());
        let mut answer = self.call(Request::new(Method::PUT, url), None).await.map_err(wrap)?;
        self.transport.read(&mut answer, MAX_ANSWER).await.map(drop).map_err(wrap)
    }

    /// Reads a part of the blob into a channel; verified, if the part is all of it.
    fn read(
        &self,
        sender: mpsc::Sender<io::Result<Bytes>>,
        start: u64,
        length: u64,
    ) -> tokio::task::JoinHandle<Result<()>> {
        let (from, descriptor) = (self.from.clone(), self.descriptor.clone());
        let mut meter = Meter::new(self.progress, &descriptor);
        spawn_blocking(move || {
            let location = from.location();
            let whole = start == 0 && length == descriptor.size();
            let mut reader: Box<dyn Read> = if whole {
                Box::new(Verified::new(from.open(&descriptor)?, &descriptor, &location)?)
            } else {
                let mut plain = from.open(&descriptor)?;
                let skipped = io::copy(&mut (&mut plain).take(start), &mut io::sink());
                skipped.map_err(|error| Error::from_read(error, &location, descriptor.digest()))?;
                Box::new(plain.take(length))
            };
            let mut sent = 0;
            while sent < length {
                let mut buffer = vec![0; BUFFER.min((length - sent) as usize)];
                let count = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        // The body ends with an error, so that the registry does not take it for whole.
                        let _ = sender.blocking_send(Err(io::ErrorKind::InvalidData.into()));
                        return Err(Error::from_read(error, &location, descriptor.digest()));
                    }
                };
                buffer.truncate(count);
                sent += count as u64;
                if sender.blocking_send(Ok(buffer.into())).is_err() {
                    // The connection ended; its own error says why.
                    return Ok(());
                }
                meter.at(start + sent);
            }
            Ok(())
        })
    }

    async fn request(&self, method: Method, path: &str) -> Result<Request, Problem> {
        let origin = self.transport.origin(self.endpoint).await?;
        Ok(Request::new(method, self.endpoint.url(&origin, path)))
    }

    async fn call(&self, request: Request, mount: Option<&str>) -> Result<Answer, Problem> {
        let mut scopes = vec![scope(&self.endpoint.repository, "pull,push")];
        scopes.extend(mount.map(|from| scope(from, "pull")));
        self.transport.call(self.endpoint, &scopes, request).await
    }

    fn location(&self, asked: &Url, answer: &Answer) -> Result<Url, Problem> {
        let registry = &self.endpoint.registry;
        let location = answer.header("location");
        let location = location.ok_or_else(|| Problem::answer(registry, "it does not say where to upload to"))?;
        let url = asked.join(location).map_err(|reason| {
            Problem::answer(registry, format!("it says to upload to a place that is not followed: {reason}"))
        })?;
        if asked.origin.https && !url.origin.https {
            // Behind a proxy that ends TLS some registries do not know their own scheme.
            if url.origin.host == asked.origin.host {
                return Ok(Url::new(&asked.origin, url.path));
            }
            return Err(Problem::answer(registry, "it says to upload to a place without TLS"));
        }
        Ok(url)
    }
}
