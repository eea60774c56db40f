//! The crate's one error type.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{Digest, MediaType};

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with an image.
///
/// `Display` is one line and tells of this level only; walk [`source`](StdError::source) for the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file or folder failed.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What was tried, as a verb: "open", "rename".
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file system (or the quota) is full.
    #[error("cannot {operation} {path}: the file system is full; free some space or choose another root", path = path.display())]
    NoSpace {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller may not do this.
    #[error("cannot {operation} {path}: not permitted for this user", path = path.display())]
    Permission {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A string is not an image reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// The string.
        reference: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A string is not an image source.
    #[error("invalid image source {text:?}: {reason}")]
    InvalidSource {
        /// The string.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A string is not a platform such as `linux/arm64/v8`.
    #[error("invalid platform {text:?}: write it as OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT")]
    InvalidPlatform {
        /// The string.
        text: String,
    },
    /// The folder is not an OCI image layout.
    #[error("{path} is not an OCI image layout: {reason}", path = path.display())]
    NotLayout {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: &'static str,
    },
    /// The file is not an archive that can be read.
    #[error("{archive}: {problem}")]
    Archive {
        /// The archive's path, or a word for one that is in memory.
        archive: String,
        /// What is wrong with it.
        problem: ArchiveProblem,
    },
    /// No image of that name is there.
    #[error("{location} has no image {wanted:?}; {}", Listed(available))]
    NoSuchImage {
        /// Where it was looked for.
        location: String,
        /// The name that was asked for; empty if none was and nothing is there.
        wanted: String,
        /// The names that are there.
        available: Vec<String>,
    },
    /// Several images are there and none was named.
    #[error("{location} has several images, name one of them after a colon; {}", Listed(available))]
    AmbiguousImage {
        /// Where they are.
        location: String,
        /// The names that are there.
        available: Vec<String>,
    },
    /// The beginning of an id is the beginning of several images' ids.
    #[error("{prefix:?} is the beginning of several image ids, write more of it; {}", Listed(matches))]
    AmbiguousId {
        /// What was asked for.
        prefix: String,
        /// The ids, with a name of each if it has one.
        matches: Vec<String>,
    },
    /// An index or manifest is damaged or missing, so nobody knows which blobs belong to it.
    #[error(
        "nothing is removed: the manifest {digest}{} is missing or damaged; untag that image or copy it again",
        Of(image)
    )]
    Uncollectable {
        /// The document.
        digest: Digest,
        /// A name of the image that it belongs to; empty if it has none.
        image: String,
    },
    /// A change that `docker commit --change` would not take either.
    #[error("invalid change {text:?}: {reason}")]
    InvalidChange {
        /// The instruction.
        text: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// An image that is being made is none that could be read again.
    #[error("cannot make an image: {reason}")]
    InvalidCommit {
        /// What is wrong.
        reason: String,
    },
    /// A blob that a document refers to is missing.
    #[error("{location} has no blob {digest}: the image is incomplete, copy it again")]
    BlobMissing {
        /// Where it was looked for.
        location: String,
        /// The blob.
        digest: Digest,
    },
    /// A blob is shorter or longer than its descriptor says.
    #[error("blob {digest} in {location} is {} than its descriptor says ({expected} bytes): copy the image again", Ordered(*actual, *expected))]
    SizeMismatch {
        /// Where the bytes came from.
        location: String,
        /// The blob.
        digest: Digest,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes seen; if there were more than expected, at least so many.
        actual: u64,
    },
    /// A blob's bytes do not have its digest.
    #[error("blob {expected} in {location} is damaged, its bytes have the digest {actual}: copy the image again")]
    DigestMismatch {
        /// Where the bytes came from.
        location: String,
        /// The digest by the descriptor.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// Reading the bytes of a blob failed.
    #[error("cannot read blob {digest} in {location}")]
    BlobRead {
        /// Where the bytes came from.
        location: String,
        /// The blob.
        digest: Digest,
        /// The cause.
        source: io::Error,
    },
    /// A digest's algorithm is not one that can be verified.
    #[error("digest {digest} cannot be verified: only sha256 and sha512 are supported")]
    UnsupportedDigest {
        /// The digest.
        digest: Digest,
    },
    /// A document or an index is larger than any honest one.
    #[error("{what} is {size} bytes long, more than the limit of {limit}")]
    TooLarge {
        /// What it is, with its digest or path.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A media type that an image cannot have in that place.
    #[error("{what} {digest} has the media type {media_type}, which is not supported")]
    UnsupportedMediaType {
        /// "manifest", "config" or "layer".
        what: &'static str,
        /// The blob.
        digest: Digest,
        /// Its media type.
        media_type: MediaType,
    },
    /// A document says of itself another media type than its descriptor does.
    #[error("{digest} was announced as {announced} and calls itself {found}: refused")]
    MediaTypeMismatch {
        /// The document.
        digest: Digest,
        /// By the descriptor.
        announced: MediaType,
        /// By the document's own `mediaType`.
        found: String,
    },
    /// A document that two readers could take for two different things (CVE-2021-41190).
    #[error("{what} is ambiguous, {problem}: refused")]
    AmbiguousDocument {
        /// The document.
        what: String,
        /// Why it is ambiguous.
        problem: String,
    },
    /// A document is not the JSON that it should be.
    #[error("{what} is not valid, copy the image again")]
    InvalidDocument {
        /// What it is, with its digest or path.
        what: String,
        /// The parser's answer.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Manifest and config disagree about the number of layers.
    #[error("manifest {digest} has {layers} layers but its config has {diff_ids} diff ids")]
    LayerCount {
        /// The manifest.
        digest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the config.
        diff_ids: usize,
    },
    /// The config names a layer's content by something that is not a digest.
    #[error("config {digest} has an invalid diff id {diff_id:?}")]
    InvalidDiffId {
        /// The config.
        digest: Digest,
        /// The string.
        diff_id: String,
    },
    /// A layer lies elsewhere, at URLs that the image names: never followed (CVE-2020-15157).
    #[error("layer {digest} is a foreign layer, to be fetched from a URL that the image names: not supported")]
    ForeignLayer {
        /// The layer.
        digest: Digest,
    },
    /// The index has no image for this platform.
    #[error("{digest} has no image for {wanted}; {}", Listed(available))]
    NoPlatform {
        /// The index.
        digest: Digest,
        /// The platform that was asked for.
        wanted: String,
        /// The platforms that are there.
        available: Vec<String>,
    },
    /// Indexes within indexes, deeper or more than any honest image has.
    #[error("index {digest} leads to too many nested indexes: refused")]
    TooDeep {
        /// The index where the limit was reached.
        digest: Digest,
    },
    /// A path in a layout is a symbolic link, or not the kind of file it should be.
    #[error("{path} is {found}, not a {expected}: refused", path = path.display())]
    UnsafePath {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What it should be: "regular file" or "folder".
        expected: &'static str,
    },
    /// Something with a registry failed.
    #[cfg(feature = "registry")]
    #[error("cannot {what}")]
    Registry {
        /// What was tried: "pull docker.io/library/alpine:latest".
        what: String,
        /// What went wrong.
        #[source]
        problem: Box<crate::RegistryProblem>,
    },
    /// An image that is in a registry.
    #[error(
        "cannot fetch {reference} from here: use `Registry::pull`, or run `skopeo copy docker://{reference} oci:DIR:TAG`, then use oci:DIR:TAG"
    )]
    RegistryUnsupported {
        /// The image.
        reference: String,
    },
}

impl Error {
    /// An I/O error on `path`, sorted into [`Error::NoSpace`], [`Error::Permission`] or [`Error::Io`].
    pub(crate) fn io(operation: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { operation, path, source },
            io::ErrorKind::PermissionDenied => Self::Permission { operation, path, source },
            _ => Self::Io { operation, path, source },
        }
    }

    #[cfg(feature = "registry")]
    pub(crate) fn registry(what: &str, problem: crate::RegistryProblem) -> Self {
        Self::Registry { what: what.to_owned(), problem: Box::new(problem) }
    }

    /// The error that a reader of this crate put into an `io::Error`, or else `BlobRead`.
    pub(crate) fn from_read(source: io::Error, location: &str, digest: &Digest) -> Self {
        match source.downcast::<Self>() {
            Ok(error) => error,
            Err(source) => Self::BlobRead { location: location.to_owned(), digest: digest.clone(), source },
        }
    }
}

impl From<Error> for io::Error {
    /// For `Read` and `Write` implementations; `io::Error::downcast` gives the error back.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } | Error::NoSpace { source, .. } | Error::Permission { source, .. } => {
                source.kind()
            }
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// What is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveProblem {
    /// It does not begin like a tar file.
    #[error("not a tar archive")]
    NotTar,
    /// It is compressed in a way that is not read.
    #[error("compressed with {0}, which is not supported for archives; decompress it first")]
    Compressed(&'static str),
    /// The gzip stream is broken.
    #[error("the gzip stream is damaged near byte {0}")]
    Gzip(u64),
    /// It ends before its end.
    #[error("truncated at byte {0}; copy or download it again")]
    Truncated(u64),
    /// A header's checksum or a field is wrong.
    #[error("damaged tar header at byte {offset} ({field})")]
    Header {
        /// Where the header is.
        offset: u64,
        /// The field that is wrong.
        field: &'static str,
    },
    /// Something that tar readers take differently.
    #[error("refused because tar readers disagree about it: {what} at byte {offset}")]
    Oddity {
        /// Where the header is.
        offset: u64,
        /// What is odd.
        what: &'static str,
    },
    /// The same file twice.
    #[error("{0:?} is in it twice: refused")]
    Duplicate(String),
    /// A name that leads out of the archive.
    #[error("{0:?} leads out of the archive: refused")]
    Outside(String),
    /// A file that should be there is not.
    #[error("{0} is missing: not an image archive, or one cut short")]
    Missing(&'static str),
    /// It is an image archive, of the other kind.
    #[error("this is another kind of image archive; write {0}:FILE")]
    OtherKind(&'static str),
    /// A link that leads nowhere, or in a circle.
    #[error("the link {0:?} leads nowhere")]
    Dangling(String),
    /// More entries than any honest archive has.
    #[error("more than {0} entries: refused")]
    TooManyEntries(usize),
    /// It inflates to more than any honest archive.
    #[error("a decompression bomb (inflates to more than {0} bytes): refused")]
    Bomb(u64),
    /// Written by a Docker from before 2016.
    #[error(
        "it has no manifest.json; if an old Docker (before 1.10) saved it, load it there and save it with a newer one"
    )]
    NoManifest,
    /// It is not a regular file.
    #[error("not a regular file")]
    NotFile,
}

struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        if self.0.is_empty() {
            return f.write_str("nothing is there");
        }
        write!(f, "there {}: ", if self.0.len() == 1 { "is" } else { "are" })?;
        for (position, name) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{}", if position == 0 { "" } else { ", " }, name.escape_debug())?;
        }
        if self.0.len() > SHOWN {
            write!(f, " and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

struct Of<'a>(&'a str);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " of image {:?}", self.0) }
    }
}

struct Ordered(u64, u64);

impl fmt::Display for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < self.1 { write!(f, "shorter ({} bytes)", self.0) } else { f.write_str("longer") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_errors_are_sorted_by_what_a_person_can_do() {
        use nix::errno::Errno;
        let cases = [
            (Errno::ENOSPC, "cannot write /x: the file system is full; free some space or choose another root"),
            (Errno::EDQUOT, "cannot write /x: the file system is full; free some space or choose another root"),
            (Errno::EACCES, "cannot write /x: not permitted for this user"),
            (Errno::EPERM, "cannot write /x: not permitted for this user"),
            (Errno::EROFS, "cannot write /x"),
        ];
        for (errno, text) in cases {
            let error = Error::io("write", "/x", errno);
            assert_eq!(error.to_string(), text, "{errno}");
            assert!(error.source().is_some(), "{errno}: the cause is told apart from the message");
        }
    }

    #[test]
    fn names_are_listed_on_one_line_and_not_without_end() {
        let available: Vec<String> = (0..100).map(|n| format!("name\n{n}")).collect();
        let text = Error::AmbiguousImage { location: "it".to_owned(), available }.to_string();
        assert!(text.contains("there are: name\\n0, name\\n1,") && text.ends_with(" and 80 more"), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}
