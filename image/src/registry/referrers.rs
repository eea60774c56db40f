//! What else a registry is asked: tags, deletion, and what refers to an image.

use hyper::Method;
use oci_spec::image::{Descriptor, Digest, ImageIndex, MediaType};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Registry;
use super::auth::scope;
use super::document;
use super::endpoint::Endpoint;
use super::problem::RegistryProblem as Problem;
use super::transport::{Content, Request, Transport};
use super::url::Url;
use crate::manifest::{Kind, parse};
use crate::provider::MAX_DOCUMENT;
use crate::{Error, Reference, Result, digest_of};

/// How many answers a list may come in, and how many names it may have.
const MAX_PAGES: usize = 1000;
const MAX_NAMES: usize = 100_000;

impl Registry {
    /// All tags of the reference's repository, in the registry's order.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`].
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let what = format!("list the tags of {}/{}", reference.registry(), reference.repository());
        self.list(reference).await.map_err(|problem| Error::registry(&what, problem))
    }

    async fn list(&self, reference: &Reference) -> Result<Vec<String>, Problem> {
        #[derive(Deserialize)]
        struct Tags {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let endpoint = self.home(reference)?;
        let origin = self.transport().origin(&endpoint).await?;
        let (mut url, mut tags) = (endpoint.url(&origin, "tags/list"), Vec::new());
        for _ in 0..MAX_PAGES {
            let scopes = [scope(&endpoint.repository, "pull")];
            let mut answer = self.transport().call(&endpoint, &scopes, Request::new(Method::GET, url.clone())).await?;
            let raw = self.transport().read(&mut answer, MAX_DOCUMENT).await?;
            let page: Tags = serde_json::from_slice(&raw)
                .map_err(|_| Problem::answer(&endpoint.registry, "its list of tags is not valid"))?;
            tags.extend(page.tags.unwrap_or_default());
            if tags.len() > MAX_NAMES {
                return Err(Problem::answer(&endpoint.registry, "its list of tags has no end"));
            }
            match answer.header("link").and_then(next) {
                None => return Ok(tags),
                Some(link) => {
                    let wrong = |_| Problem::answer(&endpoint.registry, "its list of tags goes on elsewhere");
                    let following = url.join(link).map_err(wrong)?;
                    // Behind a proxy some registries do not know their own scheme.
                    if following.origin.host != url.origin.host {
                        return Err(wrong(""));
                    }
                    url = Url::new(&url.origin, following.path);
                }
            }
        }
        Err(Problem::answer(&endpoint.registry, "its list of tags has no end"))
    }

    /// Deletes what the reference stands for: its manifest or index, with all tags that name it. The registry removes blobs in its own time.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`]; many registries are set up to refuse this, with status 405.
    pub async fn delete(&self, reference: &Reference) -> Result<()> {
        let what = format!("delete {reference}");
        let work = async {
            let endpoint = self.home(reference)?;
            let digest = match (reference.digest(), reference.tag()) {
                (Some(digest), _) => digest,
                (None, tag) => {
                    let tag = tag.unwrap_or("latest");
                    match document::head(self.transport(), &endpoint, tag).await? {
                        Some(digest) => digest,
                        None => document::manifest(self.transport(), &endpoint, tag, None).await?.0.digest().clone(),
                    }
                }
            };
            let origin = self.transport().origin(&endpoint).await?;
            let request = Request::new(Method::DELETE, endpoint.url(&origin, &format!("manifests/{digest}")));
            let scopes = [scope(&endpoint.repository, "delete,pull,push")];
            let mut answer = self.transport().call(&endpoint, &scopes, request).await?;
            self.transport().read(&mut answer, 64 << 10).await.map(drop)
        };
        work.await.map_err(|problem| Error::registry(&what, problem))
    }

    /// What refers to a manifest (signatures, SBOMs), by the referrers API or the fallback tag.
    ///
    /// With `kind`, only those of this artifact type.
    ///
    /// # Errors
    ///
    /// [`Error::Registry`]; nothing that refers to it is no error.
    pub async fn referrers(
        &self,
        reference: &Reference,
        digest: &Digest,
        kind: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let what = format!("list what refers to {digest} in {}/{}", reference.registry(), reference.repository());
        let work = async {
            crate::digest::path_parts(digest)
                .map_err(|error| Problem::answer(reference.registry(), error.to_string()))?;
            let endpoint = self.home(reference)?;
            let origin = self.transport().origin(&endpoint).await?;
            let mut url = endpoint.url(&origin, &format!("referrers/{digest}"));
            if let Some(kind) = kind {
                url = url.with_query("artifactType", kind);
            }
            let mut request = Request::new(Method::GET, url);
            request.header("accept", MediaType::ImageIndex.as_ref());
            request.expected = &[404];
            let scopes = [scope(&endpoint.repository, "pull")];
            let mut answer = self.transport().call(&endpoint, &scopes, request).await?;
            let raw = self.transport().read(&mut answer, MAX_DOCUMENT).await?;
            let index =
                if answer.status() == 404 { fallback(self.transport(), &endpoint, digest).await? } else { Some(raw) };
            let Some(raw) = index else { return Ok(Vec::new()) };
            let invalid = |_| Problem::answer(&endpoint.registry, "its list of referrers is not valid");
            let known = Descriptor::new(MediaType::ImageIndex, raw.len() as u64, digest_of(&raw));
            let index: ImageIndex = parse(&raw, Kind::Index, &known).map_err(invalid)?;
            Ok(index.manifests().clone())
        };
        let found: Vec<Descriptor> = work.await.map_err(|problem| Error::registry(&what, problem))?;
        // A registry may leave the choice to us.
        let chosen = |entry: &Descriptor| match (kind, entry.artifact_type()) {
            (Some(kind), Some(artifact)) => artifact.as_ref() == kind,
            (Some(_), None) => false,
            (None, _) => true,
        };
        Ok(found.into_iter().filter(chosen).collect())
    }
}

/// The target of a `Link` header with `rel="next"` (RFC 8288).
fn next(header: &str) -> Option<&str> {
    let (target, parameters) = header.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|parameter| {
        let parameter = parameter.trim().to_ascii_lowercase();
        parameter == "rel=next" || parameter == "rel=\"next\""
    });
    is_next.then_some(target)
}

/// The tag that lists what refers to a digest ("Referrers Tag Schema").
fn tag(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.digest().chars().take(64).collect::<String>())
}

async fn fallback(transport: &Transport, endpoint: &Endpoint, digest: &Digest) -> Result<Option<Vec<u8>>, Problem> {
    match document::manifest(transport, endpoint, &tag(digest), None).await {
        Ok((_, raw)) => Ok(Some(raw)),
        Err(Problem::NotFound { .. }) => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Adds a manifest to the list in the fallback tag of its subject. Others who do the same at this moment may lose theirs: the
/// specification has nothing against that.
pub(super) async fn add_to_tag(
    transport: &Transport,
    endpoint: &Endpoint,
    subject: &Descriptor,
    descriptor: &Descriptor,
    raw: &[u8],
) -> Result<(), Problem> {
    let invalid = |_| Problem::answer(&endpoint.registry, "its list of referrers is not valid");
    crate::digest::path_parts(subject.digest())
        .map_err(|error| Problem::answer(&endpoint.registry, error.to_string()))?;
    let mut index: Value = match fallback(transport, endpoint, subject.digest()).await? {
        Some(raw) => serde_json::from_slice(&raw).map_err(invalid)?,
        None => json!({ "schemaVersion": 2, "mediaType": MediaType::ImageIndex.as_ref(), "manifests": [] }),
    };
    let manifest: Value = serde_json::from_slice(raw).map_err(invalid)?;
    let mut entry = json!({
        "mediaType": descriptor.media_type().as_ref(),
        "digest": descriptor.digest().to_string(),
        "size": descriptor.size(),
    });
    let kind = manifest.get("artifactType").or_else(|| manifest.pointer("/config/mediaType"));
    if let Some(kind) = kind {
        entry["artifactType"] = kind.clone();
    }
    if let Some(annotations) = manifest.get("annotations") {
        entry["annotations"] = annotations.clone();
    }
    let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(Problem::answer(&endpoint.registry, "its list of referrers is not valid"));
    };
    if manifests.iter().any(|other| other["digest"] == entry["digest"]) {
        return Ok(());
    }
    manifests.push(entry);
    let origin = transport.origin(endpoint).await?;
    let url = endpoint.url(&origin, &format!("manifests/{}", tag(subject.digest())));
    let mut request = Request::new(Method::PUT, url);
    request.header("content-type", MediaType::ImageIndex.as_ref());
    request.content = Content::Bytes(index.to_string().into_bytes().into());
    let mut answer = transport.call(endpoint, &[scope(&endpoint.repository, "pull,push")], request).await?;
    transport.read(&mut answer, 64 << 10).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_tags() {
        assert_eq!(next(r#"</v2/a/tags/list?last=b&n=2>; rel="next""#), Some("/v2/a/tags/list?last=b&n=2"));
        assert_eq!(next("<x>;rel=next"), Some("x"));
        assert_eq!(next("<x>; rel=\"prev\""), None);
        assert_eq!(next("x; rel=next"), None);
        let digest = digest_of(b"x");
        assert_eq!(tag(&digest), format!("sha256-{}", digest.digest()));
    }
}
