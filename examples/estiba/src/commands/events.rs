//! `estiba events`: what happens to containers and images, as it happens.

use std::time::SystemTime;

use clap::Args;
use estiba_engine::{Engine, Event, EventsRequest};

use crate::failure::{Failure, Result};
use crate::filter::{Filters, has_label};
use crate::format::{self, Format};
use crate::moment;
use crate::output::{self, BROKEN_PIPE};
use crate::template::Json;
use crate::view::event;

/// Show what happens to containers and images
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  estiba events\n  estiba events --since 1h --until 0s --filter event=die\n  \
                        estiba events --filter container=web --format json\n")]
pub(crate) struct Events {
    /// Only those that fit: container=, image=, event=, type=, label=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Begin with those since a time (2006-01-02T15:04:05Z) or a duration ago (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at a time, or a duration ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

impl Events {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        let now = SystemTime::now();
        let time = |text: &Option<String>| {
            let text = text.as_deref().filter(|text| !text.is_empty());
            text.map(|text| moment::parse(text, now).map_err(Failure::new)).transpose()
        };
        let request = EventsRequest { since: time(&self.since)?, until: time(&self.until)? };
        let known = ["container", "daemon", "event", "image", "label", "network", "scope", "type", "volume"];
        let filters = Filters::parse(&self.filter, &known)?;
        let template = match self.format.as_str() {
            "" | "json" => None,
            text => Some(Format::parse(text, "").prepare()?),
        };
        let mut events = engine.events(request).await?;
        while let Some(event) = events.next().await {
            let event = event::shown(event?);
            if !fits(&filters, &event) {
                continue;
            }
            let line = match &template {
                None if self.format.is_empty() => format::shown(&event::line(&event)),
                None => event::object(&event).json(Json::Compact),
                Some(template) => format::row(template, &event::object(&event))?,
            };
            // A reader that has gone wants no more.
            if output::print(&format!("{line}\n"))? == BROKEN_PIPE {
                return Ok(BROKEN_PIPE);
            }
        }
        Ok(0)
    }
}

fn fits(filters: &Filters, event: &Event) -> bool {
    let attribute = |key: &str| event.attributes.get(key).map_or("", String::as_str);
    // An action such as `exec_start: sh` is found by its first word, too.
    let action = event.action.split(':').next().unwrap_or_default();
    let kind = event.kind.name();
    filters.any("event", |wanted| wanted == event.action || wanted == action)
        && filters.any("type", |wanted| wanted == kind)
        && filters.any("container", |wanted| {
            kind == "container" && (event.id.starts_with(wanted) || attribute("name") == wanted)
        })
        && filters.any("image", |wanted| {
            let names = if kind == "image" { [event.id.as_str(), attribute("name")] } else { [attribute("image"), ""] };
            names.iter().any(|name| *name == wanted || name.split(':').next() == Some(wanted))
        })
        && filters.any("volume", |wanted| kind == "volume" && event.id == wanted)
        && filters.any("network", |wanted| kind == "network" && (event.id == wanted || attribute("name") == wanted))
        && filters.any("scope", |wanted| wanted == "local")
        && filters.any("daemon", |_| false)
        && filters.values("label").iter().all(|wanted| has_label(wanted, &event.attributes))
}
