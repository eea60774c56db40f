//! Manifests, indexes and configs: small, and held in memory until all that they lead to is there.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::{Mutex, PoisonError};

use hyper::Method;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;

use super::auth::scope;
use super::endpoint::Endpoint;
use super::problem::{RegistryProblem as Problem, spoken};
use super::transport::{Request, Transport};
use crate::digest::{Hasher, digest_of};
use crate::provider::MAX_DOCUMENT;
use crate::{Error, Lease, Provider, Result, media};

/// The most that is held for one image, in bytes.
const MAX_HELD: usize = 32 << 20;

/// Documents that were fetched and are not in the store yet, over those that are.
#[derive(Debug)]
pub(super) struct Documents {
    lease: Lease,
    held: Mutex<HashMap<Digest, (MediaType, Vec<u8>)>>,
    missing: Mutex<Option<Descriptor>>,
    location: String,
}

impl Documents {
    pub(super) fn new(lease: &Lease, location: &str) -> Self {
        Self { lease: lease.clone(), held: Mutex::default(), missing: Mutex::default(), location: location.to_owned() }
    }

    /// What was asked for and is neither here nor in the store.
    pub(super) fn take_missing(&self) -> Option<Descriptor> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn insert(&self, descriptor: &Descriptor, bytes: Vec<u8>) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let size: usize = held.values().map(|(_, held)| held.len()).sum::<usize>() + bytes.len();
        if size > MAX_HELD {
            let what = format!("what describes the image, with {},", descriptor.digest());
            return Err(Error::TooLarge { what, size: size as u64, limit: MAX_HELD as u64 });
        }
        held.insert(descriptor.digest().clone(), (descriptor.media_type().clone(), bytes));
        Ok(())
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(digest).map(|(_, raw)| raw.clone())
    }

    /// The indexes that are held.
    pub(super) fn indexes(&self) -> Vec<Digest> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let indexes = held.iter().filter(|(_, (media_type, _))| media::is_index(media_type));
        indexes.map(|(digest, _)| digest.clone()).collect()
    }
}

impl Provider for Documents {
    fn open(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        if let Some(bytes) = self.get(descriptor.digest()) {
            return Ok(Box::new(Cursor::new(bytes)));
        }
        // Through the lease: what is used stays.
        let there = self.lease.hold(descriptor).and_then(|()| self.lease.open(descriptor));
        if matches!(there, Err(Error::BlobMissing { .. })) {
            *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptor.clone());
            let (location, digest) = (self.location.clone(), descriptor.digest().clone());
            return Err(Error::BlobMissing { location, digest });
        }
        // A reader of the lease borrows it, and that is ours.
        there
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}

/// All kinds of manifests that are understood; registries choose by it, and some refuse without.
fn accepted() -> String {
    let oci = [MediaType::ImageIndex, MediaType::ImageManifest];
    let mut all: Vec<&str> = oci.iter().map(AsRef::as_ref).collect();
    all.extend([media::DOCKER_INDEX, media::DOCKER_MANIFEST]);
    all.join(", ")
}

/// A manifest or index, by tag or digest, verified as far as that can be.
pub(super) async fn manifest(
    transport: &Transport,
    endpoint: &Endpoint,
    name: &str,
    expected: Option<&Descriptor>,
) -> Result<(Descriptor, Vec<u8>), Problem> {
    let origin = transport.origin(endpoint).await?;
    let mut request = Request::new(Method::GET, endpoint.url(&origin, &format!("manifests/{name}")));
    request.header("accept", &accepted());
    let mut answer = transport.call(endpoint, &[scope(&endpoint.repository, "pull")], request).await?;
    let content_type = answer.header("content-type").map(bare).unwrap_or_default();
    let announced: Option<Digest> = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
    let raw = transport.read(&mut answer, MAX_DOCUMENT).await?;
    let refuse = |reason: String| Problem::answer(&endpoint.registry, reason);
    let media_type = media_type(&content_type, &raw).map_err(refuse)?;
    let by_digest: Option<Digest> = name.parse().ok();
    let wanted = expected.map(Descriptor::digest).or(by_digest.as_ref());
    // Its own header is held against the bytes, too: a registry that contradicts itself is not believed.
    for digest in wanted.into_iter().chain(announced.as_ref()) {
        let Ok(mut hasher) = Hasher::for_digest(digest) else { continue };
        hasher.update(&raw);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(refuse(format!("the manifest {name} should be {digest} and is {actual}")));
        }
    }
    if let Some(expected) = expected
        && expected.size() != raw.len() as u64
    {
        return Err(refuse(format!("the manifest {name} is {} bytes long, not {}", raw.len(), expected.size())));
    }
    let digest = wanted.cloned().unwrap_or_else(|| digest_of(&raw));
    crate::digest::path_parts(&digest).map_err(|error| refuse(error.to_string()))?;
    let descriptor = match expected {
        Some(expected) => expected.clone(),
        None => Descriptor::new(MediaType::from(media_type.as_str()), raw.len() as u64, digest),
    };
    Ok((descriptor, raw))
}

/// The digest of what a tag stands for, without fetching it: that does not count against rate limits.
pub(super) async fn head(transport: &Transport, endpoint: &Endpoint, name: &str) -> Result<Option<Digest>, Problem> {
    let origin = transport.origin(endpoint).await?;
    let mut request = Request::new(Method::HEAD, endpoint.url(&origin, &format!("manifests/{name}")));
    request.header("accept", &accepted());
    let mut answer = transport.call(endpoint, &[scope(&endpoint.repository, "pull")], request).await?;
    transport.read(&mut answer, MAX_DOCUMENT).await?;
    Ok(answer.header("docker-content-digest").and_then(|text| text.parse().ok()))
}

/// A config, or another small blob.
pub(super) async fn small_blob(
    transport: &Transport,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, Problem> {
    let origin = transport.origin(endpoint).await?;
    let url = endpoint.url(&origin, &format!("blobs/{}", descriptor.digest()));
    let request = Request::new(Method::GET, url);
    let mut answer = transport.call(endpoint, &[scope(&endpoint.repository, "pull")], request).await?;
    let raw = transport.read(&mut answer, descriptor.size().min(MAX_DOCUMENT)).await?;
    let refuse = |reason: String| Problem::answer(&endpoint.registry, reason);
    let mut hasher = Hasher::for_digest(descriptor.digest()).map_err(|error| refuse(error.to_string()))?;
    hasher.update(&raw);
    let actual = hasher.finish();
    if actual != *descriptor.digest() || raw.len() as u64 != descriptor.size() {
        return Err(refuse(format!(
            "the blob {} has the digest {actual} and {} bytes",
            descriptor.digest(),
            raw.len()
        )));
    }
    Ok(raw)
}

fn bare(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What a document is: header and body must agree (CVE-2021-41190).
fn media_type(header: &str, raw: &[u8]) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    if header == "text/html" {
        return Err("it sent a web page instead of a manifest: is that a registry?".to_owned());
    }
    let known = |text: &str| {
        let media_type = MediaType::from(text);
        media::is_index(&media_type) || media::is_manifest(&media_type)
    };
    let typed: Typed = serde_json::from_slice(raw).map_err(|_| "what it sent is not a manifest".to_owned())?;
    let vague = matches!(header, "" | "application/json" | "application/octet-stream" | "text/plain");
    match typed.media_type {
        Some(own) if vague && known(&own) => Ok(own),
        Some(own) if own == header && known(header) => Ok(own),
        None if known(header) => Ok(header.to_owned()),
        Some(own) if known(header) || known(&own) => {
            Err(format!("it announces {:?}, which calls itself {:?}", spoken(header), spoken(&own)))
        }
        _ => Err(format!("{:?} is no kind of manifest that is supported", spoken(header))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2021_41190_header_and_body_agree() {
        let (oci, index) = (MediaType::ImageManifest.to_string(), MediaType::ImageIndex.to_string());
        let body = |media_type: &str| format!(r#"{{"mediaType":"{media_type}"}}"#);
        for (header, body, good) in [
            (oci.as_str(), body(&oci), true),
            (&oci, "{}".to_owned(), true),
            (&oci, body(&index), false),
            (&index, body(&oci), false),
            (media::DOCKER_MANIFEST, body(media::DOCKER_MANIFEST), true),
            (media::DOCKER_MANIFEST, body(&oci), false),
            ("application/json", body(&oci), true),
            ("application/json", "{}".to_owned(), false),
            ("", body(&index), true),
            ("text/html", body(&oci), false),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}".to_owned(), false),
            (&oci, "<html>".to_owned(), false),
            (&oci, "[]".to_owned(), false),
        ] {
            assert_eq!(media_type(header, body.as_bytes()).is_ok(), good, "{header} {body}");
        }
        assert_eq!(bare("Application/JSON; charset=utf-8"), "application/json");
    }
}
