//! `estiba inspect`: all that is known of containers and images.

use clap::Args;
use estiba_engine::{Engine, Error};

use super::tell;
use crate::cli::Place;
use crate::failure::{Failure, Result};
use crate::template::Value;
use crate::view::container::{self, Surroundings};
use crate::view::image::{self, Config};
use crate::{format, output};

/// Show all that is known of containers and images
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba inspect web\n  estiba inspect -f '{{.State.Status}} {{.State.ExitCode}}' web\n  \
                        estiba inspect --type image alpine\n"
)]
pub(crate) struct Inspect {
    /// json, or a template for each
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show how much a container has written
    #[arg(short, long)]
    size: bool,
    /// container, image or volume
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Name or id
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Show all that is known of images
#[derive(Debug, Args)]
pub(crate) struct InspectImage {
    /// json, or a template for each
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name or id
    #[arg(required = true, value_name = "IMAGE")]
    names: Vec<String>,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    Container,
    Image,
    Volume,
}

/// Show all that is known of containers
#[derive(Debug, Args)]
pub(crate) struct InspectContainer {
    /// json, or a template for each
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show how much it has written
    #[arg(short, long)]
    size: bool,
    /// Name or id, or the beginning of an id
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl Inspect {
    pub(crate) async fn execute(self, engine: &Engine, place: &Place) -> Result<u8> {
        let kind = match self.kind.as_deref() {
            None | Some("") => Kind::Any,
            Some("container") => Kind::Container,
            Some("image") => Kind::Image,
            Some("volume") => Kind::Volume,
            Some(other) => {
                return Err(Failure::new(format!(
                    "{other:?} is not a valid value for --type: use container, image or volume"
                )));
            }
        };
        show(engine, place, self.format.as_deref(), self.size, kind, &self.names).await
    }
}

impl InspectImage {
    pub(crate) async fn execute(self, engine: &Engine, place: &Place) -> Result<u8> {
        show(engine, place, self.format.as_deref(), false, Kind::Image, &self.names).await
    }
}

impl InspectContainer {
    pub(crate) async fn execute(self, engine: &Engine, place: &Place) -> Result<u8> {
        show(engine, place, self.format.as_deref(), self.size, Kind::Container, &self.names).await
    }
}

/// Shows what there is, and then says what there is not.
async fn show(
    engine: &Engine,
    place: &Place,
    format: Option<&str>,
    size: bool,
    kind: Kind,
    names: &[String],
) -> Result<u8> {
    let (mut objects, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match object(engine, place, name, kind, size).await {
            Ok(object) => objects.push(object),
            Err(failure) => missing.push(failure),
        }
    }
    let status = output::print(&format::inspect(format, objects)?)?;
    missing.iter().for_each(tell);
    Ok(if missing.is_empty() { status } else { 1 })
}

async fn object(engine: &Engine, place: &Place, name: &str, kind: Kind, size: bool) -> Result<Value> {
    if kind == Kind::Volume {
        return Ok(super::volume::object(&engine.volume(name).await?));
    }
    if kind != Kind::Image {
        match engine.container(name).await {
            Ok(found) => {
                let summary = found.summary().await?;
                let digest = summary.record.request.image.manifest.digest().to_string();
                let image = engine.inspect_image(&digest).await;
                let image = image.map(|(_, image)| Config::read(image.raw_config())).unwrap_or_default();
                let sizes =
                    if size { super::ps::sizes(engine).await?.get(summary.record.id.as_str()).copied() } else { None };
                return Ok(container::inspect(&summary, &Surroundings { image, root: &place.root, sizes }));
            }
            Err(Error::NoContainer { .. }) if kind == Kind::Any => {}
            Err(error) => return Err(error.into()),
        }
    }
    match engine.inspect_image(name).await {
        Ok((stored, found)) => {
            let platform = stored.platforms.iter().find(|one| one.id == *found.id());
            let size = platform.map_or(0, |one| one.unpacked.unwrap_or(one.size));
            Ok(image::inspect(&stored, &found, place.snapshotter, size))
        }
        Err(_) if kind == Kind::Any => match engine.volume(name).await {
            Ok(volume) => Ok(super::volume::object(&volume)),
            Err(_) => Err(Failure::new(format!("No such object: {name}"))),
        },
        Err(error) => Err(error.into()),
    }
}
