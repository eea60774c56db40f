//! `estiba images`: what is in the content store.

use std::collections::HashMap;
use std::time::SystemTime;

use clap::Args;
use estiba_engine::Engine;
use estiba_engine::image::{Platform, Stored};

use crate::failure::{Failure, Result};
use crate::filter::{Filters, is_match};
use crate::format::Format;
use crate::view::image::{Config, NONE, Name};
use crate::view::row::{self, Image, Length};
use crate::{moment, output};

const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

/// List images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba images\n  estiba images --format '{{.Repository}}:{{.Tag}}'\n  \
                        estiba images --filter dangling=true -q\n")]
#[expect(clippy::struct_excessive_bools, reason = "a flag of the command line is a bool")]
pub(crate) struct Images {
    /// All (there are no intermediate ones to hide)
    #[arg(short, long)]
    all: bool,
    /// Show the digests that registries know
    #[arg(long)]
    digests: bool,
    /// Only those that fit: dangling=, label=, reference=, before=, since=, until=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only images of that name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

impl Images {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let filters = Filters::parse(&self.filter, &["before", "dangling", "label", "reference", "since", "until"])?;
        let length = Length::of(self.no_trunc);
        let format = Format::parse(&self.format, if self.digests { DIGESTS } else { TABLE });
        let containers = if format.names("Containers") { Some(containers(engine).await?) } else { None };
        let mut images = self.choose(engine, &filters).await?;
        if let Some(containers) = &containers {
            for image in &mut images {
                image.containers = Some(containers.get(&image.id).copied().unwrap_or(0));
            }
        }
        if self.quiet {
            let mut ids: Vec<String> = images.iter().map(|image| length.id(&image.id)).collect();
            ids.dedup();
            return output::print(&output::lines(ids));
        }
        let rows: Vec<_> = images.iter().map(|image| image.row(length)).collect();
        output::print(&format.print(&row::IMAGE, &rows)?)
    }

    /// A row for each name, and one for an image that has none; the newest first.
    async fn choose(&self, engine: &Engine, filters: &Filters) -> Result<Vec<Image>> {
        let stored = engine.stored_images().await?;
        let created = async |key: &str| -> Result<Option<SystemTime>> {
            let Some(name) = filters.values(key).last() else { return Ok(None) };
            let (_, image) = engine.inspect_image(name).await?;
            Ok(moment::read(Config::read(image.raw_config()).created()))
        };
        let (before, since) = (created("before").await?, created("since").await?);
        let until = filters.values("until").last().map(|text| moment::parse(text, SystemTime::now()));
        let until = until.transpose().map_err(|reason| Failure::new(format!("invalid filter 'until': {reason}")))?;
        let dangling = filters.flag("dangling")?;
        let mut images = Vec::new();
        for stored in &stored {
            let Some(platform) = stored.for_platform(&Platform::host()).or(stored.platforms.first()) else { continue };
            let made = platform.created.as_deref().and_then(moment::read);
            let fits = |bound: Option<SystemTime>, fits: fn(SystemTime, SystemTime) -> bool| {
                bound.is_none_or(|bound| made.is_some_and(|made| fits(made, bound)))
            };
            if !fits(before, |made, bound| made < bound)
                || !fits(since, |made, bound| made > bound)
                || !fits(until, |made, bound| made < bound)
            {
                continue;
            }
            if dangling.is_some_and(|dangling| dangling != stored.names.is_empty()) {
                continue;
            }
            if filters.has("label") {
                let (_, image) = engine.inspect_image(platform.manifest.digest().as_ref()).await?;
                if !filters.labels("label", &Config::read(image.raw_config()).labels()) {
                    continue;
                }
            }
            for name in names(stored) {
                let named = self.repository.as_deref().is_none_or(|wanted| is_named(wanted, &name));
                if named && filters.any("reference", |pattern| is_reference(pattern, &name)) {
                    images.push(Image {
                        digest: Some(stored.root.digest().to_string())
                            .filter(|_| self.digests || self.format.contains("Digest")),
                        name,
                        id: platform.id.to_string(),
                        created: made,
                        size: platform.unpacked.unwrap_or(platform.size),
                        shared: None,
                        containers: None,
                    });
                }
            }
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.created));
        Ok(images)
    }
}

/// The names of an image; at least the one that says that it has none.
pub(crate) fn names(stored: &Stored) -> Vec<Name> {
    let names: Vec<Name> = stored.names.iter().map(|name| Name::of(name)).collect();
    if names.is_empty() { vec![Name::none()] } else { names }
}

/// How many containers are made from each image, by its id.
async fn containers(engine: &Engine) -> Result<HashMap<String, usize>> {
    let mut counts = HashMap::new();
    for summary in engine.containers().await? {
        *counts.entry(summary.record.image_id).or_insert(0) += 1;
    }
    Ok(counts)
}

/// `REPOSITORY` or `REPOSITORY:TAG`.
fn is_named(wanted: &str, name: &Name) -> bool {
    if name.repository == NONE {
        return false;
    }
    let wanted = wanted.strip_prefix("docker.io/").unwrap_or(wanted);
    let wanted = wanted.strip_prefix("library/").unwrap_or(wanted);
    wanted == name.repository || wanted == format!("{}:{}", name.repository, name.tag) || is_reference(wanted, name)
}

/// A pattern in which `*` is any part of a name between slashes.
fn is_reference(pattern: &str, name: &Name) -> bool {
    let mut expression = String::from("^");
    for c in pattern.chars() {
        match c {
            '*' => expression.push_str("[^/]*"),
            '?' => expression.push_str("[^/]"),
            c if c.is_alphanumeric() || matches!(c, '/' | '[' | ']' | '-' | '_') => expression.push(c),
            c => {
                expression.push('\\');
                expression.push(c);
            }
        }
    }
    expression.push('$');
    let full = format!("{}:{}", name.repository, name.tag);
    is_match(&expression, &full) || is_match(&expression, &name.repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_name_and_pattern() {
        let name = Name { repository: "user/app".into(), tag: "1.2".into() };
        for (pattern, fits) in [
            ("user/app", true),
            ("user/app:1.2", true),
            ("user/*", true),
            ("*/app:1*", true),
            ("app", false),
            ("user/app:2", false),
            ("user/ap.", false),
            ("*", false),
        ] {
            assert_eq!(is_named(pattern, &name), fits, "{pattern}");
        }
        assert!(is_named("docker.io/library/alpine", &Name { repository: "alpine".into(), tag: "3".into() }));
        assert!(!is_named("<none>", &Name::none()));
    }
}
