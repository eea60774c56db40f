//! `estiba volume …`: volumes, which outlive containers.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use estiba_engine::Engine;
use estiba_engine::storage::volume::Volume as Found;

use super::{confirm, each, tell};
use crate::failure::{Failure, Result};
use crate::filter::{Filters, has_label};
use crate::format::{self, Column, Format};
use crate::template::{Lookup, Record, Value};
use crate::{moment, output, size};

/// Manage volumes
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    Create(Create),
    Inspect(Inspect),
    #[command(visible_alias = "list")]
    Ls(Ls),
    Prune(Prune),
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// Make a volume
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// local
    #[arg(short, long, value_name = "DRIVER", default_value = "local")]
    driver: String,
    /// Mark it with a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Its name; one is made up without
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
}

/// Show all that is known of volumes
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// json, or a template for each
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

/// List volumes
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only those that fit: dangling=, driver=, label=, name=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Remove the volumes that no container has
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Those with names as well, not only those that were made for one container
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove volumes with all that is in them
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Name
    #[arg(required = true, value_name = "VOLUME")]
    names: Vec<String>,
}

const TABLE: &str = "{{.Driver}}\t{{.Name}}";

const COLUMNS: [Column; 10] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Availability", "AVAILABILITY"),
    ("Group", "GROUP"),
    ("Status", "STATUS"),
];

impl Volume {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        match self {
            Self::Create(command) => command.execute(engine).await,
            Self::Inspect(command) => command.execute(engine).await,
            Self::Ls(command) => command.execute(engine).await,
            Self::Prune(command) => command.execute(engine).await,
            Self::Rm(command) => command.execute(engine).await,
        }
    }
}

impl Create {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        if !matches!(self.driver.as_str(), "" | "local") {
            return Err(Failure::new(format!("the volume driver {:?} is not supported: use local", self.driver)));
        }
        let labels: BTreeMap<String, String> = self
            .label
            .iter()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        // One that is there already is what was wanted.
        if let Some(name) = &self.name
            && engine.volume(name).await.is_ok()
        {
            return output::print(&format!("{name}\n"));
        }
        let volume = engine.create_volume(self.name, labels).await?;
        output::print(&format!("{}\n", volume.name))
    }
}

impl Inspect {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let (mut objects, mut missing) = (Vec::new(), Vec::new());
        for name in &self.names {
            match engine.volume(name).await {
                Ok(volume) => objects.push(object(&volume)),
                Err(error) => missing.push(Failure::from(error)),
            }
        }
        let status = output::print(&format::inspect(self.format.as_deref(), objects)?)?;
        missing.iter().for_each(tell);
        Ok(if missing.is_empty() { status } else { 1 })
    }
}

/// What `volume inspect` shows.
pub(crate) fn object(volume: &Found) -> Value {
    let labels = if volume.labels.is_empty() { Value::nil_map() } else { Value::from(&volume.labels) };
    Record::new("volume.Volume")
        .with("CreatedAt", moment::rfc3339_seconds(volume.created))
        .with("Driver", "local")
        .with("Labels", labels)
        .with("Mountpoint", volume.path.display().to_string())
        .with("Name", volume.name.to_string())
        .with("Options", Value::from(&volume.options).or_nil())
        .with("Scope", "local")
        .into()
}

/// A row of `volume ls`; with bytes and the number of containers that have it, of `system df -v`.
pub(crate) fn row(volume: &Found, usage: Option<(u64, usize)>) -> Value {
    let unknown = || "N/A".to_owned();
    let pairs: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Record::row("volume.volumeContext")
        .with("Availability", "N/A")
        .with("Driver", "local")
        .with("Group", "N/A")
        .hidden("Label", Lookup::Entries(volume.labels.clone()))
        .with("Labels", pairs.join(","))
        .with("Links", usage.map_or_else(unknown, |(_, links)| links.to_string()))
        .with("Mountpoint", volume.path.display().to_string())
        .with("Name", volume.name.to_string())
        .with("Scope", "local")
        .with("Size", usage.map_or_else(unknown, |(bytes, _)| size::human(bytes)))
        .with("Status", "N/A")
        .into()
}

/// The table of `system df -v`.
pub(crate) fn usage_table(rows: &[Value]) -> Result<String> {
    Format::parse("", "{{.Name}}\t{{.Links}}\t{{.Size}}").print(&COLUMNS, rows)
}

impl Ls {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let filters = Filters::parse(&self.filter, &["dangling", "driver", "label", "name"])?;
        let dangling = filters.flag("dangling")?;
        let mut volumes = Vec::new();
        for volume in engine.volumes().await? {
            let name = volume.name.to_string();
            let fits = filters.any("name", |wanted| name.contains(wanted))
                && filters.any("driver", |wanted| wanted == "local")
                && filters.values("label").iter().all(|wanted| has_label(wanted, &volume.labels));
            if !fits {
                continue;
            }
            if let Some(dangling) = dangling
                && (engine.volume_usage(&name).await?.1 == 0) != dangling
            {
                continue;
            }
            volumes.push(volume);
        }
        if self.quiet {
            return output::print(&output::lines(volumes.iter().map(|volume| volume.name.to_string())));
        }
        let rows: Vec<Value> = volumes.iter().map(|volume| row(volume, None)).collect();
        output::print(&Format::parse(&self.format, TABLE).print(&COLUMNS, &rows)?)
    }
}

impl Prune {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let which = if self.all { "all" } else { "anonymous" };
        let warning = format!("WARNING! This will remove {which} local volumes not used by at least one container.");
        if !self.force && !confirm(&warning)? {
            return Ok(0);
        }
        let (text, bytes) = prune(engine, self.all).await?;
        output::print(&format!("{text}Total reclaimed space: {}\n", size::human(bytes)))
    }
}

/// Removes volumes, and tells which.
pub(crate) async fn prune(engine: &Engine, all: bool) -> Result<(String, u64)> {
    let (names, bytes) = engine.prune_volumes(all).await?;
    let text = if names.is_empty() { String::new() } else { format!("Deleted Volumes:\n{}\n", output::lines(names)) };
    Ok((text, bytes))
}

impl Rm {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let remove = async |name: &str| -> Result<()> {
            if self.force && engine.volume(name).await.is_err() {
                return Ok(());
            }
            Ok(engine.remove_volume(name).await?)
        };
        each(&self.names, remove).await
    }
}
