//! The image that a person means.

use std::io::{self, Write as _};
use std::path::Path;

use estiba_engine::image::{Reference, Source};
use estiba_engine::{Engine, Image};

use crate::embedded;
use crate::failure::{Failure, Result};
use crate::registry;
use crate::transfer::Output;

/// When an image is fetched from a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Pull {
    /// If it is not there.
    #[default]
    Missing,
    /// In any case.
    Always,
    /// It is not.
    Never,
}

/// What stands before the colon of a reference to something else than a registry.
const TRANSPORTS: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// Finds an image: the embedded one, one in a file or folder, or one that is there by name or id.
pub(crate) async fn find(engine: &Engine, reference: &str, when: Pull, quiet: bool) -> Result<Image> {
    if reference == embedded::REFERENCE {
        return Ok(engine.import_bytes(embedded::ARCHIVE, embedded::REFERENCE).await?);
    }
    if let Some(advice) = advice(reference) {
        return Err(Failure::new(advice));
    }
    if TRANSPORTS.iter().any(|transport| reference.starts_with(transport)) {
        return Ok(engine.import(reference.parse::<Source>()?).await?);
    }
    let there = engine.image(reference).await;
    match (when, there) {
        (Pull::Missing | Pull::Never, Ok(image)) => Ok(image),
        (Pull::Never, Err(error)) => Err(error.into()),
        (Pull::Missing, Err(_)) => {
            if Path::new(reference).join("oci-layout").is_file() {
                return Err(Failure::new(format!(
                    "there is no image {reference}, and the folder of that name is an OCI image layout: did you mean oci:./{reference}?"
                )));
            }
            let name: Reference = reference.parse()?;
            let _ = writeln!(io::stderr(), "Unable to find image '{}' locally", name.familiar());
            registry::pull(engine, &name, quiet, Output::Errors).await
        }
        (Pull::Always, _) => registry::pull(engine, &reference.parse()?, quiet, Output::Errors).await,
    }
}

/// What to write instead of something that is no reference.
fn advice(reference: &str) -> Option<String> {
    if let Some(name) = reference.strip_prefix("embedded:") {
        return Some(format!(
            "there is no image embedded:{name} in this program: the one that there is, is {}",
            embedded::REFERENCE
        ));
    }
    let path = Path::new(reference);
    if !reference.contains('/') {
        return None;
    }
    if path.join("oci-layout").is_file() {
        return Some(format!("{reference} is an OCI image layout: did you mean oci:{reference}?"));
    }
    if path.is_file() {
        return Some(format!(
            "{reference} is a file: did you mean oci-archive:{reference} or docker-archive:{reference}?"
        ));
    }
    let is_path = ["/", "./", "../"].iter().any(|start| reference.starts_with(start));
    is_path.then(|| format!("{reference} is neither an OCI image layout nor an archive: say oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_a_transport_are_explained() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("oci-layout"), "{}").expect("written");
        let layout = folder.path().display().to_string();
        for (reference, part) in [
            ("embedded:nope", Some("embedded:hello")),
            (layout.as_str(), Some("did you mean oci:")),
            (&format!("{layout}/oci-layout"), Some("oci-archive:")),
            ("./nothing/here", Some("neither")),
            ("alpine", None),
            ("user/app:1", None),
        ] {
            let found = advice(reference);
            assert_eq!(found.is_some(), part.is_some(), "{reference}");
            assert!(found.zip(part).is_none_or(|(advice, part)| advice.contains(part)), "{reference}");
        }
    }
}
