//! Registries, as the machine and its user have set them up.

use estiba_engine::image::{Reference, Registry, RegistrySettings};
use estiba_engine::{Engine, Image};

use crate::failure::Result;
use crate::transfer::{Direction, Output, progress};

/// The registry of names without a host.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// A client of registries.
pub(crate) fn client() -> Result<Registry> {
    Ok(Registry::new(RegistrySettings::of_system()?))
}

/// Fetches an image, and says what happens as Docker does.
pub(crate) async fn pull(engine: &Engine, name: &Reference, quiet: bool, out: Output) -> Result<Image> {
    let before = engine.image(&name.to_string()).await.ok();
    if !quiet {
        let familiar = name.familiar();
        let version = familiar.rsplit_once(':').map_or(familiar.as_str(), |(_, tag)| tag);
        out.say(&format!("{version}: Pulling from {}\n", path(name)));
    }
    let image = engine.pull(&client()?, name, &progress(Direction::Pull, quiet, out)).await?;
    if !quiet {
        let digest = engine.inspect_image(&image.name).await?.0.root.digest().to_string();
        let same = before.is_some_and(|before| before.manifest.digest() == image.manifest.digest());
        let said = if same { "Image is up to date" } else { "Downloaded newer image" };
        out.say(&format!("Digest: {digest}\nStatus: {said} for {}\n", name.familiar()));
    }
    Ok(image)
}

/// The repository of a name, with its host.
pub(crate) fn repository(name: &Reference) -> String {
    let text = name.to_string();
    let text = text.split('@').next().unwrap_or_default();
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
        _ => text.to_owned(),
    }
}

/// The repository of a name, without its host.
fn path(name: &Reference) -> String {
    let repository = repository(name);
    repository.split_once('/').map_or(repository.clone(), |(_, path)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        for (name, whole, inside) in [
            ("alpine", "docker.io/library/alpine", "library/alpine"),
            ("127.0.0.1:5000/team/app:1", "127.0.0.1:5000/team/app", "team/app"),
            ("host:1/app", "host:1/app", "app"),
        ] {
            let name: Reference = name.parse().expect("a reference");
            assert_eq!((repository(&name).as_str(), path(&name).as_str()), (whole, inside));
        }
    }
}
