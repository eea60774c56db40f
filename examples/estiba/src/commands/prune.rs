//! `estiba container prune`, `image prune` and `system prune`: remove what is in nobody's use.

use std::time::SystemTime;

use clap::Args;
use estiba_engine::Engine;

use super::confirm;
use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::view::container::labels;
use crate::view::image::Config;
use crate::{moment, output, size};

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub(crate) struct PruneContainers {
    /// Only those that fit: until=, label=, label!=
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove images that nothing uses
#[derive(Debug, Args)]
pub(crate) struct PruneImages {
    /// Those that have names, too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove containers that do not run, and images that nothing uses
#[derive(Debug, Args)]
pub(crate) struct PruneSystem {
    /// Images that have names, too
    #[arg(short, long)]
    all: bool,
    /// Only containers that fit: until=, label=, label!=
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Volumes that were made for one container, too
    #[arg(long)]
    volumes: bool,
}

impl PruneContainers {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let filters = filters(&self.filter)?;
        if !self.force && !confirm("WARNING! This will remove all stopped containers.")? {
            return Ok(0);
        }
        let (text, bytes) = containers(engine, &filters).await?;
        output::print(&format!("{text}Total reclaimed space: {}\n", size::human(bytes)))
    }
}

impl PruneImages {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let warning = if self.all {
            "WARNING! This will remove all images without at least one container associated to them."
        } else {
            "WARNING! This will remove all dangling images."
        };
        if !self.force && !confirm(warning)? {
            return Ok(0);
        }
        let (text, bytes) = images(engine, self.all).await?;
        output::print(&format!("{text}Total reclaimed space: {}\n", size::human(bytes)))
    }
}

impl PruneSystem {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let filters = filters(&self.filter)?;
        let images_too = if self.all { "all images without at least one container" } else { "all dangling images" };
        let volumes = if self.volumes { "  - all anonymous volumes not used by at least one container\n" } else { "" };
        let warning = format!("WARNING! This will remove:\n  - all stopped containers\n{volumes}  - {images_too}\n");
        if !self.force && !confirm(&warning)? {
            return Ok(0);
        }
        let (mut text, mut bytes) = containers(engine, &filters).await?;
        let (of_images, freed) = images(engine, self.all).await?;
        text.push_str(&of_images);
        bytes += freed;
        if self.volumes {
            let (of_volumes, freed) = super::volume::prune(engine, false).await?;
            text.push_str(&of_volumes);
            bytes += freed;
        }
        output::print(&format!("{text}Total reclaimed space: {}\n", size::human(bytes)))
    }
}

fn filters(options: &[String]) -> Result<Filters> {
    let filters = Filters::parse(options, &["until", "label", "label!"])?;
    until(&filters)?;
    Ok(filters)
}

fn until(filters: &Filters) -> Result<Option<SystemTime>> {
    let time = filters.values("until").last().map(|text| moment::parse(text, SystemTime::now()));
    time.transpose().map_err(|reason| Failure::new(format!("invalid filter 'until': {reason}")))
}

async fn containers(engine: &Engine, filters: &Filters) -> Result<(String, u64)> {
    let until = until(filters)?;
    let mut chosen = std::collections::HashSet::new();
    let mut images = super::ps::Images::default();
    for summary in engine.containers().await? {
        let image = if filters.has("label") || filters.has("label!") {
            images.of(engine, &summary).await
        } else {
            Config::default()
        };
        let labels = labels(&summary.record, &image);
        let excluded = filters.values("label!").iter().any(|label| crate::filter::has_label(label, &labels));
        let old = until.is_none_or(|until| summary.record.created < until);
        if old && !excluded && filters.labels("label", &labels) {
            chosen.insert(summary.record.id.to_string());
        }
    }
    let (ids, bytes) = engine.prune_containers(move |record| chosen.contains(record.id.as_str())).await?;
    let mut text = String::new();
    if !ids.is_empty() {
        text.push_str("Deleted Containers:\n");
        text.push_str(&output::lines(&ids));
        text.push('\n');
    }
    Ok((text, bytes))
}

async fn images(engine: &Engine, all: bool) -> Result<(String, u64)> {
    let removed = engine.prune_images(all).await?;
    let mut text = super::rmi::told(&removed);
    if !text.is_empty() {
        text.insert_str(0, "Deleted Images:\n");
        text.push('\n');
    }
    Ok((text, removed.bytes))
}
