//! `estiba system df`: what is kept on disk.

use std::fmt::Write as _;

use clap::Args;
use estiba_engine::image::Platform;
use estiba_engine::storage::volume::Volume;
use estiba_engine::{DiskUsage, Engine, Status};

use crate::failure::{Failure, Result};
use crate::format::{Column, Format};
use crate::template::{Record, Value};
use crate::view::row::{self, Image, Length};
use crate::{moment, output, size};

const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";

const COLUMNS: [Column; 5] =
    [("Type", "TYPE"), ("TotalCount", "TOTAL"), ("Active", "ACTIVE"), ("Size", "SIZE"), ("Reclaimable", "RECLAIMABLE")];

const IMAGES: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.VirtualSize}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
const CONTAINERS: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}";

/// Show what is kept on disk
#[derive(Debug, Args)]
pub(crate) struct SystemDf {
    /// table, table TEMPLATE, json, or a template for each kind
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Show each image and container
    #[arg(short, long)]
    verbose: bool,
}

impl SystemDf {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let usage = engine.disk_usage().await?;
        if self.verbose {
            if !self.format.is_empty() {
                return Err(Failure::new("--verbose has a format of its own: leave --format away"));
            }
            return output::print(&details(engine, &usage).await?);
        }
        let volumes = volumes(engine).await?;
        let rows = [images(&usage), containers(&usage), line_of_volumes(&volumes)];
        output::print(&Format::parse(&self.format, TABLE).print(&COLUMNS, &rows)?)
    }
}

fn line(kind: &str, total: usize, active: usize, bytes: u64, reclaimable: u64) -> Value {
    let share = (reclaimable * 100).checked_div(bytes);
    let reclaimable = match share {
        Some(share) => format!("{} ({share}%)", size::human(reclaimable)),
        None => size::human(reclaimable),
    };
    Record::row("formatter.diskUsageContext")
        .with("Active", active.to_string())
        .with("Reclaimable", reclaimable)
        .with("Size", size::human(bytes))
        .with("TotalCount", total.to_string())
        .with("Type", kind)
        .into()
}

fn images(usage: &DiskUsage) -> Value {
    let used = usage.images.iter().filter(|image| image.containers > 0).count();
    let unused = usage.images.iter().filter(|image| image.containers == 0);
    let reclaimable: u64 = unused.map(|image| image.size.saturating_sub(image.shared)).sum();
    line("Images", usage.images.len(), used, usage.layers, reclaimable.min(usage.layers))
}

fn containers(usage: &DiskUsage) -> Value {
    let runs = |status: &Status| status.is_running() || matches!(status, Status::Restarting(_));
    let active = usage.containers.iter().filter(|(_, status, _)| runs(status)).count();
    let bytes = usage.containers.iter().map(|(_, _, bytes)| bytes).sum();
    let idle = usage.containers.iter().filter(|(_, status, _)| !runs(status));
    line("Containers", usage.containers.len(), active, bytes, idle.map(|(_, _, bytes)| bytes).sum())
}

/// Each volume, with its bytes and the number of containers that have it.
async fn volumes(engine: &Engine) -> Result<Vec<(Volume, (u64, usize))>> {
    let mut volumes = Vec::new();
    for volume in engine.volumes().await? {
        let usage = engine.volume_usage(&volume.name.to_string()).await?;
        volumes.push((volume, usage));
    }
    Ok(volumes)
}

fn line_of_volumes(volumes: &[(Volume, (u64, usize))]) -> Value {
    let used = volumes.iter().filter(|(_, (_, links))| *links > 0).count();
    let bytes = volumes.iter().map(|(_, (bytes, _))| bytes).sum();
    let unused = volumes.iter().filter(|(_, (_, links))| *links == 0).map(|(_, (bytes, _))| bytes).sum();
    line("Local Volumes", volumes.len(), used, bytes, unused)
}

async fn details(engine: &Engine, usage: &DiskUsage) -> Result<String> {
    let mut rows = Vec::new();
    for stored in engine.stored_images().await? {
        let Some(platform) = stored.for_platform(&Platform::host()).or(stored.platforms.first()) else { continue };
        let used = usage.images.iter().find(|image| image.root.digest() == stored.root.digest());
        for name in super::images::names(&stored) {
            let image = Image {
                name,
                digest: None,
                id: platform.id.to_string(),
                created: platform.created.as_deref().and_then(moment::read),
                size: used.map_or(platform.size, |image| image.size),
                shared: used.map(|image| image.shared),
                containers: used.map(|image| image.containers),
            };
            rows.push(image.row(Length::Short));
        }
    }
    let mut text = String::from("Images space usage:\n\n");
    text.push_str(&Format::parse("", IMAGES).print(&row::IMAGE, &rows)?);
    let mut rows = Vec::new();
    let mut images = super::ps::Images::default();
    for (record, _, own) in &usage.containers {
        let summary = engine.container(record.id.as_str()).await?.summary().await?;
        let image = images.of(engine, &summary).await;
        rows.push(row::container(&summary, &image, Some((*own, 0)), Length::Short));
    }
    let _ = writeln!(text, "\nContainers space usage:\n");
    text.push_str(&Format::parse("", CONTAINERS).print(&row::CONTAINER, &rows)?);
    let _ = writeln!(text, "\nLocal Volumes space usage:\n");
    let volumes = volumes(engine).await?;
    let rows: Vec<Value> = volumes.iter().map(|(volume, usage)| super::volume::row(volume, Some(*usage))).collect();
    text.push_str(&super::volume::usage_table(&rows)?);
    Ok(text)
}
