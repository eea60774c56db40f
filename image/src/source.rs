//! Where images come from, as people write it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::image::Descriptor;

use crate::{DockerArchive, Error, Layout, Listing, OciArchive, Platform, Provider, Reference, Result, copy};

const OCI: &str = "oci";
const OCI_ARCHIVE: &str = "oci-archive";
const DOCKER_ARCHIVE: &str = "docker-archive";

/// Where an image comes from: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:REFERENCE]`, or a reference.
///
/// The syntax is that of containers/image (skopeo, podman, buildah): the path ends at the first colon, so it cannot have one, and `@N`
/// instead of a tag is the N-th image, from 0. A reference may have `docker://` before it.
///
/// ```
/// use estiba_image::Source;
/// let source: Source = "oci:/images/busybox:1.36".parse()?;
/// assert_eq!(source, Source::OciDir { path: "/images/busybox".into(), tag: Some("1.36".into()) });
/// assert_eq!("alpine".parse::<Source>()?.to_string(), "docker.io/library/alpine:latest");
/// # Ok::<(), estiba_image::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder that is an OCI image layout.
    OciDir {
        /// The folder.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A tar file of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A tar file that `docker save` wrote.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which of its images; not needed if there is only one.
        tag: Option<String>,
    },
    /// A name in a registry.
    Registry(Reference),
}

/// An image that is in the content store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its name in the content store.
    pub name: String,
    /// Its manifest.
    pub manifest: Descriptor,
}

impl Source {
    /// Copies the image for this machine's platform into the content store, verified, and names it there.
    ///
    /// The name is the full reference that the source gives the image (`io.containerd.image.name`, or
    /// `org.opencontainers.image.ref.name` if it is one, or the `RepoTags` of `docker save`; of several the one that was asked for, or
    /// the first). An image without one is named for where it came from, as this type writes it: `oci:/images/busybox:1.36`. No other name
    /// changes; the image that had it before stays listed without one. Importing the same again reads the documents, compares the sizes of the blobs, and writes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchImage`] and [`Error::AmbiguousImage`] tell which images there are; [`Error::RegistryUnsupported`] for a
    /// [`Source::Registry`].
    pub fn import(&self, to: &Layout) -> Result<Imported> {
        self.import_for(&Platform::host(), to)
    }

    /// The same for another platform.
    pub fn import_for(&self, platform: &Platform, to: &Layout) -> Result<Imported> {
        match self {
            Self::OciDir { path, tag } => {
                let layout = Layout::open(path)?;
                self.import_from(&layout, &layout.images()?, tag.as_deref(), platform, to)
            }
            Self::OciArchive { path, tag } => {
                let archive = OciArchive::open(path)?;
                self.import_from(&archive, &archive.images()?, tag.as_deref(), platform, to)
            }
            Self::DockerArchive { path, tag } => {
                let archive = DockerArchive::open(path)?;
                self.import_from(&archive, archive.images(), tag.as_deref(), platform, to)
            }
            Self::Registry(reference) => Err(Error::RegistryUnsupported { reference: reference.to_string() }),
        }
    }

    fn import_from(
        &self,
        from: &dyn Provider,
        images: &[Listing],
        wanted: Option<&str>,
        platform: &Platform,
        to: &Layout,
    ) -> Result<Imported> {
        let Choice { root, name } = choose(images, wanted, platform, &from.location())?;
        let lease = to.lease()?;
        let manifest = copy(from, root, platform, &lease)?;
        let name = match name.and_then(Reference::from_full) {
            Some(reference) => reference.to_string(),
            None => self.local_name(name)?,
        };
        to.tag(&name, &manifest)?;
        Ok(Imported { name, manifest })
    }

    /// The name of an image that has no reference: where it came from.
    fn local_name(&self, tag: Option<&str>) -> Result<String> {
        let (Self::OciDir { path, .. } | Self::OciArchive { path, .. } | Self::DockerArchive { path, .. }) = self
        else {
            return Ok(self.to_string());
        };
        let path = path.canonicalize().map_err(|source| Error::io("resolve", path, source))?;
        if path.to_str().is_none() {
            let reason = "the path of an image without a name must be UTF-8";
            return Err(Error::InvalidSource { text: self.to_string(), reason });
        }
        let tag = tag.map(str::to_owned);
        let named = match self {
            Self::OciDir { .. } => Self::OciDir { path, tag },
            Self::OciArchive { .. } => Self::OciArchive { path, tag },
            _ => Self::DockerArchive { path, tag },
        };
        Ok(named.to_string())
    }
}

struct Choice<'a> {
    root: &'a Descriptor,
    /// The name by which it is known in the source.
    name: Option<&'a str>,
}

/// Chooses one of the images that a source lists.
fn choose<'a>(images: &'a [Listing], wanted: Option<&str>, platform: &Platform, location: &str) -> Result<Choice<'a>> {
    // The full reference, if there is one among the names.
    let full = |image: &'a Listing| {
        let mut names = image.names.iter().map(String::as_str);
        names.clone().find(|name| Reference::from_full(name).is_some()).or_else(|| names.next())
    };
    let known = || -> Vec<String> {
        let known = images.iter().enumerate();
        known.map(|(n, image)| full(image).map_or_else(|| format!("@{n}"), str::to_owned)).collect()
    };
    let none = || Error::NoSuchImage {
        location: location.to_owned(),
        wanted: wanted.unwrap_or_default().to_owned(),
        available: known(),
    };
    let Some(wanted) = wanted else {
        return match images {
            [] => Err(none()),
            // One image may be listed under each of its names.
            [image, rest @ ..] if rest.iter().all(|other| other.root.digest() == image.root.digest()) => {
                Ok(Choice { root: &image.root, name: full(image) })
            }
            _ => Err(Error::AmbiguousImage { location: location.to_owned(), available: known() }),
        };
    };
    if let Some(number) = wanted.strip_prefix('@') {
        let image = number.parse().ok().and_then(|number: usize| images.get(number)).ok_or_else(none)?;
        return Ok(Choice { root: &image.root, name: full(image) });
    }
    // As it is written; else as a reference, so that `busybox` finds `docker.io/library/busybox:latest`.
    let exactly = |name: &str| name == wanted;
    let reference: Option<Reference> = wanted.parse().ok();
    let normalised = |name: &str| reference.is_some() && name.parse().ok() == reference;
    let matches = |test: &dyn Fn(&str) -> bool| -> Vec<&'a Listing> {
        images.iter().filter(|image| image.names.iter().any(|name| test(name))).collect()
    };
    let mut found = matches(&exactly);
    if found.is_empty() {
        found = matches(&normalised);
    }
    // Some tools list a platform's image each under one name, without an index.
    let rank = |image: &&Listing| {
        let listed = image.root.platform().as_ref().map(Platform::from);
        listed.map_or(u32::MAX - 1, |listed| platform.rank(&listed).unwrap_or(u32::MAX))
    };
    let image = found.into_iter().min_by_key(rank).ok_or_else(none)?;
    // Of a list of references the one that was asked for; beside a short tag the reference that goes with it.
    let asked = image
        .names
        .iter()
        .map(String::as_str)
        .find(|name| Reference::from_full(name).is_some_and(|name| Some(&name) == reference.as_ref()));
    Ok(Choice { root: &image.root, name: asked.or_else(|| full(image)) })
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidSource { text: text.to_owned(), reason };
        let Some((transport, rest)) = text.split_once(':') else { return Ok(Self::Registry(text.parse()?)) };
        let split = || {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
            if path.is_empty() {
                return Err(invalid("there is no path after the first colon"));
            }
            if tag == Some("") {
                return Err(invalid("there is no name after the second colon"));
            }
            if path.contains('\0') {
                return Err(invalid("the path has a zero byte"));
            }
            Ok((PathBuf::from(path), tag.map(str::to_owned)))
        };
        match transport {
            OCI => split().map(|(path, tag)| Self::OciDir { path, tag }),
            OCI_ARCHIVE => split().map(|(path, tag)| Self::OciArchive { path, tag }),
            DOCKER_ARCHIVE => {
                let (path, tag) = split()?;
                match &tag {
                    Some(tag) if !tag.starts_with('@') => drop(tag.parse::<Reference>()?),
                    _ => {}
                }
                Ok(Self::DockerArchive { path, tag })
            }
            "docker" if rest.starts_with("//") => Ok(Self::Registry(rest[2..].parse()?)),
            "dir" | "docker-daemon" | "containers-storage" | "sif" | "ostree" | "tarball"
                if rest.contains(['/', ':', '[']) =>
            {
                Err(invalid(
                    "use oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REFERENCE] or a reference",
                ))
            }
            _ => Ok(Self::Registry(text.parse()?)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = |f: &mut fmt::Formatter<'_>, transport: &str, path: &Path, tag: &Option<String>| {
            write!(f, "{transport}:{}", path.display())?;
            tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
        };
        match self {
            Self::OciDir { path, tag } => write(f, OCI, path, tag),
            Self::OciArchive { path, tag } => write(f, OCI_ARCHIVE, path, tag),
            Self::DockerArchive { path, tag } => write(f, DOCKER_ARCHIVE, path, tag),
            Self::Registry(reference) => write!(f, "{reference}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::digest_of;

    #[test]
    fn is_written_as_containers_image_has_it() {
        let path = PathBuf::from;
        let tag = |tag: &str| Some(tag.to_owned());
        let cases = [
            ("oci:dir", Source::OciDir { path: path("dir"), tag: None }),
            ("oci:/a/dir:1.2", Source::OciDir { path: path("/a/dir"), tag: tag("1.2") }),
            (
                "oci:/a/dir:docker.io/library/a:b",
                Source::OciDir { path: path("/a/dir"), tag: tag("docker.io/library/a:b") },
            ),
            ("oci:dir:@3", Source::OciDir { path: path("dir"), tag: tag("@3") }),
            ("oci-archive:a.tar:x", Source::OciArchive { path: path("a.tar"), tag: tag("x") }),
            ("docker-archive:a.tar", Source::DockerArchive { path: path("a.tar"), tag: None }),
            ("docker-archive:a.tar:busybox:1", Source::DockerArchive { path: path("a.tar"), tag: tag("busybox:1") }),
        ];
        for (text, wanted) in cases {
            let source: Source = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(source, wanted, "{text}");
            assert_eq!(source.to_string(), text);
        }
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("oci", "docker.io/library/oci:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("docker://alpine:3", "docker.io/library/alpine:3"),
            ("dir:3", "docker.io/library/dir:3"),
        ] {
            assert_eq!(text.parse::<Source>().expect("a reference").to_string(), full, "{text}");
        }
        for text in ["", "oci:", "oci::tag", "oci:dir:", "docker-archive:a:B C", "docker-daemon:a:b", "dir:/x", "a b"] {
            assert!(text.parse::<Source>().is_err(), "{text:?}");
        }
    }

    /// The content that stands for the chosen image and its name, or a part of the error.
    type Outcome<'a> = Result<(&'a str, Option<&'a str>), &'a str>;

    #[test]
    fn chooses_by_name() {
        let listing = |content: &str, names: &[&str]| Listing {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            root: Descriptor::new(MediaType::ImageManifest, 1, digest_of(content.as_bytes())),
        };
        let images = [
            listing("a", &["1.36", "docker.io/library/busybox:1.36"]),
            listing("b", &["docker.io/library/alpine:latest", "docker.io/library/alpine:3"]),
            listing("c", &[]),
        ];
        let cases: &[(Option<&str>, Outcome<'_>)] = &[
            (Some("1.36"), Ok(("a", Some("docker.io/library/busybox:1.36")))),
            (Some("busybox:1.36"), Ok(("a", Some("docker.io/library/busybox:1.36")))),
            (Some("alpine"), Ok(("b", Some("docker.io/library/alpine:latest")))),
            (Some("alpine:3"), Ok(("b", Some("docker.io/library/alpine:3")))),
            (Some("@2"), Ok(("c", None))),
            (Some("@3"), Err("there are: docker.io/library/busybox:1.36, docker.io/library/alpine:latest, @2")),
            (Some("1.37"), Err("has no image \"1.37\"; there are: docker.io")),
            (None, Err("several images, name one of them after a colon; there are: docker.io")),
        ];
        for (wanted, outcome) in cases {
            match (choose(&images, *wanted, &Platform::host(), "it"), outcome) {
                (Ok(choice), Ok((content, name))) => {
                    assert_eq!(*choice.root.digest(), digest_of(content.as_bytes()), "{wanted:?}");
                    assert_eq!(choice.name, *name, "{wanted:?}");
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{wanted:?}: {error}"),
                (choice, _) => panic!("{wanted:?}: {:?}", choice.map(|choice| choice.name.map(str::to_owned))),
            }
        }
        assert!(choose(&images[2..], None, &Platform::host(), "it").is_ok());
        let twice = [listing("a", &["1", "docker.io/library/a:1"]), listing("a", &["2", "docker.io/library/a:2"])];
        let choice = choose(&twice, None, &Platform::host(), "it").expect("one image of two names is one image");
        assert_eq!(choice.name, Some("docker.io/library/a:1"));
        let error = choose(&[], None, &Platform::host(), "it").map(|_| ()).expect_err("nothing is there");
        assert!(error.to_string().contains("nothing is there"), "{error}");
    }

    #[test]
    fn one_name_for_several_platforms() {
        let entry = |architecture: &str| {
            let mut root = Descriptor::new(MediaType::ImageManifest, 1, digest_of(architecture.as_bytes()));
            let platform = serde_json::json!({ "os": "linux", "architecture": architecture });
            root.set_platform(serde_json::from_value(platform).ok());
            Listing { names: vec!["x".to_owned()], root }
        };
        let images = [entry("s390x"), entry("arm64"), entry("amd64")];
        let chosen = choose(&images, Some("x"), &Platform::new("linux", "arm64", None), "it").expect("is there");
        assert_eq!(*chosen.root.digest(), digest_of(b"arm64"));
    }
}
