//! `estiba ps`: the containers.

use std::collections::HashMap;
use std::time::SystemTime;

use clap::Args;
use estiba_engine::{Engine, Status, Summary};

use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::format::Format;
use crate::output;
use crate::template::Value;
use crate::view::container::{exit_code, labels};
use crate::view::image::{Config, familiar};
use crate::view::network;
use crate::view::row::{self, Length};

const TABLE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// List containers
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  estiba ps\n  estiba ps -a --filter status=exited --format '{{.Names}}: {{.Status}}'\n  \
                        estiba rm $(estiba ps -aq)    remove all that do not run\n"
)]
#[expect(clippy::struct_excessive_bools, reason = "a flag of the command line is a bool")]
pub(crate) struct Ps {
    /// Those that do not run as well
    #[arg(short, long)]
    all: bool,
    /// Only those that fit: name=, id=, label=, status=, exited=, health=, ancestor=, before=, since=, volume=, network=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// The last so many, whatever they do
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "-1", hide_default_value = true)]
    last: i64,
    /// The last one, whatever it does
    #[arg(short, long)]
    latest: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show how much each has written
    #[arg(short, long)]
    size: bool,
}

impl Ps {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let filters = Filters::parse(&self.filter, &FILTERS)?;
        let containers = self.choose(engine, &filters).await?;
        let length = Length::of(self.no_trunc);
        if self.quiet {
            if !self.format.is_empty() {
                eprintln!("WARNING: Ignoring custom format, because both --format and --quiet are set.");
            }
            let ids = containers.iter().map(|container| length.id(container.record.id.as_str()));
            return output::print(&output::lines(ids));
        }
        let table = if self.size { format!("{TABLE}\t{{{{.Size}}}}") } else { TABLE.to_owned() };
        let format = Format::parse(&self.format, &table);
        let sizes = if self.size || format.names("Size") && self.format != "json" {
            sizes(engine).await?
        } else {
            HashMap::new()
        };
        let mut images = Images::default();
        let mut rows: Vec<Value> = Vec::new();
        for summary in &containers {
            let image = images.of(engine, summary).await;
            let sizes = sizes.get(summary.record.id.as_str()).copied();
            rows.push(row::container(summary, &image, sizes, length));
        }
        output::print(&format.print(&row::CONTAINER, &rows)?)
    }

    async fn choose(&self, engine: &Engine, filters: &Filters) -> Result<Vec<Summary>> {
        let all = engine.containers().await?;
        let created = |key: &'static str| {
            let wanted = filters.values(key).last();
            let found = wanted.map(|name| {
                let summary = all.iter().find(|summary| {
                    summary.record.name.to_string() == *name || summary.record.id.as_str().starts_with(name.as_str())
                });
                summary
                    .map(|summary| summary.record.created)
                    .ok_or_else(|| Failure::new(format!("No such container: {name}")))
            });
            found.transpose()
        };
        let (before, since): (Option<SystemTime>, Option<SystemTime>) = (created("before")?, created("since")?);
        for (key, known) in [
            ("status", &["created", "running", "paused", "restarting", "removing", "exited", "dead"][..]),
            ("health", &["none", "starting", "healthy", "unhealthy"]),
        ] {
            if let Some(value) = filters.values(key).iter().find(|value| !known.contains(&value.as_str())) {
                return Err(Failure::new(format!(
                    "invalid filter '{key}={value}': it must be one of {}",
                    known.join(", ")
                )));
            }
        }
        for value in filters.values("exited") {
            value
                .parse::<i32>()
                .map_err(|_| Failure::new(format!("invalid filter 'exited={value}': it must be a number")))?;
        }
        let is_last = self.latest || self.last > 0;
        let everything = self.all || is_last || filters.has("status") || filters.has("exited");
        let mut images = Images::default();
        let mut chosen = Vec::new();
        for summary in all {
            let shown = everything || summary.status.is_running() || matches!(summary.status, Status::Restarting(_));
            let is_before = before.is_none_or(|time| summary.record.created < time);
            let is_after = since.is_none_or(|time| summary.record.created > time);
            if !(shown && is_before && is_after && fits(filters, &summary)) {
                continue;
            }
            if filters.has("label") || filters.has("ancestor") {
                let image = images.of(engine, &summary).await;
                if !filters.labels("label", &labels(&summary.record, &image)) {
                    continue;
                }
                if filters.has("ancestor") && !is_ancestor(engine, filters, &summary).await {
                    continue;
                }
            }
            chosen.push(summary);
        }
        match (self.latest, usize::try_from(self.last)) {
            (true, _) => chosen.truncate(1),
            (false, Ok(last)) if last > 0 => chosen.truncate(last),
            _ => {}
        }
        Ok(chosen)
    }
}

fn fits(filters: &Filters, summary: &Summary) -> bool {
    let record = &summary.record;
    let health = summary.health.as_ref().map_or("none", |health| health.status.name());
    // A name of Docker's begins with a slash, which patterns may have or not.
    let name = record.name.to_string();
    let has_ended = matches!(summary.status, Status::Exited(_));
    filters.any("name", |pattern| {
        crate::filter::is_match(pattern, &name) || pattern.contains('/') && crate::filter::is_match(pattern, &format!("/{name}"))
    }) && filters.any("id", |pattern| record.id.as_str().starts_with(pattern) || crate::filter::is_match(pattern, record.id.as_str()))
        && filters.any("status", |status| status == summary.status.name())
        && filters.any("exited", |code| has_ended && code.parse() == Ok(exit_code(summary)))
        && filters.any("health", |wanted| wanted == health)
        && filters.any("network", |wanted| network::names(record).iter().any(|name| name == wanted))
        && filters.any("volume", |path| {
            record.request.binds.iter().any(|bind| bind.destination == path || bind.source.as_os_str() == path)
                || record.volumes.iter().any(|volume| volume.name == path || volume.destination == path)
        })
        // Nothing is published or exposed, and there are no tasks.
        && filters.any("publish", |_| false)
        && filters.any("expose", |_| false)
        && filters.any("is-task", |flag| crate::flags::boolean(flag) == Ok(false))
}

/// Whether the container is made from an image that is asked for.
async fn is_ancestor(engine: &Engine, filters: &Filters, summary: &Summary) -> bool {
    let record = &summary.record;
    for wanted in filters.values("ancestor") {
        let named = record.request.image.name == *wanted || familiar(&record.request.image.name) == *wanted;
        let by_id = record
            .image_id
            .strip_prefix("sha256:")
            .is_some_and(|id| wanted.len() >= 4 && id.starts_with(wanted.as_str()));
        if named || by_id || record.image_id == *wanted {
            return true;
        }
        if let Ok(image) = engine.image(wanted).await
            && image.manifest.digest() == record.request.image.manifest.digest()
        {
            return true;
        }
    }
    false
}

/// The configurations of images, each read once.
#[derive(Debug, Default)]
pub(crate) struct Images(HashMap<String, Config>);

impl Images {
    /// The configuration of a container's image; an empty one if it cannot be read any more.
    pub(crate) async fn of(&mut self, engine: &Engine, summary: &Summary) -> Config {
        let digest = summary.record.request.image.manifest.digest().to_string();
        if let Some(config) = self.0.get(&digest) {
            return config.clone();
        }
        let image = engine.inspect_image(&digest).await;
        let config = image.map(|(_, image)| Config::read(image.raw_config())).unwrap_or_default();
        self.0.insert(digest, config.clone());
        config
    }
}

/// Bytes of each container's own files, and of all of them, its image's among them.
pub(crate) async fn sizes(engine: &Engine) -> Result<HashMap<String, (u64, u64)>> {
    let usage = engine.disk_usage().await?;
    let images = engine.stored_images().await?;
    let image_size = |digest: &str| {
        let platforms = images.iter().flat_map(|stored| &stored.platforms);
        let found = platforms.into_iter().find(|one| one.manifest.digest().to_string() == digest);
        found.map_or(0, |one| one.unpacked.unwrap_or(one.size))
    };
    let each = usage.containers.into_iter().map(|(record, _, own)| {
        let all = own + image_size(record.request.image.manifest.digest().as_ref());
        (record.id.to_string(), (own, all))
    });
    Ok(each.collect())
}
